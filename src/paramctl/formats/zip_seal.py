"""Header tier: the checksums of a zip in which bytes were changed, in its directory and beside the member itself.

What stands beside a change is not read (`checksums`).

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.9 (data descriptor), 4.3.12 (central directory).
"""

from __future__ import annotations

import functools
import os
import struct
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import BinaryIO

from paramctl.formats.checksums import Patch, patched, put
from paramctl.formats.zip_directory import Member, directory, offsets
from paramctl.source import Reader, Source


def seal(file: BinaryIO, source: Source, patches: Iterable[Patch]) -> None:
    """Make the checksums of changed members right.

    Args:
        file: the new file, open for reading and writing, with the geometry of `source`.
        source: the file that it was copied from, which need not be in memory any more.
        patches: what was changed, in that order.
    """
    with Reader(source, descriptor=file.fileno()) as reader:
        reseal(file, reader, patches)


def reseal(file: BinaryIO, reader: Reader, patches: Iterable[Patch], *, base: int = 0) -> list[Patch]:
    """Make the checksums of the members right in which something was changed; one that was wrong stays so.

    Args:
        file: the new file.
        reader: the archive as it was.
        patches: what was changed in `file`, in that order.
        base: where the archive begins in the file.

    Returns:
        What was changed for that.
    """
    members = directory(reader)
    begins = {name: base + begin for name, begin in offsets(reader, members.values()).items()}
    made: list[Patch] = []
    for name, changes in within(members, begins, patches).items():
        member, behind = members[name], begins[name] + members[name].stored_nbytes
        crc = functools.reduce(lambda crc, change: patched(crc, change, behind), changes, member.crc)
        by_itself = base + member.header_offset + 14
        if member.flags & 8:
            by_itself = behind + (4 if os.pread(file.fileno(), 4, behind) == b"PK\x07\x08" else 0)
        made += [
            put(file.fileno(), at, struct.pack("<I", crc)) for at in (base + member.central_offset + 16, by_itself)
        ]
    return made


def within(
    members: Mapping[str, Member], begins: Mapping[str, int], patches: Iterable[Patch]
) -> dict[str, list[Patch]]:
    """The changes in each member that has any, by its name; `begins` says where their bytes begin in the file."""
    names = sorted(members, key=begins.__getitem__)
    found: dict[str, list[Patch]] = {}
    for change in patches:
        at = bisect_right(names, change.offset, key=begins.__getitem__)
        name = names[at - 1] if at else ""
        if name and change.offset + change.nbytes <= begins[name] + members[name].stored_nbytes:
            found.setdefault(name, []).append(change)
    return found
