"""Header tier: tensors of a pickle under other names.

A name is a path of keys, so a new name is a new key somewhere on that path: of a whole branch, if all tensors in it go
the same way; else of the tensor in its own dict; else the tensor goes to the end of another dict.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from paramctl.checkpoint import branches
from paramctl.errors import FileError, nearest, shortened
from paramctl.formats import pickle_metadata
from paramctl.formats.notes import Dict, Set, TensorNote
from paramctl.formats.objects import is_module
from paramctl.formats.pickle_nodes import Maker, Node, Part, Step, whole
from paramctl.formats.pickle_places import Places, Slot, take


class _Move(NamedTuple):
    """An entry that gets another key in what holds it; or, `into` another dict, goes there."""

    entry: int
    key: Any
    into: Dict | None = None


def rename(places: Places, maker: Maker, names: Mapping[str, str]) -> None:
    """Give tensors new names.

    Args:
        places: of the pickle.
        maker: of what is new in it.
        names: new ones by old ones; all at once, so that two can change places.

    Raises:
        FileError: a name that is taken or that nothing can have there, or a tensor with other names that stay.
    """
    wanted = {index: new for old, new in names.items() if old != new for index in places.find(old)}
    moves = list(_branches(places, wanted))
    done = places.below(move.entry for move in moves)
    moves += [_move(places, index, new) for index, new in wanted.items() if index not in done]
    _check_shared(places, moves)
    _check_free(places, moves)
    _carry_out(places, maker, moves)


# ----------------------------------------------------------------------------- which keys


def _branches(places: Places, wanted: Mapping[int, str]) -> Iterator[_Move]:
    """The outermost containers whose tensors all go to the same other path, next to where they are."""
    targets: dict[int, set[str | None]] = defaultdict(set)
    for index, entry in enumerate(places.entries):
        if type(entry.item) is TensorNote:
            for outer in _outward(places, index):
                path, new = places.entries[outer].path, wanted.get(index, entry.path)
                rest = entry.path[len(path) :]
                targets[outer].add(new.removesuffix(rest) if new.endswith(rest) else None)
    found: set[int] = set()
    for index in range(len(places.entries)):
        if index in targets and not found.intersection(_outward(places, index)):
            entry = places.entries[index]
            to = targets[index].pop() if len(targets[index]) == 1 else None
            if to is None:
                continue
            rest = to[len(entry.prefix) :]
            is_beside = to.startswith(entry.prefix) and not f"{to}.".startswith(f"{entry.path}.")
            if is_beside and rest and _is_renamable(places, index) and _key(entry.key, rest) not in entry.holder:
                found.add(index)
                yield _Move(index, _key(entry.key, rest))


def _outward(places: Places, index: int) -> Iterator[int]:
    """What is around an entry, from the nearest on, where each is one thing."""
    around = places.around(index)
    while len(around) == 1:
        yield around[0]
        around = places.around(around[0])


def _move(places: Places, index: int, new: str) -> _Move:
    entry = places.entries[index]
    parent = places.parent(index)
    if not _is_renamable(places, index):
        where = shortened(entry.prefix[:-1]) or "the root"
        what = f"{shortened(entry.path)} has its place in {where}, and no key there that could be another"
        raise FileError(places.name, what)
    if is_module(parent):
        leaf = new[len(entry.prefix) :]
        if not new.startswith(entry.prefix) or "." in leaf or not leaf:
            what = f"{shortened(entry.path)} is in a pickled module, and cannot become {shortened(new)}"
            raise FileError(places.name, what, hint="in a module, only the last part of a name can be another")
        return _Move(index, leaf)
    if new.startswith(entry.prefix):
        return _Move(index, _key(entry.key, new[len(entry.prefix) :]))
    path, into = _nearest_dict(places, new)
    return _Move(index, new[len(path) :], into)


def _is_renamable(places: Places, index: int) -> bool:
    """Whether an entry has a key of text, or a number, in a dict; the name of a child of a module is its module's."""
    entry = places.entries[index]
    parent = places.parent(index)
    is_child = is_module(parent) and entry.holder is parent.state.get("_modules")
    return (
        isinstance(entry.holder, Dict)
        and isinstance(entry.key, (str, int))
        and bool(places.slots(index))
        and not is_child
    )


