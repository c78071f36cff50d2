"""Header tier: a torch zip made of another: its pickle is edited, its storages are copied, and the rest stays.

Whatever was not named is there again: what is no tensor, classes, gradients, attributes, other members of the archive.
A storage that nothing changes is copied as it lies, with its checksum; only what is cast, untied or cut out is made
anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from paramctl import storages
from paramctl.formats import copying, torch_legacy_document, torch_zip_edit
from paramctl.formats.pour import Pourer, turned
from paramctl.formats.torch_pickle import Layout
from paramctl.formats.torch_zip_writer import Fresh
from paramctl.outline import Entry, Outline
from paramctl.source import Reader
from paramctl.storages import Blob, Placed


def write(made: Outline, file: IO[bytes], pourer: Pourer) -> None:
    """Write the archive again with the tensors of the outline.

    Raises:
        FileError: an edit that would change what was not named.
    """
    is_moved = next(_changed(made, str), None) is not None
    new = {entry.was: entry.name for entry in made.entries if entry.was != entry.name}
    said = dict(made.metadata) if made.metadata != made.checkpoint.metadata else None
    alone = [path for path in made.without if not any(d.param.name.startswith(f"{path}.") for d in made.dropped)]
    if not (is_moved or new or made.dropped or alone or made.at) and said is None:
        copying.copy(Path(made.checkpoint.source.path or ""), file)
        return
    with Reader(made.checkpoint.source) as reader:
        document = torch_zip_edit.document(reader)
        torch_legacy_document.edit(document, made)
        changed = list(_changed(made, document.new_key))
        if changed:
            document.replace({entry.was: layout for entry, layout, _ in changed})
        torch_legacy_document.rename(document, made)
        fresh = {
            layout.key: Fresh(layout.key, blob.nbytes, _chunks(blob, pourer))
            for _, layout, blob in changed
            if blob is not None
        }
        torch_zip_edit.edit(file, reader, document, fresh, metadata=said)


def _changed(made: Outline, new_key: Callable[[], str]) -> Iterator[tuple[Entry, Layout, Blob | None]]:
    """The tensors that are to lie elsewhere than they do, where, and what of, if that is no storage that is there."""
    blobs, placed = storages.laid_out(made)
    on: dict[int, list[Entry]] = {}
    for entry, one in zip(made.entries, placed, strict=True):
        on.setdefault(one.blob, []).append(entry)
    keys: dict[int, str] = {}
    for entry, one in zip(made.entries, placed, strict=True):
        blob = blobs[one.blob]
        is_kept = _is_kept(blob, on[one.blob])
        if one.blob not in keys:
            keys[one.blob] = blob.param.storage.key if is_kept else new_key()
        if not is_kept:
            yield entry, _layout(keys[one.blob], blob, one), blob
        elif _moved(made, entry):
            yield entry, _layout(keys[one.blob], blob, one), None


def _is_kept(blob: Blob, entries: Sequence[Entry]) -> bool:
    """Whether the blob is a storage that is there, just as it is."""
    if blob.is_cast or any(entry.is_own for entry in entries):
        return False
    return blob.param.is_contiguous and blob.nbytes == blob.param.storage.nbytes


def _moved(made: Outline, entry: Entry) -> bool:
    """Whether the entry's elements are those of another tensor than it was."""
    before = made.checkpoint.params[entry.was]
    mine = (entry.param.storage.key, entry.param.storage_offset, entry.param.stride)
    return mine != (before.storage.key, before.storage_offset, before.stride)


def _layout(key: str, blob: Blob, one: Placed) -> Layout:
    return Layout(key, blob.nbytes, one.dtype, one.offset, one.shape, one.stride)


def _chunks(blob: Blob, pourer: Pourer) -> Iterator[memoryview | bytearray]:
    """Its elements, in the order in which the archive says that they lie."""
    chunks = pourer.pieces(blob)
    return turned(chunks, blob.dtype) if blob.param.storage.byteorder == "big" else chunks
