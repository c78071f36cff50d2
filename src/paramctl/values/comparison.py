"""Values tier: how two arrays of numbers differ: sums that are exactly mergeable, and the largest difference.

The numbers are of the elements that are finite on both sides; NaN is equal to NaN, an infinity to itself, -0.0 to 0.0,
and where else one side is not finite the elements differ, and are counted.

float32 is subtracted in float32, which is right to 6e-8 of each difference, and 0 only between equals, for a difference
may be subnormal; everything wider in float64; 64-bit integers by halves, so that their difference is rounded once.
Sums are float64's. Squares beyond float64 are kept in units of a power of two.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramctl.values import kernels

Array = NDArray[Any]

_TINY, _HUGE = 2.0**-800, 2.0**1000  # sums of squares between these have lost nothing that counts
_ALIKE = 16.0  # sums of squares within this of each other: `dot` may be taken from them
_EXACT = 2.0**53


class Scaled(NamedTuple):
    """`value` times 2**`exponent`: a number that float64 may be too narrow for."""

    value: float = 0.0
    exponent: int = 0

    def plus(self, other: Scaled) -> Scaled:
        """The sum."""
        if self.exponent == other.exponent:
            return Scaled(self.value + other.value, self.exponent)
        if not (self.value and other.value):
            return self if self.value else other
        exponent = max(self.exponent, other.exponent)
        mine, theirs = (math.ldexp(each.value, each.exponent - exponent) for each in (self, other))
        return Scaled(mine + theirs, exponent)

    def times(self, many: int) -> Scaled:
        """The product."""
        return Scaled(self.value * many, self.exponent)

    @property
    def root(self) -> Scaled:
        """The square root, of a sum of squares, whose exponent is even."""
        return Scaled(math.sqrt(self.value), self.exponent // 2)

    def __float__(self) -> float:
        try:
            return math.ldexp(self.value, self.exponent)
        except OverflowError:
            return math.copysign(math.inf, self.value)


class Tolerance(NamedTuple):
    """Elements differ if |b - a| > absolute + relative · |a|."""

    absolute: float = 0.0
    relative: float = 0.0


class Comparison(NamedTuple):
    """How `b` differs from `a`.

    `max_at` is the place, in row-major order, of the first difference that is as large as any; None where all are 0.
    """

    numel: int = 0
    differing: int = 0  # beyond the tolerance
    unbounded: int = 0  # of these, where a side is NaN or infinite
    finite: int = 0  # on both sides
    max_abs: float | int = 0
    max_at: int | None = None
    squares: Scaled = Scaled()  # of the difference
    a: Scaled = Scaled()  # squares of `a`
    b: Scaled = Scaled()
    dot: Scaled = Scaled()

    @property
    def is_measured(self) -> bool:
        """Whether any number can be told: not where no element is finite on both sides."""
        return self.finite > 0 or not self.differing

    @property
    def changed(self) -> float:
        """The share of elements that differ."""
        return self.differing / self.numel if self.numel else 0.0

    @property
    def l2(self) -> float:
        """The Euclidean norm of the difference."""
        return float(self.squares.root)

    @property
    def rel_l2(self) -> float | None:
        """The norm of the difference over the norm of `a`; None where only that is 0."""
        if not self.squares.value:
            return 0.0
        if not self.a.value:
            return None
        change, norm = self.squares.root, self.a.root
        return float(Scaled(change.value / norm.value, change.exponent - norm.exponent))

    @property
    def cosine(self) -> float | None:
        """The cosine of the angle between `a` and `b`; 1 between equals, None where only one of them is 0."""
        if not self.squares.value:
            return 1.0
        if not (self.a.value and self.b.value):
            return None
        a, b = self.a.root, self.b.root
        exponent = self.dot.exponent - a.exponent - b.exponent
        return max(-1.0, min(1.0, float(Scaled(self.dot.value / a.value / b.value, exponent))))

    def times(self, many: int) -> Comparison:
        """Of the same elements, each told so many times."""
        if many == 1:
            return self
        return self._replace(
            **{key: getattr(self, key) * many for key in ("numel", "differing", "unbounded", "finite")},
            **{key: getattr(self, key).times(many) for key in ("squares", "a", "b", "dot")},
        )

    def merge(self, other: Comparison) -> Comparison:
        """Of the elements of both, those of `other` after the own."""
        largest = self
        if self.max_at is None or other.max_abs > self.max_abs:
            largest = other
        return Comparison(
            self.numel + other.numel,
            self.differing + other.differing,
            self.unbounded + other.unbounded,
            self.finite + other.finite,
            largest.max_abs,
            largest.max_at,
            self.squares.plus(other.squares),
            self.a.plus(other.a),
            self.b.plus(other.b),
            self.dot.plus(other.dot),
        )


class Measure(NamedTuple):
    """How pieces of two tensors are compared."""

    tolerance: Tolerance = Tolerance()
    is_whole: bool = False  # integers on both sides, whose largest difference is exact
    width: int = 1  # numbers that are compared as one: a complex one's are two
    per_place: int = 1  # numbers, of those that are not, that stand at one place: torch counts a pair of float4 as one

    def same(self, a: Array) -> Comparison:
        """Of numbers that are the same on both sides."""
        finite = len(a) // self.width
        squares = Scaled(kernels.moments(a)[1] if a.dtype.kind == "f" else 0.0)
        if not _TINY < squares.value < _HUGE:
            elements = a.reshape(-1, self.width)
            kept = elements[np.all(np.isfinite(elements), axis=1)]
            finite, squares = len(kept), _squares(kept.astype(np.float64).reshape(-1))
        zero = 0 if self.is_whole else 0.0
        return Comparison(len(a) // self.width, 0, 0, finite, zero, None, Scaled(), squares, squares, squares)

    def of(self, a: Array, b: Array, at: int = 0) -> Comparison:
        """Of two flat, contiguous arrays of float32, float64 or 64-bit integers.

        Args:
            a: numbers of A.
            b: as many of B.
            at: the place of the first, in the whole tensor.
        """
        if not len(a):
            return Comparison()
        with np.errstate(all="ignore"):
            return (self._plainly(a, b, at) if self.width == 1 else None) or self._carefully(a, b, at)

    def _plainly(self, a: Array, b: Array, at: int) -> Comparison | None:
        """Of floats whose squares and differences are float64's; None where some are not."""
        if a.dtype.kind != "f" or b.dtype.kind != "f":
            return None
        difference = np.subtract(b, a)
        sums = [kernels.moments(each)[1] for each in (a, b, difference)]
        least = 0.0 if difference.dtype == np.float32 else _TINY
        if not all(least <= each < _HUGE for each in sums):
            return None
        ends = sorted((int(difference.argmin()), int(difference.argmax())))
        place = max(ends, key=lambda end: abs(difference[end]))  # the first of two that are as large
        first, second = a[place].item(), b[place].item()
        if self.tolerance == Tolerance():
            differing = int(np.count_nonzero(np.not_equal(difference, 0)))
        else:
            differing = int(np.count_nonzero(self._beyond(np.abs(b.astype(np.float64) - a), a)))
        most = abs(second - first)
        dot = (sums[0] + sums[1] - sums[2]) / 2
        if max(sums[:2]) > _ALIKE * min(sums[:2]):  # digits of the smaller are lost in the larger
            kind = difference.dtype
            dot = kernels.dot(a.astype(kind, copy=False), b.astype(kind, copy=False))
        return Comparison(
            len(a), differing, 0, len(a),
            int(most) if self.is_whole else most, at + place // self.per_place if most else None,
            Scaled(sums[2]), Scaled(sums[0]), Scaled(sums[1]), Scaled(dot),
        )  # fmt: skip

    def _carefully(self, a: Array, b: Array, at: int) -> Comparison:
        """Of any numbers."""
        a, b = a.reshape(-1, self.width), b.reshape(-1, self.width)
        finite: Array = np.all(np.isfinite(a) & np.isfinite(b), axis=1)
        alike = (a == b).all(axis=1) | (np.isnan(a).any(axis=1) & np.isnan(b).any(axis=1))
        unbounded = int(np.count_nonzero(~finite & ~alike))
        if not finite.any():
            return Comparison(len(a), unbounded, unbounded)
        a, b = a[finite], b[finite]
        difference, halved, differs = _difference(a, b)
        sizes = np.abs(difference[:, 0]) if self.width == 1 else np.hypot(difference[:, 0], difference[:, 1])
        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        magnitudes = np.abs(wide_a[:, 0]) if self.width == 1 else np.hypot(wide_a[:, 0], wide_a[:, 1])
        if self.tolerance == Tolerance():
            differing = int(np.count_nonzero(differs))
        else:
            differing = int(np.count_nonzero(self._beyond(np.ldexp(sizes, halved), magnitudes)))
        place = int(sizes.argmax())
        most = float(Scaled(float(sizes[place]), halved))
        if self.is_whole:
            place, most = _largest(a[:, 0], b[:, 0], sizes)
        first, second = wide_a.reshape(-1), wide_b.reshape(-1)
        return Comparison(
            len(finite), differing + unbounded, unbounded, len(a), most,
            at + int(np.flatnonzero(finite)[place]) // self.per_place if most else None,
            _squares(difference.reshape(-1), halved), _squares(first), _squares(second), _dot(first, second),
        )  # fmt: skip

    def _beyond(self, sizes: Array, a: Array) -> Array:
        limits = self.tolerance.absolute + self.tolerance.relative * np.abs(a.astype(np.float64))
        found: Array = sizes > limits
        return found


