"""Whole files of every format, cut at each boundary of their structure, and with bits turned over at random."""

from __future__ import annotations

import functools
import pickletools
import random
import struct
from collections.abc import Callable, Iterator

import hostile_archives as archives
import hostile_pickles as pickles
import hostile_streams as streams

from formats.file_builders import entry, safetensors, state, storage, tensor, torch_zip

FLIPPED = 6  # files of each format
_HELD = {"data/0": bytes(range(8)), "byteorder": b"little", "data/1": bytes(8), "version": b"3\n"}


def whole_zip() -> bytes:
    return torch_zip(state(("a.weight", tensor()), ("a.bias", tensor(of=storage("1")))), _HELD)


def whole_gguf() -> bytes:
    key = streams.key
    names = streams.array_of(8, 2, streams.text("one") + streams.text("two"))
    parts = (key("a", 8, streams.text("text")), key("b", 9, names), key("c", 6, bytes(4)))
    return streams.gguf(*parts, streams.tensor("w"), streams.tensor("v", (32,), 2, 32), keys=3)


def whole_safetensors() -> bytes:
    return safetensors(
        {"__metadata__": {"format": "pt"}, "a": entry(), "b": entry("I64", (1,), (8, 16))}, bytes(range(16))
    )


def whole_npz() -> bytes:
    return archives.npz(a=archives.npy(), b=archives.npy((2, 1)))


def whole_npz_deflated() -> bytes:
    raw = archives.npy((64,), data=bytes(256))
    return archives.npz_deflated(archives.deflated_with(raw, 0), len(raw))


WHOLE: dict[str, Callable[[], bytes]] = {
    "safetensors": whole_safetensors,
    "zip": whole_zip,
    "legacy": lambda: pickles.legacy(pickles.GOOD, ("0", "1"), (struct.pack("<q", 2) + bytes(8)) * 2),
    "tar": archives.torch_tar,
    "gguf": whole_gguf,
    "npy": archives.npy,
    "npz": whole_npz,
    "npz_deflated": whole_npz_deflated,
    "torchscript": archives.script,
    "torch_export": lambda: archives.exported(b'{"graph_module":{"signature":{"input_specs":[]},"graph":{}}}'),
}

# ----------------------------------------------------------------------------- where the parts of a file end


def _in_zip(data: bytes) -> Iterator[tuple[str, int]]:
    number = 0
    for magic, header, part in ((b"PK\x03\x04", 30, "local_header"), (b"PK\x01\x02", 46, "directory_entry")):
        at = data.find(magic)
        while at >= 0:
            yield f"before_{part}_{number}", at
            yield f"in_{part}_{number}", at + header // 2
            yield f"in_the_name_of_{part}_{number}", at + header + 2
            number += 1
            at = data.find(magic, at + 4)
    at = data.rindex(b"PK\x05\x06")
    yield from (("before_the_end_record", at), ("in_the_end_record", at + 11), ("one_byte_short", len(data) - 1))


def _in_safetensors(data: bytes) -> Iterator[tuple[str, int]]:
    end = 8 + struct.unpack_from("<Q", data)[0]
    places = {"in_the_length": 4, "behind_the_length": 8, "in_the_header": end // 2, "before_the_last_brace": end - 1}
    places |= {"behind_the_header": end, "in_a_tensor": end + 3, "between_tensors": end + 8, "one_byte_short": end + 15}
    yield from places.items()


def _in_legacy(data: bytes) -> Iterator[tuple[str, int]]:
    at = 0
    for part in ("magic", "protocol", "machine", "tree", "keys"):
        end = at + max(place or 0 for _, _, place in pickletools.genops(data[at:])) + 1
        yield f"in_the_{part}", (at + end) // 2
        yield f"before_the_stop_of_the_{part}", end - 1
        yield f"behind_the_{part}", end
        at = end
    yield from (
        ("in_a_count", at + 4),
        ("behind_a_count", at + 8),
        ("in_a_storage", at + 11),
        ("between_storages", at + 16),
    )
    yield "one_byte_short", len(data) - 1


def _in_tar(data: bytes) -> Iterator[tuple[str, int]]:
    for at in range(0, len(data), 512):
        if data[at + 257 : at + 262] == b"ustar":
            yield f"before_the_header_at_{at}", at
            yield f"in_the_header_at_{at}", at + 200
            yield f"behind_the_header_at_{at}", at + 512
            yield f"in_the_member_at_{at}", at + 520


def _evenly(data: bytes) -> Iterator[tuple[str, int]]:
    for at in range(1, len(data), max(1, len(data) // 24)):
        yield f"at_{at}", at


BOUNDARIES: dict[str, Callable[[bytes], Iterator[tuple[str, int]]]] = {
    "safetensors": _in_safetensors, "zip": _in_zip, "legacy": _in_legacy, "tar": _in_tar, "gguf": _evenly,
    "npy": _evenly, "npz": _in_zip, "npz_deflated": _in_zip, "torchscript": _in_zip, "torch_export": _in_zip,
}  # fmt: skip


def _cuts() -> dict[str, Callable[[], bytes]]:
    found: dict[str, Callable[[], bytes]] = {}
    for name, make in WHOLE.items():
        data = make()
        for place, at in BOUNDARIES[name](data):
            found[f"{name}_truncated_{place}"] = functools.partial(data.__getitem__, slice(0, at))
    return found


def flipped(data: bytes, seed: int) -> bytes:
    """With one to eight bits turned over, more of them where a file begins and ends."""
    rng = random.Random(seed)
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.choice(
            (rng.randrange(len(data)), rng.randrange(min(64, len(data))), -1 - rng.randrange(min(150, len(data))))
        )
        changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def spliced(data: bytes, seed: int) -> bytes:
    """With a run of bytes taken out, doubled, or made extreme."""
    rng = random.Random(seed)
    at, size = rng.randrange(len(data)), rng.choice((1, 2, 4, 8, 30))
    piece = data[at : at + size]
    return data[:at] + rng.choice((b"", piece * 2, b"\xff" * size, bytes(size), b"\x7f" * size)) + data[at + size :]


def _turned() -> dict[str, Callable[[], bytes]]:
    found: dict[str, Callable[[], bytes]] = {}
    for name, make in WHOLE.items():
        for seed in range(FLIPPED):
            found[f"{name}_flipped_{seed}"] = lambda make=make, seed=seed: flipped(make(), seed)
            found[f"{name}_spliced_{seed}"] = lambda make=make, seed=seed: spliced(make(), seed)
    return found


FILES: dict[str, Callable[[], bytes]] = _cuts() | _turned()
