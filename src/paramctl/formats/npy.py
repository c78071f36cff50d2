"""Header tier: numpy's npy, one array or several end to end. Nothing is unpickled.

A magic, a version, the length of a header, and the header: a Python dict of `descr`, `fortran_order` and `shape`; then
the elements. What is no tensor, as an array of objects or of text, is told in a few words and not read. Arrays that
follow each other in one file, as equinox writes them, are called by their position.

Source: numpy/lib/_format_impl.py, its docstring ("Format Version 1.0" to "3.0") and `_read_array_header`.
"""

from __future__ import annotations

import ast
import math
import re
import struct
import warnings
from typing import Any, Literal, NamedTuple

from paramctl.checkpoint import Checkpoint, Extent, Param, Storage, contiguous
from paramctl.dtypes import DTYPES, DType
from paramctl.errors import FileError, shortened
from paramctl.source import Reader

NAME = "npy"
MAGIC = b"\x93NUMPY"
MOST_HEADER_NBYTES = 1 << 16
PREFIX_NBYTES = 12  # magic, version, and the longer of the lengths
_MOST_DIMENSIONS = 64
CODES = {
    "f2": "float16", "f4": "float32", "f8": "float64", "c8": "complex64", "c16": "complex128",
    "i1": "int8", "i2": "int16", "i4": "int32", "i8": "int64",
    "u1": "uint8", "u2": "uint16", "u4": "uint32", "u8": "uint64", "b1": "bool",
    "V1": "bits8", "V2": "bits16",  # what ml_dtypes leaves of float8 and bfloat16
}  # fmt: skip
_KINDS = {"O": "objects", "U": "text", "S": "bytes", "V": "bytes", "M": "dates", "m": "durations", "f": "floats",
          "c": "complex numbers"}  # fmt: skip
_USUAL = re.compile(
    rb"\{'descr': '([<>|=][A-Za-z]\d*)', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,18}, ?)*\d{0,18})\), ?\} *\n?"
)
_LONG = re.compile(r"(\d)L\b")  # Python 2


class Array(NamedTuple):
    """An array as its header tells it. Without a dtype it is no tensor, and `word` says what it is."""

    dtype: DType | None
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    byteorder: Literal["little", "big"]
    header_nbytes: int  # from the magic to the first element
    nbytes: int | None  # of its elements; None: not known without reading them
    word: str = ""

    def param(self, name: str, extent: Extent) -> Param:
        if self.dtype is None or self.nbytes is None:
            raise TypeError(name)
        storage = Storage(name, self.nbytes, (extent,), None, self.byteorder)
        return Param(name, self.dtype, self.shape, self.stride, storage)


def sniff(reader: Reader) -> bool:
    return reader.head.startswith(MAGIC)


def read(reader: Reader) -> Checkpoint:
    """The arrays of an npy file: one is called `tensor`, several `0`, `1` and so on.

    Raises:
        FileError: a header that is damaged, or that does not fit the bytes that follow.
    """
    found: list[tuple[int, Array]] = []
    at = 0
    while at == 0 or reader.read(at, min(len(MAGIC), reader.nbytes - at)) == MAGIC:
        label = "the array" if at == 0 else f"array {len(found):,}"
        array = _array_at(reader, at, label)
        found.append((at + array.header_nbytes, array))
        if array.nbytes is None:
            break
        at += array.header_nbytes + array.nbytes
    params: dict[str, Param] = {}
    extras: dict[str, Any] = {}
    for index, (begin, array) in enumerate(found):
        name = str(index) if len(found) > 1 else "tensor"
        if array.dtype is None or array.nbytes is None:
            extras[name] = array.word
        else:
            params[name] = array.param(name, Extent(reader.path, begin, array.nbytes))
    if at < reader.nbytes and found[-1][1].nbytes is not None:
        extras["trailing_nbytes"] = reader.nbytes - at
    return Checkpoint(reader.source, NAME, params, extras=extras)


def _array_at(reader: Reader, at: int, label: str) -> Array:
    left = reader.nbytes - at
    nbytes = header_nbytes(reader.name, label, reader.read(at, min(PREFIX_NBYTES, left)))
    if nbytes > left:
        raise FileError(
            reader.name,
            f"the header of {label} ends at {at + nbytes:,}, the file has {reader.nbytes:,}",
            hint="the download may have been cut short",
        )
    array = parsed(reader.name, label, reader.read(at, nbytes))
    end = at + nbytes + (array.nbytes or 0)
    if end > reader.nbytes:
        missing = f": {end - reader.nbytes:,} bytes are missing" if end < 1 << 44 else ""
        raise FileError(
            reader.name,
            f"{label} ends at {end:,}, the file has {reader.nbytes:,}",
            hint=f"the download may have been cut short{missing}",
        )
    return array


