"""Header tier: a file on its way to the disk while it is still written, so that the sync at its end finds little to do.

Source: sync_file_range(2).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

_LARGE_NBYTES = 1 << 25  # a smaller file is synced as quickly at its end
_SECONDS = 0.02  # between two looks
_WRITE = 2  # SYNC_FILE_RANGE_WRITE: begin, and do not wait


@contextlib.contextmanager
def flowing(descriptor: int, *, large: int = _LARGE_NBYTES) -> Iterator[None]:
    """While the block writes into a file, what it has written goes to the disk.

    The writing is not slowed, but for what the disk and the processor have in common, and nothing is promised: only a
    sync says that all is there. Where the system has no such call, nothing is done.

    Args:
        descriptor: the file; open until the block has ended.
        large: the size in bytes from which on it is done.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_begin_again, args=(descriptor, large, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _begin_again(descriptor: int, large: int, ended: threading.Event) -> None:
    begin: Callable[[int], bool] | None = None
    while not ended.wait(_SECONDS):
        if os.fstat(descriptor).st_size < large:
            continue
        begin = begin or _beginning()
        if not begin(descriptor):
            return


def _beginning() -> Callable[[int], bool]:
    """What begins to write back all of a file; False where that cannot be."""
    import ctypes  # noqa: PLC0415 - 10 ms that only a large file pays

    try:
        call: Any = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return lambda _: False
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return lambda descriptor: call(descriptor, 0, 0, _WRITE) == 0
