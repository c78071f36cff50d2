"""Header tier: a tensor that lies in boxes, as distributed training saves it, as the bytes that it would have in one.

A box is a part of a row-major tensor, and has its own elements in row-major order, or by strides.
"""

from __future__ import annotations

import bisect
import importlib
import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from paramctl.checkpoint import Extent, Param, contiguous, is_dense_in_order
from paramctl.errors import ParamctlError, shortened

Fetch = Callable[[Param, str, int, int], bytearray]  # bytes of a file: its path, the first, and how many
Put = Callable[[Extent, int, bytearray], None]  # bytes into the file of an extent, and where in it

_LONG_ROW_NBYTES = 256
_WORDS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
LOCATORS: dict[str, str] = {  # packings whose format knows more: `located(param, extent)`, an extent and its strides
    "torch-save": "paramctl.formats.dcp_regions",
}


class Rows(NamedTuple):
    """A box as rows of bytes that lie together in the whole tensor, and together in the box."""

    nbytes: int  # of a row
    first: int  # where in the whole the first begins
    axes: tuple[tuple[int, int], ...]  # how many there are along each outer axis, and how far apart they begin

    @property
    def rows(self) -> int:
        return math.prod(count for count, _ in self.axes)

    @property
    def end(self) -> int:
        return self.first + sum((count - 1) * by for count, by in self.axes) + self.nbytes

    def at(self, row: int) -> int:
        """Where a row begins in the whole; they lie there as they follow each other in the box."""
        place = self.first
        for count, by in reversed(self.axes):
            row, step = divmod(row, count)
            place += step * by
        return place

    def within(self, start: int, end: int) -> tuple[int, int]:
        """The rows that have bytes from `start` to `end` of the whole: the first, and the one after the last."""
        every = range(self.rows)
        return bisect.bisect_right(every, start - self.nbytes, key=self.at), bisect.bisect_left(every, end, key=self.at)


def rows(shape: tuple[int, ...], box: tuple[tuple[int, int], ...], itemsize: int) -> Rows:
    """The rows of a box that is not empty; as few as may be: axes that the box has whole are taken together."""
    axis, nbytes = len(box), itemsize
    while axis and box[axis - 1] == (0, shape[axis - 1]):
        axis -= 1
        nbytes *= shape[axis]
    apart = [math.prod(shape[i + 1 :]) * itemsize for i in range(axis)]
    first = sum(start * by for (start, _), by in zip(box, apart, strict=False))
    if axis:
        nbytes *= box[axis - 1][1]
    outer = [(size, by) for (_, size), by in zip(box[: max(axis - 1, 0)], apart, strict=False) if size != 1]
    return Rows(nbytes, first, tuple(outer))


class Boxes:
    """A row-major tensor that lies in boxes. Of each only the rows that are wanted are read."""

    def __init__(self, param: Param, fetch: Fetch) -> None:
        self.storage = param.storage
        self._param, self._fetch = param, fetch
        extents = param.storage.extents
        shape = tuple(max(map(sum, along)) for along in zip(*(extent.box for extent in extents), strict=True))
        self._placed = [(rows(shape, extent.box, param.dtype.block_nbytes), extent) for extent in extents]
        self._located: dict[Extent, tuple[Extent, tuple[int, ...]]] = {}
        self._turned: tuple[Extent, bytearray] | None = None

    def read(self, start: int, end: int) -> bytearray:
        """Bytes `start` to `end` of the tensor; of a box that has none of them nothing is read."""
        found: bytearray | None = None
        for placing, extent, low, high in self._met(start, end):
            piece = self._piece(extent, low, high)
            if len(piece) == end - start:
                return piece
            if found is None:
                found = bytearray(end - start)
            _put(placing, low, piece, found, start)
        return bytearray(end - start) if found is None else found

    def write(self, start: int, data: bytearray, put: Put) -> None:
        """Put bytes of the tensor from `start` on where they lie; into a box that has none of them nothing is put."""
        for placing, extent, low, high in self._met(start, start + len(data)):
            piece = bytearray(high - low)
            _take(placing, low, piece, data, start)
            self._put_piece(extent, low, piece, put)

    def _met(self, start: int, end: int) -> Iterator[tuple[Rows, Extent, int, int]]:
        """The boxes that have some of the bytes, and from where to where in each box's own row-major order."""
        for placing, extent in self._placed:
            if placing.end <= start or placing.first >= end:
                continue
            first, last = placing.within(start, end)
            if first < last:
                low = first * placing.nbytes + max(start - placing.at(first), 0)
                high = last * placing.nbytes - max(placing.at(last - 1) + placing.nbytes - end, 0)
                yield placing, extent, low, high

    def _piece(self, extent: Extent, low: int, high: int) -> bytearray:
        """Bytes `low` to `high` of a box's own elements in row-major order."""
        found, stride = self._location(extent, high)
        if stride is None:
            return self._fetch(self._param, found.path, found.offset + low, high - low)
        sizes = tuple(size for _, size in extent.box)
        if self._turned is None or self._turned[0] is not extent:
            self._turned = extent, _turned(self._raw(found), None, sizes, stride, self._param.dtype.block_nbytes)
        return self._turned[1][low:high]

    def _put_piece(self, extent: Extent, low: int, piece: bytearray, put: Put) -> None:
        """Bytes of a box's own elements in row-major order, from `low` on, into its file."""
        found, stride = self._location(extent, low + len(piece))
        if stride is None:
            put(extent, found.offset + low, piece)
            return
        sizes = tuple(size for _, size in extent.box)
        if _may_share(sizes, stride):
            raise ParamctlError(f"{shortened(self._param.name)}: elements of it share bytes, and are not changed there")
        itemsize = self._param.dtype.block_nbytes
        whole = self._piece(extent, 0, math.prod(sizes) * itemsize)
        whole[low : low + len(piece)] = piece
        self._turned = None
        put(extent, found.offset, _turned(whole, self._raw(found), sizes, stride, itemsize))

    def _location(self, extent: Extent, end: int) -> tuple[Extent, tuple[int, ...] | None]:
        """Where a box's elements lie, of which so many bytes are asked for, and their strides; None: in order."""
        if extent.packing:
            if extent not in self._located:
                self._located[extent] = importlib.import_module(LOCATORS[extent.packing]).located(self._param, extent)
            found, stride = self._located[extent]
            return found, None if is_dense_in_order(tuple(size for _, size in extent.box), stride) else stride
        if end > extent.nbytes:
            name = shortened(self._param.name)
            raise ParamctlError(f"{name}: a piece of it is {extent.nbytes:,} bytes, too few")
        return extent, None

    def _raw(self, found: Extent) -> bytearray:
        return self._fetch(self._param, found.path, found.offset, found.nbytes)


