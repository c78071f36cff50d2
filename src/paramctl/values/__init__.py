"""Values tier: the numbers of a tensor as a numpy array, by reading the bytes of its span and no others."""

from __future__ import annotations

import contextlib
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from paramctl import contents
from paramctl.checkpoint import Param, reach
from paramctl.errors import ParamctlError, shortened
from paramctl.values.lanes import lane

Array = NDArray[Any]

_NUMPY = {
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
    "qint8": np.int8,
    "quint8": np.uint8,
    "qint32": np.int32,
    "bits8": np.uint8,
    "bits16": np.uint16,
    "bits1x8": np.uint8,
    "bits2x4": np.uint8,
    "bits4x2": np.uint8,
    **{f"uint{bits}": np.uint8 for bits in range(1, 8)},
    **{f"int{bits}": np.int8 for bits in range(1, 8)},
}  # quantized, and bits of which no more is known: the integers that are stored
_CHUNK = 1 << 20


def numpy_dtype(param: Param) -> np.dtype[Any]:
    """Numpy's dtype for the elements of `param`, in its storage's byte order.

    Raises:
        ParamctlError: numpy has none.
    """
    found = _numpy_dtype(param)
    if found is None:
        raise ParamctlError(f"{shortened(param.name)}: numpy has no {param.dtype.name}")
    return found.newbyteorder(">") if param.storage.byteorder == "big" and found.itemsize > 1 else found


def _numpy_dtype(param: Param) -> np.dtype[Any] | None:
    name = param.dtype.name
    if name == "complex32":
        name = "float16"  # pairs, which `on` puts in a last axis
    if param.dtype.block_numel > 1:  # numpy may know the name, with a byte for each element
        return None
    with contextlib.suppress(TypeError):
        found: np.dtype[Any] = np.dtype(_NUMPY.get(name, name))
        return found
    return None


def on(param: Param, span: Any) -> Array:
    """The elements of `param` as a view of `span`, the bytes from `param.span[0]` to `param.span[1]`."""
    dtype = numpy_dtype(param)
    itemsize = param.dtype.block_nbytes
    shape, stride = param.shape, tuple(by * itemsize for by in param.stride)
    first = param.storage_offset * itemsize - param.span[0] if param.numel else 0
    if param.dtype.name == "complex32":
        shape, stride = (*shape, 2), (*stride, 2)
    try:
        if not param.numel:
            return np.zeros(shape, dtype)
        return np.ndarray(shape, dtype, span, first, stride)
    except ValueError as error:  # more dimensions than numpy has, or an empty tensor of terabytes
        raise ParamctlError(f"{shortened(param.name)}: numpy has no such array: {error}") from None


def array(param: Param) -> Array:
    """The values of `param`, shaped and strided as it is; of what numpy has no type for, as float32.

    That is packed types and ggml's blocks. Where torch counts a pair as one element, the pair is a last axis.

    Raises:
        FileError: the bytes are not there, or cannot be had.
    """
    return on(param, span_bytes(param)) if _numpy_dtype(param) is not None else _decoded(param)


def _decoded(param: Param) -> Array:
    found, block_numel = lane(param), param.dtype.block_numel
    parts = found.per_element
    low, _ = reach(param.shape, param.stride)
    first = (param.storage_offset + low) // block_numel * block_numel
    shape, stride = param.shape, tuple(by * 4 * parts for by in param.stride)
    if parts > 1:
        shape, stride = (*shape, parts), (*stride, 4)
    try:
        if not param.numel:
            return np.zeros(shape, np.float32)
        flat = found.decode(np.frombuffer(span_bytes(param), found.stored)).copy()
        return np.ndarray(shape, np.float32, flat, (param.storage_offset - first) * 4 * parts, stride)
    except ValueError as error:  # more dimensions than numpy has, or an empty tensor of terabytes
        raise ParamctlError(f"{shortened(param.name)}: numpy has no such array: {error}") from None


def span_bytes(param: Param) -> Any:
    """The bytes of the tensor's span; a view where they are in memory."""
    return contents.read(param, *param.span)


def nested(values: Array) -> Any:
    """Lists of Python numbers, each exactly the element; complex ones as pairs."""
    if values.dtype.kind == "c":
        values = np.stack([values.real, values.imag], axis=-1)
    elif values.dtype.kind not in "fiub":  # ml_dtypes have a kind of their own
        values = values.astype(np.float32)
    return values.tolist()


def spread(values: Array) -> str:
    """Mean and population standard deviation in a few digits, or the value where there is one: for a plan's detail."""
    if values.size == 0:
        return "empty"
    if values.size == 1:
        return _short(values.reshape(-1)[0])
    if values.dtype.kind == "c":
        values = np.abs(values)
    if values.dtype.kind == "b":
        return f"{int(values.sum())} of {values.size} true"
    mean, deviation = _mean_and_deviation(values)
    return f"mean {_short(mean)} std {_short(deviation)}"


def deviation(values: Array) -> float:
    """The population standard deviation; of complex numbers that of their magnitudes, 0 of none."""
    return _mean_and_deviation(np.abs(values) if values.dtype.kind == "c" else values)[1] if values.size else 0.0


def _mean_and_deviation(values: Array) -> tuple[float, float]:
    with np.errstate(all="ignore"):
        mean = sum(float(chunk.sum()) for chunk in _chunks(values)) / values.size
        variance = sum(float(np.square(chunk - mean).sum()) for chunk in _chunks(values)) / values.size
    return mean, variance**0.5


def _chunks(values: Array) -> Any:
    flat = values.reshape(-1) if values.flags.c_contiguous else values.flat
    for start in range(0, values.size, _CHUNK):
        yield np.asarray(flat[start : start + _CHUNK]).astype(np.float64)


def _short(value: Any) -> str:
    number = value.item() if isinstance(value, np.generic) else value
    return str(number) if isinstance(number, (int, complex)) else f"{float(number):.4g}"
