"""Torch tier: a short training run, watched: each parameter's values, gradient and update, a row a step."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from paramctl import sharing, training
from paramctl.checkpoint import Checkpoint
from paramctl.errors import ParamctlError, SelectError, shortened
from paramctl.formats import python_model, whole
from paramctl.measures import named
from paramctl.ops import _passes
from paramctl.ops._passes import Ready
from paramctl.report import Column, Report
from paramctl.select import Selection
from paramctl.training import Optimizer, Plan, Row, Step

COLUMNS = (
    Column("step", "count"),
    Column("loss", "number"),
    Column("name", "name"),
    Column("value_l2", "number"),
    Column("grad_l2", "number"),
    Column("update_l2", "number"),
    Column("ratio", "number"),
    Column("nonfinite", "count"),
    Column("tied_with", "names"),
)
SUMMARY = (
    Column("name", "name"),
    Column("value_l2", "number"),
    Column("grad_l2", "number"),
    Column("gradients", "histogram"),
    Column("update_l2", "number"),
    Column("updates", "histogram"),
    Column("ratio", "number"),
    Column("nonfinite", "count"),
    Column("tied_with", "names"),
)
Wanted = _passes.Wanted
OPTIMIZER = training.USUAL
_BRACES = re.compile(r"\{\w*\}")
_NEEDED = {"updates": 90, "gradients": 70}  # columns of a screen
_KEPT = 16  # steps of which a summary shows gradients and updates
_FINE = 1000  # heights of a bar
_NAMED = 4  # ties in a note


class Course(NamedTuple):
    """How a model is trained: so many steps, of which each `every`-th is told; `fresh` data for each, or the same."""

    steps: int = 100
    optimizer: str = OPTIMIZER
    every: int = 1
    fresh: bool = False
    lr: float | None = None  # in the place of the optimizer's own


class Saving(NamedTuple):
    """Where a checkpoint is written: at the end, and each `every` steps if that is not 0.

    `{step}` in `target` stands for the step. With the optimizer it is `{"model", "optimizer", "step", "loss"}`, else
    the model's state dict.
    """

    target: str = ""
    every: int = 0
    with_optimizer: bool = False


class Watch:
    """A training run: iterate over it for its steps, once. What has been made stays in the model.

    Attributes:
        said: what describes the run: seed, inputs, loss, optimizer.
        notes: what is to be said; at the end, what became of ties and which files were written, too.
        done: the last step that was made; None before the first.
    """

    def __init__(
        self, checkpoint: Checkpoint, names: Sequence[str], ready: Ready, plan: Plan, saving: Saving, seed: str
    ) -> None:
        self.checkpoint, self.names, self.plan, self.saving = checkpoint, frozenset(names), plan, saving
        self.said = ({"seed": seed} if seed else {}) | dict(ready.said) | {"optimizer": plan.optimizer.text}
        self.notes = list(ready.notes)
        self.done: Step | None = None
        self._ties = _ties(plan)
        self._totals = sharing.totals(checkpoint, [p for name, p in checkpoint.params.items() if name in self.names])
        self._written: dict[str, int] = {}  # files, and the step that each holds

    def __iter__(self) -> Iterator[Step]:
        for step in training.train(self.plan):
            self.done = step
            if self.saving.every and step.is_finite and step.number % self.saving.every == 0:
                self.save()
            yield step._replace(rows=tuple(filter(None, map(self._shown, step.rows))))

    def _shown(self, row: Row) -> Row | None:
        """The row under the first of its chosen names."""
        names = (row.name, *row.tied_with)
        chosen = next((name for name in names if name in self.names), None)
        if chosen is None:
            return None
        return row._replace(name=chosen, tied_with=tuple(name for name in names if name != chosen))

    def finish(self) -> list[str]:
        """Write the last checkpoint, if one was asked for; and what is to be said at the end."""
        step = self.done
        if step is not None and step.is_finite and self.saving.target and step.number not in self._written.values():
            self.save()
        if self._written:
            files = [shortened(name, 80) for name in self._written]
            self.notes.append(f"written: {', '.join(files if len(files) < 4 else [*files[:2], '…', files[-1]])}")
        return [*self.notes, *self._kept()]

    def save(self) -> None:
        """Write the model as it is now: whole, or not at all."""
        number, loss = (self.done.number, self.done.loss) if self.done else (0, None)
        target = self.saving.target.replace("{step}", str(number))
        module = self.plan.model.module
        if self.saving.with_optimizer:
            state = {"model": module.state_dict(), "optimizer": self.plan.optimizer.made.state_dict()}
            with whole.replacing(target) as file:
                torch.save({**state, "step": number, "loss": loss}, file)
        else:
            python_model.write(python_model.described(module, self.checkpoint.source), target)
        self._written[target] = number

    def _kept(self) -> list[str]:
        """That ties are still ties, or which are not."""
        now = set(_ties(self.plan))
        kept = [tie for tie in self._ties if tie in now]
        lost = [tie for tie in self._ties if tie not in now]
        said = [f"still one tensor each: {_some(kept)}"] if kept else []
        return [*said, f"no longer tied: {_some(lost)}"] if lost else said

    def report(self, steps: Sequence[Step]) -> Report:
        """The rows of steps."""
        rows = tuple(row for step in steps for row in step_rows(step))
        done = {"steps": self.done.number, "loss": self.done.loss} if self.done else {}
        totals = {**self._totals, **done, "ties": len(self._ties)}
        source = self.checkpoint.source.name
        return Report(COLUMNS, rows, totals, source, self.checkpoint.format, metadata=self.said)


class Summary:
    """What a person is shown of steps: losses of all, the last one's numbers, and how they came about."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.last: Step | None = None
        self._past: dict[str, deque[Row]] = {}

    def add(self, step: Step) -> None:
        """Take a step in."""
        self.losses.append(step.loss)
        if step.rows:
            self.last = step
        for row in step.rows:
            self._past.setdefault(row.name, deque(maxlen=_KEPT)).append(row)

    def report(self, *, width: int = 0, most: int | None = None) -> Report:
        """A row for each parameter as it is now, or for the first so many; for a screen of a width, if it is not 0."""
        rows = self.last.rows if self.last else ()
        totals = {"steps": len(self.losses), "loss": self.losses[-1]} if self.losses else {}
        if most is not None and len(rows) > most:
            totals["more parameters"] = len(rows) - most
        kept = [i for i, column in enumerate(SUMMARY) if not 0 < width < _NEEDED.get(column.key, 0)]
        cut = tuple(tuple(row[i] for i in kept) for row in map(self._row, rows[:most]))
        return Report(tuple(SUMMARY[i] for i in kept), cut, totals)

    def _row(self, row: Row) -> tuple[Any, ...]:
        past = self._past[row.name]
        return (
            row.name,
            row.value_l2,
            row.grad_l2,
            _bars([each.grad_l2 for each in past]),
            row.update_l2,
            _bars([each.update_l2 for each in past]),
            row.ratio,
            row.nonfinite,
            list(row.tied_with),
        )


