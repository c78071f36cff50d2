"""Header tier: what would be changed, before anything is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from paramctl.checkpoint import Param
from paramctl.report import Column, Report

Compute = Callable[[memoryview], str]
"""Changes, in place, the writable bytes of `Change.after.span`, and says what it did; called in the plan's order."""

Action = Literal["init", "set", "keep"]

COLUMNS = (
    Column("name", "name"),
    Column("shape", "shape"),
    Column("dtype"),
    Column("action"),
    Column("detail"),
    Column("tied_with", "names"),
)


class Change(NamedTuple):
    """One tensor's change. Without `compute` its bytes stay as they are."""

    before: Param | None
    after: Param | None
    compute: Compute | None
    action: Action
    detail: str
    tied_with: tuple[str, ...] = ()  # other names of the same elements, which change with it


class Plan(NamedTuple):
    """Changes in the order in which they are made."""

    changes: tuple[Change, ...]
    metadata: Mapping[str, str] = MappingProxyType({})
    begin: Callable[[], None] = lambda: None  # before the first change: the random generator's seed

    def carried_out(self, run: Callable[[Change, Compute], str]) -> Plan:
        """The plan with what each change did: `run` is called in order with every change that computes."""
        self.begin()
        changes = tuple(
            change._replace(detail=_both(change.detail, run(change, change.compute))) if change.compute else change
            for change in self.changes
        )
        return self._replace(changes=changes)


def _both(detail: str, did: str) -> str:
    return f"{detail}: {did}" if detail and did else detail or did


def report(plan: Plan) -> Report:
    """A change a row."""
    rows = tuple(
        (param.name, list(param.shape), param.dtype.name, change.action, change.detail, list(change.tied_with))
        for change in plan.changes
        for param in [change.after or change.before]
        if param is not None
    )
    return Report(COLUMNS, rows)
