"""Header tier: the tensors and storages of a pickle's nodes, and what is put in their place.

Source: torch/_tensor.py (`_reduce_ex_internal`), torch/_utils.py (`_rebuild_tensor_v2`, `_rebuild_tensor_v3`,
`_rebuild_qtensor`, `_rebuild_parameter`), torch/_tensor.py (`_rebuild_from_type_v2`), torch/serialization.py
(`persistent_load`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from paramctl.dtypes import DType
from paramctl.errors import FileError, shortened
from paramctl.formats.notes import TensorNote
from paramctl.formats.pickle_nodes import (
    FALSE,
    MAKE,
    NONE,
    UNKEPT,
    Maker,
    Node,
    Part,
    again,
    called,
    program,
    text,
    tuple_of,
    whole,
)
from paramctl.formats.pickle_places import Places
from paramctl.formats.pickle_values import global_of, plain
from paramctl.formats.torch_pickle import STORAGE_CLASSES, Layout, geometry, holds, ordered, rebuild

_TENSORS = {  # functions that make a tensor of a storage: how many arguments come before what only some have
    "torch._utils._rebuild_tensor": 4,
    "torch._utils._rebuild_tensor_v2": 6,
    "torch._utils._rebuild_tensor_v3": 7,
    "torch._utils._rebuild_qtensor": 7,
}
_QUANTIZED = "torch._utils._rebuild_qtensor"
_FROM_TYPE = ("torch._tensor._rebuild_from_type_v2", "torch._tensor._rebuild_from_type")
_PARAMETER = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_UNTYPED = ".UntypedStorage"


class _Pid(NamedTuple):
    """A persistent id that names a storage: `("storage", class, key, location, numel)`."""

    kind: Part
    cls: Part
    key: str
    location: Part
    numel: Part


class _Edit(NamedTuple):
    """One tensor's new layout, and what is needed to write it."""

    maker: Maker
    file: str
    name: str
    dtype: DType  # as it was
    layout: Layout

    def refusal(self, why: str) -> FileError:
        return FileError(self.file, f"{shortened(self.name)} {why}")


# ----------------------------------------------------------------------------- tensors


def replace(places: Places, maker: Maker, layouts: Mapping[str, Layout]) -> None:
    """Let tensors be of other storages, dtypes, sizes and strides. What else they are stays: class, gradient, state.

    A tensor with several names, of which not all are given one and the same layout, becomes several.

    Raises:
        FileError: a tensor of no storage, or one that cannot be of that dtype.
    """
    names: dict[Node, list[int]] = defaultdict(list)
    given: dict[Node, dict[int, Layout]] = defaultdict(dict)
    for index, entry in enumerate(places.entries):
        if type(entry.item) is TensorNote:
            names[entry.item.origin].append(index)
            if entry.path in layouts:
                given[entry.item.origin][index] = layouts[entry.path]
    for name in layouts:
        if not any(type(places.entries[index].item) is TensorNote for index in places.find(name)):
            raise FileError(places.name, f"{shortened(name)} is no tensor")
    for origin, by_index in given.items():
        edits = {index: _edit(places, maker, index, layout) for index, layout in by_index.items()}
        if len(by_index) == len(names[origin]) and len(set(by_index.values())) == 1:
            origin.parts = _rebuilt(origin, next(iter(edits.values())))
        else:
            _part(places, origin, edits)


def _edit(places: Places, maker: Maker, index: int, layout: Layout) -> _Edit:
    entry = places.entries[index]
    edit = _Edit(maker, places.name, entry.path, entry.item.dtype, layout)
    if entry.item.storage is None:
        why = "is a numpy array, whose values are in the pickle" if entry.item.data is not None else "has no values"
        raise edit.refusal(f"{why}, and cannot be given others")
    return edit


def _part(places: Places, origin: Node, edits: Mapping[int, _Edit]) -> None:
    """Put tensors of their own where one that stays was referred to."""
    done: set[tuple[int, int]] = set()
    for index, edit in edits.items():
        for other in places.same_place(index):
            if other not in edits or edits[other].layout != edit.layout:
                raise edit.refusal(f"and {shortened(places.entries[other].path)} are one item of one container")
        slots = places.slots(index)
        if not slots:
            raise edit.refusal("is a tensor with other names, and cannot be parted from them where it is")
        if slots[-1].number not in done:
            done.add(slots[-1].number)
            slots[-1].put(_another(slots[-1].value, origin, edit))


def _another(value: Part, origin: Node, edit: _Edit) -> Node:
    """The tensor, or the parameter of it, as one of its own."""
    function, arguments = _call(value)
    name = global_of(function)
    if value is origin and name in _TENSORS:
        made, given = _rebuilt(origin, edit)
        parts = list(_parts(given))
        if len(parts) > 5:
            parts[6 if name == _QUANTIZED else 5] = ordered(edit.maker)
        return called(again(made), tuple_of([again(part) for part in parts]))
    if name in _PARAMETER and len(arguments) > 2:
        data, requires_grad, _, *more = arguments
        inner = [_another(data, origin, edit), requires_grad, ordered(edit.maker), *map(again, more)]
        return called(again(function), tuple_of(inner))
    raise edit.refusal("has other names, and is a kind of tensor that cannot be parted from them")


