"""Header tier, and values unless --fast: `paramctl check`."""

from __future__ import annotations

from typing import Annotated

import typer

from paramctl import api
from paramctl.cli import _complete as complete
from paramctl.cli._options import MODEL_HELP, Arg, Output, Texts
from paramctl.errors import Exit

EXAMPLES = """\b
Examples:
  paramctl check model.pt
  paramctl check --fast mlp.pt model.pt
  paramctl check model.pt -f json | jq .totals
"""


def command(
    models: Annotated[
        Texts,
        typer.Argument(metavar="[MODEL]...", help=f"{MODEL_HELP}.", show_default=False, autocompletion=complete.models),
    ] = None,
    *,
    fast: Annotated[bool, typer.Option("--fast", help="Leave checksums and values unread.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="A warning is a fault, too.")] = False,
    arg: Arg = None,
    output: Output,
) -> None:
    """Is it whole, safe and finite? Exit status 1 if there is an error.

    Whole: archive and header are sound, checksums agree, no tensor is cut short. Safe: no pickle in it would call what
    does harm; nothing is ever run to find out. Finite: no value is NaN or infinite.

    --format sarif is for code scanning.
    """
    output.check()
    report = api.check(*(models or ()), arguments=arg or (), fast=fast)
    output.show(report)
    if report.totals["errors"] or (strict and report.totals["warnings"]):
        raise typer.Exit(Exit.NO)
