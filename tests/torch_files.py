"""Torch zips written by paramctl, for tests: from a checkpoint, or from what torch itself made."""

from __future__ import annotations

import pickle
import pickletools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from graphs import assert_same_graph
from paramctl import formats, source
from paramctl.checkpoint import Checkpoint, Storage
from paramctl.formats import torch_pickle, torch_zip_edit, torch_zip_writer
from paramctl.formats.pickle_document import Document
from paramctl.source import Reader


def read(path: Path) -> Checkpoint:
    return formats.read(source.resolve(str(path)))


def saved(value: Any, path: Path, **options: Any) -> Checkpoint:
    """What torch has saved, as read."""
    torch.save(value, path, **options)
    return read(path)


def chunks(storage: Storage, nbytes: int = 1 << 16) -> Iterator[bytes]:
    """A storage's bytes, in pieces."""
    for extent in storage.extents:
        with Reader(source.resolve(extent.path)) as reader:
            for at in range(0, extent.nbytes, nbytes):
                yield reader.read(extent.offset + at, min(nbytes, extent.nbytes - at))


def written(checkpoint: Checkpoint, path: Path, *, metadata: Any = None, **options: Any) -> Path:
    """The params of a checkpoint in a torch zip that is new."""
    made = torch_pickle.state_dict_pickle(checkpoint.params.values(), **options)
    fresh = (torch_zip_writer.Fresh(key, storage.nbytes, chunks(storage)) for key, storage in made.storages)
    with path.open("wb") as file:
        torch_zip_writer.write(torch_zip_writer.Archive(file), made.pickled, fresh, metadata=metadata or {})
    return path


def rewritten(path: Path, edit: Callable[[Document], Any] = lambda _: None, fresh: Any = None, **options: Any) -> Path:
    """The file written anew through its document, edited."""
    target = path.with_suffix(".new.pt")
    with Reader(source.resolve(str(path))) as reader, target.open("w+b") as file:
        document = torch_zip_edit.document(reader)
        edit(document)
        torch_zip_edit.edit(file, reader, document, fresh or {}, **options)
    return target


def loaded(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, weights_only=False)


def opcodes(pickled: bytes) -> list[tuple[str, Any]]:
    """Without the frames, and with positions in the memo counted anew."""
    found, seen = [], {}
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            seen[len(seen) if argument is None else argument] = len(seen)
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            found.append(("GET", seen[argument]))
        elif opcode.name not in ("FRAME", "PROTO"):
            found.append((opcode.name, argument))
    return found


def pickle_of(path: Path) -> bytes:
    return torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")


def assert_written_again(root: Any, path: Path, protocol: int, pickler: Any = pickle) -> None:
    torch.save(root, path, pickle_protocol=protocol, pickle_module=pickler)
    new = rewritten(path)
    assert opcodes(pickle_of(new)) == opcodes(pickle_of(path))
    if protocol < 4:
        assert new.read_bytes() == path.read_bytes()
    assert_same_graph(loaded(new), loaded(path))
    assert read(new).params.keys() == read(path).params.keys()
