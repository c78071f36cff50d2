"""Header tier: a new safetensors file.

Tensors of the very same elements are written once, and the other names left in `__metadata__` as
`safetensors.torch.save_model` does; other views of a storage are written as tensors of their own, since the format
has no sharing.

Source: safetensors/src/tensor.rs (`prepare`: larger dtypes first, then names; the header padded to 8 bytes).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import IO, Any

from paramctl import outline as outlines
from paramctl.errors import ParamctlError
from paramctl.formats.pour import Pourer, Sink
from paramctl.formats.safetensors_file import CODES, MOST_HEADER_NBYTES
from paramctl.outline import Entry, Outline
from paramctl.storages import Blob

DTYPES = frozenset(CODES.values())
_CODES = {name: code for code, name in CODES.items()}


def cannot_name(name: str) -> bool:
    """Whether a tensor cannot be called so."""
    return name == "__metadata__"


def write(made: Outline, file: IO[bytes], pourer: Pourer) -> None:
    """Write the tensors of an outline, whose dtypes the format has."""
    kept_as = outlines.aliases(made)
    entries = in_order(outlines.distinct(made, kept_as))
    sink = Sink(file)
    sink.write(header(entries, {**made.metadata, **dict(sorted(kept_as.items()))}))
    for entry in entries:
        pourer.pour(Blob(entry.param, entry.dtype), sink)
    sink.flush()


def in_order(entries: Sequence[Entry]) -> list[Entry]:
    """As the format's own writer sorts them, so that every tensor is aligned to its elements."""
    return sorted(entries, key=lambda entry: (-entry.dtype.block_nbytes / entry.dtype.block_numel, entry.name))


def header(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    """Length and header of a file that holds the entries one after another.

    Raises:
        ParamctlError: it is longer than readers take it.
    """
    said: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for entry in entries:
        said[entry.name] = {
            "dtype": _CODES[entry.dtype.name],
            "shape": list(entry.param.shape),
            "data_offsets": [at, at + entry.nbytes],
        }
        at += entry.nbytes
    text = json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER_NBYTES:
        what = f"the header would take {len(text):,} bytes, and {MOST_HEADER_NBYTES:,} is the most there may be"
        raise ParamctlError(what, hint="--shard SIZE makes several files of it")
    return struct.pack("<Q", len(text)) + text