def header_nbytes(file: str, label: str, prefix: bytes) -> int:
    """Bytes from the magic to the first element, told by the first twelve.

    Raises:
        FileError: fewer bytes than that, another version, or a header beyond belief.
    """
    if not prefix.startswith(MAGIC):
        raise FileError(file, f"{label} does not begin as a numpy array does")
    if len(prefix) < PREFIX_NBYTES:
        what = f"the header of {label} is cut off after {len(prefix)} bytes"
        raise FileError(file, what, hint="the download may have been cut short")
    major, minor = prefix[6:8]
    if major not in (1, 2, 3) or minor:
        raise FileError(file, f"{label} is of npy version {major}.{minor}; 1.0 to 3.0 are read")
    begin, code = (10, "<H") if major == 1 else (12, "<I")
    (nbytes,) = struct.unpack_from(code, prefix, 8)
    if nbytes > MOST_HEADER_NBYTES:
        what = f"the header of {label} says {nbytes:,} bytes, and {MOST_HEADER_NBYTES:,} is the most that is read"
        raise FileError(file, what)
    return int(begin + nbytes)


def parsed(file: str, label: str, raw: bytes) -> Array:
    """The array that a header, from its magic to its end, tells of.

    Raises:
        FileError: a header that is none.
    """
    text = raw[10 if raw[6] == 1 else 12 :]
    usual = _USUAL.fullmatch(text)
    if usual:
        descr: Any = usual[1].decode()
        fortran, shape = usual[2] == b"True", tuple(int(size) for size in usual[3].split(b",") if size.strip())
    else:
        descr, fortran, shape = _literal(file, label, text, "utf-8" if raw[6] == 3 else "latin-1")
    if len(shape) > _MOST_DIMENSIONS:
        raise FileError(file, f"{label} has {len(shape):,} dimensions, and {_MOST_DIMENSIONS} is the most there may be")
    numel = math.prod(size or 1 for size in shape)
    if numel >= 1 << 63:
        raise FileError(file, f"{label} has more elements than a tensor can have")
    return _described(file, label, len(raw), descr, fortran, shape)


def _literal(file: str, label: str, text: bytes, encoding: str) -> tuple[Any, bool, tuple[int, ...]]:
    """Descr, order and shape of a header that is not written as usual: a structured dtype, or a hand of its own."""
    try:
        said = text.decode(encoding).strip()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that are none
            header = _evaluated(said)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise FileError(file, f"the header of {label} is not a Python literal") from None
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise FileError(file, f"the header of {label} does not say descr, fortran_order and shape, and nothing else")
    fortran, shape = header["fortran_order"], header["shape"]
    if type(fortran) is not bool:
        raise FileError(file, f"{label}: its fortran_order is neither True nor False")
    if type(shape) is not tuple or not all(type(size) is int and size >= 0 for size in shape):
        raise FileError(file, f"{label}: {shortened(repr(shape), 60)} is no shape")
    return header["descr"], fortran, shape


def _evaluated(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except SyntaxError:
        return ast.literal_eval(_LONG.sub(r"\1", text))


def _described(file: str, label: str, nbytes: int, descr: Any, fortran: bool, shape: tuple[int, ...]) -> Array:
    stride = tuple(reversed(contiguous(tuple(reversed(shape))))) if fortran else contiguous(shape)
    size = "×".join(map(str, shape)) or "a scalar"
    if isinstance(descr, list):
        fields = [shortened(str(field[0]), 40) for field in descr if isinstance(field, tuple) and field]
        more = ", …" if len(fields) > 8 else ""
        word = f"an array of records ({', '.join(fields[:8])}{more}), {size}, which is not read"
        return Array(None, shape, stride, "little", nbytes, None, word)
    match = re.fullmatch(r"([<>|=]?)([A-Za-z?])(\d{0,9})(?:\[\w+\])?", descr) if isinstance(descr, str) else None
    if match is None:
        raise FileError(file, f"{label}: {shortened(repr(descr), 60)} is no dtype")
    dtype = DTYPES.get(CODES.get(match[2] + match[3], ""))
    order: Literal["little", "big"] = "big" if match[1] == ">" else "little"
    if dtype is not None:
        return Array(dtype, shape, stride, order, nbytes, dtype.nbytes(math.prod(shape)))
    kind = _KINDS.get(match[2])
    if kind is None:
        raise FileError(file, f"{label}: {shortened(repr(descr), 60)} is no dtype")
    word = f"an array of {kind} ({shortened(descr, 40)}), {size}, which is not read"
    if match[2] == "O":
        return Array(None, shape, stride, order, nbytes, None, word)
    per = 8 if match[2] in "Mm" else int(match[3] or 0) * (4 if match[2] == "U" else 1)
    return Array(None, shape, stride, order, nbytes, math.prod(shape) * per, word)
