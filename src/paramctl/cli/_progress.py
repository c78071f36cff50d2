"""Header tier: how far a command is: a line on stderr, on a terminal only, after half a second, wiped away at the end.

>>> with Progress(total_nbytes) as progress, Window(progress.tell) as window:
...     progress.name = "h.0.attn.weight"
"""

from __future__ import annotations

import math
import os
import select
import sys
import time
from typing import Self

from paramctl.errors import shortened
from paramctl.render._cells import bytes_text, cells

_BEFORE, _BETWEEN = 0.5, 0.1  # seconds before the first line, and until the next


class Progress:
    """Of so many bytes, or of nobody knows how many, those that were told; or, said in words of one's own.

    Args:
        nbytes: of all.
        is_for_reader: whether the command is for what it prints alone: it ends when nobody reads that any more, and
            not only when it has something to print.
    """

    def __init__(self, nbytes: int = 0, *, is_for_reader: bool = True) -> None:
        self.nbytes = nbytes
        self.name = ""  # of what is being read
        self._told = 0
        self._due = time.monotonic() + _BEFORE if sys.stderr.isatty() else math.inf
        self._is_said = False
        self._looks = 0.0 if is_for_reader else math.inf  # when next

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_said:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def tell(self, nbytes: int) -> None:
        """That so many bytes more were read.

        Raises:
            BrokenPipeError: nobody reads what is printed.
        """
        self._told += nbytes
        now = time.monotonic()
        if now >= self._looks:
            self._looks = now + _BETWEEN
            _hold_against_closed()
        if now < self._due:
            return
        if not self.nbytes:
            self._print(f"{bytes_text(self._told)} read")
            return
        told = min(self._told, self.nbytes)
        self._print(f"{told / self.nbytes:4.0%}  {bytes_text(told)} of {bytes_text(self.nbytes)}")

    def at(self, name: str) -> None:
        """The name of what is being read from now on."""
        self.name = name

    def say(self, words: str, name: str) -> None:
        """How far it is, and with what."""
        self.at(name)
        if time.monotonic() >= self._due:
            self._print(words)

    def _print(self, words: str) -> None:
        self._is_said = True
        self._due = time.monotonic() + _BETWEEN
        room = _width() - len(words) - 3
        name = shortened(self.name, room) if room > 8 else ""
        line = f"{words}  {name}" if name and cells(name) <= room else words
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def _hold_against_closed() -> None:
    output = select.poll()
    output.register(1, 0)
    if any(event & select.POLLERR for _, event in output.poll(0)):
        raise BrokenPipeError


def _width() -> int:
    try:
        return os.get_terminal_size(2).columns or 80
    except OSError:
        return 80
