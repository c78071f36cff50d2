"""Header tier: what `torch.nn.Module.load_state_dict(strict=True)` would say, by names, shapes and dtypes alone.

A definition is of the torch tier, and built on the meta device; where modules of it have a say in how they are loaded
(batch normalization that fills in `num_batches_tracked`, hooks), its own `load_state_dict` is asked, with tensors on
that device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paramctl import formats
from paramctl.checkpoint import Checkpoint, branches
from paramctl.errors import ParamctlError, shortened
from paramctl.ops._match_rows import Row, Side, Status
from paramctl.ops._match_ties import with_ties

_WIDEST = 500  # characters of an error of the model's own
_LOADING = "paramctl.formats.loading"  # torch tier
_PICKLED = frozenset(("torch-zip", "torch-legacy", "torch-tar"))  # what is no tensor is a key of the dict, too
_COPIED = frozenset((  # each into any of these
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
    "float8_e8m0fnu", "complex32", "complex64", "complex128", "int64", "int32", "int16", "int8", "uint64", "uint32",
    "uint16", "uint8", "bool",
))  # fmt: skip


# ----------------------------------------------------------------------------- what is there, and what is wanted


def given_of(checkpoint: Checkpoint) -> Side:
    """What the dict would hold that torch, or safetensors' `load_file`, makes of a checkpoint."""
    if checkpoint.live is not None:
        return wanted_of(checkpoint)
    params, others = dict(checkpoint.params), {}
    if checkpoint.knows_types:  # a whole module: its state dict has no plain attributes
        params = {name: param for name, param in params.items() if param.kind != "tensor"}
    elif checkpoint.format in _PICKLED and checkpoint.extras:
        above = set(branches(params))
        others = {key: value for key, value in checkpoint.extras.items() if key not in above or _is_plain(value)}
    aliases = frozenset(name for name, param in params.items() if param.declared)
    return Side(checkpoint, params, others, aliases)


def _is_plain(value: Any) -> bool:
    return not isinstance(value, (Mapping, list))


def wanted_of(checkpoint: Checkpoint) -> Side:
    """What `load_state_dict` would look for."""
    if checkpoint.live is None:
        return given_of(checkpoint)._replace(aliases=frozenset())
    expected = formats.torch_tier(_LOADING).expected(checkpoint)
    params = {name: checkpoint.params[name] for name in expected.names}
    extra_states = dict.fromkeys(expected.extra_states, "extra state")
    return Side(checkpoint, params, extra_states, frozenset(), expected.passed_over, expected.hooked)


# ----------------------------------------------------------------------------- what load_state_dict would say


def outcome(given: Side, wanted: Side, *, strict_dtype: bool) -> tuple[list[Row], tuple[str, ...]]:
    """A row for each name, and errors that are of no name."""
    rows = [_of_wanted(name, given, wanted, strict_dtype=strict_dtype) for name in wanted.params]
    rows += [_of_extra_state(name, given) for name in wanted.others]
    inside = tuple(f"{name}." for name in wanted.others)
    for name in dict.fromkeys((*given.params, *given.others)):
        is_inside = bool(inside) and name.startswith(inside) and name not in given.others
        if name not in wanted.params and name not in wanted.others and not is_inside:
            rows.append(_of_stranger(name, given, wanted))
    rows = with_ties(rows, given, wanted)
    return _asked(rows, given, wanted) if wanted.hooked else (rows, ())


def _of_wanted(name: str, given: Side, wanted: Side, *, strict_dtype: bool) -> Row:
    b, a = wanted.params[name], given.params.get(name)
    if a is None:
        if name in given.others:
            return Row(name, "dtype", None, b, None, f"no tensor in the file: {_described(given.others[name])}")
        return Row(name, "missing", None, b)
    if name in given.aliases:
        return Row(
            name, "missing", None, b, None, f"an alias, by the {a.declared}: the file holds it under its other name"
        )
    if a.shape != b.shape:
        if (a.shape, b.shape) == ((1,), ()):
            return Row(name, "ok", a, b, None, "one element, as before torch 0.4")
        return Row(name, "shape", a, b)
    if a.dtype == b.dtype:
        return Row(name, "ok", a, b)
    if not {a.dtype.name, b.dtype.name} <= _COPIED:
        return Row(name, "dtype", a, b, None, f"torch copies no {a.dtype.name} into {b.dtype.name}")
    if strict_dtype:
        return Row(name, "dtype", a, b)
    return Row(name, "cast", a, b, None, f"copied as {b.dtype.name}")


def _of_extra_state(name: str, given: Side) -> Row:
    is_there = name in given.others or name in given.params or any(key.startswith(f"{name}.") for key in given.params)
    if is_there or given.checkpoint.live is not None:
        return Row(name, "ok", None, None, None, "extra state")
    return Row(name, "missing", None, None, None, "extra state")


def _of_stranger(name: str, given: Side, wanted: Side) -> Row:
    a = given.params.get(name)
    if wanted.passed_over and name.startswith(wanted.passed_over):
        return Row(name, "ok", a, None, None, "passed over: the model's child there is None")
    return Row(name, "unexpected", a, None, None, "" if a else f"no tensor: {_described(given.others[name])}")


def _described(value: Any) -> str:
    if isinstance(value, Mapping) and isinstance(value.get("class"), str):
        return str(value["class"].rpartition(".")[2])
    return "extra state" if value == "extra state" else type(value).__name__


# ----------------------------------------------------------------------------- where the model has a say


def _asked(rows: list[Row], given: Side, wanted: Side) -> tuple[list[Row], tuple[str, ...]]:
    """With what the model's own `load_state_dict` says, where it has a say."""
    loading = formats.torch_tier(_LOADING)
    params = {name: param for name, param in given.params.items() if name not in given.aliases}
    params = {name: param for name, param in params.items() if not _is_extra_state(name, wanted)}
    others = [name for name in given.others if not _is_extra_state(name, wanted)]
    try:
        said = loading.load(wanted.checkpoint, params, others, _versions(given.checkpoint))
    except ParamctlError as error:
        return rows, (f"the model's own way to load could not be asked: {error.what}",)
    told: dict[str, Status] = dict.fromkeys(said.mismatched, "shape")
    told |= dict.fromkeys(said.unexpected, "unexpected")
    told |= {name: "missing" for name in said.missing if name not in wanted.others}
    made = [_corrected(row, told.get(row.name)) for row in rows]
    return made, tuple(shortened(error, _WIDEST) for error in said.errors)


def _is_extra_state(name: str, wanted: Side) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in wanted.others)  # a state of tensors is a branch


def _corrected(row: Row, said: Status | None) -> Row:
    if said == row.status or (said is None and row.status not in ("missing", "unexpected", "shape")):
        return row
    if said is None:
        return (
            row if row.detail == "extra state" else row._replace(status="ok", detail="the model's own code sees to it")
        )
    return row._replace(status=said, detail="by the model's own code")


def _versions(checkpoint: Checkpoint) -> dict[str, int]:
    """What a state dict's `_metadata` says; of a whole module, what torch would write now."""
    if checkpoint.knows_types:
        return dict.fromkeys(checkpoint.modules, 2)
    return {path: module.version for path, module in checkpoint.modules.items() if module.version is not None}
