"""Values tier: assignments and in-place operators on slices, planned.

The arithmetic is torch's: half-precision types are computed in float32 and rounded once, other types in their own;
integers do not become floats. What a type cannot hold is an error and not a wrapped or cut value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from paramctl import assign, sharing, values
from paramctl.assign import Assignment
from paramctl.checkpoint import Checkpoint, Param
from paramctl.errors import ParamctlError, shortened
from paramctl.plan import Change, Plan
from paramctl.select import Pick
from paramctl.values import Array

_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+=": np.add,
    "-=": np.subtract,
    "*=": np.multiply,
    "/=": np.true_divide,
}
_BLOCK = 1 << 16  # elements that are computed at once: what is beside the tensor in memory


def set(checkpoint: Checkpoint, assignments: Sequence[str]) -> Plan:  # noqa: A001 - the command's name
    """A change for each parameter that an assignment names, in the order in which they are written.

    Raises:
        SelectError: a malformed assignment, or a name that is not there.
    """
    parsed = [assign.parse(checkpoint, text) for text in assignments]
    written = _Written(parsed)
    tied = _tied_names(checkpoint)
    changes = []
    for assignment in parsed:
        for pick in assignment.picks:
            _check_shapes(assignment, pick)
            compute = _compute(assignment, pick, written)
            said = assignment.text.strip()
            changes.append(Change(pick.param, pick.view, compute, "set", said, tied.get(pick.param.name, ())))
    return Plan(tuple(changes), begin=written.clear)


def _tied_names(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for group in sharing.groups(checkpoint.params.values()):
        for name in group.names:
            found.setdefault(name, []).extend(other for other in group.names if other != name)
    return {name: tuple(dict.fromkeys(others)) for name, others in found.items()}


class _Written:
    """What earlier changes of the same plan put where, of the storages from which a value is read."""

    def __init__(self, assignments: Sequence[Assignment]) -> None:
        self.sources = {a.value.param.storage.key for a in assignments if isinstance(a.value, Pick)}
        self.pieces: list[tuple[str, int, bytes]] = []

    def clear(self) -> None:
        self.pieces.clear()

    def add(self, param: Param, span: memoryview) -> None:
        if param.storage.key in self.sources and param.storage.data is None:
            self.pieces.append((param.storage.key, param.span[0], bytes(span)))

    def read(self, param: Param) -> Array:
        start, end = param.span
        data = bytearray(values.span_bytes(param))
        for key, at, piece in self.pieces:
            low, high = max(start, at), min(end, at + len(piece))
            if key == param.storage.key and low < high:
                data[low - start : high - start] = piece[low - at : high - at]
        return values.on(param, data)


def _compute(assignment: Assignment, pick: Pick, written: _Written) -> Callable[[memoryview], str]:
    def compute(span: memoryview) -> str:
        target = values.on(pick.view, span)
        before = values.spread(target)
        value = assignment.value
        operand = written.read(value.view) if isinstance(value, Pick) else value
        result = _result(assignment, pick.view, target, operand)
        for block, other in _blocks(target, operand):
            target_block = target[block]
            target[block] = result(target_block, other)
        written.add(pick.view, span)
        return f"{before} → {values.spread(target)}"

    return compute


def _check_shapes(assignment: Assignment, pick: Pick) -> None:
    value = assignment.value
    try:
        shape = value.view.shape if isinstance(value, Pick) else np.shape(value)
    except ValueError:
        raise ParamctlError(f"{shortened(assignment.text)}: the lists are not all of one length") from None
    try:
        fits = np.broadcast_shapes(shape, pick.view.shape) == pick.view.shape
    except ValueError:
        fits = False
    if not fits:
        where = f"{shortened(pick.view.name)}[{pick.slice}]" if pick.slice else shortened(pick.view.name)
        raise ParamctlError(f"{where} is {_shape(pick.view.shape)}, and the value is {_shape(shape)}")


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) if shape else "a scalar"
