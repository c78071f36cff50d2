"""Header tier: tensors as torch's pickles have them, and a whole pickle of a state dict, written without torch.

A tensor is a call of `_rebuild_tensor_v2` with its storage, whose class says the dtype. Where a dtype has no such
class, or one storage is looked at as several dtypes, it is a call of `_rebuild_tensor_v3` with bytes and the dtype.

Source: torch/_tensor.py (`_reduce_ex_internal`), torch/storage.py (`_dtype_to_storage_type_map`, `_new_dtypes`),
torch/serialization.py (`_save`), torch/distributed/checkpoint/_nested_dict.py (`unflatten_state_dict`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from paramctl.checkpoint import Param, Storage
from paramctl.dtypes import DType
from paramctl.errors import ParamctlError, shortened
from paramctl.formats.notes import InTuple, Key
from paramctl.formats.pickle_nodes import (
    EMPTY_TUPLE,
    FALSE,
    UNKEPT,
    Maker,
    Node,
    Part,
    called,
    dump,
    filled,
    text,
    tuple_of,
    whole,
)

STORAGE_CLASSES = {  # of dtypes whose storage says what they are
    "float64": "DoubleStorage", "float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage",
    "int64": "LongStorage", "int32": "IntStorage", "int16": "ShortStorage", "int8": "CharStorage",
    "uint8": "ByteStorage", "bool": "BoolStorage",
    "complex128": "ComplexDoubleStorage", "complex64": "ComplexFloatStorage",
}  # fmt: skip
BY_DTYPE = frozenset((  # dtypes that stand beside their storage
    "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2",
    "complex32", "uint64", "uint32", "uint16", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2",
))  # fmt: skip
_NOTHING: Mapping[Any, Any] = MappingProxyType({})

Path = Sequence[Any]  # keys as text or a `Key`, and positions


class Layout(NamedTuple):
    """Where a tensor's elements are: in the storage called `key`, of `nbytes` bytes."""

    key: str
    nbytes: int
    dtype: DType
    storage_offset: int  # elements
    size: tuple[int, ...]
    stride: tuple[int, ...]  # elements


class StateDict(NamedTuple):
    """A pickle, and the storages that it names, as `torch_zip_writer.write` wants them."""

    pickled: bytes
    storages: list[tuple[str, Storage]]  # by their new keys, in the order in which they are named


def holds(dtype: DType) -> bool:
    """Whether a plain tensor of torch may be of this dtype: quantized ones need more than their dtype."""
    return dtype.name in STORAGE_CLASSES or dtype.name in BY_DTYPE


def state_dict_pickle(
    params: Iterable[Param],
    *,
    paths: Mapping[str, Path] = _NOTHING,
    extras: Mapping[tuple[Any, ...], Any] = _NOTHING,
) -> StateDict:
    """A pickle of an OrderedDict by name, byte for byte as `torch.save` writes it. Ties are kept: storages are shared.

    Args:
        params: with unique names; each keeps its offset and its strides within its storage.
        paths: of tensors that are nested: ("model", "0.weight") is `{"model": {"0.weight": …}}`, and whole numbers
            from 0 are positions in a list. Where there are any, the root is a plain dict.
        extras: what is no tensor, by its path: dicts, lists, tuples, text, numbers, bools, None.

    Raises:
        ParamctlError: a dtype that torch has not, an extra that is none of these, or two things with one path.
    """
    every = list(params)
    maker = Maker({})
    keys, whole_of, mixed = _storages(every)
    tensors = {}
    for param in every:
        if not holds(param.dtype):
            raise ParamctlError(f"{shortened(param.name)}: torch has no plain tensor of {param.dtype}")
        key = keys[param.storage.key]
        at = Layout(key, param.storage.nbytes, param.dtype, param.storage_offset, param.shape, param.stride)
        tensors[param.name] = tensor(maker, at, by_dtype=key in mixed)
    if not paths and not extras:
        items = ([maker.text(name), node] for name, node in tensors.items())
        pickled = dump(filled(ordered(maker), b"u", items))
    else:
        pickled = dump(maker.value(_tree(tensors, paths, extras)))
    return StateDict(pickled, list(whole_of.items()))


def tensor_pickle(param: Param) -> StateDict:
    """A pickle of a lone tensor, as each chunk of a DCP folder is one."""
    if not holds(param.dtype):
        raise ParamctlError(f"{shortened(param.name)}: torch has no plain tensor of {param.dtype}")
    _, whole_of, mixed = _storages([param])
    at = Layout("0", param.storage.nbytes, param.dtype, param.storage_offset, param.shape, param.stride)
    return StateDict(dump(tensor(Maker({}), at, by_dtype="0" in mixed)), list(whole_of.items()))


