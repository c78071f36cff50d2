"""Header tier: which rows of a report are shown, in what order, and under which columns.

sort    = key { "," key };  key = [ "-" ] column       descending behind a "-"
columns = column { "," column }
where   = see `where`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any

from paramctl.checkpoint import sortable
from paramctl.condition import Where
from paramctl.errors import SelectError, shortened
from paramctl.predicate import Row, test, there_are
from paramctl.report import Report
from paramctl.where import columns, parse_where

__all__ = ["Where", "arranged", "columns", "keys", "parse_where"]


def keys(texts: Iterable[str]) -> list[str]:
    """What stands between commas."""
    return [key.strip() for text in texts for key in text.split(",")]


def arranged(
    report: Report,
    where: Where | None = None,
    *,
    sort: Sequence[str] = (),
    head: int | None = None,
    tail: int | None = None,
    columns: Sequence[str] = (),
) -> Report:
    """The report with the rows of which `where` is true, sorted, the first and then the last of them, and some columns.

    The totals stay as they are, of all; where a row was left out, `rows` tells how many are shown of how many.

    Args:
        report: any.
        where: a condition.
        sort: columns, comma separated or one by one, each descending behind a `-`. Text is in natural order, layers.2
            before layers.10; null and NaN are last, whichever the direction; what is equal stays in its order.
        head: how many of the first rows to keep.
        tail: how many of the last rows of those to keep.
        columns: to pick, in their order, comma separated or one by one; none for all.

    Raises:
        SelectError: a column that is not there, or a condition that does not go with the columns.
    """
    order = [(_place(report, key.removeprefix("-"), "--sort"), key.startswith("-")) for key in keys(sort)]
    picked = [_place(report, key, "--columns") for key in dict.fromkeys(keys(columns))]
    is_true = test(where, report) if where else None
    rows: list[Row] = list(filter(is_true, report.rows)) if is_true else list(report.rows)
    for place, is_descending in reversed(order):
        rows = _sorted(rows, place, is_descending=is_descending)
    rows = rows[:head]
    rows = rows if tail is None else rows[max(len(rows) - tail, 0) :]
    totals = report.totals
    if len(rows) < len(report.rows):
        totals = {**totals, "rows": {"shown": len(rows), "of": len(report.rows)}}
    made = report._replace(rows=tuple(rows), totals=totals, branch=None)
    return _with_columns(made, picked) if picked else made


def _place(report: Report, key: str, option: str) -> int:
    for place, column in enumerate(report.columns):
        if column.key == key:
            return place
    said = shortened(key) or "''"
    raise SelectError(f"{option} {said}: no such column", hint=there_are(key, report.columns))


def _with_columns(report: Report, places: Sequence[int]) -> Report:
    values = [[row[place] for row in report.rows] for place in places]
    return report._replace(
        columns=tuple(report.columns[place] for place in places), rows=tuple(zip(*values, strict=True)), is_picked=True
    )


def _sorted(rows: list[Row], place: int, *, is_descending: bool) -> list[Row]:
    told = [row for row in rows if _is_told(row[place])]
    untold = [row for row in rows if not _is_told(row[place])]
    told.sort(key=_key([row[place] for row in told], place), reverse=is_descending)
    return told + untold


def _is_told(value: Any) -> bool:
    return value is not None and value == value  # noqa: PLR0124 - NaN is not


def _key(values: list[Any], place: int) -> Callable[[Row], Any]:
    kinds = set(map(type, values))
    if kinds == {list}:
        kinds = set(map(type, chain.from_iterable(values)))  # a list of numbers is compared as it is
    if kinds <= {int, float, bool}:
        return itemgetter(place)
    if kinds == {str} and isinstance(values[0], str):
        return lambda row: _natural(row[place])
    return lambda row: _sortable(row[place])


_step = lru_cache(4096)(sortable)  # a few hundred in 90,000 names


def _natural(text: str) -> str:
    return "\0".join(map(_step, text.split(".")))  # a step ends before any longer one


def _sortable(value: Any) -> tuple[int, Any]:
    """Of values of several kinds: numbers come before texts, and those before lists."""
    if isinstance(value, (int, float)):
        return 0, value
    if isinstance(value, str):
        return 1, _natural(value)
    return (2, [_sortable(item) for item in value]) if isinstance(value, (list, tuple)) else (3, 0)
