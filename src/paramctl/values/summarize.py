"""Values tier: the summary of a tensor, in one pass and constant memory.

Sums are taken over a piece that fits the cache, in float64, and pieces are merged. Where the raw moments of a piece
cancel (a mean far larger than the spread), the piece, still in the cache, is summed again about its mean. Sums of
integers are exact.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramctl.checkpoint import Param
from paramctl.contents import Window
from paramctl.values import kernels
from paramctl.values.lanes import lane
from paramctl.values.stream import distinct, numbers
from paramctl.values.summary import Summary, merged

Array = NDArray[Any]

_CANCELS = 1e-2  # of the sum of squares; of less than that about the mean the last digits are lost
_TINY, _HUGE = 2.0**-200, 2.0**200  # of magnitudes whose fourth powers float64 holds, from 2**-1074 to 2**1024


class Extra(NamedTuple):
    """What costs another look at each piece while it is in the cache."""

    shape: bool = False  # third and fourth moments
    absolutes: bool = False
    threshold: float | None = None  # for `small`


def summarize(param: Param, window: Window, extra: Extra = Extra()) -> Summary:  # noqa: B008 - a constant
    """The summary of a tensor.

    Raises:
        FileError: the bytes are not there.
        ParamctlError: they cannot be had, or their numbers are not known.
    """
    once, times = distinct(param)
    found = lane(param)
    of = _of_integers if found.is_exact_integer else _of_complex if found.is_complex else _of_floats
    parts: Iterable[Summary] = (of(values, extra) for values in numbers(once, found, window))
    if param.dtype.kind in ("int", "uint", "bool"):
        parts = map(_in_integers, parts)
    return merged(parts).times(times)


def _in_integers(part: Summary) -> Summary:
    """Of a piece whose sum is a float that is still exact; sums of many such are not."""
    if not part.numel:
        return part
    return part._replace(total=int(part.total), min=int(part.min or 0), max=int(part.max or 0))


def magnitudes(parts: Array) -> Array:
    """Of pairs of a real and an imaginary part; NaN where either is, also beside an infinity."""
    with np.errstate(all="ignore"):  # signalling NaN, and what is beyond float64
        pairs = parts.reshape(-1, 2).astype(np.float64)
        found: Array = np.hypot(pairs[:, 0], pairs[:, 1])
    found[np.isnan(pairs).any(axis=1)] = np.nan
    return found


def _of_complex(parts: Array, extra: Extra) -> Summary:
    return _of_floats(magnitudes(parts), extra)


def _of_floats(values: Array, extra: Extra) -> Summary:
    """Of one piece of float32 or float64."""
    total, squares = kernels.moments(values)
    nan = inf = 0
    if not math.isfinite(total) or not math.isfinite(squares):
        nan, inf = int(np.count_nonzero(np.isnan(values))), int(np.count_nonzero(np.isinf(values)))
        values = values[np.isfinite(values)] if nan or inf else values
        total, squares = kernels.moments(values)
    if not values.size:
        return Summary(nan=nan, inf=inf)
    low, high = values.min(), values.max()
    if values.dtype == np.float64 and not _fits(low, high):
        made = _of_scaled(values, extra, low, high)
    else:
        made = _of_finite(values, extra, total, squares, low, high)
    return made._replace(nan=nan, inf=inf) if nan or inf else made


def _fits(low: Any, high: Any) -> bool:
    largest = max(abs(float(low)), abs(float(high)))
    return largest == 0 or _TINY < largest < _HUGE


def _of_finite(values: Array, extra: Extra, total: float, squares: float, low: Any, high: Any) -> Summary:
    n = len(values)
    zeros = 0 if low > 0 or high < 0 else int(np.count_nonzero(np.equal(values, 0)))  # faster than of floats
    m2 = m3 = m4 = 0.0
    if low != high:
        m2 = squares - total * (total / n)
        if extra.shape or m2 < squares * _CANCELS:
            m2, m3, m4 = _about(values, total / n, extra)
    absolutes = kernels.moments(np.abs(values))[0] if extra.absolutes else 0.0
    small = _small(values, extra.threshold)
    return Summary(n, zeros, 0, 0, float(low), float(high), total, squares, max(m2, 0.0), m3, m4, absolutes, small)


def _about(values: Array, mean: float, extra: Extra) -> tuple[float, float, float]:
    """Second, third and fourth moments about the mean; `mean` may be off by its rounding, which is taken out."""
    distance = values.astype(np.float64)
    distance -= mean
    distance -= kernels.moments(distance)[0] / len(values)
    m2 = kernels.moments(distance)[1]
    if not extra.shape:
        return m2, 0.0, 0.0
    square = distance * distance
    return m2, kernels.dot(square, distance), kernels.moments(square)[1]


def _small(values: Array, threshold: float | None) -> int:
    """How many magnitudes are at most so large; the threshold is not rounded to the type of the values."""
    if threshold is None:
        return 0
    if values.dtype.kind in "iu":
        limits, most = np.iinfo(values.dtype), math.floor(min(threshold, 2.0**64))
        within = (values >= max(-most, int(limits.min))) & (values <= min(most, int(limits.max)))
        return int(np.count_nonzero(within)) if most >= 0 else 0
    limit = values.dtype.type(min(threshold, float(np.finfo(values.dtype).max)))
    if float(limit) > threshold:
        limit = np.nextafter(limit, values.dtype.type(-math.inf))
    return int(np.count_nonzero(np.abs(values) <= limit))


def _of_scaled(values: Array, extra: Extra, low: Any, high: Any) -> Summary:
    """Of magnitudes whose powers float64 cannot hold: by a power of two, so that no digit of the largest changes."""
    exponent = math.frexp(max(abs(float(low)), abs(float(high))))[1]
    made = _of_floats(np.ldexp(values, -exponent), extra._replace(threshold=None))
    zeros = len(values) - int(np.count_nonzero(values))  # some may have become 0
    small = _small(values, extra.threshold)
    return made._replace(min=float(low), max=float(high), zeros=zeros, small=small, exponent=exponent)


def _of_integers(values: Array, extra: Extra) -> Summary:
    """Of one piece of 64-bit integers, whose sums are beyond float64: exact, by halves of 32 bits."""
    n = len(values)
    high, low = values >> np.array(32, values.dtype), values & np.array(0xFFFFFFFF, values.dtype)
    total = (int(high.sum()) << 32) + int(low.sum())
    least, most = int(values.min()), int(values.max())
    m2 = m3 = m4 = 0.0
    if least != most:
        m2, m3, m4 = _about(_less(values, total // n), 0.0, extra)
    sizes = np.abs(values.astype(np.float64))
    absolutes, squares = kernels.moments(sizes)
    return Summary(
        n, n - int(np.count_nonzero(values)), 0, 0, least, most,
        total, squares, max(m2, 0.0), m3, m4, absolutes, _small(values, extra.threshold),
    )  # fmt: skip


def _less(values: Array, middle: int) -> Array:
    """The distance of 64-bit integers from one that is among them or between, rounded once."""
    centre = np.array(middle, values.dtype)
    above = values >= centre
    wrapped = np.where(above, values - centre, centre - values)
    found: Array = np.where(above, 1.0, -1.0) * wrapped.view(np.uint64).astype(np.float64)
    return found


def chosen(columns: Collection[str], *, threshold: float | None = None) -> Extra:
    """What must be looked at for some of the properties of a summary."""
    return Extra(
        shape=not {"skew", "kurtosis"}.isdisjoint(columns),
        absolutes="l1" in columns,
        threshold=threshold if "sparsity" in columns else None,
    )
