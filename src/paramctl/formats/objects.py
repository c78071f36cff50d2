"""Header tier: named tensors, modules and extras out of an unpickled object tree.

Every container is descended into, stand-ins included, so every tensor that `torch.load` would find has a name:
keys, positions and attributes joined by dots. A pickled module is named as its `state_dict()` would name it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from paramctl.checkpoint import Checkpoint, Module, Param, Storage, reach
from paramctl.errors import FileError, shortened
from paramctl.formats.unpickle import Dict, Name, NumpyArray, StandIn, StorageNote, TensorNote
from paramctl.source import Source

DEEPEST = 200  # containers within containers; deeper ones are shown as extras without their contents
_NOTHING = object()
_FRAMEWORK = frozenset(  # what torch.nn.Module keeps for itself
    ["training", "T_destination", "dump_patches", "call_super_init"]
)

FindStorage = Callable[[StorageNote, str], Storage]


@dataclass(slots=True)
class _Walk:
    """What was found so far. `budget` bounds the names that shared containers may multiply into."""

    source: Source
    find_storage: FindStorage
    budget: int
    params: dict[str, Param] = field(default_factory=dict)
    modules: dict[str, Module] = field(default_factory=dict)
    open_ids: set[int] = field(default_factory=set)
    storages: dict[object, Storage] = field(default_factory=dict)

    # ------------------------------------------------------------------ tensors

    def storage_of(self, note: TensorNote, name: str) -> Storage:
        if note.data is not None:  # an array in the pickle: each is its own
            key: object = id(note.data)
            if key not in self.storages:
                order = "big" if note.byteorder == "big" else "little"
                held = memoryview(note.data)
                self.storages[key] = Storage(f"pickle:{len(self.storages)}", len(note.data), (), held, order)
            return self.storages[key]
        if note.storage is None:  # saved from the meta device
            return Storage(f"meta:{name}", note.dtype.nbytes(math.prod(note.shape)))
        key = note.storage.key
        if key not in self.storages:
            self.storages[key] = self.find_storage(note.storage, name)
        return self.storages[key]

    def add(self, note: TensorNote, path: str) -> None:
        name = path or "tensor"
        while name in self.params:
            name += "'"
        storage = self.storage_of(note, name)
        low, high = reach(note.shape, note.stride)
        end = note.dtype.nbytes(note.offset + high)
        if low != high and end > storage.nbytes:
            raise FileError(
                self.source.name,
                f"{shortened(name)} reaches to byte {end:,} of a storage of {storage.nbytes:,}",
                hint="the file is damaged, or was made to mislead",
            )
        self.params[name] = Param(
            name, note.dtype, note.shape, note.stride, storage, note.offset, note.kind, note.requires_grad, note.cls
        )

    # ------------------------------------------------------------------ the tree

    def visit(self, value: Any, path: str, depth: int) -> Any:
        """Find the tensors in `value`; what is left of it, as JSON has it, or `_NOTHING`."""
        self.budget -= 1
        if self.budget < 0:
            raise FileError(self.source.name, "its containers hold each other so often that their names have no end")
        kind = type(value)
        if kind is TensorNote:
            self.add(value, path)
            return _NOTHING
        if kind in _PLAIN:
            return value
        if kind is NumpyArray:
            if value.note is None:
                return value.text
            self.add(value.note, path)
            return _NOTHING
        if id(value) in self.open_ids or depth > DEEPEST:
            return "…"
        self.open_ids.add(id(value))
        try:
            return self.descend(value, path, depth + 1)
        finally:
            self.open_ids.discard(id(value))

    def descend(self, value: Any, path: str, depth: int) -> Any:
        if isinstance(value, StandIn):
            return self.stand_in(value, path, depth)
        if isinstance(value, dict):
            if isinstance(value, Dict) and isinstance(value.attributes, dict):
                self.state_dict_modules(value.attributes.get("_metadata"), path)
            return self.mapping(value.items(), path, depth)
        if isinstance(value, (list, tuple, set, frozenset)):
            found = [self.visit(item, _join(path, str(i)), depth) for i, item in enumerate(value)]
            kept = [item for item in found if item is not _NOTHING]
            return kept if kept or not found else _NOTHING
        return _told(value)

    def mapping(self, items: Any, path: str, depth: int) -> Any:
        kept, count = {}, 0
        for key, item in items:
            count += 1
            name = _key(key)
            left = self.visit(item, _join(path, name), depth)
            if left is not _NOTHING:
                kept[name] = left
        return kept if kept or not count else _NOTHING

    def stand_in(self, value: StandIn, path: str, depth: int) -> Any:
        if _is_module(value):
            self.module(value, path, depth)
            return _NOTHING
        left: dict[str, Any] = {}
        for i, item in enumerate(value.args):
            self.keep(left, f"_args.{i}", item, path, depth)
        for key, item in value.kwargs.items():
            self.keep(left, key, item, path, depth)
        for state in value.state if isinstance(value.state, tuple) else (value.state,):
            if isinstance(state, dict):
                for key, item in state.items():
                    self.keep(left, _key(key), item, path, depth)
            elif state is not None:
                self.keep(left, "_state", state, path, depth)
        for key, item in value.items.items():
            self.keep(left, _key(key), item, path, depth)
        for i, item in enumerate(value.elements):
            self.keep(left, str(i), item, path, depth)
        return {"class": type(value).qualified} | left

    def keep(self, left: dict[str, Any], key: str, item: Any, path: str, depth: int) -> None:
        found = self.visit(item, _join(path, key), depth)
        if found is not _NOTHING:
            left[key] = found

    # ------------------------------------------------------------------ modules

    def module(self, value: StandIn, path: str, depth: int) -> None:
        state = value.state
        plain = {
            _key(key): item for key, item in state.items() if not str(key).startswith("_") and key not in _FRAMEWORK
        }
        hyperparameters = {}
        self.modules[path] = Module(path, value.short, hyperparameters, type(value).qualified)
        for kind in ("parameter", "buffer"):
            for key, note in _pairs(state.get(f"_{kind}s")):
                if type(note) is TensorNote:
                    self.budget -= 1
                    cls = "Parameter" if kind == "parameter" and note.cls == "Tensor" else note.cls
                    self.add(note._replace(kind=kind, cls=cls), _join(path, key))
        children = dict(_pairs(state.get("_modules")))
        for key, item in plain.items():
            if key in children:
                continue
            left = self.visit(item, _join(path, key), depth)
            if left is not _NOTHING:
                hyperparameters[key] = left
        for key, child in children.items():
            if child is not None:
                self.visit(child, _join(path, key), depth)

    def state_dict_modules(self, metadata: Any, path: str) -> None:
        if isinstance(metadata, dict):
            for key in metadata:
                if isinstance(key, str):
                    inner = _join(path, key) if key else path
                    self.modules.setdefault(inner, Module(inner))


def _is_module(value: StandIn) -> bool:
    state = value.state
    return isinstance(state, dict) and all(isinstance(state.get(k), dict) for k in ("_parameters", "_modules"))


def _pairs(mapping: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(mapping, dict):
        for key, item in mapping.items():
            yield _key(key), item


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _key(key: Any) -> str:
    return key if type(key) is str else str(key) if type(key) in (int, float, bool, bytes) else str(_told(key))


_PLAIN = frozenset((str, int, float, bool, type(None)))


def _told(value: Any) -> Any:
    """What is neither container nor plain value, as text."""
    if isinstance(value, (bytes, bytearray)):
        return f"{len(value):,} bytes"
    if isinstance(value, type) and issubclass(value, StandIn):
        return value.qualified
    if isinstance(value, Name):
        return value.text
    if isinstance(value, complex):
        return str(value)
    if isinstance(value, StandIn):
        return type(value).qualified
    if isinstance(value, tuple):
        return "(" + ", ".join(str(_told(item)) if type(item) not in _PLAIN else repr(item) for item in value[:8]) + ")"
    return value if type(value) in _PLAIN else type(value).__name__


def checkpoint(root: Any, source: Source, file_format: str, find_storage: FindStorage, *, budget: int) -> Checkpoint:
    """The named tensors of an unpickled object.

    Args:
        root: what `unpickle.load` gave.
        source: where it is from.
        file_format: the format's name.
        find_storage: the bytes of a storage, for the tensor of the given name; raises FileError where there are none.
        budget: how many values may be visited; a pickle of n bytes cannot hold more than n, but can share them.

    Raises:
        FileError: a tensor that reaches beyond its storage.
    """
    walk = _Walk(source, find_storage, budget)
    extras = walk.visit(root, "", 0)
    made = Checkpoint(source, file_format, walk.params, walk.modules)
    if extras is _NOTHING:
        return made
    return replace(made, extras=extras if isinstance(extras, dict) else {"value": extras})
