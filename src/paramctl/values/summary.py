"""Values tier: what is said of the numbers of a tensor, mergeable as if they had been summed together.

A statistic is of the finite elements; NaN and infinities are counted beside it. A complex element counts by its
magnitude.

Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances";
Pébay 2008, SAND2008-6212, for the third and fourth moments.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple


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
