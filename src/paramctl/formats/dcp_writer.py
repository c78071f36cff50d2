"""Header tier: a new folder of `torch.distributed.checkpoint`, as one rank writes it, without torch.

Every tensor is one chunk: a region of `__0_0.distcp` that holds what `torch.save` makes of the tensor alone, and so is
every value that is no tensor. Names of the very same elements name the same region.

Source: torch/distributed/checkpoint/metadata.py, filesystem.py (`_write_item`, `CURRENT_DCP_VERSION`),
default_planner.py (`create_default_global_save_plan`), _nested_dict.py.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from functools import lru_cache
from typing import IO, Any, NamedTuple

from paramctl import outline as outlines
from paramctl.checkpoint import Param, Storage, contiguous
from paramctl.dtypes import DType
from paramctl.formats import small_archives, state_dict_writer, torch_zip_writer
from paramctl.formats.nesting import Path, dotted
from paramctl.formats.pickle_nodes import (
    EMPTY_TUPLE,
    FALSE,
    NONE,
    Maker,
    Node,
    Part,
    Step,
    called,
    dump,
    filled,
    tuple_of,
    whole,
)
from paramctl.formats.pour import Pourer
from paramctl.formats.small_archives import SmallArchive
from paramctl.formats.torch_pickle import tensor_pickle
from paramctl.formats.torch_zip_writer import Archive, Fresh
from paramctl.outline import Entry, Outline
from paramctl.storages import Blob

DTYPES = state_dict_writer.DTYPES
cannot_name = state_dict_writer.cannot_name
_FILE = "__0_0.distcp"
_VERSION = "1.0.0"
_METADATA = "torch.distributed.checkpoint.metadata"
_FILESYSTEM = "torch.distributed.checkpoint.filesystem"


class _Region(NamedTuple):
    offset: int
    nbytes: int


def write(made: Outline, folder: pathlib.Path, pourer: Pourer) -> None:
    """Write the tensors of an outline, and what says where they are."""
    kept_as = outlines.aliases(made)
    regions: dict[str, _Region] = {}
    with (folder / _FILE).open("w+b") as file:
        for entry in outlines.distinct(made, kept_as):
            regions[entry.name] = _write_one(entry, file, pourer)
        values = {path: _write_value(value, file) for path, value in made.extras.items()}
    everywhere = {entry.name: regions[kept_as.get(entry.name, entry.name)] for entry in made.entries}
    (folder / ".metadata").write_bytes(_pickled(made, everywhere, values))


def _write_one(entry: Entry, file: IO[bytes], pourer: Pourer) -> _Region:
    begin = file.tell()
    chunks = pourer.pieces(Blob(entry.param, entry.dtype))
    if entry.nbytes <= small_archives.MOST_NBYTES:
        return _Region(begin, _small(entry.dtype, entry.param.shape).write(file, b"".join(chunks)))
    fresh = Fresh("0", entry.nbytes, chunks)
    torch_zip_writer.write(Archive(file), _tensor_pickle(entry.dtype, entry.param.shape), [fresh])
    return _Region(begin, file.tell() - begin)


@lru_cache(maxsize=256)
def _small(dtype: DType, shape: tuple[int, ...]) -> SmallArchive:
    return SmallArchive(_tensor_pickle(dtype, shape), dtype.nbytes(math.prod(shape)))


def _write_value(value: Any, file: IO[bytes]) -> _Region:
    """What is no tensor, as `torch.save` has it."""
    begin = file.tell()
    torch_zip_writer.write(Archive(file), dump(Maker({}).value(value)), [])
    return _Region(begin, file.tell() - begin)


@lru_cache(maxsize=256)
def _tensor_pickle(dtype: DType, shape: tuple[int, ...]) -> bytes:
    nbytes = dtype.nbytes(math.prod(shape))
    return tensor_pickle(Param("tensor", dtype, shape, contiguous(shape), Storage("0", nbytes))).pickled


# ----------------------------------------------------------------------------- .metadata


def _pickled(made: Outline, regions: Mapping[str, _Region], values: Mapping[Path, _Region]) -> bytes:
    maker = Maker({})
    said = {entry.name: _tensor(maker, entry) for entry in made.entries}
    said |= {dotted(path): _instance(maker, _METADATA, "BytesStorageMetadata") for path in values}
    places = [(_index(maker, entry), _place(maker, regions[entry.name])) for entry in made.entries]
    places += [(_index_of(maker, path), _place(maker, region)) for path, region in values.items()]
    paths = {entry.name: made.paths.get(entry.name, (entry.name,)) for entry in made.entries}
    paths |= {dotted(path): path for path in values}
    fields = {
        "state_dict_metadata": maker.value(said),
        "planner_data": maker.value({name: tuple(map(_step, path)) for name, path in paths.items()}),
        "storage_data": filled(Node(b"}"), b"u", places),
        "storage_meta": NONE,
        "version": maker.text(_VERSION),
    }
    return dump(_object(maker, _METADATA, "Metadata", fields))


def _object(maker: Maker, module: str, name: str, fields: Mapping[str, Part]) -> Node:
    """An instance with these attributes."""
    node = _instance(maker, module, name)
    state = filled(Node(b"}"), b"u", [(maker.text(key), part) for key, part in fields.items()])
    node.do(Step(b"b", [state]))
    return node


def _instance(maker: Maker, module: str, name: str) -> Node:
    return Node(b"\x81", (maker.named(module, name), EMPTY_TUPLE))


def _tensor(maker: Maker, entry: Entry) -> Node:
    shape = entry.param.shape
    chunk = {"offsets": _size(maker, (0,) * len(shape)), "sizes": _size(maker, shape)}
    chunks = filled(Node(b"]"), b"e", [[_object(maker, _METADATA, "ChunkStorageMetadata", chunk)]])
    fields = {"properties": _properties(maker, entry), "size": _size(maker, shape), "chunks": chunks}
    return _object(maker, _METADATA, "TensorStorageMetadata", fields)


def _properties(maker: Maker, entry: Entry) -> Node:
    """`TensorProperties.__getstate__`: dtype, layout, requires_grad, memory format, pinned."""
    layout = called(maker.named("torch.serialization", "_get_layout"), tuple_of([maker.text("torch.strided")]))
    in_order = called(maker.named(_METADATA, "_MEM_FORMAT_ENCODING"), tuple_of([whole(0)]))
    known = maker.known.get(("properties", entry.dtype))
    if known is not None:
        return known
    node = maker.shared(("properties", entry.dtype), _instance(maker, _METADATA, "TensorProperties"))
    state: list[Part] = [
        maker.named("torch", entry.dtype.name),
        maker.shared("layout", layout),
        FALSE,
        maker.shared("memory format", in_order),
        FALSE,
    ]
    node.do(Step(b"b", [tuple_of(state)]))
    return node


def _size(maker: Maker, sizes: tuple[int, ...]) -> Node:
    known = maker.known.get(("size", sizes))
    if known is not None:
        return known
    made = called(maker.named("torch", "Size"), tuple_of([tuple_of([whole(size) for size in sizes])]))
    return maker.shared(("size", sizes), made)


def _index(maker: Maker, entry: Entry) -> Node:
    fields: dict[str, Part] = {
        "fqn": maker.text(entry.name),
        "index": whole(0),
        "offset": _size(maker, (0,) * len(entry.param.shape)),
    }
    return _object(maker, _METADATA, "MetadataIndex", fields)


def _index_of(maker: Maker, path: Path) -> Node:
    fields: dict[str, Part] = {"fqn": maker.text(dotted(path)), "index": NONE, "offset": NONE}
    return _object(maker, _METADATA, "MetadataIndex", fields)


def _step(step: Any) -> Any:
    return int(step) if isinstance(step, int) else str(step)


def _place(maker: Maker, region: _Region) -> Node:
    fields: dict[str, Part] = {
        "relative_path": maker.text(_FILE),
        "offset": whole(region.offset),
        "length": whole(region.nbytes),
    }
    return _object(maker, _FILESYSTEM, "_StorageInfo", fields)
