"""Header tier: one parameter a row."""

from __future__ import annotations

from paramctl import sharing
from paramctl.checkpoint import Checkpoint
from paramctl.report import Column, Report
from paramctl.select import Selection

COLUMNS = (
    Column("name", "name"),
    Column("shape", "shape"),
    Column("dtype"),
    Column("numel", "count"),
    Column("nbytes", "bytes"),
    Column("kind"),
    Column("requires_grad"),
    Column("stride", "shape"),
    Column("storage", "name"),
    Column("storage_offset", "count"),
    Column("tie", "name"),
    Column("module"),
    Column("file", "name"),
)


def ls(checkpoint: Checkpoint, selection: Selection) -> Report:
    """A row for each chosen parameter; `tie` is the first name that has its elements too."""
    ties = sharing.first_names(checkpoint.params.values())
    types = {path: module.type or None for path, module in checkpoint.modules.items()}
    own, shown = str(checkpoint.source.path), checkpoint.source.name
    rows = []
    for param in selection.chosen:
        name, numel, storage = param.name, param.numel, param.storage
        path = storage.extents[0].path if storage.extents else own
        rows.append(
            (
                name,
                list(param.shape),
                param.dtype.name,
                numel,
                param.dtype.nbytes(numel),
                param.kind,
                param.requires_grad,
                list(param.stride),
                storage.key,
                param.storage_offset,
                ties.get(name),
                types.get(name.rpartition(".")[0]),
                shown if path == own else path,
            )
        )
    totals = sharing.totals(checkpoint, selection.chosen)
    return Report(COLUMNS, tuple(rows), totals, shown, checkpoint.format)
