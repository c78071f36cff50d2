"""Header tier: a zip's directory, read without touching its members.

The standard library's `zipfile` takes 10 µs a member, which is a second for 90,000 tensors; and it does not tell
where a member's checksums stand, which an edit in place has to know.

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.9 (data descriptor), 4.3.12 (central
directory), 4.3.14 to 4.3.16 (ends of it), 4.5.3 (zip64 sizes).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import NamedTuple

from paramctl.errors import FileError, shortened
from paramctl.source import Reader

_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_CUT_SHORT = "the file is cut short: its directory stands at the end"
STORED, DEFLATED = 0, 8
_FREELY_INFLATED_NBYTES = 1 << 22
_MOST_INFLATED = 64  # times what is stored, beyond that: a pickle shrinks ten or twenty times


class Member(NamedTuple):
    """A member of the archive, as the central directory tells it."""

    name: str
    method: int
    flags: int
    crc: int
    nbytes: int
    stored_nbytes: int
    header_offset: int
    central_offset: int  # where the entry itself stands in the directory


def directory(reader: Reader) -> dict[str, Member]:
    """Every member by its name; read once for a reader.

    Raises:
        FileError: no directory, one that lies outside the file, or names that stand twice.
    """
    if "members" not in reader.cache:
        reader.cache["members"] = _directory(reader)
    found: dict[str, Member] = reader.cache["members"]
    return found


def _directory(reader: Reader) -> dict[str, Member]:
    tail_nbytes = min(reader.nbytes, 22 + 65535 + 20)
    tail = reader.read(reader.nbytes - tail_nbytes, tail_nbytes)
    found = tail.rfind(b"PK\x05\x06")
    if found < 0 or found + _END.size > len(tail):
        raise FileError(reader.name, "a zip without its directory", hint=_CUT_SHORT)
    _, _, _, _, count, nbytes, offset, _ = _END.unpack_from(tail, found)
    end_offset = reader.nbytes - tail_nbytes + found
    locator_at = found - _END64_LOCATOR.size
    if locator_at >= 0 and tail[locator_at : locator_at + 4] == b"PK\x06\x07":
        _, _, end64_offset, _ = _END64_LOCATOR.unpack_from(tail, locator_at)
        record = _END64.unpack(reader.read(end64_offset, _END64.size))
        if record[0] != b"PK\x06\x06":
            raise FileError(reader.name, f"no zip64 directory record at byte {end64_offset:,}")
        count, nbytes, offset, end_offset = record[7], record[8], record[9], end64_offset
    if offset + nbytes > end_offset:
        raise FileError(
            reader.name,
            f"the directory says {nbytes:,} bytes at {offset:,}, and ends at {end_offset:,}",
            hint=_CUT_SHORT,
        )
    if count * _CENTRAL.size > nbytes:
        raise FileError(reader.name, f"the directory says {count:,} members in {nbytes:,} bytes")
    return _entries(reader, reader.read(offset, nbytes), count, offset)


def _entries(reader: Reader, block: bytes, count: int, start: int) -> dict[str, Member]:
    members: dict[str, Member] = {}
    at = 0
    for _ in range(count):
        if at + 46 > len(block) or block[at : at + 4] != b"PK\x01\x02":
            raise FileError(reader.name, f"no directory entry at byte {start + at:,}")
        (
            _,
            _,
            _,
            flags,
            method,
            _,
            _,
            crc,
            stored,
            nbytes,
            name_nbytes,
            extra_nbytes,
            comment_nbytes,
            _,
            _,
            _,
            offset,
        ) = _CENTRAL.unpack_from(block, at)
        name_at = at + 46
        extra_at = name_at + name_nbytes
        raw = block[name_at:extra_at]
        name = raw.decode("utf-8", "surrogateescape") if flags & 0x800 or raw.isascii() else raw.decode("cp437")
        if nbytes == 0xFFFFFFFF or stored == 0xFFFFFFFF or offset == 0xFFFFFFFF:
            extra = block[extra_at : extra_at + extra_nbytes]
            nbytes, stored, offset = _zip64(reader, name, extra, nbytes, stored, offset)
        if offset + 30 + stored > start:
            raise FileError(
                reader.name, f"{shortened(name)} says {stored:,} bytes at {offset:,}, and the members end at {start:,}"
            )
        if stored != nbytes and (method == STORED or nbytes > _most_inflated(stored)) and not flags & 1:
            raise FileError(reader.name, f"{shortened(name)} is stored in {stored:,} bytes, and says {nbytes:,}")
        if name in members:
            raise FileError(reader.name, f"{shortened(name)} stands twice in the archive")
        members[name] = Member(name, method, flags, crc, nbytes, stored, offset, start + at)
        at = extra_at + extra_nbytes + comment_nbytes
    return members


def _most_inflated(nbytes: int) -> int:
    """Deflate makes two bits of 258 bytes at best, so a thousand bytes and some of one."""
    return 64 + 1032 * nbytes


def _zip64(reader: Reader, name: str, extra: bytes, *sizes: int) -> tuple[int, int, int]:
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, at)
        if tag == 1:
            field = extra[at + 4 : at + 4 + length]
            found = []
            for size in sizes:
                wide = size == 0xFFFFFFFF
                if wide and len(field) < 8:
                    break
                found.append(struct.unpack_from("<Q", field)[0] if wide else size)
                field = field[8:] if wide else field
            if len(found) == 3:
                return (found[0], found[1], found[2])
        at += 4 + length
    raise FileError(reader.name, f"{shortened(name)}: its zip64 sizes are missing")


def offsets(reader: Reader, members: Iterable[Member]) -> dict[str, int]:
    """Where the bytes of each member begin. Headers that lie close together are read together.

    Raises:
        FileError: a local header that is none, or that is of another member.
    """
    found: dict[str, int] = {}
    window, window_at = b"", 0
    for member in sorted(members, key=lambda member: member.header_offset):
        raw_nbytes = len(member.name.encode("utf-8", "surrogateescape"))
        at = member.header_offset - window_at
        if not 0 <= at <= len(window) - 30 - raw_nbytes:
            wanted = 30 + raw_nbytes + (1 << 16 if member.stored_nbytes < 1 << 14 else 0)
            window_at, at = member.header_offset, 0
            window = reader.read(window_at, min(wanted, reader.nbytes - window_at))
        if len(window) < at + 30 or window[at : at + 4] != b"PK\x03\x04":
            raise FileError(reader.name, f"{shortened(member.name)}: no local header at byte {member.header_offset:,}")
        name_nbytes, extra_nbytes = struct.unpack_from("<HH", window, at + 26)
        name = window[at + 30 : at + 30 + name_nbytes]
        if (
            name_nbytes == raw_nbytes
            and member.flags & 0x800
            and name != member.name.encode("utf-8", "surrogateescape")
        ):
            raise FileError(reader.name, f"{shortened(member.name)}: its local header is of {shortened(repr(name))}")
        begin = member.header_offset + 30 + name_nbytes + extra_nbytes
        if begin + member.stored_nbytes > reader.nbytes:
            raise FileError(reader.name, f"{shortened(member.name)}: its bytes run past the end of the file")
        found[member.name] = begin
    return found


def contents(reader: Reader, member: Member) -> bytes:
    """A member's bytes, inflated where it is deflated.

    Raises:
        FileError: another compression, encryption, or bytes that do not inflate to the size that was said.
    """
    if member.flags & 1:
        raise FileError(reader.name, f"{shortened(member.name)} is encrypted")
    raw = reader.read(offsets(reader, [member])[member.name], member.stored_nbytes)
    if member.method == STORED:
        return raw
    if member.method != DEFLATED:
        raise FileError(reader.name, f"{shortened(member.name)} is compressed by method {member.method}")
    if member.nbytes > max(_FREELY_INFLATED_NBYTES, _MOST_INFLATED * member.stored_nbytes) or member.nbytes > 1 << 28:
        what = f"{shortened(member.name)} would inflate from {member.stored_nbytes:,} to {member.nbytes:,} bytes"
        raise FileError(reader.name, what)
    try:
        inflater = zlib.decompressobj(-15)
        data = inflater.decompress(raw, member.nbytes + 1)
    except zlib.error as error:
        raise FileError(reader.name, f"{shortened(member.name)} does not inflate: {error}") from None
    if len(data) != member.nbytes:
        raise FileError(reader.name, f"{shortened(member.name)} inflates to {len(data):,} bytes, not {member.nbytes:,}")
    return data
