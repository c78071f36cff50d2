"""Header tier: what commands that plan have in common: the plan is shown, and written where that was asked."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Annotated

import typer

from paramctl.checkpoint import Checkpoint
from paramctl.cli._options import Output, say
from paramctl.errors import ParamctlError, shortened
from paramctl.ops.edit import Edit
from paramctl.plan import Change


@dataclass(frozen=True, slots=True)
class Writing:
    """Where a change is written. Without either nothing is."""

    output: Annotated[
        str, typer.Option("--output", "-o", metavar="OUT", help="Write the changed model to OUT; - is stdout.")
    ] = ""
    in_place: Annotated[bool, typer.Option("--in-place", help="Write it over the file it was read from.")] = False

    def target(self, checkpoint: Checkpoint) -> str:
        """The path to write, `-`, or "" for none."""
        if self.output and self.in_place:
            raise ParamctlError("-o and --in-place are two places to write to", hint="give one of them")
        if not self.in_place:
            return self.output
        source = checkpoint.source
        if source.kind == "definition":
            raise ParamctlError(
                f"{shortened(source.name)}: a definition is code", hint="name a file to write with -o OUT"
            )
        if str(source.path).startswith("/dev/"):  # a pipe that was kept
            what = "standard input" if source.name == "-" else f"{shortened(source.name)}, no file"
            raise ParamctlError(f"--in-place, and the model is {what}", hint="-o - writes it to standard output")
        return source.name


class _Progress:
    """How far an edit is: said on a terminal, after half a second, and wiped away at the end."""

    def __init__(self, edit: Edit) -> None:
        self.begun = time.monotonic()
        self.count = len(edit.plan.changes)
        self.is_said = False

    def watched(self, edit: Edit) -> Edit:
        """The same edit, telling before each change."""
        changes = tuple(self.telling(index, change) for index, change in enumerate(edit.plan.changes))
        return edit._replace(plan=edit.plan._replace(changes=changes))

    def telling(self, index: int, change: Change) -> Change:
        compute = change.compute
        if compute is None or change.after is None:
            return change
        name = shortened(change.after.name, 60)

        def run(span: memoryview) -> str:
            if time.monotonic() - self.begun > 0.5:
                self.is_said = True
                print(f"\r\x1b[K{index + 1:,} of {self.count:,}  {name}", end="", file=sys.stderr, flush=True)
            return compute(span)

        return change._replace(compute=run)

    def wipe(self) -> None:
        """Take the line away."""
        if self.is_said:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def carry_out(edit: Edit, writing: Writing, output: Output, *, notes: tuple[str, ...] = ()) -> None:
    """Write the plan, or rehearse it; then show what each change did."""
    target = writing.target(edit.checkpoint)
    progress = _Progress(edit)
    watched = progress.watched(edit) if sys.stderr.isatty() else edit
    try:
        report = watched.write(target) if target else watched.rehearse()
    finally:
        progress.wipe()
    if target != "-":
        output.show(report)
    for note in notes if target else (*notes, "nothing was written; -o OUT or --in-place writes"):
        say(note)
