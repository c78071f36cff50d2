"""Header tier: torch's pickles, read without torch and without running anything.

The standard library's unpickler does the parsing, in C. It is handed a fixed table of names: torch's and
numpy's rebuild functions, each replaced by one of ours that only takes notes, and a few containers. Every other
name becomes a `StandIn` that keeps what the pickle would have called, with what arguments and what state.
Before that, `opcodes.walk` sees to it that the parser can be let at the file.

Source: torch/_utils.py and torch/_tensor.py for the rebuild
functions; numpy/_core/src/multiarray/methods.c (`array_reduce`, `array_setstate`) for arrays.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, Literal, NamedTuple

from paramctl.checkpoint import ParamKind, contiguous, reach
from paramctl.dtypes import DTYPES, DType
from paramctl.errors import FileError, shortened
from paramctl.formats import composites
from paramctl.formats.notes import (
    Allowance,
    Device,
    Dict,
    Function,
    Mesh,
    Name,
    OldParameter,
    OldVariable,
    Set,
    StandIn,
    StorageNote,
    TensorNote,
    UnknownTensorError,
    standing_for,
)
from paramctl.formats.opcodes import Walked, walk

MOST_DIMS = 1000
_MOST = 1 << 63  # torch's sizes, strides and counts of elements are int64

DAMAGED = (
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


# ----------------------------------------------------------------------------- torch


def _dims(values: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > MOST_DIMS:
        raise ValueError("sizes or strides that are none")
    for dim in values:
        if type(dim) is not int or not 0 <= dim < _MOST:
            raise ValueError(f"a size or stride of {_said(dim)}")
    return tuple(values)


def _said(value: Any) -> str:
    return str(value) if type(value) is int and -_MOST <= value <= _MOST else f"type {type(value).__name__}"


def _geometry(size: Any, stride: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shape, by = _dims(size), _dims(stride)
    if len(shape) != len(by):
        raise ValueError(f"{len(shape)} sizes and {len(by)} strides")
    if math.prod(shape) >= _MOST:
        raise ValueError("a tensor of more elements than torch can count")
    return shape, by


def _typed(storage: Any, dtype: DType | None, offset: Any, size: Any, stride: Any, requires_grad: Any) -> TensorNote:
    if isinstance(storage, StandIn):
        raise UnknownTensorError({"storage": type(storage).qualified, "size": _dims(size)})
    if type(storage) is not StorageNote:
        raise ValueError("a tensor without a storage")
    found = dtype or storage.dtype
    if found is None:
        raise ValueError("a tensor without a dtype")
    if type(offset) is not int or not 0 <= offset < _MOST:
        raise ValueError(f"a storage offset of {_said(offset)}")
    shape, by = _geometry(size, stride)
    if storage.view is not None:
        start, numel = storage.view
        if 0 not in shape and offset + reach(shape, by)[1] > numel:
            raise ValueError(f"a tensor beyond its {numel:,} elements of storage {shortened(storage.key)}")
        offset += start
    return TensorNote(storage, found, offset, shape, by, requires_grad if type(requires_grad) is bool else None)


def _lazily(note: TensorNote, metadata: Any) -> TensorNote:
    """Bits that torch keeps beside a tensor, and applies to its elements as it reads them."""
    if not isinstance(metadata, dict):
        return note
    found = [word for bit, word in (("conj", "conjugated"), ("neg", "negated")) if metadata.get(bit)]
    return note._replace(lazy=" and ".join(found))


def _dtype_of(dtype: Any, size: Any) -> DType:
    if type(dtype) is Name and dtype.dtype is not None:
        return dtype.dtype
    if isinstance(dtype, type) and issubclass(dtype, StandIn):
        raise UnknownTensorError({"dtype": dtype.qualified, "size": _dims(size)})
    raise ValueError(f"a tensor of dtype {type(dtype).__name__}, which is not known")


def rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any) -> TensorNote:
    return _typed(storage, None, offset, size, stride, False)


def _rebuild_tensor_v2(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    _hooks: Any = None,
    metadata: Any = None,
    *_more: Any,
) -> TensorNote:
    note = _typed(storage, None, offset, size, stride, requires_grad)
    return note if metadata is None else _lazily(note, metadata)


def _rebuild_tensor_v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    _hooks: Any,
    dtype: Any,
    metadata: Any = None,
    *_more: Any,
) -> TensorNote:
    return _lazily(_typed(storage, _dtype_of(dtype, size), offset, size, stride, requires_grad), metadata)


def _rebuild_qtensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    quantizer: Any,
    requires_grad: Any,
    _hooks: Any,
    *_more: Any,
) -> TensorNote:
    note = _typed(storage, None, offset, size, stride, requires_grad)
    return note._replace(state=composites.quantizer(quantizer))


def _rebuild_meta_tensor_no_storage(dtype: Any, size: Any, stride: Any, requires_grad: Any) -> TensorNote:
    return TensorNote(None, _dtype_of(dtype, size), 0, *_geometry(size, stride), requires_grad is True)


def _rebuild_parameter(data: Any, requires_grad: Any = None, _hooks: Any = None, state: Any = None, *_more: Any) -> Any:
    if isinstance(data, StandIn):
        return composites.with_state(data, {"requires_grad": requires_grad}, state)
    if type(data) is not TensorNote:
        return standing_for("torch.nn.parameter.Parameter", (data,), {"requires_grad": requires_grad})
    made = data._replace(kind="parameter", cls="Parameter", requires_grad=requires_grad is True)
    return composites.attributed(made, state)


def _rebuild_device_tensor(data: Any, _dtype: Any, _device: Any, requires_grad: Any) -> Any:
    """A tensor of a device without storages, saved as one of the CPU or as a numpy array."""
    note = data.note if isinstance(data, NumpyArray) else data
    if type(note) is not TensorNote:
        return standing_for("torch.Tensor", (data,))
    return note._replace(cls="Tensor", requires_grad=requires_grad is True)


def _rebuild_from_type(function: Any, cls: Any, args: Any, state: Any = None) -> Any:
    ours = type(function) is Function and function.make in _OURS and isinstance(args, tuple)
    made = function(*args) if ours else None
    if isinstance(made, StandIn):
        return composites.with_state(made, state, cls=cls)
    if type(made) is not TensorNote:
        qualified = getattr(cls, "qualified", "torch.Tensor")
        return standing_for(qualified, args if isinstance(args, tuple) else (args,), state)
    name = composites.qualified(cls, "Tensor").rpartition(".")[2]
    if name == "Tensor" and isinstance(state, dict) and state.get("_is_buffer") is True:
        name = "Buffer"  # torch.nn.Buffer's metaclass looks at this attribute too
    kinds: dict[str, ParamKind] = {"Parameter": "parameter", "Buffer": "buffer"}
    return composites.attributed(made._replace(cls=name, kind=kinds.get(name, made.kind)), state)


def _reduce_graph_module(body: Any, _import_block: Any = None) -> Any:
    return standing_for("torch.fx.graph_module.GraphModule", (), body)


def _given(value: Any, _type: Any = None) -> Any:
    """What TorchScript's pickler says of a container is its type, which is nothing to us."""
    return value


