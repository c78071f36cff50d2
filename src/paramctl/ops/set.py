"""Values tier: assignments and in-place operators on slices, planned.

The arithmetic is torch's: half-precision types are computed in float32 and rounded once, other types in their own;
integers do not become floats. What a type cannot hold is an error and not a wrapped or cut value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
_HALF = frozenset(("float16", "bfloat16"))


def set(checkpoint: Checkpoint, assignments: Sequence[str]) -> Plan:  # noqa: A001 - the command's name
    """A change for each parameter that an assignment names, in the order in which they are written.

    Raises:
        SelectError: a malformed assignment, or a name that is not there.
    """
    written = _Written()
    changes = []
    tied = _tied_names(checkpoint)
    for text in assignments:
        assignment = assign.parse(checkpoint, text)
        for pick in assignment.picks:
            _check_shapes(assignment, pick)
            changes.append(
                Change(
                    pick.param,
                    pick.view,
                    _compute(assignment, pick, written),
                    "set",
                    assignment.text.strip(),
                    tied.get(pick.param.name, ()),
                )
            )
    return Plan(tuple(changes), begin=written.clear)


def _tied_names(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for group in sharing.groups(checkpoint.params.values()):
        for name in group.names:
            found.setdefault(name, []).extend(other for other in group.names if other != name)
    return {name: tuple(dict.fromkeys(others)) for name, others in found.items()}


class _Written:
    """What earlier changes of the same plan put where, for a value that is read from there."""

    def __init__(self) -> None:
        self.pieces: list[tuple[str, int, bytes]] = []

    def clear(self) -> None:
        self.pieces.clear()

    def add(self, param: Param, span: memoryview) -> None:
        self.pieces.append((param.storage.key, param.span[0], bytes(span)))

    def read(self, param: Param) -> Array:
        start, end = param.span
        data = bytearray(values.span_bytes(param))
        for key, at, piece in self.pieces if param.storage.data is None else ():
            low, high = max(start, at), min(end, at + len(piece))
            if key == param.storage.key and low < high:
                data[low - start : high - start] = piece[low - at : high - at]
        return values.on(param, data)


def _compute(assignment: Assignment, pick: Pick, written: _Written) -> Callable[[memoryview], str]:
    def compute(span: memoryview) -> str:
        target = values.on(pick.view, span)
        before = values.spread(target)
        value = assignment.value
        operand = written.read(value.view).copy() if isinstance(value, Pick) else value
        target[...] = _result(assignment, pick.view, target, operand)
        if pick.view.storage.data is None:
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


def _result(assignment: Assignment, param: Param, target: Array, operand: Any) -> Any:
    kind, name = param.dtype.kind, param.dtype.name
    if name == "complex32" or kind == "quantized" or name.startswith("float8"):
        if assignment.operator != "=" or name == "complex32" or kind == "quantized":
            raise ParamctlError(f"{shortened(param.name)}: {assignment.operator} does not work on {name}")
    if assignment.operator == "=":
        return _held(operand, param, target)
    if kind == "bool":
        raise ParamctlError(f"{shortened(param.name)}: {assignment.operator} does not work on bool", hint="= does")
    if kind in ("int", "uint"):
        return _integers(assignment, param, target, operand)
    working = np.dtype(np.float32) if name in _HALF else target.dtype.newbyteorder("=")
    if isinstance(operand, np.ndarray):
        other = (
            operand.astype(np.float32) if operand.dtype.kind not in "fiubc" or operand.dtype == np.float16 else operand
        )
        working = np.result_type(working, other.dtype) if other.dtype.kind in "fc" else working
        if working.kind == "c" and kind != "complex":
            raise ParamctlError(f"{shortened(param.name)}: {name} cannot hold complex values")
    else:
        other = np.asarray(operand)
        if other.dtype.kind == "c" and kind != "complex":
            raise ParamctlError(f"{shortened(param.name)}: {name} cannot hold complex values")
    with np.errstate(all="ignore"):
        result = _OPERATIONS[assignment.operator](target.astype(working), other.astype(working))
        return result.astype(target.dtype)


def _integers(assignment: Assignment, param: Param, target: Array, operand: Any) -> Any:
    other = np.asarray(operand, dtype=object)
    if isinstance(operand, np.ndarray) and operand.dtype.kind not in "iub":
        raise ParamctlError(f"{shortened(param.name)}: {param.dtype.name} cannot hold the values of another dtype")
    if assignment.operator == "/=" or any(not isinstance(item, (int, np.integer)) for item in other.reshape(-1)[:1000]):
        raise ParamctlError(
            f"{shortened(param.name)}: {assignment.text.strip()} gives floats, and it is {param.dtype.name}"
        )
    exact = _OPERATIONS[assignment.operator](target.astype(object), other)
    return _held(exact, param, target)


def _held(operand: Any, param: Param, target: Array) -> Any:
    """The operand in the target's dtype, unless the dtype cannot hold it."""
    name, kind = param.dtype.name, param.dtype.kind
    source = np.asarray(operand)
    if source.dtype == object and kind not in ("int", "uint"):
        source = source.astype(np.float64)
    if kind in ("int", "uint"):
        limits = np.iinfo(target.dtype)
        if source.dtype.kind not in "iubO":
            as_float = source.astype(np.float64)
            if not np.all(np.isfinite(as_float) & (as_float == np.trunc(as_float))):
                raise ParamctlError(f"{shortened(param.name)}: {_first(source)} is no value of {name}")
            source = as_float.astype(object)
            source = np.vectorize(int, otypes=[object])(source)
        exact = source.astype(object)
        if exact.size and not (limits.min <= exact.min() and exact.max() <= limits.max):
            raise ParamctlError(f"{shortened(param.name)}: {name} holds {limits.min:,} to {limits.max:,}")
        return exact.astype(target.dtype)
    if source.dtype.kind == "c" and kind != "complex":
        raise ParamctlError(f"{shortened(param.name)}: {name} cannot hold complex values")
    if kind == "bool":
        if not np.all((source == 0) | (source == 1)):
            raise ParamctlError(f"{shortened(param.name)}: {_first(source)} is no value of bool")
        return source.astype(bool)
    with np.errstate(all="ignore"):
        wide = source.astype(np.float32) if source.dtype.kind not in "fiubc" else source
        cast = wide.astype(target.dtype)
        if not isinstance(operand, np.ndarray) and np.any(np.isfinite(wide) & ~_finite(cast)):
            raise ParamctlError(f"{shortened(param.name)}: {_first(source)} overflows {name}")
    return cast


def _finite(array: Array) -> Any:
    return np.isfinite(array if array.dtype.kind in "fc" else array.astype(np.float32))


def _first(array: Array) -> str:
    return shortened(str(array.reshape(-1)[0].item() if array.size == 1 else array.reshape(-1)[:4].tolist()), 60)
