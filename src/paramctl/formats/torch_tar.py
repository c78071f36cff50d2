"""Header tier: the tar that torch 0.1 saved.

Its members are `sys_info`, `pickle`, `tensors` and `storages`. `storages` is a count, then for each a pickled
(key, location, type), its number of elements in 8 bytes and its elements; then a pickled list of views (key, root
key, start, size). `tensors` is a count, then for each a pickled (key, storage key, type), its number of dimensions in
4 bytes, 4 bytes of nothing, and its sizes, strides and offset in 8 bytes each. `pickle` is the object, whose
persistent ids are the keys of tensors and storages, or (class, source file, source).

Source: torch/serialization.py (`_legacy_load`, its inner `legacy_load`); POSIX.1-2017, pax, "ustar Interchange Format".
"""

from __future__ import annotations

import re
import struct
from typing import Any

from paramctl.checkpoint import Checkpoint, Extent, Storage
from paramctl.errors import FileError, shortened
from paramctl.formats import objects
from paramctl.formats.notes import Name, StorageNote, TensorNote
from paramctl.formats.torch_legacy import Stream
from paramctl.formats.unpickle import rebuild_tensor, storage_view
from paramctl.source import Reader

NAME = "torch-tar"
_BLOCK = 512
_MOST_MEMBERS = 100
_MEMBERS = ("storages", "tensors", "pickle")
_FIRST = (*_MEMBERS, "sys_info")


def sniff(reader: Reader) -> bool:
    """Whether it is a tar whose first member is one of torch's; no other tar begins with such a name and no suffix."""
    head = reader.head
    return head[257:262] == b"ustar" and _name(head) in _FIRST


def read(reader: Reader) -> Checkpoint:
    """What a tar of torch 0.1 holds.

    Raises:
        FileError: a tar that is damaged, cut short, or without one of its members.
    """
    members = _members(reader)
    missing = [name for name in _MEMBERS if name not in members]
    if missing:
        raise FileError(reader.name, f"a tar as torch 0.1 made it, without its {' and '.join(missing)}")
    storages, begins = _storages(Stream(reader, *members["storages"]))
    tensors = _tensors(Stream(reader, *members["tensors"]), storages)
    known: dict[str, Any] = storages | tensors

    def persistent(pid: Any) -> Any:
        return pid[0] if type(pid) is tuple else known[_key(pid)]

    pickled = Stream(reader, *members["pickle"])
    tree = pickled.unpickled(persistent=persistent, window_nbytes=1 << 16).tree

    def find_storage(note: StorageNote, _: str) -> Storage:
        return Storage(note.key, note.nbytes, (Extent(reader.path, begins[note.key], note.nbytes),))

    return objects.checkpoint(
        tree, reader.source, NAME, find_storage, budget=1_000_000 + 100 * (members["pickle"][1] - members["pickle"][0])
    )


# ----------------------------------------------------------------------------- the tar


def _name(header: bytes) -> str:
    return header[:100].split(b"\0", 1)[0].decode("utf-8", "surrogateescape").removeprefix("./")


def _members(reader: Reader) -> dict[str, tuple[int, int]]:
    """Where each of torch's members begins and ends."""
    found: dict[str, tuple[int, int]] = {}
    at, pax_nbytes = 0, None
    for _ in range(_MOST_MEMBERS):
        if at + _BLOCK > reader.nbytes:
            break
        header = reader.read(at, _BLOCK)
        if not header.strip(b"\0"):
            break
        if header[257:262] != b"ustar":
            raise FileError(reader.name, f"a tar without a header at byte {at:,}")
        said = _nbytes(reader, header, at)
        nbytes = said if pax_nbytes is None else pax_nbytes
        begin, pax_nbytes = at + _BLOCK, None
        if begin + nbytes > reader.nbytes:
            raise FileError(
                reader.name,
                f"{shortened(_name(header))} should have {nbytes:,} bytes, and {reader.nbytes - begin:,} are there",
                hint="the download may have been cut short",
            )
        if header[156:157] == b"x" and nbytes < 1 << 16:  # of pax: about the member that follows
            size = re.search(rb"\d+ size=(\d{1,18})\n", reader.read(begin, nbytes))
            pax_nbytes = int(size[1]) if size else None
        elif _name(header) in _FIRST:
            found[_name(header)] = (begin, begin + nbytes)
        at = begin + -(-nbytes // _BLOCK) * _BLOCK
    return found


def _nbytes(reader: Reader, header: bytes, at: int) -> int:
    field = header[124:136]
    if field[0] == 0x80:  # GNU's way to say more than 8 GiB
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b"\0 ")
    if not re.fullmatch(rb"[0-7]+", digits):
        raise FileError(reader.name, f"a tar's header at byte {at:,} has no size")
    return int(digits, 8)


