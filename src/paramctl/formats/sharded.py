"""Header tier: a model in several files, by the index that says which tensor is in which, or by their numbers.

`model.safetensors.index.json` and `pytorch_model.bin.index.json` hold `{"metadata": {"total_size": …}, "weight_map":
{tensor: shard}}`. The shards are read by their headers, each once; the index is held against what they hold, and what
does not fit without keeping anyone from reading is told in `problems`, and in words in `extras["index"]["problems"]`.

An index cannot lead out of its folder: a shard's name is relative, has no `..`, and the folder that it names lies
within. The shard itself may be a link, as in the Hub's cache, where all are.

Source: huggingface_hub/serialization/_base.py (`split_state_dict_into_shards_factory`);
transformers/modeling_utils.py (`load_sharded_checkpoint`), utils/hub.py (`get_checkpoint_shard_files`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from paramctl import formats
from paramctl.checkpoint import Checkpoint, Module, Param, Problem, Storage
from paramctl.errors import FileError, ParamctlError, shortened
from paramctl.formats import config_ties, index_problems, strangers
from paramctl.formats.index_problems import problem
from paramctl.formats.safetensors_file import NAME as SAFETENSORS
from paramctl.formats.safetensors_file import naturally
from paramctl.source import Reader, Source

NAME = "sharded"
MOST_INDEX_NBYTES = 100_000_000
_SNIFFED_NBYTES = 1 << 20
_INCOMPLETE = "the download may be incomplete"


class Index(NamedTuple):
    """An index that was checked by itself, and not yet held against its shards."""

    file: str  # its name in the folder; empty where the shards' own numbers stand for it
    shards: tuple[str, ...]  # in natural order
    owners: Mapping[str, str]  # tensor: shard
    metadata: Mapping[str, Any]


def sniff(reader: Reader) -> bool:
    """Whether it is a JSON object that has a `weight_map`."""
    if reader.head.lstrip()[:1] != b"{":
        return False
    return b'"weight_map"' in reader.part(0, _SNIFFED_NBYTES)


def read(reader: Reader) -> Checkpoint:
    """What the shards of an index hold, with the ties that the config.json beside it declares.

    Raises:
        FileError: an index that is damaged or leads out of its folder, or a shard that is not there or damaged.
    """
    if reader.source.name == "-":
        raise FileError("-", "an index of shards", hint="name the index itself: its shards lie beside it")
    path = Path(reader.path)
    found = gather(reader.source, path.parent, index(reader))
    return config_ties.declared(found, path.parent)


# ----------------------------------------------------------------------------- the index


def index(reader: Reader) -> Index:
    """An index file.

    Raises:
        FileError: it is no index, or leads out of its folder.
    """
    if reader.nbytes > MOST_INDEX_NBYTES:
        raise FileError(reader.name, f"an index of {reader.nbytes:,} bytes; {MOST_INDEX_NBYTES:,} are the most")
    try:
        said = json.loads(reader.read(0, reader.nbytes).decode("utf-8"), object_pairs_hook=_unrepeated)
    except UnicodeDecodeError as error:
        raise FileError(reader.name, f"the index is not UTF-8 at byte {error.start:,}") from None
    except RecursionError:
        raise FileError(reader.name, "the index is nested too deeply") from None
    except _TwiceError as error:
        raise FileError(reader.name, f"{shortened(str(error))} stands twice in the index") from None
    except ValueError as error:
        raise FileError(reader.name, f"the index is not JSON: {shortened(str(error))}") from None
    owners = said.get("weight_map") if isinstance(said, dict) else None
    if not isinstance(owners, dict) or not owners:
        raise FileError(reader.name, "the index maps no tensor to a shard: it has no weight_map, or an empty one")
    shards: dict[str, str] = {}  # as written: as a name in the folder
    for name, shard in owners.items():
        if not isinstance(shard, str):
            raise FileError(reader.name, f"{shortened(name)} is in {shortened(repr(shard), 40)}, which is no file name")
        if shard not in shards:
            shards[shard] = _within(reader, shard)
    metadata = said.get("metadata")
    return Index(
        Path(reader.path).name,
        tuple(in_order(set(shards.values()))),
        {name: shards[shard] for name, shard in owners.items()},
        metadata if isinstance(metadata, dict) else {},
    )


class _TwiceError(ValueError):
    pass


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        raise _TwiceError(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return made


def _within(reader: Reader, shard: str) -> str:
    """A shard's name, tidied; law 5."""
    path = PurePosixPath(shard)
    folder = Path(reader.path).parent
    try:
        os.fsencode(shard)
        parts = path.parts if "\0" not in shard and len(shard) < 4096 else ()
    except UnicodeEncodeError:
        parts = ()
    if not parts:
        raise FileError(reader.name, f"the index names a shard {shortened(repr(shard), 60)}, which is no file name")
    root = os.path.realpath(folder)
    inside = os.path.realpath(folder / path.parent)
    leads_out = path.is_absolute() or ".." in parts or "\\" in shard
    if leads_out or (inside != root and not inside.startswith(root.rstrip("/") + "/")):
        raise FileError(
            reader.name,
            f"the index leads out of its folder, to {shortened(shard)}",
            hint="the index was made to mislead, or its shards were moved; they should lie beside it",
        )
    return str(path)


def in_order(names: Iterable[str]) -> list[str]:
    """Numbers within names count as numbers."""
    return list(naturally(dict.fromkeys(names)))  # type: ignore[arg-type]


