"""Header tier: what is most like a tensor for which none was found."""

from __future__ import annotations

from collections.abc import Sequence

from paramctl.correspondence.forms import agrees
from paramctl.correspondence.state import State
from paramctl.correspondence.templates import Family, families
from paramctl.correspondence.words import likeness

_MOST_COMPARED = 250  # families of each side
_LEAST_ALIKE = 0.45
_AGREES = 0.25  # what a shape that agrees adds


def nearest(state: State) -> tuple[dict[str, str], dict[str, str]]:
    """For names that nothing was found for, on either side, those of the other that are most like them."""
    given = families(state.open_given, "all")[:_MOST_COMPARED]
    wanted = families(state.open_wanted, "all")[:_MOST_COMPARED]
    table = [[_score(a, b) for b in wanted] for a in given]
    there: dict[str, str] = {}
    back: dict[str, str] = {}
    for j, b in enumerate(wanted):
        _note(there, b, given, [row[j] for row in table])
    for i, a in enumerate(given):
        _note(back, a, wanted, table[i])
    return there, back


def _score(a: Family, b: Family) -> float:
    alike = likeness(a.template, b.template)
    shared = a.forms.keys() & b.forms.keys()
    some = next(iter(shared), None)
    fits = agrees(a.forms[some], b.forms[some]) if some is not None else False
    return alike + (_AGREES if fits and alike >= 0 else 0)


def _note(into: dict[str, str], family: Family, others: Sequence[Family], scores: Sequence[float]) -> None:
    if not scores or max(scores) < _LEAST_ALIKE:
        return
    best = others[scores.index(max(scores))]
    first = next(iter(best.names.values()))
    into.update((name, best.names.get(indices, first)) for indices, name in family.names.items())
