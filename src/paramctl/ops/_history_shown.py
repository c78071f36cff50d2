"""Header tier: the rows of `history` for people: a parameter a row, its norms and updates as small pictures."""

from __future__ import annotations

from typing import Any

from paramctl.report import Column, Report

COLUMNS = (
    Column("name", "name"),
    Column("step", "count"),
    Column("source", "name"),
    Column("l2", "number"),
    Column("update", "number"),
    Column("rel_update", "number"),
    Column("cos_first", "number"),
    Column("cos_last", "number"),
    Column("nan", "count"),
    Column("inf", "count"),
    Column("mark"),
)
SHOWN = (
    Column("name", "name"),
    Column("l2", "number"),
    Column("norm", "course"),
    Column("updates", "course"),
    Column("rel_update", "number"),
    Column("cos_first", "number"),
    Column("nan", "count"),
    Column("inf", "count"),
    Column("mark"),
)


def shown(report: Report) -> Report:
    """A row for each parameter: what it is in the last step, and the course of it over all."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in report.dicts():
        groups.setdefault(row["name"], []).append(row)
    rows = tuple(_of_one(name, some) for name, some in groups.items())
    totals = {key: value for key, value in report.totals.items() if value}
    return report._replace(columns=SHOWN, rows=rows, totals=totals)


def _of_one(name: str, some: list[dict[str, Any]]) -> tuple[Any, ...]:
    last = some[-1]
    norms, updates = ([row[key] for row in some] for key in ("l2", "update"))
    numbers = (last["rel_update"], last["cos_first"], last["nan"], last["inf"])
    return (name, last["l2"], norms, updates[1:], *numbers, _mark(some))


def _mark(some: list[dict[str, Any]]) -> str | None:
    """The gravest mark, and since which step."""
    marked = [row for row in some if row["mark"]]
    for mark in ("nan", "inf", "grew", "stopped", "frozen"):
        since = next((row["step"] for row in marked if row["mark"] == mark), None)
        if any(row["mark"] == mark for row in marked):
            return mark if mark == "frozen" or since is None else f"{mark} since {since:,}"
    return None
