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
from typing import IO, NamedTuple

from paramctl import formats
from paramctl.checkpoint import Checkpoint
from paramctl.errors import FileError, ParamctlError
from paramctl.formats import beside, copying, whole
from paramctl.formats.editing import Editing, carried_out, editing, target
from paramctl.plan import Plan
from paramctl.source import Reader, Source


class _Where(NamedTuple):
    """Where a folder is written to, and what of it has to be copied."""

    folder: Path
    in_place: bool
    changed: list[str]  # files in which something changes, as the checkpoint names them
    there: list[str]  # all files, by their paths in the folder

    @property
    def alone(self) -> str:
        """The only file that has to be written."""
        is_one = self.in_place and len(self.changed) == 1 and not os.path.islink(self.changed[0])  # noqa: PTH114 - a name
        return self.changed[0] if is_one else ""

    @property
    def nbytes(self) -> int:
        files = self.changed if self.in_place else [os.path.join(self.folder, name) for name in self.there]  # noqa: PTH118
        return sum(map(copying.room, files))


def _where(checkpoint: Checkpoint, plan: Plan, out: str) -> _Where:
    source = checkpoint.source
    path = source.path or Path()
    folder = path if source.kind == "folder" else path.parent
    in_place = out == source.name or (Path(out).exists() and Path(out).samefile(folder))
    return _Where(folder, in_place, _changed(plan), _files(folder))


def nbytes(checkpoint: Checkpoint, plan: Plan, out: str) -> int:
    """How many bytes `write` copies."""
    return _where(checkpoint, plan, out).nbytes


def write(checkpoint: Checkpoint, plan: Plan, out: str, tell: copying.Tell) -> Plan:
    """Carry out the plan into `out`, a folder that is new or empty, or the model's own.

    Args:
        checkpoint: that is changed.
        plan: its changes.
        out: the folder.
        tell: is told how many bytes were copied, each time.

    Returns:
        The plan with what each change did.

    Raises:
        FileError: it cannot be written; what was there is as it was.
        ParamctlError: `out` is standard output.
    """
    if out == whole.STDOUT:
        raise ParamctlError("a folder cannot be written to standard output", hint="name one")
    where = _where(checkpoint, plan, out)
    if where.alone:
        return _write_file(checkpoint, plan, Path(where.alone), tell)
    folder, in_place = where.folder, where.in_place
    place = str(folder) if in_place else out
    with whole.replacing_folder(place, nbytes=where.nbytes, force=in_place) as new, contextlib.ExitStack() as held:
        if in_place:
            shutil.copymode(folder, new)
        copies: dict[str, Editing] = {}

        def opened(path: str) -> Editing:
            name = os.path.relpath(path, folder)
            if name not in copies:
                file = held.enter_context(_within(new, name).open("x+b"))
                if in_place:
                    shutil.copymode(path, new / name)
                copies[name] = held.enter_context(
                    _editing(checkpoint, path, file, path if in_place else whole.STDOUT, tell)
                )
            return copies[name]

        done = carried_out(checkpoint, plan, opened)
        for name in where.there:
            if name not in copies and in_place:
                beside.same(folder / name, _within(new, name))
            elif name not in copies:
                _copy(folder / name, _within(new, name), tell)
    return done


def _write_file(checkpoint: Checkpoint, plan: Plan, path: Path, tell: copying.Tell) -> Plan:
    with (
        whole.replacing(str(path), nbytes=copying.room(path)) as file,
        _editing(checkpoint, str(path), file, str(path), tell) as copy,
    ):
        return carried_out(checkpoint, plan, lambda _: copy)


def _changed(plan: Plan) -> list[str]:
    """The files in which something is changed."""
    params = [target(change) for change in plan.changes if change.compute]
    return sorted({extent.path for param in params if param.numel for extent in param.storage.extents})


def _editing(
    checkpoint: Checkpoint, name: str, file: IO[bytes], old: str, tell: copying.Tell
) -> contextlib.AbstractContextManager[Editing]:
    """A file of the folder, as one of its own format; those of torch.distributed.checkpoint are of none."""
    source = Source(name, "file", Path(name))
    if checkpoint.format in formats.FOLDERS:
        return editing(source, file, "", target=old, tell=tell)
    with Reader(source) as reader:
        module = formats.of(reader)
    return editing(source, file, module.NAME if module else "", target=old, tell=tell)


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


def _copy(old: Path, new: Path, tell: copying.Tell) -> None:
    """A file of its own; of a link what it leads to. A folder that a link leads to is linked again."""
    if old.is_dir():
        new.symlink_to(old.resolve(), target_is_directory=True)
    elif old.is_file():
        with new.open("x+b") as file:
            copying.copy(old, file, tell=tell)
    elif old.is_symlink():
        new.symlink_to(old.readlink())
    else:
        raise FileError(str(old), "no file and no folder, and cannot be copied")
