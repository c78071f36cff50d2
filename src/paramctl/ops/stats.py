"""Values tier: what is to be said of the numbers of each tensor, or of all below a module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from paramctl import sharing
from paramctl.checkpoint import Checkpoint, Param
from paramctl.contents import Window
from paramctl.errors import FileError, ParamctlError
from paramctl.ops._modules import below
from paramctl.ops._stats_columns import (
    CHANNELS,
    COLUMNS,
    MORE,
    SPECTRAL,
    UNBOUNDED,
    By,
    Wanted,
    check,
    columns,
    quantile_key,
)
from paramctl.report import Report, few
from paramctl.select import Selection
from paramctl.values.channels import channels
from paramctl.values.distribution import distribution
from paramctl.values.scan import Unbounded, scan
from paramctl.values.spectrum import spectrum
from paramctl.values.stream import distinct
from paramctl.values.summarize import chosen, summarize
from paramctl.values.summary import Summary, merged

__all__ = ["COLUMNS", "MORE", "SPECTRAL", "Wanted", "stats"]

Found = TypeVar("Found")

_MERGED = ("mean", "std", "min", "max", "l2", "zeros", "nan", "inf")  # what totals tell of all


class _Group(NamedTuple):
    """A row: one tensor, or all that lie below a module, each element once."""

    name: str
    params: tuple[Param, ...]


def stats(
    checkpoint: Checkpoint,
    selection: Selection,
    wanted: Wanted = Wanted(),  # noqa: B008 - a constant
    *,
    by: By = "tensor",
    depth: int | None = None,
    tell: Callable[[int], None] | None = None,
) -> Iterator[Report]:
    """A row for each chosen tensor, or for each module: statistics of its finite elements.

    Each is a report of its own, as soon as its tensors are read; the last report has no row, but totals and notes.

    Args:
        checkpoint: what the tensors are of.
        selection: of it.
        wanted: what is asked for beside the usual.
        by: `module` for a row for each module that has tensors of its own, over all below it.
        depth: with modules, those at most so many steps below the root.
        tell: told the bytes that are read, as they are.

    Raises:
        FileError: the bytes are not there.
        ParamctlError: a column that is none, or that modules have not.
    """
    by = "module" if depth is not None else by
    check(wanted, by)
    groups = _modules(selection.chosen, depth) if by == "module" else [_Group(p.name, (p,)) for p in selection.chosen]
    empty = Report(columns(wanted, by), (), source=checkpoint.source.name, format=checkpoint.format)
    with Window(tell) as window:
        reckoner = _Reckoner(window, wanted, by)
        for group in groups:
            yield empty._replace(rows=(reckoner.row(group),))
        whole = reckoner.whole(_once(selection.chosen))
    totals = sharing.totals(checkpoint, selection.chosen)
    totals |= {key: _summarized(whole, key, wanted) for key in _MERGED}
    yield empty._replace(totals=totals, notes=few(reckoner.notes))


def _modules(params: Iterable[Param], depth: int | None) -> list[_Group]:
    held = {param.name: param for param in params}
    return [_Group(path, tuple(held[name] for name in names)) for path, names in below(held, depth).items()]


# ----------------------------------------------------------------------------- a row


class _Reckoner:
    """Each tensor is read once, whatever the number of its names and of the modules that it is in."""

    def __init__(self, window: Window, wanted: Wanted, by: By) -> None:
        self.window, self.wanted, self.by = window, wanted, by
        self.keys = tuple(column.key for column in columns(wanted, by))
        self.extra = chosen(wanted.columns, threshold=wanted.threshold)
        self.notes: list[str] = []
        self.known: dict[Any, Summary | None] = {}
        self.looked: dict[Any, Mapping[str, Any]] = {}

    def attempted(self, look: Callable[..., Found], *arguments: Any) -> Found | None:
        """What a look finds; None where it cannot find it, which a note says. A file's fault is an error."""
        try:
            return look(*arguments)
        except FileError:
            raise
        except ParamctlError as error:
            self.notes.append(error.what)
            return None

    def summary(self, param: Param) -> Summary | None:
        key = _elements(param)
        if key not in self.known:
            self.known[key] = self.attempted(summarize, param, self.window, self.extra)
        return self.known[key]

    def whole(self, params: Iterable[Param]) -> Summary | None:
        """Of all, each element once; None where some cannot be told."""
        parts = [self.summary(param) for param in params]
        return None if None in parts else merged(part for part in parts if part is not None)

    def row(self, group: _Group) -> tuple[Any, ...]:
        params = _once(group.params)
        summary = self.whole(params)
        dtypes = {param.dtype.name for param in params}
        told: dict[str, Any] = {
            "name": group.name,
            "dtype": dtypes.pop() if len(dtypes) == 1 else None,
            "shape": list(params[0].shape) if self.by == "tensor" else None,
            "numel": sum(param.numel for param in params),
            "tensors": len(group.params),
        }
        if summary is not None:
            told |= self.more(params, summary)
        return tuple(told[key] if key in told else _summarized(summary, key, self.wanted) for key in self.keys)

    def more(self, params: Sequence[Param], summary: Summary) -> Mapping[str, Any]:
        """What needs a look of its own."""
        key = tuple(map(sharing.identity, params))
        if key not in self.looked:
            self.looked[key] = {**self.spread(params, summary), **self.of_tensor(params[0], summary)}
        return self.looked[key]

    def spread(self, params: Sequence[Param], summary: Summary) -> dict[str, Any]:
        wanted = self.wanted
        if not wanted.quantiles and not wanted.bins:
            return {}
        limits = (summary.min, summary.max)
        found = distribution(params, self.window, at=wanted.quantiles, bins=wanted.bins, limits=limits)
        whole = all(param.dtype.kind in ("int", "uint", "bool") for param in params)
        quantiles = [_integer(value) if whole else value for value in found.quantiles]
        told: dict[str, Any] = dict(zip(map(quantile_key, wanted.quantiles), quantiles, strict=True))
        return told | ({"hist": list(found.counts)} if wanted.bins else {})

    def of_tensor(self, param: Param, summary: Summary) -> dict[str, Any]:
        keys = frozenset(self.wanted.columns)
        told: dict[str, Any] = {}
        if not keys.isdisjoint(UNBOUNDED):
            seen = scan(param, self.window) if summary.nan or summary.inf else Unbounded()
            told |= {"first_nan": _listed(seen.first_nan), "first_inf": _listed(seen.first_inf)}
        for fields, look in ((CHANNELS, channels), (SPECTRAL, spectrum)):
            if not keys.isdisjoint(fields):
                found = self.attempted(look, param, self.window) or (None,) * len(fields)
                told |= zip(fields, map(_plain, found), strict=True)
        return told


def _elements(param: Param) -> tuple[Any, ...]:
    """The same for names of the very same elements, in whatever shape and order they are shown."""
    once, times = distinct(param)
    axes: list[tuple[int, int]] = []
    for size, by in zip(once.shape, once.stride, strict=True):
        if axes and axes[-1][1] == by * size:
            axes[-1] = (axes[-1][0] * size, by)
        else:
            axes.append((size, by))
    return param.storage.key, once.storage_offset, tuple(axes), times, param.dtype.name


def _once(params: Sequence[Param]) -> Sequence[Param]:
    """Of names of the very same elements the first."""
    if len(params) == 1:
        return params
    return list({_elements(param): param for param in reversed(params)}.values())[::-1]


def _listed(index: tuple[int, ...] | None) -> list[int] | None:
    return None if index is None else list(index)


def _integer(value: float | None) -> float | int | None:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _summarized(summary: Summary | None, key: str, wanted: Wanted) -> Any:
    if summary is None:
        return None
    if key == "std":
        return summary.deviation(1 if wanted.sample else 0)
    return getattr(summary, key)