def _nearest_dict(places: Places, name: str) -> tuple[str, Dict]:
    """The plain dict with the longest path that the name can go into, and that path with a dot."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        path = ".".join(parts[:length])
        for index in places.by_path.get(path, ()):
            item = places.entries[index].item
            if isinstance(item, Dict):
                return f"{path}.", item
    if not isinstance(places.root.item, Dict):
        raise FileError(places.name, f"there is no dict that {shortened(name)} could go into")
    return "", places.root.item


def _key(old: Any, text: str) -> Any:
    """A key of the kind that there was: a number stays one."""
    return int(text) if type(old) is int and text.isascii() and text.isdigit() else text


# ----------------------------------------------------------------------------- whether it can be


def _check_shared(places: Places, moves: list[_Move]) -> None:
    keys = {move.entry: (move.key, id(move.into)) for move in moves}
    for move in moves:
        for other in places.same_place(move.entry):
            if keys.get(other) != keys[move.entry]:
                one, two = shortened(places.entries[move.entry].path), shortened(places.entries[other].path)
                raise FileError(places.name, f"{one} and {two} are one item of one container, and go different ways")


def _check_free(places: Places, moves: list[_Move]) -> None:
    leaving: dict[int, set[Any]] = defaultdict(set)
    for move in moves:
        leaving[id(places.entries[move.entry].holder)].add(places.entries[move.entry].key)
    come: set[tuple[int, Any]] = set()
    for move in {places.slots(move.entry)[0].number: move for move in moves}.values():
        entry = places.entries[move.entry]
        holder = entry.holder if move.into is None else move.into
        if (move.key in holder and move.key not in leaving[id(holder)]) or (id(holder), move.key) in come:
            what = f"{shortened(entry.path)} would take the place of another: {shortened(str(move.key))} is there"
            raise FileError(places.name, what)
        come.add((id(holder), move.key))


# ----------------------------------------------------------------------------- doing it


def _carry_out(places: Places, maker: Maker, moves: list[_Move]) -> None:
    changes: dict[int, tuple[Any, dict[str, str | None]]] = {}
    gone: dict[tuple[int, int], Slot] = {}
    for move in moves:
        entry = places.entries[move.entry]
        stays = move.into is None and isinstance(move.key, str)
        changes.setdefault(id(entry.holder), (entry.holder, {}))[1][entry.key] = move.key if stays else None
    coming: list[tuple[Node, Part, Part]] = []
    for move in moves:
        slots = places.slots(move.entry)
        key = maker.text(move.key) if isinstance(move.key, str) else whole(move.key)
        if move.into is None:
            _rename_buffer(places, maker, move)
            for slot in slots:
                slot.rename(key)
        elif slots[0].number not in gone:
            gone.update((slot.number, slot) for slot in slots)
            into = places.node_of(move.into)
            if into is not None:
                coming.append((into, key, slots[-1].value))
    for holder, keys in changes.values():
        pickle_metadata.follow(places, maker, holder, keys)
    take(gone.values())
    for into, key, value in coming:
        _append(into, key, value)


def _append(into: Node, key: Part, value: Part) -> None:
    """To the items of a dict; a state is set behind them, as a pickler does."""
    last = next((step for step in reversed(into.steps) if step.op in b"su"), None)
    if last is not None:
        last.op = b"u"
        last.items += [key, value]
    else:
        into.do(Step(b"s", [key, value]))
        into.steps.insert(0, into.steps.pop())


def _rename_buffer(places: Places, maker: Maker, move: _Move) -> None:
    """A module keeps the names of the buffers that its state dict leaves out."""
    module = places.parent(move.entry)
    names = module.state.get("_non_persistent_buffers_set") if is_module(module) else None
    node = places.node_of(names)
    for name, slot in zip(names, places.items(node), strict=False) if node and isinstance(names, Set) else ():
        if name == places.entries[move.entry].key:
            slot.put(maker.text(move.key))


# ----------------------------------------------------------------------------- other places


def add(places: Places, maker: Maker, name: str, value: Part) -> None:
    """Put a value at the end of the dict that its name leads to.

    Raises:
        FileError: there is none, or the name is taken.
    """
    path, into = _nearest_dict(places, name)
    key = name[len(path) :]
    node = places.node_of(into)
    if node is None or key in into or name in places.by_path:
        raise FileError(places.name, f"{shortened(name)} is there already")
    _append(node, maker.text(key), value)


def branch(places: Places, path: str) -> Part | None:
    """What is at a path, if it is something that has tensors in it."""
    for index in places.by_path.get(path, ()):
        slots = places.slots(index)
        inside = places.below([index]) - {index}
        if slots and any(type(places.entries[i].item) is TensorNote for i in inside):
            return slots[-1].value
    return None


def dict_of(places: Places, path: str) -> str:
    """The prefix of the dict that has keys beginning with the rest of the path and a dot.

    Raises:
        FileError: no such keys, or in several dicts.
    """
    found = {
        entry.prefix
        for entry in places.tensors.values()
        if entry.path.startswith(f"{path}.") and isinstance(entry.holder, Dict) and len(entry.prefix) <= len(path)
    }
    if len(found) != 1:
        close = nearest(path, branches(places.tensors)) or branches(places.tensors)[:5]
        hint = f"tensors are at {', '.join(map(shortened, close))}" if close else ""
        raise FileError(places.name, f"no tensors at {shortened(path)!r}", hint=hint)
    return found.pop()
