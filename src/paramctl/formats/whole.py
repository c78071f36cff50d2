"""Header tier: a file, or a folder, that appears whole or not at all.

It is written beside its target, under a name that the target's own gives, and locked there (`flock`): so two writers
of one target are kept apart, and what a writer left that was killed is known as litter and taken away by the next.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from paramctl.errors import FileError, ParamctlError, shortened
from paramctl.formats import writeback

STDOUT = "-"
_SUFFIX = ".paramctl"  # of what is written beside its target


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
    beside = _beside(path)
    with (
        _errors_of(target),
        _held(beside, target, lambda: _new_file(beside, 0o600 if before else 0o666)) as (descriptor,),
        os.fdopen(descriptor, "w+b", closefd=False) as file,
    ):
        with writeback.flowing(beside):
            yield file
            file.flush()
        if before:
            with contextlib.suppress(OSError):  # only root gives files away
                os.fchown(descriptor, before.st_uid, before.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
        os.fsync(descriptor)
        beside.replace(path)
    _sync_folder(path.parent)


def check(target: str) -> None:
    """Refuse a place for a file, before there is anything to write: a file without a name is made there, and is gone.

    Raises:
        FileError: none can be written there.
    """
    before = _status(target)
    if target == STDOUT or (before is not None and not stat.S_ISREG(before.st_mode)):
        return
    folder = Path(os.path.realpath(target)).parent
    if not folder.is_dir():
        raise FileError(target, f"cannot be written: there is no folder {shortened(str(Path(target).parent))}")
    with _errors_of(target), tempfile.TemporaryFile(prefix=".paramctl-", dir=folder):
        pass


@contextlib.contextmanager
def replacing_folder(
    target: str, *, nbytes: int = 0, force: bool = False, hold: Callable[[Path, Path], None] | None = None
) -> Iterator[Path]:
    """A new folder that takes the place of `target` when the block ends, and is gone if the block fails.

    Args:
        target: a path. What is there may be an empty folder; any other only with `force`, and is then replaced whole.
        nbytes: about how much it will hold, held against the free space before anything is written.
        force: whether a folder that is there may be replaced.
        hold: is told where the old folder and the new one are, once they have changed places and nobody reaches the
            old one any more by its name; what it raises puts the old one back.

    Raises:
        FileError: it cannot be written, or there is something.
    """
    path = Path(os.path.realpath(target))
    if os.path.lexists(path) and not path.is_dir():
        raise FileError(target, "a file, and not a folder")
    if _refuse_full(path, target, force=force):
        _refuse_held_fast(target)
    if not path.parent.is_dir():
        raise FileError(target, f"cannot be written: there is no folder {path.parent}")
    _check_room(path.parent, nbytes, target)
    beside = _beside(path)
    with _errors_of(target), _held(beside, target, lambda: _new_folder(beside)) as held:
        _restored(path)
        is_there = _refuse_full(path, target, force=force)  # again: one that was writing it may have ended
        with writeback.flowing(beside):
            yield beside
        _sync_below(beside)
        if is_there:
            held.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            _lock(held[-1])  # or the next writer would take it for litter, and we the next writer's for ours
            old = _exchanged(beside, path)
            try:
                if hold:
                    hold(old, path)
            except BaseException:
                _put_back(old, path, beside)
                raise
            shutil.rmtree(old)
        else:
            beside.rename(path)
    _sync_folder(path.parent)


def _refuse_full(path: Path, target: str, *, force: bool) -> bool:
    """Whether there is a folder with something in it, that `force` allows to replace."""
    with _errors_of(target):
        is_there = path.is_dir() and any(path.iterdir())
    if is_there and not force:
        raise FileError(
            target, "a folder that is not empty", hint="name a new one; convert --force replaces it as a whole"
        )
    return is_there


def _refuse_held_fast(target: str) -> None:
    """A folder that could not be taken away once the new one stands in its place, as one below it may not be changed.

    Raises:
        FileError: it names that one.
    """
    with _errors_of(target):
        device = os.stat(target).st_dev  # noqa: PTH116 - the words as they were written
    for folder, folders, names in os.walk(target, onerror=refuse_unread):
        if (folders or names) and not os.access(folder, os.W_OK | os.X_OK):
            raise FileError(folder, "cannot be written: permission denied")
        if os.stat(folder).st_dev != device:  # noqa: PTH116 - a name of os.walk
            raise FileError(folder, "on another disk, and cannot be replaced with the folder that it is in")


def refuse_unread(error: OSError) -> None:
    """What `os.walk` would pass over in silence."""
    raise FileError(error.filename, f"cannot be read: {(error.strerror or str(error)).lower()}") from error


def _beside(path: Path) -> Path:
    """Where a target is written: a name of its own, that is not too long where the target's is not."""
    return path.parent / f".{path.name[:40]}.{zlib.crc32(os.fsencode(path.name)):08x}{_SUFFIX}"


