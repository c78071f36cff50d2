"""Values tier: how the values of two tensors of one shape differ, in one pass and constant memory.

Bytes are compared first, where both sides hold the same dtype in the same order: what is unchanged is never decoded.
Then both are read a piece that fits the cache at a time, on common boundaries, whatever their dtypes and strides.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from paramctl.checkpoint import Param, Storage, is_dense_in_order
from paramctl.contents import Window
from paramctl.errors import ParamctlError, shortened
from paramctl.values.comparison import Comparison, Measure, Tolerance
from paramctl.values.lanes import Lane, lane
from paramctl.values.stream import distinct, numbers, pieces

Array = NDArray[Any]

_BLOCK_NBYTES = 1 << 18  # compared at once
_NUMEL = 1 << 16  # of a piece: both sides, their numbers and the difference fit the cache


class Side:
    """What the tensors of one side are read through: a window, and a lane for each dtype."""

    def __init__(self, tell: Callable[[int], None] | None = None) -> None:
        self.window = Window(tell)
        self._lanes: dict[tuple[str, str], Lane] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.window.__exit__()

    def lane(self, param: Param) -> Lane:
        """How the numbers of a tensor are had.

        Raises:
            ParamctlError: they are not known.
        """
        key = (param.dtype.name, param.storage.byteorder)
        if key not in self._lanes:
            self._lanes[key] = lane(param)
        return self._lanes[key]


class Sides(NamedTuple):
    """Of A and of B."""

    a: Side
    b: Side


def compare(a: Param, b: Param, sides: Sides, tolerance: Tolerance = Tolerance()) -> Comparison | None:  # noqa: B008
    """How `b` differs from `a`, which has the same shape; None where their bytes are the same.

    Raises:
        FileError: the bytes are not there.
        ParamctlError: they cannot be had, or their numbers are not known.
    """
    if 0 in a.shape or lie_together(a, b):
        return None
    first, second, times = _distinct(a, b)
    found = (_of_one_kind if _have_comparable_bytes(first, second) else _of_two_kinds)(first, second, sides, tolerance)
    if found is None:
        return None
    if found.max_at is not None and first is not a:
        found = found._replace(max_at=_place(a, found.max_at))
    return found.times(times)


def unchanged(a: Param, b: Param, sides: Sides) -> Comparison:
    """As `compare`, of tensors whose bytes are the same: what is to be known is their norm."""
    once, times = distinct(a)
    measure = _measure(a, b, sides, Tolerance())
    whole = Comparison()
    for values in numbers(once, sides.a.lane(once), sides.a.window) if a.numel else ():
        whole = whole.merge(measure.same(values))
    return whole.times(times)


def bytes_differ(a: Param, b: Param, sides: Sides) -> bool:
    """Whether the bytes of two tensors of one dtype differ, of which no more can be told.

    Raises:
        ParamctlError: they lie in another order.
    """
    if lie_together(a, b):
        return False
    if not _have_comparable_bytes(a, b):
        raise ParamctlError(f"{shortened(a.name)}: its {a.dtype.name} lies in another order in each")
    return not _are_same_bytes(a, b, sides)


def index(param: Param, place: int) -> list[int]:
    """The index of the element at a place in row-major order."""
    return [int(i) for i in np.unravel_index(place, param.shape)]


# ----------------------------------------------------------------------------- the same bytes


def lie_together(a: Param, b: Param) -> bool:
    """Whether both are the very same elements of one file."""
    if (a.storage_offset, a.dtype.name, a.shape, a.stride) != (b.storage_offset, b.dtype.name, b.shape, b.stride):
        return False
    if a.storage is b.storage:
        return not a.storage.is_meta
    mine, theirs = a.storage, b.storage
    return bool(mine.extents) and mine.byteorder == theirs.byteorder and _is_same_place(mine, theirs)


def _is_same_place(a: Storage, b: Storage) -> bool:
    if len(a.extents) != len(b.extents):
        return False
    pairs = list(zip(a.extents, b.extents, strict=True))
    if any(mine[1:] != theirs[1:] for mine, theirs in pairs):
        return False
    return all(_is_same_file(*paths) for paths in {(mine.path, theirs.path) for mine, theirs in pairs})


def _is_same_file(a: str, b: str) -> bool:
    try:
        return a == b or os.path.samefile(a, b)  # noqa: PTH121 - for each tensor
    except OSError:
        return False


def _distinct(a: Param, b: Param) -> tuple[Param, Param, int]:
    """Where both lie by the same strides, each element once in the order in which it lies; and how many times."""
    if _are_dense(a, b):
        return a, b, 1
    strides = [[by for size, by in zip(p.shape, p.stride, strict=True) if size != 1] for p in (a, b)]
    if strides[0] != strides[1] or a.dtype.block_numel > 1 or b.dtype.block_numel > 1:
        return a, b, 1
    (first, times), (second, _) = distinct(a), distinct(b)
    return first, second, times


def _place(param: Param, place: int) -> int:
    """The place in row-major order of an element of `distinct(param)`, told by its place there."""
    axes = [(abs(by), size, axis) for axis, (size, by) in enumerate(zip(param.shape, param.stride, strict=True))]
    kept = sorted((each for each in axes if each[0] and each[1] != 1), key=lambda each: each[:2], reverse=True)
    found = [0] * len(axes)
    for i, (_, size, axis) in zip(np.unravel_index(place, [size for _, size, _ in kept]), kept, strict=True):
        found[axis] = int(i) if param.stride[axis] > 0 else size - 1 - int(i)
    return int(np.ravel_multi_index(found, param.shape))


def _are_dense(a: Param, b: Param) -> bool:
    """Whether both lie in row-major order without gaps."""
    return is_dense_in_order(a.shape, a.stride) and (a.stride == b.stride or is_dense_in_order(b.shape, b.stride))


def _have_comparable_bytes(a: Param, b: Param) -> bool:
    if a.dtype != b.dtype or a.storage.byteorder != b.storage.byteorder or not _are_dense(a, b):
        return False
    return not (a.storage_offset % a.dtype.block_numel or b.storage_offset % b.dtype.block_numel)


def _are_same_bytes(a: Param, b: Param, sides: Sides) -> bool:
    (at, end), (other, _) = a.span, b.span
    while at < end:
        nbytes = min(_BLOCK_NBYTES, end - at)
        if not _same(sides.a.window.read(a, at, at + nbytes), sides.b.window.read(b, other, other + nbytes)):
            return False
        at, other = at + nbytes, other + nbytes
    return True


def _same(a: memoryview, b: memoryview) -> bool:
    if a[:64] != b[:64]:  # mostly so, where anything changed
        return False
    if len(a) <= 4096:
        return a.tobytes() == b.tobytes()
    first, second = np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8)
    words = len(first) & -8
    return np.array_equal(first[:words].view(np.uint64), second[:words].view(np.uint64)) and np.array_equal(
        first[words:], second[words:]
    )


# ----------------------------------------------------------------------------- numbers


def _of_one_kind(a: Param, b: Param, sides: Sides, tolerance: Tolerance) -> Comparison | None:
    """Of tensors of one dtype that lie in order; None where all their bytes are the same."""
    measure = _measure(a, b, sides, tolerance)
    here, there = sides.a.lane(a), sides.b.lane(b)
    per_block = a.dtype.block_numel
    step = max(_NUMEL // per_block, 1) * per_block  # elements of a piece
    mine, theirs = pieces(a, here, sides.a.window, numel=_NUMEL), pieces(b, there, sides.b.window, numel=_NUMEL)
    whole: Comparison | None = None
    before = at = 0
    for first, second in zip(mine, theirs, strict=True):
        if not _same(first.data.cast("B"), second.data.cast("B")):
            left = (a.numel - at) * here.per_element  # without what fills a last block
            found = measure.of(here.decode(first)[:left], there.decode(second)[:left], at)
            whole = found if whole is None else whole.merge(found)
        elif whole is not None:
            whole = whole.merge(measure.same(here.decode(first)[: (a.numel - at) * here.per_element]))
        else:
            before = at + step
        at += step
    if whole is None or not before:
        return whole
    return unchanged(a._replace(shape=(before,), stride=(1,)), b, sides).merge(whole)


def _of_two_kinds(a: Param, b: Param, sides: Sides, tolerance: Tolerance) -> Comparison:
    measure = _measure(a, b, sides, tolerance)
    per_element = sides.a.lane(a).per_element if measure.width == 1 else measure.width
    whole, at = Comparison(), 0
    for first, second in aligned(a, b, sides):
        whole = whole.merge(measure.of(first, second, at // per_element))
        at += len(first)
    return whole


def _measure(a: Param, b: Param, sides: Sides, tolerance: Tolerance) -> Measure:
    is_whole = all(
        p.dtype.kind in ("int", "uint", "bool") or p.dtype.name.startswith(("qint", "quint")) for p in (a, b)
    )
    here, there = sides.a.lane(a), sides.b.lane(b)
    if here.is_complex or there.is_complex:
        return Measure(tolerance, is_whole, 2)
    return Measure(tolerance, is_whole, 1, here.per_element)


def aligned(a: Param, b: Param, sides: Sides, *, numel: int = _NUMEL) -> Iterator[tuple[Array, Array]]:
    """Flat numbers of any two dtypes and layouts, cut where either is; real ones as complex beside such."""
    is_paired = sides.a.lane(a).is_complex or sides.b.lane(b).is_complex
    mine, theirs = _flat(a, sides.a, numel, is_paired=is_paired), _flat(b, sides.b, numel, is_paired=is_paired)
    empty = np.empty(0, np.float32)
    first = second = empty
    while True:
        first = first if len(first) else next(mine, empty)
        second = second if len(second) else next(theirs, empty)
        count = min(len(first), len(second))
        if not count:
            return
        yield first[:count], second[:count]
        first, second = first[count:], second[count:]


def _flat(param: Param, side: Side, numel: int, *, is_paired: bool) -> Iterator[Array]:
    """The numbers of one side; where they are to be pairs, a real one has an imaginary part of 0."""
    found = side.lane(param)
    for values in numbers(param, found, side.window, numel=numel):
        if not is_paired or found.is_complex:
            yield values
            continue
        pairs = np.zeros((len(values), 2))
        pairs[:, 0] = values
        yield pairs.reshape(-1)