def _layout(text: Any) -> Name:
    return Name(text if type(text) is str and len(text) < 64 else "a layout")


def _device(kind: Any, index: Any = None) -> Device:
    said = kind if type(kind) is str and len(kind) < 64 else ""
    return Device(said if index is None else f"{said}:{_said(index)}")


_OURS: tuple[Callable[..., Any], ...] = (
    rebuild_tensor,
    _rebuild_tensor_v2,
    _rebuild_tensor_v3,
    _rebuild_qtensor,
    _rebuild_meta_tensor_no_storage,
    _rebuild_parameter,
    composites.sparse,
    composites.nested,
    composites.jagged,
    composites.wrapper,
    _rebuild_device_tensor,
)

# ----------------------------------------------------------------------------- numpy

_NUMPY_DTYPES = {
    "f8": "float64", "f4": "float32", "f2": "float16", "c8": "complex64", "c16": "complex128", "b1": "bool",
    "i8": "int64", "i4": "int32", "i2": "int16", "i1": "int8",
    "u8": "uint64", "u4": "uint32", "u2": "uint16", "u1": "uint8",
}  # fmt: skip


class NumpyDType:
    """`numpy.dtype('f8')`, with the byte order that its state gives it."""

    code = ""
    big = False

    def __init__(self, code: Any = "", _align: Any = None, _copy: Any = None) -> None:
        text = code if type(code) is str and len(code) < 64 else ""
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

    note: TensorNote | None = None
    text = "numpy.ndarray"
    objects: list[Any] | None = None

    def __init__(self, _cls: Any = None, _shape: Any = None, _dtype: Any = None) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, is_fortran, raw = state
        self.fill(shape, dtype, raw, is_fortran=bool(is_fortran))

    def fill(self, shape: Any, dtype: Any, raw: Any, *, is_fortran: bool) -> None:
        dims = _dims(shape)
        found = dtype.dtype if isinstance(dtype, NumpyDType) else None
        if found is None or not isinstance(raw, (bytes, bytearray)):
            self.text = f"numpy.ndarray of {dtype.code if isinstance(dtype, NumpyDType) else 'objects'}"
            self.objects = raw if isinstance(raw, list) else None
            return
        if found.nbytes(math.prod(dims)) != len(raw):
            raise ValueError(f"an array of {found.nbytes(math.prod(dims)):,} bytes, and {len(raw):,} bytes for it")
        stride = tuple(reversed(contiguous(tuple(reversed(dims))))) if is_fortran else contiguous(dims)
        order: Literal["little", "big"] = "big" if dtype.big else "little"
        self.note = TensorNote(None, found, 0, dims, stride, None, cls="ndarray", data=raw, byteorder=order)


