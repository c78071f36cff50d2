"""Header tier: the bytes of a storage, from wherever they lie, and no others."""

from __future__ import annotations

import importlib
import itertools
import math
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Self

from paramctl.checkpoint import Extent, Param, Storage, contiguous, is_dense_in_order
from paramctl.errors import FileError, ParamctlError, shortened

_FREELY_INFLATED_NBYTES = 1 << 27
_MOST_INFLATED = 64  # times what is stored, beyond that: numbers shrink to a half, and zeros to a thousandth
_PACKED_NBYTES = 1 << 18  # that are inflated at once
_MOST_OPEN = 32  # files of one window
_WORDS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
_LOCATORS: dict[str, str] = {  # packings whose format knows more: `located(param, extent)`, an extent and its strides
    "torch-save": "paramctl.formats.dcp",
}


def read(param: Param, start: int, end: int) -> Any:
    """Bytes `start` to `end` of the storage of `param`: a view where they are in memory, else a bytearray.

    Raises:
        FileError: the file cannot be read, or has become shorter.
        ParamctlError: there are no bytes, or they are packed and do not unpack.
    """
    storage = param.storage
    if storage.data is not None:
        return storage.data[start:end]
    if end == start:
        return bytearray()
    if storage.why_unreadable or not storage.extents:
        raise ParamctlError(f"{shortened(param.name)}: {storage.why_unreadable or 'it has a shape, and no values'}")
    first = storage.extents[0]
    if first.box or first.packing in _LOCATORS:
        return _assembled(param, start, end)
    if len(storage.extents) == 1 and not first.packing:
        return read_range(param, first.path, first.offset + start, end - start)
    whole = bytearray(storage.nbytes)
    at = 0
    for extent in storage.extents:
        piece = _unpacked(param, extent)
        whole[at : at + len(piece)] = piece
        at += len(piece)
    if len(whole) != storage.nbytes:
        raise ParamctlError(f"{shortened(param.name)}: its pieces take {len(whole):,} bytes, not {storage.nbytes:,}")
    return whole if (start, end) == (0, storage.nbytes) else whole[start:end]


class Window:
    """Parts of storages one after another, through one buffer that is used again.

    Files stay open until it is closed. What is deflated is inflated as it goes, so that a sweep from the first byte to
    the last takes constant memory.
    """

    def __init__(self, tell: Callable[[int], None] | None = None) -> None:
        self._tell = tell  # how many bytes were read, each time
        self._buffer = bytearray()
        self._files: dict[str, int] = {}
        self._inflating: _Inflating | None = None
        self._whole: tuple[Storage, memoryview] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def read(self, param: Param, start: int, end: int) -> memoryview:
        """Bytes `start` to `end` of the storage of `param`, until the next call.

        Raises:
            FileError: the file cannot be read, or has become shorter.
            ParamctlError: there are no bytes, or they are packed and do not unpack.
        """
        storage = param.storage
        if self._tell is not None:
            self._tell(end - start)
        if storage.data is not None:
            return storage.data[start:end]
        extents = storage.extents
        if storage.why_unreadable or not extents or start == end:
            return memoryview(read(param, start, end))
        first = extents[0]
        if first.box or first.packing in _LOCATORS:
            return memoryview(_assembled(param, start, end))
        if len(extents) > 1:
            return self._held(param)[start:end]
        if first.packing:
            return self._inflated(param, first, start, end)
        return self._filled(param, first.path, first.offset + start, end - start)

    def _held(self, param: Param) -> memoryview:
        if self._whole is None or self._whole[0] is not param.storage:
            self._whole = (param.storage, memoryview(read(param, 0, param.storage.nbytes)))
        return self._whole[1]

    def _inflated(self, param: Param, extent: Extent, start: int, end: int) -> memoryview:
        if self._inflating is None or self._inflating.storage is not param.storage or self._inflating.at > start:
            _hold_against_packed(param, extent)
            self._inflating = _Inflating(param, extent)
        return self._inflating.read(self._descriptor(extent.path), start, end)

    def _filled(self, param: Param, path: str, offset: int, nbytes: int) -> memoryview:
        descriptor = self._descriptor(path)
        if len(self._buffer) < nbytes:
            self._buffer = bytearray(nbytes)
        view = memoryview(self._buffer)[:nbytes]
        fill(descriptor, path, param, offset, view)
        return view

    def _descriptor(self, path: str) -> int:
        if path not in self._files:
            if len(self._files) >= _MOST_OPEN:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[path] = _opened(path)
        return self._files[path]


