"""Tensors in memory, as a reader gives them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from paramctl.checkpoint import Param, Storage, contiguous
from paramctl.dtypes import DTYPES

CODES = {  # numpy's codes by torch's names
    "float64": "f8", "float32": "f4", "float16": "f2", "int64": "i8", "int32": "i4", "int16": "i2", "int8": "i1",
    "uint64": "u8", "uint32": "u4", "uint16": "u2", "uint8": "u1", "bool": "?", "complex64": "c8", "complex128": "c16",
}  # fmt: skip
_NAMES = {code: name for name, code in CODES.items()} | {"b1": "bool"}


def param(
    raw: bytes, dtype: str, shape: tuple[int, ...], stride: tuple[int, ...] | None = None, offset: int = 0, **of: object
) -> Param:
    """A tensor of some bytes; row-major, unless strides are given."""
    storage = Storage("0", len(raw), data=memoryview(raw), **of)
    return Param("w", DTYPES[dtype], shape, contiguous(shape) if stride is None else stride, storage, offset)


def of_array(array: np.ndarray, dtype: str = "") -> Param:
    """A row-major tensor of numpy's values, of the dtype that has them as they lie there."""
    made = np.ascontiguousarray(array).reshape(array.shape)
    return param(made.tobytes(), dtype or _NAMES[made.dtype.str[1:]], made.shape)


def of_tensor(tensor: torch.Tensor, **more: Any) -> Param:
    """A tensor of torch, with the strides and the offset that it has in its whole storage."""
    raw = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy().tobytes()
    name = str(tensor.dtype).removeprefix("torch.")
    return param(raw, name, tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), **more)