def _numpy_from_buffer(raw: Any, dtype: Any, shape: Any, order: Any = "C", axes: Any = None) -> NumpyArray:
    array = NumpyArray()
    array.fill(shape, dtype, raw, is_fortran=order == "F")
    if array.note is not None and isinstance(axes, (list, tuple)):
        note = array.note
        if sorted(_dims(axes)) != list(range(len(note.shape))):
            raise ValueError("axes of an array that are none")
        array.note = note._replace(
            shape=tuple(note.shape[axis] for axis in axes), stride=tuple(note.stride[axis] for axis in axes)
        )
    return array


def _numpy_scalar(dtype: Any, raw: Any = b"") -> Any:
    found = dtype.dtype if isinstance(dtype, NumpyDType) else None
    codes = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b", "b1": "?"}
    codes |= {"u8": "Q", "u4": "I", "u2": "H", "u1": "B"}
    if found is None or not isinstance(raw, bytes) or len(raw) != found.block_nbytes or dtype.code not in codes:
        return standing_for("numpy.generic", (raw,))
    return struct.unpack((">" if dtype.big else "<") + codes[dtype.code], raw)[0]


# ----------------------------------------------------------------------------- what copies


def _encode(spend: Callable[[int], None], text: Any, encoding: Any = "utf-8") -> Any:
    if isinstance(text, str) and encoding in ("latin1", "latin-1", "utf-8", "ascii"):
        spend(len(text))
        return text.encode(encoding)
    return standing_for("_codecs.encode", (text, encoding))


def _copied(made: type, spend: Callable[[int], None], values: Any = ()) -> Any:
    if not isinstance(values, (list, tuple)):
        return standing_for(f"builtins.{made.__name__.lower()}", (values,))
    spend(len(values))
    return made(values)


