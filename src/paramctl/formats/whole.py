"""Header tier: a file that appears whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from paramctl.errors import FileError, ParamctlError

STDOUT = "-"
_FICLONE = 0x40049409  # linux/fs.h


@contextlib.contextmanager
def replacing(target: str, *, nbytes: int = 0) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `target` when the block ends, and is gone if the block fails.

    It is written beside its target, flushed to the disk and renamed. A link is followed, and the mode of what was
    there is kept. `-` and what is no regular file, as a pipe, are written to at the end of the block instead.

    Args:
        target: a path, or `-` for standard output.
        nbytes: about how large it will be, held against the free space before anything is written.

    Raises:
        FileError: it cannot be written.
    """
    path = Path(target)
    if target == STDOUT and sys.stdout is not None and os.isatty(1):
        raise ParamctlError("-o - would write a binary file to the terminal", hint="pipe it on, or name a file with -o")
    if target == STDOUT or (path.exists() and not path.is_file() and not path.is_dir()):
        with _spool(target) as file:
            yield file
            file.seek(0)
            _pour(file, target)
        return
    with _errors_of(target):
        path = path.resolve()
        if path.is_dir():
            raise FileError(target, "a folder, and not a file")
        _check_room(path.parent, nbytes, target)
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_umask()
        beside = path.parent / f".{path.name[:100]}.{os.urandom(6).hex()}.paramctl"
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with _errors_of(target), os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        with _errors_of(target):
            beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def _errors_of(target: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise FileError(target, f"cannot be written: {(error.strerror or str(error)).lower()}") from error


def _spool(target: str) -> IO[bytes]:
    with _errors_of(target):
        return tempfile.TemporaryFile(prefix="paramctl-")


def _pour(file: IO[bytes], target: str) -> None:
    if target == STDOUT:
        sys.stdout.flush()
        shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
        sys.stdout.buffer.flush()
        return
    with _errors_of(target), open(target, "wb") as out:  # noqa: PTH123
        shutil.copyfileobj(file, out, 1 << 20)


def _check_room(folder: Path, nbytes: int, target: str) -> None:
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise FileError(target, f"needs {nbytes:,} bytes, and {free:,} are free there")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def copy(source: Path, into: IO[bytes]) -> None:
    """All bytes of `source`: shared where the filesystem can, else copied inside the kernel, else through memory."""
    with open(source, "rb") as file:  # noqa: PTH123 - /dev/fd/N too
        with contextlib.suppress(OSError):
            fcntl.ioctl(into.fileno(), _FICLONE, file.fileno())
            return
        left = os.fstat(file.fileno()).st_size
        try:
            while left and (done := os.copy_file_range(file.fileno(), into.fileno(), left)):
                left -= done
        except (OSError, AttributeError):
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            into.seek(0)
            into.truncate()
            shutil.copyfileobj(file, into, 1 << 20)


def patch(file: IO[bytes], offset: int, data: Any) -> None:
    """Put `data` at `offset`, past any buffer."""
    view = memoryview(data)
    while view:
        done = os.pwrite(file.fileno(), view[: 1 << 30], offset)
        view, offset = view[done:], offset + done
