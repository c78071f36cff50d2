"""Values tier: which parameters stopped moving while others move, and which blew up."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from paramctl.values.course import Point

Mark = Literal["nan", "inf", "grew", "stopped", "frozen"]
MARKS: tuple[Mark, ...] = ("nan", "inf", "grew", "stopped", "frozen")
Courses = Mapping[str, Sequence[Point | None]]


class Limits(NamedTuple):
    """`still`: a parameter does not move in a step if its relative update is at most so much of the median of those
    that are updated in that step. `grew`: a norm blew up if it is more than so many times the median of those before.
    """

    still: float = 1e-3
    grew: float = 10.0


def marks(courses: Courses, limits: Limits) -> dict[str, list[Mark | None]]:
    """For each parameter a mark at each step.

    `nan` and `inf`: it has such elements. `grew`: as `Limits` has it. `stopped`: it moved before, and from here to the
    last step it does not, while others do. `frozen`: it never moves, while others do.
    """
    typical = _typical(courses)
    return {name: _of_one(points, typical, limits) for name, points in courses.items()}


def _typical(courses: Courses) -> list[float]:
    """The median relative update of each step, of what is updated at all."""
    steps = zip(*courses.values(), strict=True)
    return [
        statistics.median([point.rel_update for point in step if point and point.rel_update] or [0.0]) for step in steps
    ]


def _of_one(points: Sequence[Point | None], typical: Sequence[float], limits: Limits) -> list[Mark | None]:
    still = [_is_still(point, usual, limits) for point, usual in zip(points, typical, strict=True)]
    moved = any(is_still is False for is_still in still)
    since = len(still)  # from here on it never moves again
    while since and still[since - 1] is not False:
        since -= 1
    made: list[Mark | None] = []
    for at, point in enumerate(points):
        rests: Mark | None = None
        if still[at] and at >= since:
            rests = "stopped" if moved else "frozen"
        before = [other.l2 for other in points[:at] if other is not None]
        made.append(None if point is None else _blew_up(point, before, limits) or rests)
    return made


def _is_still(point: Point | None, usual: float, limits: Limits) -> bool | None:
    """Whether it rests; None where that cannot be told, or nothing moves."""
    if point is None or point.update is None or not usual:
        return None
    return point.rel_update is not None and point.rel_update <= limits.still * usual


def _blew_up(point: Point, before: Sequence[float], limits: Limits) -> Mark | None:
    if point.nan:
        return "nan"
    if point.inf:
        return "inf"
    usual = statistics.median(before) if before else 0.0
    return "grew" if usual and point.l2 > limits.grew * usual else None
