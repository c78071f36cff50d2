"""Header tier: what an operation found, before anything decides how it looks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Unit = Literal[
    "", "word", "name", "names", "shape", "layout", "count", "bytes", "number", "share", "cosine", "value", "histogram",
    "digest", "bar", "course",
]  # fmt: skip


_MOST_NOTES = 10


class Column(NamedTuple):
    """A column: `key` is the JSON key and the header; `unit` says how a terminal may dress the raw value."""

    key: str
    unit: Unit = ""


class Branch(NamedTuple):
    """A node of a folded tree.

    `times` siblings that are alike were folded into this one, and `label` names them all (`layers.[0-31]`).
    `numel` and `nbytes` count everything below, the folded siblings included.
    """

    label: str
    type: str = ""
    hyperparameters: str = ""
    times: int = 1
    numel: int = 0
    nbytes: int = 0
    tensors: int = 0
    row: int | None = None  # the row of the report, for a leaf
    children: tuple[Branch, ...] = ()


class Report(NamedTuple):
    """Rows of raw values under column keys, and totals over them.

    Values are JSON's: bytes and counts are integers, shapes are lists, names are exact.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    totals: Mapping[str, Any] = MappingProxyType({})
    source: str = ""
    format: str = ""
    metadata: Mapping[str, str] | None = None  # only where the command shows it
    extras: Mapping[str, Any] | None = None
    branch: Branch | None = None  # for the tree
    notes: tuple[str, ...] = ()  # said on stderr, after the data
    is_picked: bool = False  # the columns were asked for one by one, and a terminal shows them all

    def dicts(self) -> list[dict[str, Any]]:
        """The rows as mappings."""
        keys = [column.key for column in self.columns]
        return [dict(zip(keys, row, strict=True)) for row in self.rows]


def joined(reports: Iterable[Report]) -> Report:
    """One of several of the same columns: all rows, and what the last of them says beside its own."""
    *several, last = reports
    return last._replace(rows=tuple(row for one in (*several, last) for row in one.rows))


def few(notes: Sequence[str]) -> tuple[str, ...]:
    """The first of some notes of one kind, and how many more there are: a file may have a fault in each tensor."""
    more = [f"and {len(notes) - _MOST_NOTES:,} more of this kind"] if len(notes) > _MOST_NOTES else []
    return (*notes[:_MOST_NOTES], *more)
