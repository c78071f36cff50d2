"""Header tier: a new torch zip, of a state dict or of dicts in dicts: storages as they are shared, with all views."""

from __future__ import annotations

from typing import IO

from paramctl import storages
from paramctl.checkpoint import Param, Storage
from paramctl.formats import torch_zip_writer
from paramctl.formats.pour import Pourer
from paramctl.formats.torch_pickle import BY_DTYPE, STORAGE_CLASSES, state_dict_pickle
from paramctl.formats.torch_zip_writer import Archive, Fresh
from paramctl.outline import Outline

DTYPES = BY_DTYPE | frozenset(STORAGE_CLASSES)


def cannot_name(name: str) -> bool:
    """A key of a dict may be any text."""
    del name
    return False


def write(made: Outline, file: IO[bytes], pourer: Pourer) -> None:
    """Write the tensors of an outline as they are nested, what is no tensor, and metadata in a member of its own."""
    blobs, placed = storages.laid_out(made)
    held = [Storage(str(number), blob.nbytes) for number, blob in enumerate(blobs)]
    params = [Param(one.name, one.dtype, one.shape, one.stride, held[one.blob], one.offset) for one in placed]
    paths = made.paths if made.extras or any(len(path) > 1 for path in made.paths.values()) else {}
    state = state_dict_pickle(params, paths=paths, extras=made.extras)
    fresh = (Fresh(key, storage.nbytes, pourer.pieces(blobs[int(storage.key)])) for key, storage in state.storages)
    torch_zip_writer.write(Archive(file), state.pickled, fresh, metadata=made.metadata)