# ----------------------------------------------------------------------------- torch's members


def _key(value: Any) -> str:
    """A key, which is a number here and a text there.

    Raises:
        ValueError: it is neither.
    """
    if type(value) not in (int, str) or (type(value) is int and abs(value) >= 1 << 64):
        raise ValueError("a key that is none")
    return str(value)


def _count(stream: Stream, of: str) -> int:
    count = stream.unpickled().tree
    if type(count) is not int or not 0 <= count < 1 << 63:
        raise FileError(stream.reader.name, f"{of} has no count")
    return count


def _parts(value: Any, count: int) -> tuple[Any, ...]:
    if type(value) is not tuple or len(value) != count:
        raise ValueError(f"an entry that is no tuple of {count}")
    return value


def _storage(entry: Any, numel: int) -> StorageNote:
    key, location, kind = _parts(entry, 3)
    if type(kind) is not Name or not kind.is_storage or not 0 <= numel < 1 << 63:
        raise ValueError(f"{numel:,} elements of a type that is not known")
    return StorageNote(_key(key), kind.dtype, numel, location if type(location) is str else "")


def _storages(stream: Stream) -> tuple[dict[str, StorageNote], dict[str, int]]:
    """Every storage by its key, views among them; and where the elements of those that are no views begin."""
    notes: dict[str, StorageNote] = {}
    begins: dict[str, int] = {}
    reader = stream.reader
    for i in range(_count(stream, "storages")):
        entry = stream.unpickled().tree
        (numel,) = struct.unpack("<q", stream.read(8))
        try:
            note = _storage(entry, numel)
        except ValueError as error:
            raise FileError(reader.name, f"storage {i:,} of the tar is damaged: {error}") from None
        if note.key in notes:
            raise FileError(reader.name, f"storage {shortened(note.key)} stands twice in the tar")
        if note.nbytes > stream.end - stream.at:
            raise FileError(
                reader.name,
                f"storage {shortened(note.key)} should have {note.nbytes:,} bytes, "
                f"and {stream.end - stream.at:,} are there",
                hint="the file is damaged, or was made to mislead",
            )
        notes[note.key], begins[note.key] = note, stream.at
        stream.at += note.nbytes
    views = stream.unpickled(window_nbytes=1 << 16).tree
    for view in views if isinstance(views, (list, tuple)) else ():
        try:
            key, root_key, start, size = _parts(view, 4)
            root = notes[_key(root_key)]
            notes[_key(key)] = storage_view(root, start + (root.view[0] if root.view else 0), size)
        except (ValueError, TypeError, KeyError) as error:
            what = f"a view of a storage in the tar is damaged: {shortened(str(error))}"
            raise FileError(reader.name, what) from None
    return notes, begins


def _tensors(stream: Stream, storages: dict[str, StorageNote]) -> dict[str, TensorNote]:
    found: dict[str, TensorNote] = {}
    for i in range(_count(stream, "tensors")):
        entry = stream.unpickled().tree
        (ndim,) = struct.unpack("<i4x", stream.read(8))
        if not 0 <= ndim <= 1000:
            raise FileError(stream.reader.name, f"tensor {i:,} of the tar has {ndim:,} dimensions")
        numbers = struct.unpack(f"<{2 * ndim + 1}q", stream.read(16 * ndim + 8))
        try:
            key, storage_key, _ = _parts(entry, 3)
            storage = storages.get(_key(storage_key))
            found[_key(key)] = rebuild_tensor(storage, numbers[-1], numbers[:ndim], numbers[ndim:-1])
        except ValueError as error:
            what = f"tensor {i:,} of the tar is damaged: {shortened(str(error))}"
            raise FileError(stream.reader.name, what) from None
    return found