def _reconstructed(cls: Any, _base: Any = None, state: Any = None) -> Any:
    """What `object.__reduce_ex__` has made below protocol 2: a `cls`, with what its built-in base would begin with."""
    if not isinstance(cls, type) or not issubclass(cls, (StandIn, Dict)):
        return standing_for("copyreg._reconstructor", (cls, state))
    return cls() if state is None else cls(state)


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
        ("copyreg", "_reconstructor"): _reconstructed,
        ("copy_reg", "_reconstructor"): _reconstructed,
        ("torch", "Size"): _dims,
        ("torch", "device"): _device,
        ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
        ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
        ("torch._utils", "_rebuild_qtensor"): _rebuild_qtensor,
        ("torch._utils", "_rebuild_meta_tensor_no_storage"): _rebuild_meta_tensor_no_storage,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
        ("torch._tensor", "_rebuild_from_type"): _rebuild_from_type,
        ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
        ("torch._utils", "_rebuild_sparse_tensor"): composites.sparse,
        ("torch._utils", "_rebuild_sparse_csr_tensor"): composites.sparse,
        ("torch._utils", "_rebuild_nested_tensor"): composites.nested,
        ("torch.nested._internal.nested_tensor", "_rebuild_njt"): composites.jagged,
        ("torch._utils", "_rebuild_wrapper_subclass"): composites.wrapper,
        ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _rebuild_device_tensor,
        ("torch._utils", "_rebuild_device_tensor_from_numpy"): _rebuild_device_tensor,
        ("torch._utils", "_rebuild_xla_tensor"): _rebuild_device_tensor,
        ("torch.serialization", "_get_layout"): _layout,
        ("torch.nn.parameter", "Parameter"): OldParameter,
        ("torch.autograd.variable", "Variable"): OldVariable,
        ("torch.distributed.device_mesh", "DeviceMesh"): Mesh,
        ("torch.distributed._tensor.device_mesh", "DeviceMesh"): Mesh,
        ("torch.fx.graph_module", "reduce_graph_module"): _reduce_graph_module,
        ("torch.storage", "UntypedStorage"): Name("torch.UntypedStorage", is_storage=True),
        ("torch", "UntypedStorage"): Name("torch.UntypedStorage", is_storage=True),
        ("torch", "_UntypedStorage"): Name("torch.UntypedStorage", is_storage=True),
        ("torch.storage", "_UntypedStorage"): Name("torch.UntypedStorage", is_storage=True),
        ("numpy", "dtype"): NumpyDType,
    }
    for name in ("build_boollist", "build_doublelist", "build_intlist", "build_tensorlist", "restore_type_tag"):
        table["torch.jit._pickle", name] = _given
    for module in ("builtins", "__builtin__"):
        table[module, "dict"] = Dict
    for module in ("numpy.core", "numpy._core"):
        table[f"{module}.multiarray", "_reconstruct"] = NumpyArray
        table[f"{module}.multiarray", "scalar"] = _numpy_scalar
        table[f"{module}.numeric", "_frombuffer"] = _numpy_from_buffer
    for name, dtype in _STORAGES.items():
        for module in ("torch", "torch.storage", "torch.cuda"):
            table[module, name] = Name(f"torch.{name}", DTYPES[dtype], is_storage=True)
    for name in ("UninitializedParameter", "UninitializedBuffer"):
        table["torch.nn.parameter", name] = partial(composites.uninitialized, f"torch.nn.parameter.{name}")
    for name, found in DTYPES.items():
        table["torch", name] = Name(f"torch.{name}", found)
    return {key: Function(made) if isinstance(made, (FunctionType, partial)) else made for key, made in table.items()}


_TABLE = _table()
_COPYING: dict[tuple[str, str], Callable[..., Any]] = {("_codecs", "encode"): _encode}
for _module in ("builtins", "__builtin__"):
    _COPYING[_module, "list"] = partial(_copied, list)
    _COPYING[_module, "set"] = _COPYING[_module, "frozenset"] = partial(_copied, Set)


PersistentLoad = Callable[[Any], Any]