# ----------------------------------------------------------------------------- the shards


@dataclass(slots=True)
class _Gathered:
    """What the shards were found to hold."""

    params: dict[str, Param] = field(default_factory=dict)
    homes: dict[str, str] = field(default_factory=dict)  # tensor: the shard that it was taken from
    modules: dict[str, Module] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def gather(source: Source, folder: Path, what: Index, *, strays: Sequence[str] = ()) -> Checkpoint:
    """The tensors of all shards.

    Args:
        source: the folder or the index, for messages.
        folder: where the shards are.
        what: which shards there are, and what they should hold.
        strays: files that look like shards of it, and that the index does not name.

    Raises:
        FileError: a shard that is not there, or that cannot be read.
    """
    _refuse_missing(source, folder, what)
    shards = {shard: _read_shard(folder, shard) for shard in what.shards}
    found = _Gathered()
    for shard, checkpoint in shards.items():
        for name, param in checkpoint.params.items():
            _take(found, what, shard, name, param)
        for path, module in checkpoint.modules.items():
            found.modules.setdefault(path, module)
        for key, text in checkpoint.metadata.items():
            found.metadata.setdefault(key, text)
        if checkpoint.extras:
            found.extras[shard] = dict(checkpoint.extras)
    storages = _apart(shards)
    params = found.params
    if storages:
        params = {
            name: param._replace(storage=storages[found.homes[name], param.storage.key])
            for name, param in params.items()
        }
    all_safetensors = all(checkpoint.format == SAFETENSORS for checkpoint in shards.values())
    params = naturally(params) if all_safetensors else params
    if what.file:
        found.problems += index_problems.against(what.owners, params, found.homes, what.metadata.get("total_size"))
    found.problems += [problem("stray", stray) for stray in strays]
    problems = index_problems.cut(found.problems)
    kinds = list(dict.fromkeys(checkpoint.format for checkpoint in shards.values()))
    about = {
        **({"file": what.file} if what.file else {}),
        "format": ", ".join(kinds),
        "shards": len(shards),
        "metadata": {key: _plain(value) for key, value in what.metadata.items()},
        "problems": [one.sentence for one in problems],
    }
    extras = {**found.extras, "index": about}
    return Checkpoint(source, NAME, params, found.modules, found.metadata, extras, problems=problems)


def homes(checkpoint: Checkpoint) -> dict[str, str]:
    """The shard that each tensor lies in, as the index names it.

    Raises:
        ParamctlError: shards that are no safetensors.
    """
    kind = checkpoint.extras["index"]["format"]
    if kind != SAFETENSORS:
        what = f"{shortened(checkpoint.source.name)}: its shards are {kind}, which are not written"
        raise ParamctlError(what, hint="paramctl convert makes a folder of safetensors of it")
    path = checkpoint.source.path or Path()
    folder = path if checkpoint.source.kind == "folder" else path.parent
    found = {}
    for name, param in checkpoint.params.items():
        file = Path(param.storage.extents[0].path) if param.storage.extents else folder / "model.safetensors"
        found[name] = str(file.relative_to(folder))
    return found


def _refuse_missing(source: Source, folder: Path, what: Index) -> None:
    missing = [shard for shard in what.shards if not _exists(folder / shard)]
    if not missing:
        return
    first = folder / missing[0]
    said = f"{shortened(missing[0])} is not there"
    if os.path.islink(first):  # noqa: PTH114 - False for a name that is too long, too
        said = f"{shortened(missing[0])} is a link to {shortened(str(first.readlink()))}, which is not there"
    elif what.file:
        said = f"the index names {shortened(missing[0])}, which is not there"
    raise FileError(
        source.name, said, hint=f"{len(missing):,} of {len(what.shards):,} shards are missing: {_INCOMPLETE}"
    )


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - False for a name that is too long


def _read_shard(folder: Path, shard: str) -> Checkpoint:
    path = folder / shard
    with Reader(Source(str(path), "file", path)) as reader:
        module = formats.of(reader)
        if module is None or module.NAME == NAME:  # an index is no shard: it could name itself
            raise strangers.unknown(reader)
        found: Checkpoint = module.read(reader)
        return found


def _apart(shards: Mapping[str, Checkpoint]) -> dict[tuple[str, str], Storage]:
    """The storages by shard and key, where two shards have the same key: torch counts anew in each file.

    Their new keys are told apart by the shard's name.
    """
    keys = [{param.storage.key for param in checkpoint.params.values()} for checkpoint in shards.values()]
    if len(set().union(*keys)) == sum(map(len, keys)):
        return {}
    own = {
        (shard, param.storage.key): param.storage
        for shard, checkpoint in shards.items()
        for param in checkpoint.params.values()
    }
    taken: set[str] = set()
    for (shard, key), storage in own.items():
        name = f"{shard}:{key}"
        while name in taken:
            name += "'"
        taken.add(name)
        own[shard, key] = storage._replace(key=name)
    return own


def _take(found: _Gathered, what: Index, shard: str, name: str, param: Param) -> None:
    """A tensor into what was found, unless another shard has it by a better right."""
    said = what.owners.get(name)
    if name not in found.params:
        found.params[name] = param
        found.homes[name] = shard
        return
    if found.params[name].declared or said == shard:
        found.params[name] = param
        found.homes[name], shard = shard, found.homes[name]
    if not param.declared:
        found.problems.append(problem("twice", name, home=found.homes[name], shard=shard))


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else shortened(repr(value), 80)
