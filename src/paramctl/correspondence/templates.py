"""Header tier: names with their numbers left open: `h.3.attn.weight` is `h.*.attn.weight` at (3,).

90,000 names are a hundred templates, so that what is found out about templates costs next to nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

from paramctl.correspondence.forms import Form, Forms

Level = Literal["all", "one", "none"]  # the numbers that are left open: all, those that count most layers, none
Indices = tuple[int, ...]

_NUMBER = re.compile(r"(?<![^.])(?:0|[1-9]\d{0,8})(?![^.])")  # a step of a path that is a number
_STARS = re.compile(r"(?<![^.])(\*+)(?![^.])")
_MOST_SHOWN = 2_000
MOST_DEEP = 40  # steps of a path that are looked at one by one


@lru_cache(maxsize=1 << 18)
def starred(name: str) -> tuple[str, Indices]:
    """The template of a name, and the numbers in it; a path without end is its own.

    A step that is called `*` itself becomes `**`.
    """
    name = closed(name)
    numbers = _NUMBER.findall(name) if name.count(".") < MOST_DEEP else ()
    return (_NUMBER.sub("*", name), tuple(map(int, numbers))) if numbers else (name, ())


def closed(name: str) -> str:
    """The template of one name alone: its numbers are no other's."""
    return _STARS.sub(r"*\1", name) if "*" in name else name


def spelled(part: str) -> str:
    """A step of a template, if it is none that is open, as it is in the names."""
    return part[1:] if len(part) > 1 and not part.strip("*") else part


class Family(NamedTuple):
    """Tensors of one template. `names` are by their open numbers."""

    template: str
    names: Mapping[Indices, str]
    forms: Mapping[Indices, Form]

    @property
    def signature(self) -> frozenset[tuple[Indices, Form]]:
        """What families that may be of each other have in common."""
        return frozenset(self.forms.items())

    @property
    def transposed(self) -> frozenset[tuple[Indices, Form]]:
        """The signature, had its matrices been transposed."""
        return frozenset((indices, one.transposed) for indices, one in self.forms.items())


def families(forms: Forms, level: Level) -> list[Family]:
    """The tensors by their templates, in the order of their first names."""
    if level == "none":
        return [Family(closed(name), {(): name}, {(): one}) for name, one in forms.items()]
    found: dict[str, dict[Indices, str]] = {}
    for name in forms:
        template, indices = starred(name)
        found.setdefault(template, {})[indices] = name
    if level == "one":
        found = _by_one(found)
    return [
        Family(template, names, {indices: forms[name] for indices, name in names.items()})
        for template, names in found.items()
    ]


def _by_one(found: Mapping[str, dict[Indices, str]]) -> dict[str, dict[Indices, str]]:
    """With all numbers put back but the one of which there are most."""
    made: dict[str, dict[Indices, str]] = {}
    for template, names in found.items():
        counts = [len(set(values)) for values in zip(*names, strict=True)]
        open_at = counts.index(max(counts)) if counts else -1
        for indices, name in names.items():
            numbers = iter(enumerate(indices))
            parts = [_put_back(part, numbers, open_at) for part in template.split(".")]
            made.setdefault(".".join(parts), {})[indices[open_at : open_at + 1] if counts else ()] = name
    return made


def _put_back(part: str, numbers: Iterable[tuple[int, int]], open_at: int) -> str:
    if part != "*":
        return part
    at, number = next(iter(numbers))
    return "*" if at == open_at else str(number)


def samples(forms: Forms, most: int = _MOST_SHOWN) -> list[tuple[str, int]]:
    """Some names that stand for all of their template (the first, the middle, the last), and for how many each."""
    found: dict[str, list[str]] = {}
    for name in forms:
        found.setdefault(starred(name)[0], []).append(name)
    chosen: list[tuple[str, int]] = []
    for names in found.values():
        some = dict.fromkeys((names[0], names[len(names) // 2], names[-1]))
        chosen += [(name, -(-len(names) // len(some))) for name in some]
    step = -(-len(chosen) // most)
    return [(name, count * step) for name, count in chosen[::step]] if step else []


def lists(names: Iterable[str]) -> dict[str, set[int]]:
    """Each path that numbers follow, its own numbers left open, with those numbers: `h` with {0, …, 11}."""
    found: dict[str, set[int]] = {}
    for template, all_indices in _grouped(names).items():
        parts = template.split(".", MOST_DEEP)
        at = 0
        for place, part in enumerate(parts[:MOST_DEEP]):
            if part == "*":
                found.setdefault(".".join(parts[:place]), set()).update(indices[at] for indices in all_indices)
                at += 1
    return found


def _grouped(names: Iterable[str]) -> dict[str, list[Indices]]:
    found: dict[str, list[Indices]] = {}
    for name in names:
        template, indices = starred(name)
        found.setdefault(template, []).append(indices)
    return found


def label(template: str, all_indices: Iterable[Indices]) -> str | None:
    """One name for all: `h.[0-11].weight`. None where they are not all there is between the least and the greatest."""
    known = set(all_indices)
    axes = [sorted(set(values)) for values in zip(*known, strict=True)]
    count = 1
    for axis in axes:
        if axis[-1] - axis[0] + 1 != len(axis):
            return None
        count *= len(axis)
    if count != len(known):
        return None
    ranges = iter(str(axis[0]) if len(axis) == 1 else f"[{axis[0]}-{axis[-1]}]" for axis in axes)
    return ".".join(next(ranges) if part == "*" else spelled(part) for part in template.split("."))


def heads(forms: Forms, level: Level) -> Counter[str]:
    """How many names begin with each path, itself included."""
    found: Counter[str] = Counter()
    for family in families(forms, level):
        for head in beginnings(family.template):
            found[head] += len(family.names)
    return found


def beginnings(name: str) -> list[str]:
    """`a`, `a.b`, `a.b.c` of `a.b.c`; of a path without end, itself alone."""
    parts = name.split(".")
    if len(parts) > MOST_DEEP:
        return [name]
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
