"""Whether two object graphs are one and the same: types, values, order, and which objects are one object."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from property.test_reading import raw_bytes


def assert_same_graph(one: Any, two: Any) -> None:
    """What `torch.load` gave twice is the same, object for object."""
    pairs: dict[int, int] = {}
    storages: dict[int, int] = {}
    waiting: list[tuple[Any, Any, str]] = [(one, two, "it")]
    held: list[Any] = []  # what has the ids that are compared
    while waiting:
        a, b, at = waiting.pop()
        assert type(a) is type(b), at
        held += [a, b]
        if isinstance(a, (int, float, complex, str, bytes, type(None), type)) or id(a) in _SINGLE:
            assert a == b or repr(a) == repr(b) == "nan", (at, a, b)
            continue
        if id(a) in pairs:
            assert pairs[id(a)] == id(b), f"{at}: shared otherwise"
            continue
        pairs[id(a)] = id(b)
        if isinstance(a, torch.Tensor):
            _same_tensor(a, b, at, storages)
        elif isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
        waiting += list(_parts(a, b, at))
    assert len(set(pairs.values())) == len(pairs)
    assert len(set(storages.values())) == len(storages)


_SINGLE = {id(value) for value in vars(torch).values() if isinstance(value, (torch.dtype, torch.layout))}


def _same_tensor(a: torch.Tensor, b: torch.Tensor, at: str, storages: dict[int, int]) -> None:
    whole = not a.is_nested and not isinstance(a, torch.nn.parameter.UninitializedTensorMixin)
    for what in ("dtype", "layout", "requires_grad", "device", "is_quantized", *(("shape",) if whole else ())):
        assert getattr(a, what) == getattr(b, what), (at, what)
    if not whole or a.layout is not torch.strided or a.is_meta or type(a) not in (torch.Tensor, torch.nn.Parameter):
        return
    assert (a.stride(), a.storage_offset()) == (b.stride(), b.storage_offset()), at
    assert raw_bytes(a) == raw_bytes(b), at
    if a.untyped_storage().nbytes():
        key = a.untyped_storage()._cdata
        assert storages.setdefault(key, b.untyped_storage()._cdata) == b.untyped_storage()._cdata, at


def _parts(a: Any, b: Any, at: str) -> Any:
    if isinstance(a, dict):
        assert len(a) == len(b), at
        for i, ((k, x), (m, y)) in enumerate(zip(a.items(), b.items(), strict=True)):
            yield k, m, f"{at} key {i}"
            yield x, y, f"{at}[{k!r}]"
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), at
        yield from ((x, y, f"{at}[{i}]") for i, (x, y) in enumerate(zip(a, b, strict=True)))
    elif isinstance(a, (set, frozenset)):
        assert a == b, at
    elif isinstance(a, torch.Tensor):
        yield from ((getattr(a, part)(), getattr(b, part)(), f"{at}.{part}") for part in _of(a))
    if getattr(a, "__dict__", None) is not None and not isinstance(a, type) and not getattr(a, "is_nested", False):
        yield vars(a), vars(b), f"{at}.__dict__"


def _of(tensor: torch.Tensor) -> tuple[str, ...]:
    if tensor.is_quantized:
        per_channel = tensor.qscheme() != torch.per_tensor_affine
        scales = ("q_per_channel_scales", "q_per_channel_zero_points", "q_per_channel_axis")
        return scales if per_channel else ("q_scale", "q_zero_point")
    if tensor.is_nested:
        return ("values", "offsets") if tensor.layout is torch.jagged else ("values", "_nested_tensor_size")
    return {torch.sparse_coo: ("_indices", "_values"), torch.sparse_csr: ("crow_indices", "col_indices", "values")}.get(
        tensor.layout, ()
    )
