"""Torch zips written by paramctl, for tests: from a checkpoint, or from what torch itself made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from paramctl import formats, source
from paramctl.checkpoint import Checkpoint, Storage
from paramctl.formats import torch_pickle, torch_zip_writer
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
        torch_zip_writer.write(file, made.pickled, fresh, metadata=metadata or {})
    return path
