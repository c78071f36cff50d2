"""Torch tier: one forward pass of a user's model, watched from outside, and what went wrong in it.

Hooks on every module tell which call is running. They change nothing: the graph is the one that the model makes.
"""

from __future__ import annotations

import inspect
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from paramctl import usercode
from paramctl.errors import ParamctlError, shortened
from paramctl.inputs import Layer, sizes_text, taken

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # of one value a channel they make no statistics
_PLACES = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_HINT = "give --input once for each, in that order, or by name as --input {name}=SHAPE"


class Given(NamedTuple):
    """What forward is called with."""

    args: tuple[Tensor, ...] = ()
    kwargs: Mapping[str, Tensor] = MappingProxyType({})

    @property
    def first(self) -> Tensor | None:
        return next(iter((*self.args, *self.kwargs.values())), None)


@dataclass(slots=True)
class Call:
    """One call of a module. `paths`: where it may have been called, one where that is certain."""

    module: nn.Module
    paths: tuple[str, ...]
    number: int  # of this module's calls, from 1
    start: int  # the number that autograd gives its next node
    end: int | None = None
    seen: tuple[Tensor, ...] = ()  # the tensors that it got
    calls: dict[int, int] = field(default_factory=dict)  # how often it has called each module

    def holds(self, node: int) -> bool:
        return self.start <= node and (self.end is None or node < self.end)


class Trace:
    """The calls of the modules of `root`, while the block is open."""

    def __init__(self, root: nn.Module) -> None:
        self.calls: list[Call] = []
        self._open: list[Call] = []
        self._counts: dict[int, int] = {}
        self._paths: dict[int, list[str]] = {}
        self._handles: list[Any] = []
        self._root = root
        for path, module in root.named_modules(remove_duplicate=False):
            self._paths.setdefault(id(module), []).append(path)

    def __enter__(self) -> Self:
        for module in self._root.modules():
            self._handles.append(module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._leave))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def begin(self) -> None:
        """Forget the calls of an earlier pass."""
        self.calls.clear()
        self._open.clear()
        self._counts.clear()

    def failed(self) -> Call | None:
        """The innermost call that has not ended."""
        return self._open[-1] if self._open else None

    def times(self, module: nn.Module) -> int:
        """How often a module was called."""
        return self._counts.get(id(module), 0)

    def of(self, node: int) -> Call | None:
        """The innermost call that made autograd's node of that number; None if it was made outside of all."""
        begun = bisect_right(self.calls, node, key=lambda call: call.start)
        return next((call for call in reversed(self.calls[:begun]) if call.holds(node)), None)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        number = self._counts[id(module)] = self._counts.get(id(module), 0) + 1
        seen = tuple(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        call = Call(module, self._located(module), number, _next_node(), seen=seen)
        self.calls.append(call)
        self._open.append(call)

    def _leave(self, module: nn.Module, *_: Any) -> None:
        end = _next_node()
        while self._open:
            call = self._open.pop()
            call.end, call.seen = end, ()
            if call.module is module:
                return

    def _located(self, module: nn.Module) -> tuple[str, ...]:
        """Its path, if the call that runs says which of several; a Sequential calls its children in order."""
        paths = self._paths[id(module)]
        if not self._open:
            return tuple(paths)
        caller = self._open[-1]
        times = caller.calls[id(module)] = caller.calls.get(id(module), 0) + 1
        below = [path for path in paths if any(_is_below(path, above) for above in caller.paths)] or paths
        if type(caller.module).forward is nn.Sequential.forward and len(caller.paths) == 1:
            children = [path for path in below if path.rpartition(".")[0] == caller.paths[0]] or below
            return (children[(times - 1) % len(children)],)
        return tuple(below)


def _next_node() -> int:
    """The number that autograd will give the next node of this thread: AOTAutograd, too, tells nodes by it."""
    number: int = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined] # noqa: SLF001
    return number


def _is_below(path: str, above: str) -> bool:
    return not above or path.startswith(above + ".")


# ----------------------------------------------------------------------------- the call


class Definition(NamedTuple):
    """A model that can be run. `name` and `folder`: of the definition that made it.

    `guess` says what input was chosen for it, if none was given.
    """

    module: nn.Module
    name: str
    folder: Path | None = None
    guess: str = ""


