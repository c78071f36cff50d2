"""Header tier: `paramctl history`."""

from __future__ import annotations

from typing import Annotated

import typer

from paramctl import api
from paramctl.cli import _complete as complete
from paramctl.cli._options import At, By, Depth, Output, Rows, Texts, one_of
from paramctl.cli._progress import Progress
from paramctl.ops._history_shown import COLUMNS
from paramctl.ops._stats_columns import BY

EXAMPLES = """\b
Examples:
  paramctl history model.pt mlp.pt
  paramctl history 'm*.pt' --select '*.weight' -f table
  paramctl history model.pt mlp.pt --where 'mark is not null' --columns name,step,mark -f tsv
"""


def command(
    checkpoints: Annotated[
        Texts,
        typer.Argument(
            metavar="CHECKPOINT...",
            help="Files in the order of their steps, a pattern in quotes, or the folder of a training run.",
            show_default=False,
            autocompletion=complete.models,
        ),
    ] = None,
    *,
    select: Annotated[Texts, typer.Option("--select", "-s", metavar="PATTERN", help="Only of these tensors.")] = None,
    layer: Annotated[Texts, typer.Option("--layer", "-l", metavar="PATH", help="Only of that module.")] = None,
    dtype: Annotated[Texts, typer.Option("--dtype", metavar="DTYPE", help="Only of that dtype.")] = None,
    at: At = "",
    by: By = "tensor",
    depth: Depth = None,
    still: Annotated[
        float, typer.Option("--still", min=0, metavar="X", help="Of the median update: up to this, it rests.")
    ] = 1e-3,
    grew: Annotated[
        float, typer.Option("--grew", min=1, metavar="X", help="Times the median norm before: beyond this, it blew up.")
    ] = 10.0,
    rows: Rows,
    output: Output,
) -> None:
    """Parameters over a row of checkpoints: norms, updates, and which layers stopped or blew up.

    A row for each parameter and step: its norm `l2`; `update`, the norm of the difference from the step before, and
    `rel_update`, over the norm then; the cosines of the angles to the first and the last checkpoint; NaN and Inf. On a
    terminal a row for each parameter, with pictures of its norms and updates; in a pipe JSONL. Each file is read once.

    A mark is `stopped` (it moved, and from here on it does not while others do), `frozen` (it never moves), `grew`,
    `nan` or `inf`. The step is told by the files' names, else by `global_step` in them, else it is the place.
    """
    output.check()
    rows.check(COLUMNS)
    opened = api.run(*(checkpoints or ()), at=at).select(*(select or ()), layer=layer or (), dtype=dtype or ())
    with Progress(opened.nbytes) as progress:
        report = opened.history(by=one_of("--by", by, BY), depth=depth, still=still, grew=grew, tell=progress.tell)
    if output.is_table and not rows.is_given:
        output.show(api.shown(report, "history"))
    else:
        output.show(rows.arranged(report, names=output.is_names), default="table" if output.is_table else "jsonl")
