"""Header tier: the opcodes of a pickle, gone over before anything is made of them.

The unpickler of the standard library believes what it reads. A memo index makes it ask for memory, so here one is
held against the pickle's size; and its dicts and sets hash what they are given, for which tuples within tuples ask
time and stack without end, so here containers of ours take their place.

Source: CPython's Lib/pickletools.py.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from paramctl.errors import FileError
from paramctl.formats.notes import Dict, Set

_DAMAGED = "the file is cut short or damaged"
_PLAIN = b"()012NQRabe]lostu\x81\x85\x86\x87\x88\x89\x90\x92\x93\x94"
_LINES = {b"I": 1, b"L": 1, b"F": 1, b"S": 1, b"V": 1, b"P": 1, b"g": 1, b"c": 2, b"i": 2}
_COUNTED = {
    b"U": "<B", b"T": "<I", b"X": "<I", b"\x8c": "<B", b"\x8d": "<Q", b"C": "<B", b"B": "<I", b"\x8e": "<Q",
    b"\x96": "<Q", b"\x8a": "<B", b"\x8b": "<I",
}  # fmt: skip
_LAYOUTS = {opcode: struct.Struct(layout) for opcode, layout in _COUNTED.items()}
_FRESH: dict[bytes, type[Dict | Set]] = {b"}": Dict, b"\x8f": Set}
_FRESH_RUNS = {opcode: re.compile(b"[" + opcode + b"]++").match for opcode in _FRESH}
_NEXT_BUFFER, _FROZENSET, _TUPLE = b"\x97", b"\x91", ord("t")
_FREELY_MADE = 1_000_000  # containers; beyond, one in so many bytes at most: a name and a value take more
_LEAST_NBYTES = 8
_REFUSED = {
    b"d": "builds a dict as protocol 0 does",
    b"\x82": "uses an extension code",
    b"\x83": "uses an extension code",
    b"\x84": "uses an extension code",
    b"\x97": "wants a buffer from outside",
    b"\x98": "wants a buffer from outside",
}


class UnfinishedError(FileError):
    """The bytes end inside the pickle. `wanted`: at least so many are needed to go on."""

    def __init__(self, file: object, what: str, *, wanted: int, hint: str = "") -> None:
        super().__init__(file, what, hint=hint)
        self.wanted = wanted


class Walked(NamedTuple):
    """A pickle whose dicts and sets are to be taken from `fresh`, one after another, as its buffers."""

    data: bytearray
    fresh: list[type[Dict | Set]]
    end: int  # the position behind the STOP


def _plain_run(most: int) -> re.Pattern[bytes]:
    """Opcodes that end where is known at sight, a PUT only below about `most`; and strings of 0 to 8 bytes."""
    high = min(most >> 16, 0xFFFF) + 1
    top, next_ = min(high >> 8, 0xFF), 0xFF if high >> 8 else min(high, 0xFF)
    put = b"r..[\\x00-\\x%02x][\\x00-\\x%02x]" % (next_, top)
    long = b"|".join(b"\\x%02x\\0\\0\\0%s" % (n, b"." * n) for n in range(9))
    short = b"|".join(b"\\x%02x%s" % (n, b"." * n) for n in range(9))
    kinds = (
        b"[" + re.escape(_PLAIN) + b"]", rb"[Khq\x80].|M..|[Jj]....|[G\x95]........", put,
        b"p[0-9]{1,%d}\\n" % (len(str(most)) - 1) if most >= 10 else b"(?!)",
        b"X(?:" + long + b")", rb"[U\x8cC](?:" + short + b")", rb"[ILFSVPg][^\n]*+\n|[ci][^\n]*+\n[^\n]*+\n",
    )  # fmt: skip
    return re.compile(b"(?:" + b"|".join(kinds) + b")++", re.DOTALL)


def walk(data: bytes, name: str) -> Walked:
    """Go over the opcodes to the STOP.

    Raises:
        UnfinishedError: the bytes end before the STOP.
        FileError: an opcode that is none, an argument that runs past the end, a memo index beyond the pickle's size.
    """
    run = _plain_run(len(data)).match
    safe = bytearray(data)
    fresh: list[type[Dict | Set]] = []
    at, end = 0, len(data)
    lists = 0  # at most so many: short texts are counted too
    while at < end:
        matched = run(data, at)
        if matched:
            begin, at = at, matched.end()
            lists += data.count(b"]", begin, at) + data.count(b"l", begin, at)
        opcode = data[at : at + 1]
        if opcode in _LAYOUTS:
            layout = _LAYOUTS[opcode]
            if at + 1 + layout.size > end:
                break
            at += 1 + layout.size + layout.unpack_from(data, at + 1)[0]
        elif opcode in _FRESH:
            many = len(_FRESH_RUNS[opcode](data, at).group())  # type: ignore[union-attr]
            safe[at : at + many] = _NEXT_BUFFER * many
            at += many
            if len(fresh) + many > max(_FREELY_MADE, at // _LEAST_NBYTES):
                raise FileError(name, f"the pickle makes {len(fresh) + many:,} dicts and sets in {at:,} bytes")
            fresh += [_FRESH[opcode]] * many
        elif opcode in _LINES:
            for _ in range(_LINES[opcode]):
                at = data.find(b"\n", at + 1)
                if at < 0:
                    raise UnfinishedError(name, "the pickle ends inside a line", wanted=end + 1, hint=_DAMAGED)
            at += 1
        elif opcode == _FROZENSET:
            safe[at] = _TUPLE
            at += 1
        elif opcode == b"p":
            newline = data.find(b"\n", at, at + 24)
            if newline < 0 and at + 24 > end:
                raise UnfinishedError(name, f"the pickle ends inside the opcode at byte {at:,}", wanted=at + 24)
            if newline < 0 or not data[at + 1 : newline].isdigit() or int(data[at + 1 : newline]) > end:
                raise FileError(name, f"the pickle has a memo index at byte {at:,} that it cannot fill")
            at = newline + 1
        elif opcode == b".":
            if lists > max(_FREELY_MADE, at // 4):
                raise FileError(name, f"the pickle makes {lists:,} lists in {at:,} bytes")
            return Walked(safe, fresh, at + 1)
        elif opcode:
            raise _wrong(name, opcode, at, end)
    what = f"the pickle ends without its STOP, after {end:,} bytes"
    raise UnfinishedError(name, what, wanted=max(at, end) + 1, hint=_DAMAGED)


def _wrong(name: str, opcode: bytes, at: int, end: int) -> FileError:
    if opcode in _REFUSED:
        return FileError(name, f"the pickle {_REFUSED[opcode]} at byte {at:,}")
    if opcode == b"r" and at + 5 <= end:
        return FileError(name, f"the pickle has a memo index at byte {at:,} that it cannot fill")
    if opcode in (b"K", b"h", b"q", b"\x80", b"M", b"J", b"j", b"G", b"\x95", b"r"):
        return UnfinishedError(name, f"the pickle ends inside the opcode at byte {at:,}", wanted=end + 1)
    return FileError(name, f"the pickle has no opcode {opcode!r} (byte {at:,})")
