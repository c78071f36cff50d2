"""Header tier: torch's pickles, read without torch and without running anything.

The standard library's unpickler does the parsing, in C. It is handed a fixed table of names: torch's and
numpy's rebuild functions, each replaced by one of ours that only takes notes, and a few containers. Every other
name becomes a `StandIn` that keeps what the pickle would have called, with what arguments and what state.
Before that, `check` walks the opcodes: a memo index or a length that lies would make the parser ask for memory
that the file cannot account for.

Source: CPython's Lib/pickletools.py for the opcodes; torch/_utils.py and torch/_tensor.py for the rebuild
functions; numpy/_core/src/multiarray/methods.c (`array_reduce`, `array_setstate`) for arrays.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from paramctl.checkpoint import ParamKind, contiguous
from paramctl.dtypes import DTYPES, DType
from paramctl.errors import FileError, shortened

_DAMAGED = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)


class StorageNote(NamedTuple):
    """A storage as the pickle names it: `numel` elements of `dtype`, or bytes where `dtype` is None."""

    key: str
    dtype: DType | None
    numel: int
    location: str


class TensorNote(NamedTuple):
    """A tensor as the pickle describes it, not yet held against the bytes. `storage` None: on the meta device."""

    storage: StorageNote | None
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool | None
    kind: ParamKind = "tensor"
    cls: str = "Tensor"
    data: bytes | None = None  # an array whose bytes are in the pickle itself
    byteorder: str = "little"


class Dict(dict):  # type: ignore[type-arg]
    """An `OrderedDict` or a `defaultdict`; `attributes` holds what was set on it, as a state dict's `_metadata`."""

    attributes: Any = None

    def __init__(self, *args: Any) -> None:
        super().__init__()
        for arg in args:
            if isinstance(arg, dict):
                self.update(arg)
            elif isinstance(arg, (list, tuple)):
                self.update(pair for pair in arg if isinstance(pair, (list, tuple)) and len(pair) == 2)

    def __setstate__(self, state: Any) -> None:
        self.attributes = state

    __hash__ = None  # type: ignore[assignment]


class StandIn:
    """What takes the place of a class or a function that is not known, and of what it would have made."""

    qualified = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        self = object.__new__(cls)
        self.args = args
        self.kwargs = kwargs
        self.state = None
        self.items = {}
        self.elements = []
        return self

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: Any
    items: dict[Any, Any]
    elements: list[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        self.elements.append(value)

    def extend(self, values: Any) -> None:
        self.elements.extend(values)

    add = append

    def __call__(self, *args: Any, **kwargs: Any) -> StandIn:
        made = StandIn(*args, **kwargs)
        made.state = {"called": self}
        return made

    @property
    def short(self) -> str:
        return type(self).qualified.rpartition(".")[2]


def stand_in(qualified: str) -> type[StandIn]:
    """A class that stands for the one called `qualified`."""
    return type("StandIn", (StandIn,), {"qualified": qualified})


class Name:
    """A value of torch that is only a name: a dtype, a storage class, a layout. It cannot be called."""

    __slots__ = ("dtype", "is_storage", "text")

    def __init__(self, text: str, dtype: DType | None = None, *, is_storage: bool = False) -> None:
        self.text = text
        self.dtype = dtype
        self.is_storage = is_storage


# ----------------------------------------------------------------------------- torch


def _dims(values: Any) -> tuple[int, ...]:
    dims = tuple(values)
    for dim in dims:
        if type(dim) is not int or dim < 0:
            raise ValueError(f"a size or stride of {shortened(repr(dim), 40)}")
    return dims


def _typed(storage: Any, dtype: DType | None, offset: Any, size: Any, stride: Any, requires_grad: Any) -> TensorNote:
    if type(storage) is not StorageNote:
        raise ValueError("a tensor without a storage")
    found = dtype or storage.dtype
    if found is None:
        raise ValueError("a tensor without a dtype")
    if type(offset) is not int or offset < 0:
        raise ValueError(f"a storage offset of {shortened(repr(offset), 40)}")
    shape, by = _dims(size), _dims(stride)
    if len(shape) != len(by):
        raise ValueError(f"{len(shape)} sizes and {len(by)} strides")
    return TensorNote(storage, found, offset, shape, by, requires_grad if type(requires_grad) is bool else None)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any) -> TensorNote:
    return _typed(storage, None, offset, size, stride, False)


