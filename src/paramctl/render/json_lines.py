"""Header tier: JSON, one object a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paramctl.render._cells import batches, joined_lines
from paramctl.render._json import encode, row_texts
from paramctl.render.json_document import batch_size, document

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paramctl.render import Screen
    from paramctl.report import Report


def draw(report: Report, screen: Screen) -> Iterator[str]:  # noqa: ARG001 - JSON is the same on every screen
    """A row a line; a report without columns is one line of its own."""
    if not report.columns:
        yield encode(document(report)) + "\n"
        return
    for rows in batches(report.rows, batch_size(report)):
        yield joined_lines(row_texts(report.columns, rows))
