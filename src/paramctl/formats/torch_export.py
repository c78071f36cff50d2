"""Header tier: the `.pt2` archives of `torch.export.save`.

`ROOT/archive_format` is `pt2`. `ROOT/models/NAME.json` is the program; `ROOT/data/weights/NAME_weights_config.json`
tells for each parameter and buffer its dtype, geometry and member, whose bytes are a whole storage, so that names of
one member share it; `ROOT/data/constants/` is alike. A tensor of a subclass is a file of `torch.save` within the
archive. So are all weights in archives of torch 2.8 (`data/weights/NAME.pt`), and of those before it
(`serialized_state_dict.pt`).

Source: torch/export/pt2_archive/_package.py (`_package_state_dict`, `_load_state_dict`), constants.py;
torch/_export/serde/schema.py (`PayloadConfig`, `TensorMeta`, `ScalarType`); torch/export/__init__.py (`load`, for the
older layout).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

from paramctl.checkpoint import Checkpoint, Module, Param, ParamKind, Storage, reach
from paramctl.dtypes import DTYPES, DType
from paramctl.errors import FileError, shortened
from paramctl.formats import torch_zip, zip_seal
from paramctl.formats.checksums import Patch
from paramctl.formats.zip_directory import STORED, Member, contents, directory, offsets
from paramctl.source import Reader, Source

NAME = "torch-export"

_OLD = ("serialized_exported_program.json", "serialized_state_dict.pt")
_MOST_NBYTES = 100_000_000  # of a JSON text, as in safetensors
_MOST_DIMS = 1000
_MOST = 1 << 63  # torch's sizes, strides and counts of elements are int64
_MOST_SIGNATURE = 1 << 24
_STRIDED = 7
_DTYPES: dict[int, str] = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16",
    29: "float8_e4m3fn", 30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz", 33: "float8_e8m0fnu",
    34: "uint32", 35: "uint64",
}  # fmt: skip
_STACK = re.compile(rb'"nn_module_stack"\s*:\s*("(?:[^"\\]|\\.)*")')
_SIGNATURE = re.compile(rb'"signature"\s*:\s*(?=\{\s*"input_specs")')
_VERSION = re.compile(rb'"torch_version"\s*:\s*"([^"\\]{1,64})"')
_PATH = re.compile(r"[\w.]*")


@dataclass(slots=True)
class _Archive:
    """An archive, and what was found in it so far."""

    reader: Reader
    members: dict[str, Member]
    root: str
    order: Literal["little", "big"]
    begins: dict[str, int]
    params: dict[str, Param] = field(default_factory=dict)
    modules: dict[str, Module] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)
    inner: set[str] = field(default_factory=set)  # members that are files of their own

    def error(self, what: str, hint: str = "") -> FileError:
        return FileError(self.reader.name, what, hint=hint)

    def add(self, param: Param) -> None:
        while param.name in self.params:
            param = param._replace(name=f"{param.name}'")
        self.params[param.name] = param


class _Inner(Reader):
    """A member that is a file of its own, read where it lies."""

    def __init__(self, outer: Reader, member: Member, begin: int) -> None:
        self.name = f"{outer.name}: {shortened(member.name)}"
        self.source = outer.source._replace(name=self.name)
        self.cache = {}
        self.path = outer.path
        self._nbytes = member.nbytes
        self._outer = outer
        self._begin = begin

    def read(self, offset: int, nbytes: int) -> bytes:
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise FileError(self.name, f"wants {nbytes:,} bytes at {offset:,}, and has {self.nbytes:,}")
        return self._outer.read(self._begin + offset, nbytes)


def sniff(reader: Reader) -> bool:
    """Whether it is a zip with `archive_format` pt2, or has the members of the layout before it."""
    if not reader.head.startswith(b"PK\x03\x04"):
        return False
    members = directory(reader)
    if all(name in members for name in _OLD):
        return True
    root = _root(members)
    return root is not None and contents(reader, members[f"{root}archive_format"]).strip() == b"pt2"


def _root(members: Mapping[str, Member]) -> str | None:
    for name, member in members.items():
        root = name[: -len("archive_format")]
        if name.endswith("archive_format") and member.nbytes < 16 and (not root or root.endswith("/")):
            return root
    return None


def read(reader: Reader) -> Checkpoint:
    """The parameters, buffers and constants of an exported program, by their count and not by their bytes.

    Raises:
        FileError: it is damaged, or was made to mislead, or holds no program.
    """
    members = directory(reader)
    root = "" if all(name in members for name in _OLD) else _root(members) or ""
    order = torch_zip.byteorder(reader, members, root)
    archive = _Archive(reader, members, root, order, offsets(reader, members.values()))
    if all(name in members for name in _OLD):
        _read_old(archive)
    else:
        _read_models(archive)
    return Checkpoint(reader.source, NAME, archive.params, archive.modules, archive.metadata, archive.extras)


def _read_old(archive: _Archive) -> None:
    """The layout of torch 2.1 to 2.7."""
    buffers = _program(archive, _OLD[0], "")
    _add_pickled(archive, _OLD[1], "", buffers, is_state=True)
    if "serialized_constants.pt" in archive.members:
        _add_pickled(archive, "serialized_constants.pt", "", buffers, is_state=False)
    _tell(archive, "version", "extra_files/")


def _read_models(archive: _Archive) -> None:
    root, members = archive.root, archive.members
    inside = {name[len(root) :] for name in members if name.startswith(root)}
    models = [name[len("models/") : -len(".json")] for name in inside if re.fullmatch(r"models/.+\.json", name)]
    if not models:
        compiled = any(name.startswith("data/aotinductor/") for name in inside)
        what = "compiled code of AOTInductor" if compiled else "no program"
        raise archive.error(f"a pt2 archive that holds {what}, and no parameters by name")
    for model in sorted(models):
        prefix = f"{model}." if len(models) > 1 else ""
        buffers = _program(archive, f"{root}models/{model}.json", prefix)
        for folder, suffix in (("weights", "_weights_config.json"), ("constants", "_constants_config.json")):
            config, pickled = f"data/{folder}/{model}{suffix}", f"data/{folder}/{model}.pt"
            if pickled in inside:
                _add_pickled(archive, root + pickled, prefix, buffers, is_state=folder == "weights")
            elif config in inside:
                _add_config(archive, root + config, prefix, buffers, is_state=folder == "weights")
            else:
                raise archive.error(f"{config} is not there")
    if len(models) > 1:
        archive.extras["models"] = sorted(models)
    _tell(archive, f"{root}archive_version", f"{root}extra/")


def _tell(archive: _Archive, version: str, extra: str) -> None:
    """The version as metadata, the user's own files as extras."""
    member = archive.members.get(version)
    if member is not None and member.nbytes < 64:
        said = contents(archive.reader, member).decode("utf-8", "replace").strip()
        archive.metadata[version.rpartition("/")[2]] = said
    files = {
        name.removeprefix(extra): f"{member.nbytes:,} bytes"
        for name, member in archive.members.items()
        if name.startswith(extra) and name != extra
    }
    if files:
        archive.extras["extra_files"] = files


