"""Header tier: GGUF, versions 2 and 3, of either byte order.

A header of counts; typed metadata, with vocabularies that are stepped over and not made into objects; an entry for each
tensor; and, aligned, the tensors' bytes. Shapes are written with the fastest axis first, and are turned here to torch's
order. The types of tensors, and how many bytes hold how many elements, are ggml's.

Source: ggml/docs/gguf.md ("File Structure", "Standardized key-value pairs": general.alignment); ggml/include/ggml.h
(`ggml_type`); ggml/src/ggml-common.h (the blocks, each with its size asserted).
"""

from __future__ import annotations

import functools
import json
import math
import re
import struct
from typing import Any, Literal, NamedTuple

from paramctl.checkpoint import Checkpoint, Extent, Param, Storage, contiguous
from paramctl.dtypes import DTYPES, DType
from paramctl.errors import FileError, shortened
from paramctl.source import Reader

NAME = "gguf"
CODES = {
    0: "float32", 1: "float16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 9: "q8_1",
    10: "q2_k", 11: "q3_k", 12: "q4_k", 13: "q5_k", 14: "q6_k", 15: "q8_k",
    16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s", 20: "iq4_nl", 21: "iq3_s", 22: "iq2_s", 23: "iq4_xs",
    24: "int8", 25: "int16", 26: "int32", 27: "int64", 28: "float64", 29: "iq1_m", 30: "bfloat16",
    31: "q4_0_4_4", 32: "q4_0_4_8", 33: "q4_0_8_8", 34: "tq1_0", 35: "tq2_0",
    36: "iq4_nl_4_4", 37: "iq4_nl_4_8", 38: "iq4_nl_8_8", 39: "mxfp4", 40: "nvfp4", 41: "q1_0",
}  # fmt: skip
_SCALARS = {  # gguf_metadata_value_type: its name, and struct's code
    0: ("uint8", "B"), 1: ("int8", "b"), 2: ("uint16", "H"), 3: ("int16", "h"), 4: ("uint32", "I"), 5: ("int32", "i"),
    6: ("float32", "f"), 7: ("bool", "B"), 10: ("uint64", "Q"), 11: ("int64", "q"), 12: ("float64", "d"),
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9
_WORDS = {code: word for code, (word, _) in _SCALARS.items()} | {_STRING: "string", _ARRAY: "array"}
_LEAST_KEY_NBYTES, _LEAST_TENSOR_NBYTES = 8 + 4 + 1, 8 + 4 + 4 + 8
_MOST_NAME_NBYTES = (1 << 16) - 1  # gguf.md, of keys; names have 64
_MOST_TEXT_NBYTES = 1 << 20  # of a string that is shown whole
_MOST_DIMENSIONS = 64
_MOST_DEEP = 16
_SHOWN = 8  # items of an array
_WINDOW_NBYTES = 1 << 19
_AT_ONCE, _MOST_SHORT_NBYTES = 256, 64  # strings of an array that is skipped
_CUT_SHORT = "the download may have been cut short"


def sniff(reader: Reader) -> bool:
    return reader.head.startswith(b"GGUF")


def read(reader: Reader) -> Checkpoint:
    """What a GGUF file holds, by the number of its tensors and the length of its vocabulary.

    Raises:
        FileError: counts, lengths, types or offsets that do not fit the file, or a file that is cut short.
    """
    cursor = _Cursor(reader)
    version, n_tensors, n_keys = _header(cursor)
    metadata = _metadata(cursor, n_keys)
    entries = _entries(cursor, n_tensors)
    alignment = cursor.alignment
    start = -(-cursor.at // alignment) * alignment
    _place(reader, entries, start, alignment)
    order: Literal["little", "big"] = "big" if cursor.order == ">" else "little"
    params: dict[str, Param] = {}
    for name, layout, offset in entries:
        extent = Extent(reader.path, start + offset, layout.nbytes)
        storage = Storage(name, layout.nbytes, (extent,), None, order)
        params[name] = Param(name, layout.dtype, layout.shape, layout.stride, storage)
    extras = {"version": version, "byteorder": order, "alignment": alignment, "data_offset": start}
    return Checkpoint(reader.source, NAME, params, metadata=metadata, extras=extras)


def ends(reader: Reader) -> dict[str, int]:
    """Where the bytes of each tensor end, also of a file that ends before.

    Raises:
        FileError: its header is damaged or cut short.
    """
    cursor = _Cursor(reader)
    _, n_tensors, n_keys = _header(cursor)
    _metadata(cursor, n_keys)
    entries = _entries(cursor, n_tensors)
    start = -(-cursor.at // cursor.alignment) * cursor.alignment
    return {name: start + offset + layout.nbytes for name, layout, offset in entries}


class _Cursor:
    """Reads one thing after another through a window, each held against the file's end before it is read."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.at = 0
        self.order = "<"
        self.alignment = 32  # gguf.md: "if not specified"
        self.where = "the header"  # what is being read, for errors
        self._window = b""
        self._window_at = 0

    @property
    def left(self) -> int:
        return self.reader.nbytes - self.at

    def refuse(self, what: str, *, hint: str = "") -> FileError:
        return FileError(self.reader.name, f"{self.where} {what}", hint=hint)

    def skip(self, nbytes: int) -> None:
        if not self.reader.reaches(self.at + nbytes):
            end, has = self.at + nbytes, self.reader.nbytes
            raise self.refuse(f"ends at {end:,}, the file has {has:,}", hint=_missing(end - has))
        self.at += nbytes

    def take(self, nbytes: int) -> bytes:
        begin = self.at - self._window_at
        self.skip(nbytes)
        if begin < 0 or begin + nbytes > len(self._window):
            self._refill(self.at - nbytes, nbytes)
            begin = 0
        return self._window[begin : begin + nbytes]

    def _refill(self, at: int, nbytes: int) -> None:
        self._window = b""  # before the next is read, so that there is one at a time
        self._window = self.reader.part(at, max(nbytes, _WINDOW_NBYTES))
        self._window_at = at

    def number(self, code: str) -> Any:
        (value,) = struct.unpack(self.order + code, self.take(struct.calcsize("<" + code)))
        return value

    def name(self, what: str) -> str:
        nbytes = self.number("Q")
        if nbytes > _MOST_NAME_NBYTES:
            raise self.refuse(f"has {what} of {nbytes:,} bytes, and {_MOST_NAME_NBYTES:,} is the most there may be")
        return self.take(nbytes).decode("utf-8", "surrogateescape")

    def text(self, most: int) -> str:
        nbytes = self.number("Q")
        if nbytes <= most:
            return self.take(nbytes).decode("utf-8", "surrogateescape")
        at = self.at
        self.skip(nbytes)
        begin = self.reader.read(at, min(most, 1000)).decode("utf-8", "ignore")
        return f"{begin}… ({nbytes:,} bytes)"

    def skip_strings(self, count: int) -> None:
        while count:
            if self.left < 8:
                self.skip(8)  # which says so
            if not 0 <= self.at - self._window_at <= len(self._window) - 8:
                self._refill(self.at, 8)
            begin = self.at - self._window_at
            end, count = _after_strings(self._window, begin, count, self.order)
            self.skip(end - begin)


def _after_strings(window: bytes, at: int, count: int, order: str) -> tuple[int, int]:
    """Where strings end that begin at `at`, and how many of `count` are left where the window ends before."""
    length = struct.Struct(order + "Q").unpack_from
    last = len(window) - 8
    while count:
        found = _short_strings(order).match(window, at) if count >= _AT_ONCE else None
        if found is not None:
            at, count = found.end(), count - _AT_ONCE
            continue
        some = min(count, _AT_ONCE)  # one of which is long, or lies beyond the window
        while some and at <= last:
            at += 8 + length(window, at)[0]
            some, count = some - 1, count - 1
        if at > last:
            break
    return at, count


@functools.cache
def _short_strings(order: str) -> re.Pattern[bytes]:
    """`_AT_ONCE` strings, none of them long: a vocabulary is gone over at a third of the time of a loop."""
    lengths = (struct.pack(order + "Q", nbytes) for nbytes in range(_MOST_SHORT_NBYTES + 1))
    ones = b"|".join(re.escape(length) + b".{%d}" % nbytes for nbytes, length in enumerate(lengths))
    return re.compile(b"(?:" + ones + b"){%d}+" % _AT_ONCE, re.DOTALL)


def _missing(nbytes: int) -> str:
    return f"{_CUT_SHORT}: {nbytes:,} bytes are missing" if nbytes < 1 << 44 else ""


def _header(cursor: _Cursor) -> tuple[int, int, int]:
    raw = cursor.take(8)
    (version,) = struct.unpack("<I", raw[4:])
    if version & 0xFFFF == 0 and version:
        cursor.order = ">"
        (version,) = struct.unpack(">I", raw[4:])
    if version not in (2, 3):
        old = version < 2
        hint = "a newer llama.cpp converts the model again" if old else ""
        raise FileError(cursor.reader.name, f"GGUF of version {version:,}; versions 2 and 3 are read", hint=hint)
    n_tensors, n_keys = struct.unpack(cursor.order + "QQ", cursor.take(16))
    least = n_tensors * _LEAST_TENSOR_NBYTES + n_keys * _LEAST_KEY_NBYTES
    if least > cursor.left:
        what = f"says {n_tensors:,} tensors and {n_keys:,} metadata keys, and {cursor.left:,} bytes follow it"
        raise cursor.refuse(what, hint=_CUT_SHORT)
    return version, n_tensors, n_keys


def _metadata(cursor: _Cursor, count: int) -> dict[str, str]:
    metadata: dict[str, str] = {}
    for index in range(count):
        cursor.where = f"metadata key {index + 1:,} of {count:,}"
        key = cursor.name("a name")
        cursor.where = f"metadata '{shortened(key)}'"
        if key in metadata:
            raise cursor.refuse("stands twice")
        code = cursor.number("I")
        if key == "general.alignment":
            metadata[key] = str(_alignment(cursor, code))
        else:
            metadata[key] = _value(cursor, code)
    return metadata


def _alignment(cursor: _Cursor, code: int) -> int:
    if code not in _SCALARS or _SCALARS[code][1] not in "BbHhIiQq":
        raise cursor.refuse("is no whole number")
    alignment: int = cursor.number(_SCALARS[code][1])
    if alignment <= 0 or alignment & (alignment - 1):
        raise cursor.refuse(f"is {alignment:,}, and no power of two")
    cursor.alignment = alignment
    return alignment


def _value(cursor: _Cursor, code: int) -> str:
    if code == _STRING:
        return cursor.text(_MOST_TEXT_NBYTES)
    if code == _ARRAY:
        return _array(cursor)
    return _scalar(cursor, code)


def _scalar(cursor: _Cursor, code: int) -> str:
    if code not in _SCALARS:
        raise cursor.refuse(f"is of type {code:,}, which is not known")
    value = cursor.number(_SCALARS[code][1])
    if code == _BOOL:
        if value > 1:
            raise cursor.refuse(f"is a truth value of {value}")
        return "true" if value else "false"
    return _float32_text(value) if code == 6 else str(value)


def _float32_text(value: float) -> str:
    """The fewest digits that give the same float32: 1e-06, and not 9.999999974752427e-07."""
    raw = struct.pack("<f", value)
    for digits in range(6, 9):
        short = float(f"{value:.{digits}g}")
        try:
            if struct.pack("<f", short) == raw:
                return repr(short)
        except OverflowError:  # rounded up beyond the largest
            continue
    return repr(float(f"{value:.9g}"))


def _array(cursor: _Cursor) -> str:
    """An array as text: a short one whole, of a long one the first items and how many there are."""
    code, count = _array_header(cursor)
    if code == _ARRAY:
        _skip_arrays(cursor, count, 1)
        return f"[{count:,} arrays]"
    items = [_item(cursor, code) for _ in range(min(count, _SHOWN))]
    left = count - len(items)
    if not left:
        return f"[{', '.join(items)}]"
    _skip_items(cursor, code, left)
    return f"[{', '.join(items)}, …] ({count:,} {_WORDS[code]}s)"


def _item(cursor: _Cursor, code: int) -> str:
    return json.dumps(cursor.text(1000), ensure_ascii=False) if code == _STRING else _scalar(cursor, code)


def _array_header(cursor: _Cursor) -> tuple[int, int]:
    code, count = cursor.number("I"), cursor.number("Q")
    if code not in _WORDS:
        raise cursor.refuse(f"is an array of type {code:,}, which is not known")
    least = {_STRING: 8, _ARRAY: 12}.get(code) or struct.calcsize("<" + _SCALARS[code][1])
    if count * least > cursor.left:
        what = f"says {count:,} {_WORDS[code]}s, and {cursor.left:,} bytes follow"
        raise cursor.refuse(what, hint=_CUT_SHORT)
    return code, count


def _skip_items(cursor: _Cursor, code: int, count: int) -> None:
    if code == _STRING:
        cursor.skip_strings(count)
    else:
        cursor.skip(count * struct.calcsize("<" + _SCALARS[code][1]))


def _skip_arrays(cursor: _Cursor, count: int, depth: int) -> None:
    if depth > _MOST_DEEP:
        raise cursor.refuse(f"has arrays in arrays, more than {_MOST_DEEP} deep")
    for _ in range(count):
        code, inner = _array_header(cursor)
        if code == _ARRAY:
            _skip_arrays(cursor, inner, depth + 1)
        else:
            _skip_items(cursor, code, inner)


class _Layout(NamedTuple):
    dtype: DType
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    nbytes: int


_Entry = tuple[str, _Layout, int]  # the offset: from where the tensors' bytes begin


def _entries(cursor: _Cursor, count: int) -> list[_Entry]:
    entries: list[_Entry] = []
    seen: set[str] = set()
    layouts: dict[tuple[int, ...], _Layout] = {}
    for index in range(count):
        cursor.where = f"tensor {index + 1:,} of {count:,}"
        name = cursor.name("a name")
        cursor.where = f"'{shortened(name)}'"
        if name in seen:
            raise cursor.refuse("stands twice")
        seen.add(name)
        n_dimensions = cursor.number("I")
        if n_dimensions > _MOST_DIMENSIONS:
            raise cursor.refuse(f"says {n_dimensions:,} dimensions, and {_MOST_DIMENSIONS} is the most there may be")
        *key, offset = struct.unpack(f"{cursor.order}{n_dimensions}QIQ", cursor.take(8 * n_dimensions + 12))
        layout = layouts.get(tuple(key))
        if layout is None:
            layout = layouts[tuple(key)] = _layout(cursor, tuple(reversed(key[:-1])), key[-1])
        entries.append((name, layout, offset))
    return entries


def _layout(cursor: _Cursor, shape: tuple[int, ...], code: int) -> _Layout:
    if code not in CODES:
        raise cursor.refuse(f"is of type {code:,}, which is not known")
    dtype = DTYPES[CODES[code]]
    if math.prod(size or 1 for size in shape) >= 1 << 63:
        raise cursor.refuse("has more elements than a tensor can have")
    row = shape[-1] if shape else 1
    if row % dtype.block_numel:
        raise cursor.refuse(f"has rows of {row:,} elements of {dtype}, which come in blocks of {dtype.block_numel}")
    return _Layout(dtype, shape, contiguous(shape), dtype.nbytes(math.prod(shape)))


def _place(reader: Reader, entries: list[_Entry], start: int, alignment: int) -> None:
    """Each tensor begins aligned, behind the one before it, and ends within the file."""
    end, before = start, ""
    has = reader.nbytes
    cut: tuple[str, int] | None = None
    for name, layout, offset in sorted(entries, key=lambda entry: (entry[2], entry[1].nbytes)):
        begin = start + offset
        if offset % alignment:
            what = f"begins at byte {offset:,} of the tensors, which is no multiple of {alignment}"
            raise FileError(reader.name, f"'{shortened(name)}' {what}")
        if begin < end and layout.nbytes:
            what = f"begins at {begin:,}, '{shortened(before)}' before it ends at {end:,}: an overlap"
            raise FileError(reader.name, f"'{shortened(name)}' {what}")
        if layout.nbytes:
            end, before = begin + layout.nbytes, name
        if end > has and cut is None:
            cut = name, end
    if cut is not None:
        what = f"'{shortened(cut[0])}' ends at {cut[1]:,}, the file has {has:,}"
        raise FileError(reader.name, what, hint=_missing(end - has))
