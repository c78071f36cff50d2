"""Header tier: `paramctl tree`."""

from __future__ import annotations

from typing import Annotated

import typer

from paramctl.cli._options import Model, Output

EXAMPLES = """\b
Examples:
  paramctl tree models/gpt.py
  paramctl tree model.pt --depth 1
  paramctl tree model.pt --layer 0
"""


def command(
    model: Model,
    *,
    no_fold: Annotated[bool, typer.Option("--no-fold", help="Show every layer, and not layers.[0-31] ×32.")] = False,
    depth: Annotated[int | None, typer.Option("--depth", min=0, metavar="N", help="Show N levels.")] = None,
    output: Output,
) -> None:
    """The hierarchy, repeated layers folded.

    Shows module types where the model knows them, shapes, dtypes, counts, and what is tied to what.
    """
    output.check()
    output.show(model.open().tree(fold=not no_fold, depth=depth), default="tree")
