"""Header tier: values, a block for each tensor: a line that says what it is, and its numbers below."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from paramctl.errors import escaped
from paramctl.render._cells import cells, fold, name_text, paint, value_text
from paramctl.render._numbers import pieces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paramctl.render import Screen
    from paramctl.report import Report


def draw(report: Report, screen: Screen) -> Iterator[str]:
    """A block a row, with a blank line between; rows of numbers wrap at the width of a terminal."""
    keys = [column.key for column in report.columns]
    for i, row in enumerate(report.rows):
        fields = dict(zip(keys, row, strict=True))
        yield ("\n" if i else "") + _heading(fields, screen)
        yield from _values(fields.get("value"), fields, screen)
        if _is_number(fields.get("grad")):
            yield paint("grad", "head", screen) + "\n"
            yield from _values(fields["grad"], fields, screen)


def _is_number(value: Any) -> bool:
    return isinstance(value, (list, int, float)) and not isinstance(value, bool)


def _values(value: Any, fields: dict[str, Any], screen: Screen) -> Iterator[str]:
    if value is None:
        yield paint("no values here", "dim", screen) + "\n"
        return
    is_complex = str(fields.get("dtype", "")).startswith("complex")
    width = screen.width if screen.is_terminal else sys.maxsize
    full = screen.full or not screen.is_terminal
    numel = math.prod(fields.get("shape") or ())  # the value of a larger tensor may hold its edges only
    yield from pieces(value, numel=numel, is_complex=is_complex, line_width=width, full=full)
    yield "\n"


def _heading(fields: dict[str, Any], screen: Screen) -> str:
    """`0.weight[0, :4]  Parameter  float32  8×4  requires_grad=True  grad=None`, folded where it must be."""
    piece = str(fields.get("slice") or "")
    piece = piece if not piece or piece.startswith("[") else f"[{piece}]"
    words = [(name_text(str(fields.get("name", ""))) + escaped(piece), "head")]
    words += [
        (escaped(str(fields[key])), "type" if key == "class" else "") for key in ("class", "dtype") if fields.get(key)
    ]
    if fields.get("shape") is not None:
        words.append((value_text(fields["shape"], "shape", screen), "shape"))
    for key in ("requires_grad", "grad"):
        if key in fields:
            text = " below" if key == "grad" and _is_number(fields[key]) else f"={fields[key]}"
            words.append((key + escaped(text), "dim"))
    lines, used = [""], 0
    for text, style in words:
        folded = fold(text, screen.width) if screen.is_terminal else [text]
        if used and screen.is_terminal and used + 2 + cells(text) > screen.width:
            lines.append("  ")
            used = 2
        elif used:
            lines[-1] += "  "
            used += 2
        lines[-1] += paint(folded[0], style, screen)
        lines += [paint(line, style, screen) for line in folded[1:]]
        used = cells(folded[-1]) + (used if len(folded) == 1 else 0)
    return "".join(f"{line}\n" for line in lines)
