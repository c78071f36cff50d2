"""Header tier: would a checkpoint load into a model, and if not, what is nearest and what would mend it.

What `torch.nn.Module.load_state_dict(strict=True)` would say is found in `_match_outcome`; here it is told, with the
renaming that would mend it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from paramctl.checkpoint import Checkpoint, branches
from paramctl.correspondence import Correspondence, correspond, form
from paramctl.ops._diff_rows import described
from paramctl.ops._match_candidates import with_candidates
from paramctl.ops._match_mending import mended, mending, notes, rename_file
from paramctl.ops._match_outcome import given_of, outcome, wanted_of
from paramctl.ops._match_rows import FAULTS, STATUSES, Row, Side
from paramctl.ops._match_shown import shown
from paramctl.ops._match_ties import lacking_ties, with_tied_candidates
from paramctl.report import Column, Report

__all__ = ["COLUMNS", "match", "rename_file", "shown"]

COLUMNS = (
    Column("name", "name"),
    Column("status", "word"),
    Column("a", "layout"),
    Column("b", "layout"),
    Column("candidate", "name"),
    Column("detail"),
)

_NESTED = 3  # branches within branches that are looked into for what is no tensor


def match(a: Checkpoint, b: Checkpoint, *, strict_dtype: bool = False, at: str = "") -> Report:
    """A row for each name of both: the model's in its order, then what it does not want.

    Args:
        a: the checkpoint.
        b: the model, or the checkpoint whose place it would take.
        strict_dtype: whether another dtype is a fault: torch copies it, and the model keeps its own.
        at: where the checkpoint is rooted, for the command that is said.

    Returns:
        Rows of which `a` and `b` are as `float32 [8,4]`. `totals["fits"]` is the answer. `totals["mending"]` is what
        would make it fit, None if nothing was found: `at`, `rules` for `convert --rename-file`, `steps` with their
        evidence, what no renaming mends, and `then`: what is left.
    """
    given, wanted = given_of(a), wanted_of(b)
    rows, said = outcome(given, wanted, strict_dtype=strict_dtype)
    found = _correspondence(given, wanted)
    then, last = None, rows
    if found.root.path or found.steps:
        last, more = outcome(mended(given, found), wanted, strict_dtype=strict_dtype)
        then = {"fits": not more and _fits(last), **_counts(last)}
    rows = with_tied_candidates(with_candidates(rows, found), wanted)
    made = mending(found, then, at=at)
    fits = not said and _fits(rows)
    counts = _counts(rows)
    words = (*said, *notes(made, counts, (a.source, b.source), fits=fits, lacking=lacking_ties(last)))
    return Report(COLUMNS, tuple(map(_told, rows)), {"fits": fits, **counts, "mending": made}, a.source.name, a.format,
                  notes=words)  # fmt: skip


def _counts(rows: Iterable[Row]) -> dict[str, int]:
    counts = dict.fromkeys(STATUSES, 0)
    for row in rows:
        counts[row.status] += 1
    return {str(status): count for status, count in counts.items()}


def _fits(rows: Iterable[Row]) -> bool:
    return all(row.status not in FAULTS for row in rows)


def _told(row: Row) -> tuple[Any, ...]:
    return (row.name, row.status, described(row.a), described(row.b), row.candidate, row.detail or None)


def _correspondence(given: Side, wanted: Side) -> Correspondence:
    forms = ({p.name: form(p.dtype, p.shape) for p in side.params.values()} for side in (given, wanted))
    inside = _inside(given.checkpoint.extras, set(branches(given.params)))
    return correspond(*forms, extras=(*given.others, *inside))


def _inside(extras: Mapping[str, Any], above: Collection[str], path: str = "", levels: int = _NESTED) -> Iterator[str]:
    """Paths of what is no tensor in the branches that have tensors."""
    for key, value in extras.items():
        name = f"{path}.{key}" if path else key
        if name in above and isinstance(value, Mapping) and levels:
            yield from _inside(value, above, name, levels - 1)
        elif path:
            yield name
