"""Header tier: one JSON document, a row a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paramctl.render._cells import batches
from paramctl.render._json import encode, row_texts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paramctl.render import Screen
    from paramctl.report import Report


def draw(report: Report, screen: Screen) -> Iterator[str]:  # noqa: ARG001 - JSON is the same on every screen
    """`{"source", "format", "rows": [...], "totals"}`, and `metadata` and `extras` where there are any."""
    yield f'{{"source": {encode(report.source)}, "format": {encode(report.format)}, "rows": ['
    begin = "\n"
    for rows in batches(report.rows, batch_size(report)):
        yield begin + ",\n".join(row_texts(report.columns, rows))
        begin = ",\n"
    yield ("\n" if report.rows else "") + f'], "totals": {encode(dict(report.totals))}'
    for key, value in (("metadata", report.metadata), ("extras", report.extras)):
        if value is not None:
            yield f',\n"{key}": {encode(dict(value))}'
    yield "}\n"


def batch_size(report: Report) -> int:
    """Rows to hold at once; the values of one tensor may be many."""
    return 1 if any(column.unit == "value" for column in report.columns) else 4096


def document(report: Report) -> dict[str, Any]:
    """What a report without rows has to say."""
    more = {"metadata": report.metadata, "extras": report.extras}
    return {
        "source": report.source,
        "format": report.format,
        "totals": dict(report.totals),
        **{key: dict(value) for key, value in more.items() if value is not None},
    }
