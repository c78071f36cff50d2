"""Torch tier: initializers that a user wrote, loaded from a file or a package and run.

What the user's code raises becomes an InitError with its file and line; what it prints goes to stderr.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import sys
import traceback
import typing
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paramctl.errors import InitError, nearest, shortened

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

_TENSOR_NAMES = frozenset({"tensor", "t", "w", "weight", "p", "param", "parameter", "x"})
_MODULE_NAMES = frozenset({"module", "m", "mod", "layer", "net", "model", "block"})


def load(
    where: str, name: str
) -> tuple[Literal["tensor", "module"], Callable[..., object], Sequence[inspect.Parameter]]:
    """What the function `name` in `where` initializes, the function made safe to call, and its arguments.

    Args:
        where: a file ending in .py, or a dotted module.
        name: a callable there; dots go into classes and instances.

    Raises:
        InitError: it is not there, it fails to load, or its signature does not say what it is of.
    """
    file = Path(where).expanduser() if where.endswith(".py") else None
    folder = str(file.resolve().parent) if file else str(Path.cwd())
    with _users(where, file, folder):
        module = _from_file(file) if file else importlib.import_module(where)
    function = _attribute(module, where, name)
    head = f"{shortened(where)}:{name}"
    with _users(where, file, folder):
        parameters = list(_signature(function).parameters.values())
    if not parameters:
        raise InitError(
            f"{head} takes nothing to initialize", hint="its first argument is the tensor or the module"
        )
    of = _of(parameters[0])
    if of is None:
        raise InitError(
            f"{head}: whether {parameters[0].name!r} is a tensor or a module is not plain",
            hint=f"annotate it: def {name}({parameters[0].name}: torch.Tensor), or torch.nn.Module",
        )

    @functools.wraps(function)
    def run(target: Tensor | nn.Module, **arguments: object) -> None:
        with _users(where, Path(module.__file__) if module.__file__ else None, folder):
            result = function(target, **arguments)
        if isinstance(target, Tensor):
            _copy(result, target, head)

    return of, run, parameters[1:]


def _from_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise InitError(f"{shortened(str(file))}: no such file")
    key = f"paramctl_custom_{file.stem}"
    spec = importlib.util.spec_from_file_location(key, file.resolve())
    if spec is None or spec.loader is None:
        raise InitError(f"{shortened(str(file))}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # dataclasses and pickles look their module up
    spec.loader.exec_module(module)
    return module


def _attribute(module: ModuleType, where: str, name: str) -> Callable[..., object]:
    found: Any = module
    for step in name.split("."):
        found = getattr(found, step, None)
    if callable(found):
        return typing.cast("Callable[..., object]", found)
    if found is not None:
        raise InitError(f"{shortened(where)}: {name!r} is no function")
    own = [key for key, value in vars(module).items() if inspect.isfunction(value)]
    close = nearest(name, own) or own[:5]
    raise InitError(
        f"{shortened(where)}: no function {name!r}", hint=f"it has {', '.join(close)}" if close else ""
    )


def _signature(function: Callable[..., object]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except NameError:  # an annotation under TYPE_CHECKING
        return inspect.signature(function)


def _of(first: inspect.Parameter) -> Literal["tensor", "module"] | None:
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
        raise InitError(
            f"{head} returned {type(result).__name__}, not a tensor", hint="change the tensor in place"
        )
    if result.shape != target.shape:
        shapes = f"{list(result.shape)}, the tensor's is {list(target.shape)}"
        raise InitError(f"{head} returned a tensor of the shape {shapes}")
    with torch.no_grad():
        target.copy_(result.clone())  # it may be another view of the target


@contextlib.contextmanager
def _users(where: str, file: Path | None, folder: str) -> Iterator[None]:
    """Run the user's code: stdout is data and not theirs to write, and their errors are theirs."""
    sys.path.insert(0, folder)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except InitError:
        raise
    except (Exception, SystemExit) as error:
        raise InitError(_blame(error, where, file)) from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _blame(error: BaseException, where: str, file: Path | None) -> str:
    """`FILE:LINE: TYPE: MESSAGE`, by the last line of the user's file that ran."""
    message = " ".join(str(error).split())
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if file and Path(frame.filename).resolve() == file.resolve()
    ]
    at = f"{where}:{lines[-1]}" if lines else where
    if isinstance(error, SyntaxError):
        message = error.msg
        if error.filename:
            own = file and Path(error.filename).resolve() == file.resolve()
            at = f"{where if own else error.filename}:{error.lineno}"
    return f"{shortened(at, 240)}: {type(error).__name__}" + (
        f": {shortened(message, 240)}" if message else ""
    )
