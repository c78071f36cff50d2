"""Header tier: what commands have in common that write a new checkpoint."""

from __future__ import annotations

from paramctl.cli._options import Output, say
from paramctl.cli._progress import Progress
from paramctl.formats.convert import Options
from paramctl.ops.convert import Conversion


def carry_out(conversion: Conversion, target: str, options: Options, output: Output, *, in_place: bool = False) -> None:
    """Say what will be lost; then write to `target`, or, where that is "", show the plan."""
    conversion.refuse_lost(options)
    for lost in conversion.lost:
        say(lost)
    if not target:
        output.show(conversion.rehearse(options))
        return
    with Progress(conversion.nbytes * (2 if options.verifies else 1), is_for_reader=False) as progress:
        report = conversion.write(target, options, in_place=in_place, tell=progress.tell)
    if target != "-":
        output.show(report)