def _rebuild_tensor_v2(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, _hooks: Any = None, _metadata: Any = None
) -> TensorNote:
    return _typed(storage, None, offset, size, stride, requires_grad)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, _hooks: Any, dtype: Any, _meta: Any = None
) -> TensorNote:
    return _typed(storage, dtype.dtype if type(dtype) is Name else None, offset, size, stride, requires_grad)


def _rebuild_qtensor(
    storage: Any, offset: Any, size: Any, stride: Any, _quantizer: Any, requires_grad: Any, _hooks: Any
) -> TensorNote:
    return _typed(storage, None, offset, size, stride, requires_grad)


def _rebuild_meta_tensor_no_storage(dtype: Any, size: Any, stride: Any, requires_grad: Any) -> TensorNote:
    if type(dtype) is not Name or dtype.dtype is None:
        raise ValueError("a tensor without a dtype")
    return TensorNote(None, dtype.dtype, 0, _dims(size), _dims(stride), requires_grad is True)


def _rebuild_parameter(data: Any, requires_grad: Any = None, _hooks: Any = None, _state: Any = None) -> Any:
    if type(data) is not TensorNote:
        made = stand_in("torch.nn.parameter.Parameter")(data)
        made.state = {"requires_grad": requires_grad}
        return made
    return data._replace(kind="parameter", cls="Parameter", requires_grad=requires_grad is True)


def _rebuild_from_type(function: Any, cls: Any, args: Any, state: Any = None) -> Any:
    made = function(*args) if function in _OURS and isinstance(args, tuple) else None
    if type(made) is not TensorNote:
        other = stand_in(getattr(cls, "qualified", "torch.Tensor"))(*(args if isinstance(args, tuple) else (args,)))
        other.state = state
        return other
    name = getattr(cls, "qualified", "Tensor").rpartition(".")[2]
    kinds: dict[str, ParamKind] = {"Parameter": "parameter", "Buffer": "buffer"}
    return made._replace(cls=name, kind=kinds.get(name, made.kind))


def _reduce_graph_module(body: Any, *_: Any) -> Any:
    made = stand_in("torch.fx.graph_module.GraphModule")()
    made.state = body
    return made


_OURS: tuple[Callable[..., Any], ...] = (
    _rebuild_tensor,
    _rebuild_tensor_v2,
    _rebuild_tensor_v3,
    _rebuild_qtensor,
    _rebuild_meta_tensor_no_storage,
    _rebuild_parameter,
)

# ----------------------------------------------------------------------------- numpy

_NUMPY_DTYPES = {
    "f8": "float64", "f4": "float32", "f2": "float16", "c8": "complex64", "c16": "complex128", "b1": "bool",
    "i8": "int64", "i4": "int32", "i2": "int16", "i1": "int8",
    "u8": "uint64", "u4": "uint32", "u2": "uint16", "u1": "uint8",
}  # fmt: skip


