"""Header tier: a region of a file that `torch.distributed.checkpoint` writes: what `torch.save` made of a chunk.

Where in it the elements lie is found when they are read; when they were changed, its checksums are made right.

Source: torch/distributed/checkpoint/filesystem.py (`_write_item`, `SerializationFormat`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from paramctl.checkpoint import Extent, Param
from paramctl.errors import FileError, shortened
from paramctl.formats import safetensors_file, unpickle, zip_seal
from paramctl.formats.checksums import Patch
from paramctl.formats.notes import TensorNote
from paramctl.formats.zip_directory import STORED, contents, directory, offsets
from paramctl.source import Reader, Source

_SMALL_NBYTES = 1 << 12  # a pickle of one tensor: those of one shape and dtype are the same, and are read once


class Part(Reader):
    """A region of a file, read as if it were a file."""

    def __init__(self, file: Reader, offset: int, nbytes: int, entry: str) -> None:
        self.file = file
        self.offset = offset
        self._nbytes = nbytes
        self.name = f"{file.name}: {shortened(entry)}"
        self.path = file.path
        self.source = file.source
        self.cache: dict[str, Any] = {}

    def read(self, offset: int, nbytes: int) -> bytes:
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise FileError(self.name, f"wants {nbytes:,} bytes at {offset:,}, its region has {self.nbytes:,}")
        return self.file.read(self.offset + offset, nbytes)


def dimensions(sizes: Iterable[int]) -> str:
    return "×".join(map(str, sizes)) or "a scalar"


def located(param: Param, extent: Extent) -> tuple[Extent, tuple[int, ...]]:
    """Where in the region of a chunk its elements lie, and their strides.

    Raises:
        FileError: the region is no tensor of the chunk's shape and dtype, as `torch.save` writes one.
    """
    sizes = tuple(size for _, size in extent.box)
    with Reader(Source(extent.path, "file", Path(extent.path))) as file:
        part = Part(file, extent.offset, extent.nbytes, param.name)
        if not part.head.startswith(b"PK\x03\x04") and safetensors_file.sniff(file):
            return _in_safetensors(file, param, sizes)
        members = directory(part)
        pickled = [name for name in members if name.endswith("data.pkl")]
        if not pickled:
            raise FileError(part.name, "its region holds no tensor")
        root = min(pickled, key=len)
        note = _note(contents(part, members[root]), part.name)
        if not isinstance(note, TensorNote) or note.storage is None:
            raise FileError(part.name, "its region holds no tensor")
        if (note.shape, note.dtype) != (sizes, param.dtype):
            due = f"{dimensions(sizes)} of {param.dtype}"
            raise FileError(part.name, f"its chunk should be {due}, and is {dimensions(note.shape)} of {note.dtype}")
        folder = root[: -len("data.pkl")]
        member = members.get(f"{folder}data/{note.storage.key}")
        order = members.get(f"{folder}byteorder")
        if member is None or member.method != STORED or member.flags & 1:
            raise FileError(part.name, "its region holds no bytes of its own")
        if order is not None and order.nbytes < 16 and contents(part, order) == b"big":
            raise FileError(part.name, "its bytes are big-endian, which is not read in pieces yet")
        begin = extent.offset + offsets(part, [member])[member.name] + note.offset * param.dtype.block_nbytes
        here = member.nbytes - note.offset * param.dtype.block_nbytes
        reached = 1 + sum((size - 1) * by for size, by in zip(note.shape, note.stride, strict=True))
        if param.dtype.nbytes(reached) > here:
            raise FileError(part.name, f"its chunk reaches to byte {param.dtype.nbytes(reached):,} of {here:,}")
        return Extent(extent.path, begin, param.dtype.nbytes(reached), box=extent.box), note.stride


@lru_cache(maxsize=64)
def _known(pickled: bytes) -> Any:
    """Chunks of one shape and dtype have one pickle: it is read once."""
    return unpickle.load(pickled, "")


def _note(pickled: bytes, name: str) -> Any:
    if len(pickled) > _SMALL_NBYTES:
        return unpickle.load(pickled, name)
    try:
        return _known(pickled)
    except FileError:
        return unpickle.load(pickled, name)  # which says where


def _in_safetensors(file: Reader, param: Param, sizes: tuple[int, ...]) -> tuple[Extent, tuple[int, ...]]:
    """`SerializationFormat.SAFETENSORS`: the file is one, and what the metadata says of offsets is not so."""
    found = safetensors_file.read(file).params.get(param.storage.key)
    if found is None or (found.shape, found.dtype) != (sizes, param.dtype):
        raise FileError(file.name, f"{shortened(param.name)}: no tensor of {dimensions(sizes)} of {param.dtype}")
    return found.storage.extents[0], found.stride


def seal(file: BinaryIO, source: Source, extent: Extent, patches: Sequence[Patch]) -> None:
    """Make the checksums in a region right after bytes of its elements were changed; of safetensors there are none.

    Args:
        file: the new file, open for reading and writing.
        source: the file that it was copied from.
        extent: of a chunk, as the folder says.
        patches: what was changed in it.
    """
    with Reader(source, descriptor=file.fileno()) as reader:
        part = Part(reader, extent.offset, extent.nbytes, source.name)
        if part.head.startswith(b"PK\x03\x04"):
            zip_seal.reseal(file, part, patches, base=extent.offset)