# ----------------------------------------------------------------------------- the program


def _program(archive: _Archive, name: str, prefix: str) -> frozenset[str]:
    """What the program says of modules, and the names of its buffers, which the constants are among if not persistent.

    The graph is not parsed: of a large model it is tens of megabytes, of which the names of modules are searched.
    """
    member = archive.members[name]
    if member.nbytes > _MOST_NBYTES:
        return frozenset()
    text = contents(archive.reader, member)
    found = _VERSION.search(text)
    if found:
        archive.metadata.setdefault("torch_version", found[1].decode("utf-8", "replace"))
    for path, qualified in _stacks(text):
        inner = prefix + path if path else prefix[:-1]
        if inner not in archive.modules:
            archive.modules[inner] = Module(inner, qualified.rpartition(".")[2], qualified=qualified)
    return frozenset(prefix + buffer for buffer in _buffers(text))


def _stacks(text: bytes) -> Iterator[tuple[str, str]]:
    """Each module's path and class: `KEY,PATH,CLASS` for each level, with semicolons between."""
    for raw in dict.fromkeys(match[1] for match in _STACK.finditer(text)):
        try:
            stack = json.loads(raw)
        except ValueError:
            continue
        for level in stack.split(";"):
            parts = level.split(",")
            path = parts[1].partition("@")[0] if len(parts) == 3 else "?"  # `layers.0@1` where it is called again
            if _PATH.fullmatch(path):
                yield path, parts[2]