def _bars(values: Sequence[float | None]) -> list[int]:
    """Heights from 0; a value that is not 0 has one."""
    most = max((value for value in values if value), default=0.0)
    return [math.ceil(value / most * _FINE) if value else 0 for value in values]


def step_rows(step: Step) -> list[tuple[Any, ...]]:
    """A step's rows under COLUMNS."""
    return [
        (
            step.number,
            step.loss,
            row.name,
            row.value_l2,
            row.grad_l2,
            row.update_l2,
            row.ratio,
            row.nonfinite,
            list(row.tied_with),
        )
        for row in step.rows
    ]


def watch(
    checkpoint: Checkpoint,
    selection: Selection,
    wanted: Wanted,
    course: Course = Course(),  # noqa: B008 - a constant
    *,
    saving: Saving = Saving(),  # noqa: B008 - a constant
    root: str = "",
    seed: str = "",
) -> Watch:
    """A training run, not begun.

    Args:
        checkpoint: of a definition that was built with values.
        selection: of it: of which parameters to tell; all are trained.
        wanted: what to run it on.
        course: how long, and with which optimizer.
        saving: whether to write checkpoints.
        root: the path of the part that is trained.
        seed: that was drawn or given, to be told.

    Raises:
        ParamctlError: it is no definition, or what is put in, the optimizer or the place to write to does not fit.
    """
    _check(saving)
    ready = _passes.ready(checkpoint, root, wanted)
    if course.fresh and not ready.feeder.is_random:
        raise ParamctlError("--fresh, and nothing here is random", hint="the same files are read for each step")
    chosen = [param.name for param in selection.chosen if param.kind == "parameter"]
    if not chosen:
        kind = selection.chosen[0].kind
        raise SelectError(f"{shortened(selection.chosen[0].name)}: a {kind}, and what is trained are parameters")
    optimizer: Optimizer = training.optimizer(course.optimizer, ready.model.module.parameters(), lr=course.lr)
    first = [_passes.given(ready)]  # refused before anything is trained, if forward does not take it

    def draw() -> training.Batch:
        return first.pop() if first else ready.feeder.draw()

    plan = Plan(ready.model, draw, ready.loss, optimizer, course.steps, course.every, course.fresh)
    return Watch(checkpoint, chosen, ready, plan, saving, seed)


def _check(saving: Saving) -> None:
    if (saving.every or saving.with_optimizer) and not saving.target:
        raise ParamctlError("--save-every and --save-optimizer go with --save FILE", hint="--save 'ckpt-{step}.pt'")
    if saving.target == whole.STDOUT:
        raise ParamctlError("--save -: standard output is for the rows", hint="name a file: --save 'ckpt-{step}.pt'")
    other = next((word for word in _BRACES.findall(saving.target) if word != "{step}"), "")
    if other:
        ours = shortened(saving.target.replace(other, "{step}"))
        raise ParamctlError(f"--save {shortened(saving.target)}: {shortened(other)} stands for nothing", hint=ours)
    if saving.target:
        whole.check(saving.target.replace("{step}", "0"))


def _ties(plan: Plan) -> list[tuple[str, ...]]:
    return [names for _, names in named(plan.model.module).values() if len(names) > 1]


def _some(ties: Sequence[tuple[str, ...]]) -> str:
    shown = [" = ".join(shortened(name, 60) for name in names) for names in ties[:_NAMED]]
    return ", ".join(shown) + (f" and {len(ties) - _NAMED:,} more" if len(ties) > _NAMED else "")
