"""Header tier: `paramctl tie`."""

from __future__ import annotations

from typing import Annotated

import typer

from paramctl.cli._changes import UNWRITTEN, Writing
from paramctl.cli._conversions import carry_out
from paramctl.cli._options import Model, Output, say
from paramctl.errors import ParamctlError
from paramctl.formats.convert import Options

EXAMPLES = """\b
Examples:
  paramctl tie lm.pt embed.weight head.weight
  paramctl tie lm.pt embed.weight head.weight --keep embed.weight -o tied.pt
"""


def command(
    model: Model,
    *,
    keep: Annotated[str, typer.Option("--keep", metavar="NAME", help="Whose values win, where they differ.")] = "",
    writing: Writing,
    output: Output,
) -> None:
    """Make tensors one: by sharing a storage in torch files, by an alias in safetensors.

    They are of one shape and dtype, and have the same values; else --keep says which wins.
    Without -o or --in-place the plan is shown.
    """
    output.check()
    opened = model.open()
    if not opened.patterns:
        raise ParamctlError("no tensors were named", hint="paramctl tie MODEL embed.weight head.weight")
    target = writing.target(opened.checkpoint)
    carry_out(opened.tie(keep=keep), target, Options(), output, in_place=writing.in_place)
    if not target:
        say(UNWRITTEN)
