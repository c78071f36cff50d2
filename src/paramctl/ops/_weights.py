"""Torch tier: tensors that are read from a file, for a model to be fed or filled with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paramctl import formats, modules, usercode, values
from paramctl.checkpoint import Checkpoint, Param, at
from paramctl.errors import FileError, nearest, shortened
from paramctl.inputs import FORMS
from paramctl.source import resolve

_FILES = frozenset((".npy", ".npz", ".pt", ".pth", ".bin", ".safetensors"))
_MANY = 3  # names in a message
_HINT = "--no-strict takes what fits; paramctl match says what would mend it"


def tensors(file: str) -> dict[str, Tensor]:
    """The tensors of a file, by their names.

    Raises:
        FileError: it cannot be read, holds none, or is a definition.
    """
    if not Path(file).expanduser().exists() and file != "-":
        raise FileError(file, "no such file", hint="" if Path(file).suffix in _FILES else FORMS)
    source = resolve(file)
    if source.kind == "definition":
        raise FileError(file, "a definition, where a file of tensors is wanted", hint="x.npy, x.pt or x.safetensors")
    found = {name: _tensor(param) for name, param in formats.read(source).params.items()}
    if not found:
        raise FileError(file, "no tensors in it")
    return found


def _tensor(param: Param) -> Tensor:
    return modules.tensor_on(param, bytearray(values.span_bytes(param)))


def load(module: nn.Module, file: str, *, strict: bool) -> list[str]:
    """Give a module the values of a checkpoint, as `load_state_dict` does; of a tie one name needs to be there.

    They are taken from where most of the module's names are: `model` of a training checkpoint.

    Returns:
        What is to be said of it.

    Raises:
        FileError: it does not fit: strictly, or not at all.
    """
    source = resolve(file)
    if source.kind == "definition":
        raise FileError(file, "a definition, where --weights wants a checkpoint")
    checkpoint = formats.read(source)
    own = module.state_dict()
    root = _root(checkpoint, own)
    params = dict((at(checkpoint, root) if root else checkpoint).params)
    there = {_identity(own[name]): name for name in params if name in own}
    for name, value in own.items():
        if name not in params and _identity(value) in there:
            params[name] = params[there[_identity(value)]]
    wrong = _misfits(own, params)
    fits = {name: param for name, param in params.items() if name in own and tuple(own[name].shape) == param.shape}
    if wrong and (strict or not fits):
        where = f" at {shortened(root)}" if root else ""
        raise FileError(file, f"it does not fit{where}: {'; '.join(wrong)}", hint=_HINT if fits else "")
    with torch.no_grad(), usercode.running(file):
        module.load_state_dict({name: _tensor(param) for name, param in fits.items()}, strict=False)
    notes = [f"{shortened(file)}: the weights at {shortened(root)}"] if root else []
    return [*notes, f"{shortened(file)}: {'; '.join(wrong)}"] if wrong else notes


def _identity(value: Any) -> Any:
    """The same for names of the very same elements, and for no others."""
    if not isinstance(value, Tensor) or not value.numel():
        return id(value)
    return (value.untyped_storage().data_ptr(), value.storage_offset(), tuple(value.shape), value.stride())


def _root(checkpoint: Checkpoint, own: Mapping[str, Any]) -> str:
    """The path below which most of a model's names are found; "" if it is none below one."""

    def found(path: str) -> int:
        prefix = f"{path}." if path else ""
        return sum(prefix + name in checkpoint.params for name in own)

    few = list(own)[:: max(len(own) // 4, 1)]
    paths = {path[: -len(name) - 1] for name in few for path in checkpoint.params if path.endswith(f".{name}")}
    best = max(sorted(paths), key=found, default="")
    return best if found(best) > found("") else ""


def _misfits(own: Mapping[str, Any], params: Mapping[str, Param]) -> list[str]:
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items() if isinstance(tensor, Tensor)}
    missing = [name for name in shapes if name not in params]
    more = [name for name in params if name not in own]
    more = [*(close := nearest(missing[0], more, most=1) if missing else []), *(n for n in more if n not in close)]
    other = [name for name, shape in shapes.items() if name in params and shape != params[name].shape]
    said = [f"{some(missing)} {_be(missing)} missing"] if missing else []
    said += [f"{some(more)} {_be(more)} not the model's"] if more else []
    if other:
        name, rest = other[0], f", and {len(other) - 1:,} more" if len(other) > 1 else ""
        said.append(f"{shortened(name, 60)} is {list(params[name].shape)}, the model's {list(shapes[name])}{rest}")
    return said


def _be(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(shortened(name, 60) for name in names[:_MANY])
    return f"{shown} and {len(names) - _MANY:,} more" if len(names) > _MANY else shown