def _rebuilt(node: Node, edit: _Edit) -> tuple[Part, Part]:
    """What the call that makes a tensor calls, and with what, so that it has the new layout."""
    function, arguments = _call(node)
    if global_of(function) in _FROM_TYPE and len(arguments) == 4:
        inner, cls, given, state = arguments
        made, with_these = _retyped(inner, _parts(given), edit)
        return function, tuple_of([made, cls, with_these, state])
    return _retyped(function, arguments, edit)


def _retyped(function: Part, arguments: tuple[Part, ...], edit: _Edit) -> tuple[Part, Part]:
    pid = _pid(arguments[0]) if arguments else None
    known = _TENSORS.get(global_of(function))
    if known is None or pid is None or len(arguments) < known:
        raise edit.refusal("is made in a way that cannot be given other values")
    at = edit.layout
    if at.dtype == edit.dtype:
        of_bytes = global_of(pid.cls).endswith(_UNTYPED)
        numel = at.nbytes if of_bytes else at.nbytes // at.dtype.block_nbytes
        return function, tuple_of([_named(pid, at.key, numel), *geometry(at), *arguments[4:]])
    if global_of(function) == _QUANTIZED or not holds(at.dtype):
        raise edit.refusal(f"is {edit.dtype}, and cannot become {at.dtype}")
    is_classed = at.dtype.name in STORAGE_CLASSES
    hooks = arguments[5] if known > 5 else ordered(edit.maker)
    requires_grad = arguments[4] if known > 5 and is_classed else FALSE  # else `torch.load` itself fails
    return rebuild(
        edit.maker, at, requires_grad=requires_grad, hooks=hooks, more=arguments[known:], location=pid.location
    )


def _call(value: Part) -> tuple[Part, tuple[Part, ...]]:
    if isinstance(value, Node) and value.op == b"R":
        return value.parts[0], _parts(value.parts[1])
    return b"", ()


def _parts(value: Part) -> tuple[Part, ...]:
    return tuple(value.parts) if isinstance(value, Node) else ()


# ----------------------------------------------------------------------------- storages


def storages(root: Part, most: int) -> Iterator[tuple[Node, str]]:
    """Every place where a storage is named, in the order in which `torch.load` comes to them, and the storage's key."""
    for do, node in program(root, most):
        if do == MAKE and node.op == b"Q":
            pid = _pid(node)
            if pid is not None:
                yield node, pid.key


def as_in_a_zip(root: Part, most: int) -> None:
    """Make persistent ids of before torch 1.6 those of a zip.

    A module's class, `("module", class, file, source)`, is a class like all others there; and a storage has no sixth
    part, which is None but where it is a view of another.
    """
    for do, node in list(program(root, most)):
        parts = _parts(node.parts[0]) if do == MAKE and node.op == b"Q" else ()
        if len(parts) == 4 and plain(parts[0]) == "module" and isinstance(parts[1], Node):
            node.op, node.parts, node.kept = parts[1].op, parts[1].parts, UNKEPT
        elif len(parts) == 6 and parts[5] == NONE:
            node.parts = (tuple_of(parts[:5]),)


def classes(root: Part, most: int) -> dict[str, set[str]]:
    """The classes by which each storage is named; `torch.load` believes the first."""
    found: dict[str, set[str]] = defaultdict(set)
    for node, key in storages(root, most):
        pid = _pid(node)
        if pid is not None:
            found[key].add(global_of(pid.cls))
    return found


def begin_with_zero(root: Part, most: int) -> dict[str, str]:
    """Give the storage that is named first the key "0", as `torch.load` expects it; new keys by old ones."""
    every = list(storages(root, most))
    keys = list(dict.fromkeys(key for _, key in every))
    if not keys or keys[0] == "0":
        return dict(zip(keys, keys, strict=True))
    new = dict(zip(keys, keys, strict=True)) | {"0": keys[0], keys[0]: "0"}
    for node, key in every:
        pid = _pid(node)
        if pid is not None and new[key] != key:
            node.parts = _named(pid, new[key]).parts
    return {key: new[key] for key in keys}


def _named(pid: _Pid, key: str, numel: int | None = None) -> Node:
    said = [again(pid.kind), again(pid.cls), text(key), again(pid.location)]
    return Node(b"Q", (tuple_of([*said, pid.numel if numel is None else whole(numel)]),), kept=UNKEPT)


def _pid(node: Part) -> _Pid | None:
    said = _parts(node.parts[0]) if isinstance(node, Node) and node.op == b"Q" else ()
    if len(said) != 5:
        return None
    kind, cls, key, location, numel = said
    name = plain(key)
    return _Pid(kind, cls, str(name), location, numel) if isinstance(name, (str, int)) else None
