"""Header tier: tied tensors, by the storage they share."""

from __future__ import annotations

from paramctl import sharing
from paramctl.checkpoint import Checkpoint
from paramctl.errors import shortened
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
_NOTED = 20


def ties(checkpoint: Checkpoint, selection: Selection) -> Report:
    """A group a row: names of the very same elements, or different views of one storage.

    A group is shown where any of its names was chosen, and always whole. `shape`, `dtype` and `nbytes` are of the
    first name; the notes say what each view is of the first.
    """
    chosen = {param.name for param in selection.chosen}
    groups = [group for group in sharing.groups(checkpoint.params.values()) if chosen.intersection(group.names)]
    rows = tuple(
        (
            list(group.names),
            group.relation,
            list(group.first.shape),
            group.first.dtype.name,
            group.first.nbytes,
            group.saved_nbytes,
            group.first.storage.key,
            group.source,
        )
        for group in groups
    )
    views = [(group, name) for group in groups if group.relation != "same" for name in group.names[1:]]
    notes = [
        f"{shortened(name)} is {sharing.how(group.first, checkpoint.params[name])} of {shortened(group.names[0])}"
        for group, name in views[:_NOTED]
    ]
    if len(views) > _NOTED:
        notes.append(f"and {len(views) - _NOTED:,} more views")
    totals = sharing.totals(checkpoint, selection.chosen)
    return Report(COLUMNS, rows, totals, checkpoint.source.name, checkpoint.format, notes=tuple(notes))
