"""Values tier: how the finite elements of tensors are spread: quantiles and histograms, both exact.

Of types of 8 and 16 bits every code is counted, in one pass, and the rest is arithmetic on at most 65,536 numbers.
Of wider types an order statistic is found by its bits, 16 at a time from the top: a pass over the elements for each,
so two for float32 and four for float64 and 64-bit integers. Memory is constant.

Quantiles between two elements are on the line between them, as numpy's default; bins are of one width and the last
one is closed, as numpy's, and an element on an edge falls where comparing it with the edge puts it.

Source: Hyndman and Fan 1996, definition 7, for quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramctl.checkpoint import Param
from paramctl.contents import Window
from paramctl.values.lanes import Lane, lane
from paramctl.values.stream import distinct, numbers, pieces
from paramctl.values.summarize import magnitudes

Array = NDArray[Any]
Pass = Callable[[], Iterator[tuple[Array, int]]]  # the finite numbers, a piece at a time, and how often each is told
Ranked = Callable[[Sequence[int]], dict[int, Any]]  # the order statistics of some ranks, from 0

_DIGIT = 16  # bits that are sorted out in a pass
_SIZE = 1 << _DIGIT
_MOST = float(np.finfo(np.float64).max)


class Distribution(NamedTuple):
    """`quantiles` as they were asked for, and `bins` counts between the least and the greatest element."""

    quantiles: tuple[float | int | None, ...] = ()
    counts: tuple[int, ...] = ()


def distribution(
    params: Sequence[Param], window: Window, *, at: Sequence[float] = (), bins: int = 0, limits: tuple[Any, Any]
) -> Distribution:
    """Of all elements of some tensors taken together.

    Args:
        params: the tensors.
        window: what reads them.
        at: the quantiles, from 0 to 1.
        bins: of the histogram; 0 for none.
        limits: the least and the greatest finite element; (None, None) where there is none.

    Raises:
        FileError: the bytes are not there.
        ParamctlError: they cannot be had, or their numbers are not known.
    """
    low, high = limits
    if low is None:
        return Distribution((None,) * len(at), (0,) * bins)
    codes = _codes(params, window)
    if codes is not None:
        found, many = codes
        return Distribution(_weighted(found, many, at), _binned([(found, many)], bins, low, high))

    def every() -> Iterator[tuple[Array, int]]:
        for param in params:
            yield from _finite(param, window)

    selected = _selected(every, _keys(params), at) if at else ()
    return Distribution(selected, _binned(every(), bins, low, high) if bins else ())


# ----------------------------------------------------------------------------- small types: every code counted


def _codes(params: Sequence[Param], window: Window) -> tuple[Array, Array] | None:
    """The finite numbers in ascending order and how many there are of each; None unless all are of one small type."""
    lanes = [lane(param) for param in params]
    if len({param.dtype.name for param in params}) > 1 or not all(map(_is_small, params, lanes)):
        return None
    size = 1 << 8 * lanes[0].stored.itemsize
    counts = np.zeros(size, np.int64)
    for param, found in zip(params, lanes, strict=True):
        once, times = distinct(param)
        for piece in pieces(once, found, window):
            counts += np.bincount(piece.view(f"u{found.stored.itemsize}"), minlength=size) * times
    used = np.flatnonzero(counts)
    decoded = lanes[0].decode(used.astype(f"u{lanes[0].stored.itemsize}").view(lanes[0].stored)).copy()
    kept = np.isfinite(decoded)
    order = np.argsort(decoded[kept], kind="stable")
    return decoded[kept][order], counts[used][kept][order]


def _is_small(param: Param, found: Lane) -> bool:
    return found.stored.itemsize <= 2 and found.per_element == 1 and param.dtype.block_numel == 1


def _weighted(numbers: Array, many: Array, at: Sequence[float]) -> tuple[float, ...]:
    ends = np.cumsum(many)
    total = int(ends[-1])

    def ranked(ranks: Sequence[int]) -> dict[int, float]:
        return {rank: float(numbers[int(np.searchsorted(ends, rank, side="right"))]) for rank in ranks}

    return _interpolated(at, total, ranked)


def _interpolated(at: Sequence[float], total: int, ranked: Ranked) -> tuple[Any, ...]:
    """Each quantile from the two order statistics about it."""
    places = [(total - 1) * quantile for quantile in at]
    wanted = sorted({rank for place in places for rank in (math.floor(place), math.ceil(place))})
    found = ranked(wanted)
    return tuple(_between(found[math.floor(place)], found[math.ceil(place)], place % 1) for place in places)


def _between(low: Any, high: Any, share: float) -> Any:
    """On the line between two numbers, rounded once: by whole numbers, which do not overflow."""
    if share == 0 or low == high:
        return low
    (a, b), (c, d), (above, below) = (number.as_integer_ratio() for number in (low, high, share))
    return (a * d * (below - above) + c * b * above) / (b * d * below)


# ----------------------------------------------------------------------------- wide types: by their bits


def _finite(param: Param, window: Window) -> Iterator[tuple[Array, int]]:
    once, times = distinct(param)
    found = lane(param)
    for values in numbers(once, found, window):
        told = magnitudes(values) if found.is_complex else values
        kept = told if told.dtype.kind in "iu" else told[np.isfinite(told)]
        if kept.size:
            yield kept, times


class _Keys(NamedTuple):
    """A type's numbers as unsigned integers of the same order, and back."""

    bits: int
    make: Callable[[Array], Array]
    number: Callable[[int], float | int]


