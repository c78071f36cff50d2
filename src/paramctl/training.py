"""Torch tier: a training loop as one would write it by hand, and what each step does to each parameter."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from paramctl import calls, usercode
from paramctl.errors import ParamctlError, nearest, shortened
from paramctl.forward import Definition, Given, Trace, run
from paramctl.losses import Loss
from paramctl.measures import dense, measured, named

Batch = tuple[Given, Tensor | None]  # what goes in, and the target, if it is known before what comes out

USUAL = "sgd(lr=0.1)"
_CALL = re.compile(r"([A-Za-z_]\w*)\s*(?=\(|$)")
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    name.lower(): found
    for name, found in vars(torch.optim).items()
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer) and found is not torch.optim.Optimizer
}


class Optimizer(NamedTuple):
    """One of `torch.optim` over a model's parameters. `text` is how it is written."""

    text: str
    made: torch.optim.Optimizer

    @property
    def takes_closure(self) -> bool:
        """Whether it runs the model itself, and as often as it likes."""
        return inspect.signature(self.made.step).parameters["closure"].default is inspect.Parameter.empty


def optimizer(text: str, parameters: Iterable[nn.Parameter], *, lr: float | None = None) -> Optimizer:
    """The optimizer that `text` describes: `NAME` or `NAME(lr=0.1)`, parsed and never evaluated.

    Args:
        text: what describes it.
        parameters: what it moves.
        lr: the learning rate; None: as `text` has it, or the optimizer's own.

    Raises:
        ParamctlError: none of that name, torch refuses its arguments, or `lr` is in both.
    """
    match = _CALL.match(text.strip())
    if match is None:
        raise ParamctlError(f"--optimizer {shortened(text)!r}: write NAME or NAME(lr=0.1)", hint=", ".join(OPTIMIZERS))
    name = match[1].lower()
    if name not in OPTIMIZERS:
        close = nearest(name, list(OPTIMIZERS))
        hint = " or ".join(close) + "?" if close else ", ".join(OPTIMIZERS)
        raise ParamctlError(f"--optimizer {shortened(match[1])}: torch.optim has none of that name", hint=hint)
    takes = [p for p in inspect.signature(OPTIMIZERS[name]).parameters.values() if p.name != "params"]
    arguments = calls.bind(f"--optimizer {name}", takes, calls.arguments(text.strip(), match.end()))
    if lr is not None:
        if "lr" in arguments and text != USUAL:
            raise ParamctlError(
                f"--lr {lr:g}, and --optimizer {shortened(text)} has lr={arguments['lr']}",
                hint="give it in one of them",
            )
        arguments = {"lr": lr} | arguments | {"lr": lr}
    try:
        made: torch.optim.Optimizer = OPTIMIZERS[name](parameters, **arguments)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ParamctlError(f"--optimizer {name}: {calls.first_line(error)}", hint=calls.takes(takes)) from error
    return Optimizer(calls.written(name, arguments), made)


class Row(NamedTuple):
    """One parameter at one step: its values after it, the gradient that it followed, and how far it moved."""

    name: str
    value_l2: float
    grad_l2: float | None  # None: it has no gradient, which is not 0
    update_l2: float
    nonfinite: int  # elements of values and gradient
    tied_with: tuple[str, ...]

    @property
    def ratio(self) -> float | None:
        return self.update_l2 / self.value_l2 if self.value_l2 else None


class Step(NamedTuple):
    """`loss` is from before the step. `rows` is empty where the step is not to be told of."""

    number: int
    loss: float
    rows: tuple[Row, ...] = ()

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and not any(row.nonfinite for row in self.rows)


class Plan(NamedTuple):
    """What to train, with what, how long, and of which steps to tell. `draw` makes a batch."""

    model: Definition
    draw: Callable[[], Batch]
    loss: Loss
    optimizer: Optimizer
    steps: int
    every: int = 1
    fresh: bool = False

    def is_told(self, number: int) -> bool:
        return number % self.every == 0 or number in {1, self.steps}


def train(plan: Plan) -> Iterator[Step]:
    """Each step as it is made. The last is one whose loss or values are not finite, if there is such a step.

    Bit for bit this is: batch; then `optimizer.zero_grad()`, `loss = f(model(x), y)`, `loss.backward()`,
    `optimizer.step()`. A target that is not given is drawn after the first forward pass, which shows its shape.

    Raises:
        ParamctlError: the user's code, or torch's optimizer, raised.
    """
    with Trace(plan.model.module) as trace:
        batch = plan.draw()
        for number in range(1, plan.steps + 1):
            if plan.fresh and number > 1:
                batch = plan.draw()
            loop = _Loop(plan, trace, batch)
            step = loop.step(number)
            batch = loop.batch
            yield step
            if not step.is_finite:
                return


class _Loop:
    """One step. After it `batch` has the target."""

    def __init__(self, plan: Plan, trace: Trace, batch: Batch) -> None:
        self.plan, self.trace, self.batch = plan, trace, batch

    def step(self, number: int) -> Step:
        told = self.plan.is_told(number)
        before = {key: held.detach().clone() for key, (held, _) in named(self.plan.model.module).items() if told}
        loss = self.descend()
        rows = self.rows(before) if told or not math.isfinite(loss) else ()
        return Step(number, loss, rows)

    def descend(self) -> float:
        made = self.plan.optimizer.made
        with self.refusals():
            if self.plan.optimizer.takes_closure:
                return float(made.step(self.evaluate))  # type: ignore[arg-type]
            loss = float(self.evaluate())
            if math.isfinite(loss):
                made.step()
            return loss

    def refusals(self) -> Any:
        return usercode.running(f"--optimizer {self.plan.optimizer.text}", folder=self.plan.model.folder)

    def evaluate(self) -> Tensor:
        model, (given, target) = self.plan.model, self.batch
        self.plan.optimizer.made.zero_grad()
        output = run(model, given, self.trace)
        if target is None:
            target = self.plan.loss.target_for(output, given.first)
            self.batch = (given, target)
        loss = self.plan.loss(output, target)
        if loss.requires_grad:
            with usercode.running(model.name, folder=model.folder, within=lambda: "in the backward pass: "):
                loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        raise ParamctlError(
            "the loss depends on no parameter that requires a gradient",
            hint="they may all be frozen, or forward may run under torch.no_grad()",
        )

    def rows(self, before: dict[int, Tensor]) -> tuple[Row, ...]:
        rows = []
        for key, (parameter, (name, *others)) in named(self.plan.model.module).items():
            value = measured(parameter)
            grad = None if parameter.grad is None else measured(parameter.grad)
            update = 0.0 if key not in before else measured(dense(parameter) - dense(before[key])).l2
            nonfinite = value.nan + value.inf + (grad.nan + grad.inf if grad else 0)
            rows.append(Row(name, value.l2, grad.l2 if grad else None, update, nonfinite, tuple(others)))
        return tuple(rows)
