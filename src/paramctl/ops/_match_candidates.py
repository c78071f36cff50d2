"""Header tier: what each name of `match` that is missing or not wanted most probably is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from paramctl.correspondence import Correspondence, Reshape
from paramctl.correspondence.detectors import SPELLED
from paramctl.correspondence.forms import agrees, form, relation
from paramctl.correspondence.nearest import nearest
from paramctl.correspondence.reshapes import is_vocabulary
from paramctl.ops._match_rows import Row


class _Told(NamedTuple):
    candidate: str | None = None
    detail: str = ""


def with_candidates(rows: Sequence[Row], found: Correspondence) -> list[Row]:
    """The rows with the counterpart of each name that has none of its own, and what is said of shapes."""
    was = {now: name for name, now in found.names.items()}
    told = dict(_counterparts(found, was))
    near, back = nearest(found.left)
    for name, other in near.items():
        told.setdefault(name, _Told(was.get(other)))
    for name, other in back.items():
        told.setdefault(was.get(name, name), _Told(other))
    doubtful = frozenset(found.doubtful)
    return [_with_candidate(row, told, doubtful) for row in rows]


def _with_candidate(row: Row, told: Mapping[str, _Told], doubtful: frozenset[str]) -> Row:
    if row.status == "shape":
        return row._replace(detail=row.detail or _of_shapes(row))
    if row.status == "ok" and row.name in doubtful:
        return row._replace(detail="square, and beside transposed ones: it may be transposed, too")
    if row.candidate or row.status not in ("missing", "unexpected"):
        return row
    candidate, detail = told.get(row.name, _Told())
    return row._replace(candidate=candidate, detail=row.detail or detail)


def _counterparts(found: Correspondence, was: Mapping[str, str]) -> Iterator[tuple[str, _Told]]:
    """By its own name, what each becomes or was, and what speaks for it."""
    reshaped: dict[str, Reshape] = {name: one for one in found.reshapes for name in one.wanted}
    left = found.left
    for now in left.wanted:
        name = was.get(now, now)
        if name != now:
            said = [*_done(found, name)]
            if now in reshaped:
                said.append(reshaped[now].why)
            elif not agrees(left.given[now], left.wanted[now]):
                said.append("its shape is another")
            yield now, _Told(name, ", ".join(said))
            yield name, _Told(now, ", ".join(said))
    for one in found.reshapes:
        if one.kind in ("fused", "split"):
            given = [was.get(name, name) for name in one.given]
            for some, others in ((given, one.wanted), (one.wanted, given)):
                more = f"; the others are {', '.join(others[1:])}" if len(others) > 1 else ""
                yield from ((name, _Told(others[0], one.why + more)) for name in some)


def below(path: str) -> str:
    """How a name below a root is told."""
    return f"below {path}"


def is_by_spelling(detail: str, mending: Mapping[str, Any]) -> bool:
    """Whether a name becomes its candidate by nothing but the root and steps that go by how names are spelled."""
    labels = [step["label"] for step in mending["steps"] if step["kind"] == "root" or step["kind"] in SPELLED]
    for label in labels:
        if detail.startswith(label):
            detail = detail[len(label) :].removeprefix(", ")
    return not detail


def _done(found: Correspondence, name: str) -> Iterator[str]:
    """What was done to a name, in few words each."""
    if found.root.path:
        yield below(found.root.path)
        name = name.removeprefix(f"{found.root.path}.")
    for step in found.steps:
        if name in step.changes:
            name = step.changes[name]
            yield step.reasons.get(name) or step.label


def _of_shapes(row: Row) -> str:
    if row.a is None or row.b is None:
        return ""
    a, b = (form(param.dtype, param.shape) for param in (row.a, row.b))
    how = relation(a, b)
    if how == "transposed":
        return "transposed"
    if how == "rows" and is_vocabulary(row.name, a, b):
        side = "the file" if a.shape[0] > b.shape[0] else "the model"
        return f"{side} has {abs(a.shape[0] - b.shape[0]):,} rows more: a vocabulary that was padded"
    return ""
