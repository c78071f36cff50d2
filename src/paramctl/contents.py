"""Header tier: the bytes of a storage, from wherever they lie, and no others."""

from __future__ import annotations

import itertools
import math
import os
import zlib
from collections.abc import Iterator
from typing import Any

from paramctl.checkpoint import Extent, Param
from paramctl.errors import FileError, ParamctlError, shortened

_MOST_INFLATED_NBYTES = 1 << 34


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
    if len(storage.extents) == 1 and not first.packing and not first.box:
        return read_range(param, first.path, first.offset + start, end - start)
    whole = bytearray(storage.nbytes)
    at = 0
    for extent in storage.extents:
        piece = _unpacked(param, extent)
        if extent.box:
            _place(param, extent, piece, whole)
        else:
            whole[at : at + len(piece)] = piece
            at += len(piece)
    if len(whole) != storage.nbytes:
        raise ParamctlError(f"{shortened(param.name)}: its pieces take {len(whole):,} bytes, not {storage.nbytes:,}")
    return whole if (start, end) == (0, storage.nbytes) else whole[start:end]


def read_range(param: Param, path: str, offset: int, nbytes: int) -> bytearray:
    """Bytes of a file that `param` is made of.

    Raises:
        FileError: the file cannot be read, or ends before.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return filled(descriptor, param, offset, nbytes)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise FileError(path, (error.strerror or str(error)).lower()) from error


def filled(descriptor: int, param: Param, offset: int, nbytes: int) -> bytearray:
    """Bytes of an open file that `param` is made of.

    Raises:
        ParamctlError: the file ends before.
    """
    data = bytearray(nbytes)
    view = memoryview(data)
    while view:
        got = os.preadv(descriptor, [view[: 1 << 30]], offset)
        if not got:
            raise ParamctlError(f"{shortened(param.name)}: the file ends before its bytes")
        view, offset = view[got:], offset + got
    return data


def _unpacked(param: Param, extent: Extent) -> bytes | bytearray:
    raw = read_range(param, extent.path, extent.offset, extent.nbytes)
    if not extent.packing:
        return raw
    most = min(param.storage.nbytes, _MOST_INFLATED_NBYTES)
    inflater = zlib.decompressobj(-15)
    try:
        data = inflater.decompress(raw, extent.skip + most)
    except zlib.error as error:
        raise ParamctlError(f"{shortened(param.name)}: its bytes do not inflate: {error}") from None
    if len(data) < extent.skip + param.storage.nbytes:
        raise ParamctlError(
            f"{shortened(param.name)}: its bytes inflate to {len(data) - extent.skip:,}, not {param.storage.nbytes:,}"
        )
    return data[extent.skip :]


def _place(param: Param, extent: Extent, piece: bytes | bytearray, whole: bytearray) -> None:
    """Copy a piece of a row-major tensor to where it belongs, a row at a time."""
    itemsize = param.dtype.block_nbytes
    sizes = [size for _, size in extent.box]
    if len(piece) < math.prod(sizes) * itemsize:
        raise ParamctlError(f"{shortened(param.name)}: a piece of it is {len(piece):,} bytes, too few")
    row = (sizes[-1] if sizes else 1) * itemsize
    for at, target in enumerate(_row_starts(param.shape, extent.box)):
        whole[target * itemsize : target * itemsize + row] = piece[at * row : (at + 1) * row]


def _row_starts(shape: tuple[int, ...], box: tuple[tuple[int, int], ...]) -> Iterator[int]:
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    outer = [range(start, start + size) for start, size in box[:-1]]
    last = box[-1][0] if box else 0
    for indices in itertools.product(*outer):
        yield last + sum(index * stride for index, stride in zip(indices, strides, strict=False))