class Table:
    """What the names and the persistent ids of one pickle stand for."""

    def __init__(self, nbytes: int, persistent: PersistentLoad | None = None) -> None:
        self._persistent = persistent
        self._spend = Allowance(1000 + 8 * nbytes).spend
        self._found: dict[tuple[str, str], Any] = {}
        self.storages: dict[str, StorageNote] = {}

    def find_class(self, module: str, name: str) -> Any:
        found = self._found.get((module, name))
        if found is None:
            found = self._found[module, name] = self._make(module, name)
        return found

    def _make(self, module: str, name: str) -> Any:
        copying = _COPYING.get((module, name))
        if copying is not None:
            return Function(partial(copying, self._spend))
        made = _TABLE.get((module, name), StandIn)
        if made not in (Dict, StandIn, Mesh):
            return made
        space = {"qualified": f"{module}.{name}", "spend": self._spend} | ({} if made is Dict else {"__slots__": ()})
        return type(made.__name__, (made,), space)

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is not None:
            return self._persistent(pid)
        if pid[0] == "module":  # ("module", class, source file, source)
            return pid[1]
        kind, storage_type, key, location, numel = pid[:5]
        if kind == "storage" and isinstance(storage_type, type) and issubclass(storage_type, StandIn):
            return standing_for(storage_type.qualified, (key, location, numel))
        if kind != "storage" or type(storage_type) is not Name or not storage_type.is_storage:
            raise ValueError("a persistent id that names no storage")
        if type(numel) is not int or not 0 <= numel < _MOST:
            raise ValueError(f"a storage of {_said(numel)} elements")
        name = str(key) if type(key) is str or (type(key) is int and abs(key) < _MOST) else ""
        note = StorageNote(name, storage_type.dtype, numel, location if type(location) is str else "")
        known = self.storages.setdefault(name, note)
        if known is not note and known.nbytes != note.nbytes:
            raise ValueError(f"storage {shortened(name)} with {known.nbytes:,} and with {note.nbytes:,} bytes")
        return note if len(pid) < 6 or pid[5] is None else storage_view(note, *pid[5][1:])


class _Unpickler(Table, pickle.Unpickler):
    def __init__(self, walked: Walked, persistent: PersistentLoad | None) -> None:
        Table.__init__(self, walked.end, persistent)
        file = io.BufferedReader(io.BytesIO(walked.data))  # it reads ahead: a third faster
        fresh = (make() for make in walked.fresh)
        pickle.Unpickler.__init__(self, file, encoding="utf-8", errors="surrogateescape", buffers=fresh)


def storage_view(root: StorageNote, start: Any, size: Any) -> StorageNote:
    """Elements of a storage as a storage of their own. Its tensors are told by where they lie in `root`.

    Raises:
        ValueError: they are not all in `root`.
    """
    if type(start) is not int or type(size) is not int or not 0 <= start <= start + size <= root.numel:
        raise ValueError(f"a view of elements {_said(start)} + {_said(size)} of a storage of {root.numel:,}")
    return root._replace(view=(start, size))


class Unpickled(NamedTuple):
    tree: Any
    storages: dict[str, StorageNote]  # each as it was first named


def load(data: bytes, name: str) -> Any:
    """The object tree of a pickle, as notes, stand-ins and plain containers. Nothing of the file's is run.

    Raises:
        FileError: the pickle is damaged, or builds a tensor that cannot be.
    """
    return unpickled(walk(data, name), name).tree


def unpickled(walked: Walked, name: str, *, persistent: PersistentLoad | None = None) -> Unpickled:
    """As `load`, of a pickle that was gone over.

    Args:
        walked: what `opcodes.walk` gave.
        name: of the file, for errors.
        persistent: what a persistent id stands for; raises one of Python's own errors for one that is none.

    Raises:
        FileError: the pickle is damaged, or builds a tensor that cannot be.
    """
    unpickler = _Unpickler(walked, persistent)
    try:
        return Unpickled(unpickler.load(), unpickler.storages)
    except DAMAGED as error:
        raise FileError(name, f"the pickle is damaged: {shortened(str(error) or type(error).__name__)}") from None
