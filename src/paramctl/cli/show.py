"""Header tier: `paramctl show`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from paramctl.cli._options import Model, Output

EXAMPLES = """\b
Examples:
  paramctl show models/mlp.py 2.bias
  paramctl show model.pt '0.weight[0, :4]'
  paramctl show model.pt '[0].bias' -f json | jq '.rows[0].value'
"""
MOST_SHOWN = 1000  # torch.set_printoptions(threshold=1000)


def command(
    model: Model,
    *,
    full: Annotated[bool, typer.Option("--full", help="Every value, on a terminal too.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="For a definition's own values.")] = None,
    output: Output,
) -> None:
    """Values and slices, and what a parameter is.

    That is its class, dtype, shape, requires_grad and gradient, which is None before a backward pass.
    """
    output.check()
    cut = output.is_table and sys.stdout.isatty() and not full
    report = model.open(values=True, seed=seed).show(most=MOST_SHOWN if cut else None)
    output.show(report, full=full)
