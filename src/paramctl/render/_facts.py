"""Header tier: a report that has no rows: the file in short, a fact a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from paramctl.errors import escaped
from paramctl.render._cells import bytes_text, cells, fold, joined_lines, paint, totals_text, value_text
from paramctl.render._json import compact, encode

if TYPE_CHECKING:
    from paramctl.render import Screen
    from paramctl.report import Report

_ITEMS = 8  # of a list or mapping, on a terminal
_DEEPEST = 8


def flattened(report: Report) -> Iterator[tuple[str, Any]]:
    """Dotted keys and raw values: `totals.tensors`, `metadata.format`, `extras.epoch`."""
    yield "source", report.source
    yield "format", report.format
    for key, value in (("totals", report.totals), ("metadata", report.metadata), ("extras", report.extras)):
        if value:
            yield from _flat(key, value, 0)


def _flat(prefix: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value and depth < _DEEPEST:
        for key, item in value.items():
            yield from _flat(f"{prefix}.{key}", item, depth + 1)
    else:
        yield prefix, value


def facts(report: Report, screen: Screen) -> Iterator[tuple[str, str]]:
    """Keys and texts. On a terminal a value is summarised; in a pipe it is complete, on one line."""
    yield "source", escaped(report.source)
    yield "format", escaped(report.format)
    for key, value in report.totals.items():
        if key == "dtypes" and isinstance(value, Mapping):
            for dtype, totals in value.items():
                yield f"dtypes.{escaped(str(dtype))}", totals_text(totals, screen)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield escaped(key), bytes_text(value) if key.endswith("nbytes") else f"{value:,}"
        else:
            yield escaped(key), _text(value, screen)
    for section, mapping in (("metadata", report.metadata), ("extras", report.extras)):
        for key, value in (mapping or {}).items():
            yield f"{section}.{escaped(str(key))}", _text(value, screen)


def _text(value: Any, screen: Screen) -> str:
    if isinstance(value, str):
        return escaped(value)
    if not screen.is_terminal:
        return value_text(value, "", screen) if isinstance(value, (int, float)) else compact(value)
    return _short(value, 0, "..." if screen.ascii else "…")


def _short(value: Any, depth: int, ellipsis: str) -> str:
    """The first items of each list and mapping, and how many more there are."""
    if not isinstance(value, (Mapping, list, tuple)):
        return repr(value) if isinstance(value, float) else encode(value)
    if depth > 3:
        return ellipsis
    items = list(value.items() if isinstance(value, Mapping) else value)
    if isinstance(value, Mapping):
        texts = [f"{escaped(str(key))}: {_short(item, depth + 1, ellipsis)}" for key, item in items[:_ITEMS]]
    else:
        texts = [_short(item, depth + 1, ellipsis) for item in items[:_ITEMS]]
    if len(items) > _ITEMS:
        texts.append(f"{ellipsis} {len(items) - _ITEMS:,} more")
    return ("{%s}" if isinstance(value, Mapping) else "[%s]") % ", ".join(texts)


def draw(report: Report, screen: Screen) -> Iterator[str]:
    """A fact a line, keys aligned; long text is cut on a terminal, where `--format json` has the whole."""
    pairs = list(facts(report, screen))
    width = max(cells(key) for key, _ in pairs)
    if screen.is_terminal:
        width = min(width, max(screen.width // 3, 16))
    for key, text in pairs:
        yield joined_lines(_lines(key, text, width, screen))


def _lines(key: str, text: str, width: int, screen: Screen) -> list[str]:
    pad = " " * (width - cells(key) + 2)
    if not screen.is_terminal:
        return [f"{key}{pad}{text}".rstrip()]
    room = max(screen.width - width - 2, 8)
    pieces = fold(text, room) if len(text) <= 4 * room else [*fold(text[: 4 * room], room)[:4]]
    if len(text) > 4 * room:
        pieces[-1] = pieces[-1][: room - 4] + (" ..." if screen.ascii else " …")
    heads = fold(key, width)
    head = [paint(line, "head", screen) for line in heads]
    if len(heads) > 1:
        pad = " " * (width - cells(heads[-1]) + 2)
    return [
        *head[:-1],
        f"{head[-1]}{pad}{pieces[0]}".rstrip(),
        *(" " * (width + 2) + piece for piece in pieces[1:]),
    ]
