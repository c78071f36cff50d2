"""Header tier: `_metadata` of a state dict, kept true to its keys.

A state dict has an attribute that gives each module's version by the module's path, modules without parameters too.
When keys are renamed or dropped, the paths follow: as the keys of a module go, so goes the module, and one without
keys goes with the nearest that is around it.

Source: torch/nn/modules/module.py (`state_dict`, `_load_from_state_dict`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from paramctl.formats.notes import Dict
from paramctl.formats.pickle_nodes import Maker, Node, Step, again
from paramctl.formats.pickle_places import Places, Slot, take

Pairs = list[tuple[Any, Slot]]
Changes = Mapping[str, str | None]  # new keys by old ones; None of those that are gone


def follow(places: Places, maker: Maker, state_dict: Any, changes: Changes) -> None:
    """Rename and drop the paths of a state dict's modules as its keys were."""
    attributes = state_dict.attributes if isinstance(state_dict, Dict) else None
    versions = attributes.get("_metadata") if isinstance(attributes, dict) else None
    node = places.node_of(versions)
    if node is None or not isinstance(versions, Dict):
        return
    keys = [key for key in state_dict if isinstance(key, str)]
    paths = moved([key for key in versions if isinstance(key, str)], keys, changes)
    pairs = list(places.pairs(node))
    if any(path != to for path, to in paths.items()) and len(_having(places, versions)) > 1:
        pairs = _own(places, node, pairs, attributes)
    gone = []
    for path, slot in pairs:
        to = paths.get(path, path) if isinstance(path, str) else path
        if to is None:
            gone.append(slot)
        elif to != path:
            slot.rename(maker.text(to))
    take(gone)


def _having(places: Places, versions: Dict) -> set[int]:
    """The dicts that have these versions: a shallow copy of a state dict has those of the original."""
    dicts = (entry.item for entry in (places.root, *places.entries) if isinstance(entry.item, Dict))
    return {
        id(one) for one in dicts if isinstance(one.attributes, dict) and one.attributes.get("_metadata") is versions
    }


def _own(places: Places, node: Node, pairs: Pairs, attributes: Any) -> Pairs:
    """The same versions, for one state dict alone."""
    own = Node(node.op, [again(part) for part in node.parts])
    for step in node.steps:
        own.do(Step(step.op, [again(part) for part in step.items]))
    holder = places.node_of(attributes)
    for key, slot in places.pairs(holder) if holder else ():
        if key == "_metadata":
            slot.put(own)
    steps = dict(zip(map(id, node.steps), own.steps, strict=True))
    return [
        (path, slot._replace(node=own, step=steps[id(slot.step)])) for path, slot in pairs if id(slot.step) in steps
    ]


def moved(paths: Iterable[str], keys: Iterable[str], changes: Changes) -> dict[str, str | None]:
    """New paths of modules, None of those that are gone.

    Args:
        paths: of modules.
        keys: of the state dict, before.
        changes: of keys.
    """
    going, known = _going(keys, changes)
    has_another_root = not going.get("") and any("" in targets for targets in going.values())
    found: dict[str, str | None] = {}
    taken: set[str] = set()
    for path in paths:
        to = _to(path, going, known, has_another_root=has_another_root)
        found[path] = None if to in taken else to
        taken.update(() if to is None else (to,))
    return found


def _going(keys: Iterable[str], changes: Changes) -> tuple[dict[str, set[str]], set[str]]:
    """Where the keys of each module go, and all modules that have any."""
    going: dict[str, set[str]] = defaultdict(set)
    known: set[str] = {""}
    for key in keys:
        module, leaf = _split(key)
        known.update(_upward(module))
        new = changes.get(key, key)
        if new is None:
            continue
        to, new_leaf = _split(new)
        if leaf == new_leaf or module == to:
            going[module].add(to)
            _outward(going, module, to)
        for around in _upward(module):
            if around and f"{to}.".startswith(f"{around}."):
                going[around].add(around)
    return going, known


def _outward(going: dict[str, set[str]], module: str, to: str) -> None:
    """What is around a module goes where it does, as long as the last parts of both paths are the same."""
    while module and to and _split(module)[1] == _split(to)[1]:
        module, to = _split(module)[0], _split(to)[0]
        going[module].add(to)


def _to(path: str, going: Mapping[str, set[str]], known: set[str], *, has_another_root: bool) -> str | None:
    nearest = next(around for around in _upward(path) if around in known)
    targets = going.get(nearest, set())
    if not targets and (nearest or has_another_root):
        return None
    to = next(iter(targets)) if len(targets) == 1 else nearest
    rest = path[len(nearest) :].removeprefix(".")
    return f"{to}.{rest}" if to and rest else to or rest


def _split(path: str) -> tuple[str, str]:
    head, _, tail = path.rpartition(".")
    return head, tail


def _upward(path: str) -> Iterator[str]:
    """The path, and those around it, the root last."""
    while path:
        yield path
        path = _split(path)[0]
    yield ""
