"""Header tier: a file that appears whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from paramctl.errors import FileError, ParamctlError

STDOUT = "-"
_FICLONE = 0x40049409  # linux/fs.h
_PIECE_NBYTES = 1 << 30  # Linux moves 2 GiB in one call at most


@contextlib.contextmanager
def replacing(target: str, *, nbytes: int = 0) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `target` when the block ends, and is gone if the block fails.

    It is written beside its target, flushed to the disk and renamed. A link is followed, and mode and owner of what
    was there are kept. `-` and what is no regular file, as a pipe, are written to at the end of the block instead.

    Args:
        target: a path, or `-` for standard output.
        nbytes: about how large it will be, held against the free space before anything is written.

    Raises:
        FileError: it cannot be written.
    """
    before = _status(target)
    if target == STDOUT and sys.stdout is not None and os.isatty(1):
        raise ParamctlError("-o - would write a binary file to the terminal", hint="pipe it on, or name a file with -o")
    if target == STDOUT or (before is not None and not stat.S_ISREG(before.st_mode)):
        with _errors_of(tempfile.gettempdir()), tempfile.TemporaryFile(prefix="paramctl-") as file:
            yield file
            file.seek(0)
            _pour(file, target)
        return
    path = Path(os.path.realpath(target))
    if not path.parent.is_dir():
        raise FileError(target, f"cannot be written: there is no folder {path.parent}")
    _check_room(path.parent, nbytes, target)
    beside = path.parent / f".{path.name[:40]}.{secrets.token_hex(6)}.paramctl"
    with _gone_if_unfinished(beside), _errors_of(target):
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600 if before else 0o666)
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            if before:
                with contextlib.suppress(OSError):  # only root gives files away
                    os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
            os.fsync(descriptor)
        beside.replace(path)
    _sync_folder(path.parent)


def _status(target: str) -> os.stat_result | None:
    """What is at `target`; None if nothing is."""
    if target == STDOUT:
        return None
    with _errors_of(target):
        try:
            status = os.stat(target)  # noqa: PTH116 - the words as they were written
        except FileNotFoundError:
            return None
    if stat.S_ISDIR(status.st_mode):
        raise FileError(target, "a folder, and not a file")
    return status


@contextlib.contextmanager
def _gone_if_unfinished(path: Path) -> Iterator[None]:
    """If the block fails, `path` is removed; so it is by a signal that ends the process and that nobody handles."""

    def end(number: int, _: object) -> None:
        path.unlink(missing_ok=True)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    fatal = (signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
    taken = [number for number in fatal if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _errors_of(target: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise FileError(target, f"cannot be written: {(error.strerror or str(error)).lower()}") from error


def _pour(file: IO[bytes], target: str) -> None:
    if target == STDOUT:
        with _errors_of("standard output"):
            sys.stdout.flush()
            shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
            sys.stdout.buffer.flush()
        return
    with _errors_of(target), open(target, "wb") as out:  # noqa: PTH123 - /dev/fd/N too
        shutil.copyfileobj(file, out, 1 << 20)


def _check_room(folder: Path, nbytes: int, target: str) -> None:
    with _errors_of(target):
        free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise FileError(target, f"needs {nbytes:,} bytes, and {free:,} are free there")


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def copy(source: Path, into: IO[bytes]) -> None:
    """All bytes of `source`: shared where the filesystem can, else copied inside the kernel, else through memory.

    Raises:
        FileError: `source` cannot be read.
    """
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise FileError(source, f"cannot be read: {(error.strerror or str(error)).lower()}") from error
    try:
        if not _shared(descriptor, into.fileno()):
            _copied(descriptor, into.fileno(), os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def _shared(source: int, into: int) -> bool:
    try:
        fcntl.ioctl(into, _FICLONE, source)
    except OSError:
        return False
    return True


def _copied(source: int, into: int, nbytes: int) -> None:
    """By offsets, so that neither descriptor's position counts: /dev/fd/N may be shared with another process."""
    at = 0
    with contextlib.suppress(OSError, AttributeError):  # not between these filesystems, or not on this system
        while at < nbytes and (done := os.copy_file_range(source, into, min(nbytes - at, _PIECE_NBYTES), at, at)):
            at += done
    while at < nbytes and (piece := os.pread(source, 1 << 20, at)):
        write_at(into, at, piece)
        at += len(piece)


def write_at(descriptor: int, offset: int, data: Any) -> None:
    """All of `data` at `offset`."""
    view = memoryview(data)
    while view:
        done = os.pwrite(descriptor, view[:_PIECE_NBYTES], offset)
        view, offset = view[done:], offset + done
