"""Header tier: numpy's npz, a zip of npy members that are stored, and not deflated.

There are no times of day in it, so the same tensors give the same bytes.

Source: numpy/lib/_format_impl.py (`_write_array_header`, version 1.0), _npyio_impl.py (`_savez`).
"""

from __future__ import annotations

import struct
import zipfile
from typing import IO

from paramctl.formats.npy import CODES, MAGIC
from paramctl.formats.pour import Pourer
from paramctl.outline import Entry, Outline
from paramctl.storages import Blob

_CODES = {name: code for code, name in CODES.items() if not code.startswith("V")}
DTYPES = frozenset(_CODES)
_ALIGNMENT = 64
_MOST_NAME_NBYTES = 65_000


def cannot_name(name: str) -> bool:
    """Whether a member of a zip cannot be called so."""
    return "\0" in name or len(name.encode("utf-8")) > _MOST_NAME_NBYTES


def write(made: Outline, file: IO[bytes], pourer: Pourer) -> None:
    """Write the tensors of an outline, each an array."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for entry in made.entries:
            member = zipfile.ZipInfo(f"{entry.name}.npy", (1980, 1, 1, 0, 0, 0))
            member.external_attr = 0o600 << 16
            with archive.open(member, "w", force_zip64=True) as out:
                out.write(header(entry))
                for piece in pourer.pieces(Blob(entry.param, entry.dtype)):
                    out.write(piece)


def header(entry: Entry) -> bytes:
    """What stands before the elements of an array."""
    code = _CODES[entry.dtype.name]
    order = "|" if code[1:] == "1" else "<"
    text = f"{{'descr': '{order}{code}', 'fortran_order': False, 'shape': {entry.param.shape}, }}".encode()
    text += b" " * (-(len(MAGIC) + 4 + len(text) + 1) % _ALIGNMENT) + b"\n"
    return MAGIC + bytes([1, 0]) + struct.pack("<H", len(text)) + text
