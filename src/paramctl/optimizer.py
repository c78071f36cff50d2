"""Header tier: which parameter each tensor of an optimizer's state is of.

An optimizer's `state_dict()` numbers its parameters, in the order of its groups. Their names are known where the
groups keep `param_names` (torch 2.6, for optimizers that were given names), where the state is by name (as
`torch.distributed.checkpoint.state_dict` has it), and where a state dict beside it has just as many parameters of
just these shapes. Where none of this holds, nothing is guessed.

Source: torch/optim/optimizer.py (`Optimizer.state_dict`); torch/nn/modules/batchnorm.py for the buffers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from paramctl.checkpoint import Checkpoint, Param

_BUFFERS = frozenset(("running_mean", "running_var", "num_batches_tracked"))  # where kinds are not known
_MOST_STEPS = 100
_MOST_OPTIMIZERS = 64  # each is held against all that is beside it
Shape = tuple[int, ...]


class _Group(NamedTuple):
    """One of `param_groups`."""

    ids: tuple[Any, ...]
    names: tuple[str, ...]  # of the same length, or empty


class _Optimizer(NamedTuple):
    path: str  # "optimizer", "optimizer_states.0"; empty at the root
    groups: tuple[_Group, ...]
    state: tuple[Param, ...]

    def split(self, name: str) -> list[str]:
        """The steps of a state tensor's name below `state`."""
        return name[len(_below(self.path)) + len("state.") :].split(".", _MOST_STEPS)

    def shape_of(self, tensors: Iterable[Param]) -> Shape | None:
        """The shape of the parameter that tensors are of; None where they do not tell.

        Raises:
            ValueError: they are of several shapes, as those of a factored optimizer.
        """
        shapes = {param.shape for param in tensors if not param.name.endswith(".step")}
        shapes = shapes - {()} or shapes
        if len(shapes) > 1:
            raise ValueError
        return next(iter(shapes), None)


def optimizer_names(checkpoint: Checkpoint) -> dict[str, str]:
    """For each tensor of an optimizer's state, the name of its parameter, where the checkpoint tells.

    The name is that of a tensor of the checkpoint; and where the optimizer keeps names and no model is beside it,
    the name that it keeps.
    """
    optimizers = _optimizers(checkpoint)
    states = {param.name for optimizer in optimizers for param in optimizer.state}
    others = [param for param in checkpoint.params.values() if param.name not in states]
    found: dict[str, str] = {}
    for optimizer in optimizers:
        found |= _mapping(optimizer, others)
    return found


def _below(path: str) -> str:
    return f"{path}." if path else ""


# ----------------------------------------------------------------------------- what there is


def _optimizers(checkpoint: Checkpoint) -> list[_Optimizer]:
    groups = dict(_groups(checkpoint.extras))
    states: dict[str, list[Param]] = {}
    for param in checkpoint.params.values():
        at = 0 if param.name.startswith("state.") else param.name.find(".state.")
        if at >= 0:
            states.setdefault(param.name[:at], []).append(param)
    found = [_Optimizer(path, groups.get(path, ()), tuple(state)) for path, state in states.items()]
    found.sort(key=lambda optimizer: not optimizer.groups)  # modules too may be called `state`
    return found[:_MOST_OPTIMIZERS]


def _groups(extras: Mapping[str, Any]) -> Iterator[tuple[str, tuple[_Group, ...]]]:
    """Every path that has `param_groups` below it."""
    waiting: list[tuple[str, Any]] = [("", extras)]
    while waiting:
        path, value = waiting.pop()
        said = value.get("param_groups") if isinstance(value, Mapping) else None
        if isinstance(said, list) and all(isinstance(group, Mapping) for group in said):
            yield path, tuple(_group(group) for group in said)
        elif path.count(".") < _MOST_STEPS and isinstance(value, (Mapping, list)):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            inner = ((str(key), below) for key, below in items if isinstance(below, (Mapping, list)))
            waiting.extend((f"{_below(path)}{key}", below) for key, below in inner)


def _group(group: Mapping[str, Any]) -> _Group:
    ids, names = group.get("params"), group.get("param_names")
    known = tuple(i for i in ids if type(i) in (int, str)) if isinstance(ids, list) else ()
    if not isinstance(names, list) or len(names) != len(known) or not all(type(name) is str for name in names):
        return _Group(known, ())
    return _Group(known, tuple(names))


def _beside(path: str, others: Sequence[Param]) -> Iterator[list[tuple[str, list[Param]]]]:
    """At each level above the optimizer, the nearest first: each state dict there is, and all of them as one."""
    steps = path.split(".") if path else []
    for depth in range(len(steps) - 1, -1, -1):
        prefix = _below(".".join(steps[:depth]))
        here = [param for param in others if param.name.startswith(prefix)]
        parts: dict[str, list[Param]] = {}
        for param in here:
            step, dot, _ = param.name[len(prefix) :].partition(".")
            parts.setdefault(prefix + step + dot, []).append(param)
        dicts = [(key, params) for key, params in parts.items() if key.endswith(".")]
        yield [*dicts, *([(prefix, here)] if len(parts) > 1 or not dicts else [])]


