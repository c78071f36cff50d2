"""Header tier: the zip that `torch.save` writes since 1.6.

`ROOT/data.pkl` is a pickle whose persistent ids name the members `ROOT/data/KEY`, each a storage's bytes, stored
without compression at an offset that is a multiple of 64. `ROOT/byteorder` says how their elements lie.

Source: torch/serialization.py (`_save`, `_load`); caffe2/serialize/inline_container.cc.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Literal

from paramctl.checkpoint import Checkpoint, Extent, Storage
from paramctl.errors import FileError, shortened
from paramctl.formats import objects, unpickle
from paramctl.formats.notes import StorageNote
from paramctl.formats.zip_directory import DEFLATED, STORED, Member, contents, directory, offsets
from paramctl.source import Reader

NAME = "torch-zip"
METADATA = ".data/metadata.json"  # our own: text by name, as safetensors has it; torch passes over it
_MOST_METADATA_NBYTES = 100_000_000  # as of a header of safetensors


def sniff(reader: Reader) -> bool:
    """Whether it is a zip: the last of the zip formats to be asked, whose `read` says what else it is."""
    return reader.head.startswith(b"PK\x03\x04")


def read(reader: Reader) -> Checkpoint:
    """What a torch zip holds, by the number of its tensors and not by their bytes.

    Raises:
        FileError: a zip that is damaged, cut short, or of something else.
    """
    members = directory(reader)
    folder = root(reader, members)
    pickled = contents(reader, members[f"{folder}data.pkl"])
    find_storage = finder(reader, members, f"{folder}data/", byteorder(reader, members, folder))
    tree = unpickle.load(pickled, reader.name)
    found = objects.checkpoint(tree, reader.source, NAME, find_storage, budget=1_000_000 + 100 * len(pickled))
    said = metadata(reader, members, folder)
    return replace(found, metadata=said) if said else found


def tree(reader: Reader) -> Any:
    """What its pickle makes, as notes, stand-ins and plain containers."""
    members = directory(reader)
    return unpickle.load(contents(reader, members[f"{root(reader, members)}data.pkl"]), reader.name)


def finder(
    reader: Reader, members: dict[str, Member], folder: str, order: Literal["little", "big"]
) -> objects.FindStorage:
    """What finds the storages of a pickle among the members in `folder`, which ends with a slash."""
    begins = offsets(reader, [member for name, member in members.items() if name.startswith(folder)])
    said = folder.rstrip("/").rpartition("/")[2]

    def find_storage(note: StorageNote, name: str) -> Storage:
        nbytes = note.nbytes
        member = members.get(folder + note.key)
        if member is None:
            if nbytes == 0:
                return Storage(note.key, 0)
            raise FileError(reader.name, f"{shortened(name)}: its storage {said}/{shortened(note.key)} is not there")
        if member.nbytes < nbytes:
            raise FileError(
                reader.name,
                f"{shortened(name)}: its storage should have {nbytes:,} bytes, and has {member.nbytes:,}",
            )
        return stored(reader, member, begins[member.name], key=note.key, nbytes=nbytes, order=order)

    return find_storage


def stored(
    reader: Reader, member: Member, begin: int, *, key: str, nbytes: int, order: Literal["little", "big"]
) -> Storage:
    """The first `nbytes` of a member, whose bytes begin at `begin`, as a storage."""
    if member.flags & 1:
        return Storage(key, nbytes, why_unreadable="its bytes are encrypted inside the archive")
    if member.method not in (STORED, DEFLATED):
        why = f"its bytes are compressed inside the archive, by method {member.method}"
        return Storage(key, nbytes, why_unreadable=why)
    if member.method == STORED:
        extent = Extent(reader.path, begin, nbytes)
    else:
        extent = Extent(reader.path, begin, member.stored_nbytes, "deflate")
    return Storage(key, nbytes, (extent,), None, order)


def root(reader: Reader, members: dict[str, Member]) -> str:
    """The folder in the archive, with its slash; "" where there is none.

    Raises:
        FileError: a zip of something else.
    """
    names = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if not names:
        from paramctl.formats import strangers  # noqa: PLC0415 - 2 ms that only a stranger pays

        raise strangers.archive(reader.name, "zip", members)
    return min(names, key=len)[: -len("data.pkl")]


def byteorder(reader: Reader, members: dict[str, Member], root: str) -> Literal["little", "big"]:
    member = members.get(f"{root}byteorder")
    said = contents(reader, member) if member is not None and member.nbytes < 16 else b"little"
    return "big" if said == b"big" else "little"


def metadata(reader: Reader, members: dict[str, Member], root: str) -> dict[str, str]:
    """The text by name that `torch_zip_writer` has put into a member of its own, for which torch has no place."""
    member = members.get(f"{root}{METADATA}")
    if member is None or member.nbytes > _MOST_METADATA_NBYTES:
        return {}
    try:
        found = json.loads(contents(reader, member))
    except (ValueError, RecursionError):
        return {}  # somebody else's
    pairs = found.items() if isinstance(found, dict) else ()
    return {name: text for name, text in pairs if isinstance(text, str)}
