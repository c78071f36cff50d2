"""Header tier: from the opcodes of a pickle to its nodes.

A stack machine whose values are nodes. It looks up nothing and calls nothing, and makes of each opcode one node or one
step at most, so time and memory are bounded by the length of the pickle; `opcodes.walk` has gone over it before.

What a pickle does has an order that shows: a call sees a list as it is by then. What Python's own picklers write is
made again in that very order. Where a pickle reaches back to what it has made, or makes what it drops, the order is
held against that in which it would be made again.

Source: CPython's Lib/pickle.py (`_Unpickler`) and Lib/pickletools.py.
"""

from __future__ import annotations

import contextlib
import gc
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from paramctl.errors import FileError, ParamctlError
from paramctl.formats.opcodes import walk
from paramctl.formats.pickle_nodes import KEPT, MAKE, SHARED, STEP, UNKEPT, Node, Part, Step, program

_FREE_STEPS = 10_000
_PLAIN = {b"N": 0, b"\x88": 0, b"\x89": 0, b")": 0, b"K": 1, b"M": 2, b"J": 4, b"G": 8}
_COUNTED = {
    b"U": "<B", b"T": "<I", b"X": "<I", b"\x8c": "<B", b"\x8d": "<Q", b"C": "<B", b"B": "<I", b"\x8e": "<Q",
    b"\x8a": "<B", b"\x8b": "<I",
}  # fmt: skip
_LINES = {b"I": 1, b"L": 1, b"F": 1, b"S": 1, b"V": 1, b"P": 1}
_TAKEN = {b"\x85": 1, b"\x86": 2, b"\x87": 3, b"R": 2, b"\x81": 2, b"\x92": 3, b"\x93": 2, b"Q": 1}
_CALLS = frozenset(b"R\x81\x92io")


class Parsed(NamedTuple):
    root: Part
    protocol: int
    most: int  # things that it may take to make it, for `program`


def parse(data: bytes, name: str) -> Parsed:
    """The nodes of a pickle.

    Args:
        data: it, and whatever comes behind it.
        name: of the file, for errors.

    Raises:
        FileError: it is damaged, or cannot be written again so that it does the same in the same order.
    """
    end = walk(data, name).end
    machine = _Machine(data[:end])
    try:
        with uncollected():
            root = machine.run()
    except (IndexError, KeyError, TypeError, ValueError, struct.error):
        raise FileError(name, f"the pickle is damaged at byte {machine.at:,}") from None
    most = _FREE_STEPS + 2 * machine.opcodes
    try:
        same = not machine.is_odd or _is_in_order(program(root, most), machine.events)
    except ParamctlError as error:
        raise FileError(name, f"the pickle: {error.what}") from None
    if not same:
        raise FileError(name, "the pickle does things in an order in which they cannot be written again")
    return Parsed(root, machine.protocol, most)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Let millions of small things be made, of which none is garbage, without looking for any."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _is_in_order(doing: Iterable[tuple[int, Any]], events: list[Node | Step]) -> bool:
    """Whether the calls and the fillings are those of the pickle, one after another."""
    left = iter(events)
    for do, what in doing:
        if do == MAKE and what.op[0] in _CALLS:
            event = what
        elif do == STEP and what[1].op != b"0":
            event = what[1]
        else:
            continue
        if next(left, None) is not event:
            return False
    return next(left, None) is None


