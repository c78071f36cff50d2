"""Values tier: the values of pairs of tensors, each pair of the very same elements once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from paramctl.checkpoint import Param
from paramctl.errors import FileError, ParamctlError, shortened
from paramctl.report import few
from paramctl.values.compare import Side, Sides, bytes_differ, compare, index, unchanged
from paramctl.values.comparison import Comparison, Tolerance
from paramctl.values.rank import MOST, Rank, numerical_rank


class Found(NamedTuple):
    """What is known of a pair; no comparison where its numbers cannot be told."""

    comparison: Comparison | None
    differs: bool = False
    max_at: list[int] | None = None
    rank: Rank | None = None


class Results(NamedTuple):
    """Of each pair, and of all, elements that several names share counted once."""

    found: list[Found]
    whole: Comparison
    unique_numel: int
    notes: list[str]


def look(
    pairs: Sequence[tuple[Param, Param]],
    *,
    tolerance: Tolerance,
    rank: bool,
    tell: Callable[[int], None] | None,
    reading: Callable[[str], None] | None,
) -> Results:
    """Compare the values of pairs of tensors of one shape.

    Raises:
        FileError: the bytes are not there.
        ParamctlError: some cannot be had.
    """
    with Side(tell) as a, Side(tell) as b:
        looker = _Looker(Sides(a, b), tolerance, with_rank=rank)
        keys = [identity(pair) for pair in pairs]
        once = dict(zip(keys, pairs, strict=True))
        for key, pair in once.items():
            if reading is not None:
                reading(pair[0].name)
            looker.look(key, *pair)
        if any(found.comparison and found.comparison.squares.value for found in looker.known.values()):
            for key in looker.same:
                looker.measure(key, *once[key])
    whole = Comparison()
    for found in looker.known.values():
        whole = whole.merge(found.comparison or Comparison())
    numel = sum(pair[0].numel for pair in once.values())
    return Results([looker.known[key] for key in keys], whole, numel, list(few(looker.notes)))


def numbers(comparison: Comparison | None) -> dict[str, Any]:
    """The columns of a row that are about values."""
    if comparison is None:
        return {}
    told = {"changed": comparison.changed, "nonfinite": comparison.unbounded}
    if comparison.is_measured:
        told |= {key: getattr(comparison, key) for key in ("max_abs", "l2", "rel_l2", "cosine")}
    return told


def merged(comparisons: Iterable[Comparison | None]) -> Comparison | None:
    """Of all; None where one is not known."""
    whole = Comparison()
    for comparison in comparisons:
        if comparison is None:
            return None
        whole = whole.merge(comparison)
    return whole


def identity(pair: tuple[Param, Param]) -> tuple[Any, ...]:
    """The same for pairs of the very same elements."""
    a, b = pair
    return (
        *(a.storage.key, a.storage_offset, a.shape, a.stride, a.dtype.name),
        *(b.storage.key, b.storage_offset, b.shape, b.stride, b.dtype.name),
    )


class _Looker:
    def __init__(self, sides: Sides, tolerance: Tolerance, *, with_rank: bool) -> None:
        self.sides, self.tolerance, self.with_rank = sides, tolerance, with_rank
        self.known: dict[tuple[Any, ...], Found] = {}
        self.same: list[tuple[Any, ...]] = []  # of which the norm is not known yet
        self.notes: list[str] = []

    def look(self, key: tuple[Any, ...], a: Param, b: Param) -> None:
        """Find out how a pair differs."""
        try:
            self.known[key] = self.found(key, a, b)
        except FileError:
            raise
        except ParamctlError as error:
            hint = error.hint or f"--layout reads no values, and '!{shortened(a.name)}' leaves this out"
            raise ParamctlError(error.what, hint=hint) from None

    def found(self, key: tuple[Any, ...], a: Param, b: Param) -> Found:
        if a.storage.is_meta and b.storage.is_meta:
            return Found(None)
        why = self.why_unknown(a, b)
        if why:
            self.notes.append(why)
            return Found(None, differs=a.dtype != b.dtype or bytes_differ(a, b, self.sides))
        comparison = compare(a, b, self.sides, self.tolerance)
        if comparison is None:
            self.same.append(key)
            return Found(_nothing(a), rank=Rank(0) if len(a.shape) > 1 else None)
        place = comparison.max_at
        return Found(
            comparison,
            comparison.differing > 0,
            None if place is None else index(a, place),
            self.rank(a, b) if self.with_rank else None,
        )

    def why_unknown(self, a: Param, b: Param) -> str:
        """Why the numbers of a pair cannot be told, or nothing."""
        try:
            here, there = self.sides.a.lane(a), self.sides.b.lane(b)
        except ParamctlError as error:
            return error.what
        if len({1 if each.is_complex else each.per_element for each in (here, there)}) == 1:
            return ""
        return f"{shortened(a.name)}: {a.dtype.name} and {b.dtype.name} are not compared: an element is not one number"

    def rank(self, a: Param, b: Param) -> Rank | None:
        try:
            found = numerical_rank(a, b, self.sides)
        except FileError:
            raise
        except ParamctlError as error:
            self.notes.append(error.what)
            return None
        if found is not None and found.is_least:
            self.notes.append(f"{shortened(a.name)}: its rank is {MOST} or more")
        return found

    def measure(self, key: tuple[Any, ...], a: Param, b: Param) -> None:
        """The norm of a pair that is the same: what a change elsewhere is relative to."""
        self.known[key] = self.known[key]._replace(comparison=unchanged(a, b, self.sides))


def _nothing(a: Param) -> Comparison:
    return Comparison(a.numel, finite=a.numel, max_abs=0 if a.dtype.kind in ("int", "uint", "bool") else 0.0)
