"""Header tier, and values for digests: `paramctl ls`."""

from __future__ import annotations

from typing import Annotated

import typer

from paramctl.cli._options import Model, Output
from paramctl.cli._progress import Progress
from paramctl.errors import ParamctlError

EXAMPLES = """\b
Examples:
  paramctl ls models/tied.py
  paramctl ls model.pt '*.bias'
  paramctl ls model.pt -f names -0 | xargs -0 -n1 echo
  paramctl ls model.pt --digest -f json | jq -r '.rows[] | [.digest, .name] | @tsv'
"""


def command(
    model: Model,
    *,
    digest: Annotated[
        bool,
        typer.Option("--digest", help="With the SHA-256 of dtype, shape and elements: the same in every format."),
    ] = False,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="For a definition's own values.")] = None,
    output: Output,
) -> None:
    """One parameter a line."""
    output.check()
    if digest and output.format == "tree":
        raise ParamctlError("--digest is a column, and a tree has none", hint="--format table, tsv or json")
    opened = model.open(values=digest, seed=seed)
    if output.format == "tree":
        report = opened.tree()
    else:
        with Progress(opened.nbytes if digest else 0) as progress:
            report = opened.ls(digest=digest, tell=progress.tell)
    output.show(report)
