"""Header tier: the bytes of a storage, from wherever they lie, and no others."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from typing import Any, Self

from paramctl.boxes import LOCATORS, Boxes, Fetch
from paramctl.checkpoint import Extent, Param, Storage
from paramctl.errors import FileError, ParamctlError, shortened

_FREELY_INFLATED_NBYTES = 1 << 27
_MOST_INFLATED = 64  # times what is stored, beyond that: numbers shrink to a half, and zeros to a thousandth
_PACKED_NBYTES = 1 << 18  # that are inflated at once
_MOST_OPEN = 32  # files of one window


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
    if first.box or first.packing in LOCATORS:
        return Boxes(param, read_range).read(start, end)
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

    def __init__(self, tell: Callable[[int], None] | None = None, *, files: int = _MOST_OPEN) -> None:
        self.tell: Callable[[int], None] = tell or to_nobody  # how many bytes were read, each time
        self._most_open = files
        self._buffer = bytearray()
        self._files: dict[str, int] = {}
        self._inflating: _Inflating | None = None
        self._whole: tuple[Storage, memoryview] | None = None
        self._boxes: Boxes | None = None

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
        self.tell(end - start)
        if storage.data is not None:
            return storage.data[start:end]
        extents = storage.extents
        if storage.why_unreadable or not extents or start == end:
            return memoryview(read(param, start, end))
        first = extents[0]
        if first.box or first.packing in LOCATORS:
            return self._assembled(param, start, end)
        if len(extents) > 1:
            return self._held(param)[start:end]
        if first.packing:
            return self._inflated(param, first, start, end)
        return self._filled(param, first.path, first.offset + start, end - start)

    def _held(self, param: Param) -> memoryview:
        if self._whole is None or self._whole[0] is not param.storage:
            self._whole = (param.storage, memoryview(read(param, 0, param.storage.nbytes)))
        return self._whole[1]

    def _assembled(self, param: Param, start: int, end: int) -> memoryview:
        if self._boxes is None or self._boxes.storage is not param.storage:
            self._boxes = Boxes(param, self._fetched)
        return memoryview(self._boxes.read(start, end))

    def _inflated(self, param: Param, extent: Extent, start: int, end: int) -> memoryview:
        inflating, self._inflating = self._inflating, None  # one that has failed is not asked again
        if inflating is None or inflating.storage is not param.storage or inflating.at > start:
            _hold_against_packed(param, extent)
            inflating = _Inflating(param, extent, self._fetched)
        data = inflating.read(start, end)
        self._inflating = inflating
        return data

    def _fetched(self, param: Param, path: str, offset: int, nbytes: int) -> bytearray:
        data = bytearray(nbytes)
        fill(self.descriptor(path), path, param, offset, memoryview(data))
        return data

    def _filled(self, param: Param, path: str, offset: int, nbytes: int) -> memoryview:
        if len(self._buffer) < nbytes:
            self._buffer = bytearray(nbytes)
        view = memoryview(self._buffer)[:nbytes]
        fill(self.descriptor(path), path, param, offset, view)
        return view

    def descriptor(self, path: str) -> int:
        """An open file, until the window is closed or many others were opened.

        Raises:
            FileError: it cannot be opened.
        """
        if path not in self._files:
            if len(self._files) >= self._most_open:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[path] = _opened(path)
        return self._files[path]


def to_nobody(_: int) -> None:
    """Who reads is not told of."""


class _Inflating:
    """A deflated storage, from its first byte on."""

    def __init__(self, param: Param, extent: Extent, fetch: Fetch) -> None:
        self.storage = param.storage
        self.at = 0  # of the storage, the next byte
        self._param, self._extent, self._fetch = param, extent, fetch
        self._taken = 0  # packed bytes
        self._packed = b""
        self._inflater = zlib.decompressobj(-15)
        self._skip = extent.skip

    def read(self, start: int, end: int) -> memoryview:
        self._pass_over(self._skip + start - self.at)
        self._skip = 0
        data = self._next(end - start)
        self.at = end
        return memoryview(data)

    def _pass_over(self, nbytes: int) -> None:
        while nbytes > 0:
            nbytes -= len(self._next(min(nbytes, _PACKED_NBYTES)))

    def _next(self, nbytes: int) -> bytes:
        pieces: list[bytes] = []
        wanted = nbytes
        while wanted:
            if not self._packed:
                left = min(self._extent.nbytes - self._taken, _PACKED_NBYTES)
                offset = self._extent.offset + self._taken
                self._packed = bytes(self._fetch(self._param, self._extent.path, offset, left))
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
