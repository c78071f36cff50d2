"""Header tier: a plan carried out in a model that is a folder: shards, or what `torch.distributed.checkpoint` writes.

The new folder has all that the old one has, and differs from it in the files of what was changed, and in them as a
file does that is edited. In its place, files in which nothing changes are linked and not copied, and a change of one
file replaces that one alone. A file that is a link becomes one of its own: what the link leads to, in a cache perhaps,
stays as it was.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import IO

from paramctl import formats
from paramctl.checkpoint import Checkpoint
from paramctl.errors import FileError, ParamctlError
from paramctl.formats import beside, whole
from paramctl.formats.editing import Editing, carried_out, editing, target
from paramctl.plan import Plan
from paramctl.source import Reader, Source


def write(checkpoint: Checkpoint, plan: Plan, out: str) -> Plan:
    """Carry out the plan into `out`, a folder that is new or empty, or the model's own.

    Returns:
        The plan with what each change did.

    Raises:
        FileError: it cannot be written; what was there is as it was.
        ParamctlError: `out` is standard output.
    """
    if out == whole.STDOUT:
        raise ParamctlError("a folder cannot be written to standard output", hint="name one")
    source = checkpoint.source
    path = source.path or Path()
    folder = path if source.kind == "folder" else path.parent
    in_place = out == source.name or (Path(out).exists() and Path(out).samefile(folder))
    changed = _changed(plan)
    if in_place and len(changed) == 1 and not os.path.islink(changed[0]):  # noqa: PTH114 - names are strings here
        return _write_file(checkpoint, plan, Path(changed[0]))
    there = _files(folder)
    nbytes = sum(map(whole.room, changed if in_place else [folder / name for name in there]))
    place = str(folder) if in_place else out
    with whole.replacing_folder(place, nbytes=nbytes, force=in_place) as new, contextlib.ExitStack() as held:
        if in_place:
            shutil.copymode(folder, new)
        copies: dict[str, Editing] = {}

        def opened(path: str) -> Editing:
            name = os.path.relpath(path, folder)
            if name not in copies:
                file = held.enter_context(_within(new, name).open("x+b"))
                if in_place:
                    shutil.copymode(path, new / name)
                copies[name] = held.enter_context(_editing(checkpoint, path, file, path if in_place else whole.STDOUT))
            return copies[name]

        done = carried_out(checkpoint, plan, opened)
        for name in there:
            if name not in copies:
                (beside.same if in_place else _copy)(folder / name, _within(new, name))
    return done


def _write_file(checkpoint: Checkpoint, plan: Plan, path: Path) -> Plan:
    with (
        whole.replacing(str(path), nbytes=whole.room(path)) as file,
        _editing(checkpoint, str(path), file, str(path)) as copy,
    ):
        return carried_out(checkpoint, plan, lambda _: copy)


def _changed(plan: Plan) -> list[str]:
    """The files in which something is changed."""
    params = [target(change) for change in plan.changes if change.compute]
    return sorted({extent.path for param in params if param.numel for extent in param.storage.extents})


def _editing(
    checkpoint: Checkpoint, name: str, file: IO[bytes], old: str
) -> contextlib.AbstractContextManager[Editing]:
    """A file of the folder, as one of its own format; those of torch.distributed.checkpoint are of none."""
    source = Source(name, "file", Path(name))
    if checkpoint.format in formats.FOLDERS:
        return editing(source, file, "", target=old)
    with Reader(source) as reader:
        module = formats.of(reader)
    return editing(source, file, module.NAME if module else "", target=old)


def _files(folder: Path) -> list[str]:
    """Everything below a folder that is no folder itself, by its path from there."""
    found: list[str] = []
    for at, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(at, name))]  # noqa: PTH114, PTH118
        found += [os.path.relpath(os.path.join(at, name), folder) for name in (*names, *links)]  # noqa: PTH118
    return sorted(found)


def _within(new: Path, name: str) -> Path:
    """A place in the new folder; the folders that it lies in are made."""
    there = new / name
    there.parent.mkdir(parents=True, exist_ok=True)
    return there


def _copy(old: Path, new: Path) -> None:
    """A file of its own; of a link what it leads to. A folder that a link leads to is linked again."""
    if old.is_dir():
        new.symlink_to(old.resolve(), target_is_directory=True)
    elif old.is_file():
        with new.open("x+b") as file:
            whole.copy(old, file)
    elif old.is_symlink():
        new.symlink_to(old.readlink())
    else:
        raise FileError(str(old), "no file and no folder, and cannot be copied")
