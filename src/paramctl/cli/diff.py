"""Header tier, and values unless --layout: `paramctl diff`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from paramctl import api, renaming
from paramctl.cli._options import By, Depth, Output, Rows, Texts, one_of
from paramctl.cli._pair import Pair, nbytes
from paramctl.cli._progress import Progress
from paramctl.errors import Exit
from paramctl.ops import diff
from paramctl.ops._diff_rows import RANK, columns
from paramctl.ops._stats_columns import BY

EXAMPLES = """\b
Examples:
  paramctl diff model.pt mlp.pt
  paramctl diff model.pt mlp.pt '*.weight' --rtol 1e-3 --ignore-dtype
  paramctl diff model.pt mlp.pt --depth 1 --stat
  paramctl diff model.pt mlp.pt --rank --where 'status != same'
  paramctl diff model.pt mlp.pt -f json | jq .totals
"""
COLUMNS = columns(rank=True)


def command(
    models: Pair,
    *,
    atol: Annotated[
        float,
        typer.Option("--atol", metavar="X", help="Elements differ if |b - a| > atol + rtol · |a|.", show_default=False),
    ] = 0,
    rtol: Annotated[
        float, typer.Option("--rtol", metavar="X", help="As --atol, relative to A.", show_default=False)
    ] = 0,
    ignore_dtype: Annotated[
        bool, typer.Option("--ignore-dtype", help="The same values in another dtype are the same.")
    ] = False,
    ignore_ties: Annotated[bool, typer.Option("--ignore-ties", help="Leave aside which names are tied.")] = False,
    layout: Annotated[bool, typer.Option("--layout", help="Compare names, shapes and dtypes; read no values.")] = False,
    rename: Annotated[
        Texts, typer.Option("--rename", metavar="OLD=>NEW", help="In A: by name, beginning, wildcard or re:…")
    ] = None,
    rename_file: Annotated[str, typer.Option("--rename-file", metavar="FILE", help="Such rules, one a line.")] = "",
    exact_names: Annotated[
        bool, typer.Option("--exact-names", help="Match no names without their prefixes, as module. and model.")
    ] = False,
    rank: Annotated[bool, typer.Option("--rank", help="The numerical rank of each change: was it a LoRA?")] = False,
    by: By = "",
    depth: Depth = None,
    stat: Annotated[bool, typer.Option("--stat", help="Bars of each module's relative change.")] = False,
    show_same: Annotated[bool, typer.Option("--all", help="On a terminal, what is the same too.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Build definitions with values.")] = None,
    rows: Rows,
    output: Output,
) -> None:
    """How two models differ, in layout and in values. Exit status 0 if they do not, 1 if they do.

    What is called the same has the same values, up to the tolerance; NaN is equal to NaN. l2 is the norm of B - A,
    rel_l2 that norm over A's, changed the share of elements that differ. NaN and infinities count there and under
    nonfinite, and the other numbers are of what is finite on both sides. A tie that only one side has is a
    difference, too.

    Names match without what training puts before them (module., _orig_mod., model.), which is said. Of a definition
    the layout alone is compared, unless --seed builds it with values.
    """
    output.check()
    kind = one_of("--by", "module" if depth is not None else by or ("module" if stat else "tensor"), BY)
    rank = rank or RANK.key in rows.needed
    rows.check(columns(by=kind, rank=rank))
    a, b = models.both(seed=seed)
    passes = 0 if layout else 2 if rank else 1
    with Progress(passes * (nbytes(a) + nbytes(b))) as progress:
        report = api.diff(
            a,
            b,
            atol=atol,
            rtol=rtol,
            layout=layout,
            ignore_dtype=ignore_dtype,
            ignore_ties=ignore_ties,
            rename=[*(rename or ()), *(renaming.read(rename_file) if rename_file else ())],
            exact_names=exact_names,
            rank=rank,
            by=kind,
            depth=depth,
            tell=progress.tell,
            reading=progress.at,
        )
    is_cut = output.is_table and sys.stdout.isatty() and not show_same and rows.where is None
    made = rows.arranged(diff.without_same(report) if is_cut else report, names=output.is_names)
    output.show(diff.shown(made, stat=stat) if output.is_table and not rows.columns else made)
    if diff.differs(report):
        raise typer.Exit(Exit.NO)
