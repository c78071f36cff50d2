"""Header tier: the stream that `torch.save` wrote before 1.6, and writes with `_use_new_zipfile_serialization=False`.

One pickle stands behind another: a magic number, the protocol, what the writing machine was, the object, and the keys
of its storages; then each storage, in the order of the keys, as its number of elements in 8 bytes and its elements.
So where a storage lies follows from the lengths of those before it, and none of their bytes are read.

Elements are little-endian whatever the machine was that wrote them: torch turns them around as it writes, and does
not look at `little_endian` as it reads. Only the numbers of elements were once left as they were on a big-endian one.

Source: torch/serialization.py (`_legacy_save`, `_legacy_load`); torch/csrc/serialization.cpp
(`THPStorage_writeFileRaw`) for the storages.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from paramctl.checkpoint import Checkpoint, Extent, Storage
from paramctl.errors import FileError, shortened
from paramctl.formats import objects
from paramctl.formats.notes import StorageNote
from paramctl.formats.opcodes import UnfinishedError, Walked, walk
from paramctl.formats.unpickle import PersistentLoad, Unpickled, unpickled
from paramctl.source import Reader

NAME = "torch-legacy"
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
_MAGICS = (b"\x8a\n" + MAGIC.to_bytes(10, "little"), b"L%dL\n" % MAGIC)  # in pickles since protocol 2, and before
_NUMEL = struct.Struct("<q")
_WINDOW_NBYTES = 1 << 16
_CUT_SHORT = "the download may have been cut short"


class Stream:
    """Pickles and numbers that stand one behind another in a part of a file, read no further than a window beyond."""

    def __init__(self, reader: Reader, at: int, end: int) -> None:
        self.reader = reader
        self.at = at
        self.end = end

    def unpickled(self, *, persistent: PersistentLoad | None = None, window_nbytes: int = 1 << 10) -> Unpickled:
        """The pickle that begins here.

        Raises:
            FileError: it is damaged, or the file ends before it does.
        """
        walked = self._walked(window_nbytes)
        self.at += walked.end
        return unpickled(walked, self.reader.name, persistent=persistent)

    def _walked(self, window_nbytes: int) -> Walked:
        left = self.end - self.at
        while True:
            try:
                return walk(self.reader.read(self.at, min(window_nbytes, left)), self.reader.name)
            except UnfinishedError as error:
                if window_nbytes >= left or error.wanted > left:
                    raise
                window_nbytes = max(4 * window_nbytes, error.wanted)

    def read(self, nbytes: int) -> bytes:
        """The bytes that are next.

        Raises:
            FileError: there are not as many.
        """
        if nbytes > self.end - self.at:
            raise FileError(
                self.reader.name,
                f"wants {nbytes:,} bytes at {self.at:,}, and ends at {self.end:,}",
                hint=_CUT_SHORT,
            )
        self.at += nbytes
        return self.reader.read(self.at - nbytes, nbytes)


class _Places(NamedTuple):
    begins: dict[str, int]  # where the elements of each storage begin
    end: int  # where the last of them should end


def sniff(reader: Reader) -> bool:
    """Whether it begins with the pickle of the magic number."""
    return any(magic in reader.head[:24] for magic in _MAGICS)


def read(reader: Reader) -> Checkpoint:
    """What a legacy stream holds, by the number of its tensors and not by their bytes.

    Raises:
        FileError: a stream that is damaged or cut short.
    """
    tree, storages, places, budget = _opened(reader)

    def find_storage(note: StorageNote, name: str) -> Storage:
        begin = places.begins.get(note.key)
        if begin is None:
            if note.nbytes == 0:
                return Storage(note.key, 0)
            raise FileError(
                reader.name,
                f"{shortened(name)}: its storage {shortened(note.key)} is not among the {len(places.begins):,} "
                "behind the pickle",
            )
        if begin + note.nbytes > reader.nbytes:
            raise _too_short(reader, f"{shortened(name)}: its storage {shortened(note.key)}", begin, note, places.end)
        return Storage(note.key, note.nbytes, (Extent(reader.path, begin, note.nbytes),))

    found = objects.checkpoint(tree, reader.source, NAME, find_storage, budget=budget)
    if places.end > reader.nbytes:  # in a storage that no tensor looks at
        key, begin = next((k, at) for k, at in places.begins.items() if at + storages[k].nbytes > reader.nbytes)
        raise _too_short(reader, f"storage {shortened(key)}", begin, storages[key], places.end)
    return found


def tree(reader: Reader) -> Any:
    """What its pickle makes, as notes, stand-ins and plain containers."""
    stream = Stream(reader, 0, reader.nbytes)
    _preamble(stream)
    return stream.unpickled(window_nbytes=_WINDOW_NBYTES).tree


def pickled(reader: Reader) -> bytes:
    """The pickle of the object."""
    stream = Stream(reader, 0, reader.nbytes)
    _preamble(stream)
    begin = stream.at
    stream.unpickled(window_nbytes=_WINDOW_NBYTES)
    return reader.read(begin, stream.at - begin)


def ends(reader: Reader) -> dict[str, int]:
    """Where the storage of each tensor ends, also of a file that ends before.

    Raises:
        FileError: its pickles are damaged or cut short.
    """
    tree, _, places, budget = _opened(reader)

    def find_storage(note: StorageNote, _: str) -> Storage:
        return Storage(note.key, note.nbytes, why_unreadable="the file is cut short")

    held = objects.checkpoint(tree, reader.source, NAME, find_storage, budget=budget)
    begins = places.begins
    return {p.name: begins.get(p.storage.key, 0) + p.storage.nbytes for p in held.params.values()}


def _opened(reader: Reader) -> tuple[Any, Mapping[str, StorageNote], _Places, int]:
    """The object, its storages and where they lie, and what making it may cost."""
    stream = Stream(reader, 0, reader.nbytes)
    turned = _preamble(stream)
    begin = stream.at
    tree, storages = stream.unpickled(window_nbytes=_WINDOW_NBYTES)
    budget = 1_000_000 + 100 * (stream.at - begin)
    keys = stream.unpickled(window_nbytes=_WINDOW_NBYTES).tree
    return tree, storages, _places(stream, _keys(keys, reader.name), storages, numel_is_turned=turned), budget


def _preamble(stream: Stream) -> bool:
    """Go over the first three pickles; whether a big-endian machine wrote them."""
    magic = stream.unpickled().tree
    if magic != MAGIC or type(magic) is not int:
        raise FileError(stream.reader.name, "it begins as a torch file of before 1.6, and has another magic number")
    protocol = stream.unpickled().tree
    if protocol != PROTOCOL or type(protocol) is not int:
        said = str(protocol) if type(protocol) is int and abs(protocol) < 1 << 63 else "none"
        raise FileError(stream.reader.name, f"a torch file of before 1.6 of protocol {said}; {PROTOCOL} is known")
    machine = stream.unpickled().tree
    return isinstance(machine, dict) and machine.get("little_endian") is False


def _keys(keys: Any, name: str) -> list[str]:
    if not isinstance(keys, (list, tuple)) or not all(type(key) in (str, int) for key in keys):
        raise FileError(name, "no list of storages stands behind the pickle")
    found = [str(key) if type(key) is str or abs(key) < 1 << 63 else "" for key in keys]
    if len(set(found)) != len(found):
        seen: set[str] = set()
        twice = next(key for key in found if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise FileError(name, f"storage {shortened(twice)} stands twice behind the pickle")
    return found


def _places(stream: Stream, keys: list[str], storages: Mapping[str, StorageNote], *, numel_is_turned: bool) -> _Places:
    """Where each storage is, by the numbers of elements in the pickle, held against those that stand in the file."""
    begins: dict[str, int] = {}
    at, reader = stream.at, stream.reader
    for key in keys:
        note = storages.get(key)
        if note is None:
            raise FileError(reader.name, f"storage {shortened(key)} stands behind the pickle, which does not name it")
        if at + _NUMEL.size <= reader.nbytes:
            raw = reader.read(at, _NUMEL.size)
            (numel,) = _NUMEL.unpack(raw)
            if numel != note.numel and not (numel_is_turned and _NUMEL.unpack(raw[::-1])[0] == note.numel):
                raise FileError(
                    reader.name,
                    f"storage {shortened(key)} has {note.numel:,} elements in the pickle, and {numel:,} at byte {at:,}",
                    hint="the file is damaged, or was made to mislead",
                )
        begins[key] = at + _NUMEL.size
        at = begins[key] + note.nbytes
    return _Places(begins, at)


def _too_short(reader: Reader, what: str, begin: int, note: StorageNote, end: int) -> FileError:
    return FileError(
        reader.name,
        f"{what} should have {note.nbytes:,} bytes, and {max(0, reader.nbytes - begin):,} are there; "
        f"the file is {end - reader.nbytes:,} bytes too short",
        hint=_CUT_SHORT,
    )
