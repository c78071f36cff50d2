"""Torch tier: a definition made ready to be run: its values, what is put into it, what is made of the output."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from paramctl import losses, usercode
from paramctl.checkpoint import Checkpoint
from paramctl.errors import FileError, ParamctlError, shortened
from paramctl.forward import Definition, Given, check_arguments
from paramctl.inputs import Feed, Layer, draw, first_layer, float_dtype, most_tokens, parse, taken
from paramctl.losses import Loss
from paramctl.ops._weights import load, some, tensors

Mode = Literal["train", "eval"]


class Wanted(NamedTuple):
    """What to run a model on, as it is written on the command line.

    `loss` of "" is cross_entropy for a target of integers, mse for another, and `otherwise` where there is none.
    """

    inputs: tuple[str, ...] = ()
    target: str = ""
    loss: str = ""
    weights: str = ""
    strict: bool = True
    mode: Mode = "train"
    otherwise: str = "sum"


class Ready(NamedTuple):
    """A model, and what it is run on. `said` describes the run, `notes` are for the person."""

    model: Definition
    feeder: Feeder
    loss: Loss
    said: Mapping[str, str]
    notes: tuple[str, ...]


class Feeder:
    """Batches: files are read once, the rest is drawn anew for each, inputs before the target."""

    def __init__(self, module: nn.Module, feeds: Sequence[Feed], target: Feed | None) -> None:
        self.dtype = float_dtype(module)
        self.device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
        self.feeds, self.target = feeds, target
        files = [feed.file for feed in (*feeds, target) if feed is not None and feed.file]
        self.read = {file: self.of_file(file) for file in files}

    @property
    def is_random(self) -> bool:
        return any(feed.is_drawn for feed in self.feeds) or self.target is None or self.target.is_drawn

    def of_file(self, file: str) -> dict[str, Tensor]:
        """The tensors of a file by their names, floats in the model's dtype."""
        return {name: self.placed(tensor) for name, tensor in tensors(file).items()}

    def placed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    def draw(self) -> tuple[Given, Tensor | None]:
        """What goes in, and the target, if it is known before what comes out."""
        args: list[Tensor] = []
        kwargs: dict[str, Tensor] = {}
        for feed in self.feeds:
            found = self.of_feed(feed, "--input")
            if feed.name:
                kwargs[feed.name] = _only(found, feed)
            elif len(found) == 1:
                args += found.values()
            else:
                kwargs |= found
        if self.target is None:
            return Given(tuple(args), kwargs), None
        target = _only(self.of_feed(self.target, "--target"), self.target)
        return Given(tuple(args), kwargs), target if target.is_floating_point() else target.long()

    def of_feed(self, feed: Feed, option: str) -> dict[str, Tensor]:
        return {"": self.placed(draw(feed, option, self.dtype))} if feed.is_drawn else self.read[feed.file]


def _only(found: Mapping[str, Tensor], feed: Feed) -> Tensor:
    if len(found) != 1:
        raise FileError(
            feed.file,
            f"{len(found)} tensors, where one is wanted",
            hint=f"it has {some(list(found))}; --input without a name takes them by theirs",
        )
    return next(iter(found.values()))


def ready(checkpoint: Checkpoint, root: str, wanted: Wanted) -> Ready:
    """Make a model ready: its values from a checkpoint, if one is named, then its inputs.

    Args:
        checkpoint: of a definition that was built with values.
        root: the path of the part that is run; "" for the whole.
        wanted: what it is run on.

    Raises:
        ParamctlError: no definition, or something that does not fit it.
    """
    source = checkpoint.source
    if checkpoint.live is None:
        raise ParamctlError(
            f"{shortened(source.name)}: a {checkpoint.format} file, which has no code to run",
            hint=f"name the definition of its model, and its values with --weights {shortened(source.name, 60)}",
        )
    module: nn.Module = dict(checkpoint.live.named_modules(remove_duplicate=False))[root]
    if any(isinstance(inner, torch.jit.ScriptModule) for inner in module.modules()):
        what = f"{shortened(source.name)}: compiled by torch.jit, and cannot be looked into while it runs"
        raise ParamctlError(what, hint="name the module that was not scripted or traced")
    model = Definition(module, source.name, source.path.parent if source.path else None)
    notes = load(module, wanted.weights, strict=wanted.strict) if wanted.weights else []
    with usercode.running(model.name, folder=model.folder):
        module.train(wanted.mode == "train")
    feeds = [_with_range(parse(text, "--input"), module, "--input") for text in wanted.inputs]
    if not feeds and (chosen := _chosen(model)):
        feeds = [parse(chosen[0], "--input")]
        model = model._replace(guess=f"--input {chosen[0]} was taken, as {chosen[1].said} is the first layer")
        notes.append(model.guess)
    target = _target(wanted.target) if wanted.target else None
    feeder = Feeder(module, feeds, target)
    loss = losses.parse(wanted.loss or _usual(feeder, wanted), has_target=target is not None)
    said = {
        "input": " ".join(feed.text for feed in feeds),
        "target": wanted.target or ("drawn" if loss.takes_target else ""),
        "loss": loss.name,
        "weights": wanted.weights,
        "mode": wanted.mode,
    }
    return Ready(model, feeder, loss, {key: text for key, text in said.items() if text}, tuple(notes))


def given(one: Ready) -> tuple[Given, Tensor | None]:
    """The first batch, held against the signature of forward."""
    batch = one.feeder.draw()
    check_arguments(one.model.module, batch[0], one.model.name)
    return batch


def _usual(feeder: Feeder, wanted: Wanted) -> str:
    target = feeder.target
    if target is None:
        return wanted.otherwise
    if target.is_drawn:
        return "mse" if target.kind == "float" else "cross_entropy"
    return "mse" if _only(feeder.read[target.file], target).is_floating_point() else "cross_entropy"


def _with_range(feed: Feed, module: nn.Module, option: str) -> Feed:
    if not feed.is_drawn or feed.kind != "int" or feed.high is not None:
        return feed
    tokens = most_tokens(module)
    if tokens is None:
        raise ParamctlError(f"{option} {shortened(feed.text)}: integers need a range", hint=f"{feed.text}:0-9")
    return feed._replace(low=0, high=tokens - 1)


def _target(text: str) -> Feed:
    feed = parse(text, "--target")
    if feed.name:
        raise ParamctlError(f"--target {shortened(text)}: a target has no name", hint=feed.text.partition("=")[2])
    if feed.is_drawn and feed.kind == "int" and feed.high is None:
        raise ParamctlError(f"--target {shortened(text)}: integers need a range", hint=f"{text}:0-9")
    return feed


def _chosen(model: Definition) -> tuple[str, Layer] | None:
    """An input for a model for which none was given: what its first layer takes.

    Raises:
        ParamctlError: that is not known.
    """
    forward: Any = model.module.forward
    if type(model.module).forward is nn.Module.forward and "forward" not in vars(model.module):
        raise ParamctlError(
            f"{shortened(model.name)}: {type(model.module).__name__} has no forward, and cannot be run",
            hint="name a module that has one, or a part of this with --at PATH",
        )
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    if not parameters or sum(parameter.default is parameter.empty for parameter in parameters) > 1:
        return None
    layer = first_layer(model.module)
    if layer is None:
        said = f"{type(model.module).__name__}.forward({', '.join(parameter.name for parameter in parameters)})"
        raise ParamctlError(f"{shortened(model.name)}: no input was given for {said}", hint="--input 2,4, or a file")
    return taken(layer.module), layer
