"""Header tier: from an outline to a file or a folder: writing, and reading again what was written."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from paramctl import formats, sharing, storages
from paramctl import outline as outlines
from paramctl.checkpoint import Checkpoint, Param
from paramctl.contents import Window
from paramctl.dtypes import DTYPES
from paramctl.errors import FileError, ParamctlError, shortened
from paramctl.formats import beside, carrying, fitting, pour, rereading, whole
from paramctl.formats.targets import Target
from paramctl.outline import Outline
from paramctl.source import Source
from paramctl.storages import Blob, Placed

_DOCUMENT = "paramctl.formats.torch_document_writer"
_LEGACY = "paramctl.formats.torch_legacy_document"
_BYTE = DTYPES["uint8"]
_HEADER_NBYTES = 1 << 10  # about what a tensor takes besides its elements


class Options(NamedTuple):
    """How an outline is written."""

    is_strict: bool = False
    verifies: bool = True
    force: bool = False  # replace a folder that is there
    max_error: float | None = None  # relative, of a tensor that is cast
    in_place: bool = False  # what else is in a folder stays there


# ----------------------------------------------------------------------------- writing


def nbytes(made: Outline) -> int:
    """About what it will take."""
    if made.has_views and not made.is_compact:
        held = {e.param.storage.key: (e.param.storage.nbytes, e.dtype, e.param.dtype) for e in made.entries}
        several = (nbytes * new.block_nbytes // old.block_nbytes for nbytes, new, old in held.values())
    else:
        several = (entry.nbytes for entry in outlines.distinct(made, outlines.aliases(made)))
    return sum(several) + _HEADER_NBYTES * len(made.entries)


def write(
    made: Outline, target: Target, out: str, options: Options, *, tell: Callable[[int], None] | None = None
) -> dict[str, int]:
    """Write a fitted outline to a path, or `-`, and hold what was written against it before it takes its place.

    Returns:
        How many numbers overflowed in a cast, by the source's name.

    Raises:
        FileError: it cannot be written; what was there is as it was.
        ParamctlError: a folder, and `out` is standard output.
    """
    if out == whole.STDOUT and (target.is_folder or made.is_split):
        raise ParamctlError("a folder cannot be written to standard output", hint="name one")
    with Window(tell) as window:
        pourer = pour.Pourer(window, is_verified=options.verifies)
        if made.is_split:
            _write_parts(made, target, out, options, pourer)
        elif target.is_folder:
            force = options.force or options.in_place
            with whole.replacing_folder(out, nbytes=nbytes(made), force=force) as folder:
                importlib.import_module(target.module).write(made, folder, pourer)
                if options.verifies:
                    verify(made, target, formats.read(Source(out, "folder", folder)), pourer)
                if options.in_place:
                    beside.keep(made.checkpoint, Path(os.path.realpath(out)), folder)
        else:
            with whole.replacing(out, nbytes=nbytes(made)) as file:
                _write_file(made, target, file, out, options, pourer)
        return pourer.overflowed


def _write_parts(made: Outline, target: Target, out: str, options: Options, pourer: pour.Pourer) -> None:
    """A file for each module at the top."""
    with whole.replacing_folder(out, nbytes=nbytes(made), force=options.force) as folder:
        for top, part in outlines.parts(made).items():
            name = f"{top}{target.suffixes[0]}"
            with (folder / name).open("w+b") as file:
                _write_file(part, target, file, os.path.join(out, name), options, pourer)  # noqa: PTH118 - as written


def _write_file(
    made: Outline, target: Target, file: IO[bytes], out: str, options: Options, pourer: pour.Pourer
) -> None:
    edits = _LEGACY if made.keeps_pickle else _DOCUMENT
    name = edits if fitting.is_edited(made, target) else target.module
    importlib.import_module(name).write(made, file, pourer)
    file.flush()
    if options.verifies:
        there = Source(out, "file", Path(f"/dev/fd/{file.fileno()}"))
        verify(made, target, formats.read(there), pourer)


# ----------------------------------------------------------------------------- reading again


def verify(made: Outline, target: Target, found: Checkpoint, pourer: pour.Pourer) -> None:
    """Hold what was written against the outline: names, dtypes, shapes, ties, metadata, and every value.

    Raises:
        FileError: it is not the same.
    """
    where = found.source.name
    wanted = {entry.name: entry for entry in made.entries}
    odd = next(iter(wanted.keys() ^ found.params.keys()), None)
    if odd is not None:
        raise _not_the_same(where, odd, "is missing" if odd in wanted else "was not to be there")
    for name, entry in wanted.items():
        param = found.params[name]
        if (param.shape, param.dtype) != (entry.param.shape, entry.dtype):
            raise _not_the_same(where, name, "has another shape or dtype")
    blobs, placed = storages.laid_out(made) if target.ties == "storage" else ([], [])
    _verify_views(placed, found)
    if target.ties and _same(outlines.groups(made)) != _same(sharing.groups(found.params.values())):
        raise FileError(where, "what was written is not what was planned: its ties differ")
    for key, text in made.metadata.items():
        if found.metadata.get(key) != text:
            raise _not_the_same(where, key, "in the metadata is missing")
    odd = carrying.differing(made.extras, found) if made.extras else None
    if odd is not None:
        raise _not_the_same(where, odd, "is missing or another value")
    pairs = _storages(blobs, placed, found) if blobs else _tensors(made, target, found)
    other = rereading.first_other(pairs, pourer)
    if other is not None:
        raise _not_the_same(where, other, "has other values")


def _verify_views(placed: Iterable[Placed], found: Checkpoint) -> None:
    """Every tensor stands on the storage that was laid out for it, as it was laid out."""
    keys: dict[int, str] = {}
    for one in placed:
        param = found.params[one.name]
        where = (param.stride, param.storage_offset, param.storage.key)
        if where != (one.stride, one.offset, keys.setdefault(one.blob, param.storage.key)):
            raise _not_the_same(found.source.name, one.name, "lies elsewhere")


def _not_the_same(where: str, name: str, what: str) -> FileError:
    return FileError(where, f"what was written is not what was planned: {shortened(name)} {what}")


def _same(groups: Iterable[sharing.Group]) -> set[frozenset[str]]:
    return {frozenset(group.names) for group in groups if group.relation == "same"}


def _storages(blobs: Sequence[Blob], placed: Sequence[Placed], found: Checkpoint) -> Iterator[tuple[str, Blob, Param]]:
    """What each storage was made of, and where it was written, as bytes."""
    first = {one.blob: one.name for one in reversed(placed)}
    for number, blob in enumerate(blobs):
        param = found.params[first[number]]
        if blob.param.storage.is_meta or blob.param.storage.why_unreadable:
            continue  # it stayed where it was: nobody can read it
        dtype = blob.dtype if param.storage.byteorder == "big" else _BYTE
        numel = blob.nbytes // dtype.block_nbytes
        yield first[number], blob, param._replace(dtype=dtype, shape=(numel,), stride=(1,), storage_offset=0)


def _tensors(made: Outline, target: Target, found: Checkpoint) -> Iterator[tuple[str, Blob, Param]]:
    """What each tensor was made of, and where it was written."""
    kept_as = outlines.aliases(made) if target.ties else {}
    for entry in outlines.distinct(made, kept_as):
        yield entry.name, Blob(entry.param, entry.dtype), found.params[entry.name]


def losses(made: Outline, window: Window) -> dict[str, Any]:
    """What each cast costs, by the name of the tensor: it is read for that."""
    casting = pour.casting()
    return {entry.name: casting.loss(entry.param, entry.dtype, window) for entry in made.entries if entry.is_cast}


def refuse_same(made: Outline, out: str) -> None:
    """Refuse to write over what is read.

    Raises:
        FileError: `out` is a file that tensors come from, or a folder with one.
    """
    if out == whole.STDOUT:
        return
    target = os.path.realpath(out)
    read = {extent.path for entry in made.entries for extent in entry.param.storage.extents}
    if made.checkpoint.source.path is not None:
        read.add(str(made.checkpoint.source.path))
    for path in map(os.path.realpath, read):
        if path == target or path.startswith(target + "/"):
            raise FileError(out, "it is what is read", hint="--in-place writes over a file")