def _buffers(text: bytes) -> list[str]:
    at = _SIGNATURE.search(text)
    if not at:
        return []
    try:
        # the signature stands behind the graph, and before what is left of the program
        signature, _ = json.JSONDecoder().raw_decode(
            text[at.end() : at.end() + _MOST_SIGNATURE].decode("utf-8", "replace")
        )
    except (ValueError, RecursionError):
        return []
    specs = signature.get("input_specs")
    found = [spec.get("buffer") for spec in specs if isinstance(spec, dict)] if isinstance(specs, list) else []
    names = [buffer.get("buffer_name") for buffer in found if isinstance(buffer, dict)]
    return [name for name in names if isinstance(name, str)]


# ----------------------------------------------------------------------------- tensors


def _add_config(archive: _Archive, name: str, prefix: str, buffers: frozenset[str], *, is_state: bool) -> None:
    """The tensors that a `PayloadConfig` tells of."""
    config = _json(archive, archive.members[name]).get("config")
    if not isinstance(config, dict):
        raise archive.error(f"{shortened(name)} has no config")
    folder = name.rpartition("/")[0] + "/"
    for key, payload in config.items():
        path = payload.get("path_name") if isinstance(payload, dict) else None
        member = archive.members.get(f"{folder}{path}")
        if not isinstance(path, str) or member is None:
            raise archive.error(f"{shortened(key)}: its member {shortened(str(path))} is not there")
        full = prefix + key
        kind: ParamKind = (
            "parameter" if payload.get("is_param") is True else "buffer" if is_state or full in buffers else "tensor"
        )
        meta = payload.get("tensor_meta")
        if not isinstance(meta, dict):
            archive.extras[full] = f"an object of {member.nbytes:,} bytes, which is not read"
        elif payload.get("use_pickle") is True:
            _add_subclass(archive, member, full, kind, meta)
        elif meta.get("layout") != _STRIDED:
            archive.extras[full] = f"a tensor of layout {shortened(str(meta.get('layout')))}, which is not read"
        else:
            archive.add(_tensor(archive, member, full, kind, meta))


def _json(archive: _Archive, member: Member) -> dict[str, Any]:
    """A JSON object of the archive's own.

    Raises:
        FileError: it is none, or so large, or so much larger than its bytes, that it was made to mislead.
    """
    if member.nbytes > min(_MOST_NBYTES, (1 << 20) + 50 * member.stored_nbytes):
        raise archive.error(f"{shortened(member.name)} says {member.nbytes:,} bytes, in {member.stored_nbytes:,}")
    try:
        found = json.loads(contents(archive.reader, member))
    except (ValueError, RecursionError) as error:
        said = shortened(str(error))
        raise archive.error(f"{shortened(member.name)} is no JSON: {said}") from None
    if not isinstance(found, dict):
        raise archive.error(f"{shortened(member.name)} is no JSON object")
    return found


def _tensor(archive: _Archive, member: Member, name: str, kind: ParamKind, meta: Mapping[str, Any]) -> Param:
    dtype = _dtype(archive, name, meta)
    shape = _dims(archive, name, meta.get("sizes"))
    stride = _dims(archive, name, meta.get("strides"))
    (offset,) = _dims(archive, name, [meta.get("storage_offset")])
    if len(shape) != len(stride) or math.prod(shape) >= _MOST:
        raise archive.error(f"{shortened(name)}: {len(shape)} sizes and {len(stride)} strides of no tensor")
    low, high = reach(shape, stride)
    end = dtype.nbytes(offset + high) if low != high else 0
    storage = _storage(archive, member)
    if not member.nbytes and end:  # exported from tensors without values
        storage = Storage(f"{storage.key}:{name}", end)
    if end > storage.nbytes:
        raise archive.error(
            f"{shortened(name)} reaches to byte {end:,} of a storage of {storage.nbytes:,}",
            "the file is damaged, or was made to mislead",
        )
    grad = meta.get("requires_grad")
    cls = "Parameter" if kind == "parameter" else "Tensor"
    return Param(name, dtype, shape, stride, storage, offset, kind, grad if type(grad) is bool else None, cls)


