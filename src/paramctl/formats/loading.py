"""Torch tier: what a built module wants of a state dict, and what its own `load_state_dict` says to one."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from paramctl import usercode
from paramctl.checkpoint import Checkpoint, Param


class Expected(NamedTuple):
    """What `load_state_dict` looks for, in its order.

    `extra_states` are names of what is no tensor; what begins with one of `passed_over` is not looked at, for a child
    that is None stands there; `hooked` names modules that have a say of their own in how they are loaded.
    """

    names: tuple[str, ...]
    extra_states: tuple[str, ...]
    passed_over: tuple[str, ...]
    hooked: tuple[str, ...]


def expected(checkpoint: Checkpoint) -> Expected:
    """What the built module wants of a state dict.

    Source: torch/nn/modules/module.py, `_load_from_state_dict`.
    """
    names: list[str] = []
    extra: list[str] = []
    passed: list[str] = []
    hooked: list[str] = []
    for path, child in checkpoint.live.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        left_out = child._non_persistent_buffers_set  # noqa: SLF001
        own = [*child._parameters.items(), *child._buffers.items()]  # noqa: SLF001
        names += [prefix + name for name, tensor in own if tensor is not None and name not in left_out]
        passed += [f"{prefix}{name}." for name, inner in child._modules.items() if inner is None]  # noqa: SLF001
        if type(child).set_extra_state is not nn.Module.set_extra_state:
            extra.append(f"{prefix}_extra_state")
        if _has_a_say(child):
            hooked.append(path)
    return Expected(tuple(names), tuple(extra), tuple(passed), tuple(hooked))


def _has_a_say(module: nn.Module) -> bool:
    own = type(module)
    return bool(
        module._load_state_dict_pre_hooks  # noqa: SLF001
        or module._load_state_dict_post_hooks  # noqa: SLF001
        or own._load_from_state_dict is not nn.Module._load_from_state_dict  # noqa: SLF001
        or own.load_state_dict is not nn.Module.load_state_dict
    )


class Loading(NamedTuple):
    """What `load_state_dict(strict=True)` said: names, and errors that are of no name or of no size."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    errors: tuple[str, ...]


def load(
    checkpoint: Checkpoint, given: Mapping[str, Param], extras: Iterable[str], versions: Mapping[str, int]
) -> Loading:
    """What the built module's own `load_state_dict` says to tensors of such shapes and dtypes, all on the meta device.

    Args:
        checkpoint: of a definition; its module is on the meta device afterwards.
        given: the tensors.
        extras: names of what is no tensor.
        versions: of each module's way to save itself, by its path.

    Raises:
        ParamctlError: its code raised something else.
    """
    module = checkpoint.live.to("meta")
    state: Any = OrderedDict((name, _meta(param)) for name, param in given.items())
    state.update(dict.fromkeys(extras))
    if versions:
        state._metadata = OrderedDict((path, {"version": version}) for path, version in versions.items())  # noqa: SLF001
    names: list[Any] = []
    said = ""
    hook = module.register_load_state_dict_post_hook(lambda _, keys: names.append(keys))
    try:
        with usercode.running(checkpoint.source.name), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                module.load_state_dict(state, strict=False)
            except RuntimeError as error:
                said = str(error)
    finally:
        hook.remove()
    lines = [line for line in said.split("\n\t")[1:] if line]
    sizes = (
        [name for name in given if any(line.startswith(f"size mismatch for {name}: ") for line in lines)]
        if lines
        else []
    )
    others = [line for line in lines if not line.startswith("size mismatch for ")]
    if said and not lines:
        others = [said]
    missing, unexpected = names[-1] if names else ((), ())
    return Loading(tuple(missing), tuple(unexpected), tuple(sizes), tuple(others))


def _meta(param: Param) -> torch.Tensor:
    dtype = getattr(torch, param.dtype.name, None)
    usable = isinstance(dtype, torch.dtype) and param.dtype.kind != "quantized"
    return torch.empty(param.shape, dtype=dtype if usable else torch.float32, device="meta")
