"""Checksums of what was changed in place."""

from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from paramctl.formats.checksums import Patch, patched


@given(
    data=st.binary(min_size=1, max_size=300),
    edits=st.lists(st.tuples(st.integers(0), st.binary(max_size=20)), max_size=4),
)
def test_a_checksum_follows_its_changes(data: bytes, edits: list[tuple[int, bytes]]):
    """After any changes, over one another too, it is the CRC-32 of the data as it then is."""
    now, crc, begin = bytearray(data), zlib.crc32(data), 1000
    for where, new in edits:
        at = where % len(now)
        end = min(at + len(new), len(now))
        before = zlib.crc32(now[at:end])
        now[at:end] = new[: end - at]
        crc = patched(crc, Patch(begin + at, end - at, before ^ zlib.crc32(now[at:end])), begin + len(now))
    assert crc == zlib.crc32(now)


def test_what_was_wrong_stays_wrong():
    """The checksum of damaged data does not become right by a change elsewhere in it."""
    damaged, crc = bytearray(b"\1" + bytes(99)), zlib.crc32(bytes(100))
    new = patched(crc, Patch(50, 1, zlib.crc32(b"\0") ^ zlib.crc32(b"\7")), 100)
    damaged[50] = 7
    assert new == zlib.crc32(bytes(50) + b"\7" + bytes(49)) != zlib.crc32(damaged)
