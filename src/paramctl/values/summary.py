"""Values tier: what is to be said of the numbers of a tensor, in one pass and constant memory, and exactly mergeable.

A statistic is of the finite elements; NaN and infinities are counted beside it. A complex element counts by its
magnitude.

Sums are taken over a piece that fits the cache, in float64, and pieces are merged by Chan's formulas. Where the raw
moments of a piece cancel (a mean far larger than the spread), the piece, still in the cache, is summed again about its
mean. Sums of integers are exact.

Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances";
Pébay 2008, SAND2008-6212, for the third and fourth moments.
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

Array = NDArray[Any]

_CANCELS = 1e-2  # of the sum of squares; of less than that about the mean the last digits are lost
_TINY, _HUGE = 2.0**-200, 2.0**200  # of magnitudes whose fourth powers float64 holds, from 2**-1074 to 2**1024


class Summary(NamedTuple):
    """Counts and central moments. Sums of powers are in units of 2**(exponent · power), for what float64 cannot hold.

    `total` is the sum of the elements, an exact integer for integer types; `m2`, `m3`, `m4` are sums of powers of the
    distance from the mean, and `squares` of the elements.
    """

    numel: int = 0  # finite elements
    zeros: int = 0
    nan: int = 0
    inf: int = 0
    min: float | int | None = None
    max: float | int | None = None
    total: float | int = 0
    squares: float = 0.0
    m2: float = 0.0
    m3: float = 0.0
    m4: float = 0.0
    absolutes: float = 0.0  # sum of magnitudes
    small: int = 0  # elements of a magnitude at most the threshold
    exponent: int = 0

    @property
    def mean(self) -> float | None:
        """The mean; None without finite elements."""
        return _ldexp(self.total / self.numel, self.exponent) if self.numel else None

    @property
    def std(self) -> float | None:
        """The population standard deviation."""
        return self.deviation(0)

    def deviation(self, ddof: int) -> float | None:
        """The standard deviation with a divisor of `numel - ddof`; None where that is not positive."""
        if self.numel - ddof <= 0:
            return None
        return _ldexp(math.sqrt(max(self.m2, 0.0) / (self.numel - ddof)), self.exponent)

    @property
    def l2(self) -> float:
        """The Euclidean norm."""
        return _ldexp(math.sqrt(self.squares), self.exponent)

    @property
    def l1(self) -> float:
        """The sum of magnitudes."""
        return _ldexp(self.absolutes, self.exponent)

    @property
    def rms(self) -> float | None:
        """The root of the mean square."""
        return _ldexp(math.sqrt(self.squares / self.numel), self.exponent) if self.numel else None

    @property
    def absmax(self) -> float | int | None:
        """The largest magnitude."""
        if self.min is None or self.max is None:
            return None
        return max(abs(self.min), abs(self.max))

    @property
    def skew(self) -> float | None:
        """The third standardized moment, of the population; None where all are equal."""
        if self.m2 <= 0:
            return None
        return math.sqrt(self.numel) * (self.m3 / self.m2) / math.sqrt(self.m2)

    @property
    def kurtosis(self) -> float | None:
        """The fourth standardized moment less 3 (a normal distribution's), of the population."""
        return self.numel * (self.m4 / self.m2) / self.m2 - 3 if self.m2 > 0 else None

    @property
    def sparsity(self) -> float | None:
        """The share of finite elements whose magnitude is at most the threshold."""
        return self.small / self.numel if self.numel else None

    def times(self, many: int) -> Summary:
        """Of the same elements, each told so many times."""
        if many == 1:
            return self
        whole = ("numel", "zeros", "nan", "inf", "total", "squares", "m2", "m3", "m4", "absolutes", "small")
        return self._replace(**{key: getattr(self, key) * many for key in whole})

    def merge(self, other: Summary) -> Summary:
        """Of the elements of both."""
        if not (self.numel and other.numel):
            some, none = (self, other) if self.numel else (other, self)
            return some._replace(nan=some.nan + none.nan, inf=some.inf + none.inf)
        exponent = max((some.exponent for some in (self, other) if some.absmax), default=0)
        a, b = self._in_units(exponent), other._in_units(exponent)
        n = a.numel + b.numel
        low, high = min(a.min, b.min), max(a.max, b.max)  # type: ignore[type-var]
        delta = _difference(a, b) if low != high else 0.0
        share = delta / n
        m2 = a.m2 + b.m2 + delta * share * a.numel * b.numel
        m3 = (
            a.m3 + b.m3
            + delta * share * share * a.numel * b.numel * (a.numel - b.numel)
            + 3 * share * (a.numel * b.m2 - b.numel * a.m2)
        )  # fmt: skip
        m4 = (
            a.m4 + b.m4
            + delta * share**3 * a.numel * b.numel * (a.numel**2 - a.numel * b.numel + b.numel**2)
            + 6 * share * share * (a.numel**2 * b.m2 + b.numel**2 * a.m2)
            + 4 * share * (a.numel * b.m3 - b.numel * a.m3)
        )  # fmt: skip
        return Summary(
            n,
            a.zeros + b.zeros,
            a.nan + b.nan,
            a.inf + b.inf,
            low,
            high,
            a.total + b.total,
            a.squares + b.squares,
            m2,
            m3,
            m4,
            a.absolutes + b.absolutes,
            a.small + b.small,
            exponent,
        )

    def _in_units(self, exponent: int) -> Summary:
        by = self.exponent - exponent
        if by == 0:
            return self
        return self._replace(
            total=math.ldexp(float(self.total), by),
            absolutes=math.ldexp(self.absolutes, by),
            squares=math.ldexp(self.squares, 2 * by),
            m2=math.ldexp(self.m2, 2 * by),
            m3=math.ldexp(self.m3, 3 * by),
            m4=math.ldexp(self.m4, 4 * by),
            exponent=exponent,
        )


def merged(summaries: Iterable[Summary]) -> Summary:
    """Of the elements of all."""
    parts = iter(summaries)
    whole = next(parts, Summary())
    for part in parts:
        whole = whole.merge(part)
    return whole


def _difference(a: Summary, b: Summary) -> float:
    """The mean of `b` less that of `a`; exact until it is rounded once, for integers."""
    if isinstance(a.total, int) and isinstance(b.total, int):
        return (b.total * a.numel - a.total * b.numel) / (a.numel * b.numel)
    return b.total / b.numel - a.total / a.numel


def _ldexp(number: float, exponent: int) -> float:
    if not exponent:
        return number
    try:
        return math.ldexp(number, exponent)
    except OverflowError:
        return math.copysign(math.inf, number)


# ----------------------------------------------------------------------------- a tensor


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
    first, m2 = kernels.moments(distance)
    off = first / len(values)
    m2 -= first * off
    if not extra.shape:
        return m2, 0.0, 0.0
    square = distance * distance
    m3 = kernels.dot(square, distance) - 3 * off * m2
    m4 = kernels.moments(square)[1] - off * (4 * m3 + 6 * off * m2)
    return m2, m3, m4


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
        distance = _less(values, total // n)
        m2, m3, m4 = _about(distance, kernels.moments(distance)[0] / n, extra)
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
