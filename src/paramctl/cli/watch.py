"""Header tier: `paramctl watch`."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from paramctl import ops, render
from paramctl.cli._options import Model, Output, say
from paramctl.cli._running import Running
from paramctl.cli._streaming import Stream
from paramctl.errors import Exit, ParamctlError, shortened
from paramctl.render import live
from paramctl.render.table import draw as table

if TYPE_CHECKING:
    from paramctl.ops.watch import Watch
    from paramctl.training import Step

EXAMPLES = """\b
Examples:
  paramctl watch models/tied.py --input 8,4 --steps 50 --seed 0
  paramctl watch models/gpt.py --input int:4,16 --loss cross_entropy --optimizer 'adam(lr=1e-3)' --steps 5
  paramctl watch models/mlp.py --steps 100 --every 10 | jq -c 'select(.name == "2.weight") | [.step, .loss, .grad_l2]'
  paramctl watch models/mlp.py --steps 20 --save 'ckpt-{step}.pt' --save-every 10
"""
_AROUND = 7  # lines of a picture that are no rows


def command(
    model: Model,
    *,
    steps: Annotated[int, typer.Option("--steps", min=1, metavar="N", help="How many at most.")] = 100,
    optimizer: Annotated[
        str, typer.Option("--optimizer", metavar="S", help="Of torch.optim: NAME or NAME(lr=0.1).")
    ] = "sgd(lr=0.1)",
    lr: Annotated[
        float | None, typer.Option("--lr", metavar="X", help="Its learning rate, where --optimizer says none.")
    ] = None,
    every: Annotated[
        int, typer.Option("--every", min=1, metavar="K", help="Tell of each K-th step, the first and the last.")
    ] = 1,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Draw anew for each step what is drawn, and not the same for all.")
    ] = False,
    save: Annotated[
        str, typer.Option("--save", metavar="FILE", help="Write the state dict at the end; {step} stands for the step.")
    ] = "",
    save_every: Annotated[int, typer.Option("--save-every", min=0, metavar="K", help="And each K steps.")] = 0,
    save_optimizer: Annotated[
        bool, typer.Option("--save-optimizer", help="Write {model, optimizer, step, loss}.")
    ] = False,
    running: Running,
    output: Output,
) -> None:
    """Train a model for some steps, and watch values, gradients and updates.

    MODEL is a definition. On a terminal the picture is drawn anew as it learns, and a table stays; Ctrl-C ends after
    the step that runs. In a pipe each step is a line of JSON for each parameter, as it is made (--format tsv streams
    too): its norm after the step, that of its gradient, and that of its change. Exit status 1 if it diverges: a loss,
    a value or a gradient is no finite number.

    Without --target it is drawn, behind the first output: of its shape from N(0, 1) for mse, which is the loss unless
    --loss names another, or a class for each row with cross_entropy. With --seed N the parameters are bit for bit those
    of torch.manual_seed(N), then the model, the inputs and the target in that order, and a loop of zero_grad, loss,
    backward and step. All steps see the same data, unless --fresh draws anew for each.
    """
    output.check()
    shown = _shown(output)
    seed, notes = running.seeded()
    watched = model.open(values=True, seed=seed).watch(
        **running.options,
        steps=steps,
        optimizer=optimizer,
        lr=lr,
        every=every,
        fresh=fresh,
        save=save,
        save_every=save_every,
        save_optimizer=save_optimizer,
        seed=seed,
    )
    try:
        with _interruptible() as interrupted, shown:
            for step in watched:
                shown.take(step, watched)
                if interrupted():
                    break
    except ParamctlError:
        if watched.done is not None:
            shown.end(watched)
        raise
    shown.end(watched)
    for note in (*notes, *watched.finish()):
        say(note)
    _leave(watched, steps, was_interrupted=interrupted())


def _leave(watched: Watch, steps: int, *, was_interrupted: bool) -> None:
    step = watched.done
    if step is not None and not step.is_finite:
        bad = [row.name for row in step.rows if row.nonfinite]
        what = f"{shortened(bad[0])} is not finite" if math.isfinite(step.loss) and bad else f"the loss is {step.loss}"
        was_so = step.number == 1 and not math.isfinite(step.loss)  # its loss is from before any update
        advice = (
            " before any update: see what is put in, and the weights" if was_so else "; a smaller learning rate may do"
        )
        say(f"diverged at step {step.number:,} of {steps:,}: {what}{advice}")
        raise typer.Exit(Exit.NO)
    if was_interrupted and step is not None and step.number < steps:
        say(f"interrupted after step {step.number:,} of {steps:,}")
        raise typer.Exit(Exit.INTERRUPTED)


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed: the first one lets the step end, the second ends at once."""
    pressed = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return

    def press(*_: object) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