def _difference(a: Array, b: Array) -> tuple[Array, int, Array]:
    """`b - a` in float64, by how many powers of two it is too small for that not to overflow, and what is not equal."""
    if a.dtype.kind in "iu" or b.dtype.kind in "iu":
        (high, low), (other_high, other_low) = _halves(a), _halves(b)
        difference = (other_high - high) * 2.0**32 + (other_low - low)
        return difference, 0, difference.any(axis=1)
    differs = (a != b).any(axis=1)
    difference = np.subtract(b, a, dtype=np.float64)
    if np.isfinite(difference).all():
        return difference, 0, differs
    return np.ldexp(b.astype(np.float64), -1) - np.ldexp(a.astype(np.float64), -1), 1, differs


def _halves(values: Array) -> tuple[Array, Array]:
    """Numbers as high · 2**32 + low, each half exact in float64, for integers of 64 bits and for floats."""
    if values.dtype.kind == "f":
        wide = values.astype(np.float64)
        high = np.floor(wide * 2.0**-32)
        return high, wide - high * 2.0**32
    shift, mask = np.array(32, values.dtype), np.array(0xFFFFFFFF, values.dtype)
    return (values >> shift).astype(np.float64), (values & mask).astype(np.float64)


def _largest(a: Array, b: Array, sizes: Array) -> tuple[int, int]:
    """Place and exact size of the largest difference of integers; `sizes` are rounded to float64."""
    place = int(sizes.argmax())
    places = np.flatnonzero(sizes == sizes[place]) if sizes[place] >= _EXACT else [place]
    most, first = max((abs(int(b[i]) - int(a[i])), -int(i)) for i in places)
    return -first, most


def _exponent(values: Array) -> int:
    """Of the power of two to divide by, so that squares of float64 neither overflow nor vanish; 0 where none do."""
    largest = float(np.abs(values).max(initial=0))
    exponent = math.frexp(largest)[1]
    return exponent if abs(exponent) > 400 else 0


def _squares(values: Array, exponent: int = 0) -> Scaled:
    by = _exponent(values)
    return Scaled(kernels.moments(np.ldexp(values, -by) if by else values)[1], 2 * (by + exponent))


def _dot(a: Array, b: Array) -> Scaled:
    by, other = _exponent(a), _exponent(b)
    return Scaled(kernels.dot(np.ldexp(a, -by) if by else a, np.ldexp(b, -other) if other else b), by + other)
