"""Header tier, and values by content: tied tensors, by the storage they share, or by the bytes they hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from paramctl import sharing
from paramctl.checkpoint import Checkpoint, Param
from paramctl.errors import ParamctlError, shortened
from paramctl.ops import opened
from paramctl.report import Column, Report
from paramctl.select import Selection

COLUMNS = (
    Column("names", "names"),
    Column("relation"),
    Column("shape", "shape"),
    Column("dtype"),
    Column("nbytes", "bytes"),
    Column("saved_nbytes", "bytes"),
    Column("storage", "name"),
    Column("source"),
)
_CONTENT = "paramctl.ops._content"  # of the values tier: a door, so that storages cost no numpy
_NOTED = 20
By = Literal["storage", "content"]


def ties(
    checkpoint: Checkpoint,
    selection: Selection,
    *,
    by: By = "storage",
    constants: bool = False,
    tell: Callable[[int], None] | None = None,
) -> Report:
    """A group a row: names of the very same elements, or different views of one storage.

    A group is shown where any of its names was chosen, and always whole. `shape`, `dtype` and `nbytes` are of the
    first name; the notes say what each view is of the first.

    Args:
        checkpoint: what the tensors are of; with values, if they are compared.
        selection: of it.
        by: `content` for the groups by storage and, behind them, those of equal bytes that are not shared: a name
            for each time that they are there, and as `saved_nbytes` what would be saved if they were tied.
        constants: by content also tensors whose elements are all the same.
        tell: told the bytes that are read, as they are.

    Raises:
        ParamctlError: a `by` that is none; bytes that cannot be read.
    """
    if by not in ("storage", "content"):
        raise ParamctlError(f"--by {shortened(by)}: neither storage nor content")
    if constants and by != "content":
        raise ParamctlError("constants are a matter of content", hint="--by content")
    chosen = {param.name for param in selection.chosen}
    groups = [group for group in sharing.groups(checkpoint.params.values()) if chosen.intersection(group.names)]
    rows = [_row(group.names, group.relation, group.first, group.saved_nbytes, group.source) for group in groups]
    views = [(group, name) for group in groups if group.relation != "same" for name in group.names[1:]]
    notes = [
        f"{shortened(name)} is {sharing.how(group.first, checkpoint.params[name])} of {shortened(group.names[0])}"
        for group, name in views[:_NOTED]
    ]
    notes += _more(len(views), "views")
    if by == "content":
        compared = opened(_CONTENT, "ties --by content")
        found, unread = compared.alike(checkpoint.params.values(), chosen, constants=constants, tell=tell)
        rows += [_row(some.names, "content", some.first, some.saved_nbytes, "content") for some in found]
        shapes = [note for some in found for note in some.notes]
        for told, what in ((shapes, "of other shapes"), (unread, "that were not compared")):
            notes += [*told[:_NOTED], *_more(len(told), what)]
    totals = sharing.totals(checkpoint, selection.chosen)
    return Report(COLUMNS, tuple(rows), totals, checkpoint.source.name, checkpoint.format, notes=tuple(notes))


def _row(names: Sequence[str], relation: str, first: Param, saved_nbytes: int, source: str) -> tuple[Any, ...]:
    shape, dtype = list(first.shape), first.dtype.name
    return (list(names), relation, shape, dtype, first.nbytes, saved_nbytes, first.storage.key, source)


def _more(count: int, what: str) -> list[str]:
    return [f"and {count - _NOTED:,} more {what}"] if count > _NOTED else []
