"""Header tier: named tensors, modules and extras out of an unpickled object tree.

Every container is descended into, stand-ins included, so every tensor that `torch.load` would find has a name:
keys, positions and attributes joined by dots. A pickled module is named as its `state_dict()` would name it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from paramctl.checkpoint import Checkpoint, Module, Param, ParamKind, Storage, reach
from paramctl.errors import FileError, shortened
from paramctl.formats.notes import Device, Dict, Name, OldParameter, OldVariable, StandIn, StorageNote, TensorNote
from paramctl.formats.unpickle import NumpyArray
from paramctl.source import Source

DEEPEST = 100  # containers within containers; of deeper ones only the tensors are told
_NOTHING = object()
_ENDLESS = "…"
_FRAMEWORK = frozenset(  # what torch.nn.Module keeps for itself
    ("training", "T_destination", "dump_patches", "call_super_init")
)
_KINDS: tuple[tuple[str, ParamKind], ...] = (("_parameters", "parameter"), ("_buffers", "buffer"))
_MODULE_PARTS = frozenset(("_parameters", "_buffers", "_modules"))

_FREELY_LOOKED_AT = 1_000_000  # values: a pickle that shares nothing has fewer than bytes
_CHARACTERS = 25  # of names, beyond that, for each value
_CONTAINER, _TENSOR = 6, 20  # values, by what they take
FindStorage = Callable[[StorageNote, str], Storage]
Items = Iterable[tuple[str, Any, Any]]  # a name, a value, and the key under which its holder has it


class Entry(NamedTuple):
    """A value that has a name."""

    path: str
    prefix: str  # the path of what it is in, and a dot; "" of what is in the root
    holder: Any  # what holds it: a dict, a list, a tuple, a stand-in; None: nothing that could let it go
    key: Any  # under which the holder has it; of a stand-in, ("items", position) or ("elements", position)
    item: Any


Seen = Callable[[Entry], None]

Steps = Generator[tuple[Any, str], Any, Any]  # gives a container and its path, is sent what is left of it


@dataclass(slots=True)
class _Walk:
    """What was found so far. `budget` and `values` bound what shared containers may multiply into.

    They are characters of names, and how many values may be looked at.
    """

    source: Source
    find_storage: FindStorage
    budget: int
    values: int
    params: dict[str, Param] = field(default_factory=dict)
    modules: dict[str, Module] = field(default_factory=dict)
    storages: dict[object, Storage] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)  # names that more than one tensor would have
    registered: set[int] = field(default_factory=set)  # ids of modules, and of the tensors in them, that have a name
    aside: int = 0  # how many modules' plain attributes are being looked at
    seen: Seen | None = None

    def spend(self, count: int, values: int = 1) -> None:
        self.budget -= count
        self.values -= values
        if self.budget < 0 or self.values < 0:
            raise FileError(self.source.name, "its containers hold each other so often that their names have no end")

    # ------------------------------------------------------------------ tensors

    def storage_of(self, note: TensorNote, name: str) -> Storage:
        if note.data is not None:  # an array in the pickle: each is its own
            key: object = id(note)
            if key not in self.storages:
                held = memoryview(note.data)
                self.storages[key] = Storage(f"pickle:{len(self.storages)}", len(note.data), (), held, note.byteorder)
            return self.storages[key]
        if note.storage is None:  # saved from the meta device
            return Storage(f"meta:{name}", note.dtype.nbytes(math.prod(note.shape)))
        key = note.storage.key
        if key not in self.storages:
            self.storages[key] = self.find_storage(note.storage, name)
        found = self.storages[key]
        return (
            found._replace(extents=(), why_unreadable=f"it is stored to be {note.lazy} when read")
            if note.lazy
            else found
        )

    def add(self, note: TensorNote, path: str) -> str:
        """The name that it has got."""
        self.spend(1 + len(path), _TENSOR)
        name = path
        while name in self.params:
            more = self.taken[path] = self.taken.get(path, 0) + 1
            name = f"{path}'{more if more > 1 else ''}"
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
        return name

    # ------------------------------------------------------------------ the tree

    def run(self, root: Any) -> Any:
        """Find the tensors in `root`; what is left of it, as JSON has it, or `_NOTHING`.

        The stack is a list, so that no file can make it run out.
        """
        stack: list[tuple[int, Steps]] = [(0, self.entries([("tensor", root, None)], "", None))]
        open_ids: set[int] = set()
        left: Any = None
        while True:
            try:
                value, path = stack[-1][1].send(left)
            except StopIteration as done:
                left = done.value
                open_ids.discard(stack.pop()[0])
                if not stack:
                    return left[0][1] if left else _NOTHING
                if len(stack) > DEEPEST and left is not _NOTHING:
                    left = _ENDLESS
                continue
            if id(value) in open_ids:
                left = _ENDLESS
                continue
            self.spend(1 + len(path), _CONTAINER)
            open_ids.add(id(value))
            stack.append((id(value), self.descend(value, f"{path}." if len(stack) > 1 else "")))
            left = None

    def entries(self, items: Items, prefix: str, holder: Any) -> Generator[tuple[Any, str], Any, list[tuple[str, Any]]]:
        """What is left of each item of a container, where anything is. `prefix`: its path and a dot, if it has one."""
        kept: list[tuple[str, Any]] = []
        for name, given, key in items:
            item, kind = given, type(given)
            if kind in _HOLDERS:
                item = noted(given)
                kind = type(item)
            if self.aside and id(item) in self.registered:
                continue  # an LSTM's list of its own weights, a child that is in a list too: no more than a reference
            if kind is TensorNote:
                path = self.add(item, prefix + name)
                if self.seen is not None:
                    self.seen(Entry(path, prefix, holder, key, item))
                if isinstance(item.state, (dict, StandIn)) or type(item.state) is tuple:
                    left = yield item.state, prefix + name
                    if isinstance(item.state, StandIn):  # how a quantized tensor is read, which is part of its value
                        kept.append((name, left))
                continue
            if self.seen is not None:
                self.seen(Entry(prefix + name, prefix, holder, key, given))
            if kind is NumpyArray:
                item = item.text if item.objects is None else item.objects
            if not isinstance(item, _CONTAINERS) or kind is StorageNote:
                self.spend(1)
                left = _told(item)
            elif item:
                left = yield item, prefix + name
            else:
                self.spend(1, _CONTAINER)
                left = type(item)()
            if left is not _NOTHING:
                kept.append((name, left))
        return kept

    def descend(self, value: Any, prefix: str) -> Steps:
        if isinstance(value, StandIn):
            return self.module(value, prefix) if is_module(value) else self.stand_in(value, prefix)
        if isinstance(value, dict):
            return self.mapping(value, prefix)
        return self.sequence(value, prefix)

    def mapping(self, value: dict[Any, Any], prefix: str) -> Steps:
        attributes = value.attributes if isinstance(value, Dict) else None
        if isinstance(attributes, dict):
            self.state_dict_modules(attributes.get("_metadata"), prefix)
            yield from self.entries((item for item in named(attributes) if item[0] != "_metadata"), prefix, attributes)
        kept = yield from self.entries(named(value), prefix, value)
        return dict(kept) if kept else _NOTHING

    def sequence(self, value: Iterable[Any], prefix: str) -> Steps:
        kept = yield from self.entries(((str(i), item, i) for i, item in enumerate(value)), prefix, value)
        return [item for _, item in kept] if kept else _NOTHING

    def stand_in(self, value: StandIn, prefix: str) -> Steps:
        states = value.state if isinstance(value.state, tuple) else (value.state,)
        parts: list[tuple[Any, Items]] = [
            (None, ((f"_args.{i}", item, i) for i, item in enumerate(value.args))),
            (None, named(value.kwargs)),
            *(
                (state, named(state) if isinstance(state, dict) else (("_state", state, None),))
                for state in states
                if state is not None
            ),
            (value, ((name, item, ("items", i)) for i, (name, item, _) in enumerate(_paired(value.items)))),
            (value, ((str(i), item, ("elements", i)) for i, item in enumerate(value.elements))),
        ]
        kept = []
        for holder, items in parts:
            kept += yield from self.entries(items, prefix, holder)
        return {"class": type(value).qualified} | dict(kept)

    # ------------------------------------------------------------------ modules

    def module(self, value: StandIn, prefix: str) -> Steps:
        state = value.state
        hyperparameters: dict[str, Any] = {}
        path = prefix[:-1]
        self.modules[path] = Module(path, value.short, hyperparameters, type(value).qualified)
        self.registered.add(id(value))
        for part, kind in _KINDS:
            absent = yield from self.entries(self.registering(kind, state.get(part)), prefix, state.get(part))
            hyperparameters.update((name, _class_of(left)) for name, left in absent)
        yield from self.entries(named(state.get("_modules")), prefix, state.get("_modules"))
        rest = (item for item in named(state) if item[0] not in _MODULE_PARTS)
        self.aside += 1
        kept = yield from self.entries(rest, prefix, state)
        self.aside -= 1
        hyperparameters.update(pair for pair in kept if not pair[0].startswith("_") and pair[0] not in _FRAMEWORK)
        return _NOTHING

    def registering(self, kind: ParamKind, mapping: Any) -> Items:
        for name, given, key in named(mapping):
            item = noted(given)
            if type(item) is TensorNote:
                cls = "Parameter" if kind == "parameter" and item.cls == "Tensor" else item.cls
                self.registered.add(id(item))
                yield name, item._replace(kind=kind, cls=cls), key
            else:
                yield name, item, key

    def state_dict_modules(self, metadata: Any, prefix: str) -> None:
        for key, local in metadata.items() if isinstance(metadata, dict) else ():
            if isinstance(key, str):
                inner = prefix + key if key else prefix[:-1]
                self.spend(1 + len(inner))
                version = local.get("version") if isinstance(local, dict) else None
                self.modules.setdefault(inner, Module(inner, version=version if type(version) is int else None))


def noted(item: Any) -> Any:
    """The tensor that an array or an old Variable holds; else the item itself."""
    held = item.note if type(item) in _HOLDERS else None
    return item if held is None else held


def _class_of(left: Any) -> Any:
    """What stands where a parameter would: None for `Linear(…, bias=False)`, the class's name for a lazy one."""
    return left.get("class", "").rpartition(".")[2] if isinstance(left, dict) else left


