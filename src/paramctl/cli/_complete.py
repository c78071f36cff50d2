"""Header tier: what a shell may complete a word to."""

from __future__ import annotations

import glob
import os
from importlib import import_module
from typing import Any

from paramctl import api
from paramctl.checkpoint import branches
from paramctl.errors import ParamctlError, escaped


def models(ctx: Any, incomplete: str) -> list[str]:
    """Paths that begin so."""
    del ctx
    found = glob.glob(glob.escape(incomplete) + "*")  # noqa: PTH207 - as it is written
    return [path + "/" if os.path.isdir(path) else path for path in sorted(found)]  # noqa: PTH112


def _is_at_hand(word: str) -> bool:
    """Whether it can be opened without waiting for anybody, as one has to at a pipe."""
    return os.path.isfile(word) or os.path.isdir(word)  # noqa: PTH112, PTH113 - as it is written


def words(ctx: Any, incomplete: str) -> list[str]:
    """Paths for the first word, then names of the model's parameters and modules; nothing of a definition is run.

    Names are escaped, as they are shown; a pattern is taken in either form.
    """
    given = ctx.params.get("words") or []
    if not given:
        return models(ctx, incomplete)
    if given[0] == "-" or not _is_at_hand(given[0]):
        return []
    try:
        checkpoint = api.open(given[0]).checkpoint if not given[0].partition(":")[0].endswith(".py") else None
    except ParamctlError:
        return []
    names = [*checkpoint.params, *branches(checkpoint.params)] if checkpoint else []
    return sorted(name for name in map(escaped, names) if name.startswith(incomplete))


def two_models(ctx: Any, incomplete: str) -> list[str]:
    """Paths for the first two words, then names of the first model's."""
    return models(ctx, incomplete) if len(ctx.params.get("words") or []) < 2 else words(ctx, incomplete)


def columns(ctx: Any, incomplete: str) -> list[str]:
    """The columns of the command, COLUMNS of its module, that begin as what stands behind the last comma."""
    before, comma, last = incomplete.rpartition(",")
    keys = (column.key for column in import_module(f"paramctl.cli.{ctx.info_name}").COLUMNS)
    return [f"{before}{comma}{key}" for key in keys if key.startswith(last)]
