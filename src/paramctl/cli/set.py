"""Header tier: `paramctl set`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from paramctl import recipe
from paramctl.assign import has_operator
from paramctl.cli import _complete as complete
from paramctl.cli._changes import Writing, carry_out
from paramctl.cli._options import MODEL_HELP, Arg, At, Output, Texts, Words
from paramctl.errors import ParamctlError

EXAMPLES = """\b
Examples:
  paramctl set models/mlp.py '0.weight[:] += 1' '0.weight[0, 0] = 42'
  paramctl set model.pt '*.bias = 0' -o zeroed.pt
  paramctl set model.pt '2.bias = [0.5]' --in-place
"""


@dataclass(frozen=True, slots=True)
class Assigned(Words):
    """A model, and assignments to its parameters."""

    words: Annotated[
        Texts,
        typer.Argument(
            metavar="[MODEL] ASSIGNMENT...",
            help=f"MODEL: {MODEL_HELP}. ASSIGNMENT: TARGET = VALUE, or +=, -=, *=, /=.",
            show_default=False,
            autocompletion=complete.words,
        ),
    ] = None
    at: At = ""
    arg: Arg = None


def command(
    model: Assigned,
    *,
    recipe_file: Annotated[str, typer.Option("--recipe", metavar="FILE.toml", help="Rules from a file, first.")] = "",
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="For a definition's own values.")] = None,
    writing: Writing,
    output: Output,
) -> None:
    """Assign to parameters and slices.

    TARGET is a name or a wildcard, perhaps with a [slice]; VALUE is a number, a list of them, or another parameter.
    Without -o or --in-place the plan is shown.
    """
    output.check()
    name, assignments = model.split(is_word=has_operator)
    rules = recipe.read(recipe_file, verb="set") if recipe_file else recipe.Recipe(())
    if not assignments and not rules.rules:
        raise ParamctlError("no assignment was given", hint="paramctl set MODEL '0.weight[0, 0] = 42'")
    known = seed if seed is not None else rules.seed
    edit = model.read(name, values=True, seed=known).set(*assignments, rules=rules.rules)
    carry_out(edit, writing, output)
