"""Header tier, and values by content: `paramctl ties`."""

from __future__ import annotations

from typing import Annotated

import typer

from paramctl.cli._options import Model, Output, one_of
from paramctl.cli._progress import Progress
from paramctl.ops.ties import By

EXAMPLES = """\b
Examples:
  paramctl ties models/tied.py
  paramctl ties model.pt --by content
  paramctl ties model.pt -f json | jq '[.rows[].saved_nbytes] | add'
"""
BY: tuple[By, By] = ("storage", "content")


def command(
    model: Model,
    *,
    by: Annotated[
        str,
        typer.Option("--by", metavar="WHAT", help="storage, or content: also equal bytes that are not shared."),
    ] = "storage",
    constants: Annotated[
        bool, typer.Option("--constants", help="By content, also tensors whose elements are all the same.")
    ] = False,
    output: Output,
) -> None:
    """Tied tensors: which names share a storage, and how.

    The relation is `same` for names of the very same elements, `view` for slices, transposes and other parts of one
    storage, and `overlap` for tensors that share some elements and not others.

    With --by content it is also `content` for tensors of one dtype that hold the same bytes in row-major order, as
    they are or transposed, without sharing them: copies, and ties that were lost. saved_nbytes is then what would be
    saved if they were tied. Bytes are compared, not numbers: -0.0 is not 0.0. Of names of the very same elements the
    first stands for all.
    """
    output.check()
    kind = one_of("--by", by, BY)
    opened = model.open(values=kind == "content")
    with Progress() as progress:
        report = opened.ties(by=kind, constants=constants, tell=progress.tell)
    output.show(report)