def _parameters(params: Sequence[Param]) -> list[Param]:
    """Those of a state dict that an optimizer would be given: no buffers, and a tied one once."""
    if any(param.kind == "parameter" for param in params):
        params = [param for param in params if param.kind == "parameter"]
    else:
        params = [
            param
            for param in params
            if param.kind != "buffer"
            and param.dtype.kind in ("float", "complex")
            and param.name.rpartition(".")[2] not in _BUFFERS
        ]
    seen: dict[Any, Param] = {}
    for param in params:
        seen.setdefault((param.storage.key, param.storage_offset, param.shape, param.stride), param)
    return list(seen.values())


# ----------------------------------------------------------------------------- which is whose


def _mapping(optimizer: _Optimizer, others: Sequence[Param]) -> dict[str, str]:
    kept = {str(i): name for group in optimizer.groups for i, name in zip(group.ids, group.names, strict=False)}
    by_number = bool(optimizer.groups) and all(type(i) is int for group in optimizer.groups for i in group.ids)
    for level in _beside(optimizer.path, others):
        fits: list[dict[str, str]] = []
        for prefix, params in level:
            if kept:
                fit = _by_kept_names(optimizer, kept, prefix, params)
            elif by_number:
                fit = _by_order(optimizer, _parameters(params))
            else:
                fit = _by_name(optimizer, prefix, params)
            if fit and fit not in fits:
                fits.append(fit)
        if fits:
            return fits[0] if len(fits) == 1 else {}
    if not kept:
        return {}
    owners = ((param.name, kept.get(optimizer.split(param.name)[0])) for param in optimizer.state)
    return {name: owner for name, owner in owners if owner is not None}


def _by_kept_names(
    optimizer: _Optimizer, kept: Mapping[str, str], prefix: str, params: Sequence[Param]
) -> dict[str, str]:
    if len(params) < len(kept):
        return {}
    shapes = {param.name: param.shape for param in params}
    owned = {i: prefix + name for i, name in kept.items()}
    return _agreed(optimizer, owned, shapes) if all(name in shapes for name in owned.values()) else {}


def _by_order(optimizer: _Optimizer, params: Sequence[Param]) -> dict[str, str]:
    ids = [str(i) for group in optimizer.groups for i in group.ids]
    if len(ids) != len(params) or len(set(ids)) != len(ids):
        return {}
    shapes = {param.name: param.shape for param in params}
    if len(optimizer.groups) == 1:
        return _agreed(optimizer, dict(zip(ids, shapes, strict=True)), shapes)
    return _agreed(optimizer, _by_shape(optimizer, params), shapes)


def _by_shape(optimizer: _Optimizer, params: Sequence[Param]) -> dict[str, str]:
    """Where groups have no shape in common: within a shape, the order is that of the parameters."""
    tensors = _by_id(optimizer)
    of_shape: dict[Shape, list[str]] = {}
    groups_of: dict[Shape, set[int]] = {}
    for place, group in enumerate(optimizer.groups):
        for i in map(str, group.ids):
            try:
                shape = optimizer.shape_of(tensors.get(i, ()))
            except ValueError:
                return {}
            if shape is None:
                return {}
            of_shape.setdefault(shape, []).append(i)
            groups_of.setdefault(shape, set()).add(place)
    names: dict[Shape, list[str]] = {}
    for param in params:
        names.setdefault(param.shape, []).append(param.name)
    if any(len(places) > 1 for places in groups_of.values()):
        return {}
    if any(len(names.get(shape, ())) != len(ids) for shape, ids in of_shape.items()):
        return {}
    return {i: name for shape, ids in of_shape.items() for i, name in zip(ids, names[shape], strict=True)}


def _by_id(optimizer: _Optimizer) -> dict[str, list[Param]]:
    tensors: dict[str, list[Param]] = {}
    for param in optimizer.state:
        tensors.setdefault(optimizer.split(param.name)[0], []).append(param)
    return tensors


def _agreed(optimizer: _Optimizer, owned: Mapping[str, str], shapes: Mapping[str, Shape]) -> dict[str, str]:
    """The names of all state tensors, if the shape of each is its parameter's."""
    found: dict[str, str] = {}
    for i, tensors in _by_id(optimizer).items():
        owner = owned.get(i)
        try:
            shape = optimizer.shape_of(tensors)
        except ValueError:
            return {}
        if owner is None or (shape is not None and shape != shapes[owner]):
            return {}
        found |= dict.fromkeys((param.name for param in tensors), owner)
    return found


def _by_name(optimizer: _Optimizer, prefix: str, params: Sequence[Param]) -> dict[str, str]:
    """State that is by name: `state.layers.0.weight.exp_avg`."""
    shapes = {param.name: param.shape for param in params}
    found: dict[str, str] = {}
    for param in optimizer.state:
        steps = optimizer.split(param.name)
        cuts = (prefix + ".".join(steps[:end]) for end in range(len(steps) - 1, 0, -1))
        owner = next((name for name in cuts if name in shapes), None)
        if owner is None or param.shape not in (shapes[owner], ()):
            return {}
        found[param.name] = owner
    return found
