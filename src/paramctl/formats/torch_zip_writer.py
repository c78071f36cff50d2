"""Header tier: the zip that `torch.save` writes, written without torch.

Every member begins at a multiple of 64 bytes, behind an extra field `FB` of padding; its length and checksum stand
behind it. Where something is beyond 4 GiB, zip64 fields are as torch writes them, since `torch.load` works out where
a storage lies without reading them. There are no times of day, so the same tensors give the same bytes.

Source: caffe2/serialize/inline_container.cc (`getPadding`, `PyTorchStreamWriter`); third_party/miniz/miniz.c
(`mz_zip_writer_add_mem_ex_v2`, `mz_zip_writer_finalize_archive`); torch/serialization.py (`_save`; `_load`,
`_get_offset`).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import IO, Any, NamedTuple

from paramctl.errors import FileError, ParamctlError, shortened
from paramctl.formats import copying
from paramctl.formats.torch_zip import METADATA
from paramctl.formats.zip_directory import STORED, Member, directory, offsets
from paramctl.source import Reader

ALIGNMENT = 64
DESCRIPTOR_NBYTES = 16  # behind a member that is not empty, and less than 4 GiB
SERIALIZATION_ID = ".data/serialization_id"
_ROOT = "archive"  # the folder within
_LIMIT = 0xFFFFFFFF
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_ENCRYPTED, _DESCRIPTOR_BEHIND, _UTF8 = 0x0001, 0x0008, 0x0800
_SMALL_NBYTES = 1 << 16  # below that it is quicker to carry bytes through memory than to ask the kernel to
_NONE: Mapping[str, str] = MappingProxyType({})


class Fresh(NamedTuple):
    """A storage whose bytes are given, in pieces that are asked for when they are written."""

    key: str
    nbytes: int
    chunks: Iterable[Any]


class Kept(NamedTuple):
    """A member of another archive, as it stands there: its bytes are copied, and its checksum is believed."""

    key: str
    descriptor: int
    member: Member
    begin: int  # of its bytes

    @property
    def nbytes(self) -> int:
        return self.member.nbytes


def write(
    archive: Archive,
    pickled: bytes,
    storages: Iterable[Fresh | Kept],
    *,
    metadata: Mapping[str, str] = _NONE,
) -> None:
    """Put all members into an archive that is empty, and close it: `torch.load` reads it, also with `mmap=True`.

    Args:
        archive: where to. For `Kept` storages its file must have a descriptor.
        pickled: `data.pkl`.
        storages: in the order in which the pickle first names them, and the first with the key "0": `torch.load` counts
            on both when it maps to the meta device. Their elements lie little-endian. Taken from one at a time, so
            memory is that of a chunk.
        metadata: kept in a member of our own, which `torch_zip.read` gives back and torch passes over.

    Raises:
        ParamctlError: chunks that are not as many bytes as was said.
    """
    archive.add(f"{_ROOT}/data.pkl", pickled)
    archive.add(f"{_ROOT}/.format_version", b"1")
    archive.add(f"{_ROOT}/.storage_alignment", b"%d" % ALIGNMENT)
    archive.add(f"{_ROOT}/byteorder", b"little")
    for storage in storages:
        archive.put(f"{_ROOT}/data/{storage.key}", storage)
    archive.add(f"{_ROOT}/version", b"3\n")
    if metadata:
        archive.add(f"{_ROOT}/{METADATA}", text_by_name(metadata))
    archive.add(f"{_ROOT}/{SERIALIZATION_ID}", archive.serialization_id())
    archive.close()


def kept(reader: Reader, folder: str) -> dict[str, Kept]:
    """The storages of an archive by their keys, to be copied from it.

    Args:
        reader: the archive; open as long as they are to be copied.
        folder: where they are, with its slash: "archive/data/".
    """
    members = [member for name, member in directory(reader).items() if name.startswith(folder)]
    begins = offsets(reader, members)
    keys = {member.name: member.name[len(folder) :] for member in members}
    return {keys[m.name]: Kept(keys[m.name], reader.fileno(), m, begins[m.name]) for m in members}


def text_by_name(metadata: Mapping[str, str]) -> bytes:
    """The contents of the member that holds metadata."""
    return json.dumps(dict(metadata), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


class Archive:
    """A zip that is written from its begin to its end, and begins where the file stands."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.base = file.tell()
        self.at = 0
        self.entries: list[bytes] = []
        self.names = hashlib.blake2b(digest_size=8)
        self.contents = hashlib.blake2b(digest_size=8)

    def add(self, name: str, data: bytes) -> None:
        self.put(name, Fresh("", len(data), (data,)))

    def put(self, name: str, content: Fresh | Kept) -> None:
        raw = name.encode("utf-8", "surrogateescape")
        offset, nbytes = self.at, content.nbytes
        member = content.member if isinstance(content, Kept) else Member("", STORED, 0, 0, nbytes, nbytes, 0, 0)
        method, stored = member.method, member.stored_nbytes
        flags = _UTF8 | (_DESCRIPTOR_BEHIND if stored else 0) | (member.flags & _ENCRYPTED)
        is_wide = max(nbytes, stored) >= _LIMIT
        wide = _wide([nbytes, stored] if is_wide else [], offset)
        padding = _padding(offset + _LOCAL.size + len(raw) + len(wide))
        extra = _wide([nbytes, 0] if is_wide else [], offset) + padding  # what is stored is told behind it
        self.write(_LOCAL.pack(b"PK\x03\x04", 0, flags, method, 0, 0, 0, 0, 0, len(raw), len(extra)) + raw + extra)
        crc = self.copy(name, content) if isinstance(content, Kept) else self.stream(name, content)
        if stored:
            layout = "<4sIQQ" if wide else "<4sIII"
            self.write(struct.pack(layout, b"PK\x07\x08", crc, stored, nbytes))
        self.entries.append(
            _CENTRAL.pack(
                b"PK\x01\x02", 0, 0, flags, method, 0, 0, crc, _narrow(stored), _narrow(nbytes), len(raw), len(wide),
                0, 0, 0, 0, _narrow(offset),
            ) + raw + wide
        )  # fmt: skip
        self.names.update(raw + b"\n")
        self.contents.update(struct.pack("<IQ", crc, nbytes))

    def stream(self, name: str, content: Fresh) -> int:
        crc, left = 0, content.nbytes
        for chunk in content.chunks:
            view = memoryview(chunk)
            if not view.nbytes:
                continue  # of no shape that could be cast
            view = view.cast("B")
            left -= len(view)
            crc = zlib.crc32(view, crc)
            self.write(view)
        if left:
            what = f"{shortened(name)}: {content.nbytes - left:,} bytes were to be had, and not {content.nbytes:,}"
            raise ParamctlError(what)
        return crc

    def copy(self, name: str, content: Kept) -> int:
        nbytes = content.member.stored_nbytes
        if nbytes < _SMALL_NBYTES:
            raw = os.pread(content.descriptor, nbytes, content.begin)
            self.write(raw)
            done = len(raw)
        else:
            self.file.flush()
            at = self.base + self.at
            done = copying.copy_range(content.descriptor, self.file.fileno(), nbytes=nbytes, begin=content.begin, at=at)
            self.at += done
            self.file.seek(self.base + self.at)
        if done != nbytes:
            raise FileError(name, f"ends after {done:,} of {nbytes:,} bytes: its file became shorter")
        return content.member.crc

    def write(self, data: Any) -> None:
        self.file.write(data)
        self.at += len(data)

    def serialization_id(self) -> bytes:
        """Forty digits, as torch makes them of the names and the checksums; torch's own hash is of no specification."""
        return b"".join(b"%020d" % int.from_bytes(so_far.digest(), "little") for so_far in (self.names, self.contents))

    def close(self) -> None:
        """The directory. Both ends of it are always there, as in miniz."""
        start, nbytes, count = self.at, sum(map(len, self.entries)), len(self.entries)
        for block in _blocks(self.entries):
            self.write(block)
        end = self.at
        self.write(struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 0x031E, 45, 0, 0, count, count, nbytes, start))
        self.write(struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1))
        few = min(count, 0xFFFF)
        self.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, few, few, _narrow(nbytes), _narrow(start), 0))


def _blocks(pieces: list[bytes]) -> Iterator[bytes]:
    for i in range(0, len(pieces), 1000):
        yield b"".join(pieces[i : i + 1000])


def _narrow(value: int) -> int:
    return value if value < _LIMIT else 0xFFFFFFFF


def _wide(sizes: list[int], offset: int) -> bytes:
    """The zip64 field; in the local header, too, it holds the offset, as miniz has it."""
    fields = [*sizes, offset] if offset >= _LIMIT else sizes
    return struct.pack(f"<HH{len(fields)}Q", 1, 8 * len(fields), *fields) if fields else b""


def _padding(at: int) -> bytes:
    """The extra field behind which a member's bytes are aligned, if it begins at `at`."""
    nbytes = -(at + 4) % ALIGNMENT
    return struct.pack("<2sH", b"FB", nbytes) + b"Z" * nbytes