class _Machine:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.opcodes = 0
        self.protocol = 0
        self.stack: list[Part] = []
        self.outer: list[list[Part]] = []
        self.memo: dict[int, Node] = {}
        self.known: dict[bytes, bytes] = {}  # constants, each once
        self.events: list[Node | Step] = []
        self.referred: set[Node] = set()
        self.is_odd = False
        steps: dict[str, Callable[[int], None]] = {
            "(": self.mark, "0": self.pop, "1": self.pop_mark, "2": self.duplicate, "\x94": self.memoize,
            "q": self.put, "r": self.put, "p": self.put_line, "h": self.get, "j": self.get, "g": self.get_line,
            "a": self.single, "s": self.pair, "b": self.single, "e": self.many, "u": self.many, "\x90": self.many,
            "t": self.marked, "l": self.marked, "o": self.marked, "\x91": self.marked, "i": self.instance,
            "c": self.global_, "]": self.empty, "}": self.empty, "\x8f": self.empty, "\x96": self.bytearray_,
            "\x80": self.said_protocol, "\x95": self.frame,
        }  # fmt: skip
        self.table = {ord(code): step for code, step in steps.items()}
        self.table |= {code[0]: self.plain for code in _PLAIN} | {code[0]: self.counted for code in _COUNTED}
        self.table |= {code[0]: self.line for code in _LINES} | {code[0]: self.taken for code in _TAKEN}

    def run(self) -> Part:
        data, table, stop = self.data, self.table, ord(".")
        while (code := data[self.at]) != stop:
            table[code](code)
            self.opcodes += 1
        if self.outer or len(self.stack) > 1:
            self.is_odd = True
        return self.stack[-1]

    def argument(self, nbytes: int) -> bytes:
        """The opcode and the bytes behind it, which are passed over."""
        raw = self.data[self.at : self.at + 1 + nbytes]
        self.at += 1 + nbytes
        return raw

    # ------------------------------------------------------------------ values

    def plain(self, code: int) -> None:
        raw = self.argument(_PLAIN[bytes((code,))])
        self.stack.append(self.known.setdefault(raw, raw))

    def counted(self, code: int) -> None:
        layout = struct.Struct(_COUNTED[bytes((code,))])
        (nbytes,) = layout.unpack_from(self.data, self.at + 1)
        self.stack.append(self.argument(layout.size + nbytes))

    def line(self, _: int) -> None:
        self.stack.append(self.argument(self.data.index(b"\n", self.at) - self.at))

    def global_(self, _: int) -> None:
        newline = self.data.index(b"\n", self.at)
        self.push(self.argument(self.data.index(b"\n", newline + 1) - self.at), ())

    def empty(self, _: int) -> None:
        self.push(self.argument(0), ())

    def bytearray_(self, _: int) -> None:
        self.push(self.argument(8 + struct.unpack_from("<Q", self.data, self.at + 1)[0]), ())

    def taken(self, _: int) -> None:
        op = self.argument(0)
        count = _TAKEN[op]
        parts = tuple(self.stack[-count:])
        if len(parts) < count:
            raise IndexError
        del self.stack[-count:]
        self.push(op, parts)

    def marked(self, _: int) -> None:
        self.push(self.argument(0), tuple(self.to_mark()))

    def instance(self, _: int) -> None:
        newline = self.data.index(b"\n", self.at)
        op = self.argument(self.data.index(b"\n", newline + 1) - self.at)
        self.push(op, tuple(self.to_mark()))

    def push(self, op: bytes, parts: tuple[Part, ...]) -> None:
        node = Node(self.known.setdefault(op, op), parts, kept=UNKEPT)
        self.stack.append(node)
        if op[0] in _CALLS:
            self.events.append(node)

    # ------------------------------------------------------------------ steps

    def single(self, _: int) -> None:
        op = self.argument(0)
        self.step(op, [self.stack.pop()])

    def pair(self, _: int) -> None:
        op = self.argument(0)
        value, key = self.stack.pop(), self.stack.pop()
        self.step(op, [key, value])

    def many(self, _: int) -> None:
        op = self.argument(0)
        self.step(op, self.to_mark())

    def step(self, op: bytes, items: list[Part]) -> None:
        target = self.stack[-1]
        if type(target) is not Node or (op == b"u" and len(items) % 2):
            raise TypeError
        if target in self.referred:  # filled, perhaps, after something has seen it
            self.is_odd = True
        made = Step(self.known.setdefault(op, op), items)
        target.do(made)
        self.events.append(made)

    # ------------------------------------------------------------------ the stack and the memo

    def mark(self, _: int) -> None:
        self.at += 1
        self.outer.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[Part]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def pop(self, _: int) -> None:
        self.at += 1
        self.drop([self.stack.pop()] if self.stack else self.to_mark())

    def pop_mark(self, _: int) -> None:
        self.at += 1
        self.drop(self.to_mark())

    def drop(self, items: list[Part]) -> None:
        """What is made and not kept may still have done something: it is a step of what lies below it."""
        self.is_odd = True
        for item in items:
            if type(item) is Node and not item.kept and self.stack:
                self.top().do(Step(b"0", [item]))

    def top(self) -> Node:
        """The topmost value, as a node."""
        top = self.stack[-1]
        if isinstance(top, bytes):
            self.stack[-1] = top = Node(top, kept=UNKEPT)
        return top

    def duplicate(self, _: int) -> None:
        self.at += 1
        self.is_odd = True
        self.refer(self.top())

    def refer(self, node: Node) -> None:
        node.kept = SHARED
        self.referred.add(node)
        self.stack.append(node)

    def memoize(self, _: int) -> None:
        self.at += 1
        self.keep(len(self.memo))

    def put(self, code: int) -> None:
        self.keep(int.from_bytes(self.argument(1 if code == ord("q") else 4)[1:], "little"))

    def put_line(self, _: int) -> None:
        self.keep(int(self.argument(self.data.index(b"\n", self.at) - self.at)[1:]))

    def keep(self, index: int) -> None:
        node = self.memo[index] = self.top()
        node.kept = node.kept or KEPT

    def get(self, code: int) -> None:
        self.refer(self.memo[int.from_bytes(self.argument(1 if code == ord("h") else 4)[1:], "little")])

    def get_line(self, _: int) -> None:
        self.refer(self.memo[int(self.argument(self.data.index(b"\n", self.at) - self.at)[1:])])

    # ------------------------------------------------------------------ the rest

    def said_protocol(self, _: int) -> None:
        self.protocol = max(self.protocol, self.argument(1)[1])

    def frame(self, _: int) -> None:
        self.at += 9