def _may_share(sizes: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether two elements may lie in one place: surely not where each axis steps over all that is within it."""
    width = 1
    for by, size in sorted((by, size) for size, by in zip(sizes, stride, strict=True) if size > 1):
        if by < width:
            return True
        width += (size - 1) * by
    return False


def _turned(
    source: bytearray, into: bytearray | None, sizes: tuple[int, ...], stride: tuple[int, ...], itemsize: int
) -> bytearray:
    """Elements that lie by strides, in row-major order; or those that lie so, by strides into what is there."""
    ordered = contiguous(sizes)
    a, b = (stride, ordered) if into is None else (ordered, stride)
    made = bytearray(math.prod(sizes) * itemsize) if into is None else into
    steps = zip(sizes, (by * itemsize for by in a), (by * itemsize for by in b), strict=True)
    _copy(source, 0, made, 0, [*steps, (itemsize, 1, 1)])
    return made


def _copy(
    source: bytearray | memoryview, begin: int, target: bytearray, at: int, axes: list[tuple[int, int, int]]
) -> None:
    """Copy from strided bytes that begin at `begin` to strided bytes that begin at `at`.

    An axis is how many, how far apart in the source and in the target; the last are bytes that lie together. These
    are copied at once if there are enough of them, else words along the longest axis.
    """
    row = axes[-1][0]
    strides = [by for _, *each in axes[:-1] for by in each]
    word = math.gcd(8, row, begin, at, *strides)
    code = _WORDS[word]
    steps = [(count, here // word, there // word) for count, here, there in axes[:-1]] + [(row // word, 1, 1)]
    if row < _LONG_ROW_NBYTES:
        steps.append(steps.pop(max((i for i, step in enumerate(steps) if step[1]), key=lambda i: steps[i][0])))
    taken = memoryview(source)[: len(source) // word * word].cast(code)
    given = memoryview(target)[: len(target) // word * word].cast(code)
    count, here, there = steps.pop()
    for a, b in zip(_starts(steps, 1), _starts(steps, 2), strict=True):
        out, into = begin // word + a, at // word + b
        given[into : into + (count - 1) * there + 1 : there] = taken[out : out + (count - 1) * here + 1 : here]


def _starts(steps: list[tuple[int, int, int]], which: Literal[1, 2]) -> list[int]:
    places = [0]
    for step in steps:
        along = range(0, step[0] * step[which], step[which]) if step[which] else [0] * step[0]
        places = [place + by for place in places for by in along]
    return places


def _put(placing: Rows, low: int, piece: bytearray, part: bytearray, start: int) -> None:
    """Put bytes of a box, from `low` on, where they belong in a part of the whole that begins at `start`."""
    for here, there, axes in _walk(placing, low, len(piece)):
        _copy(piece, here, part, there - start, axes)


def _take(placing: Rows, low: int, piece: bytearray, part: bytearray, start: int) -> None:
    """The other way: fill a piece of a box."""
    for here, there, axes in _walk(placing, low, len(piece)):
        _copy(part, there - start, piece, here, [(count, b, a) for count, a, b in axes])


def _walk(placing: Rows, low: int, nbytes: int) -> Iterator[tuple[int, int, list[tuple[int, int, int]]]]:
    """Blocks that make up bytes of a box from `low` on: where in these, where in the whole, and the axes of a copy."""
    done, row_nbytes = 0, placing.nbytes
    while done < nbytes:
        row, begin = divmod(low + done, row_nbytes)
        left = nbytes - done
        if begin or left < row_nbytes:  # a part of a row
            many = min(row_nbytes - begin, left)
            axes = [(many, 1, 1)]
        else:
            block = _block(placing.axes, row, row + left // row_nbytes)
            many = row_nbytes * math.prod(count for count, _, _ in block)
            axes = [*((count, here * row_nbytes, by) for count, here, by in block), (row_nbytes, 1, 1)]
        yield done, placing.at(row) + begin, axes
        done += many


def _block(axes: tuple[tuple[int, int], ...], row: int, end: int) -> list[tuple[int, int, int]]:
    """As many rows from one to another as lie by strides: how many, how far apart in the box and in the whole."""
    found: list[tuple[int, int, int]] = []
    here = 1
    for count, by in reversed(axes):
        step = row // here % count
        many = min(count - step, (end - row) // here)
        if many:
            found.insert(0, (many, here, by))
        if many < count:
            break
        here *= count
    return found
