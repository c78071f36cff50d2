"""Header tier: the rows of `diff`: pairs of tensors, or sums over modules, in the order in which they are told."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, Literal, NamedTuple

from paramctl.checkpoint import Param
from paramctl.errors import MissingLibraryError
from paramctl.ops._diff_match import Pair
from paramctl.report import Column

By = Literal["tensor", "module"]

COLUMNS = (
    Column("name", "name"),
    Column("status", "word"),
    Column("a", "layout"),
    Column("b", "layout"),
    Column("max_abs", "number"),
    Column("l2", "number"),
    Column("rel_l2", "number"),
    Column("cosine", "cosine"),
    Column("changed", "share"),
)
OF_TENSORS = (Column("max_at"), Column("name_b", "name"))
NONFINITE = Column("nonfinite", "count")
RANK = Column("rank", "count")
STATUSES = ("removed", "added", "shape", "dtype", "changed", "same")  # in the order in which they are shown
_VALUES = "paramctl.ops._diff_values"  # of the values tier: a door, so that a layout costs no numpy


class Entry(NamedTuple):
    """A pair, and what was found of its values, if they were looked at."""

    pair: Pair
    status: str
    found: Any = None  # `_diff_values.Found`


def columns(*, by: By = "tensor", rank: bool = False) -> tuple[Column, ...]:
    """The columns of a report."""
    return (*COLUMNS, *(OF_TENSORS if by == "tensor" else ()), NONFINITE, *((RANK,) if rank else ()))


def by_tensor(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """A row for each pair."""
    rows = [
        {
            "name": entry.pair.name,
            "status": entry.status,
            "a": described(entry.pair.a),
            "b": described(entry.pair.b),
            "name_b": entry.pair.name_b,
            "max_at": entry.found.max_at if entry.found else None,
            "rank": entry.found.rank.rank if entry.found and entry.found.rank else None,
            **_numbers([entry]),
        }
        for entry in entries
    ]
    return sorted(rows, key=_order)


def by_module(entries: Sequence[Entry], depth: int | None) -> list[dict[str, Any]]:
    """Each tensor in one module: its own, or that one's branch at a depth."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        steps = entry.pair.name.split(".")[:-1]
        groups.setdefault(".".join(steps[:depth]), []).append(entry)
    rows = []
    for path, group in groups.items():
        ranks = [entry.found.rank.rank for entry in group if entry.found and entry.found.rank]
        rows.append(
            {
                "name": path,
                "status": _status_of({entry.status for entry in group}),
                "a": _counted(entry.pair.a for entry in group),
                "b": _counted(entry.pair.b for entry in group),
                "rank": max(ranks, default=None),
                **_numbers(group),
            }
        )
    return sorted(rows, key=_order)


def _status_of(statuses: Collection[str]) -> str:
    """Of a module: what all its tensors are, or what those are that lie otherwise."""
    kinds = [status for status in statuses if status != "same"] if len(statuses) > 1 else [*statuses]
    return kinds[0] if kinds in (["shape"], ["dtype"]) or len(statuses) == 1 else "changed"


def _numbers(group: Sequence[Entry]) -> dict[str, Any]:
    """Of all pairs of which the values were looked at, those of the very same elements once."""
    found = [entry for entry in group if entry.found is not None]
    if not found:
        return {}
    tier = values()
    if len(found) > 1:
        found = list({tier.identity(entry.pair): entry for entry in found}.values())
    told: dict[str, Any] = tier.numbers(tier.merged(entry.found.comparison for entry in found))
    return told


def described(param: Param | None) -> str | None:
    """`float32 [8,4]`."""
    return None if param is None else f"{param.dtype.name} [{','.join(map(str, param.shape))}]"


def _counted(params: Iterable[Param | None]) -> str | None:
    count = sum(param is not None for param in params)
    return f"{count:,} tensor{'' if count == 1 else 's'}" if count else None


def _order(row: Mapping[str, Any]) -> tuple[int, float]:
    """What is not there or lies otherwise first, then by the relative change; what was 0 and is not changed most."""
    change = row.get("rel_l2")
    if change is None or row.get("nonfinite"):
        change = math.inf
    return STATUSES.index(row["status"]), -change


def values() -> Any:
    """The module of the values tier.

    Raises:
        MissingLibraryError: numpy is not installed.
    """
    try:
        return import_module(_VALUES)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("numpy", "ml_dtypes"):
            raise
        raise MissingLibraryError(
            f"diff needs {error.name} to read values, and it is not installed",
            hint=f"pip install {error.name}, or --layout",
        ) from None
