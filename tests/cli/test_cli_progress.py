"""Progress is said on a terminal, after half a second, and nothing of it is left."""

from __future__ import annotations

import contextlib
import io
import sys

import pytest

from paramctl.cli import _progress
from paramctl.cli._progress import Progress

WIPED = "\r\x1b[K"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets: `clock[0] = seconds`."""
    now = [100.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    return now


def test_bytes_are_told_of_a_total_and_wiped_away(clock, monkeypatch):
    """After half a second, and ten times a second at most, a line says share, bytes and name; then it is wiped."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress(4 << 20) as progress:
        progress.name = "a\x1b[31m.weight"
        for clock[0], nbytes in ((100.4, 1 << 20), (100.5, 1 << 20), (100.55, 1 << 19), (100.7, 1 << 19)):
            progress.tell(nbytes)
    first, second = ("50%  2.0 MiB of 4.0 MiB", "75%  3.0 MiB of 4.0 MiB")
    name = "a\\x1b[31m.weight"
    assert screen.getvalue() == f"{WIPED} {first}  {name}{WIPED} {second}  {name}{WIPED}"


def test_bytes_of_an_unknown_number_are_told(clock, monkeypatch):
    """Where nobody knows how many there will be, a line says how many were read."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress() as progress:
        clock[0] += 1
        progress.tell(3 << 20)
    assert screen.getvalue() == f"{WIPED}3.0 MiB read{WIPED}"


def test_words_of_ones_own_are_said(clock, monkeypatch):
    """`say` says its words and the name, and a name that has no room is shortened."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(_progress, "_width", lambda: 40)
    with Progress() as progress:
        progress.say("1 of 9", "early")
        clock[0] += 1
        progress.say("2 of 9", "layers." * 20)
    (line,) = filter(None, screen.getvalue().split(WIPED))
    assert line.startswith("2 of 9  layers.")
    assert len(line) < 40


@pytest.mark.parametrize(("screen", "seconds"), [(Terminal(), 0.4), (io.StringIO(), 60)], ids=["fast", "a pipe"])
def test_nothing_is_said(screen, seconds, clock, monkeypatch):
    """What takes less than half a second says nothing, and a pipe is never told, not even to wipe."""
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress(100) as progress:
        clock[0] += seconds
        progress.tell(50)
        progress.say("1 of 2", "name")
    assert screen.getvalue() == ""


def test_an_error_leaves_no_line_behind(clock, monkeypatch):
    """The line is wiped away when what is watched fails, so that the error begins at the left."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    progress = Progress(100)
    clock[0] += 1
    with contextlib.suppress(ValueError), progress:
        progress.tell(200)
        int("gone")
    assert screen.getvalue() == f"{WIPED}100%  100 B of 100 B{WIPED}"
