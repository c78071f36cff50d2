"""A curve of numbers, and pictures that are drawn over each other."""

from __future__ import annotations

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramctl.render import Screen, live

BARS = " ▁▂▃▄▅▆▇█"
WIDE = Screen(is_terminal=True, width=80)


def heights(lines: list[str]) -> list[int]:
    """The height of each column in eighths of a line, as it is drawn."""
    margin = lines[0].index(" ", len(lines[0]) - len(lines[0].lstrip())) + 1
    columns = [line[margin:] for line in lines]
    width = max(map(len, columns))
    return [sum(BARS.index(column.ljust(width)[i]) for column in columns) for i in range(width)]


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([0.0, 1.0, 2.0, 3.0], [1, 11, 22, 32]),  # 1 + round(31 · share)
        ([5.0, 5.0], [1, 1]),
        ([1000.0, 100.0, 10.0, 1.0], [32, 22, 11, 1]),  # logarithmic
        ([100.0, 1.0, 0.0], [32, 1, 1]),  # logarithmic, and 0 at the bottom
        ([-100.0, 100.0], [1, 32]),
        ([1.0, math.nan, 3.0, math.inf], [1, 0, 32]),
    ],
)
def test_a_value_is_as_high_as_its_share(values, drawn):
    """From the least, one eighth, to the greatest, four lines; what is not finite is a gap."""
    assert heights(live.curve(values, WIDE)) == drawn


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=500), st.integers(12, 200))
def test_a_curve_keeps_the_width(values, width):
    """However many values there are, four lines hold them, labelled with the greatest and the least."""
    lines = live.curve(values, Screen(is_terminal=True, width=width))
    assert len(lines) == 4
    assert max(map(len, lines)) <= max(width, 8 + 1 + max(len(f"{v:.4g}") for v in (max(values), min(values))))
    assert lines[0].split()[0] == f"{max(values):.4g}"
    assert lines[3].split()[0] == f"{min(values):.4g}"


def test_many_values_are_averaged():
    """A column is the mean of the values that fall on it."""
    values = [float(i % 2 * 10 + i // 100) for i in range(1000)]
    mean = live.curve([sum(values[at : at + 20]) / 20 for at in range(0, 1000, 20)], WIDE)
    narrow = Screen(is_terminal=True, width=50 + len("19 "))
    lines = live.curve(values, narrow)
    assert [high > low for low, high in zip(heights(lines), heights(lines)[10:], strict=False)] == [
        high > low for low, high in zip(heights(mean), heights(mean)[10:], strict=False)
    ]
    assert len(heights(lines)) == 50


def test_ascii_and_nothing():
    """Without block characters other marks are taken; nothing finite is no curve."""
    assert all(line.isascii() for line in live.curve([1.0, 2.0], WIDE._replace(ascii=True)))
    assert live.curve([], WIDE) == live.curve([math.nan], WIDE) == []


def test_a_picture_is_drawn_over_the_one_before():
    """The cursor goes back by as many lines as were drawn, and at the end nothing of them is left."""
    stream = io.StringIO()
    with live.Painter(stream) as painter:
        painter.draw(["a", "b"])
        painter.draw(["c"])
    wipe = "\x1b[J"
    assert stream.getvalue() == (f"\x1b[?7la\nb\n\x1b[?7h\r\x1b[2A{wipe}\x1b[?7lc\n\x1b[?7h\r\x1b[1A{wipe}")


def test_pictures_are_drawn_ten_times_a_second(monkeypatch):
    """A picture is due at once, and the next a tenth of a second later."""
    now = [5.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    painter = live.Painter(io.StringIO())
    assert painter.is_due
    painter.draw(["a"])
    assert not painter.is_due
    now[0] += 0.11
    assert painter.is_due


def test_nothing_drawn_leaves_nothing():
    """A painter that drew nothing writes nothing."""
    stream = io.StringIO()
    with live.Painter(stream):
        pass
    assert stream.getvalue() == ""
