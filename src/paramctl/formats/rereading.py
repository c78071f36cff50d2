"""Header tier: what was written, read again and held against what it was made of, on two cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from paramctl.checkpoint import Param
from paramctl.contents import Window
from paramctl.formats import pour
from paramctl.storages import Blob

Pair = tuple[str, Blob, Param]  # a name, what was to be written, and where it was


def first_other(pairs: Iterable[Pair], window: Window) -> str | None:
    """The name of something that was written otherwise than it was to be; None if nothing was.

    Args:
        pairs: what lies in order where it was written.
        window: through which the sources are read.

    Raises:
        FileError: something cannot be read.
    """
    left = deque(pairs)
    others: list[str] = []

    def compare(source: Window) -> None:
        with Window() as again:
            while not others:
                try:
                    name, blob, param = left.popleft()
                except IndexError:
                    return
                if not _is_written(blob, param, source, again):
                    others.append(name)

    with Window(window.tell) as second, ThreadPoolExecutor(1) as pool:
        rest = pool.submit(compare, second)
        try:
            compare(window)
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
