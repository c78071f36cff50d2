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
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramctl.checkpoint import Param
from paramctl.contents import Window
from paramctl.values import kernels
from paramctl.values.lanes import lane
from paramctl.values.stream import distinct, numbers

Array = NDArray[Any]

_CANCELS = 1e-6  # of the sum of squares; less than that about the mean has lost more digits than are left
_TINY, _HUGE = 2.0**-400, 2.0**200  # magnitudes whose squares, and fourth powers, are float64's: 2**-1074, 2**1024


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
        exponent = max(self.exponent, other.exponent)
        a, b = self._in_units(exponent), other._in_units(exponent)
        n = a.numel + b.numel
        delta = _difference(a, b)
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
            min(a.min, b.min),  # type: ignore[type-var]
            max(a.max, b.max),  # type: ignore[type-var]
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
    whole = Summary()
    for summary in summaries:
        whole = whole.merge(summary)
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
    if found.is_exact_integer:
        parts: Iterator[Summary] = (_of_integers(values, extra) for values in numbers(once, found, window))
    else:
        of = magnitudes if found.is_complex else _as_they_are
        parts = (_of_floats(of(values), extra) for values in numbers(once, found, window))
    whole = Summary()
    for part in parts:
        whole = whole.merge(part)
    if param.dtype.kind in ("int", "uint", "bool") and isinstance(whole.total, float):
        whole = whole._replace(
            total=int(whole.total),
            min=None if whole.min is None else int(whole.min),
            max=None if whole.max is None else int(whole.max),
        )
    return whole.times(times)


def _as_they_are(values: Array) -> Array:
    return values


def magnitudes(parts: Array) -> Array:
    """Of pairs of a real and an imaginary part; NaN where either is, also beside an infinity."""
    pairs = parts.reshape(-1, 2).astype(np.float64)
    with np.errstate(all="ignore"):
        found: Array = np.hypot(pairs[:, 0], pairs[:, 1])
    found[np.isnan(pairs).any(axis=1)] = np.nan
    return found


def _of_floats(values: Array, extra: Extra) -> Summary:
    """Of one piece of float32 or float64."""
    if not values.size:
        return Summary()
    total, squares = kernels.moments(values)
    if not math.isfinite(total) or not math.isfinite(squares):
        return _of_unbounded(values, extra)
    low, high = values.min(), values.max()
    if values.dtype == np.float64 and not _fits(low, high):
        return _of_scaled(values, extra, low, high)
    n = len(values)
    zeros = 0 if low > 0 or high < 0 else int(np.count_nonzero(np.equal(values, 0)))  # faster than of floats
    m2 = 0.0 if low == high else squares - total * (total / n)
    m3 = m4 = 0.0
    if low != high and (extra.shape or m2 < squares * _CANCELS):
        m2, m3, m4 = _about(values, total / n, n)
    absolutes, small = _extras(values, extra)
    return Summary(n, zeros, 0, 0, float(low), float(high), total, squares, max(m2, 0.0), m3, m4, absolutes, small)


def _fits(low: Any, high: Any) -> bool:
    largest = max(abs(float(low)), abs(float(high)))
    return largest == 0 or _TINY < largest < _HUGE


def _about(values: Array, mean: float, n: int) -> tuple[float, float, float]:
    """Second, third and fourth moments about the mean; `mean` may be off by its rounding, which is taken out."""
    distance = values.astype(np.float64)
    distance -= mean
    first, m2 = kernels.moments(distance)
    off = first / n
    m2 -= first * off
    square = distance * distance
    m3 = kernels.dot(square, distance) - 3 * off * m2
    m4 = kernels.moments(square)[1]
    return m2, m3, m4


def _extras(values: Array, extra: Extra) -> tuple[float, int]:
    if not extra.absolutes and extra.threshold is None:
        return 0.0, 0
    sizes = np.abs(values)
    absolutes = kernels.moments(sizes)[0] if extra.absolutes else 0.0
    small = 0 if extra.threshold is None else int(np.count_nonzero(sizes <= extra.threshold))
    return absolutes, small


def _of_unbounded(values: Array, extra: Extra) -> Summary:
    """Of a piece that has NaN or infinities, or of which the squares are beyond float64."""
    is_nan, is_inf = np.isnan(values), np.isinf(values)
    nan, inf = int(np.count_nonzero(is_nan)), int(np.count_nonzero(is_inf))
    finite = values[~(is_nan | is_inf)] if nan or inf else values
    if not finite.size:
        return Summary(nan=nan, inf=inf)
    if values.dtype == np.float64:
        low, high = finite.min(), finite.max()
        made = _of_floats(finite, extra) if _fits(low, high) else _of_scaled(finite, extra, low, high)
    else:
        made = _of_floats(finite, extra)
    return made._replace(nan=nan, inf=inf)


def _of_scaled(values: Array, extra: Extra, low: Any, high: Any) -> Summary:
    """Of magnitudes whose powers float64 cannot hold: by a power of two, so that no digit changes."""
    exponent = math.frexp(max(abs(float(low)), abs(float(high))))[1]
    threshold = None if extra.threshold is None else _ldexp(extra.threshold, -exponent)
    made = _of_floats(np.ldexp(values, -exponent), extra._replace(threshold=threshold))
    zeros = len(values) - int(np.count_nonzero(values))
    return made._replace(min=float(low), max=float(high), zeros=zeros, exponent=exponent)


def _of_integers(values: Array, extra: Extra) -> Summary:
    """Of one piece of 64-bit integers, whose sums are beyond float64: exact, by halves of 32 bits."""
    n = len(values)
    high, low = values >> np.array(32, values.dtype), values & np.array(0xFFFFFFFF, values.dtype)
    total = (int(high.sum()) << 32) + int(low.sum())
    middle = round(total / n) if abs(total) < n << 52 else total // n
    least, most = int(values.min()), int(values.max())
    distance = _less(values, middle)
    first, m2 = kernels.moments(distance)
    m2 = 0.0 if least == most else m2 - first * (first / n)
    m3 = m4 = 0.0
    if extra.shape and least != most:
        m2, m3, m4 = _about(distance, first / n, n)
    sizes = np.abs(values.astype(np.float64))
    absolutes, small = _extras(sizes, extra)
    return Summary(
        n, n - int(np.count_nonzero(values)), 0, 0, least, most,
        total, kernels.moments(sizes)[1], max(m2, 0.0), m3, m4, absolutes, small,
    )  # fmt: skip


def _less(values: Array, middle: int) -> Array:
    """The distance of 64-bit integers from one of them, rounded once."""
    signed = values.dtype.kind == "i"
    limits = np.iinfo(values.dtype)
    centre = np.array(min(max(middle, limits.min), limits.max), values.dtype)
    above = values >= centre
    with np.errstate(over="ignore"):
        wrapped = np.where(above, values - centre, centre - values)
    sizes = wrapped.view(np.uint64) if signed else wrapped
    found: Array = np.where(above, 1.0, -1.0) * sizes.astype(np.float64)
    return found


def chosen(columns: Collection[str], *, threshold: float | None = None) -> Extra:
    """What must be looked at for some of the properties of a summary."""
    return Extra(
        shape=not {"skew", "kurtosis"}.isdisjoint(columns),
        absolutes="l1" in columns,
        threshold=threshold if "sparsity" in columns else None,
    )