def _storages(params: Sequence[Param]) -> tuple[dict[str, str], dict[str, Storage], set[str]]:
    """New keys by those of the params, storages by their new keys, and the keys of those that have no one class."""
    keys: dict[str, str] = {}
    found: dict[str, Storage] = {}
    dtypes: dict[str, DType] = {}
    mixed: set[str] = set()
    for param in params:
        key = keys.setdefault(param.storage.key, str(len(keys)))
        found.setdefault(key, param.storage)
        dtype = dtypes.setdefault(key, param.dtype)
        if dtype is not param.dtype or param.storage.nbytes % param.dtype.block_nbytes:
            mixed.add(key)
    return keys, found, mixed


# ----------------------------------------------------------------------------- one tensor


def tensor(maker: Maker, at: Layout, *, by_dtype: bool = False) -> Node:
    """The call that makes a tensor.

    Args:
        maker: of the pickle.
        at: what it is.
        by_dtype: the storage is one of bytes, and the dtype stands beside it, though it has a class.
    """
    return called(*rebuild(maker, at, requires_grad=FALSE, hooks=ordered(maker), by_dtype=by_dtype))


def rebuild(
    maker: Maker,
    at: Layout,
    *,
    requires_grad: Part,
    hooks: Part,
    more: Sequence[Part] = (),
    by_dtype: bool = False,
    location: Part | None = None,
) -> tuple[Node, Part]:
    """The function that makes a tensor, and its arguments. `more`: those behind the dtype."""
    classed = at.dtype.name in STORAGE_CLASSES and not by_dtype
    function = maker.named("torch._utils", "_rebuild_tensor_v2" if classed else "_rebuild_tensor_v3")
    of: list[Part] = [storage(maker, at, by_dtype=by_dtype, location=location), *geometry(at)]
    dtype = [] if classed else [maker.named("torch", at.dtype.name)]
    return function, tuple_of([*of, requires_grad, hooks, *dtype, *more])


def geometry(at: Layout) -> list[Part]:
    return [whole(at.storage_offset), dims(at.size), dims(at.stride)]


def storage(maker: Maker, at: Layout, *, by_dtype: bool = False, location: Part | None = None) -> Node:
    """A storage by its persistent id, of elements where it has a class, else of bytes. `location`: else the CPU."""
    storage_class = STORAGE_CLASSES.get(at.dtype.name)
    if storage_class and not by_dtype:
        cls, numel = maker.named("torch", storage_class), at.nbytes // at.dtype.block_nbytes
    else:
        cls, numel = maker.named("torch.storage", "UntypedStorage"), at.nbytes
    where = maker.text("cpu") if location is None else location
    key = maker.shared(("storage", at.key), text(at.key))
    said = tuple_of([maker.text("storage"), cls, key, where, whole(numel)])
    return Node(b"Q", (said,), kept=UNKEPT)


def ordered(maker: Maker) -> Node:
    """An OrderedDict, as yet empty."""
    return called(maker.named("collections", "OrderedDict"), EMPTY_TUPLE)


def dims(values: Sequence[int]) -> Part:
    """Sizes or strides."""
    return tuple_of([whole(value) for value in values])


# ----------------------------------------------------------------------------- nested


def _tree(tensors: Mapping[str, Node], paths: Mapping[str, Path], extras: Mapping[tuple[Any, ...], Any]) -> Any:
    """All as dicts and lists, tensors before what is none in each."""
    root: dict[Any, Any] = {}
    for name, node in tensors.items():
        _put(root, tuple(paths.get(name, (name,))), node)
    for path, leaf in extras.items():
        _put(root, tuple(path), leaf)
    return {_key(step): _listed(value) for step, value in root.items()}


def _key(step: Any) -> Any:
    return step.value if type(step) is Key else step


class _Inner(dict[Any, Any]):
    """A container on the way to a tensor or an extra."""


def _put(root: dict[Any, Any], path: tuple[Any, ...], leaf: Any) -> None:
    node: Any = root
    for step in path[:-1]:
        node = node.setdefault(step, _Inner())
        if type(node) is not _Inner:
            raise _twice(path)
    if path[-1] in node:
        raise _twice(path)
    node[path[-1]] = leaf


def _twice(path: tuple[Any, ...]) -> ParamctlError:
    return ParamctlError(f"{shortened('.'.join(map(str, path)))} would stand where another value does")


def _listed(value: Any) -> Any:
    """Containers whose steps are the positions 0, 1, 2 … as lists and tuples; of others the steps stay as keys."""
    if type(value) is not _Inner:
        return value
    inner = {_key(step): _listed(item) for step, item in value.items()}
    if any(not isinstance(step, int) for step in value) or set(value) != set(range(len(value))):
        return inner
    made = [inner[at] for at in range(len(inner))]
    return tuple(made) if all(type(step) is InTuple for step in value) else made
