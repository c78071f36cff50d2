"""Header tier: which name of A is which of B.

Names are matched as they are, after renaming; then without what wraps a module inside a name; then without a prefix
that the names of one side have and those of the other have not. What was left out is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from paramctl import renaming
from paramctl.checkpoint import Param
from paramctl.errors import SelectError, shortened

# What DistributedDataParallel, torch.compile, FSDP, activation checkpointing and training scripts put before names.
_WRAPPERS = frozenset({
    "module", "model", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
    "state_dict", "model_state_dict",
})  # fmt: skip
_INNER = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})  # stand within names, too
_DEEPEST = 3  # components of a prefix


class Pair(NamedTuple):
    """A tensor of A and the one of B that it is compared with; one of them is None where there is none."""

    a: Param | None
    b: Param | None

    @property
    def name(self) -> str:
        """A's name, or B's where A has none."""
        return (self.a or self.b).name  # type: ignore[union-attr]

    @property
    def name_b(self) -> str | None:
        """B's name, where it is another than A's."""
        return self.b.name if self.a is not None and self.b is not None and self.a.name != self.b.name else None


def matched(
    a: Sequence[Param], b: Sequence[Param], *, rules: Sequence[renaming.Rule] = (), exact: bool = False
) -> tuple[list[Pair], list[str]]:
    """Pairs in A's order, those that only B has behind; and what is to be said of their names.

    Args:
        a: all tensors of A.
        b: all tensors of B.
        rules: for the names of A.
        exact: match names, so renamed, only as they are.

    Raises:
        SelectError: a rule renames nothing, or two names become one.
    """
    now = renaming.names(rules, [param.name for param in a]) if rules else {}
    _hold_apart(now)
    mine = {now.get(param.name, param.name): param for param in a}
    theirs = {param.name: param for param in b}
    partners = {name: name for name in mine if name in theirs}
    notes: list[str] = []
    for match in () if exact else (_without_wrappers, _without_prefix):
        taken = set(partners.values())
        left = [name for name in mine if name not in partners], [name for name in theirs if name not in taken]
        found, said = match(*left)
        partners |= found
        notes += said
    taken = set(partners.values())
    pairs = [Pair(param, theirs[partners[name]] if name in partners else None) for name, param in mine.items()]
    return [*pairs, *(Pair(None, param) for name, param in theirs.items() if name not in taken)], notes


def _hold_apart(now: Mapping[str, str]) -> None:
    seen: dict[str, str] = {}
    for name, new in now.items():
        other = seen.setdefault(new, name)
        if other != name:
            both = f"{shortened(other, 80)} and {shortened(name, 80)}"
            raise SelectError(f"--rename: {both} would both be {shortened(new, 80)}")


def _without_wrappers(mine: Sequence[str], theirs: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Names that are the same without what wraps them."""
    known: dict[str, str] = {}
    for name in theirs:
        known.setdefault(_unwrapped(name), name)
    found = {}
    for name in mine:
        other = known.pop(_unwrapped(name), None)
        if other is not None:
            found[name] = other
    return found, [*_said("A", found), *_said("B", found.values())]


def _unwrapped(name: str) -> str:
    return _split(name)[1]


def _split(name: str) -> tuple[list[str], str]:
    """What wraps a name, and the rest."""
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part not in _WRAPPERS), len(parts) - 1)
    inner = [part for part in parts[first:] if part in _INNER]
    return [*parts[:first], *inner], ".".join(part for part in parts[first:] if part not in _INNER)


def _said(side: str, names: Iterable[str]) -> list[str]:
    found = list(dict.fromkeys(f"{part}." for name in names for part in _split(name)[0]))
    return [_note(side, found)] if found else []


def _note(side: str, parts: Sequence[str]) -> str:
    return f"names of {side} are compared without {' and '.join(map(shortened, parts))}"


def _without_prefix(mine: Sequence[str], theirs: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Names that are the same without the one prefix that most of a side have."""
    for side, one, other in (("A", mine, theirs), ("B", theirs, mine)):
        prefix = _prefix(one, set(other))
        if not prefix:
            continue
        rest = set(other)
        pairs = [(name, name.removeprefix(prefix)) for name in one if name.startswith(prefix)]
        pairs = [(name, short) for name, short in pairs if short in rest]
        return dict(pairs if side == "A" else [(b, a) for a, b in pairs]), [_note(side, [prefix])]
    return {}, []


def _prefix(one: Sequence[str], other: Collection[str]) -> str:
    """The prefix without which most names are among the others; none where two do as well, or where few do."""
    counts: Counter[str] = Counter()
    for name in one:
        at = -1
        for _ in range(_DEEPEST):
            at = name.find(".", at + 1)
            if at < 0:
                break
            if name[at + 1 :] in other:
                counts[name[: at + 1]] += 1
    best = counts.most_common(2)
    if not best or 2 * best[0][1] < min(len(one), len(other)) or (len(best) > 1 and best[0][1] == best[1][1]):
        return ""
    return best[0][0]
