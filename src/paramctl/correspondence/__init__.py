"""Header tier: which tensor of a checkpoint is which of a model, where the names are not the same; with evidence.

A table of detectors proposes renamings, each is held against every name, and the first that brings more together is
taken, until none does. What no renaming mends, as a transposed matrix, is told beside it. A renaming is one-to-one, and
where its shapes do not agree it is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from paramctl.correspondence.detectors import DETECTORS, SPELLED, Detector
from paramctl.correspondence.forms import Form, Forms, form
from paramctl.correspondence.reshapes import Reshape, reshapes, squares
from paramctl.correspondence.roots import Root, root
from paramctl.correspondence.state import State, Step

__all__ = ["Correspondence", "Form", "Forms", "Reshape", "Root", "Step", "correspond", "form"]

_MOST_STEPS = 24
_CONVINCING, _CONVINCING_BY_MEANING = 0.25, 0.75  # of the names


class Correspondence(NamedTuple):
    """How names become the wanted: below `root`, by `steps`; `names` has the outcome for each given name below it.

    `reshapes` are by the names as they have become, and so are `doubtful` ones: square, and perhaps transposed.
    """

    root: Root
    steps: tuple[Step, ...]
    names: Mapping[str, str]
    reshapes: tuple[Reshape, ...]
    doubtful: tuple[str, ...]
    left: State

    @property
    def rules(self) -> tuple[str, ...]:
        """The renaming, for `convert --rename-file`."""
        return tuple(rule for step in self.steps for rule in step.rules)


def correspond(given: Forms, wanted: Forms, *, extras: Iterable[str] = ()) -> Correspondence:
    """What is seen between names and the names that are wanted.

    Args:
        given: of the checkpoint, by name.
        wanted: of the model.
        extras: paths of what in the checkpoint is no tensor.
    """
    found = root(given, wanted, extras)
    prefix = f"{found.path}." if found.path else ""
    below = {name[len(prefix) :]: one for name, one in given.items() if name.startswith(prefix)}
    state = State(below, wanted)
    for detectors in DETECTORS:
        steps, after = _steps(state, detectors)
        if _is_convincing(after, steps):
            break
    else:
        found, steps, after, prefix = Root(), [], State(given, wanted), ""
        state = after
    became = {name: name for name in state.given}
    for step in steps:
        became = {name: step.changes.get(now, now) for name, now in became.items()}
    names = {prefix + name: now for name, now in became.items()}
    made = tuple(reshapes(after))
    return Correspondence(found, tuple(steps), names, made, squares(after, made), after)


def _steps(state: State, detectors: Sequence[Detector]) -> tuple[list[Step], State]:
    """One after another the best proposal of the first detector that has one; and what they make of the names."""
    steps: list[Step] = []
    while len(steps) < _MOST_STEPS and state.open_given and state.open_wanted:
        step = next(filter(None, (_best(state, detector) for detector in detectors)), None)
        if step is None:
            break
        steps.append(step)
        state = state.after(step.changes)
    return steps, state


def _best(state: State, detector: Detector) -> Step | None:
    held = [step for proposal in detector(state) if (step := state.held(proposal))]
    return max(held, key=lambda step: step.gain, default=None)


def _is_convincing(after: State, steps: Sequence[Step]) -> bool:
    """Whether so many have come together that it is no accident; what is spelled alike may be a part."""
    together = len(after.wanted) - len(after.open_wanted)
    least = _CONVINCING if all(step.kind in SPELLED for step in steps) else _CONVINCING_BY_MEANING
    least *= min(len(after.given), len(after.wanted))
    if together < least:
        together += sum(len(one.wanted) for one in reshapes(after) if one.kind in ("fused", "split"))
    return together >= least
