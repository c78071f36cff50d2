"""Header tier, and values unless the layout alone is asked for: how two checkpoints differ.

Tensors are matched by name. A difference is `removed`, `added`, `shape`, `dtype` or `changed`; what is called `same`
has the same values, up to the tolerance. Numbers are of B - A, relative to A. Elements that several names share are
looked at once, and count once in the totals.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from paramctl import renaming
from paramctl.checkpoint import Checkpoint
from paramctl.errors import ParamctlError
from paramctl.ops._diff_match import Pair, matched
from paramctl.ops._diff_rows import COLUMNS, STATUSES, By, Entry, by_module, by_tensor, columns
from paramctl.ops._diff_rows import values as tier
from paramctl.ops._diff_ties import of_one_side, said
from paramctl.report import Column, Report

_COMPARED = ("dtype", "same")  # layouts of which values are compared
_MEASURES = ("unique_numel", "l2", "rel_l2", "max_abs")  # of all, each element once


class Options(NamedTuple):
    """How two checkpoints are compared.

    Elements differ if |b - a| > atol + rtol · |a|. Without `values` layouts alone are compared. `rules` are for A's
    names, which are then matched as they are if `exact_names`, and else without prefixes too.
    """

    atol: float = 0.0
    rtol: float = 0.0
    values: bool = True
    ignore_dtype: bool = False
    ignore_ties: bool = False
    rules: tuple[renaming.Rule, ...] = ()
    exact_names: bool = False
    rank: bool = False
    by: By = "tensor"
    depth: int | None = None


def diff(
    a: Checkpoint,
    b: Checkpoint,
    options: Options = Options(),  # noqa: B008 - a constant
    *,
    chosen: tuple[Collection[str] | None, Collection[str] | None] = (None, None),
    tell: Callable[[int], None] | None = None,
    reading: Callable[[str], None] | None = None,
) -> Report:
    """A row for each name, or for each module: structural differences first, then the largest relative changes.

    Args:
        a: what is compared.
        b: with what.
        options: how.
        chosen: names of A and of B, of which a pair must have one; None for all.
        tell: told the bytes that are read, as they are.
        reading: told the name of what is being read.

    Raises:
        FileError: bytes are not there.
        ParamctlError: values cannot be had, or a rule is wrong.
    """
    _check(options)
    params = tuple(a.params.values()), tuple(b.params.values())
    pairs, notes = matched(*params, rules=options.rules, exact=options.exact_names)
    pairs = [pair for pair in pairs if _is_chosen(pair, chosen)]
    entries = [Entry(pair, _layout(pair, ignore_dtype=options.ignore_dtype)) for pair in pairs]
    numel = sum(entry.pair.a.numel for entry in entries if entry.status in _COMPARED and entry.pair.a)
    if not any(pair.a and pair.b for pair in pairs):
        notes.append("A and B have no names in common; --rename OLD=>NEW matches others")
    known: dict[str, Any] = dict.fromkeys(_MEASURES)
    if options.values:
        entries, known, more = _with_values(entries, options, tell, reading)
        notes += more
    ties = {} if options.ignore_ties else of_one_side(params, pairs)
    by: By = options.by if options.depth is None else "module"
    rows = by_tensor(entries) if by == "tensor" else by_module(entries, options.depth)
    keys = columns(by=by, rank=options.rank)
    totals = {
        "tensors": len(pairs),
        "numel": numel,
        "unique_numel": known.pop("unique_numel"),
        **{status: sum(entry.status == status for entry in entries) for status in reversed(STATUSES)},
        **known,
        "ties_only_a": ties.get("A", []),
        "ties_only_b": ties.get("B", []),
    }
    return Report(
        keys,
        tuple(tuple(row.get(column.key) for column in keys) for row in rows),
        totals,
        f"{a.source.name}, {b.source.name}",
        ", ".join(dict.fromkeys((a.format, b.format))),
        notes=(*notes, *said(ties)),
    )


def differs(report: Report) -> bool:
    """Whether two checkpoints are not the same, by their report."""
    totals = report.totals
    ties: list[Any] = [*totals["ties_only_a"], *totals["ties_only_b"]]
    return bool(ties) or any(totals[status] for status in STATUSES if status != "same")


def without_same(report: Report) -> Report:
    """The rows that are not `same`; the totals count the others."""
    at = report.columns.index(COLUMNS[1])
    return report._replace(rows=tuple(row for row in report.rows if row[at] != "same"))


def shown(report: Report, *, stat: bool = False) -> Report:
    """As people read it: without names that a prefix explains; and with `stat`, a bar for each row."""
    rows = report.dicts()
    keys: Sequence[str] = ("name", "status", "rel_l2") if stat else [c.key for c in report.columns]
    if all(_is_prefixed(row["name"], row["name_b"]) for row in rows if row.get("name_b")):
        keys = [key for key in keys if key != "name_b"]  # the note on prefixes has said it
    columns = [column for column in report.columns if column.key in keys]
    found = [tuple(row[key] for key in keys) for row in rows]
    if stat:
        columns.append(Column("", "bar"))
        found = [(*row, row[2]) for row in found]
    return report._replace(columns=tuple(columns), rows=tuple(found))


def _is_prefixed(name: str, other: str) -> bool:
    return name.endswith(f".{other}") or other.endswith(f".{name}")


def _check(options: Options) -> None:
    for key, value in (("atol", options.atol), ("rtol", options.rtol)):
        if not value >= 0:
            raise ParamctlError(f"a tolerance is 0 or more, and {key} is {value:g}")
    if options.rank and not options.values:
        raise ParamctlError("the rank of a change is of values, and these are not read")


def _is_chosen(pair: Pair, chosen: tuple[Collection[str] | None, Collection[str] | None]) -> bool:
    if chosen == (None, None):
        return True
    sides = zip((pair.a, pair.b), chosen, strict=True)
    return any(param is not None and names is not None and param.name in names for param, names in sides)


def _layout(pair: Pair, *, ignore_dtype: bool) -> str:
    a, b = pair
    if b is None:
        return "removed"
    if a is None:
        return "added"
    if a.shape != b.shape:
        return "shape"
    return "same" if a.dtype == b.dtype or ignore_dtype else "dtype"


# ----------------------------------------------------------------------------- values


def _with_values(
    entries: Sequence[Entry],
    options: Options,
    tell: Callable[[int], None] | None,
    reading: Callable[[str], None] | None,
) -> tuple[list[Entry], dict[str, Any], list[str]]:
    """The entries with what was found, totals, and notes."""
    values = tier()
    compared = [entry for entry in entries if entry.status in _COMPARED]
    results = values.look(
        [entry.pair for entry in compared],
        tolerance=values.Tolerance(options.atol, options.rtol),
        rank=options.rank,
        tell=tell,
        reading=reading,
    )
    found = iter(results.found)
    made = []
    for entry in entries:
        known = next(found) if entry.status in _COMPARED else None
        made.append(Entry(entry.pair, _status(entry, known), known))
    told = values.numbers(results.whole)
    if any(each.comparison is None for each in results.found):
        told = {}  # of all is not known, where it is not of one
    told["unique_numel"] = results.unique_numel
    return made, {key: told.get(key) for key in _MEASURES}, results.notes


def _status(entry: Entry, found: Any) -> str:
    """`same` becomes `changed` where values differ; and `dtype`, where another one's values cannot be told."""
    if found is None or entry.status != "same" or not found.differs:
        return entry.status
    a, b = entry.pair
    is_told = found.comparison is not None or a is None or b is None or a.dtype == b.dtype
    return "changed" if is_told else "dtype"
