"""Header tier: a plan carried out in a model that is a folder: shards, or what `torch.distributed.checkpoint` writes.

The new folder has all that the old one has, and differs from it in the files of what was changed, and in them as a
file does that is edited. In its place, files in which nothing changes are linked and not copied, and a change of one
file replaces that one alone. A file that is a link becomes one of its own: what the link leads to, in a cache perhaps,
stays as it was.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, NamedTuple

from paramctl import formats
from paramctl.checkpoint import Checkpoint
from paramctl.errors import FileError, ParamctlError
from paramctl.formats import beside, copying, whole
from paramctl.formats.editing import Editing, carried_out, editing, sealer, target
from paramctl.plan import Plan
from paramctl.source import Reader, Source


class _Where(NamedTuple):
    """Where a folder is written to, and what of it has to be copied."""

    folder: Path
    in_place: bool
    changed: list[str]  # files in which something changes, as the checkpoint names them
    alone: str  # the only file that has to be written
    there: beside.Below  # all that lies in the folder, where more has to be

    @property
    def nbytes(self) -> int:
        files = self.changed if self.in_place else [os.path.join(self.folder, name) for name in self.there.files]  # noqa: PTH118
        return sum(map(copying.room, files))


def _where(checkpoint: Checkpoint, plan: Plan, out: str) -> _Where:
    source = checkpoint.source
    path = source.path or Path()
    folder = path if source.kind == "folder" else path.parent
    in_place = out == source.name or (Path(out).exists() and any(map(Path(out).samefile, (folder, path))))
    changed = _changed(plan)
    alone = changed[0] if in_place and len(changed) == 1 and not os.path.islink(changed[0]) else ""  # noqa: PTH114
    return _Where(folder, in_place, changed, alone, beside.Below((), ()) if alone else beside.below(folder))


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
    folder, there, in_place = where.folder, where.there, where.in_place
    give = beside.given if in_place else shutil.copymode
    hold = functools.partial(_refuse_changed, _states(folder, there.files), folder) if in_place else None
    place = str(folder) if in_place else out
    with whole.replacing_folder(place, nbytes=where.nbytes, force=in_place, hold=hold) as new:
        for name in there.folders:
            (new / name).mkdir(parents=True, exist_ok=True)
        with _Copies(checkpoint, folder, new, in_place=in_place, tell=tell) as copies:
            done = carried_out(checkpoint, plan, copies.of)
        for name in there.files:
            if name in copies.made:
                give(folder / name, new / name)
            elif in_place:
                beside.same(folder / name, new / name)
            else:
                _copy(folder / name, new / name, folder, tell)
        beside.alike(folder, new, there.folders, give)
    return done


class _Copies(contextlib.ExitStack):
    """The files in which something is changed, in the new folder; each is whole when this is left."""

    def __init__(self, checkpoint: Checkpoint, folder: Path, new: Path, *, in_place: bool, tell: copying.Tell) -> None:
        super().__init__()
        self._checkpoint, self._folder, self._new = checkpoint, folder, new
        self._in_place, self._tell = in_place, tell
        self.made: dict[str, Editing] = {}  # by its path in the folder

    def of(self, path: str) -> Editing:
        """The copy of a file of the old folder."""
        name = _place(path, self._folder)
        if name not in self.made:
            for copy in self.made.values():
                copy.wait()  # or hundreds of shards would be copied at once
            file = self.enter_context((self._new / name).open("x+b"))
            old = path if self._in_place else whole.STDOUT
            self.made[name] = self.enter_context(_editing(self._checkpoint, path, file, old, self._tell))
        return self.made[name]


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
    """A file of the folder, as one of its own format."""
    source = Source(name, "file", Path(name))
    if checkpoint.format in formats.FOLDERS:
        seal = importlib.import_module(formats.FOLDERS[checkpoint.format]).seal_entries
        return editing(source, file, functools.partial(seal, checkpoint.source), target=old, tell=tell)
    with Reader(source) as reader:
        module = formats.of(reader)
    return editing(source, file, sealer(module.NAME) if module else None, target=old, tell=tell)


def _place(path: str, folder: Path) -> str:
    """Where in the folder a file lies, or a link to one: no folder on the way there is a link."""
    at, name = os.path.split(path)
    return os.path.relpath(os.path.join(os.path.realpath(at), name), os.path.realpath(folder))  # noqa: PTH118


def _states(folder: Path, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Which file each name is, and what tells that it was written to."""
    found: dict[str, tuple[int, ...]] = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            status = (folder / name).lstat()
            found[name] = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def _refuse_changed(before: Mapping[str, tuple[int, ...]], folder: Path, old: Path, new: Path) -> None:
    """Files that another process has replaced, made or removed meanwhile, and that would be lost or be there again.

    One that is linked into the new folder may be written to.

    Args:
        before: how the files were when they were first looked at.
        folder: the name of the folder, for the error.
        old: where it is now.
        new: where the new one is.

    Raises:
        FileError: there is one.
    """
    names = beside.below(old).files
    after, linked = _states(old, names), _states(new, names)
    for name in sorted({*before, *after}):
        is_linked = name in after and after[name][:2] == linked.get(name, ())[:2]
        if not is_linked and before.get(name) != after.get(name):
            raise FileError(str(folder / name), "another process has changed it meanwhile", hint="try again")


def _copy(old: Path, new: Path, folder: Path, tell: copying.Tell) -> None:
    """A file of its own; of a link what it leads to, unless that is in the folder itself, or a folder elsewhere."""
    if old.is_symlink() and old.exists():
        there, root = old.resolve(), folder.resolve()
        if there.is_relative_to(root):
            new.symlink_to(os.path.relpath(there, old.parent.resolve()))
            return
    if old.is_dir():
        new.symlink_to(old.resolve(), target_is_directory=True)
    elif old.is_file():
        with new.open("x+b") as file:
            copying.copy(old, file, tell=tell)
        shutil.copymode(old, new)
    elif old.is_symlink():
        new.symlink_to(old.readlink())
    else:
        raise FileError(str(old), "no file and no folder, and cannot be copied")