def is_beside(name: str) -> bool:
    """Whether it is the name of a file that is being written, or that was when its writer was killed."""
    return os.path.basename(name).startswith(".") and name.endswith(_SUFFIX)  # noqa: PTH119 - a name as the system has it


def _new_file(path: Path, mode: int) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)


def _new_folder(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _locked(beside: Path, target: str, create: Callable[[], int]) -> int:
    """A descriptor of what `create` made anew at `beside`, locked. What nobody has locked there is litter.

    Raises:
        FileError: another process is writing it.
    """
    while True:
        try:
            descriptor = create()
        except FileExistsError:
            _take_away(beside, target)
            continue
        except FileNotFoundError:  # made, and taken away by another before it was opened
            if not beside.parent.is_dir():
                raise
            continue
        if _lock(descriptor) and _is_at(descriptor, beside):
            return descriptor
        os.close(descriptor)


def _take_away(litter: Path, target: str) -> None:
    try:
        descriptor = os.open(litter, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not _lock(descriptor):
            raise FileError(target, "another process is writing it", hint="wait until it has ended")
        if _is_at(descriptor, litter):
            _remove(litter)
        if _is_at(descriptor, litter):
            raise FileError(target, f"{shortened(str(litter))}, of a writer that was killed, cannot be removed")
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)  # a filesystem without locks keeps nobody apart
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


def _remove(path: Path) -> None:
    """A file or a folder; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():  # a folder below it may not be changed, as one that it is a copy of
            _open_up(path)
            shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _open_up(path: Path) -> None:
    """Let folders be changed, as far as they are our own."""
    with contextlib.suppress(OSError):
        path.chmod(stat.S_IRWXU)
        for folder in path.iterdir():
            if folder.is_dir() and not folder.is_symlink():
                _open_up(folder)


def _sync_below(folder: Path) -> None:
    """Every file of a folder, and the folder itself, onto the disk."""
    for file in sorted(folder.iterdir()):
        if file.is_symlink():
            continue
        if file.is_dir():
            _sync_below(file)
            continue
        if not file.is_file():  # to open a pipe would wait for who writes into it
            continue
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    _sync_folder(folder)


def _exchanged(new: Path, path: Path) -> Path:
    """Put a new folder where the old one is, at once where the system can; where the old one is then.

    Where it cannot, the old folder steps aside first. A writer that is killed just then leaves it there, and the next
    one puts it back (`_restored`).
    """
    if _changed_places(new, path):
        return new
    aside = _aside(path)
    with _undisturbed():
        path.rename(aside)
        try:
            new.rename(path)
        except OSError:
            aside.rename(path)
            raise
    return aside


def _put_back(old: Path, path: Path, beside: Path) -> None:
    """The other way, where the old folder is at `old`; the new one is beside it again."""
    if old == beside and _changed_places(beside, path):
        return
    with _undisturbed():
        path.rename(beside)
        old.rename(path)


def _changed_places(one: Path, other: Path) -> bool:
    """Let two folders change places (`renameat2`); False where the system or the filesystem cannot."""
    import ctypes  # noqa: PLC0415 - 10 ms that only this pays

    at_fdcwd, exchange = -100, 2  # linux/fcntl.h, linux/fs.h
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), exchange) == 0)


def _aside(path: Path) -> Path:
    return _beside(path).with_suffix(".old")


def _restored(path: Path) -> None:
    """Put back what a writer that was killed left aside; where the new folder is there already, take it away.

    What another process has locked is its own: it is about to take it away.
    """
    try:
        descriptor = os.open(_aside(path), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if not _lock(descriptor):
            return
        if path.is_dir() and any(path.iterdir()):
            shutil.rmtree(_aside(path))
        else:
            _aside(path).rename(path)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals that end the process wait until the block has ended."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
def _held(beside: Path, target: str, create: Callable[[], int]) -> Iterator[list[int]]:
    """The descriptor of what `create` makes at `beside`, locked, in a list to which others may be added.

    If the block fails, what is at `beside` is removed, as far as it is one of these; so it is by a signal that ends
    the process and that nobody handles. A signal that comes while it is made waits until it is known.
    """
    held: list[int] = []
    waiting: list[int] = []

    def end(number: int, _: object) -> None:
        _remove_own(beside, held)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    handlers = _fatal_handlers()
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: waiting.append(number))
        held.append(_locked(beside, target, create))
        for number, handler in handlers.items():
            signal.signal(number, end if handler is signal.SIG_DFL else handler)
        for number in waiting:
            signal.raise_signal(number)
        yield held
    except BaseException:
        _remove_own(beside, held)
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for descriptor in held:
            os.close(descriptor)


def _fatal_handlers() -> dict[int, Any]:
    """What is done at the signals that end a process; without those whose end the program has in its own hands."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    ends = (signal.SIG_DFL, signal.default_int_handler)
    return {number: handler for number, handler in found.items() if handler in ends}


def _remove_own(path: Path, held: list[int]) -> None:
    """What is at `path`, if it is one of what is held: another process may have taken the name meanwhile."""
    if any(_is_at(descriptor, path) for descriptor in held):
        _remove(path)


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
