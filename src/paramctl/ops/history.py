"""Values tier: parameters over a row of checkpoints: norms, updates and angles, and which stopped or blew up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from paramctl.checkpoint import Checkpoint, Param
from paramctl.contents import Window
from paramctl.errors import FileError, ParamctlError, shortened
from paramctl.formats import training_folder
from paramctl.formats.training_folder import found
from paramctl.ops._history_marks import MARKS, Limits, marks
from paramctl.ops._history_shown import COLUMNS, shown
from paramctl.ops._modules import below
from paramctl.report import Report, few
from paramctl.select import Filters, select
from paramctl.values.course import Point, course

__all__ = ["COLUMNS", "Limits", "found", "history", "in_order", "shown"]

By = Literal["tensor", "module"]

_NAMED = 4  # in a note
_MOST_FILES = 256  # that are open at once, if there are fewer checkpoints


class Row(NamedTuple):
    """Checkpoints in order, and the step of each."""

    checkpoints: tuple[Checkpoint, ...]
    steps: tuple[int | None, ...]


def in_order(checkpoints: Sequence[Checkpoint], *, is_sorted: bool = True) -> Row:
    """The checkpoints by their steps; as they are, and numbered, where nothing tells the steps.

    Raises:
        ParamctlError: there is but one.
    """
    if len(checkpoints) < 2:
        named = f", and {shortened(checkpoints[0].source.name)} is one" if checkpoints else ""
        raise ParamctlError(
            f"a history is of two checkpoints or more{named}",
            hint="name several, a folder of them, or a pattern in quotes: 'run/step-*.pt'",
        )
    steps = training_folder.steps([one.source for one in checkpoints], [one.extras for one in checkpoints])
    if steps is None:
        return Row(tuple(checkpoints), tuple(range(len(checkpoints))))
    pairs = list(zip(checkpoints, steps, strict=True))
    if is_sorted:
        pairs.sort(key=lambda pair: (pair[1] is None, pair[1] or 0))
    return Row(tuple(one for one, _ in pairs), tuple(step for _, step in pairs))


def history(
    row: Row,
    patterns: Sequence[str] = (),
    filters: Filters = Filters(),  # noqa: B008 - a constant
    *,
    by: By = "tensor",
    depth: int | None = None,
    limits: Limits = Limits(),  # noqa: B008 - a constant
    tell: Callable[[int], None] | None = None,
) -> Report:
    """A row for each parameter and step.

    Args:
        row: the checkpoints.
        patterns: of what is told, in the grammar of the command line; each is to choose something in some checkpoint.
        filters: as on the command line.
        by: `module` for what lies below each module that has tensors of its own, together.
        depth: with modules, those at most so many steps below the root.
        limits: of what is marked.
        tell: told the bytes that are read, as they are.

    Raises:
        SelectError: nothing is selected.
        FileError: the bytes are not there.
        ParamctlError: a column that is none.
    """
    tensors = chosen(row.checkpoints, patterns, filters)
    courses, notes = _courses(tensors, len(row.checkpoints), tell)
    notes = (*notes, *_uneven(tensors))
    if by == "module" or depth is not None:
        courses = _by_module(courses, depth)
    marked = marks(courses, limits)
    sources = [one.source.name for one in row.checkpoints]
    rows = tuple(
        (name, step, source, *_numbers(point), mark)
        for name, points in courses.items()
        for step, source, point, mark in zip(row.steps, sources, points, marked[name], strict=True)
        if point is not None
    )
    totals: dict[str, Any] = {"checkpoints": len(sources), "parameters": len(courses)}
    totals |= {str(mark): sum(mark in some for some in marked.values()) for mark in MARKS}
    named = f"{sources[0]} … {sources[-1]}"
    return Report(COLUMNS, rows, totals, named, row.checkpoints[0].format, notes=notes)


def _numbers(point: Point) -> tuple[Any, ...]:
    angles = (None if one is None else one.cosine for one in (point.first, point.last))
    return (point.l2, point.update, point.rel_update, *angles, point.nan, point.inf)


def chosen(
    checkpoints: Sequence[Checkpoint], patterns: Sequence[str], filters: Filters
) -> dict[str, list[Param | None]]:
    """The chosen tensors of each checkpoint, by name, in the order in which they first appear."""
    merged: dict[str, Param] = {}
    for checkpoint in checkpoints:
        for name, param in checkpoint.params.items():
            merged.setdefault(name, param)
    whole = Checkpoint(checkpoints[0].source, checkpoints[0].format, merged, checkpoints[0].modules)
    selection = select(whole, patterns, filters)
    names = [param.name for param in selection.chosen]
    return {name: [checkpoint.params.get(name) for checkpoint in checkpoints] for name in names}


def _uneven(tensors: Mapping[str, list[Param | None]]) -> list[str]:
    """What comes, goes, or has another shape on the way, and so has steps without an update."""
    some = [name for name, params in tensors.items() if None in params]
    shaped = [name for name, params in tensors.items() if len({param.shape for param in params if param}) > 1]
    said = {"not in every checkpoint": some, "of another shape on the way": shaped}
    return [f"{what}: {_some(names)}" for what, names in said.items() if names]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(shortened(name, 60) for name in names[:_NAMED]) + more


def _courses(
    tensors: Mapping[str, list[Param | None]], count: int, tell: Callable[[int], None] | None
) -> tuple[dict[str, Sequence[Point | None]], tuple[str, ...]]:
    """Each tensor is read once, whatever the number of its names; what cannot be told is left out, and noted."""
    known: dict[Any, Sequence[Point | None]] = {}
    courses: dict[str, Sequence[Point | None]] = {}
    notes: dict[Any, str] = {}
    windows = [Window(tell, files=max(1, _MOST_FILES // count)) for _ in range(count)]
    try:
        for name, params in tensors.items():
            key = tuple(None if param is None else _identity(param) for param in params)
            try:
                if key not in known and key not in notes:
                    known[key] = course(params, windows)
            except FileError:
                raise
            except ParamctlError as error:
                notes[key] = error.what
            if key in known:
                courses[name] = known[key]
    finally:
        for window in windows:
            window.__exit__()
    return courses, few(list(notes.values()))


def _identity(param: Param) -> tuple[Any, ...]:
    return (param.storage.key, param.storage_offset, param.shape, param.stride, param.dtype.name)


def _by_module(courses: Mapping[str, Sequence[Point | None]], depth: int | None) -> dict[str, Sequence[Point | None]]:
    """All below each module together: squares and products add up. A tied tensor counts once."""
    found: dict[str, Sequence[Point | None]] = {}
    for path, names in below(courses, depth).items():
        once = {id(courses[name]): courses[name] for name in names}
        found[path] = [_sum(at) for at in zip(*once.values(), strict=True)]
    return found


def _sum(points: Iterable[Point | None]) -> Point | None:
    whole: Point | None = None
    for point in points:
        whole = point if whole is None else whole if point is None else whole.plus(point)
    return whole
