"""Header tier: torch zips of one small storage, of which a folder may hold a hundred thousand.

Those of one pickle differ in the bytes of their storage, in its checksum, and in the id that follows from that. So the
rest is made once, by `torch_zip_writer`, and these are put in their places.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from typing import IO, Any

from paramctl.errors import ParamctlError
from paramctl.formats.torch_zip_writer import DESCRIPTOR_NBYTES, Archive, Fresh, Kept, write

MOST_NBYTES = 1 << 16
_STORAGE = "archive/data/0"
_CRC_AT = 16  # in an entry of the directory; 8 behind it is the size


class _Noting(Archive):
    """An archive that knows where its members end, and how its id came about."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.ends: dict[str, int] = {}
        self.so_far: dict[str, hashlib.blake2b] = {}

    def put(self, name: str, content: Fresh | Kept) -> None:
        self.so_far[name] = self.contents.copy()
        super().put(name, content)
        self.ends[name] = self.at


class SmallArchive:
    """The archives of one pickle with a storage of so many bytes."""

    def __init__(self, pickled: bytes, nbytes: int) -> None:
        archive = _Noting()
        write(archive, pickled, [Fresh("0", nbytes, [bytes(nbytes)])])
        self.nbytes = nbytes
        self.made = bytearray(archive.file.getvalue())  # type: ignore[attr-defined]
        names, ends = list(archive.ends), archive.ends
        of_id = names[-1]
        directory = ends[of_id]
        crcs = [directory + sum(map(len, archive.entries[: names.index(name)])) + _CRC_AT for name in (_STORAGE, of_id)]
        self.begin = ends[_STORAGE] - nbytes - (DESCRIPTOR_NBYTES if nbytes else 0)
        self.crcs = [crcs[0], *([ends[_STORAGE] - DESCRIPTOR_NBYTES + 4] if nbytes else [])]
        self.id_crcs = [crcs[1], directory - DESCRIPTOR_NBYTES + 4]
        self.id_at = directory - DESCRIPTOR_NBYTES - 20  # of its second half, which is of the contents
        self.before = archive.so_far[_STORAGE]
        between = archive.entries[names.index(_STORAGE) + 1 : -1]
        self.behind = b"".join(entry[_CRC_AT:][:4] + entry[_CRC_AT + 8 :][:4] + bytes(4) for entry in between)

    def write(self, file: IO[bytes], data: Any) -> int:
        """Write the archive of these bytes where the file stands; how many it has.

        Raises:
            ParamctlError: they are not as many as was said.
        """
        if len(data) != self.nbytes:
            raise ParamctlError(f"{len(data):,} bytes were to be had, and not {self.nbytes:,}")
        made, crc = self.made, zlib.crc32(data)
        made[self.begin : self.begin + self.nbytes] = data
        contents = self.before.copy()
        contents.update(struct.pack("<IQ", crc, self.nbytes) + self.behind)
        made[self.id_at : self.id_at + 20] = b"%020d" % int.from_bytes(contents.digest(), "little")
        of_id = zlib.crc32(made[self.id_at - 20 : self.id_at + 20])
        for at in self.crcs:
            struct.pack_into("<I", made, at, crc)
        for at in self.id_crcs:
            struct.pack_into("<I", made, at, of_id)
        file.write(made)
        return len(made)
