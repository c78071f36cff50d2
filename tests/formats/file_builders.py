"""Builders of torch zips and safetensors files, byte by byte."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import Any


def text(value: str) -> bytes:
    """BINUNICODE."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def whole(value: int) -> bytes:
    """LONG1, or BININT where it fits."""
    if 0 <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def glob(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def storage(
    key: str = "0", numel: int = 2, kind: bytes = glob("torch", "FloatStorage"), location: bytes = text("cpu")
) -> bytes:
    return b"(" + text("storage") + kind + text(key) + location + whole(numel) + b"tQ"


def tensor(
    shape: tuple[int, ...] = (2,), stride: tuple[int, ...] | None = None, offset: int = 0, of: bytes | None = None
) -> bytes:
    """The opcodes that make a float32 tensor."""
    if stride is None:
        stride = tuple([1] * len(shape))
    dims = [b"(" + b"".join(map(whole, numbers)) + b"t" for numbers in (shape, stride)]
    return (
        glob("torch._utils", "_rebuild_tensor_v2") + b"(" + (storage() if of is None else of) + whole(offset)
        + dims[0] + dims[1] + b"\x89" + glob("collections", "OrderedDict") + b")RtR"
    )  # fmt: skip


def state(*pairs: tuple[str, bytes]) -> bytes:
    """A whole pickle of a dict."""
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in pairs) + b"u."


def torch_zip(pickled: bytes, members: dict[str, bytes] | None = None) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("m/data.pkl", pickled)
        for name, raw in ({"data/0": bytes(8)} if members is None else members).items():
            archive.writestr(f"m/{name}", raw)
    return held.getvalue()


def safetensors(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}