def _dtype(archive: _Archive, name: str, meta: Mapping[str, Any]) -> DType:
    code = meta.get("dtype")
    if type(code) is not int or code not in _DTYPES:
        raise archive.error(f"{shortened(name)}: {shortened(str(code))} is no dtype that is known")
    return DTYPES[_DTYPES[code]]


def _dims(archive: _Archive, name: str, values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > _MOST_DIMS:
        raise archive.error(f"{shortened(name)}: sizes or strides that are none")
    found = [value.get("as_int") if isinstance(value, dict) else None for value in values]
    for value, dim in zip(values, found, strict=True):
        if type(dim) is not int or not 0 <= dim < _MOST:
            raise archive.error(f"{shortened(name)}: {shortened(str(value))} is no size or stride")
    return tuple(dim for dim in found if dim is not None)


def _storage(archive: _Archive, member: Member) -> Storage:
    key = member.name.removeprefix(f"{archive.root}data/")
    if key not in archive.storages:
        archive.storages[key] = torch_zip.stored(
            archive.reader, member, archive.begins[member.name], key=key, nbytes=member.nbytes, order=archive.order
        )
    return archive.storages[key]


# ----------------------------------------------------------------------------- files of torch.save within


def _add_pickled(archive: _Archive, name: str, prefix: str, buffers: frozenset[str], *, is_state: bool) -> None:
    """A whole state dict, or the dict of the constants."""
    inner = _inner(archive, archive.members[name])
    for key, param in inner.params.items():
        full = prefix + key
        kind = "buffer" if full in buffers or (is_state and param.kind == "tensor") else param.kind
        archive.add(param._replace(name=full, kind=kind))
    archive.extras.update((prefix + key, value) for key, value in inner.extras.items())


def _add_subclass(archive: _Archive, member: Member, name: str, kind: ParamKind, meta: Mapping[str, Any]) -> None:
    """One tensor; of a subclass that holds others, each of them below its name."""
    for key, param in _inner(archive, member).params.items():
        whole = key == "tensor"
        grad = meta.get("requires_grad") is True if whole else param.requires_grad
        full = name if whole else f"{name}.{key.removeprefix('tensor.')}"
        archive.add(param._replace(name=full, kind=kind, requires_grad=grad))


def _inner(archive: _Archive, member: Member) -> Checkpoint:
    """The checkpoint that a member is, with its storages where they lie in the archive."""
    if member.method != STORED or member.flags & 1:
        raise archive.error(
            f"{shortened(member.name)} is compressed inside the archive", "unzip it, and name it itself"
        )
    if member.name in archive.inner:
        raise archive.error(f"{shortened(member.name)} holds one tensor, and has two names")
    archive.inner.add(member.name)
    begin = archive.begins[member.name]
    reader = _Inner(archive.reader, member, begin)
    if not torch_zip.sniff(reader):
        raise archive.error(f"{shortened(member.name)} is no file of torch.save since 1.6")
    found = torch_zip.read(reader)
    moved: dict[str, Storage] = {}
    label = member.name.removeprefix(f"{archive.root}data/")
    for param in found.params.values():
        storage = param.storage
        if storage.key not in moved:
            extents = tuple(extent._replace(offset=extent.offset + begin) for extent in storage.extents)
            moved[storage.key] = storage._replace(key=f"{label}:{storage.key}", extents=extents)
    params = {name: param._replace(storage=moved[param.storage.key]) for name, param in found.params.items()}
    return Checkpoint(found.source, NAME, params, found.modules, found.metadata, found.extras)


def seal(file: BinaryIO, source: Source, patches: Sequence[Patch]) -> None:
    """Make the checksums of changed storages right, as `zip_seal.seal`; within files in the archive too."""
    with Reader(source, descriptor=file.fileno()) as reader:
        members = directory(reader)
        begins = offsets(reader, members.values())
        done = list(patches)
        for name, changes in zip_seal.within(members, begins, patches).items():
            inner = _Inner(reader, members[name], begins[name])
            if changes[0].offset > begins[name]:  # in a member of a member, and not a storage
                done += zip_seal.reseal(file, inner, changes, base=begins[name])
        zip_seal.reseal(file, reader, done)
