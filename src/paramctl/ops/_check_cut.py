"""Header tier: of a file that is cut short: how many bytes are missing, and which tensors are still whole."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from typing import Any

from paramctl.checkpoint import Storage
from paramctl.errors import FileError, shortened
from paramctl.formats import gguf, objects, safetensors_file, torch_legacy, unpickle
from paramctl.formats.notes import StorageNote
from paramctl.formats.opcodes import walk
from paramctl.ops._check_findings import Finding
from paramctl.source import Reader

_LOCAL = struct.Struct("<4s5H3I2H")
_MOST_PICKLE_NBYTES = 1 << 27
_FAR = 4096  # how far a small member's end is looked for
_MOST_NAMES = 10
_MOST_LOST = 1000


def cut(reader: Reader) -> list[Finding]:
    """What is lost and what is left; nothing where the file is not cut short, or nothing can be told."""
    if reader.head.startswith(b"PK\x03\x04"):
        try:
            return _zip(reader)
        except FileError:
            return []
    for module in (gguf, torch_legacy):
        if module.sniff(reader):
            return _by_ends(reader, module.ends)
    return _safetensors(reader) if safetensors_file.sniff(reader) else []


def _by_ends(reader: Reader, ends_of: Callable[[Reader], dict[str, int]]) -> list[Finding]:
    """Of a format whose header stands first and tells where each tensor ends."""
    try:
        ends = ends_of(reader)
    except FileError:
        return []
    missing = max(ends.values(), default=0) - reader.nbytes
    if missing <= 0:
        return []
    lost = {name: end - reader.nbytes for name, end in ends.items() if end > reader.nbytes}
    return _told(missing, "", [name for name in ends if name not in lost], lost)


def _safetensors(reader: Reader) -> list[Finding]:
    header_nbytes = int.from_bytes(reader.head[:8], "little")
    start = 8 + header_nbytes
    if header_nbytes > safetensors_file.MOST_HEADER_NBYTES:
        return []
    if start > reader.nbytes:
        what = f"at least {start - reader.nbytes:,} bytes are missing, of the header itself: no tensor can be told"
        return [Finding("error", "truncated", "", what)]
    try:
        header: Any = json.loads(reader.read(8, header_nbytes))
    except (ValueError, RecursionError):
        return []
    ends = dict(_ends(header))
    missing = start + max(ends.values(), default=0) - reader.nbytes
    if missing <= 0:
        return []
    lost = {name: start + end - reader.nbytes for name, end in ends.items() if start + end > reader.nbytes}
    return _told(missing, "", [name for name in ends if name not in lost], lost)


def _ends(header: Any) -> Iterable[tuple[str, int]]:
    for name, entry in header.items() if isinstance(header, dict) else ():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if isinstance(offsets, list) and len(offsets) == 2 and all(type(at) is int and at >= 0 for at in offsets):
            yield name, offsets[1]


def _told(missing: int, least: str, whole: list[str], lost: dict[str, int]) -> list[Finding]:
    names = ", ".join(shortened(name, 60) for name in whole[:_MOST_NAMES])
    more = f" and {len(whole) - _MOST_NAMES:,} more" if len(whole) > _MOST_NAMES else ""
    count = len(whole) + len(lost)
    are = "is" if len(whole) == 1 else "are"
    what = f"{least}{missing:,} bytes are missing; {len(whole):,} of {count:,} tensors {are} whole"
    rows = [Finding("error", "truncated", "", what + (f": {names}{more}" if whole else ""))]
    for name, nbytes in list(lost.items())[:_MOST_LOST]:
        rows.append(Finding("error", "lost-tensor", name, f"it ends {nbytes:,} bytes beyond the end of the file"))
    return rows


# ----------------------------------------------------------------------------- a torch zip without its directory


def _zip(reader: Reader) -> list[Finding]:
    """Members are gone over by their local headers; how long each is, the pickle tells, which comes first."""
    name, begin = _member(reader, 0)
    if not name.endswith("data.pkl"):
        return []
    raw = reader.read(begin, min(reader.nbytes - begin, _MOST_PICKLE_NBYTES))
    try:
        nbytes = walk(raw, reader.name).end
    except FileError:
        what = "its pickle is cut short, so nothing can be told of its tensors"
        return [Finding("error", "truncated", "", what)]
    sizes: dict[str, int] = {}

    def find_storage(note: StorageNote, _: str) -> Storage:
        sizes[note.key] = note.nbytes
        return Storage(note.key, note.nbytes, why_unreadable="the file is cut short")

    tree = unpickle.load(raw[:nbytes], reader.name)
    held = objects.checkpoint(tree, reader.source, "torch-zip", find_storage, budget=1_000_000 + 100 * nbytes)
    beyond = _beyond(reader, begin + nbytes, name[: -len("data.pkl")] + "data/", sizes)
    lost = {param.name: beyond[param.storage.key] for param in held.params.values() if beyond.get(param.storage.key)}
    whole = [name for name in held.params if name not in lost]
    missing = sum(beyond[key] for key in sizes)
    if not missing:
        return [
            Finding("error", "truncated", "", f"only its directory is missing; all {len(whole):,} tensors are whole")
        ]
    return _told(missing, "at least ", whole, lost)


def _beyond(reader: Reader, at: int, prefix: str, sizes: dict[str, int]) -> dict[str, int]:
    """How many bytes of each storage are not there: all of those that never begin."""
    beyond = dict(sizes)
    while True:
        window = reader.read(at, min(_FAR, reader.nbytes - at))
        found = window.find(b"PK\x03\x04")
        if found < 0:
            return beyond
        try:
            name, begin = _member(reader, at + found)
        except FileError:
            return beyond
        key = name[len(prefix) :] if name.startswith(prefix) else ""
        if key in sizes:
            at = begin + sizes[key]
            beyond[key] = max(at - reader.nbytes, 0)
            if beyond[key]:
                return beyond
        else:
            at = begin


def _member(reader: Reader, at: int) -> tuple[str, int]:
    magic, *_, name_nbytes, extra_nbytes = _LOCAL.unpack(reader.read(at, _LOCAL.size))
    raw = reader.read(at + 30, name_nbytes + extra_nbytes)
    if magic != b"PK\x03\x04":
        raise FileError(reader.name, f"no local header at byte {at:,}")
    return raw[:name_nbytes].decode("utf-8", "surrogateescape"), at + 30 + len(raw)
