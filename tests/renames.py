"""What the rules of `convert --rename` mean, told anew: an oracle for those who write them."""

from __future__ import annotations

import re
from collections.abc import Iterable


def renamed(name: str, rules: Iterable[str]) -> str:
    """The name after all rules, one after another."""
    for rule in rules:
        name = by_one(name, rule)
    return name


def by_one(name: str, rule: str) -> str:
    """`re:` replaces what it finds; a name or a beginning is replaced where it stands, and `*` is any text."""
    if rule.startswith("re:"):
        pattern, _, template = rule[3:].rpartition("=>")
        return re.sub(pattern, template, name)
    old, _, new = (part.strip() for part in rule.partition("=>"))
    pattern = "(.*?)".join(map(re.escape, old.split("*")))
    ends = "" if not old or old.endswith(".") else r"(?=\.|\Z)"
    match = re.match(pattern + ends, name, re.DOTALL)
    if match is None:
        return name
    stars = iter(match.groups())
    made = "".join(next(stars) if piece == "*" else piece for piece in re.split(r"(\*)", new))
    rest = name[match.end() :]
    return made + rest if made or not rest.startswith(".") else rest[1:]
