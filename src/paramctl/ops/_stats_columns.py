"""Header tier: what statistics are asked for, and under which columns they stand."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal, NamedTuple

from paramctl.errors import ParamctlError, nearest, shortened
from paramctl.report import Column

By = Literal["tensor", "module"]
BY: tuple[By, By] = ("tensor", "module")

COLUMNS = (
    Column("name", "name"),
    Column("dtype"),
    Column("shape", "shape"),
    Column("numel", "count"),
    Column("mean", "number"),
    Column("std", "number"),
    Column("min", "number"),
    Column("max", "number"),
    Column("l2", "number"),
    Column("zeros", "count"),
    Column("nan", "count"),
    Column("inf", "count"),
)
MORE = {
    column.key: column
    for column in (
        Column("l1", "number"),
        Column("rms", "number"),
        Column("absmax", "number"),
        Column("skew", "number"),
        Column("kurtosis", "number"),
        Column("sparsity", "number"),
        Column("first_nan", "shape"),
        Column("first_inf", "shape"),
        Column("zero_rows", "count"),
        Column("zero_cols", "count"),
        Column("repeated_rows", "count"),
        Column("spectral_norm", "number"),
        Column("condition", "number"),
        Column("stable_rank", "number"),
        Column("effective_rank", "number"),
        Column("tensors", "count"),
    )
}
SPECTRAL = ("spectral_norm", "condition", "stable_rank", "effective_rank")
UNBOUNDED = ("first_nan", "first_inf")
CHANNELS = ("zero_rows", "zero_cols", "repeated_rows")
_QUANTILE = re.compile(r"q(0?\.\d+|[01](\.0*)?)")
_OF_TENSORS = (*SPECTRAL, *UNBOUNDED, *CHANNELS)


class Wanted(NamedTuple):
    """What is asked for beside the columns that are always there.

    `columns` are keys of `MORE`; `quantiles` from 0 to 1; `bins` of a histogram, 0 for none; `threshold` of the
    magnitude up to which an element counts for `sparsity`; `sample` for the standard deviation with n - 1.
    """

    columns: tuple[str, ...] = ()
    quantiles: tuple[float, ...] = ()
    bins: int = 0
    threshold: float = 0.0
    sample: bool = False

    def also(self, words: Collection[str], bins: int) -> Wanted:
        """With what is named by columns: `l1`, `q0.9`, `hist`; other words are none of these."""
        columns = (*self.columns, *(key for key in MORE if key in words))
        named = (float(word[1:]) for word in words if _QUANTILE.fullmatch(word))
        quantiles = dict.fromkeys((*self.quantiles, *sorted(named)))
        return self._replace(
            columns=tuple(dict.fromkeys(columns)),
            quantiles=tuple(quantiles),
            bins=self.bins or (bins if "hist" in words else 0),
        )


def columns(wanted: Wanted, by: By = "tensor") -> tuple[Column, ...]:
    """The columns of a report."""
    more = [MORE[key] for key in dict.fromkeys((*(("tensors",) if by == "module" else ()), *wanted.columns))]
    quantiles = [Column(quantile_key(at), "number") for at in dict.fromkeys(wanted.quantiles)]
    return (*COLUMNS, *more, *quantiles, *([Column("hist", "histogram")] if wanted.bins else []))


def quantile_key(at: float) -> str:
    """`q0.5` for the median."""
    return f"q{at:.12g}"


def check(wanted: Wanted, by: By) -> None:
    """Refuse what is no column, or no quantile, or not of modules."""
    for key in wanted.columns:
        if key not in MORE:
            close = nearest(key, list(MORE))
            raise ParamctlError(f"no column {shortened(key)}", hint=f"one of {', '.join(close or MORE)}")
        if by == "module" and key in _OF_TENSORS:
            raise ParamctlError(f"{key} is of a tensor, and not of a module", hint="leave out --by and --depth")
    for at in wanted.quantiles:
        if not 0 <= at <= 1:
            raise ParamctlError(f"a quantile of {at:g}: not from 0 to 1")
    if not wanted.threshold >= 0:
        raise ParamctlError(f"a threshold of {wanted.threshold:g}: not 0 or more")
    if wanted.bins < 0:
        raise ParamctlError(f"{wanted.bins:,} bins: not 1 or more")
