"""Header tier: what changes while one looks at it: a curve, and a picture that is drawn over itself on a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Self, TextIO

from paramctl.render._cells import cells, value_text

if TYPE_CHECKING:
    from paramctl.render import Screen

_HEIGHT = 4  # lines of a curve
_LOGARITHMIC = 10  # from this ratio of the greatest to the least on
_BETWEEN = 0.1  # seconds between two pictures
_NO_WRAP, _WRAP, _WIPE = "\x1b[?7l", "\x1b[?7h", "\x1b[J"


def curve(values: Sequence[float], screen: Screen) -> list[str]:
    """A curve of four lines, with its greatest and its least value before them; logarithmic, if they are far apart.

    Where there are more values than columns, a column is the mean of those that fall on it. What is not finite is a
    gap, and what is 0 stands at the bottom.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return []
    least, greatest = min(finite), max(finite)
    positive = min((value for value in finite if value > 0), default=0.0)
    is_log = least >= 0 and greatest > positive * _LOGARITHMIC
    labels = [value_text(float(end), "number", screen) for end in (greatest, least)]
    margin = max(map(cells, labels))
    width = max((screen.width or 80) - margin - 1, 8)
    bottom = positive if is_log else least
    heights = [_height(mean, bottom, greatest, is_log=is_log) for mean in _columns(values, width)]
    gutters = [labels[0], *[""] * (_HEIGHT - 2), labels[1]]
    bars = " .:-=+*#%" if screen.ascii else " ▁▂▃▄▅▆▇█"
    return [
        f"{gutter:>{margin}} " + "".join(_piece(height, _HEIGHT - 1 - row, bars) for height in heights).rstrip()
        for row, gutter in enumerate(gutters)
    ]


def _columns(values: Sequence[float], width: int) -> list[float]:
    if len(values) <= width:
        return list(values)
    bounds = [i * len(values) // width for i in range(width + 1)]
    bins = [[v for v in values[a:b] if math.isfinite(v)] for a, b in pairwise(bounds)]
    return [sum(each) / len(each) if each else math.nan for each in bins]


def _height(value: float, least: float, greatest: float, *, is_log: bool) -> int:
    """In eighths of a line, from 1; 0 for what is not finite."""
    if not math.isfinite(value):
        return 0
    if is_log:
        value, least, greatest = math.log(max(value, least)), math.log(least), math.log(greatest)
    share = (value - least) / (greatest - least) if greatest > least else 0.0
    return 1 + round(share * (8 * _HEIGHT - 1))


def _piece(height: int, row: int, bars: str) -> str:
    return bars[min(max(height - 8 * row, 0), 8)]


class Painter:
    """Draws pictures over each other, and wipes the last away at the end, so that what follows stands in its place.

    >>> with Painter(sys.stdout) as painter:
    ...     painter.draw(["step 1"])
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drawn = 0  # lines
        self._due = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            self._stream.write(self._back())
            self._stream.flush()

    @property
    def is_due(self) -> bool:
        """Whether a new picture would be seen."""
        return time.monotonic() >= self._due

    def draw(self, lines: Sequence[str]) -> None:
        """Draw over the picture before; a line that is too long for the screen is cut there."""
        self._stream.write(self._back() + _NO_WRAP + "".join(f"{line}\n" for line in lines) + _WRAP)
        self._stream.flush()
        self._drawn = len(lines)
        self._due = time.monotonic() + _BETWEEN

    def _back(self) -> str:
        """To the first line of the picture before, and wipe it away."""
        return f"\r\x1b[{self._drawn}A{_WIPE}" if self._drawn else ""
