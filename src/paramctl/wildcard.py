r"""Header tier: the shell's wildcards over names, where `*` crosses dots, braces nest and `[0-31]` counts.

`*` any text, `?` a character, `[abc]` `[a-z]` `[!abc]` one of a set, `[0-31]` a number, `{a,b}` either, `\*` a star.

What has several lengths is spelled out: `{a,bc}*` is two patterns, and `[0-31]` one for each number of digits. What is
left between two stars has one length, so the first place where it fits is the best, and no pattern costs more than its
length times the name's. Written as plain `.*a.*a.*a.*b`, a regular expression would try more ways than there is time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from paramctl.errors import SelectError, caret, unescaped

_DEEPEST = 20  # braces within braces
_MOST_SPELLED_OUT = 1_000
_SPECIAL = re.compile(r"[*?\[{]")
_NUMBERS = re.compile(r"\[([0-9]+)-([0-9]+)\]")
_ESCAPE = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4}|U00(?:0[0-9a-f]|10)[0-9a-f]{4}|.)", re.DOTALL)

_Spelled = tuple[str, ...]  # regular expressions of one length each, and "*"


def is_wildcard(pattern: str) -> bool:
    """Whether it holds what is special, escaped or not."""
    return _SPECIAL.search(pattern) is not None


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Those of the names that the pattern fits, from end to end.

    Raises:
        SelectError: a bracket or brace that is not closed, or that holds no set or range; points at it.
    """
    spelled = _Parser(pattern).sequence(())
    fits = re.compile("|".join(map(_regex, spelled)), re.DOTALL).fullmatch
    return [name for name in names if fits(name)]


def _regex(spelled: _Spelled) -> str:
    first, *others = _segments(spelled)
    if not others:
        return first
    between = "".join(f"(?>.*?{segment})" for segment in others[:-1] if segment)
    return f"{first}{between}.*{others[-1]}"


def _segments(spelled: _Spelled) -> list[str]:
    segments = [""]
    for piece in spelled:
        if piece == "*":
            segments.append("")
        else:
            segments[-1] += piece
    return segments


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0

    def sequence(self, opened: tuple[int, ...]) -> list[_Spelled]:
        """Every spelling up to the end, or within braces up to the next comma or closing brace of theirs."""
        spelled: list[_Spelled] = [()]
        while self.at < len(self.pattern) and not (opened and self.pattern[self.at] in ",}"):
            options = self.step(opened)
            if len(spelled) * len(options) > _MOST_SPELLED_OUT:
                raise SelectError(
                    f"braces and ranges stand for more than {_MOST_SPELLED_OUT:,} patterns",
                    pointer=caret(self.pattern, opened[0] if opened else self.at - 1),
                )
            if len(options) == 1:
                for i, before in enumerate(spelled):
                    spelled[i] = before + options[0]
            else:
                spelled = [before + option for before in spelled for option in options]
        return spelled

    def step(self, opened: tuple[int, ...]) -> list[_Spelled]:
        char, start = self.pattern[self.at], self.at
        if char == "[":
            return [(piece,) for piece in self.bracket()]
        if char == "{":
            return self.braces((*opened, start))
        if char == "\\" and (escape := _ESCAPE.match(self.pattern, start)):
            self.at = escape.end()
            is_as_shown = len(escape[0]) > 2 or escape[0][1] in "nrt"
            return [(re.escape(unescaped(escape[0]) if is_as_shown else escape[0][1]),)]
        if char in "*?":
            self.at += 1
            return [("*" if char == "*" else ".",)]
        while self.at < len(self.pattern) and self.pattern[self.at] not in "*?[{\\" + (",}" if opened else ""):
            self.at += 1
        self.at = max(self.at, start + 1)  # a backslash at the very end
        return [(re.escape(self.pattern[start : self.at]),)]

    def braces(self, opened: tuple[int, ...]) -> list[_Spelled]:
        if len(opened) > _DEEPEST:
            raise SelectError("the braces are nested too deeply", pointer=caret(self.pattern, opened[-1]))
        options: list[_Spelled] = []
        while True:
            self.at += 1
            options += self.sequence(opened)
            if self.at >= len(self.pattern):
                raise SelectError("the brace is not closed", pointer=caret(self.pattern, opened[-1]))
            if self.pattern[self.at] == "}":
                self.at += 1
                return list(dict.fromkeys(options))

    def bracket(self) -> list[str]:
        start = self.at
        pointer = caret(self.pattern, start)
        numbers = _NUMBERS.match(self.pattern, start)
        if numbers:
            self.at = numbers.end()
            return _numbers(numbers[1], numbers[2], pointer)
        negated = self.pattern[start + 1 : start + 2] in ("!", "^")
        inside = start + 1 + negated
        end = self.pattern.find("]", inside + 1)  # the first may be a bracket itself
        if end < 0:
            raise SelectError("the bracket is not closed", pointer=pointer)
        self.at = end + 1
        return [_set(self.pattern[inside:end], "^" if negated else "", pointer)]


def _set(inside: str, negation: str, pointer: str) -> str:
    pieces, at = [], 0
    while at < len(inside):
        if inside[at + 1 : at + 2] == "-" and at + 2 < len(inside):
            low, high = inside[at], inside[at + 2]
            if low > high:
                raise SelectError("this is no range of characters", pointer=pointer)
            pieces.append(f"{re.escape(low)}-{re.escape(high)}")
            at += 3
        else:
            pieces.append(re.escape(inside[at]))
            at += 1
    return f"[{negation}{''.join(pieces)}]"


def _numbers(low: str, high: str, pointer: str) -> list[str]:
    """A regular expression for each number of digits; all of one length where `low` is padded with zeros."""
    if max(len(low), len(high)) > 18 or int(low) > int(high):
        raise SelectError("this is no range of numbers", pointer=pointer)
    if len(low) > 1 and low[0] == "0":
        return [_digits(low.zfill(len(high)), high.zfill(len(low)))]
    widths = range(len(low), len(high) + 1)
    return [_digits(low if w == len(low) else f"1{'0' * (w - 1)}", high if w == len(high) else "9" * w) for w in widths]


def _digits(low: str, high: str) -> str:
    """The numbers of as many digits as `low` and `high` that are between them."""
    if not low:
        return ""
    zeros, nines = "0" * (len(low) - 1), "9" * (len(low) - 1)
    if low[1:] == zeros and high[1:] == nines:
        return f"[{low[0]}-{high[0]}]" + "[0-9]" * len(zeros)
    if low[0] == high[0]:
        return low[0] + _digits(low[1:], high[1:])
    parts = [low[0] + _digits(low[1:], nines), high[0] + _digits(zeros, high[1:])]
    if int(high[0]) - int(low[0]) > 1:
        parts.insert(1, f"[{int(low[0]) + 1}-{int(high[0]) - 1}]" + "[0-9]" * len(zeros))
    return f"(?:{'|'.join(parts)})"
