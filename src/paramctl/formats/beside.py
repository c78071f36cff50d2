"""Header tier: what lies in a folder beside a checkpoint, and stays when that is replaced in its place."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from paramctl.checkpoint import Checkpoint
from paramctl.formats import whole

_OF_DCP = ".distcp"


class Below(NamedTuple):
    """What lies below a folder, by its path from there."""

    folders: tuple[str, ...]
    files: tuple[str, ...]  # and links to folders, and whatever else is no folder


def below(folder: Path) -> Below:
    """All of it; without what another process is writing there just now, or left when it was killed.

    Raises:
        FileError: a folder that may not be read.
    """
    inner: list[str] = []
    files: list[str] = []
    for at, folders, names in os.walk(folder, onerror=whole.refuse_unread):
        within = os.path.relpath(at, folder)
        links = {name for name in folders if os.path.islink(os.path.join(at, name))}  # noqa: PTH114, PTH118
        inner += [os.path.join(within, name) for name in folders if name not in links]  # noqa: PTH118
        files += [os.path.join(within, name) for name in (*names, *links) if not whole.is_beside(name)]  # noqa: PTH118
    return Below(*(tuple(sorted(map(os.path.normpath, paths))) for paths in (inner, files)))


def keep(checkpoint: Checkpoint, before: Path, after: Path) -> None:
    """Give a new folder everything of the old one that is no part of the checkpoint, and that it has not itself.

    Files are linked where the filesystem can, so a tokenizer or an optimizer's state costs nothing.

    Raises:
        OSError: something cannot be read or written.
        FileError: a folder that may not be read.
    """
    files = {extent.path for param in checkpoint.params.values() for extent in param.storage.extents}
    replaced = {os.path.join(os.path.realpath(os.path.dirname(file)), os.path.basename(file)) for file in files}  # noqa: PTH118, PTH119, PTH120
    there = below(before)
    for name in there.folders:
        (after / name).mkdir(parents=True, exist_ok=True)
    for name in there.files:
        old, new = before / name, after / name
        is_part = str(old) in replaced or (checkpoint.format == "dcp" and old.suffix == _OF_DCP)
        if not is_part and not os.path.lexists(new):
            same(old, new)
    alike(before, after, there.folders, given)


def same(old: Path, new: Path) -> None:
    """The same file in another folder: linked, or else copied; a link stays one."""
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError:
        shutil.copy2(old, new, follow_symlinks=False)


def alike(before: Path, after: Path, folders: Iterable[str], give: Callable[[Path, Path], None]) -> None:
    """Give a new folder, and those below it, what the old ones have: last, as some may not be written then."""
    for name in (*sorted(folders, reverse=True), ""):
        give(before / name, after / name)


def given(old: Path, new: Path) -> None:
    """Give a new file or folder the owner and the mode of an old one; of a link, of what it leads to."""
    status = old.stat()
    with contextlib.suppress(OSError):  # only root gives files away
        os.chown(new, status.st_uid, status.st_gid)
    new.chmod(stat.S_IMODE(status.st_mode))
