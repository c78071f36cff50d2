"""Header tier: names alone, for other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paramctl.errors import ParamctlError
from paramctl.render._cells import batches, escape_all, joined_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paramctl.render import Screen
    from paramctl.report import Report


def draw(report: Report, screen: Screen) -> Iterator[str]:
    """A name a line, escaped; or, with `nul`, each exactly as it is and ended by NUL.

    Raises:
        ParamctlError: the rows have no names.
    """
    place = next((i for i, column in enumerate(report.columns) if column.unit in ("name", "names")), None)
    if place is None:
        raise ParamctlError("no names to write here", hint="choose json, tsv or table with --format")
    return _names(report, place, screen)


def _names(report: Report, place: int, screen: Screen) -> Iterator[str]:
    for rows in batches(report.rows, 4096):
        found = [row[place] for row in rows]
        if report.columns[place].unit == "names":
            found = [name for names in found for name in names]
        yield "".join(f"{name}\0" for name in found) if screen.nul else joined_lines(escape_all(found))
