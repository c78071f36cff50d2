"""Torch tier: one forward and one backward pass in the open: a gradient a row, and each use of what is tied."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from paramctl import sharing
from paramctl.backward import Gradient, Shares, backward, shares
from paramctl.checkpoint import Checkpoint
from paramctl.errors import SelectError, shortened
from paramctl.forward import Trace, run
from paramctl.measures import Measure, measured
from paramctl.ops import _passes
from paramctl.ops._grad_columns import COLUMNS
from paramctl.report import Report
from paramctl.select import Selection

Wanted = _passes.Wanted
FACTOR = 1000  # between the last layer's gradient and one that vanishes or explodes
MARKS = ("nan", "frozen", "unused", "zero", "vanishing", "exploding")
_NAMED = 5  # in a note
_NOT_FINITE = [at for at, column in enumerate(COLUMNS) if column.key in ("nan", "inf")]


class _Norms(NamedTuple):
    value: Measure
    grad: Measure | None


def grad(checkpoint: Checkpoint, selection: Selection, wanted: Wanted, *, root: str = "", seed: str = "") -> Report:
    """A row for each chosen parameter; below one that several operations use, a row for each of them.

    `ratio` is `grad_l2` over `value_l2`. Zeros, NaN and infinities are the gradient's. `share` is the part of the whole
    gradient that a use is, along it: shares add up to 1. A `mark` is one of

    - `frozen`: it requires no gradient;
    - `unused`: it requires one and has none, as the loss does not depend on it;
    - `nan`: its gradient or its values are not all finite;
    - `zero`: every element of its gradient is 0;
    - `vanishing`, `exploding`: its norm is below a thousandth, or above a thousand times, of what the last layer has:
      the greatest norm among the parameters of the last module that the forward pass used.

    Args:
        checkpoint: of a definition that was built with values.
        selection: of it; what is no parameter has no gradient.
        wanted: what to run it on.
        root: the path of the part that is run.
        seed: that was drawn or given, to be told.

    Raises:
        ParamctlError: it is no definition, its code raised, or what is put in does not fit.
    """
    ready = _passes.ready(checkpoint, root, wanted)
    given, target = _passes.given(ready)
    with Trace(ready.model.module) as trace:
        output = run(ready.model, given, trace)
        if target is None:
            target = ready.loss.target_for(output, given.first)
        loss = ready.loss(output, target)
        gradients = backward(ready.model, loss, trace)
    chosen = _chosen(selection, gradients)
    norms = {id(g): _Norms(measured(g.parameter), None if g.whole is None else measured(g.whole)) for g in gradients}
    last = _last(gradients, norms)
    rows: list[tuple[Any, ...]] = []
    summed: list[tuple[str, Shares]] = []
    for name, gradient in chosen.items():
        rows.append(_row(name, gradient, norms[id(gradient)], last))
        if len(gradient.uses) > 1:
            split = shares(gradient)
            summed.append((name, split))
            rows += _uses(name, gradient, norms[id(gradient)], split)
    marks = [row[-1] for row in rows if row[1] is None]
    totals = sharing.totals(checkpoint, [param for param in selection.chosen if param.kind == "parameter"]) | {
        "loss": float(loss.detach()),
        "grad_l2": math.hypot(*(norms[id(g)].grad.l2 for g in chosen.values() if g.whole is not None)),  # type: ignore[union-attr]
        "sum_error": max((split.apart for _, split in summed if split.apart is not None), default=None),
        **{mark: marks.count(mark) for mark in MARKS if mark in marks},
    }
    notes = (*ready.notes, *_notes(rows, summed, checkpoint, gradients))
    metadata = ({"seed": seed} if seed else {}) | dict(ready.said)
    source = checkpoint.source.name
    return Report(COLUMNS, tuple(rows), totals, source, checkpoint.format, metadata=metadata, notes=notes)


def _chosen(selection: Selection, gradients: Sequence[Gradient]) -> dict[str, Gradient]:
    """Each chosen parameter once, under the first of its chosen names."""
    by_name = {name: gradient for gradient in gradients for name in gradient.names}
    found: dict[int, str] = {}
    for param in selection.chosen:
        if param.name in by_name:
            found.setdefault(id(by_name[param.name]), param.name)
    if not found:
        raise SelectError(
            f"{shortened(selection.chosen[0].name)}: a {selection.chosen[0].kind}, and gradients are of parameters"
        )
    return {name: by_name[name] for name in found.values()}


def _last(gradients: Sequence[Gradient], norms: Mapping[int, _Norms]) -> float:
    """The greatest norm of a gradient in the last module used; 0 where there is none to compare with."""
    uses = [(use, gradient) for gradient in gradients for use in gradient.uses]
    latest = max(uses, key=lambda pair: pair[0].order, default=None)
    if latest is None:
        return 0.0
    layer = [gradient for use, gradient in uses if use.call is latest[0].call]
    found = [norms[id(gradient)].grad for gradient in layer]
    return max((grad.l2 for grad in found if grad), default=0.0)


def _row(name: str, gradient: Gradient, norms: _Norms, last: float) -> tuple[Any, ...]:
    parameter = gradient.parameter
    others = [other for other in gradient.names if other != name]
    mark = _mark(parameter.requires_grad, norms, last)
    return (*_told(name, None, gradient, norms.value, norms.grad, None), others, mark)


def _uses(name: str, gradient: Gradient, norms: _Norms, split: Shares) -> list[tuple[Any, ...]]:
    rows = []
    for use, share in zip(gradient.uses, split.of_each, strict=True):
        part = None if use.gradient is None else measured(use.gradient)
        rows.append((*_told(name, use.label, gradient, norms.value, part, share), [], None))
    return rows


def _told(
    name: str, use: str | None, gradient: Gradient, value: Measure, grad: Measure | None, share: float | None
) -> tuple[Any, ...]:
    parameter = gradient.parameter
    return (
        name,
        use,
        list(parameter.shape),
        str(parameter.dtype).removeprefix("torch."),
        parameter.requires_grad,
        value.l2,
        grad.l2 if grad else None,
        grad.l2 / value.l2 if grad and value.l2 else None,
        share,
        grad.zeros if grad else None,
        grad.nan if grad else None,
        grad.inf if grad else None,
    )


def _mark(requires_grad: bool, norms: _Norms, last: float) -> str | None:
    value, grad = norms
    if value.nan or value.inf or (grad and (grad.nan or grad.inf)):
        return "nan"
    if not requires_grad:
        return "frozen"
    if grad is None:
        return "unused"
    if grad.l2 == 0:
        return "zero"
    if last and grad.l2 * FACTOR < last:
        return "vanishing"
    return "exploding" if last and grad.l2 > last * FACTOR else None


def _notes(
    rows: Sequence[tuple[Any, ...]],
    summed: Sequence[tuple[str, Shares]],
    checkpoint: Checkpoint,
    gradients: Sequence[Gradient],
) -> list[str]:
    notes = []
    sound = [name for name, split in summed if split.apart is not None]
    if sound:
        whose = "its gradient" if len(sound) == 1 else "their gradients"
        error = max(split.apart for _, split in summed if split.apart is not None)
        eps = max(torch.finfo(gradient.parameter.dtype).eps for gradient in gradients if len(gradient.uses) > 1)
        apart = "" if error <= math.sqrt(eps) else f", but for {error:.1g} of the largest element"
        notes.append(f"the uses of {_some(sound)} add up to {whose}{apart}")
    by_name = {row[0]: row for row in rows if row[1] is None}
    unsound = [name for name, split in summed if any(by_name[name][at] for at in _NOT_FINITE)]
    if unsound:
        notes.append(f"not finite, so that no sum of its uses is compared: {_some(unsound)}")
    unused = [row[0] for row in rows if row[-1] == "unused"]
    if unused:
        notes.append(f"unused, as the loss does not depend on {'it' if len(unused) == 1 else 'them'}: {_some(unused)}")
    return [*notes, *_apart(checkpoint, gradients)]


def _apart(checkpoint: Checkpoint, gradients: Sequence[Gradient]) -> list[str]:
    """Names that share elements and are not one parameter: each has a gradient of its own."""
    one = {name: id(gradient) for gradient in gradients for name in gradient.names}
    found = []
    for group in sharing.groups(param for param in checkpoint.params.values() if param.name in one):
        firsts = list({one[name]: name for name in reversed(group.names)}.values())[::-1]
        if len(firsts) > 1:
            found.append(
                f"{_some(firsts)} share elements and are {len(firsts)} parameters, each with a gradient of its own"
            )
    return found


def _some(names: Sequence[str]) -> str:
    shown = [shortened(name, 60) for name in names[:_NAMED]]
    if len(names) > _NAMED:
        return f"{', '.join(shown)} and {len(names) - _NAMED:,} more"
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
