"""Header tier: tensors that torch saves as several, each shown as its parts below its own name.

Which argument of a rebuild function is which part stands in tables, by the names of the attributes that torch gives
them: `x.indices`, `x.crow_indices`, `x.scales`. What is no tensor among them, as a size or an axis, stays as an extra.

Source: torch/_tensor.py (`Tensor._reduce_ex_internal`) and torch/_utils.py for the order of the arguments.
"""

from __future__ import annotations

from typing import Any

from paramctl.formats.notes import Name, StandIn, TensorNote, standing_for

_COMPRESSED_ROWS = ("crow_indices", "col_indices", "values", "size")
_COMPRESSED_COLUMNS = ("ccol_indices", "row_indices", "values", "size")
_SPARSE = {
    "torch.sparse_coo": ("indices", "values", "size", "is_coalesced"),
    "torch.sparse_csr": _COMPRESSED_ROWS,
    "torch.sparse_bsr": _COMPRESSED_ROWS,
    "torch.sparse_csc": _COMPRESSED_COLUMNS,
    "torch.sparse_bsc": _COMPRESSED_COLUMNS,
}
_QUANTIZERS = {
    "torch.per_tensor_affine": ("scale", "zero_point"),
    "torch.per_channel_affine": ("scales", "zero_points", "axis"),
    "torch.per_channel_affine_float_qparams": ("scales", "zero_points", "axis"),
}
_NESTED = ("values", "_nested_tensor_size", "_nested_tensor_strides", "_nested_tensor_storage_offsets")
_WRAPPER = ("dtype", "size", "stride", "storage_offset", "layout", "device", "requires_grad")


def _composite(qualified: str, names: tuple[str, ...], values: tuple[Any, ...], **facts: Any) -> StandIn:
    return standing_for(qualified, values[len(names) :], facts | dict(zip(names, values, strict=False)))


def sparse(layout: Any = None, data: Any = (), *_more: Any) -> StandIn:
    said = layout.text if type(layout) is Name else "a layout that is not known"
    values = tuple(data) if isinstance(data, (tuple, list)) else (data,)
    return _composite("torch.Tensor", _SPARSE.get(said, ()), values, layout=said)


def nested(*parts: Any) -> StandIn:
    return _composite("torch.Tensor", _NESTED, parts, layout="nested")


def jagged(keywords: Any = None, *_more: Any) -> StandIn:
    """A nested tensor of the jagged layout (torch/nested/_internal/nested_tensor.py, `_rebuild_njt`)."""
    facts = dict(keywords) if isinstance(keywords, dict) else {"values": keywords}
    return standing_for("torch.nested._internal.nested_tensor.NestedTensor", (), facts)


def wrapper(cls: Any = None, *facts: Any) -> StandIn:
    """A subclass with tensors for attributes, as DTensor or torchao's; they come with its state."""
    return _composite(qualified(cls, "torch.Tensor"), _WRAPPER, facts)


def quantizer(params: Any) -> StandIn | None:
    """How the integers of a quantized tensor are read: a state for its note."""
    if not isinstance(params, tuple) or not params:
        return None
    scheme = qualified(params[0], "a scheme that is not known")
    return _composite(scheme, _QUANTIZERS.get(scheme, ()), params[1:])


def uninitialized(qualified_name: str, *_: Any) -> StandIn:
    """A parameter of a lazy module, which has no shape yet."""
    return standing_for(qualified_name, ())


def qualified(cls: Any, otherwise: str) -> str:
    found = getattr(cls, "qualified", otherwise) if isinstance(cls, type) else otherwise
    return found if isinstance(found, str) else otherwise


def with_state(made: StandIn, *states: Any, cls: Any = None) -> StandIn:
    """`made` as it is with further attributes; those that are a part of it already are told once."""
    before = made.state if type(made.state) is tuple else (made.state,)
    parts = {id(part) for state in before if isinstance(state, dict) for part in state.values() if _is_part(part)}
    flat = [one for state in states for one in (state if type(state) is tuple else (state,)) if one]
    further = (
        {key: value for key, value in state.items() if id(value) not in parts} if isinstance(state, dict) else state
        for state in flat
    )
    name = qualified(cls, type(made).qualified)
    again = standing_for(name, made.args, (*(state for state in before if state), *further))
    again.kwargs, again.items, again.elements = made.kwargs, made.items, made.elements
    return again


def _is_part(value: Any) -> bool:
    return type(value) is TensorNote or isinstance(value, (StandIn, dict, list))


def attributed(note: TensorNote, state: Any) -> TensorNote:
    """The note with attributes beside those that it has."""
    if not state:
        return note
    return note._replace(state=with_state(note.state, state) if isinstance(note.state, StandIn) else state)