class _Inflating:
    """A deflated storage, from its first byte on."""

    def __init__(self, param: Param, extent: Extent) -> None:
        self.storage = param.storage
        self.at = 0  # of the storage, the next byte
        self._param, self._extent = param, extent
        self._taken = 0  # packed bytes
        self._packed = b""
        self._inflater = zlib.decompressobj(-15)
        self._skip = extent.skip

    def read(self, descriptor: int, start: int, end: int) -> memoryview:
        self._pass_over(descriptor, self._skip + start - self.at)
        self._skip = 0
        data = self._next(descriptor, end - start)
        self.at = end
        return memoryview(data)

    def _pass_over(self, descriptor: int, nbytes: int) -> None:
        while nbytes > 0:
            nbytes -= len(self._next(descriptor, min(nbytes, _PACKED_NBYTES)))

    def _next(self, descriptor: int, nbytes: int) -> bytes:
        pieces: list[bytes] = []
        wanted = nbytes
        while wanted:
            if not self._packed:
                left = min(self._extent.nbytes - self._taken, _PACKED_NBYTES)
                path, offset = self._extent.path, self._extent.offset + self._taken
                self._packed = bytes(filled(descriptor, path, self._param, offset, left))
                self._taken += left
            try:
                piece = self._inflater.decompress(self._packed, wanted)
            except zlib.error as error:
                raise _uninflatable(self._param, error) from None
            self._packed = self._inflater.unconsumed_tail
            if not piece and (self._inflater.eof or (not self._packed and self._taken == self._extent.nbytes)):
                raise ParamctlError(
                    f"{shortened(self._param.name)}: its bytes inflate to fewer than {self._param.storage.nbytes:,}"
                )
            pieces.append(piece)
            wanted -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _uninflatable(param: Param, error: zlib.error) -> ParamctlError:
    return ParamctlError(f"{shortened(param.name)}: its bytes do not inflate: {error}")


def _hold_against_packed(param: Param, extent: Extent) -> None:
    most = param.storage.nbytes
    if most > max(_FREELY_INFLATED_NBYTES, _MOST_INFLATED * extent.nbytes):
        what = f"its {extent.nbytes:,} bytes would inflate to {most:,}"
        raise ParamctlError(f"{shortened(param.name)}: {what}")


def read_range(param: Param, path: str, offset: int, nbytes: int) -> bytearray:
    """Bytes of a file that `param` is made of.

    Raises:
        FileError: the file cannot be read, or ends before.
    """
    descriptor = _opened(path)
    try:
        return filled(descriptor, path, param, offset, nbytes)
    finally:
        os.close(descriptor)


