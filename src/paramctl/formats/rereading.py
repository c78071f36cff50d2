"""Header tier: what was written, read again and held against what it was made of, on two cores."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from paramctl.checkpoint import Param
from paramctl.contents import Window
from paramctl.formats import pour
from paramctl.formats.pour import Pourer
from paramctl.storages import Blob

Pair = tuple[str, Blob, Param]  # a name, what was to be written, and where it was


def first_other(pairs: Iterable[Pair], pourer: Pourer) -> str | None:
    """The name of something that was written otherwise than it was to be; None if nothing was.

    What went through memory is held against the checksum that it had there, and what the kernel copied against its
    source.

    Args:
        pairs: what lies in order where it was written.
        pourer: what wrote it.

    Raises:
        FileError: something cannot be read.
    """
    left = deque(pairs)
    others: list[str] = []

    def compare(source: Window) -> None:
        with Window() as again, Window(source.tell) as alone:
            while not others:
                try:
                    name, blob, param = left.popleft()
                except IndexError:
                    return
                crc = pourer.poured(blob)
                if not (_is_written(blob, param, source, again) if crc is None else _has(crc, param, alone)):
                    others.append(name)

    with Window(pourer.window.tell) as second, ThreadPoolExecutor(1) as pool:
        rest = pool.submit(compare, second)
        try:
            compare(pourer.window)
        finally:
            left.clear()  # where this one failed, the other has nothing more to do
        rest.result()
    return others[0] if others else None


def _is_written(blob: Blob, param: Param, window: Window, again: Window) -> bool:
    """Whether a tensor that lies in order has the elements of a blob, bit for bit."""
    if param.storage.byteorder == "big":
        return are_equal(blob, Blob(param, param.dtype), window, again)
    at, end = param.span
    for piece in pour.pieces(blob, window):
        if _comparable(piece) != again.read(param, at, min(at + len(piece), end)):
            return False
        at += len(piece)
    return at == end


def _has(crc: int, param: Param, again: Window) -> bool:
    """Whether the elements of a tensor have this CRC-32."""
    found = 0
    for piece in pour.pieces(Blob(param, param.dtype), again):
        found = zlib.crc32(piece, found)
    return found == crc


def are_equal(one: Blob, other: Blob, window: Window, again: Window) -> bool:
    """Whether two tensors of one shape and dtype have the same elements, bit for bit."""
    theirs = pour.pieces(other, again)
    held = bytearray()
    for piece in pour.pieces(one, window):
        while len(held) < len(piece):
            held += next(theirs, b"")
        if held[: len(piece)] != piece:
            return False
        del held[: len(piece)]
    return True


def _comparable(piece: memoryview) -> bytearray:
    """The same bytes as what compares by memcmp, and not element by element; not copied where they are all of one."""
    whole = piece.obj
    return whole if type(whole) is bytearray and len(whole) == piece.nbytes else bytearray(piece)
