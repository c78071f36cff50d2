"""Header tier: `paramctl stats`."""

from __future__ import annotations

from typing import Annotated

import typer

from paramctl.cli._options import By, Depth, Model, Output, Rows, one_of
from paramctl.cli._progress import Progress
from paramctl.cli._streaming import show_by_row
from paramctl.errors import ParamctlError, shortened
from paramctl.ops._stats_columns import BY, COLUMNS, MORE, SPECTRAL, Wanted, columns

EXAMPLES = """\b
Examples:
  paramctl stats model.pt '*.weight'
  paramctl stats model.pt --sort -std --head 20
  paramctl stats model.pt --where 'nan > 0 or absmax > 0.4' -f names
  paramctl stats model.pt --columns l1,kurtosis,zero_rows
  paramctl stats model.pt --depth 1 --quantiles 0.01,0.5,0.99 --hist
  paramctl stats model.pt -f json | jq '.rows[] | select(.nan == 0) | .name'
"""


def command(
    model: Model,
    *,
    quantiles: Annotated[str, typer.Option("--quantiles", "-q", metavar="Q,…", help="Each a column, as q0.5.")] = "",
    hist: Annotated[bool, typer.Option("--hist", help="A histogram from min to max, a column hist.")] = False,
    bins: Annotated[int, typer.Option("--bins", min=1, max=10_000, metavar="N", help="Of the histogram.")] = 20,
    spectral: Annotated[
        bool, typer.Option("--spectral", help="Norm, condition, stable and effective rank, by singular values.")
    ] = False,
    by: By = "tensor",
    depth: Depth = None,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0, metavar="X", help="Of the magnitudes that count for sparsity.")
    ] = 0.0,
    sample: Annotated[bool, typer.Option("--sample", help="std with a divisor of n - 1, and not of n.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="For a definition's own values.")] = None,
    rows: Rows,
    output: Output,
) -> None:
    """Statistics of the values: mean, std, min, max, norm, zeros, NaN and Inf.

    They are of the finite elements; NaN and infinities are counted beside them. A complex element counts by its
    magnitude. Of names of the very same elements each has its row, and a module and the totals count them once. In a
    pipe a row is printed as soon as it is known.

    More columns, for --columns, --where and --sort: l1, rms, absmax, skew, kurtosis, sparsity (the share of elements
    up to --threshold), first_nan, first_inf, zero_rows and zero_cols (unused rows of an embedding, dead output and
    input channels), repeated_rows, q0.9 and other quantiles, hist; and of matrices spectral_norm, condition,
    stable_rank, effective_rank. Where --columns names none of the usual ones, these are added to them.
    """
    output.check()
    kind = "module" if depth is not None else one_of("--by", by, BY)
    asked = Wanted(SPECTRAL if spectral else (), _numbers(quantiles), bins if hist else 0, threshold, sample)
    wanted = asked.also(rows.needed, bins)
    rows.check((*columns(wanted, kind), *(more for key, more in MORE.items() if key not in wanted.columns)))
    opened = model.open(values=True, seed=seed)
    with Progress(opened.nbytes) as progress:
        made = opened.stats_by_row(wanted, by=kind, depth=depth, tell=progress.tell)
        show_by_row(made, output, rows.adding(COLUMNS))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(",") if word.strip())
    except ValueError:
        what = f"--quantiles {shortened(text)}: not numbers with commas between"
        raise ParamctlError(what, hint="--quantiles 0.01,0.5,0.99") from None
