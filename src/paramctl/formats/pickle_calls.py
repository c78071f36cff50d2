"""Header tier: what a pickle would call, found by walking it and running nothing.

A stack machine of our own goes over the opcodes. Its values are notes: a global is its name, a call is the global and
what it was given. Time and memory are bounded by the length of the pickle: of a container only the first items are
kept, and text is made of no more than is shown.

It also tells whether `torch.load(weights_only=True)` would take the pickle, from the names and rules of torch's own
unpickler written down here.

Source: CPython's Lib/pickletools.py and Lib/pickle.py; torch/_weights_only_unpickler.py of 2.13.
"""

from __future__ import annotations

import gc
import re
import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from paramctl.errors import escaped

MOST_OPCODES = 3_000_000  # that are followed
MOST_WAITING = 1_000_000  # values that wait on the stack, or marks: a list is filled by the thousand
MOST_NAMES = 50_000  # of foreign globals, and of calls that are told
MOST_CALLS = 5  # with their arguments, of one name
_KEPT = 12  # items of a container, and the width of a text
_DEEPEST = 6
_WIDEST = 240  # characters of a call
_LONGEST_NAME = 2000
_STRIDE = 1 << 16  # opcodes, after which the stack is looked at
_LONG = 1 << 20  # bytes of a pickle that is first looked at as what it most likely is

# ----------------------------------------------------------------------------- what torch allows


def _words(text: str) -> list[str]:
    return text.split()


