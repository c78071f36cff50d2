"""GGUF files byte by byte."""

from __future__ import annotations

import struct


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, code: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", code) + value


def array_of(code: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", code, count) + items


def tensor(name: str | bytes = "w", dims: tuple[int, ...] = (2,), code: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, code, offset)


def file(*parts: bytes, tensors: int | None = None, keys: int = 0, data: bytes = bytes(64), version: int = 3) -> bytes:
    """A file of metadata and tensors' entries, padded, and the tensors' bytes."""
    counted = len(parts) - keys if tensors is None else tensors
    head = b"GGUF" + struct.pack("<IQQ", version, counted, keys) + b"".join(parts)
    return head + bytes(-len(head) % 32) + data