# ----------------------------------------------------------------------------- how steps are shown


class _Show(Protocol):
    def __enter__(self) -> object: ...
    def __exit__(self, *_: object) -> None: ...
    def take(self, step: Step, watched: Watch) -> None:
        """A step was made."""

    def end(self, watched: Watch) -> None:
        """No more will be."""


def _shown(output: Output) -> _Show:
    style = output.format or ("names" if output.null else "table" if sys.stdout.isatty() else "jsonl")
    if style in ("tree", "sarif"):
        raise ParamctlError(f"--format {style}: steps are no {style}", hint="table, jsonl, tsv, json or markdown")
    if style in ("jsonl", "tsv"):
        return _Lines(output, style)
    return _Picture(output) if style == "table" else _Whole(output, style)


class _Lines:
    """Rows as they are made, and seen at once by who reads them."""

    def __init__(self, output: Output, style: str) -> None:
        self._stream = Stream(output, style)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def take(self, step: Step, watched: Watch) -> None:
        self._stream.take(watched.report([step]))

    def end(self, watched: Watch) -> None: ...


class _Whole:
    """Formats that are one document: all rows at the end; of names each once."""

    def __init__(self, output: Output, style: str) -> None:
        self._output, self._style = output, style
        self._steps: list[Step] = []

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def take(self, step: Step, watched: Watch) -> None:
        del watched
        if step.rows and self._style == "names":
            self._steps.clear()
        self._steps.append(step)

    def end(self, watched: Watch) -> None:
        self._output.show(watched.report(self._steps), default=self._style)


class _Picture:
    """For a person: drawn over itself on a terminal that can, then once more to stay."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._is_live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._painter = live.Painter(sys.stdout)
        self._summary = ops.watch.Summary()

    def __enter__(self) -> None:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]

    def __exit__(self, *_: object) -> None:
        self._painter.__exit__()

    def take(self, step: Step, watched: Watch) -> None:
        self._summary.add(step)
        if self._is_live and self._painter.is_due:
            self._painter.draw(self._fitting(self._output.screen(), watched, _height() - 1))

    def _fitting(self, screen: render.Screen, watched: Watch, height: int) -> list[str]:
        """Of so many rows that the picture is not higher than the screen, as it could not be drawn over then."""
        most = max(height - _AROUND, 1)
        lines = self._lines(screen, watched, most)
        while len(lines) > height and most > 1:  # long names take several lines
            most = max(most - (len(lines) - height), 1)
            lines = self._lines(screen, watched, most)
        return lines[:height]

    def _lines(self, screen: render.Screen, watched: Watch, most: int | None = None) -> list[str]:
        summary, said = self._summary, watched.said
        what = f"{shortened(said['loss'])}  {shortened(said['optimizer'])}"
        head = f"step {len(summary.losses):,} of {watched.plan.steps:,}  {what}"
        body = "".join(table(summary.report(width=screen.width, most=most), screen)).splitlines()
        return [head, *live.curve(summary.losses, screen), *body]

    def end(self, watched: Watch) -> None:
        sys.stdout.write("".join(f"{line}\n" for line in self._lines(self._output.screen(), watched)))
        sys.stdout.flush()


def _height() -> int:
    try:
        return os.get_terminal_size(1).lines or 24
    except OSError:
        return 24