_KINDS = "BFloat16 Bool Byte Char Double Float Half Int Long Short"
_STORAGES = f"{_KINDS} ComplexDouble ComplexFloat"
_REBUILDS = (
    "device_tensor_from_cpu_tensor device_tensor_from_numpy meta_tensor_no_storage nested_tensor parameter "
    "parameter_with_state qtensor sparse_tensor tensor tensor_v2 tensor_v3 wrapper_subclass"
)
_VALUES = frozenset(  # of torch, that cannot be called
    f"torch.{name}"
    for name in (
        "float16 float32 float64 bfloat16 complex32 complex64 complex128 bool float4_e2m1fn_x2 float8_e4m3fn "
        "float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu bits1x8 bits2x4 bits4x2 bits8 bits16 "
        "qint8 qint32 quint8 quint2x4 quint4x2 per_channel_affine per_channel_affine_float_qparams "
        "per_channel_symmetric per_tensor_affine per_tensor_symmetric "
        + " ".join(f"int{n} uint{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64))
    ).split()
) | frozenset(
    f"torch.{part}{kind}Storage"
    for part, kinds in (("", f"{_STORAGES} QInt8 QInt32 QUInt8 QUInt2x4 QUInt4x2"), ("cuda.", _STORAGES))
    for kind in kinds.split()
)
_CALLABLE = (
    frozenset(
        _words(
            "_codecs.encode builtins.bytearray builtins.complex builtins.set collections.Counter "
            "collections.OrderedDict torch.Size torch.Tensor torch.device torch.nn.parameter.Parameter "
            "torch.serialization._get_layout torch._tensor._rebuild_from_type_v2 torch.storage.TypedStorage "
            "torch.storage.UntypedStorage torch.nested._internal.nested_tensor.NestedTensor "
            "torch.nested._internal.nested_tensor._rebuild_njt torch.distributed._mesh_layout._FlatLayout "
            "torch.distributed._mesh_layout._MeshLayout "
        )
    )
    | frozenset(f"torch._utils._rebuild_{name}" for name in _REBUILDS.split())
    | frozenset(f"torch.{part}{kind}Tensor" for part in ("", "cuda.") for kind in _KINDS.split())
    | frozenset(
        f"torch.{part}sparse.{kind}Tensor" for part in ("", "cuda.") for kind in _KINDS.split() if kind != "Bool"
    )
)
ALLOWED = _VALUES | _CALLABLE  # by torch.load(weights_only=True)
_FILLED = ("collections.OrderedDict", "collections.Counter")  # mappings that it lets be filled
_ALLOWED_OPCODES = frozenset(b"c\x81Rbaesu(t\x85\x86\x87N\x89\x88)]}\x8fJKMGXUQhjqr\x8a\x80.")

# ----------------------------------------------------------------------------- opcodes

_NAMES = {
    "c": "GLOBAL", "\x93": "STACK_GLOBAL", "i": "INST", "o": "OBJ", "R": "REDUCE", "\x81": "NEWOBJ",
    "\x92": "NEWOBJ_EX", "b": "BUILD", "\x82": "EXT1", "\x83": "EXT2", "\x84": "EXT4", "P": "PERSID", "Q": "BINPERSID",
    "0": "POP", "1": "POP_MARK", "2": "DUP", "I": "INT", "L": "LONG", "F": "FLOAT", "S": "STRING", "V": "UNICODE",
    "T": "BINSTRING", "\x8c": "SHORT_BINUNICODE", "\x8d": "BINUNICODE8", "C": "SHORT_BINBYTES", "B": "BINBYTES",
    "\x8e": "BINBYTES8", "\x96": "BYTEARRAY8", "\x8b": "LONG4", "g": "GET", "p": "PUT", "l": "LIST", "d": "DICT",
    "\x90": "ADDITEMS", "\x91": "FROZENSET", "\x94": "MEMOIZE", "\x95": "FRAME", "\x97": "NEXT_BUFFER",
    "\x98": "READONLY_BUFFER",
}  # fmt: skip
_FIXED = {"K": "<B", "M": "<H", "J": "<i", "G": ">d", "h": "<B", "j": "<I", "q": "<B", "r": "<I", "\x80": "<B",
          "\x95": "<Q", "\x82": "<B", "\x83": "<H", "\x84": "<i"}  # fmt: skip
_COUNTED = {"U": "<B", "T": "<i", "X": "<I", "\x8c": "<B", "\x8d": "<Q", "C": "<B", "B": "<I", "\x8e": "<Q",
            "\x96": "<Q", "\x8a": "<B", "\x8b": "<i"}  # fmt: skip
_FIXED_BY = {ord(code): struct.Struct(layout) for code, layout in _FIXED.items()}
_COUNTED_BY = {ord(code): struct.Struct(layout) for code, layout in _COUNTED.items()}
_LINES = frozenset(map(ord, "cipgILFSVP"))
_CONSTANTS: dict[int, Any] = {ord("N"): None, 0x88: True, 0x89: False}
_EMPTY = {ord(")"): "tuple", ord("]"): "list", ord("}"): "dict", 0x8F: "set"}
_STEPS = {
    "mark": "(", "tuple_of": "t\x85\x86\x87", "list_of": "ld\x91", "append": "ae\x90", "set_items": "su",
    "reduce": "R", "new": "\x81", "new_ex": "\x92", "obj": "o", "build": "b", "stack_global": "\x93",
    "persistent": "Q", "pop": "0", "pop_mark": "1", "dup": "2", "memoize": "\x94", "buffer": "\x97", "keep": "\x98",
}  # fmt: skip
_TUPLE, _STOP = ord(")"), ord(".")
_SIZED = {0x85: 1, 0x86: 2, 0x87: 3}
_TEXTS = frozenset(map(ord, "UTX\x8c\x8d"))


class Call(NamedTuple):
    """A foreign global that a pickle reaches: with what opcode, and the call as text."""

    name: str  # "os.system"; "torch.serialization:os.system" where it is an attribute of an attribute
    opcode: str  # REDUCE, INST, OBJ, NEWOBJ, NEWOBJ_EX; GLOBAL, STACK_GLOBAL or EXT where it is named and not called
    text: str  # "os.system('rm -rf /')", on one line and without control characters
    offset: int  # of the opcode


class Pickled(NamedTuple):
    """What is in a pickle that somebody else's code would do."""

    calls: tuple[Call, ...]  # MOST_CALLS of each name and opcode, in the order in which they would run
    counts: dict[str, int]  # how often each foreign global is called
    refused: str  # why torch.load(weights_only=True) would not take it; empty where it would
    end: int  # the byte behind the STOP, or where it could not be followed further
    damage: str  # why it could not be


class Note:
    """A value that is not a plain one: a container, a global, or what a call has made."""

    __slots__ = ("count", "items", "kind", "name", "opcode")

    def __init__(self, kind: str, name: str = "", items: Sequence[Any] = (), count: int = 0, opcode: str = "") -> None:
        self.kind = kind  # "tuple", "list", "dict", "set", "global", "made", "persistent" …
        self.name = name
        self.items = items
        self.count = count
        self.opcode = opcode

    def add(self, values: Sequence[Any]) -> None:
        if len(self.items) < _KEPT:
            self.items = [*self.items, *values[: _KEPT - len(self.items)]]
        self.count += len(values)


_NOTHING = Note("tuple")


class _Stop(Exception):  # noqa: N818 - an end, and no error
    pass


def calls(data: bytes, start: int = 0, *, most: int = MOST_OPCODES) -> Pickled:
    """Walk one pickle, from `start` to its STOP, or to where a real unpickler would fail."""
    if len(data) - start > _LONG:
        end = _end_of_weights(data, start)
        if end:
            return Pickled((), {}, "", end, "")
    machine = _Machine(data, start)
    damage = ""
    collects = gc.isenabled()
    gc.disable()  # millions of small things, of which none is garbage
    try:
        machine.run(most)
    except _Stop as stop:
        damage = str(stop)
    except (IndexError, struct.error):
        damage = f"it ends or takes what is not there, at byte {machine.at:,}"
    finally:
        if collects:
            gc.enable()
    machine.finish()
    refused = machine.refused or damage
    return Pickled(tuple(machine.calls), machine.counts, refused, machine.at, damage)


def _plain_run() -> re.Pattern[bytes]:
    short = b"|".join(b"\\x%02x\\0\\0\\0%s" % (n, b"." * n) for n in range(9))
    one = rb"[Rbaesu(t\x85\x86\x87N\x89\x88)\]}Q]|[Khq\x80].|M..|[Jjr]....|G........|X(?:" + short + b")"
    return re.compile(b"(?:" + one + b")++", re.DOTALL)


def _end_of_weights(data: bytes, start: int) -> int:
    """The byte behind the STOP, if torch's own opcodes and names are all there is: told ten times as fast; else 0."""
    run = _plain_run().match
    at, end = start, len(data)
    while at < end:
        matched = run(data, at)
        at = matched.end() if matched else at
        code = data[at : at + 1]
        if code == b"X":
            at += 5 + int.from_bytes(data[at + 1 : at + 5], "little")
        elif code == b"c":
            line = data.find(b"\n", at)
            last = data.find(b"\n", line + 1)
            name = data[at + 1 : last].replace(b"\n", b".", 1).decode("latin1")
            if line < 0 or last < 0 or name not in ALLOWED:
                return 0
            at = last + 1
        elif code in (b"\x8a", b"U"):
            at += 2 + int.from_bytes(data[at + 1 : at + 2], "little")
        else:
            return at + 1 if code == b"." else 0
    return 0


class _Machine:
    def __init__(self, data: bytes, start: int) -> None:
        self.data = data
        self.at = start
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.calls: list[Call] = []
        self.counts: dict[str, int] = {}
        self.known: dict[tuple[str, str], int] = {}
        self.named: dict[str, tuple[str, int]] = {}
        self.refused = ""
        self.globals: dict[tuple[bytes, bytes], Note] = {}  # by their lines: the ones that were met before
        self.steps: list[Callable[[int], None] | None] = [None] * 256
        for name, codes in _STEPS.items():
            for code in codes:
                self.steps[ord(code)] = getattr(self, f"_{name}")
        for step, group in (
            (self._constant, _CONSTANTS), (self._empty, _EMPTY), (self._fixed, _FIXED_BY),
            (self.counted, _COUNTED_BY), (self.lines, _LINES),
        ):  # fmt: skip
            for number in group:
                self.steps[number] = step

    # ------------------------------------------------------------------ the walk

    def run(self, most: int) -> None:
        for done in range(0, most, _STRIDE):
            if self.stopped(min(_STRIDE, most - done)):
                return
            if max(len(self.stack), len(self.outer)) > MOST_WAITING:
                raise _Stop(f"more than {MOST_WAITING:,} values wait on its stack")
        raise _Stop(f"it has more than {most:,} opcodes")

    def stopped(self, most: int) -> bool:
        """Whether so many more opcodes came to the STOP."""
        data, end, steps = self.data, len(self.data), self.steps
        for _ in range(most):
            at = self.at
            if at >= end:
                raise _Stop("it ends without its STOP")
            code = data[at]
            if not self.refused and code not in _ALLOWED_OPCODES:
                self.refuse(f"the opcode {_NAMES.get(chr(code), hex(code))}")
            if code == _STOP:
                self.at += 1
                self.stack[-1]
                return True
            step = steps[code]
            if step is None:
                raise _Stop(f"no opcode 0x{code:02x}, at byte {at:,}")
            step(code)
            if self.at == at:  # one that moves on by itself has more bytes than one
                self.at = at + 1
        return False

    def _constant(self, code: int) -> None:
        self.stack.append(_CONSTANTS[code])

    def _empty(self, code: int) -> None:
        self.stack.append(_NOTHING if code == _TUPLE else Note(_EMPTY[code]))

    def _fixed(self, code: int) -> None:
        layout = _FIXED_BY[code]
        (value,) = layout.unpack_from(self.data, self.at + 1)
        self.fixed(code, value)
        self.at += 1 + layout.size

    def fixed(self, code: int, value: Any) -> None:
        if code in b"KMJG":
            self.stack.append(value)
        elif code in b"hj":
            self.get(value)
        elif code in b"qr":
            self.memo[value] = self.stack[-1]
        elif code in b"\x82\x83\x84":
            self.stack.append(Note("global", f"copyreg extension {value}", opcode="EXT"))
            self.foreign(self.stack[-1])

    def counted(self, code: int) -> None:
        layout = _COUNTED_BY[code]
        begin = self.at + 1 + layout.size
        (nbytes,) = layout.unpack_from(self.data, self.at + 1)
        end = begin + nbytes
        if nbytes < 0 or end > len(self.data):
            raise _Stop(f"{nbytes:,} bytes at {begin:,}, and the pickle ends at {len(self.data):,}")
        raw = self.data[begin : end if nbytes <= _LONGEST_NAME else begin + _LONGEST_NAME]
        self.at = end
        if code in _TEXTS:
            self.stack.append(
                str(raw, "utf-8", "surrogateescape") if nbytes < _LONGEST_NAME else Note("text", items=[raw])
            )
        elif code in b"\x8a\x8b":
            self.stack.append(int.from_bytes(raw, "little", signed=True) if nbytes <= 16 else Note("int"))
        else:
            self.stack.append(raw[:_WIDEST])

    def lines(self, code: int) -> None:
        start = self.at
        line = self.line(start + 1)
        if code == 0x63:
            key = line, self.line(self.at)
            if key not in self.globals:
                self.globals[key] = self.named_global(*key, opcode="GLOBAL", offset=start)
            self.stack.append(self.globals[key])
        elif code == 0x69:
            last = self.line(self.at)
            items = self.marked()
            self.call(self.named_global(line, last, opcode="INST", offset=start), items, "INST", start)
        elif code == 0x70:
            self.memo[_index(line)] = self.stack[-1]
        elif code == 0x67:
            self.get(_index(line))
        elif code == 0x50:
            self.stack.append(Note("persistent"))
        elif code in b"SV":
            self.stack.append(_unquoted(line) if code == 0x53 else line.decode("raw_unicode_escape", "replace"))
        else:
            self.stack.append(Note("number", line.decode("latin1")[:40]))

    def line(self, begin: int) -> bytes:
        """A line's first bytes; what comes behind it is next."""
        newline = self.data.find(b"\n", begin)
        if newline < 0:
            raise _Stop(f"it ends inside a line, at byte {begin - 1:,}")
        self.at = newline + 1
        return self.data[begin : min(newline, begin + _LONGEST_NAME)]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise _Stop(f"nothing was kept as {index:,}, at byte {self.at:,}")
        self.stack.append(self.memo[index])

    # ------------------------------------------------------------------ the stack

    def marked(self) -> list[Any]:
        if not self.outer:
            raise _Stop(f"no mark, at byte {self.at:,}")
        items, self.stack = self.stack, self.outer.pop()
        return items

    def _mark(self, _: int) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def _tuple_of(self, code: int) -> None:
        if code in _SIZED:
            size = _SIZED[code]
            if len(self.stack) < size:
                raise IndexError
            items = self.stack[-size:]
            del self.stack[-size:]
        else:
            items = self.marked()
        self.push("tuple", items)

    def _list_of(self, code: int) -> None:
        self.push({0x6C: "list", 0x64: "dict"}.get(code, "frozenset"), self.marked())

    def push(self, kind: str, items: list[Any]) -> None:
        self.stack.append(Note(kind, items=items[:_KEPT], count=len(items)))

    def _append(self, code: int) -> None:
        items = [self.stack.pop()] if code == 0x61 else self.marked()
        target = self.stack[-1]
        if not (isinstance(target, Note) and target.kind == "list"):
            self.refuse("an append to what is no list")
        if isinstance(target, Note) and target.kind in ("list", "set"):
            target.add(items)

    def _set_items(self, code: int) -> None:
        items = [self.stack.pop(), self.stack.pop()][::-1] if code == 0x73 else self.marked()
        target = self.stack[-1]
        if not (
            isinstance(target, Note) and (target.kind == "dict" or (target.kind == "made" and target.name in _FILLED))
        ):
            self.refuse("items set on what is no dict")
        if isinstance(target, Note) and target.kind == "dict":
            target.add(items)

    def _pop(self, _: int) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.marked()

    def _pop_mark(self, _: int) -> None:
        self.marked()

    def _dup(self, _: int) -> None:
        self.stack.append(self.stack[-1])

    def _memoize(self, _: int) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _buffer(self, _: int) -> None:
        self.stack.append(Note("buffer"))

    def _keep(self, _: int) -> None:
        self.stack[-1]

    def _persistent(self, _: int) -> None:
        said = self.stack.pop()
        is_storage = isinstance(said, Note) and said.kind == "tuple" and said.items[:1] == ["storage"]
        if not is_storage and type(said) is not int:
            self.refuse("a persistent id that is no storage")
        self.stack.append(Note("persistent"))

    # ------------------------------------------------------------------ globals and calls

    def _stack_global(self, _: int) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if isinstance(name, str) and isinstance(module, str):
            self.stack.append(
                self.named_global(
                    module.encode("utf-8", "surrogateescape"),
                    name.encode("utf-8", "surrogateescape"),
                    opcode="STACK_GLOBAL",
                    offset=self.at,
                )
            )
            return
        self.stack.append(Note("global", "a name that is worked out as it is read", opcode="STACK_GLOBAL"))
        self.foreign(self.stack[-1])

    def named_global(self, module: bytes, name: bytes, *, opcode: str, offset: int) -> Note:
        pair = (module.decode("utf-8", "surrogateescape"), name.decode("utf-8", "surrogateescape"))
        pair = NAME_MAPPING.get(pair, (IMPORT_MAPPING.get(pair[0], pair[0]), pair[1]))
        found = Note("global", ".".join(pair), opcode=opcode)
        if found.name not in ALLOWED:
            found.name = (":" if "." in pair[1] else ".").join(pair)
            self.foreign(found, offset)
        return found

    def foreign(self, found: Note, offset: int | None = None) -> None:
        self.named.setdefault(found.name, (found.opcode, self.at if offset is None else offset))
        self.refuse(f"the global {found.name}", offset)
        if len(self.named) > MOST_NAMES:
            raise _Stop(f"it names more than {MOST_NAMES:,} globals")

    def _reduce(self, _: int) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        given = args.items if isinstance(args, Note) and args.kind in ("tuple", "list") else [args]
        self.call(function, given, "REDUCE", self.at, count=args.count if isinstance(args, Note) else 1)

    def _new(self, _: int) -> None:
        args, cls = self.stack.pop(), self.stack.pop()
        self.call(cls, args.items if isinstance(args, Note) else [args], "NEWOBJ", self.at)

    def _new_ex(self, _: int) -> None:
        kwargs, args, cls = self.stack.pop(), self.stack.pop(), self.stack.pop()
        given = list(args.items) if isinstance(args, Note) else [args]
        if isinstance(kwargs, Note) and kwargs.items:
            given.append(Note("kwargs", items=kwargs.items, count=kwargs.count))
        self.call(cls, given, "NEWOBJ_EX", self.at)

    def _obj(self, _: int) -> None:
        items = self.marked()
        self.call(items[0], items[1:], "OBJ", self.at)

    def _build(self, _: int) -> None:
        self.stack.pop()
        target = self.stack[-1]
        if not (isinstance(target, Note) and target.kind in ("made", "set")):
            self.refuse("a state for what takes none")

    def call(self, function: Any, given: Sequence[Any], opcode: str, offset: int, *, count: int | None = None) -> None:
        name = function.name if isinstance(function, Note) and function.kind in ("global", "made") else ""
        made = Note("made", name, given[:_KEPT], len(given) if count is None else count)
        if isinstance(function, Note) and function.kind == "made":
            made.name = name if name.endswith("()") else f"{name}()"  # what a call has made, called
        self.stack.append(made)
        if isinstance(function, Note) and function.kind == "global" and name in _CALLABLE:
            return
        self.refuse(f"a call of {name}" if name else "a call of what is no function")
        if not name or name in ALLOWED:
            return
        self.counts[name] = self.counts.get(name, 0) + 1
        key = (name, opcode)
        self.known[key] = self.known.get(key, 0) + 1
        if self.known[key] <= MOST_CALLS:
            if len(self.calls) >= MOST_NAMES:
                raise _Stop(f"it calls more than {MOST_NAMES:,} globals")
            self.calls.append(Call(name, opcode, text_of(made), offset))

    def refuse(self, why: str, offset: int | None = None) -> None:
        self.refused = self.refused or f"{why}, at byte {self.at if offset is None else offset:,}"

    def finish(self) -> None:
        """Tell the globals, too, that are named and never called: a class can be handed to what calls it."""
        for name, (opcode, offset) in self.named.items():
            if name not in self.counts:
                self.calls.append(Call(name, opcode, _name_text(name), offset))


# ----------------------------------------------------------------------------- text


def text_of(value: Any) -> str:
    """A value as Python would write it, short, on one line."""
    pieces: list[str] = []
    _write(value, pieces, [_WIDEST], _DEEPEST)
    return "".join(pieces)


_BRACKETS = {"tuple": "()", "list": "[]", "dict": "{}", "set": "{}", "frozenset": "{}"}


def _write(value: Any, pieces: list[str], left: list[int], depth: int) -> None:
    if left[0] <= 0:
        if pieces[-1] != "…":
            pieces.append("…")
    elif not isinstance(value, Note):
        text = value if isinstance(value, (str, bytes)) else None
        said = repr(value if text is None else text[:_WIDEST])
        said = escaped(said).replace("\\\\", "\\") + ("…" if text is not None and len(text) > _WIDEST else "")
        _put(said, pieces, left)
    elif value.kind in _BRACKETS:
        opening, closing = _BRACKETS[value.kind][0], _BRACKETS[value.kind][1]
        pairs = value.kind == "dict"
        _put(opening, pieces, left)
        _write_all(value, pieces, left, depth - 1, pairs=pairs)
        if value.kind == "tuple" and value.count == 1:
            pieces.append(",")
        pieces.append(closing)
    elif value.kind == "made":
        _put(_name_text(value.name) or "…", pieces, left)
        pieces.append("(")
        _write_all(value, pieces, left, depth - 1, pairs=False)
        pieces.append(")")
    elif value.kind == "kwargs":
        pieces.append("**{")
        _write_all(value, pieces, left, depth - 1, pairs=True)
        pieces.append("}")
    elif value.kind == "text":
        _put(escaped(repr(value.items[0][:_WIDEST])[1:]) + "…", pieces, left)
    else:
        _put(_name_text(value.name) if value.name else f"<{value.kind}>", pieces, left)


def _write_all(value: Note, pieces: list[str], left: list[int], depth: int, *, pairs: bool) -> None:
    if depth <= 0 and value.items:
        pieces.append("…")
        return
    for index, item in enumerate(value.items):
        if left[0] <= 0:
            pieces.append(", …")
            return
        if index:
            _put(": " if pairs and index % 2 else ", ", pieces, left)
        _write(item, pieces, left, depth)
    if value.count > len(value.items):
        pieces.append(", …")


def _put(text: str, pieces: list[str], left: list[int]) -> None:
    pieces.append(text)
    left[0] -= len(text)


def _name_text(name: str) -> str:
    return escaped(name if len(name) <= 200 else name[:199] + "…")


def _index(line: bytes) -> int:
    if not re.fullmatch(rb"\d{1,12}", line):
        raise _Stop("a memo index that is none")
    return int(line)


def _unquoted(line: bytes) -> str:
    quoted = len(line) > 1 and line[:1] == line[-1:] and line[:1] in (b"'", b'"')
    return (line[1:-1] if quoted else line).decode("unicode_escape", "replace")
