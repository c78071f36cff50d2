"""Header tier: ties that one side of a match has and the other has not."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from paramctl import sharing
from paramctl.ops._match_rows import Row, Side

_TIED_TO = "tied to "
Ties = Mapping[str, tuple[str, ...]]  # all names of a tie, which is one object


def with_ties(rows: list[Row], given: Side, wanted: Side) -> list[Row]:
    """Ties that one side has and the other has not; a name that is missing has its tie as the candidate."""
    ours, theirs = _tied(given), _tied(wanted)
    if not ours and not theirs:
        return rows
    there = _first_of_each(theirs, given.params.keys() - given.aliases)
    return [
        _tied_to(row, there.get(row.name)) if row.status == "missing" else _with_tie(row, given, wanted, ours, theirs)
        for row in rows
    ]


def _first_of_each(ties: Ties, known: Container[str]) -> dict[str, str]:
    """For each name the first of its tie that is known. Each tie is gone over once, as it may be of all names."""
    every = {names[0]: names for names in ties.values()}
    firsts = {key: next((name for name in names if name in known), None) for key, names in every.items()}
    found = ((name, firsts[names[0]]) for name, names in ties.items())
    return {name: first for name, first in found if first is not None}


def _tied_to(row: Row, name: str | None) -> Row:
    """A name that is missing, whose tie has this one."""
    if name is None:
        return row._replace(candidate=None)
    return row._replace(candidate=name, detail=row.detail or f"{_TIED_TO}{name} in the model")


def _with_tie(row: Row, given: Side, wanted: Side, ours: Ties, theirs: Ties) -> Row:
    mine, others = ours.get(row.name, ()), theirs.get(row.name, ())
    if row.status not in ("ok", "cast"):
        return row
    first = others[0] if others else ""
    if first != row.name and first in given.params and (not mine or ours.get(first) is not mine):
        what = f"tied to {first} in the model, and two tensors here: the last to be copied wins"
        return row._replace(status="tie", detail=what)
    first = mine[0] if mine else ""
    if first != row.name and first in wanted.params and (not others or theirs.get(first) is not others):
        return row._replace(status="untied", detail=f"tied to {first} here, and a tensor of its own in the model")
    return row


def with_tied_candidates(rows: list[Row], wanted: Side) -> list[Row]:
    """A missing name that is tied to one whose candidate is known has that candidate, too."""
    ties = _tied(wanted)
    if not ties:
        return rows
    known = {row.name: row.candidate for row in rows if row.status == "missing" and row.candidate}
    firsts = _first_of_each(ties, known)
    made = []
    for row in rows:
        first = firsts.get(row.name)
        if row.status == "missing" and not row.candidate and first:
            row = row._replace(candidate=known[first], detail=f"tied to {first} in the model")  # noqa: PLW2901
        made.append(row)
    return made


def lacking_ties(rows: Iterable[Row]) -> list[str]:
    """Names that are missing, and tied to one that is there."""
    return [row.name for row in rows if row.status == "missing" and row.candidate and row.detail.startswith(_TIED_TO)]


def _tied(side: Side) -> dict[str, tuple[str, ...]]:
    """For each name that has the very elements of others, all that have them."""
    held = [param for param in side.params.values() if param.name not in side.aliases]
    same = (group.names for group in sharing.groups(held) if group.relation == "same")
    return {name: names for names in same for name in names}
