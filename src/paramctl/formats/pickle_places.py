"""Header tier: where in the nodes of a pickle each value that has a name is held.

Names, and what is in what, are those of `objects`; here each is followed to the step that puts it where it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from paramctl.checkpoint import Storage
from paramctl.errors import FileError, nearest, shortened
from paramctl.formats import objects
from paramctl.formats.notes import Dict, StandIn, StorageNote, TensorNote
from paramctl.formats.objects import Entry
from paramctl.formats.pickle_nodes import Node, Part, Step
from paramctl.formats.pickle_parse import Parsed, uncollected
from paramctl.formats.pickle_values import Values, evaluate
from paramctl.source import Source


class Slot(NamedTuple):
    """An item of a container: a value, and before it, in a dict, its key."""

    node: Node  # the container
    step: Step
    at: int  # of the key, or of the value where there is no key
    width: int  # 2 in a dict, 1 in a list

    @property
    def number(self) -> tuple[int, int]:
        return (id(self.step), self.at)

    @property
    def value(self) -> Part:
        return self.step.items[self.at + self.width - 1]

    def put(self, value: Part) -> None:
        self.step.items[self.at + self.width - 1] = value

    def rename(self, key: Part) -> None:
        self.step.items[self.at] = key


class Places:
    """All that has a name, in the order of the names."""

    def __init__(self, parsed: Parsed, name: str, *, nbytes: int) -> None:
        self.name = name
        found: list[Entry] = []
        source, budget = Source(name, "file", Path(name)), 1_000_000 + 100 * nbytes
        with uncollected():
            self.values: Values = evaluate(parsed.root, name, most=parsed.most, nbytes=nbytes)
            objects.checkpoint(self.values.tree, source, "", _storage, budget=budget, seen=found.append)
        is_tensor = type(found[0].item) is TensorNote
        self.entries = found if is_tensor else found[1:]  # the root itself has no name
        self.root = Entry("", "", None, None, self.values.tree)
        self.by_path: dict[str, list[int]] = defaultdict(list)
        self.inside: dict[str, list[int]] = defaultdict(list)
        for i, entry in enumerate(self.entries):
            self.by_path[entry.path].append(i)
            self.inside[entry.prefix].append(i)
        self._places: dict[tuple[int, Any], list[int]] | None = None
        self._slots: dict[int, dict[Any, list[Slot]]] = {}

    @property
    def tensors(self) -> dict[str, Entry]:
        return {entry.path: entry for entry in self.entries if type(entry.item) is TensorNote}

    def find(self, path: str) -> list[int]:
        """What is called `path`: tensors before all else, and more than one thing where two keys read the same.

        Raises:
            FileError: nothing is.
        """
        if path not in self.by_path:
            close = ", ".join(shortened(name) for name in nearest(path, list(self.by_path)))
            hint = f"did you mean {close}?" if close else ""
            raise FileError(self.name, f"nothing is called {shortened(path)}", hint=hint)
        found = self.by_path[path]
        return [index for index in found if type(self.entries[index].item) is TensorNote] or found

    # ------------------------------------------------------------------ what is in what

    def below(self, indices: Iterable[int]) -> set[int]:
        """Those entries, and all that is in them."""
        found: set[int] = set()
        waiting = list(indices)
        while waiting:
            index = waiting.pop()
            if index not in found:
                found.add(index)
                waiting.extend(self.inside.get(f"{self.entries[index].path}.", ()))
        return found

    def around(self, index: int) -> list[int]:
        """What the entry is in; nothing, if that is the root."""
        prefix = self.entries[index].prefix
        return self.by_path.get(prefix[:-1], []) if prefix else []

    def parent(self, index: int) -> Any:
        """The value that the entry is in."""
        around = self.around(index)
        return self.entries[around[0]].item if around else self.root.item

    # ------------------------------------------------------------------ places

    def same_place(self, index: int) -> list[int]:
        """The entries that are this very item of this very container, which can have many names."""
        if self._places is None:
            self._places = defaultdict(list)
            for i, entry in enumerate(self.entries):
                self._places[id(entry.holder), entry.key].append(i)
        entry = self.entries[index]
        return [index] if entry.holder is None else self._places[id(entry.holder), entry.key]

    def slots(self, index: int) -> list[Slot]:
        """The items by which an entry is held: all that set one key of a dict. None, if nothing could let it go."""
        entry = self.entries[index]
        node = self.values.nodes.get(id(entry.holder))
        if node is None or entry.holder is None:
            return []
        if id(node) not in self._slots:
            self._slots[id(node)] = self._items(node, entry.holder)
        return self._slots[id(node)].get(entry.key, [])

    def _items(self, node: Node, value: Any) -> dict[Any, list[Slot]]:
        found: dict[Any, list[Slot]] = defaultdict(list)
        if isinstance(value, Dict):
            for key, slot in self.pairs(node):
                found[key].append(slot)
        elif isinstance(value, StandIn):
            for i, slot in enumerate(_each(node, b"su", 2)):
                found["items", i].append(slot)
            for i, slot in enumerate(_each(node, b"ae\x90", 1)):
                found["elements", i].append(slot)
        elif isinstance(value, list) and not node.parts:
            for i, slot in enumerate(_each(node, b"ae\x90", 1)):
                found[i].append(slot)
        return found

    def pairs(self, node: Node) -> Iterator[tuple[Any, Slot]]:
        """The keys and items of a dict."""
        for part in (*_given(node, b"}"), node):
            yield from zip(self.values.keys.get(part, ()), _each(part, b"su", 2), strict=True)

    def items(self, node: Node) -> Iterator[Slot]:
        """All that a container holds."""
        for part in (*_given(node, b"}"), node):
            yield from _each(part, b"su", 2)
        for part in (*_given(node, b"]"), node):
            yield from _each(part, b"ae\x90", 1)

    def node_of(self, value: Any) -> Node | None:
        """What makes a container."""
        return self.values.nodes.get(id(value))


def take(slots: Iterable[Slot]) -> None:
    """Take items out of their containers."""
    gone: dict[int, tuple[Slot, set[int]]] = {}
    for slot in slots:
        gone.setdefault(id(slot.step), (slot, set()))[1].update(range(slot.at, slot.at + slot.width))
    for (node, step, _, _), positions in gone.values():
        step.items[:] = [part for at, part in enumerate(step.items) if at not in positions]
        if not step.items:
            node.steps.remove(step)


def _given(node: Node, op: bytes) -> Iterator[Node]:
    """The containers of which a call makes another, as it does a Counter of a dict, and a set of a list."""
    arguments = node.parts[1] if node.op == b"R" else None
    for part in arguments.parts if isinstance(arguments, Node) else ():
        if isinstance(part, Node) and part.op == op:
            yield part


def _each(node: Node, ops: bytes, width: int) -> Iterator[Slot]:
    for step in node.steps:
        if step.op in ops:
            for at in range(0, len(step.items), width):
                yield Slot(node, step, at, width)


def _storage(note: StorageNote, _: str) -> Storage:
    return Storage(note.key, note.nbytes)