def _opened(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe may have taken its place
    except OSError as error:
        raise FileError(path, (error.strerror or str(error)).lower()) from error


def filled(descriptor: int, path: str, param: Param, offset: int, nbytes: int) -> bytearray:
    """Bytes of an open file that `param` is made of; `path` is its name, for errors.

    Raises:
        FileError: the file cannot be read, or ends before, as one may that is being written.
    """
    data = bytearray(nbytes)
    fill(descriptor, path, param, offset, memoryview(data))
    return data


def fill(descriptor: int, path: str, param: Param, offset: int, view: memoryview) -> None:
    """As `filled`, into memory that is there."""
    while view:
        try:
            got = os.preadv(descriptor, [view[: 1 << 30]], offset)
        except OSError as error:
            raise FileError(path, (error.strerror or str(error)).lower()) from error
        if not got:
            raise FileError(path, f"it ends before the bytes of {shortened(param.name)}")
        view, offset = view[got:], offset + got


def _unpacked(param: Param, extent: Extent) -> bytes | bytearray:
    if not extent.packing:
        return read_range(param, extent.path, extent.offset, extent.nbytes)
    _hold_against_packed(param, extent)
    most = param.storage.nbytes
    raw = read_range(param, extent.path, extent.offset, extent.nbytes)
    inflater = zlib.decompressobj(-15)
    try:
        data = inflater.decompress(raw, extent.skip + most)
    except zlib.error as error:
        raise _uninflatable(param, error) from None
    if len(data) < extent.skip + param.storage.nbytes:
        raise ParamctlError(
            f"{shortened(param.name)}: its bytes inflate to {len(data) - extent.skip:,}, not {param.storage.nbytes:,}"
        )
    return data[extent.skip :]


# ----------------------------------------------------------------------------- pieces of a tensor


class _Rows(NamedTuple):
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

    def starts(self) -> Iterator[int]:
        """Where each row begins in the whole, from the first on."""
        for steps in itertools.product(*(range(0, count * by, by) for count, by in self.axes)):
            yield self.first + sum(steps)


def rows(shape: tuple[int, ...], box: tuple[tuple[int, int], ...], itemsize: int) -> _Rows:
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
    return _Rows(nbytes, first, tuple(outer))


def _assembled(param: Param, start: int, end: int) -> bytearray:
    """Bytes `start` to `end` of a row-major tensor that lies in boxes; of one that has none of them nothing is read."""
    extents, itemsize = param.storage.extents, param.dtype.block_nbytes
    shape = tuple(max(map(sum, along)) for along in zip(*(extent.box for extent in extents), strict=True))
    found: bytearray | None = None
    for extent in extents:
        placing = rows(shape, extent.box, itemsize)
        if placing.end <= start or placing.first >= end:
            continue
        low, high = 0, placing.nbytes * placing.rows
        if placing.rows == 1:  # of what lies together only the part that is wanted
            low, high = max(start - placing.first, 0), min(end - placing.first, high)
        piece = _piece(param, extent, low, high)
        if high - low == end - start and placing.rows == 1:
            return piece
        if found is None:
            found = bytearray(end - start)
        if placing.rows == 1:
            at = placing.first + low - start
            found[at : at + high - low] = piece
        elif (start, end) == (0, param.storage.nbytes):
            _scattered(placing, piece, found)
        else:
            _clipped(placing, piece, found, start)
    return bytearray(end - start) if found is None else found


def _piece(param: Param, extent: Extent, low: int, high: int) -> bytearray:
    """Bytes `low` to `high` of a box's own elements in row-major order."""
    if not extent.packing:
        if high > extent.nbytes:
            raise ParamctlError(f"{shortened(param.name)}: a piece of it is {extent.nbytes:,} bytes, too few")
        return read_range(param, extent.path, extent.offset + low, high - low)
    found, stride = importlib.import_module(_LOCATORS[extent.packing]).located(param, extent)
    sizes = tuple(size for _, size in extent.box)
    if is_dense_in_order(sizes, stride):
        return read_range(param, found.path, found.offset + low, high - low)
    raw = read_range(param, found.path, found.offset, found.nbytes)
    return _in_order(raw, sizes, stride, param.dtype.block_nbytes)[low:high]


def _in_order(raw: bytearray, sizes: tuple[int, ...], stride: tuple[int, ...], itemsize: int) -> bytearray:
    """Elements that lie by strides, in row-major order."""
    into = bytearray(math.prod(sizes) * itemsize)
    axes = zip(sizes, (by * itemsize for by in stride), (by * itemsize for by in contiguous(sizes)), strict=True)
    _copy(raw, into, 0, [*axes, (itemsize, 1, 1)])
    return into


def _copy(source: bytearray, target: bytearray, first: int, axes: list[tuple[int, int, int]]) -> None:
    """Copy from strided bytes to strided bytes that begin at `first`; what Python does is the shorter axes.

    An axis is how many, how far apart in the source and in the target; the last are bytes that lie together.
    """
    row = axes[-1][0]
    strides = [by for _, *each in axes[:-1] for by in each]
    word = math.gcd(8, row, first, *strides)
    code = _WORDS[word]
    steps = [(count, here // word, there // word) for count, here, there in axes[:-1]] + [(row // word, 1, 1)]
    steps.append(steps.pop(max((i for i, step in enumerate(steps) if step[1]), key=lambda i: steps[i][0])))
    taken = memoryview(source)[: len(source) // word * word].cast(code)
    given = memoryview(target)[: len(target) // word * word].cast(code)
    count, here, there = steps.pop()
    for a, b in zip(_starts(steps, 1), _starts(steps, 2), strict=True):
        into = first // word + b
        given[into : into + (count - 1) * there + 1 : there] = taken[a : a + (count - 1) * here + 1 : here]


def _starts(steps: list[tuple[int, int, int]], which: Literal[1, 2]) -> Iterator[int]:
    for indices in itertools.product(*(range(step[0]) for step in steps)):
        yield sum(index * step[which] for index, step in zip(indices, steps, strict=True))


def _scattered(placing: _Rows, piece: bytearray, whole: bytearray) -> None:
    """Put the rows of a box where they belong."""
    axes, here = [(placing.nbytes, 1, 1)], placing.nbytes
    for count, by in reversed(placing.axes):
        axes.insert(0, (count, here, by))
        here *= count
    _copy(piece, whole, placing.first, axes)


def _clipped(placing: _Rows, piece: bytearray, part: bytearray, start: int) -> None:
    """As `_scattered`, for a part of the whole that begins at `start`."""
    row, end = placing.nbytes, start + len(part)
    for at, target in enumerate(placing.starts()):
        low, high = max(start, target), min(end, target + row)
        if low < high:
            part[low - start : high - start] = piece[at * row + low - target : at * row + high - target]
