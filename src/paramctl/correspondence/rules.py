r"""Header tier: a renaming as the lines that `convert --rename-file` reads: `old=>new`, each on what the last one made.

A plain rule is of a name, or of a beginning that ends where a step of the path does; `re:` stands before a regular
expression, of which every place that it finds is replaced. What a plain rule cannot say, because a name holds what it
would read as something else, is said by a regular expression.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from paramctl.correspondence.templates import spelled

_ASIDE = "~renamed"  # where names go that must not meet each other on the way
_MOST_STARS = 3
_NUMBER = r"(\d+)"
_SPECIAL = re.compile(r"=>|\A#|\Are:")
_END, _WHOLE = r"(?=\.|\Z)", r"\Z"


def beginning(old: str, new: str) -> str:
    """`module.=>`: another beginning, each with the dot that ends it, or empty."""
    if _is_plain(old, new):
        return f"{old}=>{new}"
    return f"re:\\A{pattern(old)}=>{template(new)}"


def step(old: str, new: str) -> str:
    """Another word wherever a step of the path is called `old`; an empty one takes the step away."""
    if not new:
        return f"re:(\\A|\\.){pattern(old)}\\.=>\\1"
    before = r"\g<1>" if new[0].isdigit() else r"\1"
    return f"re:(\\A|\\.){pattern(old)}{_END}=>{before}{template(new)}"


class Head(NamedTuple):
    """Another path for all below `old`, or for that one name alone; both are templates with as many open numbers.

    `by_stars`: a star, which stands for any text, finds no more names than a number does.
    """

    old: str
    new: str
    is_whole: bool = False
    by_stars: bool = False

    def rule(self, aside: str = "") -> str:
        """The rule; what it makes is put below `aside`."""
        new = aside + self.new
        is_open = "*" in self.old
        if not self.is_whole and (not is_open or self.by_stars) and _is_plain(self.old, new, stars=is_open):
            return f"{self.old}=>{new}"
        made, count = [], 0
        for part in new.split("."):
            count += part == "*"
            made.append(_group(count) if part == "*" else template(spelled(part)))
        return f"re:{_anchored(self.old, _WHOLE if self.is_whole else _END)}=>{'.'.join(made)}"

    def finds_the_same(self, names: Iterable[str]) -> bool:
        """Whether `by_stars` holds."""
        if self.old.count("*") > _MOST_STARS:  # a regular expression may try that many stars in any number of ways
            return False
        if any(part != "*" and "*" in part for part in f"{self.old}.{self.new}".split(".")):
            return False
        number = matcher(self.old)
        star = re.compile("(.*?)".join(map(re.escape, self.old.split("*"))) + _END, re.DOTALL).match
        return all(bool(number(name)) == bool(star(name)) for name in names)


def _group(number: int) -> str:
    return f"\\{number}" if number < 10 else f"\\g<{number}>"


def in_order(heads: Sequence[Head], names: Iterable[str]) -> tuple[str, ...]:
    """A rule for each; where a later one would take what an earlier one made, all go aside first.

    `names` are all there are.
    """
    if not any(_meet(head.new, later.old) for at, head in enumerate(heads) for later in heads[at + 1 :]):
        return tuple(head.rule() for head in heads)
    aside = _ASIDE
    taken = {name.partition(".")[0] for name in names}
    while aside in taken:
        aside += "~"
    there = (head._replace(by_stars=False).rule(f"{aside}.") for head in heads)  # a star would find what is aside
    return (*there, beginning(f"{aside}.", ""))


def matcher(head: str) -> Callable[[str], re.Match[str] | None]:
    """What tells whether a name is at or below the head, a template."""
    return re.compile(_anchored(head, _END)).match


def _anchored(head: str, end: str) -> str:
    parts = (_NUMBER if part == "*" else pattern(spelled(part)) for part in head.split("."))
    return r"\A" + r"\.".join(parts) + end


def is_sayable(name: str) -> bool:
    """Whether a rule can make this name: a template has no word for what breaks a line, beyond Latin 1."""
    return name.isprintable() or all(character.isprintable() or ord(character) <= 0xFF for character in name)


def _meet(a: str, b: str) -> bool:
    """Whether a name can be below both of two heads."""
    return all(x == y or "*" in (x, y) for x, y in zip(a.split("."), b.split("."), strict=False))


def _is_plain(*texts: str, stars: bool = False) -> bool:
    """Whether a plain rule is read as it is meant."""
    return not any(
        text != text.strip() or not text.isprintable() or _SPECIAL.search(text) or ("*" in text and not stars)
        for text in texts
    )


def pattern(text: str) -> str:
    """A regular expression of just this text, on one line and without an arrow."""
    escaped = "".join(re.escape(c) if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
    return escaped.replace("=>", "=\\>")


def template(text: str) -> str:
    """What `re.sub` makes this text of, on one line and without an arrow."""
    found = "".join(c if c.isprintable() else f"\\{ord(c):03o}" for c in text.replace("\\", "\\\\"))
    return found.replace("=>", "=\\076")
