"""Header tier: the CRC-32 of data of which some bytes were changed, without the rest of it.

A CRC is the remainder of a polynomial over the field of two elements, and so linear: bytes of the same length that
differ in some place differ in their CRCs by that of the difference, times x to the power of the bits behind it.

Source: RFC 1952, section 8 (the polynomial); Warren, Hacker's Delight, chapter 14.
"""

from __future__ import annotations

import os
import zlib
from typing import NamedTuple

from paramctl.formats.copying import write_at

_POLYNOMIAL = 0xEDB88320  # bit 31 - k is the coefficient of x^k
_ONE = 1 << 31
_BITS = 32
_PIECE_NBYTES = 1 << 20  # that are read at once


class Patch(NamedTuple):
    """A place in a file whose bytes were changed."""

    offset: int
    nbytes: int
    difference: int  # of the CRC-32 of its bytes, before ^ after


def put(descriptor: int, offset: int, data: bytes | bytearray) -> Patch:
    """Change bytes of a file that is open for reading and writing."""
    before = 0
    for at in range(0, len(data), _PIECE_NBYTES):
        before = zlib.crc32(os.pread(descriptor, min(_PIECE_NBYTES, len(data) - at), offset + at), before)
    write_at(descriptor, offset, data)
    return Patch(offset, len(data), before ^ zlib.crc32(data))


def patched(crc: int, change: Patch, end: int) -> int:
    """The CRC-32 of data that ends at `end` of the file, after a change within it."""
    behind = end - change.offset - change.nbytes
    return crc ^ _times(change.difference, _power_of_x(8 * behind))


def _times(a: int, b: int) -> int:
    """The product of two polynomials, modulo the CRC's."""
    product = 0
    for k in range(_BITS):
        if a & (_ONE >> k):
            product ^= b
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product


def _power_of_x(exponent: int) -> int:
    power, square = _ONE, _ONE >> 1
    while exponent:
        if exponent & 1:
            power = _times(power, square)
        square = _times(square, square)
        exponent >>= 1
    return power
