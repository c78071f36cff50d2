"""Header tier: rows that are printed as they are made, where nothing has to wait for the last of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from paramctl.cli._options import Output, Rows
from paramctl.report import Report, joined

_STYLES = ("tsv", "jsonl", "names")  # in which a row is a line, whatever the others are
_SECONDS = 0.1  # for which rows are gathered, as each printing has its price
_ALL = Rows()


class Stream:
    """Rows on their way to who reads them, who may end the command with the first of them, as `head` does.

    Args:
        style: one in which a row is a line.
        rows: which are printed; they are not sorted.
        seconds: for how long they are gathered.
    """

    def __init__(self, output: Output, style: str, rows: Rows = _ALL, *, seconds: float = 0.0) -> None:
        self._output, self._style, self._seconds = output, style, seconds
        self._rows, self._left = replace(rows, head=None), rows.head
        self._screen = output.screen()
        self._held: list[tuple[Any, ...]] = []
        self._printed = 0.0  # when

    @property
    def is_full(self) -> bool:
        """Whether no more rows are wanted."""
        return self._left == 0

    def take(self, report: Report) -> None:
        """More rows; of each report the columns are the same."""
        self._held += report.rows
        if self._held and time.monotonic() >= self._printed + self._seconds:
            self.print(report)

    def print(self, report: Report) -> None:
        """Print what was gathered, and what such a report says beside its rows."""
        whole = report._replace(rows=tuple(self._held))
        made = self._rows.arranged(whole, names=self._style == "names")
        made = made._replace(rows=made.rows[: self._left])
        self._output.print(made, self._style, self._screen)
        self._screen = self._screen._replace(header=False)
        self._left = None if self._left is None else self._left - len(made.rows)
        self._held.clear()
        self._printed = time.monotonic()


def show_by_row(reports: Iterator[Report], output: Output, rows: Rows) -> None:
    """Print reports of one table: as they come where a pipe gets unsorted lines, else all together.

    The last of them has the totals and the notes.
    """
    style = output.format or ("names" if output.null else "tsv")
    if sys.stdout.isatty() or style not in _STYLES or rows.sort:
        output.show(rows.arranged(joined(reports), names=output.is_names))
        return
    stream = Stream(output, style, rows, seconds=_SECONDS)
    for report in reports:
        stream.take(report)
        if report.rows and stream.is_full:
            return
    stream.print(report)
