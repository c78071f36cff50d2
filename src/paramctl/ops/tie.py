"""Header tier: tensors made one, and made several again."""

from __future__ import annotations

from paramctl import outline as outlines
from paramctl.checkpoint import Checkpoint
from paramctl.contents import Window
from paramctl.errors import ParamctlError, SelectError, shortened
from paramctl.formats import fitting, rereading, sharded
from paramctl.formats.targets import TARGETS, Target
from paramctl.ops.convert import Conversion
from paramctl.outline import Entry, Outline
from paramctl.select import Selection, select
from paramctl.storages import Blob


def tie(checkpoint: Checkpoint, selection: Selection, *, keep: str = "", at: str = "") -> Conversion:
    """What is chosen as one tensor: the first that is named, or `keep`.

    Raises:
        SelectError: fewer than two tensors.
        ParamctlError: they differ and `keep` does not say which wins, or the format has no ties.
    """
    target = _target(checkpoint)
    names = [param.name for param in selection.chosen]
    if len(names) < 2:
        raise SelectError(f"{shortened(names[0])} alone", hint="name two tensors or more, which become one")
    winner = select(checkpoint, [keep]).chosen[0].name if keep else names[0]
    before = outlines.outline(checkpoint, at=at)
    made = _in_shards(outlines.tied(before, names, winner=winner))
    if not keep:
        _refuse_unequal(before, names)
    return Conversion(fitting.fitted(made, target), target, is_edit=True)


def untie(checkpoint: Checkpoint, selection: Selection, *, at: str = "") -> Conversion:
    """Each name that is chosen as a tensor of its own; where all of a tie are, the first keeps its storage.

    Raises:
        SelectError: none of them is tied.
        ParamctlError: the format has no ties.
    """
    target = _target(checkpoint)
    before = outlines.outline(checkpoint, at=at)
    made = _in_shards(outlines.untied(before, [param.name for param in selection.chosen]))
    of_config = [e.name for e in made.entries if e.action == "untie" and checkpoint.params[e.was].declared == "config"]
    if of_config:
        note = f"config.json still ties {shortened(of_config[0])}, and transformers will: tie_word_embeddings"
        made = made._replace(notes=(*made.notes, note))
    return Conversion(fitting.fitted(made, target), target, is_edit=True)


def _target(checkpoint: Checkpoint) -> Target:
    target = TARGETS.get(checkpoint.format)
    if target is None or not target.ties:
        what = f"{shortened(checkpoint.source.name)}: {checkpoint.format} keeps no ties that can be changed"
        raise ParamctlError(what, hint="paramctl convert makes a safetensors or torch file of it")
    return target


def _in_shards(made: Outline) -> Outline:
    """With every tensor in the shard that it was in."""
    is_one = made.checkpoint.format == sharded.NAME
    return made._replace(homes=sharded.homes(made.checkpoint)) if is_one else made


def _refuse_unequal(before: Outline, names: list[str]) -> None:
    entries = {entry.name: entry for entry in before.entries}
    first = entries[names[0]]
    with Window() as one, Window() as two:
        for name in names[1:]:
            if not _are_equal(first, entries[name], one, two):
                said = f"{shortened(first.name)} and {shortened(name)} differ"
                raise ParamctlError(said, hint=f"--keep {shortened(first.name)} says which wins")


def _are_equal(a: Entry, b: Entry, one: Window, two: Window) -> bool:
    return rereading.are_equal(Blob(a.param, a.dtype), Blob(b.param, b.dtype), one, two)