class NumpyDType:
    """`numpy.dtype('f8')`, with the byte order that its state gives it."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        text = code if isinstance(code, str) else ""
        self.big = text.startswith(">")
        self.code = text.lstrip("<>=|")

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1:
            self.big = state[1] in (">", b">")

    @property
    def dtype(self) -> DType | None:
        return DTYPES.get(_NUMPY_DTYPES.get(self.code, ""))


class NumpyArray:
    """A `numpy.ndarray`: `note` is its tensor, or None where its elements are objects, text or records."""

    def __init__(self, *args: Any) -> None:
        self.note: TensorNote | None = None
        self.text = "numpy.ndarray"

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, is_fortran, raw = state
        self.fill(shape, dtype, raw, is_fortran=bool(is_fortran))

    def fill(self, shape: Any, dtype: Any, raw: Any, *, is_fortran: bool) -> None:
        dims = _dims(shape)
        found = dtype.dtype if isinstance(dtype, NumpyDType) else None
        if found is None or not isinstance(raw, (bytes, bytearray)):
            self.text = f"numpy.ndarray of {getattr(dtype, 'code', 'objects')}"
            return
        if found.nbytes(math.prod(dims)) != len(raw):
            raise ValueError(f"an array of {found.nbytes(math.prod(dims)):,} bytes, and {len(raw):,} bytes for it")
        stride = tuple(reversed(contiguous(tuple(reversed(dims))))) if is_fortran else contiguous(dims)
        order = "big" if dtype.big else "little"
        self.note = TensorNote(None, found, 0, dims, stride, None, cls="ndarray", data=bytes(raw), byteorder=order)


def _numpy_from_buffer(raw: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> NumpyArray:
    array = NumpyArray()
    array.fill(shape, dtype, raw, is_fortran=order == "F")
    return array


def _numpy_scalar(dtype: Any, raw: Any = b"") -> Any:
    found = dtype.dtype if isinstance(dtype, NumpyDType) else None
    codes = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b", "b1": "?"}
    codes |= {"u8": "Q", "u4": "I", "u2": "H", "u1": "B"}
    if found is None or not isinstance(raw, bytes) or len(raw) != found.block_nbytes or dtype.code not in codes:
        return stand_in("numpy.generic")(raw)
    return struct.unpack((">" if dtype.big else "<") + codes[dtype.code], raw)[0]


def _encode(text: Any, encoding: Any = "utf-8", *_: Any) -> Any:
    if isinstance(text, str) and encoding in ("latin1", "latin-1", "utf-8", "ascii"):
        return text.encode(encoding)
    return stand_in("_codecs.encode")(text, encoding)


def _reconstruct_object(cls: Any, _base: Any = None, _state: Any = None) -> Any:
    return cls() if isinstance(cls, type) and issubclass(cls, (StandIn, Dict)) else StandIn(cls)


def _container(make: Callable[[Any], Any], values: Any = ()) -> Any:
    return (
        make(values) if isinstance(values, (list, tuple, set, frozenset, dict, str)) else stand_in("builtins")(values)
    )


# ----------------------------------------------------------------------------- the table

_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128", "ComplexFloatStorage": "complex64",
    "QInt8Storage": "qint8", "QUInt8Storage": "quint8", "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4",
}  # fmt: skip


def _table() -> dict[tuple[str, str], Any]:
    table: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): Dict,
        ("collections", "defaultdict"): Dict,
        ("collections", "Counter"): Dict,
        ("copyreg", "_reconstructor"): _reconstruct_object,
        ("copy_reg", "_reconstructor"): _reconstruct_object,
        ("_codecs", "encode"): _encode,
        ("torch", "Size"): lambda values=(): _container(tuple, values),
        ("torch", "device"): lambda *args: ":".join(str(arg) for arg in args if isinstance(arg, (str, int))),
        ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
        ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
        ("torch._utils", "_rebuild_qtensor"): _rebuild_qtensor,
        ("torch._utils", "_rebuild_meta_tensor_no_storage"): _rebuild_meta_tensor_no_storage,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
        ("torch._tensor", "_rebuild_from_type"): _rebuild_from_type,
        ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
        ("torch.fx.graph_module", "reduce_graph_module"): _reduce_graph_module,
        ("torch.storage", "UntypedStorage"): Name("torch.UntypedStorage", is_storage=True),
        ("torch", "UntypedStorage"): Name("torch.UntypedStorage", is_storage=True),
        ("numpy", "dtype"): NumpyDType,
    }
    for module in ("builtins", "__builtin__"):
        for make in (list, tuple, set, frozenset):
            table[module, make.__name__] = lambda values=(), make=make: _container(make, values)
        table[module, "dict"] = Dict
    for module in ("numpy.core", "numpy._core"):
        table[f"{module}.multiarray", "_reconstruct"] = NumpyArray
        table[f"{module}.multiarray", "scalar"] = _numpy_scalar
        table[f"{module}.numeric", "_frombuffer"] = _numpy_from_buffer
    for name, dtype in _STORAGES.items():
        for module in ("torch", "torch.storage", "torch.cuda"):
            table[module, name] = Name(f"torch.{name}", DTYPES[dtype], is_storage=True)
    for name, found in DTYPES.items():
        table["torch", name] = Name(f"torch.{name}", found)
    return table


_TABLE = _table()


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8", errors="surrogateescape")
        self._classes: dict[tuple[str, str], Any] = {}
        self._storages: dict[str, StorageNote] = {}

    def find_class(self, module: str, name: str) -> Any:
        found = _TABLE.get((module, name))
        if found is None:
            found = self._classes.get((module, name))
        if found is None:
            found = self._classes[module, name] = stand_in(f"{module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> StorageNote:
        kind, storage_type, key, location, numel = pid[:5]
        if kind != "storage" or type(storage_type) is not Name or not storage_type.is_storage:
            raise ValueError("a persistent id that names no storage")
        if type(numel) is not int or numel < 0:
            raise ValueError(f"a storage of {shortened(repr(numel), 40)} elements")
        name = str(key) if type(key) in (str, int) else ""
        note = StorageNote(name, storage_type.dtype, numel, str(location) if type(location) is str else "")
        known = self._storages.setdefault(name, note)
        if known is not note and known != note and _nbytes(known) != _nbytes(note):
            raise ValueError(f"storage {shortened(name)} with {_nbytes(known):,} and with {_nbytes(note):,} bytes")
        return note


def _nbytes(note: StorageNote) -> int:
    return note.dtype.nbytes(note.numel) if note.dtype else note.numel


# ----------------------------------------------------------------------------- the walk

_PLAIN = b"().012NQRabde]}lostu\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98".replace(b".", b"")
_LINES = {b"I": 1, b"L": 1, b"F": 1, b"S": 1, b"V": 1, b"P": 1, b"g": 1, b"c": 2, b"i": 2}
_COUNTED = {
    b"U": "<B", b"T": "<I", b"X": "<I", b"\x8c": "<B", b"\x8d": "<Q", b"C": "<B", b"B": "<I", b"\x8e": "<Q",
    b"\x96": "<Q", b"\x8a": "<B", b"\x8b": "<I",
}  # fmt: skip
_EXTENSIONS = b"\x82\x83\x84"


def _plain_run(most: int) -> re.Pattern[bytes]:
    """Opcodes whose length is known without looking at their argument, a LONG_BINPUT only below about `most`."""
    high = min(most >> 16, 0xFFFF) + 1
    top, next_ = min(high >> 8, 0xFF), 0xFF if high >> 8 else min(high, 0xFF)
    put = b"r..[\\x00-\\x%02x][\\x00-\\x%02x]" % (next_, top)
    one = re.escape(_PLAIN)
    return re.compile(b"(?:[" + one + b"]|[Khq\\x80].|M..|[Jj]....|[G\\x95]........|" + put + b")+", re.DOTALL)


def check(data: bytes, name: str) -> int:
    """Walk the opcodes to the STOP, and give the position behind it.

    Raises:
        FileError: an opcode that is none, an argument that runs past the end, a memo index beyond the file's size.
    """
    run = _plain_run(len(data))
    at, end = 0, len(data)
    while at < end:
        matched = run.match(data, at)
        if matched:
            at = matched.end()
            if at >= end:
                break
        opcode = data[at : at + 1]
        if opcode == b".":
            return at + 1
        if opcode in _COUNTED:
            layout = _COUNTED[opcode]
            width = struct.calcsize(layout)
            if at + 1 + width > end:
                break
            (nbytes,) = struct.unpack_from(layout, data, at + 1)
            at += 1 + width + nbytes
        elif opcode in _LINES:
            for _ in range(_LINES[opcode]):
                newline = data.find(b"\n", at + 1)
                if newline < 0:
                    raise FileError(name, f"the pickle ends inside the line at byte {at:,}")
                at = newline
            at += 1
        elif opcode == b"p":
            newline = data.find(b"\n", at, at + 24)
            if newline < 0 or not data[at + 1 : newline].isdigit() or int(data[at + 1 : newline]) > end:
                raise FileError(name, f"the pickle has a memo index at byte {at:,} that it cannot fill")
            at = newline + 1
        elif opcode in _EXTENSIONS:
            raise FileError(name, f"the pickle uses an extension code at byte {at:,}")
        elif opcode == b"r":
            raise FileError(name, f"the pickle has a memo index at byte {at:,} that it cannot fill")
        else:
            raise FileError(name, f"the pickle has no opcode {opcode!r} (byte {at:,})")
    raise FileError(
        name, f"the pickle ends without its STOP, after {end:,} bytes", hint="the file is cut short or damaged"
    )


def load(data: bytes, name: str) -> Any:
    """The object tree of a pickle, as notes, stand-ins and plain containers. Nothing of the file's is run.

    Raises:
        FileError: the pickle is damaged, or builds a tensor that cannot be.
    """
    check(data, name)
    try:
        return _Unpickler(data).load()
    except _DAMAGED as error:
        raise FileError(name, f"the pickle is damaged: {shortened(str(error) or type(error).__name__)}") from None
