"""Header tier: `paramctl grad`."""

from __future__ import annotations

from paramctl.cli._options import Model, Output, Rows, say
from paramctl.cli._running import Running
from paramctl.ops._grad_columns import COLUMNS
from paramctl.report import Report

EXAMPLES = """\b
Examples:
  paramctl grad models/tied.py --input 2,4 --seed 0
  paramctl grad models/gpt.py --input int:2,16 --loss cross_entropy 'transformer.wte'
  paramctl grad models/mlp.py --weights mlp.pt --input 8,4:0-1 --target 8,1 --loss mse
  paramctl grad models/gpt.py --where 'use is null' --sort -ratio --head 5
  paramctl grad models/tied.py -f json | jq '.rows[] | select(.use) | [.use, .share]'
"""


def command(model: Model, *, running: Running, rows: Rows, output: Output) -> None:
    """Gradients of one forward and one backward pass.

    MODEL is a definition. A row for each parameter: norms of values and gradient, their ratio, and what is special in
    the gradient; none at all is not the same as 0. Below a parameter that several operations use, tied or in a layer
    that is called again, a row for each use: what it contributes to the gradient, and as `share`, which part of it.

    `mark` says frozen, unused (it has no gradient), nan, zero, vanishing or exploding: the gradient's norm is below a
    thousandth of, or above a thousand times, that of the layer used last.

    Without --input the first layer says what is put in. Without --loss it is cross_entropy for a target of integers,
    mse for another, and without a target the sum of the output. With --seed N everything is as torch.manual_seed(N),
    then the model, the inputs and the target in that order would have it.
    """
    output.check()
    rows.check(COLUMNS)
    seed, notes = running.seeded()
    report = model.open(values=True, seed=seed).grad(**running.options, seed=seed)
    arranged = rows.arranged(report, names=output.is_names)
    output.show(_once(arranged) if output.is_names else arranged)
    for note in notes:
        say(note)


def _once(report: Report) -> Report:
    """Of the rows about one parameter the first."""
    firsts = {row[0]: row for row in reversed(report.rows)}
    return report._replace(rows=tuple(row for row in report.rows if firsts[row[0]] is row))
