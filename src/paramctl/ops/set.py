"""Header tier: assignments and in-place operators on slices, planned.

Numbers are first touched where a plan is carried out: what is wrong with a name, a slice or a shape is known before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from paramctl import assign, recipe, sharing
from paramctl.assign import Assignment
from paramctl.checkpoint import Checkpoint, Param
from paramctl.errors import ParamctlError, SelectError, shortened
from paramctl.ops import opened
from paramctl.ops._tied import tied_names
from paramctl.plan import Change, Plan
from paramctl.recipe import Rule
from paramctl.select import Pick, select

_VALUES = "paramctl.ops._set_values"


def set(  # noqa: A001 - the command's name
    checkpoint: Checkpoint, assignments: Sequence[str], *, rules: Sequence[Rule] = ()
) -> Plan:
    """A change for each parameter that a rule or an assignment is about, in the order in which they are written.

    Raises:
        SelectError: a malformed assignment, or a name that is not there.
    """
    parsed = []
    for rule in rules:
        with recipe.named(rule):
            parsed += [assign.parse(checkpoint, text) for text in _spelled_out(checkpoint, rule)]
    parsed += [assign.parse(checkpoint, text) for text in assignments]
    written = _Written(parsed)
    tied = tied_names(checkpoint.params)
    changes = []
    for assignment in parsed:
        for pick in assignment.picks:
            _check_shapes(assignment, pick)
            compute = _compute(assignment, pick, written)
            others = (checkpoint.params[name] for name in tied.get(pick.param.name, ()))
            along = tuple(other.name for other in others if sharing.meet(pick.view, other) != "apart")
            changes.append(Change(pick.param, pick.view, compute, "set", assignment.text.strip(), along))
    return Plan(tuple(changes), begin=written.clear)


def _spelled_out(checkpoint: Checkpoint, rule: Rule) -> list[str]:
    """A rule as assignments to the parameters that it selects."""
    if not assign.begins(rule.scheme):
        raise SelectError(f"{shortened(rule.said)}: set begins with =, +=, -=, *= or /=")
    return [f"{param.name} {rule.scheme}" for param in select(checkpoint, rule.patterns, rule.filters).chosen]


class _Written:
    """What earlier changes of the same plan put where, of the storages from which a value is read."""

    def __init__(self, assignments: Sequence[Assignment]) -> None:
        self.sources = {a.value.param.storage.key for a in assignments if isinstance(a.value, Pick)}
        self.pieces: list[tuple[str, int, bytes]] = []

    def clear(self) -> None:
        self.pieces.clear()

    def add(self, param: Param, span: memoryview) -> None:
        if param.storage.key in self.sources and param.storage.data is None:
            self.pieces.append((param.storage.key, param.span[0], bytes(span)))


def _compute(assignment: Assignment, pick: Pick, written: _Written) -> Callable[[memoryview], str]:
    def compute(span: memoryview) -> str:
        did: str = opened(_VALUES, "set").assign(assignment, pick.view, span, written.pieces)
        written.add(pick.view, span)
        return did

    return compute


def _check_shapes(assignment: Assignment, pick: Pick) -> None:
    value = assignment.value
    shape = value.view.shape if isinstance(value, Pick) else assign.shape(value)
    if shape is None:
        raise ParamctlError(f"{shortened(assignment.text)}: the lists are not all of one length")
    wanted = pick.view.shape
    fits = len(shape) <= len(wanted)  # broadcasting, of any number of dimensions
    if not fits or any(a not in (1, b) for a, b in zip(reversed(shape), reversed(wanted), strict=False)):
        where = f"{shortened(pick.view.name)}[{pick.slice}]" if pick.slice else shortened(pick.view.name)
        raise ParamctlError(f"{where} is {_shape(wanted)}, and the value is {_shape(shape)}")


def _shape(shape: tuple[int, ...]) -> str:
    return shortened("×".join(map(str, shape)), 120) if shape else "a scalar"