def is_module(value: Any) -> bool:
    """Whether it is a pickled `torch.nn.Module`."""
    state = value.state if isinstance(value, StandIn) else None
    return isinstance(state, dict) and all(isinstance(state.get(k), dict) for k in ("_parameters", "_modules"))


def named(mapping: Any) -> Items:
    return _paired(mapping.items()) if isinstance(mapping, dict) else ()


def _paired(pairs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[str, Any, Any]]:
    for i, (key, item) in enumerate(pairs):
        if type(key) is str:
            yield key, item, key
        else:  # an optimizer's state is by its parameters: their positions name them, as in its `state_dict()`
            yield str(i) if type(noted(key)) is TensorNote else str(_told(key)), item, key


_PLAIN = frozenset((str, float, bool, type(None)))
_HOLDERS = frozenset((NumpyArray, OldVariable, OldParameter))
_CONTAINERS = (dict, list, tuple, StandIn)
_MOST_BITS = 10_000  # of an integer that is told in digits; Python itself refuses beyond 4,300 of them


def _told(value: Any) -> Any:
    """What is neither a container nor a tensor, as JSON has it; and a key of a dict, whatever it is."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is Device:
        return str(value)
    if kind is int:
        return value if value.bit_length() <= _MOST_BITS else f"an integer of {value.bit_length():,} bits"
    if kind in (bytes, bytearray):
        return f"{len(value):,} bytes"
    if kind is StorageNote:
        return f"a storage of {value.nbytes:,} bytes"
    if kind is tuple:
        return "(" + ", ".join(_part(item) for item in value[:8]) + ("" if len(value) <= 8 else ", …") + ")"
    if isinstance(value, type) and issubclass(value, (StandIn, OldVariable)):
        return value.qualified
    if isinstance(value, StandIn):
        return kind.qualified
    if kind is Name:
        return value.text
    return str(value) if kind is complex else kind.__name__


def _part(item: Any) -> str:
    """An element of a tuple that is a key."""
    return "(…)" if type(item) is tuple else repr(item) if type(item) is str else str(_told(item))


def checkpoint(
    root: Any, source: Source, file_format: str, find_storage: FindStorage, *, budget: int, seen: Seen | None = None
) -> Checkpoint:
    """The named tensors of an unpickled object.

    Args:
        root: what `unpickle.load` gave.
        source: where it is from.
        file_format: the format's name.
        find_storage: the bytes of a storage, for the tensor of the given name; raises FileError where there are none.
        budget: how many characters all names may have; a pickle of n bytes holds fewer values, but it can share them.
        seen: told of every value that has a name, in the order of the names.

    Raises:
        FileError: a tensor that reaches beyond its storage.
    """
    walk = _Walk(source, find_storage, budget, _FREELY_LOOKED_AT + budget // _CHARACTERS, seen=seen)
    extras = walk.run(root)
    made = Checkpoint(source, file_format, walk.params, walk.modules)
    if extras is _NOTHING:
        return made
    return replace(made, extras=extras if isinstance(extras, dict) else {"value": extras})
