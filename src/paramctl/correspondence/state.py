"""Header tier: how far two sets of names have come towards each other, and a step that brings them closer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

from paramctl.correspondence import rules as lines
from paramctl.correspondence.forms import Forms, agrees
from paramctl.correspondence.templates import samples


class Proposal(NamedTuple):
    """A renaming, by `rules` and name by name. `why` says what was seen, `reasons` what of one name alone."""

    kind: str
    rules: tuple[str, ...]
    changes: Mapping[str, str]
    why: str
    reasons: Mapping[str, str] = MappingProxyType({})  # by the new name
    needs: float = 1.0  # the least share of the new names that must be wanted, and of these that agree


class Step(NamedTuple):
    """A renaming, held against all names. Of `tensors`, `found` are wanted by their new name, and `agreeing` fit."""

    kind: str
    rules: tuple[str, ...]
    changes: Mapping[str, str]
    why: str
    reasons: Mapping[str, str]
    tensors: int
    found: int
    agreeing: int
    gain: int

    @property
    def label(self) -> str:
        """The step in few words, for each name that it changes."""
        return self.why if self.kind == "offset" else self.rules[0]

    @property
    def evidence(self) -> str:
        """What speaks for it, in a sentence."""
        if self.agreeing == self.tensors:
            return f"{self.why}; {_all(self.tensors)}"
        if self.found == self.tensors:
            return f"{self.why}; {self.agreeing:,} of {self.tensors:,} shapes agree"
        return f"{self.why}; {self.found:,} of {self.tensors:,} are then wanted, and {self.agreeing:,} of these agree"


def _all(count: int) -> str:
    return {1: "its shape agrees", 2: "both shapes agree"}.get(count, f"all {count:,} shapes agree")


class State:
    """The names as they have become, with their forms, and those that are wanted."""

    def __init__(self, given: Forms, wanted: Forms) -> None:
        self.given, self.wanted = given, wanted

    def is_settled(self, name: str) -> bool:
        """Whether a name stands for itself."""
        return agrees(self.given.get(name), self.wanted.get(name))

    @cached_property
    def open_given(self) -> Forms:
        """What no tensor is found for."""
        return {name: form for name, form in self.given.items() if not agrees(form, self.wanted.get(name))}

    @cached_property
    def open_wanted(self) -> Forms:
        """What is not found."""
        return {name: form for name, form in self.wanted.items() if not agrees(self.given.get(name), form)}

    @cached_property
    def free(self) -> Forms:
        """What is given under a name that nobody wants."""
        return {name: form for name, form in self.given.items() if name not in self.wanted}

    @cached_property
    def missing(self) -> Forms:
        """What is wanted under a name that is not there."""
        return {name: form for name, form in self.wanted.items() if name not in self.given}

    @cached_property
    def samples(self) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """Some of the open names on either side, and for how many each stands."""
        return samples(self.open_given), samples(self.open_wanted)

    def after(self, changes: Mapping[str, str]) -> State:
        """With other names."""
        return State({changes.get(name, name): form for name, form in self.given.items()}, self.wanted)

    def held(self, proposal: Proposal) -> Step | None:
        """The proposal, if it is one-to-one, brings more together than it parts, and enough of the shapes agree."""
        changes = {old: new for old, new in proposal.changes.items() if old != new}
        new = set(changes.values())
        if not changes or len(new) < len(changes) or not new.isdisjoint(self.given.keys() - changes.keys()):
            return None
        if "" in new or not lines.is_sayable("".join(new)):
            return None
        found = sum(name in self.wanted for name in new)
        agreeing = sum(agrees(self.given[old], self.wanted.get(name)) for old, name in changes.items())
        gain = agreeing - sum(map(self.is_settled, changes))
        if gain <= 0 or found < proposal.needs * len(changes) or agreeing < proposal.needs * found:
            return None
        return Step(
            proposal.kind, proposal.rules, changes, proposal.why, proposal.reasons, len(changes), found, agreeing, gain
        )