def run(model: Definition, given: Given, trace: Trace) -> Any:
    """What forward returns.

    Raises:
        ParamctlError: it raised; names the user's own line, the module in which it was, and what to put in.
    """
    trace.begin()

    def within() -> str:
        call = trace.failed()
        return f"in {_layer(call).said}: " if call is not None and call.module is not model.module else ""

    def hint() -> str:
        return f"{model.guess}; --input names another" if model.guess else _hint(trace, given)

    with usercode.running(model.name, folder=model.folder, hint=hint, within=within):
        return model.module(*given.args, **given.kwargs)


def _layer(call: Call) -> Layer:
    return Layer(call.paths[0], call.module)


def _hint(trace: Trace, given: Given) -> str:
    """What to put in instead, where a layer that got an input says so."""
    call = trace.failed()
    if call is None:
        return ""
    got = next((tensor for tensor in call.seen if tensor.is_floating_point()), next(iter(call.seen), None))
    if got is None:
        return ""
    if isinstance(call.module, _NORMS) and call.module.training and got.dim() > 1 and got.numel() == got.shape[1]:
        return "a batch of more than one, or --eval"
    wanted = taken(call.module, got.shape)
    if not wanted or _fits(call.module, got):
        return ""
    named = {id(tensor): "" for tensor in given.args} | {id(tensor): f"{key}=" for key, tensor in given.kwargs.items()}
    if id(got) in named:
        return f"--input {named[id(got)]}{wanted}"
    return f"{_layer(call).said} got {sizes_text(got)}, and takes {wanted.replace(',', '×')}"


def _fits(module: nn.Module, tensor: Tensor) -> bool:
    """Whether a layer takes tensors like this, so that something else is wrong."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        whole = tensor.dtype in (torch.int64, torch.int32)
        return whole and (not tensor.numel() or 0 <= int(tensor.min()) <= int(tensor.max()) < module.num_embeddings)
    return taken(module, tensor.shape) == ",".join(map(str, tensor.shape)) and tensor.is_floating_point()


def check_arguments(module: nn.Module, given: Given, name: str) -> None:
    """Refuse what the signature of forward does not take, before anything is run.

    Raises:
        ParamctlError: names the arguments that are missing, or that it has not.
    """
    forward = module.forward
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*given.args, **given.kwargs)
    except TypeError:
        parameters = list(signature.parameters.values())
    else:
        return
    said = f"{shortened(name)}: {type(module).__name__}.forward({', '.join(p.name for p in parameters)})"
    names = [parameter.name for parameter in parameters]
    unknown = [key for key in given.kwargs if key not in names]
    if unknown:
        raise ParamctlError(f"{said} has no {shortened(unknown[0])}", hint=f"it takes {', '.join(names) or 'nothing'}")
    missing = _missing(parameters, given)
    if missing:
        count = len(given.args) + len(given.kwargs)
        were = "no input was" if not count else "one input was" if count == 1 else f"{count} inputs were"
        by_name = all(one.kind is one.KEYWORD_ONLY for one in parameters if one.name in missing)
        hint = " ".join(f"--input {name}=SHAPE" for name in missing) if by_name else _HINT.format(name=missing[-1])
        raise ParamctlError(f"{said} needs {_and(missing)}, and {were} given", hint=hint)
    positional = [one for one in parameters if one.kind in _PLACES]
    were = f"{len(given.args)} were" if len(given.args) > 1 else "one was"
    rest = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    hint = f"by name: --input {rest[0]}=SHAPE" if rest else "" if positional else "leave --input out"
    takes = f"{len(positional)} at most" if positional else "none"
    raise ParamctlError(f"{said} takes {takes}, and {were} given", hint=hint)


def _missing(parameters: Sequence[inspect.Parameter], given: Given) -> list[str]:
    filled = [p.name for p in parameters if p.kind in _PLACES][: len(given.args)]
    packed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in packed]
    return [name for name in needed if name not in {*filled, *given.kwargs}]


def _and(words: Sequence[str]) -> str:
    return " and ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} and {words[-1]}"
