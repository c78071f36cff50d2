"""Values tier: NaN and infinity, counted by the bits of the elements, in constant memory.

An element's bits, less its sign, are an integer: infinity is one of them, NaN all that are larger. So one pass of
integer maxima tells that a piece is finite, the same for every float type.

Source: IEEE 754-2019, 3.4; the OCP 8-bit floating point specification 1.0, table 1, for float8_e4m3fn and e5m2;
onnx's "Float stored in 8 bits" for the fnuz types; OCP microscaling formats 1.0 for e8m0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramctl import contents
from paramctl.checkpoint import Param

CHUNK_NBYTES = 1 << 20


class _Bits(NamedTuple):
    """How the bits of a type tell what is not finite: `(bits ^ flip) & mask` is `inf`, or `nan` and more."""

    integer: str
    mask: int
    nan: int
    inf: int | None = None
    flip: int = 0
    parts: int = 1  # integers in an element


_F16, _F32, _F64 = (
    _Bits("u2", 0x7FFF, 0x7C01, 0x7C00),
    _Bits("u4", 0x7FFFFFFF, 0x7F800001, 0x7F800000),
    _Bits("u8", 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000001, 0x7FF0000000000000),
)
BITS: dict[str, _Bits] = {  # of the other float types every value is finite
    "float16": _F16,
    "float32": _F32,
    "float64": _F64,
    "bfloat16": _Bits("u2", 0x7FFF, 0x7F81, 0x7F80),
    "float8_e4m3fn": _Bits("u1", 0x7F, 0x7F),
    "float8_e4m3fnuz": _Bits("u1", 0xFF, 0xFF, flip=0x7F),  # 0x80 is NaN
    "float8_e5m2": _Bits("u1", 0x7F, 0x7D, 0x7C),
    "float8_e5m2fnuz": _Bits("u1", 0xFF, 0xFF, flip=0x7F),
    "float8_e8m0fnu": _Bits("u1", 0xFF, 0xFF),
    "complex32": _F16._replace(parts=2),
    "complex64": _F32._replace(parts=2),
    "complex128": _F64._replace(parts=2),
}


class Unbounded(NamedTuple):
    """Elements that are NaN, and that are infinite and not NaN, with the index of the first of either."""

    nan: int = 0
    inf: int = 0
    first_nan: tuple[int, ...] | None = None  # none, too, where elements overlap
    first_inf: tuple[int, ...] | None = None


def scan(param: Param) -> Unbounded:
    """Count what is not finite. What an expanded tensor shows many times is read once.

    Raises:
        FileError: the bytes are not there.
        ParamctlError: they cannot be had.
    """
    bits = BITS.get(param.dtype.name)
    if bits is None or 0 in param.shape:
        return Unbounded()
    dims = [axis for axis, (size, by) in enumerate(zip(param.shape, param.stride, strict=True)) if size > 1 and by]
    dims.sort(key=lambda axis: -abs(param.stride[axis]))
    times = math.prod(param.shape) // math.prod(param.shape[axis] for axis in dims)
    start, end = param.span
    shape, stride = [param.shape[axis] for axis in dims], [param.stride[axis] for axis in dims]
    overlaps = math.prod(shape) > (end - start) // param.dtype.block_nbytes
    if overlaps:  # windows upon one row: the row itself is looked at
        shape, stride, dims = [(end - start) // param.dtype.block_nbytes], [1], []
    first = 0 if overlaps else param.storage_offset * param.dtype.block_nbytes - start
    counts = [0, 0]
    firsts: list[tuple[int, tuple[int, ...]] | None] = [None, None]
    for base, values in _pieces(param, bits, shape, stride, start + first):
        for kind, mask in enumerate(_masks(values, bits)):
            if mask is None or not (found := int(mask.sum())):
                continue
            counts[kind] += found * times
            if not overlaps:
                here = _first(mask, base, dims, param.shape)
                known = firsts[kind]
                firsts[kind] = here if known is None else min(known, here)
    nan, inf = (None if overlaps or at is None else at[1] for at in firsts)
    return Unbounded(counts[0], counts[1], nan, inf)


def _masks(values: NDArray[Any], bits: _Bits) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None]:
    magnitude = values ^ bits.flip if bits.flip else values
    if bits.mask != bits.flip and bits.mask != (1 << 8 * values.itemsize) - 1:
        magnitude = magnitude & bits.mask
    least = bits.nan if bits.inf is None else bits.inf
    if not magnitude.size or int(magnitude.max()) < least:
        return None, None
    nan = np.asarray(magnitude >= bits.nan)
    inf = None if bits.inf is None else np.asarray(magnitude == bits.inf)
    if bits.parts > 1:
        nan = np.asarray(nan.any(axis=-1))
        inf = None if inf is None else np.asarray(inf.any(axis=-1) & ~nan)
    return nan, inf


def _first(
    mask: NDArray[np.bool_], base: tuple[int, ...], dims: list[int], shape: tuple[int, ...]
) -> tuple[int, tuple[int, ...]]:
    """The first index in the tensor's own order, and its place in a row of all; `dims` says which axis each is of."""
    if not dims:
        return 0, (0,) * len(shape)
    steps = [math.prod(shape[axis + 1 :]) for axis in dims]
    at = np.flatnonzero(mask.reshape(-1))
    if dims == sorted(dims):
        at = at[:1]
    indices = np.unravel_index(at, mask.shape)
    places = sum(
        ((index.astype(np.int64) + start) * step for index, start, step in zip(indices, base, steps, strict=True)),
        start=np.zeros(len(at), np.int64),
    )
    place = left = int(places.min())
    index = []
    for axis in range(len(shape)):
        step = math.prod(shape[axis + 1 :])
        index.append(left // step)
        left %= step
    return place, tuple(index)


def _pieces(
    param: Param, bits: _Bits, shape: list[int], stride: list[int], offset: int
) -> Iterator[tuple[tuple[int, ...], NDArray[Any]]]:
    """The elements, a few MiB at a time: the index where each piece begins, and its bits."""
    read = _reader(param)
    integer = np.dtype(("<" if param.storage.byteorder == "little" else ">") + bits.integer)
    itemsize = param.dtype.block_nbytes

    def on(base: tuple[int, ...], axis: int, count: int, at: int) -> tuple[tuple[int, ...], NDArray[Any]]:
        sizes, steps = [count, *shape[axis + 1 :]] if axis < len(shape) else [], stride[axis:]
        low = sum((n - 1) * by for n, by in zip(sizes, steps, strict=True) if by < 0) * itemsize
        high = sum((n - 1) * by for n, by in zip(sizes, steps, strict=True) if by > 0) * itemsize
        raw = read(at + low, at + high + itemsize)
        full, by = [1] * axis + sizes, [0] * axis + [step * itemsize for step in steps]
        if bits.parts > 1:
            full, by = [*full, bits.parts], [*by, integer.itemsize]
        return (*base, *[0] * (len(shape) - len(base))), np.ndarray(full, integer, raw, -low, by)

    def walk(base: tuple[int, ...], axis: int, at: int) -> Iterator[tuple[tuple[int, ...], NDArray[Any]]]:
        if axis == len(shape):
            yield on(base, axis, 1, at)
            return
        step = abs(stride[axis]) * itemsize
        inner = sum((n - 1) * abs(by) for n, by in zip(shape[axis + 1 :], stride[axis + 1 :], strict=True)) * itemsize
        many = max((CHUNK_NBYTES - inner) // step, 0)
        for i in range(0, shape[axis], max(many, 1)):
            here = at + i * stride[axis] * itemsize
            if many or axis == len(shape) - 1:
                yield on((*base, i), axis, min(max(many, 1), shape[axis] - i), here)
            else:
                yield from walk((*base, i), axis + 1, here)

    yield from walk((), 0, offset)


def _reader(param: Param) -> Callable[[int, int], Any]:
    """How to have bytes of the storage: by ranges, or, where it is packed or in pieces, all of it once."""
    storage = param.storage
    plain = len(storage.extents) == 1 and not storage.extents[0].packing and not storage.extents[0].box
    if storage.data is not None or plain or not storage.extents:
        return lambda start, end: contents.read(param, start, end)
    whole = memoryview(contents.read(param, 0, storage.nbytes))
    return lambda start, end: whole[start:end]
