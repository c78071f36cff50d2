"""Values tier: what a parameter is, and its values."""

from __future__ import annotations

from typing import Any

import numpy as np

from paramctl import sharing, values
from paramctl.checkpoint import Checkpoint
from paramctl.report import Column, Report
from paramctl.select import Pick, Selection

COLUMNS = (
    Column("name", "name"),
    Column("slice"),
    Column("class"),
    Column("dtype"),
    Column("shape", "shape"),
    Column("requires_grad"),
    Column("grad", "value"),
    Column("value", "value"),
)
EDGE_ITEMS = 3  # torch.set_printoptions


array = values.array


def show(checkpoint: Checkpoint, selection: Selection, *, most: int | None = None) -> Report:
    """A row for each chosen parameter or slice, `value` as nested lists.

    Args:
        checkpoint: what the parameters are of.
        selection: with the slices that were written.
        most: of a larger tensor only the first and last three along each axis are read and given, for a terminal;
            None gives every value.
    """
    rows = tuple(_row(checkpoint, pick, most) for pick in selection.picks)
    totals = sharing.totals(checkpoint, selection.chosen)
    return Report(COLUMNS, rows, totals, checkpoint.source.name, checkpoint.format)


def _row(checkpoint: Checkpoint, pick: Pick, most: int | None) -> tuple[Any, ...]:
    view = pick.view
    array = values.array(view)
    if most is not None and view.numel > most:
        array = _edges(array)
    return (
        view.name,
        pick.slice or None,
        view.cls,
        view.dtype.name,
        list(view.shape),
        view.requires_grad,
        _grad(checkpoint, view.name),
        values.nested(array),
    )


def _edges(array: values.Array) -> values.Array:
    for axis, size in enumerate(array.shape):
        if size > 2 * EDGE_ITEMS:
            array = np.take(array, [*range(EDGE_ITEMS), *range(size - EDGE_ITEMS, size)], axis=axis)
    return array


def _grad(checkpoint: Checkpoint, name: str) -> Any:
    """A live parameter's gradient; None before a backward pass, and in a file, which keeps none."""
    if checkpoint.live is None or name not in checkpoint.params:
        return None
    owner, _, last = name.rpartition(".")
    tensor = getattr(checkpoint.live.get_submodule(owner), last, None)
    grad = getattr(tensor, "grad", None)
    return None if grad is None else grad.tolist()
