"""Torch tier: initializers that a user wrote: what they are of, and how they are called."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from paramctl import usercode
from paramctl.errors import InitError, shortened

_TENSOR_NAMES = frozenset({"tensor", "t", "w", "weight", "p", "param", "parameter", "x"})
_MODULE_NAMES = frozenset({"module", "m", "mod", "layer", "net", "model", "block"})

Of = Literal["tensor", "module"]


def load(where: str, name: str) -> tuple[Of, Callable[..., object], Sequence[inspect.Parameter]]:
    """What the function `name` in `where` initializes, the function made safe to call, and its arguments.

    Args:
        where: a file ending in .py, or a dotted module.
        name: a callable there; dots go into classes and instances.

    Raises:
        InitError: it is not there, it fails to load, or its signature does not say what it is of.
    """
    file = Path(where).expanduser() if where.endswith(".py") else None
    module = usercode.load(file, error=InitError) if file else usercode.imported(where, error=InitError)
    function = usercode.attribute(module, name, where, error=InitError)
    if not callable(function):
        raise InitError(f"{shortened(where)}: {shortened(name)} is no function")
    head = f"{shortened(where)}:{name}"
    running = functools.partial(usercode.running, where, folder=file.parent if file else None, error=InitError)
    with running():
        parameters = list(_signature(function).parameters.values())
    if not parameters:
        raise InitError(f"{head} takes nothing to initialize", hint="its first argument is the tensor or the module")
    of = _of(parameters[0])
    if of is None:
        raise InitError(
            f"{head}: whether {parameters[0].name!r} is a tensor or a module is not plain",
            hint=f"annotate it: def {name}({parameters[0].name}: torch.Tensor), or torch.nn.Module",
        )

    @functools.wraps(function)
    def run(target: Tensor | nn.Module, **arguments: object) -> None:
        with running():
            result = function(target, **arguments)
        if isinstance(target, Tensor):
            _copy(result, target, head)

    return of, run, parameters[1:]


def _signature(function: Callable[..., object]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except NameError:  # an annotation under TYPE_CHECKING
        return inspect.signature(function)


def _of(first: inspect.Parameter) -> Of | None:
    """By the annotation, else by the name."""
    noted = first.annotation
    for kind in (noted, *typing.get_args(noted)):
        if isinstance(kind, type) and issubclass(kind, Tensor | nn.Module):
            return "tensor" if issubclass(kind, Tensor) else "module"
        if isinstance(kind, str) and kind.rpartition(".")[2] in {"Tensor", "Parameter", "Module"}:
            return "module" if kind.endswith("Module") else "tensor"
    if first.name in _TENSOR_NAMES:
        return "tensor"
    return "module" if first.name in _MODULE_NAMES else None


def _copy(result: object, target: Tensor, head: str) -> None:
    """A custom function may return its values instead of writing them."""
    if result is None or result is target:
        return
    if not isinstance(result, Tensor):
        raise InitError(f"{head} returned {type(result).__name__}, not a tensor", hint="change the tensor in place")
    if result.shape != target.shape:
        shapes = f"{list(result.shape)}, the tensor's is {list(target.shape)}"
        raise InitError(f"{head} returned a tensor of the shape {shapes}")
    with torch.no_grad():
        target.copy_(result.clone())  # it may be another view of the target
