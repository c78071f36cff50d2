"""The same elements, however they lie in memory: for tests of what must not depend on that."""

from __future__ import annotations

import math

import numpy as np

from paramctl.checkpoint import Param, Storage, contiguous
from paramctl.dtypes import DTYPES

WAYS = ("dense", "big-endian", "columns first", "every other", "backwards", "inside", "unaligned")


def parts_of(dtype: str) -> tuple[int, int]:
    """Numbers in an element, and bytes in a number."""
    parts = 2 if DTYPES[dtype].kind == "complex" else 1
    return parts, DTYPES[dtype].block_nbytes // parts


def raw_of(array: np.ndarray, dtype: str) -> bytes:
    """An array (*shape, parts) of unsigned integers as a dense tensor's bytes."""
    return np.ascontiguousarray(array).astype(f"<u{parts_of(dtype)[1]}").tobytes()


def param(array: np.ndarray, dtype: str, way: str = "dense", *, name: str = "w", key: str = "") -> Param:
    """A tensor with the elements of an array (*shape, parts), lying in one way or another in a storage of its own."""
    shape = array.shape[:-1]
    axes = len(shape)
    stride, offset, held = contiguous(shape), 0, array
    if way == "columns first":
        held = np.ascontiguousarray(array.transpose(*reversed(range(axes)), axes))
        stride = contiguous(shape[::-1])[::-1]
    elif way == "every other":
        held = np.repeat(array.reshape(-1, array.shape[-1]), 2, axis=0)
        held[1::2] = ~held[1::2]
        stride = tuple(2 * by for by in stride)
    elif way == "backwards":
        held = array.reshape(-1, array.shape[-1])[::-1]
        stride, offset = tuple(-by for by in stride), math.prod(shape) - 1
    elif way == "inside":
        edge = np.full((3, array.shape[-1]), 7, array.dtype)
        held, offset = np.concatenate([edge, array.reshape(-1, array.shape[-1]), edge]), 3
    width = parts_of(dtype)[1]
    order = ">" if way == "big-endian" else "<"
    raw = np.ascontiguousarray(held).astype(f"{order}u{width}").tobytes()
    data = memoryview(b"\0" + raw)[1:] if way == "unaligned" else memoryview(raw)
    storage = Storage(key or name, len(raw), data=data, byteorder="big" if way == "big-endian" else "little")
    return Param(name, DTYPES[dtype], shape, stride, storage, offset)
