"""Values tier: the elements of a tensor as bytes of another type, a piece at a time, and what the rounding costs.

Rounding is to nearest, ties to even, as torch's `.to()`: float64 goes to the small types by way of float32, and what
is beyond the largest number of a type becomes infinity where the type has one, else NaN; float8_e4m3fn keeps its
largest number instead. NaN stays NaN, its payload is not kept.

Source: torch/headeronly/util/Float8_e4m3fn.h and its neighbours; ml_dtypes' own conversions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from paramctl.checkpoint import Param
from paramctl.contents import Window
from paramctl.dtypes import DType
from paramctl.values import kernels, lanes, stream
from paramctl.values.lanes import Array

_TARGETS: dict[str, Any] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
}
_SATURATES = {"float8_e4m3fn": 448.0}  # torch 2.13; before, what overflowed was NaN
_ROUNDED = {  # the least float32 that is rounded to more than the largest number of a type
    "float16": 65520.0,
    "bfloat16": 3.3961776e38,
    "float8_e4m3fn": float(np.nextafter(np.float32(464), np.float32(500))),
    "float8_e5m2": 61440.0,
    "float8_e4m3fnuz": 248.0,
    "float8_e5m2fnuz": 61440.0,
}
_HAVE_INFINITY = ("float64", "float32", "float16", "bfloat16", "float8_e5m2")


class Loss(NamedTuple):
    """What a cast costs: how many numbers overflowed, and the error of the others against their own size."""

    numel: int
    overflowed: int
    rel_l2: float  # ‖x − cast(x)‖ / ‖x‖, over what is finite on both sides
    max_abs: float

    @property
    def text(self) -> str:
        """In a few words, for a plan."""
        said = "exact" if not self.rel_l2 and not self.overflowed else f"relative error {self.rel_l2:.2g}"
        return f"{said}, {self.overflowed:,} overflow" if self.overflowed else said


class Caster:
    """Flat numbers as `dtype`, into memory that is used again. `overflowed`: how many so far were beyond the type."""

    def __init__(self, dtype: DType) -> None:
        self.overflowed = 0
        self._is_wide = dtype.name == "float64"
        self._target = np.dtype(_TARGETS[dtype.name])
        self._most = _SATURATES.get(dtype.name)
        self._limit = _ROUNDED.get(dtype.name, math.inf)
        self._has_infinity = dtype.name in _HAVE_INFINITY
        self._held = np.empty(0, self._target)

    def __call__(self, numbers: Array) -> Array:
        """The numbers rounded: float32, float64 or integers."""
        out = self._out(numbers.size)
        with np.errstate(all="ignore"):
            wide = numbers
            if numbers.dtype != np.float32 and not self._is_wide:
                numbers = numbers.astype(np.float32)
            if not self._is_wide:
                self.overflowed += int(np.count_nonzero(self.is_beyond(wide, numbers)))
            if self._most is not None:
                numbers = np.clip(numbers, -self._most, self._most)
            np.copyto(out, numbers, casting="unsafe")
        return out

    def is_beyond(self, wide: Array, numbers: Array) -> Any:
        """Which of the numbers, of which `numbers` are float32, the type does not reach; False where none."""
        least, largest = numbers.min(initial=0), numbers.max(initial=0)  # of which neither takes memory
        if max(-least, largest) < self._limit and largest < math.inf and -least < math.inf:  # False for NaN
            return False
        found = np.abs(numbers) >= self._limit
        return found & ~np.isinf(wide) if self._has_infinity else found

    def _out(self, size: int) -> Array:
        if len(self._held) < size:
            self._held = np.empty(size, self._target)
        return self._held[:size]


def pieces(param: Param, dtype: DType, window: Window, *, caster: Caster | None = None) -> Iterator[memoryview]:
    """The elements in row-major order as bytes of `dtype`, little-endian; each piece is good until the next.

    Raises:
        ParamctlError: the bytes cannot be had, or their numbers are not known.
    """
    if dtype == param.dtype:
        lane = lanes.lane(param)
        for piece in stream.pieces(param, lane, window):
            yield _bytes(piece)
        return
    caster = caster or Caster(dtype)
    for numbers in stream.numbers(param, lanes.lane(param), window):
        yield _bytes(caster(numbers))


def _bytes(flat: Array) -> memoryview:
    made: Any = np.ascontiguousarray(flat).view(np.uint8)
    return memoryview(made)


def loss(param: Param, dtype: DType, window: Window) -> Loss:
    """What the cast of a tensor costs."""
    caster = Caster(dtype)
    back = lanes.lane(param._replace(dtype=dtype, shape=(param.numel,), stride=(1,)))
    largest, errors, squares = 0.0, 0.0, 0.0
    for numbers in stream.numbers(param, lanes.lane(param), window):
        made = back.decode(caster(numbers).view(back.stored))
        with np.errstate(all="ignore"):
            wide = numbers.astype(np.float64)
            error = wide - made
            lost = caster.is_beyond(numbers, numbers.astype(np.float32))
            good = np.isfinite(error) & np.logical_not(lost)
        if not good.all():
            error, wide = error[good], wide[good]
        if error.size:
            largest = max(largest, float(np.abs(error).max()))
            errors += kernels.moments(error)[1]
            squares += kernels.moments(wide)[1]
    return Loss(param.numel, caster.overflowed, math.sqrt(errors / squares) if squares else 0.0, largest)
