"""Header tier: what of an outline a format can hold, and what it cannot, said before anything is written."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from paramctl import outline as outlines
from paramctl import sharing
from paramctl.errors import ParamctlError, shortened
from paramctl.formats import config_ties, torch_legacy, torch_legacy_document, torch_zip
from paramctl.formats.carrying import Carried, carried
from paramctl.formats.nesting import dotted
from paramctl.formats.notes import InTuple, Key
from paramctl.formats.targets import Target
from paramctl.outline import Outline

_MOST_FILE_NAME = 200
_TOLD = 3  # names in a sentence


def fitted(made: Outline, target: Target) -> Outline:
    """The outline as the target can hold it, `lost` saying what it cannot.

    Raises:
        ParamctlError: there are no tensors in it, or some that the target cannot hold.
    """
    if not made.entries:
        raise ParamctlError("0 tensors would be left", hint="nothing is written without any")
    if _keeps_pickle(made, target):
        made = made._replace(keeps_pickle=True)
    if is_edited(made, target):
        return made
    module = importlib.import_module(target.module)
    found = carried(made) if target.nests else None
    if found is not None:
        made = made._replace(paths=found.paths, extras=found.extras)
    _refuse_dtypes(made, target, module)
    _refuse_names(made, target, module)
    lost = [*made.lost, *_lost_extras(made, found), *_lost(made, target)]
    if target.ties == "region":
        made, more = _by_text(made)
        lost += more
    if made.is_split:
        _refuse_parts(made, target)
        lost += _lost_apart(made)
    if target.name == "sharded":
        made = _with_config(made)
    metadata = made.metadata if target.holds_metadata else {}
    if target.ties == "alias":
        metadata, more = _apart_from_names(made, metadata)
        lost += more
    fits = made._replace(metadata=metadata, lost=tuple(lost), has_views=target.ties == "storage")
    return _as_aliases(fits) if target.ties in ("alias", "region") else fits


def is_edited(made: Outline, target: Target) -> bool:
    """Whether the source is edited, so that all stays that is not named: a torch zip that is made of one."""
    is_one = made.checkpoint.source.kind == "file" and made.checkpoint.format == target.name == torch_zip.NAME
    return made.keeps_pickle or (is_one and not made.is_split)


def _keeps_pickle(made: Outline, target: Target) -> bool:
    """Whether a file of before torch 1.6 becomes a zip with the pickle that it has."""
    is_one = made.checkpoint.format == torch_legacy.NAME and target.name == torch_zip.NAME and not made.is_split
    return is_one and torch_legacy_document.rewritten(made) is not None


def _refuse_dtypes(made: Outline, target: Target, module: ModuleType) -> None:
    alien = [entry for entry in made.entries if entry.dtype.name not in module.DTYPES]
    if not alien:
        return
    first = alien[0]
    more = f", and {len(alien) - 1:,} more" if len(alien) > 1 else ""
    floats = "--dtype float32 writes their numbers; " if first.dtype.kind in ("float", "quantized") else ""
    raise ParamctlError(
        f"{shortened(first.name)} is {first.dtype.name}, which {target.name} cannot hold{more}",
        hint=f"{floats}--drop leaves them out",
    )


def _refuse_names(made: Outline, target: Target, module: ModuleType) -> None:
    for entry in made.entries:
        if not _is_utf8(entry.name) or module.cannot_name(entry.name):
            said = f"{target.name} cannot hold the name {shortened(entry.name)}"
            raise ParamctlError(said, hint="--rename gives it another")


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _lost_extras(made: Outline, found: Carried | None) -> Iterator[str]:
    there = made.checkpoint.extras if found is None else found.alien
    extras = [key for key in there if key not in outlines.ABOUT_FOLDERS and key not in made.without]
    if extras:
        yield f"{'what is no tensor' if found is None else 'objects of classes of their own'}: {_some(extras)}"


def _with_config(made: Outline) -> Outline:
    """With the config.json of a folder as it is, unless it would be read as a tie that is not to be."""
    path = made.checkpoint.config
    if not path:
        return made
    params = {param.name: param for param in outlines.params(made)}
    alone = replace(made.checkpoint, params=params, extras={})
    more = config_ties.declared(alone, Path(path).parent).params.keys() - params.keys()
    if more:
        note = f"config.json is left out: it declares {shortened(min(more))}, which is not to be there"
        return made._replace(notes=(*made.notes, note))
    said, dtypes = config_ties.dtype(path), {entry.dtype.name for entry in made.entries if entry.is_cast}
    if said and dtypes and said not in dtypes:
        note = f"config.json still says {shortened(said)}, and not {min(dtypes)}"
        return made._replace(notes=(*made.notes, note), config=path)
    return made._replace(config=path)


def _by_text(made: Outline) -> tuple[Outline, list[str]]:
    """As DCP has it, which knows everything by the text of its path; and what is lost by that."""
    every = [*made.paths.values(), *made.extras]
    keys = dict.fromkeys(dotted(path[:at]) for path in every for at, step in enumerate(path, 1) if type(step) is Key)
    lost = [f"keys that are no text, and become text: {_some(list(keys))}"] if keys else []
    tuples = dict.fromkeys(dotted(path[:at]) for path in every for at, step in enumerate(path) if type(step) is InTuple)
    lost += [f"tuples with tensors, and makes lists of them: {_some(list(tuples))}"] if tuples else []
    names = {entry.name for entry in made.entries}
    extras = {}
    for path, value in made.extras.items():
        if dotted(path) not in names:
            names.add(dotted(path))
            extras[path] = value
    twice = [dotted(path) for path in made.extras if path not in extras]
    lost += [f"two things of one name: {_some(twice)}"] if twice else []
    return made._replace(extras=extras), lost


def _lost(made: Outline, target: Target) -> Iterator[str]:
    checkpoint = made.checkpoint
    metadata = [key for key, text in made.metadata.items() if (key, text) != ("format", "pt")]
    if metadata and not target.holds_metadata:
        yield f"metadata: {_some(metadata)}"
    if checkpoint.knows_types and checkpoint.source.kind != "definition":
        typed = sum(bool(module.type) for module in checkpoint.modules.values())
        yield f"the classes of {typed:,} module{'s' if typed > 1 else ''}"
    if target.ties == "storage":
        return
    found = outlines.groups(made)
    same = [group for group in found if group.relation == "same"]
    if same and not target.ties:
        yield f"ties: {_groups(same)}"
    views = [group for group in found if group.relation != "same"]
    if views:
        yield f"views of one storage: {_groups(views)}"


def _refuse_parts(made: Outline, target: Target) -> None:
    if target.is_folder:
        raise ParamctlError(f"--split makes files, and {target.name} is a folder", hint="--to safetensors")
    for top in outlines.parts(made):
        if "/" in top or "\0" in top or len(os.fsencode(top)) > _MOST_FILE_NAME:
            raise ParamctlError(f"{shortened(top)} cannot be the name of a file", hint="--rename gives it another")


def _lost_apart(made: Outline) -> Iterator[str]:
    homes = {entry.name: top for top, part in outlines.parts(made).items() for entry in part.entries}
    apart = [group for group in outlines.groups(made) if len({homes[name] for name in group.names}) > 1]
    if apart:
        yield f"ties between files: {_groups(apart)}"


def _groups(found: Sequence[sharing.Group]) -> str:
    first = " and ".join(shortened(name, 60) for name in found[0].names[:2])
    more = f", and {len(found) - 1:,} more" if len(found) > 1 else ""
    return f"{first} become tensors of their own{more}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _TOLD:,} more" if len(names) > _TOLD else ""
    return ", ".join(shortened(name, 60) for name in names[:_TOLD]) + more


def _apart_from_names(made: Outline, metadata: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Metadata without what would read as an alias, or stand where one does; of another format with `format`."""
    names = {entry.name for entry in made.entries}
    kept_as = outlines.aliases(made)
    said = dict(metadata)
    if made.checkpoint.format not in ("safetensors", "sharded"):
        said.setdefault("format", "pt")  # which transformers asks for
    good = {key: text for key, text in said.items() if key not in kept_as and (key in names or text not in names)}
    clash = [key for key in metadata if key not in good]
    return good, [f"metadata that would read as a tie: {_some(clash)}"] if clash else []


def _as_aliases(made: Outline) -> Outline:
    kept_as = outlines.aliases(made)
    if not kept_as:
        return made
    return made._replace(
        entries=tuple(
            entry._replace(action="alias", detail=f"of {shortened(kept_as[entry.name])}")
            if entry.name in kept_as and entry.action == "keep"
            else entry
            for entry in made.entries
        )
    )
