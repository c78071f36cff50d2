"""Header tier: files that are copied, and changed where they were copied to, their checksums too.

What stays is copied by the kernel, while the first change is computed; what changes is read, computed and put in its
place, one tensor at a time. So the rest of the file, its ties and its pickled classes with it, stays byte for byte, and
memory is bounded by the largest tensor.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from paramctl import contents
from paramctl.boxes import LOCATORS, Boxes
from paramctl.checkpoint import Checkpoint, Extent, Param, Storage
from paramctl.errors import FileError, ParamctlError
from paramctl.formats import FORMATS, copying
from paramctl.formats.checksums import Patch, put
from paramctl.formats.copying import Copying
from paramctl.plan import Change, Compute, Plan
from paramctl.source import Source

Seal = Callable[[IO[bytes], Source, Sequence[Patch]], None]  # a new file, the old one, and what was changed


class Editing:
    """A copy in which changes are put.

    Args:
        source: what it is a copy of.
        file: the copy.
        copy: how far it is.
        seal: makes its checksums right; None where there are none.
    """

    def __init__(self, source: Source, file: IO[bytes], copy: Copying, seal: Seal | None) -> None:
        self._source, self._file, self._copy, self._seal = source, file, copy, seal
        self._patches: list[Patch] = []
        self._regions: dict[Extent, list[Patch]] = {}

    def wait(self) -> None:
        """Until all is copied."""
        self._copy.wait()

    def read(self, param: Param, offset: int, nbytes: int) -> bytearray:
        """Bytes as they are now.

        Raises:
            FileError: they cannot be read.
        """
        return contents.filled(self._copy.readable, str(self._source.path), param, offset, nbytes)

    def put(self, extent: Extent, offset: int, data: bytearray) -> None:
        """Change bytes of an extent, at `offset` of the file."""
        self._copy.wait()
        patches = self._regions.setdefault(extent, []) if extent.packing else self._patches
        if extent.packing or self._seal:
            patches.append(put(self._file.fileno(), offset, data))
        else:
            copying.write_at(self._file.fileno(), offset, data)

    def seal(self) -> None:
        """All is copied, and the checksums are right again."""
        self._copy.wait()
        for extent, patches in self._regions.items():
            importlib.import_module(LOCATORS[extent.packing]).seal(self._file, self._source, extent, patches)
        if self._seal and self._patches:
            self._seal(self._file, self._source, self._patches)


def sealer(format_name: str) -> Seal | None:
    """What makes the checksums of a file of a format, a key of `FORMATS`, right; imported once something is changed."""
    module = FORMATS[format_name].sealer
    if not module:
        return None
    return lambda *told: importlib.import_module(module).seal(*told)


@contextlib.contextmanager
def editing(
    source: Source, file: IO[bytes], seal: Seal | None, *, target: str, tell: copying.Tell
) -> Iterator[Editing]:
    """A file that is copied into `file` while the block runs, and takes the place of `target` after that."""
    if source.path is None:
        raise FileError(source.name, "not a file")
    with copying.copying(source.path, file, target=target, tell=tell) as copy:
        made = Editing(source, file, copy, seal)
        yield made
        made.seal()


def carried_out(checkpoint: Checkpoint, plan: Plan, opened: Callable[[str], Editing]) -> Plan:
    """The plan, carried out, with what each change did.

    Args:
        checkpoint: that is changed.
        plan: its changes.
        opened: the copy of a file, by its path.

    Raises:
        FileError: values cannot be changed where they lie, or read.
    """

    def read(param: Param, path: str, offset: int, nbytes: int) -> bytearray:
        return opened(path).read(param, offset, nbytes)

    def put_there(extent: Extent, offset: int, data: bytearray) -> None:
        opened(extent.path).put(extent, offset, data)

    def run(change: Change, compute: Compute) -> str:
        param = target(change)
        start, end = param.span
        if not param.numel:
            return compute(memoryview(bytearray()))
        refuse(checkpoint, param)
        first = param.storage.extents[0]
        if _is_in_boxes(param.storage):
            boxes = Boxes(param, read)
            data = boxes.read(start, end)
            did = compute(memoryview(data))
            boxes.write(start, data, put_there)
            return did
        data = read(param, first.path, first.offset + start, end - start)
        did = compute(memoryview(data))
        put_there(first, first.offset + start, data)
        return did

    return plan.carried_out(run)


def target(change: Change) -> Param:
    """What a change changes."""
    if change.after is None:
        raise ParamctlError("a change without a tensor")
    return change.after


def refuse(checkpoint: Checkpoint, param: Param) -> None:
    """Values that cannot be changed where they lie.

    Raises:
        FileError: it is so.
    """
    storage = param.storage
    is_one = len(storage.extents) == 1 and not storage.extents[0].packing and not storage.extents[0].box
    if is_one or not param.numel or _is_in_boxes(storage):
        return
    where = f"{checkpoint.source.name}: {param.name}"
    if storage.is_meta:
        raise FileError(where, "it has a shape, and no values to change")
    raise FileError(where, f"{storage.why_unreadable or _where_else(storage)}, and cannot be changed there")


def _is_in_boxes(storage: Storage) -> bool:
    is_boxed = bool(storage.extents) and all(extent.box or extent.packing in LOCATORS for extent in storage.extents)
    return is_boxed and not storage.why_unreadable


def _where_else(storage: Storage) -> str:
    if not storage.extents:
        return "its values lie inside the pickle"
    if len(storage.extents) == 1 and storage.extents[0].packing == "deflate":
        return "its bytes are compressed inside the archive"
    return "its values lie in pieces"
