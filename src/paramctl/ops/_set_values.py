"""Values tier: what an assignment puts into a tensor.

The arithmetic is torch's: types of 16 bits are computed in float32 and rounded, other types in their own; integers do
not become floats. What a type cannot hold is an error and not a wrapped or cut value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from paramctl import values
from paramctl.assign import Assignment
from paramctl.checkpoint import Param
from paramctl.errors import ParamctlError, shortened
from paramctl.select import Pick
from paramctl.values import Array
from paramctl.values.stream import bounded

Piece = tuple[str, int, bytes]  # a storage's key, where in it, and what is there now
Run = Callable[[Array, Array], Array]  # (the target, the value) → what is put in its place

_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+=": np.add,
    "-=": np.subtract,
    "*=": np.multiply,
    "/=": np.true_divide,
}
_BLOCK = 1 << 16  # elements that are computed at once: what memory holds beside the tensor
_HALF_NBYTES = 2  # types of that size and less are computed in float32


def assign(assignment: Assignment, param: Param, span: memoryview, pieces: Iterable[Piece]) -> str:
    """Assign to a tensor whose span is given, in place; how its values were spread, and how they are.

    Args:
        assignment: with its operator and value.
        param: what of its target is meant.
        span: its bytes, writable.
        pieces: what was assigned before to what the value is read from.

    Raises:
        ParamctlError: the tensor cannot hold the values.
        FileError: what the value is cannot be read.
    """
    bounded(param)
    target = values.on(param, span)
    before = values.spread(target)
    value = assignment.value
    _apply(assignment, param, target, _read(value.view, pieces) if isinstance(value, Pick) else value)
    return f"{before} → {values.spread(target)}"


def _read(param: Param, pieces: Iterable[Piece]) -> Array:
    start, end = param.span
    data = bytearray(values.span_bytes(param))
    for key, at, piece in pieces:
        low, high = max(start, at), min(end, at + len(piece))
        if key == param.storage.key and low < high:
            data[low - start : high - start] = piece[low - at : high - at]
    return values.on(param, data)


def _apply(assignment: Assignment, param: Param, target: Array, operand: Any) -> None:
    """Assign in place, block by block."""
    if not target.size:
        return
    _refuse(assignment, param, operand)
    is_tensor = isinstance(operand, np.ndarray)
    exact = param.dtype.kind in ("int", "uint")
    other: Array = operand if is_tensor else np.asarray(operand, dtype=object)
    if assignment.operator == "=":
        run = _assigned(param, target.dtype, checked=not is_tensor)
    elif exact:
        run = _counted(assignment, param, target.dtype)
    else:
        run = _computed(assignment, target, other)
    try:
        with np.errstate(all="ignore"):
            _blockwise(run, target, other)
    except OverflowError:  # a whole number beyond float64
        raise ParamctlError(f"{shortened(param.name)}: {_first(other)} overflows {param.dtype.name}") from None


def _blockwise(run: Run, target: Array, other: Array) -> None:
    operands = [target] if other.size == 1 else [target, other]
    iterator: Any = np.nditer(  # numpy types it for several operands only
        operands,
        flags=["external_loop", "buffered", "refs_ok"],
        op_flags=[["readwrite"], ["readonly"]][: len(operands)],  # type: ignore[arg-type]
        buffersize=_BLOCK,
    )
    with iterator as blocks:
        for each in blocks:
            block, piece = (each, other.reshape(1)) if other.size == 1 else each
            block[...] = run(block, piece)


def _refuse(assignment: Assignment, param: Param, operand: Any) -> None:
    name, kind, operator = param.dtype.name, param.dtype.kind, assignment.operator
    where = shortened(param.name)
    if name == "complex32" or kind == "quantized":
        raise ParamctlError(f"{where}: {operator} does not work on {name}")
    if operator != "=" and (kind == "bool" or name.startswith("float8")):
        raise ParamctlError(f"{where}: {operator} does not work on {name}", hint="= does")
    start, end = param.span
    if operator != "=" and param.numel * param.dtype.block_nbytes > end - start:
        raise ParamctlError(f"{where}: its elements share bytes, and {operator} would count some twice", hint="= works")
    if kind != "complex" and np.iscomplexobj(operand):
        raise ParamctlError(f"{where}: {name} cannot hold complex values")


def _assigned(param: Param, dtype: np.dtype[Any], *, checked: bool) -> Run:
    """What is assigned, in the target's type; `checked`: what was written in numbers must not overflow it."""
    where, name, kind = shortened(param.name), param.dtype.name, param.dtype.kind

    def run(_: Array, source: Array) -> Array:
        if source.dtype == dtype:
            return source
        if kind in ("int", "uint"):
            return _whole(param, dtype, source)
        said = source
        if source.dtype == object:
            source = source.astype(np.complex128 if kind == "complex" else np.float64)
        if kind == "bool":
            if not np.all((source == 0) | (source == 1)):
                raise ParamctlError(f"{where}: {_first(said)} is no value of bool")
            return source.astype(bool)
        cast = _rounded(source, dtype)
        if checked and np.any(np.isfinite(source) & ~_is_finite(cast)):
            raise ParamctlError(f"{where}: {_first(said)} overflows {name}")
        return cast

    return run


