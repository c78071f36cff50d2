"""Header tier: what lies in a folder beside a checkpoint, and stays when that is replaced in its place."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from paramctl.checkpoint import Checkpoint

_OF_DCP = ".distcp"


def keep(checkpoint: Checkpoint, before: Path, after: Path) -> None:
    """Give a new folder everything of the old one that is no part of the checkpoint, and that it has not itself.

    Files are linked where the filesystem can, so a tokenizer or an optimizer's state costs nothing.

    Raises:
        OSError: something cannot be read or written.
    """
    shutil.copymode(before, after)
    files = {extent.path for param in checkpoint.params.values() for extent in param.storage.extents}
    replaced = {os.path.join(os.path.realpath(os.path.dirname(file)), os.path.basename(file)) for file in files}  # noqa: PTH118, PTH119, PTH120
    for folder, folders, names in os.walk(before):
        there = after / Path(folder).relative_to(before)
        for name in (*names, *(name for name in folders if os.path.islink(os.path.join(folder, name)))):  # noqa: PTH114, PTH118
            old, new = Path(folder) / name, there / name
            is_part = str(old) in replaced or (checkpoint.format == "dcp" and old.suffix == _OF_DCP)
            if not is_part and not os.path.lexists(new):
                there.mkdir(parents=True, exist_ok=True)
                same(old, new)


def same(old: Path, new: Path) -> None:
    """The same file in another folder: linked, or else copied; a link stays one."""
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError:
        shutil.copy2(old, new, follow_symlinks=False)
