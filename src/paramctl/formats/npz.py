"""Header tier: numpy's npz, a zip of npy members, stored or deflated. Nothing is unpickled.

Of each member only the header is read, a deflated one as far as it takes. Names are those of the members without
`.npy`. What is no tensor is told in a few words and not read.

Source: numpy/lib/_npyio_impl.py (`savez`, `savez_compressed`, `NpzFile`); numpy/lib/_format_impl.py.
"""

from __future__ import annotations

import zlib
from typing import Any

from paramctl.checkpoint import Checkpoint, Extent, Param
from paramctl.errors import FileError, shortened
from paramctl.formats import npy
from paramctl.formats.zip_directory import DEFLATED, STORED, Member, directory, offsets
from paramctl.source import Reader

NAME = "npz"
_SUFFIX = ".npy"
_FIRST_NBYTES = 192  # numpy pads a header to a multiple of 64, and most take 128


def sniff(reader: Reader) -> bool:
    """Whether it is a zip with npy members, and none of torch's. A zip that is damaged is left to who comes last."""
    if not reader.head.startswith(b"PK\x03\x04"):
        return False
    try:
        members = directory(reader)
    except FileError:
        return False
    is_torch = any(name == "data.pkl" or name.endswith("/data.pkl") for name in members)
    return not is_torch and any(name.endswith(_SUFFIX) for name in members)


def read(reader: Reader) -> Checkpoint:
    """The arrays of an npz archive.

    Raises:
        FileError: an archive that is damaged, or a header that does not fit its member.
    """
    members = directory(reader)
    begins = offsets(reader, members.values())
    params: dict[str, Param] = {}
    extras: dict[str, Any] = {}
    known: dict[bytes, npy.Array] = {}
    for member in members.values():
        name = member.name.removesuffix(_SUFFIX)
        if not member.name.endswith(_SUFFIX):
            if not member.name.endswith("/"):
                extras[name] = f"a member of {member.nbytes:,} bytes that is no array"
            continue
        begin = begins[member.name]
        raw = _header(reader, member, begin)
        array = known.get(raw)
        if array is None:
            array = known[raw] = npy.parsed(reader.name, _label(member), raw)
        _fits(reader, member, array)
        if array.dtype is None or array.nbytes is None:
            extras[name] = array.word
        elif member.method == STORED:
            params[name] = array.param(name, Extent(reader.path, begin + array.header_nbytes, array.nbytes))
        else:
            packed = Extent(reader.path, begin, member.stored_nbytes, "deflate", array.header_nbytes)
            params[name] = array.param(name, packed)
    return Checkpoint(reader.source, NAME, params, extras=extras)


def _label(member: Member) -> str:
    return f"'{shortened(member.name)}'"


def _header(reader: Reader, member: Member, begin: int) -> bytes:
    """The member's bytes up to its first element, whichever way they are stored."""
    if member.flags & 1:
        raise FileError(reader.name, f"{_label(member)} is encrypted")
    if member.method not in (STORED, DEFLATED):
        raise FileError(reader.name, f"{_label(member)} is compressed by method {member.method}")
    first = _begin(reader, member, begin, _FIRST_NBYTES)
    nbytes = npy.header_nbytes(reader.name, _label(member), first[: npy.PREFIX_NBYTES])
    raw = first if nbytes <= len(first) else _begin(reader, member, begin, nbytes)
    if len(raw) < nbytes:
        what = f"its header takes {nbytes:,} bytes, and it has {len(raw):,}"
        raise FileError(reader.name, f"{_label(member)}: {what}")
    return raw[:nbytes]


def _begin(reader: Reader, member: Member, begin: int, nbytes: int) -> bytes:
    """The first `nbytes` bytes of a member, or as many as there are."""
    if member.method == STORED:
        return reader.read(begin, min(nbytes, member.nbytes))
    inflater = zlib.decompressobj(-15)
    made, at = b"", 0
    try:
        while len(made) < nbytes and at < member.stored_nbytes and not inflater.eof:
            packed = reader.read(begin + at, min(1024, member.stored_nbytes - at))
            at += len(packed)
            made += inflater.decompress(inflater.unconsumed_tail + packed, nbytes - len(made))
    except zlib.error as error:
        raise FileError(reader.name, f"{_label(member)} does not inflate: {error}") from None
    return made


def _fits(reader: Reader, member: Member, array: npy.Array) -> None:
    has = member.nbytes - array.header_nbytes
    if (array.nbytes or 0) > has:
        what = f"its shape takes {array.nbytes:,} bytes, and {has:,} follow its header"
        raise FileError(reader.name, f"{_label(member)}: {what}")
