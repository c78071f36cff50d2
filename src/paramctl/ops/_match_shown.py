"""Header tier: the rows of `match` for people: what does not fit, layers that are alike in one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paramctl.correspondence.templates import Indices, label, starred
from paramctl.ops._match_candidates import is_by_spelling
from paramctl.report import Column, Report


def shown(report: Report) -> Report:
    """Without the rows that are ok, which the totals count, and those that the notes tell of: `module.` before all.

    Each pair of names stands once, by the one that is missing.
    """
    mending = report.totals["mending"]
    named = {row[4]: row[0] for row in report.rows if row[1] == "missing" and row[4]}
    rows = [row for row in report.rows if row[1] != "ok" and not _is_told(row, named, mending)]
    name, *others = report.columns
    totals = {key: value for key, value in report.totals.items() if value}
    folded = tuple(row for group in _grouped(rows) for row in _folded(group))
    return report._replace(columns=(name, Column("tensors", "count"), *others), rows=folded, totals=totals)


def _is_told(row: tuple[Any, ...], named: Mapping[str, str], mending: Mapping[str, Any] | None) -> bool:
    """Whether a row says nothing that another, or the notes, do not."""
    name, status, _, _, candidate, detail = row
    if status == "unexpected" and candidate is not None and named.get(name) == candidate:
        return True
    return bool(mending and status in ("missing", "unexpected") and candidate and detail) and is_by_spelling(
        detail, mending or {}
    )


def _grouped(rows: Sequence[tuple[Any, ...]]) -> list[list[tuple[Any, ...]]]:
    """Rows that differ by numbers in their names, and by nothing else."""
    groups: dict[Any, list[tuple[Any, ...]]] = {}
    for row in rows:
        name, status, a, b, candidate, detail = row
        other = None if candidate is None else starred(candidate)[0]
        key = (starred(name)[0], status, a, b, other, detail and starred(detail)[0])
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _folded(group: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """One row for all, or, where their numbers are no whole range, each for itself."""
    name, *rest = group[0]
    if len(group) == 1:
        return [(name, None, *rest)]
    status, a, b, candidate, detail = rest
    template, _ = starred(name)
    together = label(template, _indices([row[0] for row in group]))
    if together is None:
        return [(row[0], None, *row[1:]) for row in group]
    if candidate is not None:
        others = list(dict.fromkeys(row[4] for row in group))
        candidate = label(starred(candidate)[0], _indices(others)) or f"{candidate} …"
    return [(together, len(group), status, a, b, candidate, detail)]


def _indices(names: Sequence[str]) -> list[Indices]:
    return [starred(name)[1] for name in names]
