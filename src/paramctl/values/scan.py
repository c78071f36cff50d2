"""Values tier: NaN and infinity, counted by the bits of the elements, in constant memory.

An element's bits, less its sign, are an integer: infinity is one of them, NaN all that are larger. So one pass of
integer maxima tells that a piece is finite, the same for every float type.

Source: IEEE 754-2019, 3.4; the OCP 8-bit floating point specification 1.0, table 1, for float8_e4m3fn and e5m2;
onnx's "Float stored in 8 bits" for the fnuz types; OCP microscaling formats 1.0 for e8m0.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramctl.checkpoint import Param
from paramctl.contents import Window
from paramctl.dtypes import DType
from paramctl.values.lanes import lane
from paramctl.values.stream import CHUNK_NUMEL, distinct, numbers, pieces


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


_LEAST_BLOCK = 32  # elements of one of ggml's, which has scales in it; fewer are packed integers


def may_be_unbounded(dtype: DType) -> bool:
    """Whether a dtype has a NaN or an infinity; one of blocks has them in their scales."""
    return dtype.name in BITS or _is_of_blocks(dtype)


def _is_of_blocks(dtype: DType) -> bool:
    return dtype.kind == "quantized" and dtype.block_numel >= _LEAST_BLOCK


class Unbounded(NamedTuple):
    """Elements that are NaN, and that are infinite and not NaN, with the index of the first of either."""

    nan: int = 0
    inf: int = 0
    first_nan: tuple[int, ...] | None = None  # none, too, where elements overlap
    first_inf: tuple[int, ...] | None = None


def scan(param: Param, window: Window, *, numel: int = CHUNK_NUMEL) -> Unbounded:
    """Count what is not finite, about `numel` elements at a time. What an expanded tensor shows often is read once.

    Raises:
        FileError: the bytes are not there.
        ParamctlError: they cannot be had.
    """
    if _is_of_blocks(param.dtype):
        return _of_blocks(param, window)
    bits = BITS.get(param.dtype.name)
    if bits is None or 0 in param.shape:
        return Unbounded()
    once, times = distinct(param)
    start, end = (edge // param.dtype.block_nbytes for edge in param.span)
    overlaps = once.numel > end - start
    if overlaps:  # windows upon one row: the row itself is looked at
        once = once._replace(shape=(end - start,), stride=(1,), storage_offset=start)
    shape = tuple(size if by else 1 for size, by in zip(param.shape, param.stride, strict=True))
    counts, firsts = [0, 0], list[int | None]([None, None])
    at = 0
    for piece in pieces(once, lane(param), window, numel=numel):
        values = piece.view(bits.integer)
        for kind, mask in enumerate(_masks(values, bits)):
            if mask is None or not (found := int(np.count_nonzero(mask))):
                continue
            counts[kind] += found * times
            if not overlaps:
                here, known = _first(np.flatnonzero(mask) + at, shape, param.stride), firsts[kind]
                firsts[kind] = here if known is None else min(known, here)
        at += len(values) // bits.parts
    nan, inf = (None if place is None else _index(place, shape) for place in firsts)
    return Unbounded(counts[0], counts[1], nan, inf)


def _of_blocks(param: Param, window: Window) -> Unbounded:
    """Of the elements that the blocks stand for."""
    counts, firsts, at = [0, 0], list[int | None]([None, None]), 0
    for values in numbers(param, lane(param), window):
        if not np.isfinite(values).all():
            for kind, mask in enumerate((np.isnan(values), np.isinf(values))):
                counts[kind] += int(np.count_nonzero(mask))
                if firsts[kind] is None and mask.any():
                    firsts[kind] = at + int(mask.argmax())
        at += len(values)
    nan, inf = (None if place is None else _index(place, param.shape) for place in firsts)
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
        nan = np.asarray(nan.reshape(-1, bits.parts).any(axis=1))
        inf = None if inf is None else np.asarray(inf.reshape(-1, bits.parts).any(axis=1) & ~nan)
    return nan, inf


def _first(places: NDArray[np.int64], shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """The least of some places, each a place among the `distinct` elements, as a place in the tensor's own order."""
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    axes.sort(key=lambda axis: (abs(stride[axis]), shape[axis]), reverse=True)
    found = np.zeros(len(places), np.int64)
    indices = np.unravel_index(places, (1, *(shape[axis] for axis in axes)))[1:]
    for axis, index in zip(axes, indices, strict=True):
        forwards = index if stride[axis] > 0 else shape[axis] - 1 - index
        found += forwards * math.prod(shape[axis + 1 :])
    return int(found.min())


def _index(place: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    index = []
    for size in reversed(shape):
        place, i = divmod(place, size)
        index.append(i)
    return tuple(reversed(index))
