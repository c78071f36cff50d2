"""Header tier: `paramctl init`."""

from __future__ import annotations

from typing import Annotated

import typer

from paramctl import ops, recipe
from paramctl.cli._changes import Writing, carry_out
from paramctl.cli._options import Model, Output

EXAMPLES = """\b
Examples:
  paramctl init models/mlp.py --scheme xavier --layer 0
  paramctl init models/mlp.py --scheme 'normal(std=0.01)' --bias zeros --seed 0 -o mlp.pt
  paramctl init mlp.pt --rule '0=xavier_uniform' --rule '2=constant(42)' --in-place
  paramctl init models/mlp.py --scheme models/initializers.py:my_init
  paramctl init --list
"""


def command(
    model: Model,
    *,
    scheme: Annotated[
        str, typer.Option("--scheme", metavar="S", help="For the weights: NAME or NAME(arg=value).")
    ] = "",
    bias: Annotated[str, typer.Option("--bias", metavar="S", help="For the biases.")] = "",
    rule: Annotated[
        list[str] | None, typer.Option("--rule", metavar="SELECT=S", help="For what SELECT chooses; later ones win.")
    ] = None,
    recipe_file: Annotated[str, typer.Option("--recipe", metavar="FILE.toml", help="Rules from a file.")] = "",
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="For torch.manual_seed.")] = None,
    definition: Annotated[
        str, typer.Option("--model", metavar="DEFINITION", help="What tells the classes of a state dict.")
    ] = "",
    list_: Annotated[bool, typer.Option("--list", help="Every scheme with its arguments and law.")] = False,
    preview: Annotated[
        bool, typer.Option("--preview", help="Tell the spread of each law, and what was drawn.")
    ] = False,
    writing: Writing,
    output: Output,
) -> None:
    """Initialize by name, or with a function of your own.

    S is a function of torch.nn.init as NAME or NAME(arg=value, …), `default` for each module's own
    reset_parameters, or file.py:function, of a tensor or of a module.
    Without -o or --in-place the plan is shown.
    """
    output.check()
    if list_:
        output.show(ops.init.initializers())
        return
    read = recipe.read(recipe_file) if recipe_file else recipe.Recipe(())
    rules = (*read.rules, *map(recipe.rule, rule or ()))
    known = seed if seed is not None else read.seed
    edit = model.open(values=True, seed=known).init(
        scheme=scheme, bias=bias, rules=rules, seed=known, definition=definition, tells="law" if preview else "change"
    )
    notes = () if known is not None else (f"seed {edit.plan.metadata['seed']} was drawn; --seed repeats it",)
    carry_out(edit, writing, output, notes=notes)
