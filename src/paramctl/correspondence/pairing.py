"""Header tier: which of some tensors is which of some others, by shapes that agree and by what their names mean.

Families that have the same shapes at the same numbers stand in one bucket. Alone in it, a pair is found; of several,
those are paired that are each other's most alike, and more so than any other; what names cannot tell, the order may.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from paramctl.correspondence.forms import Form, Forms
from paramctl.correspondence.templates import Family, Level, families
from paramctl.correspondence.words import contradict, likeness

LEVELS: tuple[Level, ...] = ("all", "one", "none")

_MOST_COMPARED = 40_000  # pairs, those of the smallest buckets first
_LEAST_ALIKE = 0.4  # where not all of a bucket can be paired
_CLEARLY = 0.3  # more alike
_MOST_ALIKE = 100
_SHORTEST_ROW = 3


class Pair(NamedTuple):
    """A family and what it becomes; their numbers are the same."""

    given: Family
    wanted: Family
    why: str


def pairs(given: Forms, wanted: Forms, level: Level, *, is_transposed: bool = False) -> list[Pair]:
    """One-to-one pairs, of which there may be none."""
    buckets: dict[Hashable, tuple[list[Family], list[Family]]] = {}
    for family in families(given, level):
        buckets.setdefault(family.transposed if is_transposed else family.signature, ([], []))[0].append(family)
    for family in families(wanted, level):
        buckets.setdefault(family.signature, ([], []))[1].append(family)
    found: list[Pair] = []
    left = _MOST_COMPARED
    for some, others in sorted(buckets.values(), key=lambda bucket: len(bucket[0]) * len(bucket[1])):
        left -= len(some) * len(others)
        if left < 0:
            break
        if some and others:
            found += _within(some, others)
    return found


def sequence(given: Forms, wanted: Forms) -> list[Pair]:
    """All of both in their order, where every form is the same as its counterpart's."""
    if len(given) < _SHORTEST_ROW or list(given.values()) != list(wanted.values()):
        return []
    if any(map(contradict, given, wanted)) or _is_told_otherwise(given, wanted):
        return []
    why = f"by the order alone: the same {len(given):,} shapes follow each other"
    return [Pair(a, b, why) for a, b in zip(families(given, "none"), families(wanted, "none"), strict=True)]


def _is_told_otherwise(given: Forms, wanted: Forms) -> bool:
    """Whether some name is clearly more like another one of its shape than like its counterpart."""
    alike: dict[Form, list[str]] = {}
    for name, form in wanted.items():
        alike.setdefault(form, []).append(name)
    for (name, form), counterpart in zip(given.items(), wanted, strict=True):
        if len(alike[form]) <= _MOST_ALIKE:
            best = max(likeness(name, other) for other in alike[form])
            if best - likeness(name, counterpart) > _CLEARLY / 2:
                return True
    return False


def _within(some: Sequence[Family], others: Sequence[Family]) -> list[Pair]:
    """The pairs of one bucket."""
    if len(some) == len(others) == 1:
        alike = likeness(some[0].template, others[0].template)
        is_told = alike > 0 or (alike == 0 and any(one.shape for one in some[0].forms.values()))
        return [Pair(some[0], others[0], "the only one of its shape")] if is_told else []
    table = {(i, j): likeness(a.template, b.template) for i, a in enumerate(some) for j, b in enumerate(others)}
    least = 0.0 if len(some) == len(others) else _LEAST_ALIKE
    left, right = set(range(len(some))), set(range(len(others)))
    told: list[tuple[int, int]] = []
    while chosen := _mutual(table, left, right, least):
        told += chosen
        left -= {i for i, _ in chosen}
        right -= {j for _, j in chosen}
    told = [both for both in told if not any(_is_doubtful(table, both, other) for other in told)]
    why = f"the most alike of {max(len(some), len(others)):,} of its shape"
    found = [Pair(some[i], others[j], why) for i, j in told]
    if left and len(left) == len(right):
        rest = list(zip(sorted(left), sorted(right), strict=True))
        if all(table[both] > 0 and _is_as_good(table, both, left, right) for both in rest):
            why = "the only one left of its shape" if len(rest) == 1 else f"by their order: {len(rest)} are alike"
            found += [Pair(some[i], others[j], why) for i, j in rest]
    return found


Table = dict[tuple[int, int], float]


def _mutual(table: Table, left: set[int], right: set[int], least: float) -> list[tuple[int, int]]:
    """Pairs of which each is the other's most alike, and no second is as much so."""
    best: dict[int, int | None] = {i: _best([(table[i, j], j) for j in right], least) for i in left}
    back: dict[int, int | None] = {j: _best([(table[i, j], i) for i in left], least) for j in right}
    return [(i, j) for i, j in best.items() if j is not None and back[j] == i]


def _is_doubtful(table: Table, one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two pairs cross each other in the order of the names, and the other way round were nearly as alike."""
    (i, j), (m, n) = one, other
    crosses = (i < m) != (j < n) and i != m
    return crosses and table[one] + table[other] - table[i, n] - table[m, j] < _CLEARLY


def _best(scored: list[tuple[float, int]], least: float) -> int | None:
    scored = sorted(scored, reverse=True)
    if not scored or scored[0][0] <= least or (len(scored) > 1 and scored[1][0] == scored[0][0]):
        return None
    return scored[0][1]


def _is_as_good(table: Table, both: tuple[int, int], left: set[int], right: set[int]) -> bool:
    """Whether no other choice is more alike for either of the two."""
    i, j = both
    most = max([*(table[i, other] for other in right), *(table[other, j] for other in left)])
    return table[both] >= most or len(left) == 1
