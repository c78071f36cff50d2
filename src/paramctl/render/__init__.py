"""Header tier: from a report to text. A renderer is one module with `draw`, and one row in `RENDERERS`.

Nothing here imports rich: 90,000 rows are laid out by hand, and what a terminal needs beyond that is five
escape codes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from paramctl.errors import ParamctlError, shortened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paramctl.report import Report

RENDERERS: dict[str, str] = {
    "tree": "tree",
    "table": "table",
    "tsv": "tsv",
    "json": "json_document",
    "jsonl": "json_lines",
    "markdown": "markdown",
    "names": "names",
    "sarif": "sarif",
}


class Screen(NamedTuple):
    """What the text is drawn for. Only a terminal is ever fitted to its width."""

    is_terminal: bool = False
    color: bool = False
    width: int = 80
    header: bool = True
    nul: bool = False  # names end with NUL, and are raw
    full: bool = False  # values are never summarised
    ascii: bool = False  # the encoding holds no guides, × or ·


def draw(report: Report, style: str, screen: Screen) -> Iterator[str]:
    """The report as chunks of text; lone surrogates in raw names are for the caller to encode.

    Raises:
        ParamctlError: no such format, or one that this report cannot take.
    """
    if style not in RENDERERS:
        raise ParamctlError(f"no format {shortened(style)!r}", hint=f"one of {', '.join(RENDERERS)}")
    chunks: Iterator[str] = import_module(f"{__name__}.{_module(report, style)}").draw(report, screen)
    return chunks


def _module(report: Report, style: str) -> str:
    """A table of values is blocks of numbers, and one without columns a list of facts."""
    if style == "table" and not report.columns:
        return "_facts"
    if style == "table" and any(column.unit == "value" for column in report.columns):
        return "_blocks"
    return RENDERERS[style]
