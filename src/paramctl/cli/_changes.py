"""Header tier: what commands that plan have in common: the plan is shown, and written where that was asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from paramctl.checkpoint import Checkpoint
from paramctl.cli._options import Output, say
from paramctl.cli._progress import Progress
from paramctl.errors import ParamctlError, shortened
from paramctl.ops.edit import Edit
from paramctl.plan import Change

UNWRITTEN = "nothing was written; -o OUT or --in-place writes"


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


def _watched(edit: Edit, progress: Progress) -> Edit:
    """The same edit, telling before each change."""
    changes = edit.plan.changes
    told = tuple(_telling(change, f"{i:,} of {len(changes):,}", progress) for i, change in enumerate(changes, 1))
    return edit._replace(plan=edit.plan._replace(changes=told))


def _telling(change: Change, words: str, progress: Progress) -> Change:
    compute, after = change.compute, change.after
    if compute is None or after is None:
        return change

    def run(span: memoryview) -> str:
        progress.say(words, after.name)
        return compute(span)

    return change._replace(compute=run)


def carry_out(edit: Edit, writing: Writing, output: Output, *, notes: tuple[str, ...] = ()) -> None:
    """Write the plan, or rehearse it; then show what each change did."""
    target = writing.target(edit.checkpoint)
    with Progress(edit.nbytes(target) if target else 0, is_for_reader=not target) as progress:
        watched = _watched(edit, progress)
        report = watched.write(target, tell=progress.tell) if target else watched.rehearse()
    if target != "-":
        output.show(report)
    for note in notes if target else (*notes, UNWRITTEN):
        say(note)
