"""Header tier: what would be changed, before anything is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from paramctl.checkpoint import Param
from paramctl.report import Column, Report

Compute = Callable[[memoryview], None]
"""Changes, in place, the writable bytes of `Change.after.span`; called once, in the order of the plan."""

Action = Literal["init", "set", "keep"]

COLUMNS = (
    Column("name", "name"),
    Column("shape", "shape"),
    Column("dtype"),
    Column("action"),
    Column("detail"),
    Column("tied_with", "names"),
)


@dataclass(frozen=True, slots=True)
class Change:
    """One tensor's change. Without `compute` its bytes stay as they are."""

    before: Param | None
    after: Param | None
    compute: Compute | None
    action: Action
    detail: str
    tied_with: tuple[str, ...] = ()  # other names of the same elements, which change with it


@dataclass(frozen=True, slots=True)
class Plan:
    """Changes in the order in which they are made."""

    changes: tuple[Change, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


def report(plan: Plan) -> Report:
    """A change a row."""
    rows = tuple(
        (param.name, list(param.shape), param.dtype.name, change.action, change.detail, list(change.tied_with))
        for change in plan.changes
        for param in [change.after or change.before]
        if param is not None
    )
    return Report(COLUMNS, rows)
