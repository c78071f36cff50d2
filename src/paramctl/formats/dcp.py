"""Header tier: a folder that `torch.distributed.checkpoint` writes.

`.metadata` is a pickle that gives each tensor's dtype, size and chunks, and for each chunk, and for each entry that is
no tensor, a region of a file beside it. A region is what `torch.save` made of the chunk alone. To list, no region of
a tensor is opened: where in it the elements lie is found when they are read (`dcp_regions`).

Source: torch/distributed/checkpoint/metadata.py (`Metadata`), filesystem.py (`_StorageInfo`, `_write_item`),
_nested_dict.py (`flatten_state_dict`).
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from paramctl.checkpoint import Checkpoint, Extent, Param, Storage, contiguous
from paramctl.dtypes import DTYPES
from paramctl.errors import FileError, shortened
from paramctl.formats import torch_zip, unpickle, zip_seal
from paramctl.formats.checksums import Patch
from paramctl.formats.dcp_regions import Part, dimensions
from paramctl.formats.notes import Name, StandIn, TensorNote
from paramctl.source import Reader, Source

NAME = "dcp"
_METADATA = ".metadata"
_PACKING: Any = "torch-save"  # of an extent: `dcp_regions.located` knows more
_MOST_NUMEL = 1 << 63
_MOST_STEPS = 100  # of an entry's path; a deeper one keeps its name in one piece
_MOST_COMPARED = 500_000  # pairs of chunks of a tensor
_SMALL_NBYTES = 1 << 12  # an entry of a number or a word: many of a folder are the same, and are read once
UNREAD = object()  # an entry whose value is not read
_NO_VALUES = TensorNote(None, DTYPES["uint8"], 0, (), (), None)
_MISLEADING = "the file is damaged, or was made to mislead"
_PART_MISSING = "a part of the folder may not have been copied"

Box = tuple[tuple[int, int], ...]


def sniff(source: Source) -> bool:
    """Whether there is a `.metadata`, or a file of chunks."""
    folder = str(source.path)
    if os.path.isfile(os.path.join(folder, _METADATA)):  # noqa: PTH113, PTH118 - no error where it may not be asked
        return True
    try:
        return any(name.endswith(".distcp") for name in os.listdir(folder))  # noqa: PTH208 - names are all that is asked
    except OSError:
        return False


def read(source: Source) -> Checkpoint:
    """What the folder holds, by the number of its chunks and not by their bytes.

    Raises:
        FileError: a `.metadata` that is damaged, or that does not fit the files beside it.
    """
    found, fields = _opened(source)
    entries, paths = fields["state_dict_metadata"], _paths(fields)
    try:
        for name in _in_order(entries, paths):
            if type(name) is not str:
                raise FileError(found.name, f"an entry's name is of type {shortened(type(name).__name__)}")
            found.add(name, entries[name])
    finally:
        found.close()
    said = {"dcp_version": fields.get("version"), "save_id": _fields(fields.get("storage_meta")).get("save_id")}
    metadata = {key: value for key, value in said.items() if type(value) is str}
    extras = _nested(found.extras, paths)
    return Checkpoint(source, NAME, found.params, metadata=metadata, extras=extras)


def entries(source: Source) -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    """Every entry of a folder that `read` has read: its name, its path, and what `torch.save` made of it.

    Of a tensor that is a note of no storage, and of what is not read `UNREAD`.
    """
    found, fields = _opened(source)
    paths = _paths(fields)
    try:
        for name in _in_order(fields["state_dict_metadata"], paths):
            entry = fields["state_dict_metadata"][name]
            yield name, _steps(paths, name), _NO_VALUES if entry.short == "TensorStorageMetadata" else found.tree(name)
    finally:
        found.close()


def _opened(source: Source) -> tuple[_Folder, Mapping[Any, Any]]:
    """The folder, with nothing found in it yet, and what its metadata says."""
    folder = source.path or Path()
    inner = Source(_join(source.name, _METADATA), "file", folder / _METADATA)
    if not os.path.lexists(folder / _METADATA):
        raise FileError(source.name, "it has no .metadata", hint="the save was not finished, or not all was copied")
    with Reader(inner) as reader:
        root = unpickle.load(reader.read(0, reader.nbytes), reader.name)
    fields = _fields(root)
    entries = fields.get("state_dict_metadata")
    if not isinstance(root, StandIn) or root.short != "Metadata" or not isinstance(entries, dict):
        raise FileError(inner.name, "no metadata of torch.distributed.checkpoint")
    return _Folder(source, inner.name, folder, _regions(inner.name, fields.get("storage_data"))), fields


def _paths(fields: Mapping[Any, Any]) -> Mapping[Any, Any]:
    paths = fields.get("planner_data")
    return paths if isinstance(paths, dict) else {}


# ----------------------------------------------------------------------------- what the pickle says


class _Region(NamedTuple):
    """Where an entry, or a chunk of it, lies: `_StorageInfo`."""

    file: str  # relative to the folder
    offset: int
    nbytes: int
    is_transformed: bool


def _in_order(entries: Mapping[Any, Any], paths: Mapping[Any, Any]) -> list[Any]:
    """As they stood in the state dict: `planner_data` keeps that order, the entries themselves are by rank."""
    return list(dict.fromkeys([*(name for name in paths if name in entries), *entries]))


def _fields(value: Any) -> Mapping[Any, Any]:
    """The attributes of a stand-in."""
    state = value.state if isinstance(value, StandIn) else None
    return state if isinstance(state, dict) else {}


def _regions(name: str, storage_data: Any) -> dict[tuple[str, tuple[int, ...] | None], _Region]:
    if not isinstance(storage_data, dict):
        raise FileError(name, "it does not say where the tensors lie")
    found: dict[tuple[str, tuple[int, ...] | None], _Region] = {}
    inside: set[Any] = set()  # files that were looked at
    for index, info in storage_data.items():
        key, place = _fields(index), _fields(info)
        fqn, at = key.get("fqn"), key.get("offset")
        file: Any = place.get("relative_path")
        offset: Any = place.get("offset")
        nbytes: Any = place.get("length")
        if type(fqn) is not str or not (at is None or _is_sizes(at)):
            raise FileError(name, "an index that names no entry")
        if type(file) is not str or (file not in inside and not _is_inside(file)):
            raise FileError(
                name,
                f"{shortened(fqn)}: it lies in {_told(file)}, which is not in the folder",
                hint=_MISLEADING,
            )
        inside.add(file)
        if not _is_sizes((offset, nbytes)):
            raise FileError(name, f"{shortened(fqn)}: its region is no range of bytes", hint=_MISLEADING)
        where = None if at is None else tuple(at)
        found[fqn, where] = _Region(file, offset, nbytes, bool(place.get("transform_descriptors")))
    return found


def _told(file: Any) -> str:
    return repr(shortened(file, 60)) if type(file) is str else f"something of type {shortened(type(file).__name__)}"


def _is_inside(file: str) -> bool:
    return bool(file) and "\0" not in file and not Path(file).is_absolute() and ".." not in re.split(r"[/\\]", file)


def _is_sizes(value: Any) -> bool:
    if not isinstance(value, (tuple, list)) or len(value) > unpickle.MOST_DIMS:
        return False
    for size in value:  # noqa: SIM110 - half the time of all(…), and there are three for each chunk
        if type(size) is not int or not 0 <= size < _MOST_NUMEL:
            return False
    return True


def _join(folder: str, file: str) -> str:
    return os.path.join(folder, file)  # noqa: PTH118 - the folder as it was written


# ----------------------------------------------------------------------------- entries


@dataclass(slots=True)
class _Folder:
    """What was found so far."""

    source: Source
    name: str  # of the metadata
    path: Path
    regions: dict[tuple[str, tuple[int, ...] | None], _Region]
    params: dict[str, Param] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    files: dict[str, tuple[str, int]] = field(default_factory=dict)  # their paths and sizes
    readers: dict[str, Reader] = field(default_factory=dict)
    storages: dict[tuple[tuple[Extent, ...], str], Storage] = field(default_factory=dict)
    known: dict[bytes, Any] = field(default_factory=dict)  # small entries that were read

    def close(self) -> None:
        for reader in self.readers.values():
            reader.__exit__()

    def add(self, name: str, entry: Any) -> None:
        kind = entry.short if isinstance(entry, StandIn) else ""
        if kind == "TensorStorageMetadata":
            self.tensor(name, _fields(entry))
        elif kind == "BytesStorageMetadata":
            self.bytes(name)
        else:
            raise FileError(self.name, f"{shortened(name)} is neither a tensor nor bytes")

    def error(self, name: str, what: str, *, hint: str = "") -> FileError:
        return FileError(self.name, f"{shortened(name)}: {what}", hint=hint)

    def within(self, name: str, region: _Region) -> str:
        """The region is held against its file, whose path is given."""
        known = self.files.get(region.file)
        if known is None:
            try:
                status = (self.path / region.file).stat()
            except (OSError, ValueError) as error:
                raise FileError(
                    self.source.name,
                    f"{shortened(region.file)} cannot be read, where {shortened(name)} lies: "
                    f"{(getattr(error, 'strerror', None) or str(error)).lower()}",
                    hint=_PART_MISSING,
                ) from None
            if not stat.S_ISREG(status.st_mode):
                raise FileError(_join(self.source.name, region.file), "not a regular file")
            known = self.files[region.file] = (str(self.path / region.file), status.st_size)
        path, held = known
        if region.offset + region.nbytes > held:
            raise FileError(
                _join(self.source.name, region.file),
                f"{shortened(name)} has {region.nbytes:,} bytes at {region.offset:,}, the file has {held:,}",
                hint=_PART_MISSING,
            )
        return path

    def tensor(self, name: str, fields: Mapping[Any, Any]) -> None:
        properties = fields.get("properties")
        state = properties.state if isinstance(properties, StandIn) else None
        stated = state if isinstance(state, tuple) else tuple(state.values()) if isinstance(state, dict) else ()
        size, chunks = fields.get("size"), fields.get("chunks")
        if not stated or not _is_sizes(size) or not isinstance(chunks, list):
            raise self.error(name, "it has no dtype, size or chunks")
        shape: tuple[int, ...] = tuple(size)  # type: ignore[arg-type]
        dtype = stated[0].dtype if type(stated[0]) is Name else None
        if dtype is None:
            of = getattr(stated[0], "qualified", type(stated[0]).__name__)
            self.extras[name] = f"a tensor of {shortened(str(of))}, which is not known"
            return
        if math.prod(shape) >= _MOST_NUMEL:
            raise self.error(name, "more elements than a tensor can have")
        boxes = [self.box(name, shape, chunk) for chunk in chunks]
        full = [(start, box, numel) for start, box, numel in boxes if numel] if 0 not in shape else []
        fault = untiled(shape, [box for _, box, _ in full])
        if fault:
            raise self.error(name, fault, hint=_MISLEADING)
        pieces: list[tuple[_Region, Extent]] = []
        for start, box, numel in full:
            region = self.regions.get((name, start))
            if region is None:
                raise self.error(name, f"it is not said where its chunk at {_at(start)} lies")
            path = self.within(name, region)
            nbytes = dtype.nbytes(numel)
            if region.nbytes < nbytes and not region.is_transformed:
                raise self.error(
                    name,
                    f"its chunk at {_at(start)} takes {nbytes:,} bytes, its region has {region.nbytes:,}",
                    hint=_MISLEADING,
                )
            pieces.append((region, Extent(path, region.offset, region.nbytes, _PACKING, 0, box)))
        self.refuse_shared(name, [region for region, _ in pieces])
        why = "its bytes are compressed" if any(region.is_transformed for region, _ in pieces) else ""
        extents = () if why else tuple(extent for _, extent in pieces)
        storage = Storage(name, dtype.nbytes(math.prod(shape)), extents, why_unreadable=why)
        if extents:  # names of the same regions are tied: so we write them
            storage = self.storages.setdefault((extents, dtype.name), storage)
        requires_grad = stated[2] if len(stated) > 2 and type(stated[2]) is bool else None
        self.put(Param(name, dtype, shape, contiguous(shape), storage, requires_grad=requires_grad))

    def put(self, param: Param) -> None:
        """An entry of bytes may hold a tensor of a name that stands already: each is told."""
        name = param.name
        while name in self.params:
            name += "'"
        self.params[name] = param._replace(name=name)

    def box(self, name: str, shape: tuple[int, ...], chunk: Any) -> tuple[tuple[int, ...], Box, int]:
        """Where a chunk begins, what it has of the tensor, and how many elements those are."""
        fields = _fields(chunk)
        starts, sizes = fields.get("offsets"), fields.get("sizes")
        if not _is_sizes(starts) or not _is_sizes(sizes) or not len(starts) == len(sizes) == len(shape):  # type: ignore[arg-type]
            raise self.error(name, f"a chunk without {len(shape)} offsets and sizes")
        box = tuple(zip(starts, sizes, strict=True))  # type: ignore[arg-type]
        for (start, size), most in zip(box, shape, strict=True):
            if start + size > most:
                raise self.error(
                    name,
                    f"its chunk at {_at(starts)} is {dimensions(sizes)}, the tensor {dimensions(shape)}",  # type: ignore[arg-type]
                    hint=_MISLEADING,
                )
        return tuple(starts), box, math.prod(sizes)  # type: ignore[arg-type]

    def refuse_shared(self, name: str, regions: list[_Region]) -> None:
        """No two chunks of a tensor in the same bytes: a small file could be a large tensor."""
        if len(regions) < 2:
            return
        ordered = sorted(regions)
        for one, other in pairwise(ordered):
            if one.file == other.file and one.offset + one.nbytes > other.offset:
                where = f"at {other.offset:,} of {shortened(other.file)}"
                raise self.error(name, f"two of its chunks lie in the same bytes {where}", hint=_MISLEADING)

    def bytes(self, name: str) -> None:
        """An entry that is no tensor, as `torch.save` wrote it: its value, and any tensors that are in it."""
        region = self.regions.get((name, None))
        if region is None:
            raise self.error(name, "it is not said where it lies")
        self.within(name, region)
        if region.is_transformed:
            self.extras[name] = f"{region.nbytes:,} bytes, compressed"
            return
        part = self.part(name, region)
        small = part.read(0, part.nbytes) if part.nbytes <= _SMALL_NBYTES else b""
        if small in self.known:
            self.extras[name] = self.known[small]
            return
        if not torch_zip.sniff(part):
            self.extras[name] = f"{region.nbytes:,} bytes"
            return
        inside = torch_zip.read(part)
        for key, param in inside.params.items():
            whole = name if key == "tensor" and not inside.extras else f"{name}.{key}"
            extents = tuple(e._replace(offset=e.offset + region.offset) for e in param.storage.extents)
            storage = param.storage._replace(key=f"{name}/{param.storage.key}", extents=extents)
            self.put(param._replace(name=whole, storage=storage))
        extras = inside.extras
        if inside.params and not extras:
            return
        self.extras[name] = extras["value"] if list(extras) == ["value"] else extras
        if small and not inside.params:
            self.known[small] = self.extras[name]

    def part(self, name: str, region: _Region) -> Part:
        if region.file not in self.readers:
            inner = Source(_join(self.source.name, region.file), "file", self.path / region.file)
            self.readers[region.file] = Reader(inner)
        return Part(self.readers[region.file], region.offset, region.nbytes, name)

    def tree(self, name: str) -> Any:
        """What an entry of bytes is, unpickled."""
        region = self.regions[name, None]
        part = self.part(name, region)
        if region.is_transformed or not torch_zip.sniff(part):
            return UNREAD
        small = part.read(0, part.nbytes) if part.nbytes <= _SMALL_NBYTES else b""
        if small not in self.known:
            tree = torch_zip.tree(part)
            if not small:
                return tree
            self.known[small] = tree
        return self.known[small]


def _at(start: Iterable[int]) -> str:
    return f"({', '.join(map(str, start))})"


def untiled(shape: tuple[int, ...], boxes: list[Box]) -> str:
    """What is wrong where boxes that lie within `shape` do not cover it once; nothing if they do."""
    if _is_grid(shape, boxes):
        return ""
    axis = max(range(len(shape)), key=lambda axis: len({box[axis][0] for box in boxes}), default=0)
    alive: list[Box] = []
    compared = 0
    for box in sorted(boxes, key=lambda box: box[axis : axis + 1]):
        alive = [other for other in alive if sum(other[axis]) > box[axis][0]] if shape else alive
        for other in alive:
            if all(a < b + m and b < a + n for (a, n), (b, m) in zip(box, other, strict=True)):
                starts = [_at(start for start, _ in one) for one in (other, box)]
                return f"its chunks at {starts[0]} and {starts[1]} overlap"
        compared += len(alive)
        if compared > _MOST_COMPARED:
            return f"its {len(boxes):,} chunks are no grid, and too many to be compared"
        alive.append(box)
    held, numel = sum(math.prod(size for _, size in box) for box in boxes), math.prod(shape)
    return "" if held == numel else f"its chunks hold {held:,} of {numel:,} elements"


def _is_grid(shape: tuple[int, ...], boxes: list[Box]) -> bool:
    """Whether every axis is cut at the same places everywhere, and every cell is there once: so shards are, mostly."""
    cuts = [sorted({box[axis][0] for box in boxes}) for axis in range(len(shape))]
    if len(boxes) != math.prod(map(len, cuts)) or any(not at or at[0] for at in cuts) or len(set(boxes)) < len(boxes):
        return False
    ends = [dict(pairwise([*at, size])) for at, size in zip(cuts, shape, strict=True)]
    return all(ends[axis][start] == start + size for box in boxes for axis, (start, size) in enumerate(box))


# ----------------------------------------------------------------------------- extras


def _nested(flat: Mapping[str, Any], paths: Mapping[Any, Any]) -> dict[str, Any]:
    """Entries as they were nested before they were saved: `planner_data` gives the path of each."""
    root: dict[Any, Any] = {}
    inner: list[dict[Any, Any]] = [root]
    ours = {id(root)}
    for name, value in flat.items():
        steps = _steps(paths, name)
        node: Any = root
        for step in steps[:-1]:
            if step not in node:
                node[step] = {}
                ours.add(id(node[step]))
                inner.append(node[step])
            node = node[step]
            if id(node) not in ours:
                break
        if id(node) in ours and steps[-1] not in node:
            node[steps[-1]] = value
        else:
            root[name] = value
    return {str(key): value for key, value in _listed(root, inner).items()}


def _steps(paths: Mapping[Any, Any], name: str) -> tuple[Any, ...]:
    """The path of an entry; its name alone, where none is given that is one."""
    path: Any = paths.get(name)
    usable = isinstance(path, (tuple, list)) and 0 < len(path) <= _MOST_STEPS
    return tuple(path) if usable and all(map(_is_step, path)) else (name,)


def _is_step(step: Any) -> bool:
    return type(step) is str or (type(step) is int and 0 <= step < _MOST_NUMEL)


def _listed(root: dict[Any, Any], inner: list[dict[Any, Any]]) -> dict[Any, Any]:
    """Dicts whose keys are 0, 1, 2 … as lists, the innermost first."""
    made: dict[int, Any] = {}
    for node in reversed(inner):
        for key, value in node.items():
            node[key] = made.get(id(value), value)
        is_list = node is not root and list(node) == list(range(len(node)))
        made[id(node)] = list(node.values()) if is_list else {str(key): value for key, value in node.items()}
    listed: dict[Any, Any] = made[id(root)]
    return listed


# ----------------------------------------------------------------------------- checksums


def seal_entries(folder: Source, file: BinaryIO, source: Source, patches: Sequence[Patch]) -> None:
    """Make the checksums right of entries that are no tensors themselves, after tensors in them were changed.

    Args:
        folder: that the file is of.
        file: the new file, open for reading and writing.
        source: the file that it was copied from.
        patches: what was changed in it.
    """
    found, _ = _opened(folder)
    entries = {region for (_, at), region in found.regions.items() if at is None}
    mine = sorted(region for region in entries if found.path / region.file == source.path)
    with Reader(source, descriptor=file.fileno()) as reader:
        for region in mine:
            end = region.offset + region.nbytes
            inside = [patch for patch in patches if region.offset <= patch.offset < end]
            if inside:
                part = Part(reader, region.offset, region.nbytes, source.name)
                zip_seal.reseal(file, part, inside, base=region.offset)
