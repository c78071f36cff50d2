"""Header tier, and torch for a definition: `paramctl match`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from paramctl import api
from paramctl.cli import _complete as complete
from paramctl.cli._options import MODEL_HELP, Arg, At, Output, Rows, say
from paramctl.errors import Exit, ParamctlError, shortened
from paramctl.formats import whole
from paramctl.ops.match import COLUMNS
from paramctl.source import configured_model

EXAMPLES = """\b
Examples:
  paramctl match model.pt models/mlp.py
  paramctl match model.pt models/mlp.py --where 'status != ok'
  paramctl match model.pt mlp.pt -f json | jq .totals.fits
"""


def command(
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT", help="What would be loaded.", autocompletion=complete.models),
    ],
    definition: Annotated[
        str,
        typer.Argument(
            metavar="[DEFINITION]",
            help=f"The model that would take it: {MODEL_HELP}; or a checkpoint whose place it would take.",
            show_default=False,
            autocompletion=complete.models,
        ),
    ] = "",
    *,
    at: At = "",
    arg: Arg = None,
    strict_dtype: Annotated[
        bool, typer.Option("--strict-dtype", help="Another dtype is a fault, too: torch would copy it.")
    ] = False,
    emit_rename: Annotated[
        str,
        typer.Option(
            "--emit-rename", metavar="FILE", help="Write the renaming that was found, for convert --rename-file."
        ),
    ] = "",
    rows: Rows,
    output: Output,
) -> None:
    """Would load_state_dict(strict=True) take it? Exit status 1 if not.

    A row for each name, with what is nearest to it. What would mend it is looked for, and said as a command to run: a
    prefix to take away or to add, names that are systematically others, layers counted from another number, weights
    below `state_dict`, `model` or `ema`. A renaming is one-to-one, and its shapes agree. What no renaming mends is
    told: transposed matrices, q, k and v in one, a vocabulary that was padded. On a terminal only what does not fit
    has a row, and no name that a prefix or a word alone makes right.

    The status is `ok`; `cast`, another dtype, which torch copies; `tie`, tied in the model and two tensors in the file;
    `untied`, the reverse; or a fault: `missing`, `unexpected`, `shape`, `dtype`.
    """
    output.check()
    rows.check(COLUMNS)
    model = definition or configured_model()
    if not model:
        raise ParamctlError("match is about two models", hint=f"paramctl match {shortened(checkpoint)} net.py")
    report = api.match(checkpoint, model, at=at, arguments=arg or (), strict_dtype=strict_dtype)
    if emit_rename:
        _write(emit_rename, report.totals["mending"])
    is_short = output.is_table and not rows.is_given
    output.show(api.shown(report, "match") if is_short else rows.arranged(report, names=output.is_names))
    if not report.totals["fits"]:
        raise typer.Exit(Exit.NO)


def _write(path: str, mending: Mapping[str, Any] | None) -> None:
    if mending is None or not mending["rules"]:
        say(f"{shortened(path)} is not written: there is nothing to rename")
        return
    with whole.replacing(path) as file:
        file.write(api.rename_file(mending).encode())
