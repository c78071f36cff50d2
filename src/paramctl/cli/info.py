"""Header tier: `paramctl info`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from paramctl import api
from paramctl.cli import _complete as complete
from paramctl.cli._options import MODEL_HELP, Arg, At, Output, Texts, Words
from paramctl.errors import ParamctlError, shortened

EXAMPLES = """\b
Examples:
  paramctl info models/gpt.py
  paramctl info model.pt -f json | jq .totals
"""


@dataclass(frozen=True, slots=True)
class Whole(Words):
    """A whole model."""

    words: Annotated[
        Texts,
        typer.Argument(metavar="[MODEL]", help=f"{MODEL_HELP}.", show_default=False, autocompletion=complete.models),
    ] = None
    at: At = ""
    arg: Arg = None

    def open(self) -> api.Model:
        """The model."""
        name, more = self.split()
        if more:
            raise ParamctlError(f"one MODEL is taken, and there is {shortened(more[0])} too", hint="--at PATH roots it")
        return self.read(name)


def command(model: Whole, output: Output) -> None:
    """The model in short: totals, dtypes, metadata, extras."""
    output.check()
    output.show(model.open().info())
