"""Torch tier: one backward pass, and what each use of a parameter contributes to its gradient.

A gradient arrives at a parameter over the edges of autograd's graph that end at it, one for each operation that took
the parameter, and is their sum. So the graph that the model made is asked: nothing in it is replaced, and the whole
gradient is autograd's own. To which call of which module an operation belongs, its number in the order of the graph
tells.

Source: "Autograd mechanics" of torch's manual; torch/csrc/autograd/engine.cpp, `InputBuffer::add`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from paramctl import usercode
from paramctl.errors import ParamctlError
from paramctl.forward import Call, Definition, Trace
from paramctl.measures import dense, named


@dataclass(slots=True)
class Use:
    """An operation that took a parameter. `label` is the parameter's name there, and which of several it was."""

    label: str
    order: int  # autograd's number of the operation: that of an earlier one is less
    call: Call | None  # of the module in which it was; None if it was outside of the forward pass
    gradient: Tensor | None = None  # what it contributes


@dataclass(slots=True)
class Gradient:
    """Of one parameter. `uses` are in the order of the forward pass; `whole` is None if the loss does not need it."""

    parameter: nn.Parameter
    names: tuple[str, ...]
    uses: list[Use] = field(default_factory=list)
    whole: Tensor | None = None


class _Edge(NamedTuple):
    node: Any
    place: int

    @property
    def order(self) -> int:
        number: int = self.node._sequence_nr()  # noqa: SLF001
        return number


def backward(model: Definition, loss: Tensor, trace: Trace) -> list[Gradient]:
    """The gradient of each parameter of a model, in their order. The parameters' own `grad` is left as it was.

    Args:
        model: the model.
        loss: one number that it made.
        trace: of the pass that made it.

    Raises:
        ParamctlError: the loss does not depend on any parameter, or the backward pass of the user's code fails.
    """
    if loss.requires_grad and loss.grad_fn is None:  # it is a parameter
        loss = loss.clone()
    if loss.grad_fn is None:
        raise ParamctlError(
            "the loss depends on no parameter that requires a gradient",
            hint="they may all be frozen, or forward may run under torch.no_grad()",
        )
    edges: dict[int, list[_Edge]] = {}
    for parameter, edge in _edges(loss.grad_fn):
        edges.setdefault(id(parameter), []).append(edge)
    found = []
    for key, (parameter, names) in named(model.module).items():
        gradient = Gradient(parameter, names)
        mine = sorted(edges.get(key, []), key=lambda edge: (edge.order, edge.place))
        calls = [trace.of(edge.order) for edge in mine]
        labels = _labels(names, parameter, calls, trace)
        for edge, call, label in zip(mine, calls, labels, strict=True):
            use = Use(label, edge.order, call)
            gradient.uses.append(use)
            if len(mine) > 1:
                edge.node.register_hook(_keeping(use, edge.place))
        found.append(gradient)
    before = [gradient.parameter.grad for gradient in found]
    try:
        for gradient in found:
            gradient.parameter.grad = None
        with usercode.running(model.name, folder=model.folder, within=lambda: "in the backward pass: "):
            loss.backward()  # type: ignore[no-untyped-call]
        for gradient in found:
            gradient.whole = gradient.parameter.grad
    finally:
        for gradient, grad in zip(found, before, strict=True):
            gradient.parameter.grad = grad
    for gradient in found:
        if len(gradient.uses) == 1:
            gradient.uses[0].gradient = gradient.whole
    return found


def _edges(start: Any) -> Iterator[tuple[Tensor, _Edge]]:
    """Each edge of a graph that ends at a leaf, with the leaf."""
    seen, waiting = {start}, [start]
    while waiting:
        node = waiting.pop()
        for place, (following, _) in enumerate(node.next_functions):
            if following is None:
                continue
            leaf = getattr(following, "variable", None)  # of an AccumulateGrad, and of no other node
            if isinstance(leaf, Tensor):
                yield leaf, _Edge(node, place)
            elif following not in seen:
                seen.add(following)
                waiting.append(following)


def _keeping(use: Use, place: int) -> Callable[[Any, Any], None]:
    def hook(grad_inputs: Any, _: Any) -> None:
        use.gradient = grad_inputs[place]

    return hook


# ----------------------------------------------------------------------------- what a use is called


def _labels(names: tuple[str, ...], parameter: nn.Parameter, calls: list[Call | None], trace: Trace) -> list[str]:
    """`4.weight (call 2)`: a name for each use, and no two alike.

    Which call of the module, if it is called more than once; which operation, if there are several in one call; and
    in which module, if that is not the one that holds the parameter.
    """
    totals = Counter(map(id, calls))
    seen: Counter[int] = Counter()
    labels = []
    for call in calls:
        seen[id(call)] += 1
        name, said = _place(names, parameter, call)
        if call is not None and trace.times(call.module) > 1:
            said.append(f"call {call.number}")
        if totals[id(call)] > 1:
            said.append(f"use {seen[id(call)]}")
        labels.append(f"{name} ({', '.join(said)})" if said else name)
    return labels


def _place(names: tuple[str, ...], parameter: nn.Parameter, call: Call | None) -> tuple[str, list[str]]:
    if call is None:
        return names[0], ["outside forward"]
    own = [name for name, held in call.module._parameters.items() if held is parameter]  # noqa: SLF001
    if own:
        return " = ".join(f"{path}.{name}" if path else name for path in call.paths for name in own), []
    return names[0], [f"in {call.paths[0] or 'forward'}"]


class Shares(NamedTuple):
    """How uses make up a whole. `apart`: the greatest difference between their sum and it, over its greatest element.

    None where the whole is no finite number, or where there is nothing to share.
    """

    of_each: tuple[float | None, ...]
    apart: float | None


_CHUNK = 1 << 20  # elements, so that float64 copies of a large gradient are never there at once


def shares(gradient: Gradient) -> Shares:
    """Which part of the whole each use is: its projection on the whole, over the whole's square; they add up to 1."""
    if gradient.whole is None:
        return Shares((None,) * len(gradient.uses), None)
    whole = _flat(gradient.whole)
    greatest = float(whole.abs().max()) if whole.numel() else 0.0
    parts = [None if use.gradient is None else _flat(use.gradient) for use in gradient.uses]
    if not math.isfinite(greatest) or not greatest:
        return Shares((None,) * len(parts), None)
    length = apart = 0.0
    dots = [0.0] * len(parts)
    for start in range(0, whole.numel(), _CHUNK):
        piece = whole[start : start + _CHUNK].double() / greatest  # so that no square is beyond float64
        rest = piece.clone()
        for i, part in enumerate(parts):
            if part is not None:
                mine = part[start : start + _CHUNK].double() / greatest
                dots[i] += float(torch.dot(mine, piece))
                rest -= mine
        length += float(torch.dot(piece, piece))
        apart = max(apart, float(rest.abs().max()))
    return Shares(tuple(dot / length for dot in dots), apart)


def _flat(tensor: Tensor) -> Tensor:
    values = dense(tensor)
    return (torch.view_as_real(values) if values.is_complex() else values).flatten()
