"""Header tier: the zip that `torch.save` writes since 1.6.

`ROOT/data.pkl` is a pickle whose persistent ids name the members `ROOT/data/KEY`, each a storage's bytes, stored
without compression at an offset that is a multiple of 64. `ROOT/byteorder` says how their elements lie.

Source: torch/serialization.py (`_save`, `_load`); caffe2/serialize/inline_container.cc.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import BinaryIO, Literal

from paramctl.checkpoint import Checkpoint, Extent, Storage
from paramctl.errors import FileError, shortened
from paramctl.formats import objects, unpickle
from paramctl.formats.notes import StorageNote
from paramctl.formats.zip_directory import STORED, Member, contents, directory, offsets
from paramctl.source import Reader, Source

NAME = "torch-zip"


def sniff(reader: Reader) -> bool:
    """Whether it is a zip: the last of the zip formats to be asked, whose `read` says what else it is."""
    return reader.head.startswith(b"PK\x03\x04")


def read(reader: Reader) -> Checkpoint:
    """What a torch zip holds, by the number of its tensors and not by their bytes.

    Raises:
        FileError: a zip that is damaged, cut short, or of something else.
    """
    members = directory(reader)
    root = _root(reader, members)
    pickled = contents(reader, members[f"{root}data.pkl"])
    order = _byteorder(reader, members, root)
    prefix = f"{root}data/"
    begins = offsets(reader, [member for name, member in members.items() if name.startswith(prefix)])

    def find_storage(note: StorageNote, name: str) -> Storage:
        nbytes = note.nbytes
        member = members.get(prefix + note.key)
        if member is None:
            if nbytes == 0:
                return Storage(note.key, 0)
            raise FileError(reader.name, f"{shortened(name)}: its storage data/{shortened(note.key)} is not there")
        if member.nbytes < nbytes:
            raise FileError(
                reader.name,
                f"{shortened(name)}: its storage should have {nbytes:,} bytes, and has {member.nbytes:,}",
            )
        if member.method != STORED or member.flags & 1:
            return Storage(note.key, nbytes, why_unreadable="its bytes are compressed inside the archive")
        extent = Extent(reader.path, begins[member.name], nbytes)
        return Storage(note.key, nbytes, (extent,), None, order)

    tree = unpickle.load(pickled, reader.name)
    return objects.checkpoint(tree, reader.source, NAME, find_storage, budget=4_000_000 + 100 * len(pickled))


def _root(reader: Reader, members: dict[str, Member]) -> str:
    names = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if not names:
        if any(name.endswith(".npy") for name in members):
            raise FileError(reader.name, "an npz archive, which is not read yet")
        raise FileError(reader.name, "a zip archive, and no checkpoint: it has no data.pkl")
    root = min(names, key=len)[: -len("data.pkl")]
    if f"{root}constants.pkl" in members:
        raise FileError(reader.name, "a TorchScript archive, which is not read yet")
    return root


def _byteorder(reader: Reader, members: dict[str, Member], root: str) -> Literal["little", "big"]:
    member = members.get(f"{root}byteorder")
    said = contents(reader, member) if member is not None and member.nbytes < 16 else b"little"
    return "big" if said == b"big" else "little"


def seal(file: BinaryIO, source: Source, storages: Iterable[Storage]) -> None:
    """Make the checksums of changed storages right: in the central directory, and by the member itself.

    Args:
        file: the new file, open for reading and writing, with the geometry of `source`.
        source: the file that it was copied from.
        storages: those whose bytes were changed.
    """
    changed = {storage.extents[0].offset for storage in storages if storage.extents}
    with Reader(source) as reader:
        members = directory(reader)
        begins = offsets(reader, members.values())
        for name, member in members.items():
            if begins[name] in changed and member.nbytes:
                crc = struct.pack("<I", _crc(file, begins[name], member.nbytes))
                _write(file, member.central_offset + 16, crc)
                _write(file, member.header_offset + 14, crc) if not member.flags & 8 else _descriptor(
                    file, begins[name] + member.stored_nbytes, crc
                )


def _descriptor(file: BinaryIO, at: int, crc: bytes) -> None:
    file.seek(at)
    _write(file, at + (4 if file.read(4) == b"PK\x07\x08" else 0), crc)


def _write(file: BinaryIO, at: int, data: bytes) -> None:
    file.seek(at)
    file.write(data)


def _crc(file: BinaryIO, at: int, nbytes: int) -> int:
    crc = 0
    file.seek(at)
    while nbytes:
        chunk = file.read(min(nbytes, 1 << 20))
        if not chunk:
            break
        crc = zlib.crc32(chunk, crc)
        nbytes -= len(chunk)
    return crc
