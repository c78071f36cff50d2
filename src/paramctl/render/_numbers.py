"""Header tier: numbers of a tensor as torch prints them, without torch.

Source: torch/_tensor_str.py of torch 2.13, with its default options: 4 digits, a threshold of 1,000
elements, and 3 items at each edge.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_EDGE = 3
_THRESHOLD = 1000
_DIGITS = 4


class _Format(NamedTuple):
    """How the numbers of one tensor are written: all alike, so that they stand in columns."""

    kind: str  # "raw": integers and booleans; "whole": 3.; "fixed": 3.1416; "scientific": 3.1416e+00
    width: int

    def text(self, value: Any) -> str:
        if self.kind == "raw":
            text = f"{value}"
        elif self.kind == "scientific":
            text = f"{value:.{_DIGITS}e}"
        elif self.kind == "whole":
            text = f"{value:.0f}" + ("." if math.isfinite(value) else "")
        else:
            text = f"{value:.{_DIGITS}f}"
        return text.rjust(self.width)


class _Pair(NamedTuple):
    """Complex numbers, given as [real, imaginary]."""

    real: _Format
    imag: _Format

    @property
    def width(self) -> int:
        return self.real.width + self.imag.width + 1

    def text(self, value: Any) -> str:
        imag = self.imag.text(value[1]).lstrip() + "j"
        return self.real.text(value[0]) + (imag if imag[0] in "+-" else "+" + imag)


class _Page(NamedTuple):
    form: _Format | _Pair
    edge: int  # items at each edge of a list whose middle is left out; 0: the whole
    room: int  # columns


def pieces(
    value: Any, *, numel: int = 0, is_complex: bool = False, line_width: int, full: bool = False
) -> Iterator[str]:
    """The text of nested lists (or of one number), with line ends between rows but not at the end.

    Args:
        value: nested lists of numbers, NaN and infinities as floats.
        numel: elements of the tensor, where the lists hold no more than its edges.
        is_complex: whether the innermost lists are pairs of real and imaginary part.
        line_width: columns of a line; a longer row goes on in the next, indented.
        full: never leave out the middle.
    """
    shape = _shape(value)
    if 0 in shape:
        yield "[]"
        return
    if is_complex:
        shape = shape[:-1]
    edge = _EDGE if max(math.prod(shape), numel) > _THRESHOLD and not full else 0
    seen = list(_leaves(value, len(shape), edge))
    form: _Format | _Pair
    if is_complex:
        form = _Pair(_format([real for real, _ in seen]), _format([imag for _, imag in seen]))
    else:
        form = _format(seen)
    if not shape:
        yield form.text(value)
        return
    room = line_width - (len(shape) - 1)  # for the brackets that close
    yield from _nested(value, len(shape), 0, _Page(form, edge, room))


def _shape(value: Any) -> tuple[int, ...]:
    sizes = []
    while isinstance(value, list):
        sizes.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(sizes)


def _shown(items: list[Any], edge: int) -> list[Any]:
    """The items that are written; `...` stands for those that are not."""
    return [*items[:edge], ..., *items[-edge:]] if edge and len(items) > 2 * edge else items


def _leaves(value: Any, dim: int, edge: int) -> Iterator[Any]:
    if dim == 0:
        yield value
        return
    for item in _shown(value, edge):
        if item is ...:
            continue
        if dim == 1:
            yield item
        else:
            yield from _leaves(item, dim - 1, edge)


def _format(values: list[Any]) -> _Format:
    if not any(isinstance(value, float) for value in values):
        return _Format("raw", max(len(f"{value}") for value in values))
    finite = [value for value in values if value and math.isfinite(value)]
    if not finite:
        return _Format("whole", 1)
    low, high = min(map(abs, finite)), max(map(abs, finite))
    if high / low > 1000 or high > 1e8 or low < 1e-4:
        return _Format("scientific", max(len(f"{value:.{_DIGITS}e}") for value in finite))
    if all(float(value).is_integer() for value in finite):
        return _Format("whole", max(len(f"{value:.0f}") for value in finite) + 1)
    return _Format("fixed", max(len(f"{value:.{_DIGITS}f}") for value in finite))


def _nested(value: Any, dim: int, indent: int, page: _Page) -> Iterator[str]:
    if dim == 1:
        yield from _vector(value, indent, page)
        return
    begin = "["
    for item in _shown(value, page.edge):
        yield begin
        if item is ...:
            yield "..."
        else:
            yield from _nested(item, dim - 1, indent + 1, page)
        begin = "," + "\n" * (dim - 1) + " " * (indent + 1)
    yield "]"


def _vector(items: list[Any], indent: int, page: _Page) -> Iterator[str]:
    shown = _shown(items, page.edge)
    per_line = max(1, (page.room - indent) // (page.form.width + 2))
    begin = "["
    for start in range(0, len(shown), per_line):
        line = shown[start : start + per_line]
        yield begin + ", ".join(" ..." if item is ... else page.form.text(item) for item in line)
        begin = ",\n" + " " * (indent + 1)
    yield "]"
