"""Header tier, and values for digests: `paramctl ls`."""

from __future__ import annotations

from typing import Annotated

import typer

from paramctl.cli._options import Model, Output, Rows
from paramctl.cli._progress import Progress
from paramctl.errors import ParamctlError
from paramctl.ops import ls

EXAMPLES = """\b
Examples:
  paramctl ls models/tied.py
  paramctl ls model.pt '*.bias'
  paramctl ls model.pt -f names -0 | xargs -0 -n1 echo
  paramctl ls model.pt --sort -nbytes --head 20 --columns name,shape,nbytes
  paramctl ls model.pt --where 'numel > 1k and not dtype in (float16, bfloat16)'
  paramctl ls model.pt --digest -f json | jq -r '.rows[] | [.digest, .name] | @tsv'
"""
COLUMNS = (*ls.COLUMNS, ls.DIGEST)


def command(
    model: Model,
    *,
    digest: Annotated[
        bool,
        typer.Option("--digest", help="With the SHA-256 of dtype, shape and elements: the same in every format."),
    ] = False,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="For a definition's own values.")] = None,
    rows: Rows,
    output: Output,
) -> None:
    """One parameter a line."""
    output.check()
    rows.check(COLUMNS)
    is_tree = output.format == "tree"
    if is_tree and (digest or rows.columns):
        said = "--digest is a column" if digest else "--columns"
        raise ParamctlError(f"{said}, and a tree has none", hint="--format table, tsv or json")
    digest = digest or ls.DIGEST.key in rows.needed
    opened = model.open(values=digest, seed=seed)
    if is_tree and not rows.is_given:
        output.show(opened.tree())
        return
    with Progress(opened.nbytes if digest else 0) as progress:
        report = rows.arranged(opened.ls(digest=digest, tell=progress.tell), names=output.is_names)
    output.show(opened.tree(only={row[0] for row in report.rows}) if is_tree else report)
