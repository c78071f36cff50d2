"""Header tier: tab-separated raw values, one row a line whatever a name holds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from paramctl.errors import escaped
from paramctl.render._cells import batches, escape_all, joined_lines
from paramctl.render._facts import flattened
from paramctl.render._json import are_ints, compact
from paramctl.render.json_document import batch_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paramctl.render import Screen
    from paramctl.report import Report

_BOOLS = {True: "true", False: "false"}


def draw(report: Report, screen: Screen) -> Iterator[str]:
    """A line of column keys, then a row a line; `None`, NaN and infinities are empty, lists are JSON."""
    keys = [column.key for column in report.columns] or ["key", "value"]
    if screen.header:
        yield "\t".join(map(escaped, keys)) + "\n"
    if not report.columns:
        yield joined_lines(f"{escaped(key)}\t{_raw(value)}" for key, value in flattened(report))
    for rows in batches(report.rows, batch_size(report)):
        columns = [_column(values) for values in zip(*rows, strict=True)]
        yield joined_lines(map("\t".join, zip(*columns, strict=True)))


def _column(values: tuple[Any, ...]) -> list[str]:
    kinds = set(map(type, values))
    if kinds == {str}:
        return escape_all(list(values))
    if kinds == {int}:
        return list(map(str, values))
    if kinds == {list} and are_ints(values):
        return [str(value).replace(" ", "") for value in values]
    return [_raw(value) for value in values]


def _raw(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return _BOOLS[value]
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ""
    return compact(value)
