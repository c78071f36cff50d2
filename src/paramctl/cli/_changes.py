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
        if str(source.path).startswith("/dev/"):  # standard input, or a pipe that was kept
            raise ParamctlError(
                f"--in-place, and the model is {source.name}, no file", hint="-o - writes it to standard output"
            )
        return source.name


def _told(edit: Edit) -> Edit:
    """The same edit, which says how far it is: on a terminal, after half a second."""
    if not sys.stderr.isatty():
        return edit
    begun, count = time.monotonic(), len(edit.plan.changes)

    def telling(index: int, change: Change) -> Change:
        compute = change.compute
        if compute is None or change.after is None:
            return change
        name = shortened(change.after.name, 60)

        def run(span: memoryview) -> str:
            if time.monotonic() - begun > 0.5:
                print(f"\r\x1b[K{index + 1:,} of {count:,}  {name}", end="", file=sys.stderr, flush=True)
            did = compute(span)
            if index + 1 == count:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            return did

        return change._replace(compute=run)

    changes = tuple(telling(index, change) for index, change in enumerate(edit.plan.changes))
    return edit._replace(plan=edit.plan._replace(changes=changes))


def carry_out(edit: Edit, writing: Writing, output: Output, *, notes: tuple[str, ...] = ()) -> None:
    """Write the plan, or rehearse it; then show what each change did."""
    target = writing.target(edit.checkpoint)
    edit = _told(edit)
    report = edit.write(target) if target else edit.rehearse()
    if target != "-":
        output.show(report)
    for note in notes if target else (*notes, "nothing was written; -o OUT or --in-place writes"):
        say(note)
