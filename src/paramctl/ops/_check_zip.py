"""Header tier: whether an archive is whole: every checksum, and both of the headers that each member has.

The standard library's `zipfile` lists the members: it takes what our own reader refuses, a name that stands twice.

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7 and 4.3.9; caffe2/serialize/inline_container.cc.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from paramctl.errors import FileError, shortened
from paramctl.ops._check_findings import Finding
from paramctl.source import Reader

_LOCAL = struct.Struct("<4s5H3I2H")
_CHUNK = 1 << 20
_TAIL = 22 + 65535
_WIDE = 0xFFFFFFFF
MOST_PICKLE_NBYTES = 1 << 27
_MOST_INFLATED_NBYTES = 1 << 26


class Place(NamedTuple):
    """A member, and where its bytes are."""

    info: zipfile.ZipInfo
    begin: int  # of its bytes
    end: int  # behind its data descriptor


def members(reader: Reader) -> tuple[list[zipfile.ZipInfo], int]:
    """What the directory lists, twice what stands twice, and where it begins; nothing where there is no directory."""
    try:
        with zipfile.ZipFile(Path(reader.path)) as archive:
            return archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error, OverflowError, MemoryError):
        return [], 0


def places(reader: Reader, infos: list[zipfile.ZipInfo]) -> tuple[list[Place], list[Finding]]:
    """Where each member lies, and how its local header differs from the directory."""
    found: list[Place] = []
    faults: list[Finding] = []
    for info in infos:
        name = info.orig_filename
        try:
            place, wrong = _place(reader, info)
        except FileError:
            faults.append(
                Finding(
                    "error", "local-header", name, f"its local header at byte {info.header_offset:,} is not in the file"
                )
            )
            continue
        faults += [
            Finding("error", "local-header", name, f"the directory and its local header disagree: {what}")
            for what in wrong
        ]
        if info.flag_bits & 1:
            faults.append(Finding("error", "encrypted", name, "it is encrypted, which torch does not read"))
        if place is not None:
            found.append(place)
    return found, faults


def _place(reader: Reader, info: zipfile.ZipInfo) -> tuple[Place | None, list[str]]:
    at = info.header_offset
    magic, _, flags, method, _, _, crc, stored, nbytes, name_nbytes, extra_nbytes = _LOCAL.unpack(reader.read(at, 30))
    if magic != b"PK\x03\x04":
        return None, [f"there is none at byte {at:,}"]
    raw = reader.read(at + 30, name_nbytes + extra_nbytes)
    begin = at + 30 + len(raw)
    end = begin + info.compress_size
    if end > reader.nbytes:
        return None, [f"{info.compress_size:,} bytes at {begin:,} run past the end of the file"]
    wrong = []
    name = raw[:name_nbytes].decode("utf-8" if flags & 0x800 else "cp437", "surrogateescape")
    if name != info.orig_filename:
        wrong.append(f"it is of {shortened(name, 80)}")
    if method != info.compress_type:
        wrong.append(f"method {info.compress_type} and {method}")
    if (flags ^ info.flag_bits) & 1:
        wrong.append("one says that it is encrypted")
    deferred = flags & 8
    for what, central, local in (("size", info.file_size, nbytes), ("stored size", info.compress_size, stored)):
        if local not in (central, _WIDE) and not (deferred and local == 0):
            wrong.append(f"{what} {central:,} and {local:,}")
    if crc != info.CRC and not (deferred and crc == 0):
        wrong.append(f"checksum {info.CRC:08x} and {crc:08x}")
    return Place(info, begin, end + (_descriptor_nbytes(reader, end, info) if deferred else 0)), wrong


def _descriptor_nbytes(reader: Reader, at: int, info: zipfile.ZipInfo) -> int:
    tail = reader.read(at, min(24, reader.nbytes - at))
    signed = 4 if tail[:4] == b"PK\x07\x08" else 0
    narrow = struct.pack("<2I", info.compress_size & _WIDE, info.file_size & _WIDE)
    wide = struct.pack("<2Q", info.compress_size, info.file_size)
    if tail[signed + 4 : signed + 20] == wide:
        return signed + 20
    return signed + 12 if tail[signed + 4 : signed + 12] == narrow else 0


def layout(found: list[Place], directory_offset: int) -> Iterator[Finding]:
    """Members that lie upon each other, and bytes that belong to none."""
    at, before = 0, ""
    for place in sorted(found, key=lambda place: place.info.header_offset):
        start, name = place.info.header_offset, place.info.orig_filename
        if start < at:
            yield Finding(
                "error", "overlap", name, f"it begins at byte {start:,}, and {shortened(before, 80)} ends at {at:,}"
            )
        elif start > at:
            yield Finding(
                "warning",
                "unused-bytes",
                name,
                f"the {start - at:,} bytes before it, from {at:,} on, belong to no member",
            )
        if place.end > at:
            at, before = place.end, name
    if found and at < directory_offset:
        yield Finding(
            "warning",
            "unused-bytes",
            "",
            f"the {directory_offset - at:,} bytes before the directory, from {at:,} on, belong to no member",
        )
    if found and at > directory_offset:
        yield Finding(
            "error", "overlap", before, f"it ends at byte {at:,}, and the directory begins at {directory_offset:,}"
        )


def behind(reader: Reader) -> list[Finding]:
    """Bytes behind the directory: a comment, or what somebody has put there."""
    tail = reader.read(max(reader.nbytes - _TAIL, 0), min(reader.nbytes, _TAIL))
    nbytes = len(tail) - tail.rfind(b"PK\x05\x06") - 22
    if nbytes <= 0:
        return []
    return [Finding("warning", "unused-bytes", "", f"{nbytes:,} bytes stand behind the directory")]


def duplicates(infos: list[zipfile.ZipInfo]) -> list[Finding]:
    """Names that stand more than once: programs differ in which they take."""
    counts = Counter(info.orig_filename for info in infos)
    return [
        Finding(
            "error",
            "duplicate-member",
            name,
            f"it stands {times} times in the archive, and programs differ in which they take",
        )
        for name, times in counts.items()
        if times > 1
    ]


def checksums(reader: Reader, found: list[Place]) -> list[Finding]:
    """Members whose bytes are not what was written; one note where the writer wrote no checksums."""
    faults: list[tuple[Place, str]] = []
    for place in found:
        if place.info.flag_bits & 1:
            continue
        what = _mismatch(reader, place)
        if what:
            faults.append((place, what))
    filled = [place for place in found if place.info.file_size]
    said = {place.info.CRC for place, _ in faults}
    if faults and said == {0} and len(faults) == len(filled):
        return [
            Finding("note", "no-checksums", "", "it was written without checksums, so changed bytes cannot be told")
        ]
    return [Finding("error", "checksum", place.info.orig_filename, what) for place, what in faults]


def _mismatch(reader: Reader, place: Place) -> str:
    info = place.info
    crc = nbytes = 0
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"it is compressed by method {info.compress_type}, and torch reads only stored and deflated members"
    try:
        for chunk in unpacked(reader, place):
            crc = zlib.crc32(chunk, crc)
            nbytes += len(chunk)
            if nbytes > info.file_size:
                break
    except zlib.error as error:
        return f"it does not inflate: {error}"
    if nbytes != info.file_size:
        more = "more than " if nbytes > info.file_size else ""
        return f"it says {info.file_size:,} bytes, and inflates to {more}{min(nbytes, info.file_size):,}"
    return f"its checksum is {crc:08x}, and should be {info.CRC:08x}" if crc != info.CRC else ""


def unpacked(reader: Reader, place: Place) -> Iterator[bytes]:
    """The member's bytes, a piece at a time; nothing of a compression that is not known."""
    at, end = place.begin, place.begin + place.info.compress_size
    method = place.info.compress_type
    inflater = zlib.decompressobj(-15) if method == zipfile.ZIP_DEFLATED else None
    if inflater is None and method != zipfile.ZIP_STORED:
        return
    while at < end:
        chunk = reader.read(at, min(_CHUNK, end - at))
        at += len(chunk)
        if inflater is None:
            yield chunk
            continue
        while chunk and not inflater.eof:
            yield inflater.decompress(chunk, _CHUNK)
            chunk = inflater.unconsumed_tail
    if inflater is not None:
        yield inflater.flush()


def head(reader: Reader, place: Place, most: int) -> bytes:
    """The first bytes of a member, as many as can be had."""
    pieces, have = [], 0
    most = (
        most
        if place.info.compress_type == zipfile.ZIP_STORED
        else min(most, _MOST_INFLATED_NBYTES, max(1 << 24, 64 * place.info.compress_size))
    )
    try:
        for chunk in unpacked(reader, place):
            pieces.append(chunk)
            have += len(chunk)
            if have >= most:
                break
    except zlib.error:
        pass
    return b"".join(pieces)[:most]
