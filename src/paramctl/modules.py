"""Torch tier: live modules. Built from a definition, or put together again from what a pickle tells of one."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import nn

from paramctl import empty, usercode
from paramctl.checkpoint import Checkpoint, Param
from paramctl.errors import ParamctlError, nearest, shortened
from paramctl.source import Source

Device = Literal["meta", "mixed", "cpu"]
_PLACES: dict[Device, Callable[[], AbstractContextManager[Any]]] = {
    "meta": lambda: torch.device("meta"),
    "mixed": empty.parameters_on_meta,
    "cpu": lambda: torch.device("cpu"),
}
DEFAULT_NAMES = ("net", "model", "build")
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def build(source: Source, *, device: Device, seed: int | None = None) -> nn.Module:
    """The module that a definition makes.

    Args:
        source: a definition.
        device: "meta" for shapes without values, "cpu", or "mixed": parameters on the meta device as soon as a module
            has them, and all else on the CPU, for code that looks at values while it builds.
        seed: for `torch.manual_seed`, before the definition's code runs.

    Raises:
        ParamctlError: the code raised, or what it made is no module.
    """
    if seed is not None:
        reseed(seed)
    with _PLACES[device](), empty.importing_on_cpu():
        loaded = usercode.load(source.path) if source.path else usercode.imported(source.module)
        made = _named(loaded, source)
        if isinstance(made, nn.Module):
            if source.arguments:
                raise ParamctlError(f"{shortened(source.name)}: it is a module already, and takes no --arg")
            return made
        if not callable(made):
            raise ParamctlError(f"{shortened(source.name)}: {type(made).__name__} is no module and makes none")
        hint = _of_arguments(made, source.arguments)
        with usercode.running(source.name, folder=source.path.parent if source.path else None, hint=hint):
            made = made(**source.arguments)
    if not isinstance(made, nn.Module):
        raise ParamctlError(f"{shortened(source.name)}: it made a {type(made).__name__}, and not a torch.nn.Module")
    return made


def reseed(seed: int) -> None:
    """`torch.manual_seed`.

    Raises:
        ParamctlError: not of 64 bits.
    """
    if not -(1 << 63) <= seed < 1 << 64:
        raise ParamctlError(f"--seed {shortened(str(seed), 40)}: torch's seeds have 64 bits")
    torch.manual_seed(seed)


def _of_arguments(function: Any, arguments: Mapping[str, Any]) -> str:
    """What is to be done about arguments that a callable does not take, or that it lacks; "" if they are right."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind(**arguments)
    except TypeError:
        names = [name for name, parameter in signature.parameters.items() if parameter.kind in _BY_NAME]
    else:
        return ""
    unknown = next((name for name in arguments if name not in names), None)
    if unknown is None or any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return "give its arguments as --arg name=value"
    close = nearest(unknown, names, most=1)
    return f"--arg {close[0]}=…?" if close else f"it takes {', '.join(names) or 'no arguments'}"


def _named(loaded: Any, source: Source) -> Any:
    if source.attribute:
        return usercode.attribute(loaded, source.attribute, source.name)
    for name in DEFAULT_NAMES:
        if hasattr(loaded, name):
            return getattr(loaded, name)
    classes = [n for n, v in vars(loaded).items() if isinstance(v, type) and issubclass(v, nn.Module)]
    own = [name for name in classes if getattr(loaded, name).__module__ == loaded.__name__]
    raise ParamctlError(
        f"{shortened(source.name)}: it has no {', '.join(DEFAULT_NAMES[:-1])} or {DEFAULT_NAMES[-1]}",
        hint=f"name what to build: {source.name}:{(own or ['NAME'])[0]}",
    )


