"""Header tier: `paramctl untie`."""

from __future__ import annotations

from paramctl.cli._changes import UNWRITTEN, Writing
from paramctl.cli._conversions import carry_out
from paramctl.cli._options import Model, Output, say
from paramctl.formats.convert import Options

EXAMPLES = """\b
Examples:
  paramctl untie tied.pt
  paramctl untie tied.pt head.weight -o untied.pt
"""


def command(model: Model, *, writing: Writing, output: Output) -> None:
    """Give each name that is chosen a tensor of its own, where it shares one.

    Of a tie that is chosen whole the first name keeps what it has. Slices are cut out of their storage.
    Without -o or --in-place the plan is shown.
    """
    output.check()
    opened = model.open()
    target = writing.target(opened.checkpoint)
    carry_out(opened.untie(), target, Options(), output, in_place=writing.in_place)
    if not target:
        say(UNWRITTEN)
