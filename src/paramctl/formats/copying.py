"""Header tier: bytes of one file into another: shared, copied by the kernel, or through memory; beside other work."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from paramctl.contents import to_nobody
from paramctl.errors import FileError
from paramctl.formats.whole import STDOUT

_FICLONE = 0x40049409  # linux/fs.h
_PIECE_NBYTES = 1 << 30  # Linux moves 2 GiB in one call at most
_STEP_NBYTES = 1 << 24  # that are copied before it is asked whether to go on
_NO_FURTHER = -1
_LOOK_SECONDS = 0.1  # how often it is told how far a copy is

Tell = Callable[[int], None]


def room(path: str | Path) -> int:
    """How many bytes a copy of a file takes on a disk, where holes stay holes; 0 of what is none, or is not there."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a name or a path
    except OSError:
        return 0
    return min(status.st_size, 512 * status.st_blocks) if stat.S_ISREG(status.st_mode) else 0


def copy(source: Path, into: IO[bytes], *, tell: Tell = to_nobody) -> None:
    """All bytes of `source`: shared where the filesystem can, else copied inside the kernel, else through memory.

    Holes stay holes. `tell` is told how many bytes were copied, now and then.

    Raises:
        FileError: `source` cannot be read.
    """
    with copying(source, into, tell=tell):
        pass


@contextlib.contextmanager
def copying(source: Path, into: IO[bytes], *, target: str = STDOUT, tell: Tell = to_nobody) -> Iterator[Copying]:
    """While the block runs, all bytes of `source` are copied, as `copy` does; they are there when it ends.

    A block that fails ends the copying. What `target` holds, whose place the copy is to take, leaves memory as the copy
    comes: so it finds room in the pages that the old file leaves, and one of gigabytes pushes nothing else out.

    Raises:
        FileError: `source` cannot be read.
    """
    with contextlib.ExitStack() as files:
        try:
            descriptor = files.enter_context(_reading(source))
        except OSError as error:
            raise FileError(source, f"cannot be read: {(error.strerror or str(error)).lower()}") from error
        replaced = None
        if target != STDOUT:
            with contextlib.suppress(OSError):  # there is none, or it may not be read
                replaced = files.enter_context(_reading(Path(target)))
        made = Copying(source, descriptor, into.fileno(), replaced, files, tell)
        try:
            yield made
            made.wait()
        finally:
            made.end()


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class Copying:
    """A file that is copied beside what else is done. `files` are closed once it is; who waits tells how far it is."""

    def __init__(
        self, name: Path, source: int, into: int, replaced: int | None, files: contextlib.ExitStack, tell: Tell
    ) -> None:
        self._name, self._source, self._into = name, source, into
        self._files, self._tell = files, tell
        self._done = 0  # bytes
        self._told = 0
        self._steps: SimpleQueue[int] = SimpleQueue()  # how far it is
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []
        if not _shared(source, into):
            self._begin(self._copy)
            if replaced is not None:
                self._begin(lambda: _forget_behind(replaced, self._steps))

    def _begin(self, run: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    @property
    def readable(self) -> int:
        """A descriptor of a file that holds all bytes: the source, or once there is one, the copy."""
        return self._source if self._threads else self._into

    def wait(self) -> None:
        """Until all is copied.

        Raises:
            OSError: it cannot be.
            FileError: it was cut short meanwhile.
        """
        while self._threads:
            self._threads[-1].join(_LOOK_SECONDS)
            if not self._threads[-1].is_alive():
                self._threads.pop()
            done = self._done
            self._tell(done - self._told)
            self._told = done
        self._files.close()
        if self._error:
            raise self._error

    def end(self) -> None:
        """Copy no more."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _copy(self) -> None:
        try:
            self._copy_all()
        except BaseException as error:  # noqa: BLE001 - of a thread: raised to who waits
            self._error = error
        finally:
            self._steps.put(_NO_FURTHER)

    def _copy_all(self) -> None:
        nbytes = os.fstat(self._source).st_size
        for begin, end in _written_ranges(self._source, nbytes):
            for at in range(begin, end, _STEP_NBYTES):
                if self._ended.is_set():
                    return
                step = min(_STEP_NBYTES, end - at)
                if copy_range(self._source, self._into, nbytes=step, begin=at, at=at) < step:
                    raise FileError(self._name, "the file became shorter while it was read")
                self._done += step
                self._steps.put(at + step)
        os.ftruncate(self._into, nbytes)


def _forget_behind(descriptor: int, steps: SimpleQueue[int]) -> None:
    """Let what a file holds up to each step leave memory; not what a process has mapped, or what is unwritten yet."""
    for nbytes in iter(steps.get, _NO_FURTHER):
        with contextlib.suppress(OSError, AttributeError):  # a pipe, or a system without the call
            os.posix_fadvise(descriptor, 0, nbytes, os.POSIX_FADV_DONTNEED)


def _shared(source: int, into: int) -> bool:
    try:
        fcntl.ioctl(into, _FICLONE, source)
    except OSError:
        return False
    return True


def _written_ranges(descriptor: int, nbytes: int) -> Iterator[tuple[int, int]]:
    """Where a file is no hole."""
    end = 0
    while end < nbytes:
        try:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # holes are not known here
                yield end, nbytes
            return
        yield begin, end


def copy_range(source: int, into: int, *, nbytes: int, begin: int = 0, at: int = 0) -> int:
    """Copy `nbytes` from `begin` to `at` in another file, inside the kernel where it can; how many there were.

    By offsets, so that neither descriptor's position counts: /dev/fd/N may be shared with another process.
    """
    done = copied_by_kernel(source, into, nbytes=nbytes, begin=begin, at=at)
    while done < nbytes and (piece := os.pread(source, min(nbytes - done, 1 << 20), begin + done)):
        write_at(into, at + done, piece)
        done += len(piece)
    return done


def copied_by_kernel(source: int, into: int, *, nbytes: int, begin: int = 0, at: int = 0) -> int:
    """`copy_range` as far as the kernel copies, and no further."""
    done = 0
    with contextlib.suppress(OSError, AttributeError):  # not between these filesystems, or not on this system
        while done < nbytes and (
            step := os.copy_file_range(source, into, min(nbytes - done, _PIECE_NBYTES), begin + done, at + done)
        ):
            done += step
    return done


def write_at(descriptor: int, offset: int, data: Any) -> None:
    """All of `data` at `offset`."""
    view = memoryview(data)
    while view:
        done = os.pwrite(descriptor, view[:_PIECE_NBYTES], offset)
        view, offset = view[done:], offset + done
