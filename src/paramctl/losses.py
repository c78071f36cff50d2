"""Torch tier: from what a model returns to the one number that a backward pass starts from."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional

from paramctl import calls, usercode
from paramctl.errors import ParamctlError, nearest, shortened
from paramctl.inputs import Feed, draw, sizes_text

_CUSTOM = re.compile(r"(?P<where>.+?\.py|[A-Za-z_][\w.]*):(?P<name>[A-Za-z_][\w.]*)")
_REFUSALS = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)  # torch's


class Loss(NamedTuple):
    """`function` takes what forward returned, and a target if `takes_target`.

    `wants` is what target to draw, where none is given: of the output and the first input.
    """

    name: str
    function: Callable[..., Any]
    takes_target: bool = False
    wants: Callable[[Tensor, Any], Feed] | None = None

    def target_for(self, output: Any, first_input: Any) -> Tensor | None:
        """A target drawn for an output: of its shape from N(0, 1), or a class for each position."""
        if self.wants is None:
            return None
        tensor = tensor_of(output)
        return draw(self.wants(tensor, first_input), "--target", tensor.dtype).to(tensor.device)

    def __call__(self, output: Any, target: Tensor | None) -> Tensor:
        """The loss of an output.

        Raises:
            ParamctlError: the two do not fit, or what comes out is not one number.
        """
        given = (output, target) if self.takes_target else (output,)
        try:
            loss = self.function(*given)
        except _REFUSALS as error:
            what = f"the output is {_told(output)}" + (f", the target {_told(target)}" if target is not None else "")
            raise ParamctlError(
                f"--loss {shortened(self.name)}: {calls.first_line(error).rstrip('.')}", hint=what
            ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            what = f"{sizes_text(loss)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ParamctlError(f"--loss {shortened(self.name)}: it is {what}, and not one number")
        return loss


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{sizes_text(value)} {str(value.dtype).removeprefix('torch.')}"
    found = next(_tensors(value), None)
    return _told(found) if found is not None else type(value).__name__


# ----------------------------------------------------------------------------- what forward returns


def tensor_of(output: Any) -> Tensor:
    """The first tensor of floats in what forward returned.

    Raises:
        ParamctlError: there is none.
    """
    found = next((tensor for tensor in _tensors(output) if tensor.is_floating_point() or tensor.is_complex()), None)
    if found is None:
        raise ParamctlError(
            f"forward returned {_kind(output)}, and no tensor of floats",
            hint="--loss file.py:function makes a loss of whatever it returns",
        )
    return found


def _kind(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of {str(output.dtype).removeprefix('torch.')}"
    return "nothing" if output is None else f"a {shortened(type(output).__name__, 60)}"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


# ----------------------------------------------------------------------------- by name


def _mse(output: Any, target: Tensor) -> Tensor:
    tensor = tensor_of(output)
    if tensor.shape != target.shape:
        raise ValueError("output and target are not of one shape")
    return functional.mse_loss(tensor, target)


def _cross_entropy(output: Any, target: Tensor) -> Tensor:
    """As torch has it, with classes along dimension 1; or along the last, if the target is of the other dimensions."""
    tensor = tensor_of(output)
    if tensor.dim() > 2 and target.shape == tensor.shape[:-1] != (tensor.shape[0], *tensor.shape[2:]):
        tensor, target = tensor.flatten(0, -2), target.flatten()
    return functional.cross_entropy(tensor, target)


def _classes(output: Tensor, first_input: Any) -> Feed:
    """A class for each token where tokens went in, else for each position beside dimension 1."""
    if output.dim() == 0:
        raise ParamctlError("--loss cross_entropy: the output is one number, and has no classes")
    tokens = isinstance(first_input, Tensor) and first_input.shape == output.shape[:-1]
    at_end = tokens or output.dim() == 1
    shape = output.shape[:-1] if at_end else (output.shape[0], *output.shape[2:])
    return Feed("drawn", kind="int", shape=tuple(shape), low=0, high=output.shape[-1 if at_end else 1] - 1)


LOSSES: dict[str, Loss] = {
    "sum": Loss("sum", lambda output: tensor_of(output).sum()),
    "mean": Loss("mean", lambda output: tensor_of(output).mean()),
    "mse": Loss("mse", _mse, True, lambda output, _: Feed("drawn", shape=tuple(output.shape))),
    "cross_entropy": Loss("cross_entropy", _cross_entropy, True, _classes),
}
_FORMS = f"{', '.join(LOSSES)}, or file.py:function"


def parse(text: str, *, has_target: bool) -> Loss:
    """The loss that `text` names: one of `LOSSES`, or a function of the output, or of the output and the target.

    Raises:
        ParamctlError: there is none of that name, or it does not go with a target, or without one.
    """
    match = _CUSTOM.fullmatch(text)
    loss = LOSSES.get(text) or (_custom(match["where"], match["name"], has_target=has_target) if match else None)
    if loss is None:
        close = nearest(text, list(LOSSES))
        raise ParamctlError(f"--loss {shortened(text)}: no such loss", hint=f"{close[0]}?" if close else _FORMS)
    if has_target and not loss.takes_target:
        raise ParamctlError(f"--loss {shortened(text)} takes no target", hint="mse and cross_entropy do")
    if loss.takes_target and not has_target and loss.wants is None:
        raise ParamctlError(f"--loss {shortened(text)} takes a target", hint="give one with --target")
    return loss


def _custom(where: str, name: str, *, has_target: bool) -> Loss:
    file = Path(where).expanduser() if where.endswith(".py") else None
    module = usercode.load(file) if file else usercode.imported(where)
    function = usercode.attribute(module, name, where)
    head = f"{where}:{name}"
    takes = [count for count in (1, 2) if _takes(function, count)]
    if not takes:
        raise ParamctlError(f"--loss {shortened(head)}: no function of an output, or of an output and a target")

    def run(*given: Any) -> Any:
        with usercode.running(where, folder=file.parent if file else None):
            return function(*given)

    return Loss(head, run, takes_target=max(takes) == 2 and (has_target or min(takes) == 2))


def _takes(function: Any, count: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:  # no function, or not of so many
        return False
    except ValueError:  # built in, and without a signature
        return count == 2
    return True