def _rounded(source: Array, dtype: np.dtype[Any]) -> Array:
    """As torch casts: to small types by way of float32."""
    small = dtype.itemsize <= _HALF_NBYTES or source.dtype.itemsize <= _HALF_NBYTES
    return (source.astype(np.float32) if small else source).astype(dtype)


def _counted(assignment: Assignment, param: Param, dtype: np.dtype[Any]) -> Run:
    """Exact arithmetic on whole numbers."""
    operation = _OPERATIONS[assignment.operator]

    def run(target: Array, source: Array) -> Array:
        is_whole = source.dtype.kind in "iub" or all(isinstance(item, int) for item in source.reshape(-1).tolist())
        if assignment.operator == "/=" or not is_whole:
            said = shortened(assignment.text.strip())
            raise ParamctlError(f"{shortened(param.name)}: {said} gives floats, and it is {param.dtype.name}")
        return _whole(param, dtype, operation(target.astype(object), source.astype(object)))

    return run


def _whole(param: Param, dtype: np.dtype[Any], source: Array) -> Array:
    """Whole numbers in a type that holds them."""
    where, name = shortened(param.name), param.dtype.name
    if source.dtype.kind not in "iubO":
        source = source.astype(np.float64)
    numbers = source.tolist()
    wrong = [number for number in numbers if not (isinstance(number, int) or float(number).is_integer())]
    if wrong:
        raise ParamctlError(f"{where}: {wrong[0]} is no value of {name}")
    limits = np.iinfo(dtype)
    exact = [int(number) for number in numbers]
    if not (limits.min <= min(exact) and max(exact) <= limits.max):
        raise ParamctlError(f"{where}: {name} holds {limits.min:,} to {limits.max:,}")
    return np.array(exact, dtype)


def _computed(assignment: Assignment, target: Array, operand: Array) -> Run:
    """Arithmetic in torch's common type, which a number and a tensor without dimensions leave to be the target's.

    Where that is a small type, torch takes a single number into `*` and `/` as it is, and rounds it before `+` and `-`.
    """
    operation = _OPERATIONS[assignment.operator]
    small = target.dtype.itemsize <= _HALF_NBYTES
    working = np.dtype(np.float32) if small else target.dtype.newbyteorder("=")
    promotes = operand.dtype.kind not in "iubO" and (operand.ndim or not target.ndim)
    if promotes:
        wide = np.float32 if operand.dtype.itemsize <= _HALF_NBYTES else operand.dtype
        working = np.result_type(working, wide)
    rounds = small and not promotes and (operand.size > 1 or assignment.operator in ("+=", "-="))
    plain = np.complex128 if working.kind == "c" else np.float64

    def run(block: Array, other: Array) -> Array:
        if other.dtype == object:
            other = other.astype(plain)
        if rounds:
            other = _rounded(other, target.dtype)
        return _rounded(operation(block.astype(working), other.astype(working)), target.dtype)

    return run


def _is_finite(array: Array) -> Any:
    return np.isfinite(array if array.dtype.kind in "fc" else array.astype(np.float32))


def _first(array: Array) -> str:
    return shortened(str(array.reshape(-1)[0]), 60)
