"""Header tier: what the nodes of a pickle stand for, by the very names that the reader gives.

The nodes are made one after another, as the unpickler would make them, with the reader's own table of names and its own
notes; only that of each tensor, and of each container, it is remembered which node it came from.

Source: CPython's Modules/_pickle.c (`load_reduce`, `load_newobj`, `load_build`, `instantiate`, `do_append`).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from paramctl.errors import FileError, shortened
from paramctl.formats.notes import Dict, Set, StandIn, TensorNote
from paramctl.formats.pickle_nodes import (
    DROP,
    GET,
    MAKE,
    MARK,
    PUSH,
    SHARED,
    STEP,
    Node,
    Part,
    Step,
    is_marked,
    program,
)
from paramctl.formats.unpickle import DAMAGED, NumpyArray, Table

_FRESH: dict[bytes, Callable[[], Any]] = {b"]": list, b"}": Dict, b"\x8f": Set, b")": tuple}
_HOLDERS = (list, dict, StandIn, NumpyArray)


class Values(NamedTuple):
    """What a pickle makes, as notes, stand-ins and plain containers; `TensorNote.origin` is a tensor's node."""

    tree: Any
    nodes: dict[int, Node]  # of containers, by the ids of their values
    keys: dict[Node, list[Any]]  # of dicts: the keys in the order in which they are set
    storages: Collection[str]  # the keys of all
    held: list[Any]  # what has these ids, so that nothing else gets them


def constant(op: bytes) -> Any:
    """The value of an opcode that is all of a value: text, bytes, a number, None, a bool, `()`."""
    return pickle.loads(op + b".", encoding="utf-8", errors="surrogateescape")


def plain(part: Part) -> Any:
    """The value of a part that is no more than a constant, kept or not; None of any other."""
    if isinstance(part, Node):
        return None if part.parts or part.steps or part.op[:1] in b"c]}\x8f(" else constant(part.op)
    return constant(part)


def global_of(part: Part) -> str:
    """The name of a global, "torch._utils._rebuild_tensor_v2"; "" of what is none."""
    if isinstance(part, Node) and part.op[:1] == b"c":
        return ".".join(_global(part.op))
    if isinstance(part, Node) and part.op == b"\x93":
        return ".".join(str(plain(word)) for word in part.parts)
    return ""


def evaluate(root: Part, name: str, *, most: int, nbytes: int) -> Values:
    """What the nodes stand for.

    Args:
        root: of a pickle.
        name: of its file, for errors.
        most: what `parse` gave.
        nbytes: of the pickle.

    Raises:
        FileError: the pickle is damaged, or builds a tensor that cannot be.
    """
    machine = _Machine(nbytes)
    try:
        tree = machine.run(root, most)
    except DAMAGED as error:
        raise FileError(name, f"the pickle is damaged: {shortened(str(error) or type(error).__name__)}") from None
    nodes = {id(value): node for node, value in machine.made}
    return Values(tree, nodes, machine.keys, machine.table.storages.keys(), machine.made)


