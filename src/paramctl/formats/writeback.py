"""Header tier: a file on its way to the disk while it is still written, so that the sync at its end finds little to do.

Source: sync_file_range(2).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_LARGE_NBYTES = 1 << 25  # a smaller file is synced as quickly at its end
_SECONDS = 0.02  # between two looks
_WRITE = 2  # SYNC_FILE_RANGE_WRITE: begin, and do not wait


@contextlib.contextmanager
def flowing(path: Path, *, large: int = _LARGE_NBYTES) -> Iterator[None]:
    """While the block writes a file, or files into a folder, what it has written goes to the disk.

    The writing is not slowed, but for what the disk and the processor have in common, and nothing is promised: only a
    sync says that all is there. Where the system has no such call, nothing is done.

    Args:
        path: the file or the folder.
        large: the size in bytes of a file from which on it is done.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_begin_again, args=(path, large, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _begin_again(path: Path, large: int, ended: threading.Event) -> None:
    begin: Callable[[Path], bool] | None = None
    begun: dict[Path, int] = {}  # when what was begun was last written
    while not ended.wait(_SECONDS):
        with contextlib.suppress(OSError):  # a file that is gone again
            for file in path.iterdir() if path.is_dir() else (path,):
                status = file.stat()
                if status.st_size < large or begun.get(file) == status.st_mtime_ns:
                    continue
                begin = begin or beginning()
                if not begin(file):
                    return
                begun[file] = status.st_mtime_ns


def beginning() -> Callable[[Path], bool]:
    """What begins to write back all of a file; False where that cannot be."""
    import ctypes  # noqa: PLC0415 - 10 ms that only a large file pays

    try:
        call: Any = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return lambda _: False
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

    def begin(path: Path) -> bool:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return bool(call(descriptor, 0, 0, _WRITE) == 0)
        finally:
            os.close(descriptor)

    return begin
