"""Values tier: sums over a piece that fits the cache. NumKong's kernels where it is installed, else numpy's.

Both take float32 or float64 and sum in float64: NumKong widens every float32 and compensates sums of float64. Its
kernels for bfloat16 and float16 accumulate in float32, so pieces of those types are widened before they come here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

numkong: Any
try:
    import numkong
except ImportError:  # no wheel for this machine
    numkong = None

Array = NDArray[Any]


def _moments(values: Array) -> tuple[float, float]:
    wide = values.astype(np.float64, copy=False)
    return float(wide.sum()), float(np.dot(wide, wide))


def _dot(a: Array, b: Array) -> float:
    return float(np.dot(a.astype(np.float64, copy=False), b.astype(np.float64, copy=False)))


def moments(values: Array) -> tuple[float, float]:
    """Sum and sum of squares of a flat, contiguous float32 or float64 array.

    Not finite where an element is not, or where a square is beyond float64.
    """
    if numkong is None or not values.size:
        with np.errstate(all="ignore"):
            return _moments(values)
    total, squares = numkong.moments(values)
    return float(total), float(squares)


def dot(a: Array, b: Array) -> float:
    """Sum of products of two flat, contiguous arrays of one float type."""
    if numkong is None or not a.size:
        with np.errstate(all="ignore"):
            return _dot(a, b)
    return float(numkong.dot(a, b))
