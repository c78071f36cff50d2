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
import operator
import struct
from collections.abc import Mapping
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple, NoReturn

from paramctl.checkpoint import Checkpoint, Extent, Param, Storage, contiguous, sortable
from paramctl.dtypes import DTYPES, DType
from paramctl.errors import FileError, shortened
from paramctl.source import Reader

NAME = "safetensors"
_MOST_NUMEL = 1 << 63
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


def sniff(reader: Reader) -> bool:
    """Whether a file begins with a length and a JSON object. A pickle may seem to, with a length beyond belief."""
    head = reader.head
    likely = head[:1] != b"\x80" or int.from_bytes(head[:8], "little") <= MOST_HEADER_NBYTES
    return head[8:9] == b"{" and likely


def read(reader: Reader) -> Checkpoint:
    """What a safetensors file holds, its header checked as the format demands.

    Raises:
        FileError: a header that is damaged, or that does not fit the bytes that follow.
    """
    header, start = _header(reader)
    metadata = _metadata(reader, header.pop("__metadata__", None))
    layouts = _Layouts(reader)
    entries = [(name, *layouts.of(name, entry)) for name, entry in header.items()]
    _tile(reader, entries, reader.nbytes - start)
    params: dict[str, Param] = {}
    path = reader.path
    for name, layout, begin, end in entries:
        storage = Storage(name, end - begin, (Extent(path, start + begin, end - begin),))
        params[name] = Param(name, layout.dtype, layout.shape, layout.stride, storage)
    for alias, kept in metadata.items():
        if alias not in params and kept in header:
            params[alias] = params[kept]._replace(name=alias, declared="metadata")
    return Checkpoint(reader.source, NAME, naturally(params), metadata=metadata)


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
        if isinstance(header, dict) and _may_repeat(raw, header):
            json.loads(raw, object_pairs_hook=partial(_unrepeated, reader))
    except UnicodeDecodeError as error:
        raise FileError(reader.name, f"the header is not UTF-8 at byte {error.start + 8:,}") from None
    except RecursionError:
        raise FileError(reader.name, "the header is nested too deeply") from None
    except ValueError as error:
        raise FileError(reader.name, f"the header is not JSON: {shortened(str(error))}") from None
    if not isinstance(header, dict):
        raise FileError(reader.name, "the header is not a JSON object")
    return header, 8 + nbytes


def _may_repeat(raw: bytes, header: dict[str, Any]) -> bool:
    """Whether some key may stand twice in an object: a look at every pair takes as long again as the parsing."""
    most = len(header) - ("__metadata__" in header)
    said = (b'"dtype"', b'"shape"', b'"data_offsets"')
    return b"\\" in raw or raw.count(b'"__metadata__"') > 1 or any(raw.count(key) > most for key in said)


def _unrepeated(reader: Reader, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise FileError(reader.name, f"{shortened(twice)} stands twice in the header")
    return made


def _metadata(reader: Reader, metadata: Any) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileError(reader.name, "__metadata__ does not map strings to strings")
    return metadata


class _Layout(NamedTuple):
    dtype: DType
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    nbytes: int


class _Layouts:
    """Dtypes and shapes, each checked once: a file of 90,000 tensors has a few dozen."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.known: dict[tuple[str, str], _Layout] = {}

    def of(self, name: str, entry: Any) -> tuple[_Layout, int, int]:
        """An entry's layout, and its offsets."""
        try:
            code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            layout = self.known.get((code, str(shape))) or self.checked(name, code, shape)
        except (KeyError, TypeError, ValueError):
            raise FileError(self.reader.name, f"{shortened(name)}: {_what_is_wrong(entry)}") from None
        if type(begin) is not int or type(end) is not int or begin < 0 or end - begin != layout.nbytes:
            self.refuse_offsets(name, layout, begin, end)
        return layout, begin, end

    def checked(self, name: str, code: str, shape: Any) -> _Layout:
        dtype = _DTYPES[code]
        for size in shape:
            if type(size) is not int or size < 0:
                raise FileError(self.reader.name, f"{shortened(name)}: {shortened(repr(size), 40)} is no size")
        if max(accumulate(shape, operator.mul), default=0) >= _MOST_NUMEL:
            raise FileError(self.reader.name, f"{shortened(name)}: more elements than a tensor can have")
        numel = math.prod(shape)
        if numel % dtype.block_numel:
            what = f"{numel:,} elements of {code}, which come in blocks of {dtype.block_numel}"
            raise FileError(self.reader.name, f"{shortened(name)}: {what}")
        layout = _Layout(dtype, tuple(shape), contiguous(tuple(shape)), dtype.nbytes(numel))
        self.known[code, str(shape)] = layout
        return layout

    def refuse_offsets(self, name: str, layout: _Layout, begin: Any, end: Any) -> NoReturn:
        for offset in (begin, end):
            if type(offset) is not int or offset < 0:
                what = f"{shortened(repr(offset), 40)} is no offset"
                raise FileError(self.reader.name, f"{shortened(name)}: {what}")
        shape = "×".join(map(str, layout.shape[:8])) or "a scalar"
        said = f"{shape} of {layout.dtype} takes {layout.nbytes:,} bytes"
        raise FileError(self.reader.name, f"{shortened(name)}: {said}, its offsets say {end - begin:,}")


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


def _tile(reader: Reader, entries: list[tuple[str, _Layout, int, int]], nbytes: int) -> None:
    """The tensors cover the bytes after the header without gap or overlap."""
    at = 0
    for name, _, begin, end in sorted(entries, key=operator.itemgetter(2, 3)):
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


def naturally(params: Mapping[str, Param]) -> dict[str, Param]:
    """In natural order, layers as 0, 1, 2, 10: the header's own order is that of the writer's sort and says nothing."""
    steps: dict[str, str] = {}  # a few hundred in 90,000 names

    def of(step: str) -> str:
        made = steps[step] = sortable(step)
        return made

    def joined(path: str) -> str:
        return "\0".join([steps.get(step) or of(step) for step in path.split(".")])

    blocks: dict[str, str] = {}

    def key(name: str) -> str:
        head, _, last = name.rpartition(".")
        block, dot, layer = head.rpartition(".")  # names share their first steps, and few their last two
        if not dot:
            return joined(name)
        known = blocks.get(block)
        if known is None:
            known = blocks[block] = joined(block)
        return f"{known}\0{steps.get(layer) or of(layer)}\0{steps.get(last) or of(last)}"

    return {name: params[name] for name in sorted(params, key=key)}
