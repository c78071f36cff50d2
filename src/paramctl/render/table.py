"""Header tier: an aligned table; on a terminal, fitted to its width."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING

from paramctl.render._cells import cells, fold, joined_lines, paint, totals_text
from paramctl.render._layout import GAP, Chosen, Drawn, drawn, fitted, says_something, sides_joined, without

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paramctl.render import Screen
    from paramctl.report import Report

_STYLES = {"shape": "shape", "a → b": "shape", "dtype": "type", "class": "type", "tie": "tie", "tied_with": "tie"}
_STATUSES = {"added": "good", "removed": "bad", "changed": "tie", "shape": "other", "dtype": "other", "same": "dim"}
_ROWS = 4096  # in a chunk


def draw(report: Report, screen: Screen) -> Iterator[str]:
    """Rows under a line of keys; on a terminal, fitted to its width, with the totals below."""
    values = list(zip(*report.rows, strict=True)) or [()] * len(report.columns)
    chosen: list[Chosen] = list(zip(report.columns, values, strict=True))
    if screen.is_terminal and not report.is_picked:
        shapes = next((v for column, v in chosen if column.key == "shape"), ())
        chosen = [(column, v) for column, v in sides_joined(chosen, screen) if says_something(column, v, shapes)]
    columns = [drawn(column, v, screen) for column, v in chosen]
    widths = [column.widest for column in columns]
    hidden: list[str] = []
    if screen.is_terminal:
        columns, hidden = (columns, []) if report.is_picked else without(columns, screen.width)
        widths = fitted(columns, screen.width)
    if columns and screen.header:
        heads = [fold(column.key, width) for column, width in zip(columns, widths, strict=True)]
        yield joined_lines(_stacked(heads, columns, widths, ["head"] * len(columns), screen))
    yield from _body(columns, widths, len(report.rows), screen)
    if screen.is_terminal:
        yield joined_lines(paint(line, "dim", screen) for line in _foot(report, hidden, screen))


def _body(columns: list[Drawn], widths: list[int], count: int, screen: Screen) -> Iterator[str]:
    styles = [_STYLES.get(column.key, "") for column in columns]
    padded = []
    folded = set()
    for column, width, style in zip(columns, widths, styles, strict=True):
        padded.append(_padded(column, width, style, screen, is_last=column is columns[-1]))
        if column.widest > width:
            folded |= {i for i, used in enumerate(column.widths) if used > width}
    for start in range(0, count if columns else 0, _ROWS):
        end = min(start + _ROWS, count)
        lines = list(map(GAP.join, zip(*(column[start:end] for column in padded), strict=True)))
        for i in folded.intersection(range(start, end)):
            parts = [fold(column.texts[i], width) for column, width in zip(columns, widths, strict=True)]
            lines[i - start] = "\n".join(_stacked(parts, columns, widths, styles, screen))
        yield joined_lines(lines)


def _padded(column: Drawn, width: int, style: str, screen: Screen, *, is_last: bool) -> list[str]:
    """Each text at its width; what comes again is made once."""
    if column.is_plain and (not screen.color or (column.column.unit == "name" and not style)):
        if is_last and not column.is_right:
            return column.texts
        return list(map(str.rjust if column.is_right else str.ljust, column.texts, repeat(width)))
    known = {}
    for text, used in dict(zip(column.texts, column.widths, strict=True)).items():
        blank = " " * (width - used)
        painted = paint(text, _style(column, text, style), screen)
        known[text] = blank + painted if column.is_right else painted if is_last else painted + blank
    return [known[text] for text in column.texts]


def _style(column: Drawn, text: str, style: str) -> str:
    """Of one text: some say by their word how they look."""
    if text == "-":
        return "dim"
    return _STATUSES.get(text, style) if column.key == "status" and style != "head" else style


def _stacked(
    parts: list[list[str]], columns: list[Drawn], widths: list[int], styles: list[str], screen: Screen
) -> Iterator[str]:
    """A row whose texts take several lines, without blanks at the end of any."""
    for i in range(max(map(len, parts), default=0)):
        line = blank = ""
        for part, column, width, style in zip(parts, columns, widths, styles, strict=True):
            text = part[i] if i < len(part) else ""
            room = " " * (width - cells(text))
            if not text:
                blank += room + GAP
                continue
            before, after = (room, "") if column.is_right else ("", room)
            line += blank + before + paint(text, _style(column, text, style), screen)
            blank = after + GAP
        yield line


def _foot(report: Report, hidden: list[str], screen: Screen) -> list[str]:
    words = totals_text(report.totals, screen)
    lines = fold(words, screen.width) if words else []
    if hidden:
        lines += fold(f"not shown: {', '.join(hidden)} (see --format tsv, or a wider screen)", screen.width)
    return lines
