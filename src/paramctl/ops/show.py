"""Values tier: what a parameter is, and its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from paramctl import sharing, slices, values
from paramctl.checkpoint import Checkpoint, Param
from paramctl.errors import ParamctlError, shortened
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
READ_WHOLE = 1 << 20  # elements


array = values.array


def show(checkpoint: Checkpoint, selection: Selection, *, most: int | None = None) -> Report:
    """A row for each chosen parameter or slice, `value` as nested lists.

    Args:
        checkpoint: what the parameters are of.
        selection: with the slices that were written.
        most: of a larger tensor only the first and last three along each axis are given, and one more where some are
            left out, for a terminal; None gives every value.
    """
    if most is None:
        _hold_against_bytes(selection.picks)
    grads = _grads(checkpoint)
    rows = tuple(_row(grads, pick, most) for pick in selection.picks)
    totals = sharing.totals(checkpoint, selection.chosen)
    return Report(COLUMNS, rows, totals, checkpoint.source.name, checkpoint.format)


MOST_FULL = 1 << 28  # elements that are made into lists
MOST_REPEATED = 1 << 21  # elements, beyond eight for each byte that there is of them


def _hold_against_bytes(picks: Sequence[Pick]) -> None:
    """Refuse what is much only because a few bytes are told many times: expanded, tied, or inflated."""
    numel = sum(pick.view.numel for pick in picks)
    storages = {pick.view.storage.key: pick.view.storage for pick in picks}.values()
    held = sum(s.nbytes if s.data is not None else sum(e.nbytes for e in s.extents) for s in storages)
    if numel > MOST_REPEATED + 8 * held and held:
        raise ParamctlError(
            f"{numel:,} elements to print, of the {held:,} bytes that there are",
            hint=f"fewer, or a slice: '{shortened(picks[0].view.name, 60)}[0]'",
        )


def _row(grads: Mapping[str, Any], pick: Pick, most: int | None) -> tuple[Any, ...]:
    view = pick.view
    if most is None and view.numel > MOST_FULL:
        raise ParamctlError(
            f"{shortened(view.name)} has {view.numel:,} elements, too many to print",
            hint=f"a slice of it: '{shortened(view.name, 60)}[0]'",
        )
    array = values.array(view) if most is None or view.numel <= most else _edges(view)
    return (
        view.name,
        pick.slice or None,
        view.cls,
        view.dtype.name,
        list(view.shape),
        view.requires_grad,
        grads[view.name].tolist() if view.name in grads else None,
        values.nested(array),
    )


def _edges(view: Param) -> values.Array:
    """The first and last items along each axis, with one more where some are left out; large parts are not read."""
    if view.numel > READ_WHOLE and view.shape[0] > 1:
        rows = [_edges(slices.sliced(view, (row,), str(row))) for row in _kept(view.shape[0])]
        return np.stack(rows)
    array = values.array(view)
    for axis, size in enumerate(view.shape):
        array = np.take(array, _kept(size), axis=axis)
    return array


def _kept(size: int) -> list[int]:
    if size <= 2 * EDGE_ITEMS:
        return list(range(size))
    return [*range(EDGE_ITEMS + 1), *range(size - EDGE_ITEMS, size)]


def _grads(checkpoint: Checkpoint) -> dict[str, Any]:
    """Live parameters' gradients, those that there are: none before a backward pass, and none in a file."""
    if checkpoint.live is None:
        return {}
    held = checkpoint.live.named_parameters(remove_duplicate=False)
    return {name: tensor.grad for name, tensor in held if tensor.grad is not None}