class _Machine:
    def __init__(self, nbytes: int) -> None:
        self.table = Table(nbytes)
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: list[Any] = []
        self.constants: dict[bytes, Any] = {}
        self.made: list[tuple[Node, Any]] = []
        self.keys: dict[Node, list[Any]] = {}

    def run(self, root: Part, most: int) -> Any:
        for do, what in program(root, most):
            if do == PUSH:
                if what not in self.constants:
                    self.constants[what] = constant(what)
                self.stack.append(self.constants[what])
            elif do == MAKE:
                self.make(what)
            elif do == GET:
                self.stack.append(self.memo[what])
            elif do == STEP:
                self.step(*what)
            elif do == MARK:
                self.outer.append(self.stack)
                self.stack = []
            elif do == DROP:
                del self.stack[len(self.stack) - what :]
            else:
                self.stack = self.outer.pop()
        return self.stack[-1]

    # ------------------------------------------------------------------ values

    def make(self, node: Node) -> None:
        value = self.value(node)
        if type(value) is TensorNote and value.origin is None:
            value = value._replace(origin=node)
        self.stack.append(value)
        if node.kept:
            self.memo.append(value if node.kept == SHARED else None)
        if isinstance(value, _HOLDERS):
            self.made.append((node, value))
            _with_origin(value, node)

    def value(self, node: Node) -> Any:
        op, code = node.op, node.op[:1]
        if code == b"X":
            return op[5:].decode("utf-8", "surrogatepass")
        if code == b"c":
            return self.table.find_class(*_global(op))
        if not node.parts and not is_marked(op):
            return _FRESH[op]() if op in _FRESH else constant(op)
        parts = self.parts(node)
        if code in b"t\x85\x86\x87\x91":
            return tuple(parts)
        if code == b"l":
            return parts
        if code == b"Q":
            return self.table.persistent_load(parts[0])
        if code == b"\x93":
            return self.table.find_class(*parts)
        return self.call(op, parts)

    def call(self, op: bytes, parts: list[Any]) -> Any:
        if op == b"R":
            function, arguments = parts
            return function(*arguments) if isinstance(arguments, tuple) else _refuse("arguments that are no tuple")
        if op in b"\x81\x92":
            new, arguments, *keywords = parts
            return _new(new, *arguments, **(keywords[0] if keywords else {}))
        cls, arguments = (parts[0], parts[1:]) if op == b"o" else (self.table.find_class(*_global(op)), parts)
        if arguments or not isinstance(cls, type) or "__getinitargs__" in vars(cls):
            return cls(*arguments)
        return _new(cls)

    def parts(self, node: Node) -> list[Any]:
        """What the node takes from the stack."""
        if is_marked(node.op):
            parts, self.stack = self.stack, self.outer.pop()
            return parts
        at = len(self.stack) - len(node.parts)
        parts = self.stack[at:]
        del self.stack[at:]
        return parts

    # ------------------------------------------------------------------ steps

    def step(self, node: Node, step: Step) -> None:
        op = step.op
        if op in b"aesu\x90":
            items = self.items(step)
            _fill(self.stack[-1], op, items)
            if op in b"su" and isinstance(self.stack[-1], dict):
                self.keys.setdefault(node, []).extend(items[::2])
        elif op == b"b":
            state = self.stack.pop()
            value = self.stack[-1]
            if type(value) is TensorNote or (isinstance(value, (list, tuple, dict)) and not isinstance(value, Dict)):
                _refuse(f"a state for {type(value).__name__}, which has none")
            value.__setstate__(state)
            if type(value) is NumpyArray:
                _with_origin(value, node)
        else:
            self.stack.pop()

    def items(self, step: Step) -> list[Any]:
        if step.op in b"as":
            at = len(self.stack) - len(step.items)
            items = self.stack[at:]
            del self.stack[at:]
            return items
        items, self.stack = self.stack, self.outer.pop()
        return items


def _fill(value: Any, op: bytes, items: list[Any]) -> None:
    if op in b"ae":
        value.extend(items)
    elif op == b"\x90":
        for item in items:
            value.add(item)
    else:
        for key, item in zip(items[::2], items[1::2], strict=True):
            value[key] = item


def _new(cls: Any, *arguments: Any, **keywords: Any) -> Any:
    is_class = isinstance(cls, type)
    return cls.__new__(cls, *arguments, **keywords) if is_class else _refuse("a new object of no class")


def _global(op: bytes) -> list[str]:
    return op[1:-1].decode("utf-8", "surrogateescape").split("\n")


def _refuse(why: str) -> Any:
    raise ValueError(why)


def _with_origin(value: Any, node: Node) -> None:
    if type(value) is NumpyArray and value.note is not None and value.note.origin is None:
        value.note = value.note._replace(origin=node)
