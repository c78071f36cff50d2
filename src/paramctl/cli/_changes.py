"""Header tier: what commands that plan have in common: the plan is shown, and written where that was asked."""

from __future__ import annotations

from paramctl.api import Edit
from paramctl.cli._options import Output, Writing, say


def carry_out(edit: Edit, writing: Writing, output: Output, *, notes: tuple[str, ...] = ()) -> None:
    """Write the plan, or rehearse it; then show what each change did."""
    target = writing.target(edit.checkpoint)
    report = edit.write(target) if target else edit.rehearse()
    if target != "-":
        output.show(report)
    for note in notes if target else (*notes, "nothing was written; -o OUT or --in-place writes"):
        say(note)
