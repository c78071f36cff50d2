"""Header tier: names that share elements in one of two checkpoints, and not in the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from paramctl import sharing
from paramctl.checkpoint import Param
from paramctl.errors import shortened
from paramctl.ops._diff_match import Pair

_NOTED = 10


def of_one_side(params: tuple[Sequence[Param], Sequence[Param]], pairs: Iterable[Pair]) -> dict[str, list[list[str]]]:
    """Groups of A's names that share elements on one side alone; of names that both sides have."""
    both = [pair for pair in pairs if pair.a is not None and pair.b is not None]
    names = [{pair.a.name: pair.name for pair in both if pair.a}, {pair.b.name: pair.name for pair in both if pair.b}]
    mine, theirs = (_shared(side, known) for side, known in zip(params, names, strict=True))
    return {"A": _without(mine, theirs), "B": _without(theirs, mine)}


def _shared(params: Sequence[Param], names: Mapping[str, str]) -> list[list[str]]:
    groups = (group for group in sharing.groups(params) if group.saved_nbytes)
    found = ([names[name] for name in group.names if name in names] for group in groups)
    return [group for group in found if len(group) > 1]


def _without(groups: Sequence[list[str]], other: Sequence[list[str]]) -> list[list[str]]:
    """Groups that are in no group of the others."""
    known: dict[str, list[frozenset[str]]] = {}
    for group in map(frozenset, other):
        for name in group:
            known.setdefault(name, []).append(group)
    return [group for group in groups if not any(each.issuperset(group) for each in known.get(group[0], ()))]


def said(ties: Mapping[str, list[list[str]]]) -> list[str]:
    """A note for each of some groups."""
    notes = []
    for side, other in (("A", "B"), ("B", "A")):
        groups = ties.get(side, [])
        notes += [f"tied in {side} and not in {other}: {_listed(group)}" for group in groups[:_NOTED]]
        if len(groups) > _NOTED:
            notes.append(f"and {len(groups) - _NOTED:,} more that are tied in {side} and not in {other}")
    return notes


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4:,} more" if len(names) > 4 else ""
    return ", ".join(shortened(name, 80) for name in names[:4]) + more
