"""Header tier: what commands that plan have in common: the plan is shown, and written where that was asked."""

from __future__ import annotations

from dataclasses import replace

from paramctl import plan as plans
from paramctl import sharing
from paramctl.checkpoint import Checkpoint
from paramctl.cli._options import Output, Writing, say
from paramctl.formats import edit
from paramctl.plan import Plan


def carry_out(checkpoint: Checkpoint, plan: Plan, writing: Writing, output: Output, *, notes: tuple[str, ...]) -> None:
    """Write the plan, or rehearse it; then show what each change did."""
    target = writing.target(checkpoint)
    done = edit.write(checkpoint, plan, target) if target else edit.rehearse(checkpoint, plan)
    if target == "-":
        return
    said = (*notes, "nothing was written; -o OUT or --in-place writes") if not target else notes
    params = [change.after for change in done.changes if change.after is not None]
    unique = {param.name: checkpoint.params[param.name] for param in params}
    report = replace(
        plans.report(done),
        totals=sharing.totals(checkpoint, tuple(unique.values())),
        source=checkpoint.source.name,
        format=checkpoint.format,
    )
    output.show(report)
    for note in said:
        say(note)
