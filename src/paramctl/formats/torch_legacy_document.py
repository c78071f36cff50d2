"""Header tier: a torch zip made of a file of before torch 1.6: its pickle is edited, and every storage is named anew.

The one's persistent ids have six parts and the other's five; and where the one keeps the source code of a module
beside its class, the other has the class alone.

Source: torch/serialization.py (`_legacy_save`, `_save`: `persistent_id`).
"""

from __future__ import annotations

from typing import IO, NamedTuple

from paramctl import storages
from paramctl.errors import FileError
from paramctl.formats import torch_legacy, torch_zip_writer
from paramctl.formats.pickle_document import Document
from paramctl.formats.pour import Pourer
from paramctl.formats.torch_pickle import Layout
from paramctl.formats.torch_zip_writer import Archive, Fresh
from paramctl.outline import Outline
from paramctl.source import Reader
from paramctl.storages import Blob


class Rewritten(NamedTuple):
    """A pickle for a torch zip, and its storages by their keys, in the order in which it names them."""

    pickled: bytes
    blobs: dict[str, Blob]


def rewritten(made: Outline) -> Rewritten | None:
    """The pickle of an outline's source as the outline has it; None where it cannot be written again like that."""
    try:
        with Reader(made.checkpoint.source) as reader:
            document = Document(torch_legacy.pickled(reader), reader.name)
        edit(document, made)
        document.as_in_a_zip()
        blobs, placed = storages.laid_out(made)
        keys = [document.new_key() for _ in blobs]
        at = {entry.was: one for entry, one in zip(made.entries, placed, strict=True)}
        document.replace(
            {
                name: Layout(keys[one.blob], blobs[one.blob].nbytes, one.dtype, one.offset, one.shape, one.stride)
                for name, one in at.items()
            }
        )
        rename(document, made)
        new = document.begin_with_zero()
    except FileError:
        return None
    if set(new) != set(keys):
        return None  # a storage that no tensor looks at
    known = dict(zip(keys, blobs, strict=True))
    return Rewritten(document.dump(), {new[key]: known[key] for key in new})


def edit(document: Document, made: Outline) -> None:
    """Root the document where the outline is, and take out what that has not."""
    if made.at:
        document.at(made.at)
    there = {entry.was for entry in made.entries}
    if there != document.tensors.keys():
        document.keep(there)
    alone = [path for path in made.without if not any(d.param.name.startswith(f"{path}.") for d in made.dropped)]
    if alone:
        document.drop(alone)


def rename(document: Document, made: Outline) -> None:
    """Give the tensors the outline's names."""
    new = {entry.was: entry.name for entry in made.entries if entry.was != entry.name}
    if new:
        document.rename(new)


def write(made: Outline, file: IO[bytes], pourer: Pourer) -> None:
    """Write the archive.

    Raises:
        FileError: the file became another.
    """
    found = rewritten(made)
    if found is None:
        raise FileError(made.checkpoint.source.name, "it became another file while it was read")
    fresh = (Fresh(key, blob.nbytes, pourer.pieces(blob)) for key, blob in found.blobs.items())
    torch_zip_writer.write(Archive(file), found.pickled, fresh, metadata=made.metadata)
