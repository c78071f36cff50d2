"""Header tier: a pickle as a graph of nodes, and the opcodes that make it again.

A node is the opcode that makes a value, what that opcode takes, and the steps by which the value is filled: the same
things that a pickle says, in the same order, so nothing is lost in them and nothing is run. A value that is told by
one opcode alone, and that nothing refers to again, is no more than that opcode's bytes.

Source: CPython's Lib/pickle.py (`_Pickler.save_tuple`, `memoize`, `_batch_setitems`) and Lib/pickletools.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Union

from paramctl.errors import ParamctlError
from paramctl.formats.notes import Device, Name, Set

UNKEPT, KEPT, SHARED = 0, 1, 2  # a node outside the memo; in the memo; and referred to from more than one place
BATCH = 1000  # items that a pickler puts into a container at once
_MARKED = frozenset(b"tldoi\x91")  # opcodes that take all down to a mark
_MARKED_STEPS = frozenset((b"e", b"u", b"\x90"))
NONE, TRUE, FALSE, EMPTY_TUPLE = b"N", b"\x88", b"\x89", b")"
_SIZED = {1: b"\x85", 2: b"\x86", 3: b"\x87"}
_SIZES = {1: ("<B", b"K"), 2: ("<H", b"M"), 4: ("<i", b"J")}


class Node:
    """A value that is made of others, that others refer to, or that is filled."""

    __slots__ = ("kept", "op", "parts", "steps")

    def __init__(self, op: bytes, parts: Sequence[Part] = (), *, kept: int = SHARED) -> None:
        self.op = op  # with its argument, where it has one
        self.parts = parts
        self.steps: list[Step] = _NO_STEPS
        self.kept = kept

    def do(self, step: Step) -> None:
        """One step more."""
        if self.steps is _NO_STEPS:
            self.steps = []
        self.steps.append(step)


class Step:
    """What is done to a value once it is made.

    It is filled (`a e s u`, ADDITEMS), given its state (`b`); or something else is made and dropped (`0`).
    """

    __slots__ = ("items", "op")

    def __init__(self, op: bytes, items: list[Part]) -> None:
        self.op = op
        self.items = items  # of a dict: keys and values by turns


_NO_STEPS: list[Step] = []  # of most nodes, which saves a list for each
Part = Union[Node, bytes]  # noqa: UP007 - evaluated before Node is


# What is to be done next to make a value: with a stack and a memo, that is all there is.
PUSH = 0  # the constant
MARK = 1
MAKE = 2  # the node, of its parts on the stack; it is put into the memo behind the others, if it is to be kept
GET = 3  # what is in the memo at this position
STEP = 4  # (node, step), of the items on the stack
DROP = 5  # so many values
DROP_MARK = 6


def program(root: Part, most: int) -> Iterator[tuple[int, Any]]:
    """How a pickler makes `root`: parts first, each once; then its steps.

    A node that is met again while its own parts are being made, as a tuple in a list in that tuple, is made within,
    and then taken from the memo; so a few tuples can multiply.

    Raises:
        ParamctlError: it would do more than `most` things.
    """
    memo: dict[Node, int] = {}
    waiting: list[Any] = [root]
    pop, push = waiting.pop, waiting.append
    for _ in range(most):
        if not waiting:
            return
        item = pop()
        kind = type(item)
        if kind is bytes:
            yield PUSH, item
        elif kind is Node and item in memo:
            yield GET, memo[item]
        elif kind is Node and (item.parts or item.op[0] in _MARKED):
            if item.op[0] in _MARKED:
                yield MARK, None
            push((item,))
            waiting.extend(reversed(item.parts))
        elif kind is tuple and len(item) == 2:
            yield item
        else:
            node = item if kind is Node else item[0]
            if node in memo:
                yield (DROP_MARK, None) if is_marked(node.op) else (DROP, len(node.parts))
                yield GET, memo[node]
                continue
            yield MAKE, node
            if node.kept:
                memo[node] = len(memo)
            for step in reversed(node.steps):
                push((STEP, (node, step)))
                waiting.extend(reversed(step.items))
                if step.op in _MARKED_STEPS:
                    push((MARK, None))
    if waiting:
        raise ParamctlError("its tuples hold themselves so often that they cannot be written again")


def is_marked(op: bytes) -> bool:
    """Whether an opcode takes all down to a mark."""
    return op[0] in _MARKED


def dump(root: Part, *, protocol: int = 2, most: int = 1 << 62) -> bytes:
    """The pickle of a graph; the same graph gives the same bytes.

    Args:
        root: the value.
        protocol: that it says it is of.
        most: as for `program`.
    """
    written = bytearray(b"\x80" + bytes([protocol]) if protocol >= 2 else b"")
    kept = 0
    for do, what in program(root, most):
        if do == PUSH:
            piece = what
        elif do == MAKE:
            piece = what.op
            if what.kept:
                piece += _put(kept, protocol)
                kept += 1
        elif do == GET:
            piece = _get(what)
        elif do == STEP:
            piece = what[1].op
        else:
            piece = b"(" if do == MARK else b"1" if do == DROP_MARK else b"0" * what
        written += piece
    return bytes(written + b".")


def _put(index: int, protocol: int) -> bytes:
    if protocol >= 4:
        return b"\x94"
    return b"q" + bytes([index]) if index < 256 else b"r" + struct.pack("<I", index)


def _get(index: int) -> bytes:
    return b"h" + bytes([index]) if index < 256 else b"j" + struct.pack("<I", index)


# ----------------------------------------------------------------------------- new values


def whole(value: int) -> bytes:
    """An int, in the shortest form of protocol 2."""
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if 0 <= value < 65536:
        return b"M" + struct.pack("<H", value)
    if -0x80000000 <= value < 0x80000000:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if value < 0 and len(raw) > 1 and raw[-1] == 0xFF and raw[-2] & 0x80:
        raw = raw[:-1]
    return b"\x8a" + bytes([len(raw)]) + raw if len(raw) < 256 else b"\x8b" + struct.pack("<i", len(raw)) + raw


def text(value: str) -> Node:
    raw = value.encode("utf-8", "surrogatepass")
    return Node(b"X" + struct.pack("<I", len(raw)) + raw)


def named(module: str, name: str) -> Node:
    """A global."""
    return Node(f"c{module}\n{name}\n".encode())


def tuple_of(parts: Sequence[Part]) -> Part:
    return Node(_SIZED.get(len(parts), b"t"), parts) if parts else EMPTY_TUPLE


def shared(node: Node) -> Node:
    """A node that is to be referred to from one place more."""
    node.kept = SHARED
    return node


def again(part: Part) -> Part:
    """A part that is to be in one more place; a storage is named anew in each."""
    return shared(part) if isinstance(part, Node) and part.op != b"Q" else part


def called(function: Part, arguments: Part) -> Node:
    return Node(b"R", (function, arguments))


def filled(node: Node, op: bytes, items: Iterable[Sequence[Part]]) -> Node:
    """The node with items put into it: lists of one for a list (`e`), of key and value for a dict (`u`)."""
    every = list(items)
    single = {b"e": b"a", b"u": b"s"}[op]
    for start in range(0, len(every), BATCH):
        batch = every[start : start + BATCH]
        node.do(Step(op if len(batch) > 1 else single, [part for item in batch for part in item]))
    return node


_CALLS: dict[type, Callable[[Any], tuple[str, str, Sequence[Any]]]] = {  # as pickled by protocol 2
    bytes: lambda value: ("_codecs", "encode", (value.decode("latin1"), "latin1")),
    bytearray: lambda value: ("__builtin__", "bytearray", (bytes(value),)),
    complex: lambda value: ("__builtin__", "complex", (value.real, value.imag)),
    Set: lambda value: ("__builtin__", "set", (list(value),)),
    Device: lambda value: ("torch", "device", _device(value)),
}


def _device(value: Device) -> tuple[Any, ...]:
    kind, colon, index = value.partition(":")
    return (kind, int(index)) if colon and index.isdigit() else (str(value),)


class Maker(NamedTuple):
    """New values that share what they have in common, as what is pickled from Python does."""

    known: dict[Any, Node]

    def text(self, value: str) -> Node:
        known = self.known.get(("text", value))
        return shared(known) if known is not None else self.shared(("text", value), text(value))

    def named(self, module: str, name: str) -> Node:
        known = self.known.get(("named", module, name))
        return shared(known) if known is not None else self.shared(("named", module, name), named(module, name))

    def shared(self, key: Any, node: Node) -> Node:
        """The node that was given first for the key."""
        return shared(self.known.setdefault(key, node))

    def value(self, value: Any) -> Part:
        """None, a bool, a number, text, bytes, a dtype, a device; lists, tuples, sets and dicts of those; and a node.

        Raises:
            ParamctlError: anything else.
        """
        if isinstance(value, Node):
            return value
        if type(value) in _CALLS:
            module, name, arguments = _CALLS[type(value)](value)
            return called(self.named(module, name), tuple_of([self.value(part) for part in arguments]))
        if value is None or isinstance(value, bool):
            return {None: NONE, True: TRUE, False: FALSE}[value]
        if type(value) is Name:
            return self.named("torch", value.text.removeprefix("torch."))
        if isinstance(value, int):
            return whole(value)
        if isinstance(value, float):
            return b"G" + struct.pack(">d", value)
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, tuple):
            return tuple_of([self.value(item) for item in value])
        if isinstance(value, list):
            return filled(Node(b"]"), b"e", ([self.value(item)] for item in value))
        if isinstance(value, dict):
            return filled(Node(b"}"), b"u", ([self.value(k), self.value(v)] for k, v in value.items()))
        raise ParamctlError(f"a value of {type(value).__name__} cannot be written into a pickle")
