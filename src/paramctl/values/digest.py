r"""Values tier: a tensor's SHA-256, the same in whatever format, order or byte order its elements lie.

It is of the text `"{dtype} {shape}\n"`, the shape as `8,4`, and of the elements' bytes in row-major order, each number
little-endian; of types of less than a byte, and of blocks, the bytes as they lie.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from paramctl.checkpoint import Param
from paramctl.contents import Window
from paramctl.errors import ParamctlError
from paramctl.values import stream
from paramctl.values.lanes import codes

_PIECE_NBYTES = 1 << 18
_THREADS = 2  # hashing lets the other run; each holds a piece


def digests(params: Iterable[Param], tell: Callable[[int], None] | None = None) -> tuple[list[str | None], list[str]]:
    """The digest of each tensor as hexadecimal digits, and what is to be said of those that have none.

    Raises:
        FileError: a file cannot be read, or has become shorter.
        ParamctlError: bytes are packed, and do not unpack.
    """
    params, notes, held = tuple(params), [], []
    for place, param in enumerate(params):
        try:
            stream.hold(param)
        except ParamctlError as error:
            notes.append(f"{error.what}, so no digest")
        else:
            held.append((place, param))
    held.sort(key=lambda item: (item[1].nbytes, -item[0]))
    stop, lock = threading.Event(), threading.Lock()

    def told(nbytes: int) -> None:
        if tell is not None:
            with lock:
                tell(nbytes)

    made: dict[int, str] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for some in pool.map(lambda _: _digested(held, stop, told), range(_THREADS)):
                made |= some
        finally:  # also if interrupted: the others end at their next piece
            stop.set()
    return [made.get(place) for place in range(len(params))], notes


def _digested(queue: list[tuple[int, Param]], stop: threading.Event, tell: Callable[[int], None]) -> dict[int, str]:
    """The digests of what one thread takes from the end of the queue, the largest first."""
    made: dict[int, str] = {}
    with Window(tell) as window:
        while queue and not stop.is_set():
            try:
                place, param = queue.pop()
            except IndexError:  # another was quicker
                break
            hashed = hashlib.sha256(prefix(param))
            for piece in pieces(param, window):
                if stop.is_set():
                    return made
                hashed.update(piece)
            made[place] = hashed.hexdigest()
    return made


def prefix(param: Param) -> bytes:
    """What is hashed before the elements."""
    return f"{param.dtype.name} {','.join(map(str, param.shape))}\n".encode()


def of_elements(param: Param, window: Window) -> bytes:
    """The SHA-256 of the elements alone, whatever the shape."""
    hashed = hashlib.sha256()
    for piece in pieces(param, window):
        hashed.update(piece)
    return hashed.digest()


def pieces(param: Param, window: Window) -> Iterator[Any]:
    """The elements' bytes in row-major order, each number little-endian, a piece at a time."""
    numel = max(_PIECE_NBYTES // param.dtype.block_nbytes, 1) * param.dtype.block_numel
    return stream.pieces(param, codes(param), window, numel=numel)