def _selected(every: Pass, keys: _Keys, at: Sequence[float]) -> tuple[Any, ...]:
    total = 0
    tops = np.zeros(_SIZE, np.int64)
    for values, times in every():
        total += len(values) * times
        tops += _counted(keys.make(values) >> (keys.bits - _DIGIT)) * times

    def ranked(ranks: Sequence[int]) -> dict[int, Any]:
        return {rank: keys.number(key) for rank, key in _descend(every, keys, tops, ranks).items()}

    return _interpolated(at, total, ranked)


def _counted(digits: Array) -> Array:
    return np.bincount(digits.astype(np.uint16), minlength=_SIZE)


def _descend(every: Pass, keys: _Keys, tops: Array, ranks: Sequence[int]) -> dict[int, int]:
    """The key at each rank: after each pass, 16 bits more of it are known."""
    known = {rank: _digit(tops, rank) for rank in ranks}  # the bits, and the rank among those that begin with them
    for shift in range(keys.bits - 2 * _DIGIT, -1, -_DIGIT):
        counts = {prefix: np.zeros(_SIZE, np.int64) for prefix, _ in known.values()}
        for values, times in every():
            made = keys.make(values)
            above = made >> (shift + _DIGIT)
            for prefix in counts:
                digits = (made[above == prefix] >> shift) & (_SIZE - 1)
                if digits.size:
                    counts[prefix] += _counted(digits) * times
        for rank, (prefix, left) in known.items():
            digit, rest = _digit(counts[prefix], left)
            known[rank] = (prefix << _DIGIT | digit, rest)
    return {rank: bits for rank, (bits, _) in known.items()}


def _digit(counts: Array, rank: int) -> tuple[int, int]:
    ends = np.cumsum(counts)
    digit = int(np.searchsorted(ends, rank, side="right"))
    return digit, rank - int(ends[digit] - counts[digit])


def _keys(params: Sequence[Param]) -> _Keys:
    """Of the type that all are decoded to; a mixture is told in float64, and so are magnitudes."""
    kinds = {"f8" if found.is_complex else found.number for found in map(lane, params)}
    return _KEYS[kinds.pop() if len(kinds) == 1 else "f8"]


def _float_keys(bits: int) -> _Keys:
    unsigned, signed, real = (np.dtype(f"{kind}{bits // 8}") for kind in "uif")
    sign = 1 << bits - 1

    def make(values: Array) -> Array:
        held = np.ascontiguousarray(values, real) + real.type(0)  # -0.0 becomes 0.0: the two are equal
        raw = held.view(unsigned)
        negative = (held.view(signed) >> (bits - 1)).view(unsigned)
        found: Array = raw ^ (negative | unsigned.type(sign))
        return found

    def number(key: int) -> float:
        raw = key ^ sign if key & sign else key ^ ((1 << bits) - 1)
        return float(np.array(raw, unsigned).view(real))

    return _Keys(bits, make, number)


def _signed_key(key: int) -> int:
    return key - (1 << 63)


_KEYS = {
    "f4": _float_keys(32),
    "f8": _float_keys(64),
    "i8": _Keys(64, lambda values: values.view(np.uint64) ^ np.uint64(1 << 63), _signed_key),
    "u8": _Keys(64, lambda values: values, int),
}


# ----------------------------------------------------------------------------- bins


def _binned(every: Iterable[tuple[Array, Any]], bins: int, low: Any, high: Any) -> tuple[int, ...]:
    if not bins:
        return ()
    edges = _edges(bins, float(low), float(high))
    counts = np.zeros(bins, np.int64)
    for values, many in every:
        places = _places(values.astype(np.float64), edges)
        if isinstance(many, int):
            counts += np.bincount(places, minlength=bins) * many
        else:
            np.add.at(counts, places, many)
    return tuple(counts.tolist())


def _edges(bins: int, low: float, high: float) -> Array:
    """The edges of the bins; about a single number, a half to either side."""
    if low == high:
        half = max(0.5, bins * math.ulp(low))
        low, high = max(low - half, -_MOST), min(high + half, _MOST)
    if high - low <= _MOST / 2:
        return np.linspace(low, high, bins + 1)
    edges: Array = np.linspace(low / 4, high / 4, bins + 1) * 4
    return edges


def _places(values: Array, edges: Array) -> Array:
    """The bin of each element, by a product; where that comes near an edge, by comparing with the edge."""
    bins = len(edges) - 1
    low, high = float(edges[0]), float(edges[-1])
    scale = bins / (high - low)
    if not 0 < scale < math.inf:  # of the widest ranges, and of the narrowest
        return _compared(values, edges)
    guess = values - low
    guess *= scale
    places: Array = guess.astype(np.intp)
    guess -= places
    guess -= 0.5
    off = 1e-9 + 4 * math.ulp(max(abs(low), abs(high))) * scale  # of the product and of the edges, in bins
    near = np.flatnonzero(np.abs(guess, out=guess) >= 0.5 - off)
    if near.size:
        places[near] = _compared(values[near], edges)
    return np.minimum(places, bins - 1, out=places)


def _compared(values: Array, edges: Array) -> Array:
    """The bins of elements by the edges alone, the last one closed."""
    found: Array = np.searchsorted(edges[1:-1], values, side="right")
    return found