def tensor_on(param: Param, span: Any) -> torch.Tensor:
    """The elements of `param` as a tensor that shares the writable bytes `span`, those of `param.span`.

    Raises:
        ParamctlError: torch has no such dtype, or the bytes are in the other byte order.
    """
    dtype = getattr(torch, param.dtype.name, None)
    if not isinstance(dtype, torch.dtype) or param.dtype.kind == "quantized":
        raise ParamctlError(f"{shortened(param.name)}: torch makes no {param.dtype.name} of bytes")
    if param.storage.byteorder == "big" and param.dtype.block_nbytes > 1:
        raise ParamctlError(f"{shortened(param.name)}: its bytes are big-endian; --scheme works on little-endian files")
    if not param.numel:
        return torch.empty(param.shape, dtype=dtype)
    flat = torch.frombuffer(span, dtype=dtype)
    first = param.storage_offset - param.span[0] // param.dtype.block_nbytes
    return flat.as_strided(param.shape, param.stride, first)


def shell(checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """Modules of the classes that a pickle names, around `tensors`, without running a byte of the file's.

    torch's own layers are made of their class, with their hyperparameters; any other class is a plain
    `torch.nn.Module` under its name. So `type(m) is nn.Linear` holds, and `m.weight` is there. Tied names are to
    have one tensor, the same object.

    Raises:
        ParamctlError: the checkpoint knows no classes.
    """
    if not checkpoint.knows_types:
        raise ParamctlError(
            f"{shortened(checkpoint.source.name)}: a state dict knows no classes, and this works on modules",
            hint="give the definition of its model with --model: --model net.py:Net",
        )
    typed = {path: module for path, module in checkpoint.modules.items() if module.type}
    own: dict[str, dict[str, str]] = {path: {} for path in typed}
    children: dict[str, dict[str, str]] = {path: {} for path in typed}
    roots = []
    for name in tensors:
        path, _, last = name.rpartition(".")
        if path in typed:
            own[path][last] = name
    for path in typed:
        parent, _, last = path.rpartition(".")
        if path and parent in typed:
            children[parent][last] = path
        else:
            roots.append(path)
    made: dict[str, nn.Module] = {}
    alike: dict[Any, nn.Module] = {}  # a module under two paths is one: its class, tensors and children are the same
    for path in sorted(typed, key=lambda path: (path != "", path.count(".")), reverse=True):
        below = {last: made[child] for last, child in children[path].items()}
        key = (
            typed[path].qualified,
            *((last, id(tensors[name])) for last, name in own[path].items()),
            *((last, id(child)) for last, child in below.items()),
        )
        if key in alike and (own[path] or below):
            made[path] = alike[key]
            continue
        made[path] = alike[key] = _instance(typed[path].qualified, typed[path].type, typed[path].hyperparameters)
        for last, name in own[path].items():
            _put(made[path], last, tensors[name], checkpoint.params[name])
        made[path]._modules.update(below)  # noqa: SLF001 - add_module refuses names that a file may hold
    if roots == [""]:
        return made[""]
    top = nn.Module()
    top._modules.update({path: made[path] for path in roots})  # noqa: SLF001
    return top


def _instance(qualified: str, short: str, hyperparameters: Mapping[str, Any]) -> nn.Module:
    cls: Any = nn.Module
    if qualified.startswith("torch.nn."):
        found = getattr(nn, short, None)
        if isinstance(found, type) and issubclass(found, nn.Module) and f"{found.__module__}.{short}" == qualified:
            cls = found
    if cls is nn.Module:
        cls = type(short, (nn.Module,), {})
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    for key, value in hyperparameters.items():
        with contextlib.suppress(AttributeError, TypeError):
            object.__setattr__(module, key, tuple(value) if isinstance(value, list) else value)
    if isinstance(module, nn.MultiheadAttention):  # its reset asks for this, which a pickle keeps as a private name
        sizes = {hyperparameters.get(key) for key in ("embed_dim", "kdim", "vdim")}
        module._qkv_same_embed_dim = len(sizes) == 1  # noqa: SLF001
    return module  # type: ignore[no-any-return]


def _put(module: nn.Module, name: str, tensor: torch.Tensor, param: Param) -> None:
    if param.kind == "parameter":
        made = nn.Parameter(tensor, requires_grad=False)
        module._parameters[name] = made  # noqa: SLF001
    elif param.kind == "buffer":
        module._buffers[name] = tensor  # noqa: SLF001
    else:
        object.__setattr__(module, name, tensor)
