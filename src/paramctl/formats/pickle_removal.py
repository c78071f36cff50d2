"""Header tier: what is taken out of a pickle, and everything that is in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

from paramctl.errors import FileError, shortened
from paramctl.formats import pickle_metadata
from paramctl.formats.notes import Dict, StandIn, TensorNote
from paramctl.formats.pickle_nodes import Maker, Node
from paramctl.formats.pickle_places import Places, Slot, take
from paramctl.formats.pickle_values import global_of


def remove(places: Places, maker: Maker, paths: Iterable[str]) -> None:
    """Take out what is called so, with all that is in it; and containers in which nothing is left.

    Raises:
        FileError: nothing is called so, or it cannot be taken out alone.
    """
    named = {index for path in paths for index in places.find(path)}
    gone = places.below(named)
    waiting = {index for index in named if not gone.intersection(places.around(index))}
    taken: set[int] = set()
    while waiting:
        index = waiting.pop()
        if places.slots(index):
            taken.add(index)
            continue
        around = _whole(places, index, gone)
        gone |= places.below(around)
        waiting.update(around)
    _check_shared(places, taken, gone)
    _take(places, maker, taken)


def remains(places: Places, names: Collection[str]) -> list[str]:
    """What is to be removed so that of all tensors these stay: whole branches, where none of their tensors does."""
    kept = places.below(index for name in names for index in places.find(name))
    alive: set[str] = {""}
    for index in kept:
        prefix = places.entries[index].prefix
        while prefix not in alive:
            alive.add(prefix)
            prefix = next((places.entries[i].prefix for i in places.by_path.get(prefix[:-1], ())), "")
    found: dict[str, None] = {}
    for index, entry in enumerate(places.entries):
        if type(entry.item) is TensorNote and index not in kept:
            top = index
            while places.entries[top].prefix not in alive:
                top = places.around(top)[0]
            found[places.entries[top].path] = None
    return list(found)


def _whole(places: Places, index: int, gone: Collection[int]) -> list[int]:
    """What is around an entry that cannot be taken out of it, if all of that goes."""
    entry = places.entries[index]
    around = places.around(index)
    inside = places.below(around) - set(around)
    is_tensor = isinstance(places.parent(index), StandIn) and _is_tensor(places.node_of(places.parent(index)))
    stays = [i for i in inside if i not in gone and (not is_tensor or type(places.entries[i].item) is TensorNote)]
    if not around or stays:
        of = f"a part of {shortened(entry.prefix[:-1])}" if around else "all that the file holds"
        hint = f"{shortened(places.entries[min(stays)].path)} is another part of it, and stays" if stays else ""
        raise FileError(places.name, f"{shortened(entry.path)} is {of}, and cannot be dropped alone", hint=hint)
    return around


def _is_tensor(node: Node | None) -> bool:
    """Whether a stand-in is a tensor that torch saves as several: its parts go with it."""
    function = global_of(node.parts[0]) if node is not None and node.op == b"R" else ""
    return function.startswith("torch.") and "._rebuild" in function


def _check_shared(places: Places, taken: Iterable[int], gone: Collection[int]) -> None:
    for index in taken:
        for other in places.same_place(index):
            if other not in gone:
                one, two = shortened(places.entries[index].path), shortened(places.entries[other].path)
                what = f"{one} and {two} are one item of one container"
                raise FileError(places.name, what, hint="drop both, or neither")


def _take(places: Places, maker: Maker, taken: Iterable[int]) -> None:
    holding: dict[int, list[int]] = defaultdict(list)  # entries by the ids of the containers that they are
    for index, entry in enumerate(places.entries):
        if isinstance(entry.item, (list, dict)):
            holding[id(entry.item)].append(index)
    gone: dict[tuple[int, int], Slot] = {}
    changes: dict[int, tuple[Any, dict[str, None]]] = {}
    waiting = sorted(taken)
    while waiting:
        holders: dict[int, Any] = {}
        for index in waiting:
            entry = places.entries[index]
            holders[id(entry.holder)] = entry.holder
            changes.setdefault(id(entry.holder), (entry.holder, {}))[1][entry.key] = None
            gone.update((slot.number, slot) for slot in places.slots(index))
        empty = (number for number, holder in holders.items() if _is_empty(places, holder, gone))
        waiting = [index for number in empty for index in holding[number]]
    for holder, keys in changes.values():
        pickle_metadata.follow(places, maker, holder, keys)
    take(gone.values())


def _is_empty(places: Places, holder: Any, gone: Collection[tuple[int, int]]) -> bool:
    node = places.node_of(holder)
    if node is None or not isinstance(holder, (list, Dict)):
        return False
    return all(slot.number in gone for slot in places.items(node))
