"""Header tier: safetensors.

Eight bytes give the length of a JSON header; the header gives each tensor's dtype, shape and range in the bytes
that follow, which leave no gap. `__metadata__` maps strings to strings; `safetensors.torch.save_model` leaves in
it, for each tensor that shared another's storage, its name and the name it was kept under.

Source: the safetensors README ("Format"); safetensors/src/tensor.rs (`Metadata::validate`);
bindings/python/py_src/safetensors/torch.py (`save_model`, `load_model`).
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

from paramctl.checkpoint import Checkpoint, Extent, Param, Storage, contiguous
from paramctl.dtypes import DTYPES, DType
from paramctl.errors import FileError, shortened
from paramctl.source import Reader, Source

NAME = "safetensors"
MOST_HEADER_NBYTES = 100_000_000  # tensor.rs: MAX_HEADER_SIZE

CODES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn", "F6_E2M3": "float6_e2m3fn", "F6_E3M2": "float6_e3m2fn",
    "C64": "complex64",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_DTYPES = {code: DTYPES[name] for code, name in CODES.items()}


def sniff(head: bytes) -> bool:
    """Whether a file begins with a plausible length and a JSON object."""
    return len(head) >= 9 and head[8:9] == b"{" and head[:2] != b"PK" and head[:1] != b"\x80"


def read(source: Source) -> Checkpoint:
    """What a safetensors file holds, its header checked as the format demands.

    Raises:
        FileError: a header that is damaged, or that does not fit the bytes that follow.
    """
    with Reader(source) as reader:
        header, start = _header(reader)
        metadata = _metadata(reader, header.pop("__metadata__", None))
        entries = [(name, *_entry(reader, name, entry)) for name, entry in header.items()]
        _tile(reader, entries, reader.nbytes - start)
    params: dict[str, Param] = {}
    for name, dtype, shape, begin, end in entries:
        storage = Storage(name, end - begin, (Extent(reader.path, start + begin, end - begin),))
        params[name] = Param(name, dtype, shape, contiguous(shape), storage)
    for alias, kept in metadata.items():
        if alias not in params and kept in header:
            params[alias] = params[kept]._replace(name=alias, declared="metadata")
    return Checkpoint(source, NAME, naturally(params), metadata=metadata)


def _header(reader: Reader) -> tuple[dict[str, Any], int]:
    (nbytes,) = struct.unpack("<Q", reader.read(0, 8))
    if nbytes > MOST_HEADER_NBYTES:
        raise FileError(
            reader.name, f"the header says {nbytes:,} bytes, and {MOST_HEADER_NBYTES:,} is the most there may be"
        )
    if nbytes + 8 > reader.nbytes:
        raise FileError(
            reader.name,
            f"the header says {nbytes:,} bytes, the file has {reader.nbytes - 8:,} after its length",
            hint="the download may have been cut short",
        )
    raw = reader.read(8, nbytes)
    try:
        header = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise FileError(reader.name, f"the header is not UTF-8 at byte {error.start + 8:,}") from None
    except RecursionError:
        raise FileError(reader.name, "the header is nested too deeply") from None
    except ValueError as error:
        raise FileError(reader.name, f"the header is not JSON: {shortened(str(error))}") from None
    if not isinstance(header, dict):
        raise FileError(reader.name, "the header is not a JSON object")
    if raw.count(b'"data_offsets"') > len(header):
        _refuse_duplicates(reader, raw)
    return header, 8 + nbytes


def _refuse_duplicates(reader: Reader, raw: bytes) -> None:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) < len(found):
            seen: set[str] = set()
            twice = next(key for key, _ in found if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise FileError(reader.name, f"{shortened(twice)} stands twice in the header")
        return made

    json.loads(raw, object_pairs_hook=pairs)


def _metadata(reader: Reader, metadata: Any) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileError(reader.name, "__metadata__ does not map strings to strings")
    return metadata


def _entry(reader: Reader, name: str, entry: Any) -> tuple[DType, tuple[int, ...], int, int]:
    try:
        code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        dtype = _DTYPES[code]
        whole = [begin, end, *shape]
    except (KeyError, TypeError, ValueError):
        raise FileError(reader.name, f"{shortened(name)}: {_what_is_wrong(entry)}") from None
    for number in whole:
        if type(number) is not int or number < 0:
            raise FileError(reader.name, f"{shortened(name)}: {shortened(repr(number), 40)} is no size and no offset")
    numel = math.prod(shape)
    if end < begin or dtype.nbytes(numel) != end - begin or numel % dtype.block_numel:
        said = f"{'×'.join(map(str, shape[:8])) or 'a scalar'} of {code} takes {dtype.nbytes(numel):,} bytes"
        raise FileError(reader.name, f"{shortened(name)}: {said}, its offsets say {end - begin:,}")
    return dtype, tuple(shape), begin, end


def _what_is_wrong(entry: Any) -> str:
    if not isinstance(entry, dict):
        return "its entry is not an object"
    for key in ("dtype", "shape", "data_offsets"):
        if key not in entry:
            return f"its entry has no {key}"
    code = entry["dtype"]
    if not isinstance(code, str) or code not in CODES:
        return f"unknown dtype {shortened(str(code), 40)}"
    return "its shape or data_offsets is no list of numbers"


def _tile(reader: Reader, entries: list[tuple[str, DType, tuple[int, ...], int, int]], nbytes: int) -> None:
    """The tensors cover the bytes after the header without gap or overlap."""
    at = 0
    for name, _, _, begin, end in sorted(entries, key=lambda entry: (entry[3], entry[4])):
        if begin != at:
            what = "a gap" if begin > at else "an overlap"
            raise FileError(
                reader.name, f"{shortened(name)} begins at {begin:,}, the tensor before ends at {at:,}: {what}"
            )
        at = end
    if at != nbytes:
        hint = "the download may have been cut short" if at > nbytes else ""
        raise FileError(
            reader.name, f"the tensors take {at:,} bytes, the file has {nbytes:,} after its header", hint=hint
        )


_DIGITS = re.compile(r"(\d+)")


def naturally(params: Mapping[str, Param]) -> dict[str, Param]:
    """In natural order, layers as 0, 1, 2, 10: the header's own order is that of the writer's sort, and says nothing."""

    def key(name: str) -> list[tuple[int, str]]:
        pieces = _DIGITS.split(name)
        return [(int(p), p) if i % 2 and len(p) < 20 else (-1, p) for i, p in enumerate(pieces)]

    return {name: params[name] for name in sorted(params, key=key)}


def seal(file: BinaryIO, source: Source, storages: Iterable[Storage]) -> None:
    """Nothing: the format has no checksums."""
