"""Header tier: a table in GitHub's Markdown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from paramctl.render._cells import RIGHT, batches, column_texts, joined_lines
from paramctl.render._facts import facts
from paramctl.render.json_document import batch_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from paramctl.render import Screen
    from paramctl.report import Report

# What Markdown would read: a link, code, a tag, emphasis. An underscore inside a word means nothing to it.
_MARKS = re.compile(r"[\\`*\[\]<>|~&]|(?<![^\W_])_|_(?![^\W_])")


def draw(report: Report, screen: Screen) -> Iterator[str]:
    """A header, a rule that aligns numbers to the right, and a row a line."""
    keys = [column.key for column in report.columns] or ["key", "value"]
    rules = ["---:" if column.unit in RIGHT else "---" for column in report.columns] or ["---", "---"]
    if screen.header:
        yield _line(keys) + _line(rules)
    if not report.columns:
        yield joined_lines(_line(fact).rstrip("\n") for fact in facts(report, screen))
    for rows in batches(report.rows, batch_size(report)):
        columns = [
            _safe(values, column_texts(column, values, screen))
            for column, values in zip(report.columns, zip(*rows, strict=True), strict=True)
        ]
        yield "".join(map(_line, zip(*columns, strict=True)))


def _safe(values: Sequence[Any], texts: list[str]) -> list[str]:
    pairs = zip(values, texts, strict=True)
    texts = ["" if text == "-" and not isinstance(value, str) else text for value, text in pairs]
    if not _MARKS.search("\n".join(texts)):
        return texts
    known = {text: _MARKS.sub(r"\\\g<0>", text) for text in set(texts)}
    return [known[text] for text in texts]


def _line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |\n"
