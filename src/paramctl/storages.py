"""Header tier: the storages of a new checkpoint, and the tensors on them, for a format that has strides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from paramctl import sharing
from paramctl.checkpoint import Param, contiguous
from paramctl.dtypes import DTYPES, DType
from paramctl.outline import Entry, Outline


class Blob(NamedTuple):
    """Bytes of the new checkpoint that lie together: the elements of `param`, in row-major order, as `dtype`."""

    param: Param
    dtype: DType

    @property
    def nbytes(self) -> int:
        return self.dtype.nbytes(self.param.numel)

    @property
    def is_cast(self) -> bool:
        return self.dtype != self.param.dtype


class Placed(NamedTuple):
    """A tensor on a blob."""

    name: str
    blob: int  # its number
    dtype: DType
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int  # elements


def laid_out(made: Outline) -> tuple[list[Blob], list[Placed]]:
    """Storages, and the tensors on them, for a format that has strides: what was shared stays so, views included.

    Where tensors of one storage are cast differently, or the new checkpoint is to be compact, only those of the very
    same elements share one.
    """
    sharers: dict[str, list[Entry]] = {}
    for entry in made.entries:
        key = f"{entry.param.storage.key}\0{entry.name}" if entry.is_own else entry.param.storage.key
        sharers.setdefault(key, []).append(entry)
    blobs: list[Blob] = []
    placed: dict[str, Placed] = {}
    for entries in sharers.values():
        first = entries[0]
        if len(entries) == 1 and (first.is_own or made.is_compact or _is_whole(first.param)):
            param = first.param
            placed[first.name] = Placed(first.name, len(blobs), first.dtype, param.shape, contiguous(param.shape), 0)
            blobs.append(Blob(param, first.dtype))
        elif made.is_compact or not _keeps_storage(entries):
            _put_apart(entries, blobs, placed)
        else:
            for entry in entries:
                param = entry.param
                where = (param.shape, param.stride, param.storage_offset)
                placed[entry.name] = Placed(entry.name, len(blobs), entry.dtype, *where)
            blobs.append(_whole(entries))
    return blobs, [placed[entry.name] for entry in made.entries]


def _is_whole(param: Param) -> bool:
    """Whether a tensor is all of its storage, in order: most are."""
    return param.nbytes == param.storage.nbytes and param.stride == contiguous(param.shape)


def _keeps_storage(entries: Sequence[Entry]) -> bool:
    first = entries[0]
    if first.param.dtype.block_numel > 1:
        return False
    if _is_plain(entries):
        return True
    return all((e.dtype, e.param.dtype) == (first.dtype, first.param.dtype) for e in entries)


def _is_plain(entries: Sequence[Entry]) -> bool:
    """Whether their storage can be taken as bytes, whatever each tensor sees in them."""
    storage = entries[0].param.storage
    in_a_tensor = any(extent.box or extent.packing == "torch-save" for extent in storage.extents)
    return storage.byteorder == "little" and not in_a_tensor and not any(entry.is_cast for entry in entries)


def _whole(entries: Sequence[Entry]) -> Blob:
    """A whole storage as one flat tensor."""
    param, dtype = entries[0].param, entries[0].dtype
    if _is_plain(entries):
        param, dtype = param._replace(dtype=DTYPES["uint8"]), DTYPES["uint8"]
    numel = param.storage.nbytes // param.dtype.block_nbytes
    return Blob(param._replace(shape=(numel,), stride=(1,), storage_offset=0), dtype)


def _put_apart(entries: Sequence[Entry], blobs: list[Blob], placed: dict[str, Placed]) -> None:
    """Tensors of the very same elements on one blob, and others each on one of its own."""
    seen: dict[Any, int] = {}
    for entry in entries:
        param = entry.param
        key = (sharing.identity(param), entry.dtype)
        if key not in seen:
            seen[key] = len(blobs)
            blobs.append(Blob(param, entry.dtype))
        placed[entry.name] = Placed(entry.name, seen[key], entry.dtype, param.shape, contiguous(param.shape), 0)
