"""Quantiles and histograms: those of numpy on the whole array, from pieces and in constant memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from paramctl.checkpoint import Param
from paramctl.contents import Window
from paramctl.dtypes import DTYPES
from paramctl.values import distribution as distributions
from paramctl.values import stream
from paramctl.values.distribution import Distribution, distribution
from paramctl.values.lanes import lane
from paramctl.values.summarize import summarize
from paramctl.values.summary import merged
from tensors import CODES, of_array, of_tensor, param

AT = (0.0, 0.01, 0.25, 1 / 3, 0.5, 0.99, 1.0)
SMALL = [name for name in DTYPES if DTYPES[name].block_nbytes <= 2 and DTYPES[name].block_numel == 1]


def spread(*params: Param, at: Sequence[float] = AT, bins: int = 0, numel: int = 1 << 16) -> Distribution:
    """Of some tensors together, so many elements at a time."""
    with Window() as window, pytest.MonkeyPatch.context() as patch:
        for function in (stream.numbers, stream.pieces):
            patch.setattr(function, "__kwdefaults__", {"numel": numel})
        whole = merged(summarize(one, window) for one in params)
        return distribution(params, window, at=at, bins=bins, limits=(whole.min, whole.max))


def every(*params: Param) -> np.ndarray:
    """The finite numbers in float64; of the tensors' own integers, where all are."""
    found = []
    with Window() as window, np.errstate(invalid="ignore"):  # signalling NaN
        for one in params:
            values = [part.copy() for part in stream.numbers(one, lane(one), window)]
            made = np.concatenate(values) if values else np.empty(0)
            made = made if made.dtype.kind in "iu" else made.astype(np.float64)
            found.append(np.hypot(made[::2], made[1::2]) if lane(one).is_complex else made)
    whole = (
        np.concatenate(found)
        if len({made.dtype for made in found}) == 1
        else np.concatenate([f.astype("f8") for f in found])
    )
    return whole[np.isfinite(whole)] if whole.dtype.kind == "f" else whole


def quantiles(values: np.ndarray, at: Sequence[float]) -> list[float | int]:
    """Definition 7 of Hyndman and Fan, on the line between two elements by fractions."""
    ordered = np.sort(values).tolist()
    found = []
    for quantile in at:
        place = (len(ordered) - 1) * quantile
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        exact = Fraction(low) + (Fraction(high) - Fraction(low)) * Fraction(place % 1)
        found.append(low if low == high or place % 1 == 0 else exact.numerator / exact.denominator)
    return found


def held_against_numpy(mine: Distribution, values: np.ndarray, at: Sequence[float] = AT) -> None:
    """By fractions to the last bit; and numpy's own to an ulp of the greater of both neighbours."""
    assert list(mine.quantiles) == quantiles(values, at)
    if values.dtype.kind == "f" and np.abs(values).max() < 1e300:
        theirs = np.quantile(values, at)
        ends = np.maximum(*(np.abs(np.quantile(values, at, method=way)) for way in ("lower", "higher")))
        assert (np.abs(np.array(mine.quantiles) - theirs) <= np.spacing(ends)).all()


# ----------------------------------------------------------------------------- quantiles


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint32", "int64", "uint64", "complex64"])
@pytest.mark.parametrize("numel", [100, 1 << 16])
def test_quantiles_are_numpy_s(dtype: str, numel: int):
    """Of random bits, with NaN and infinities left out."""
    raw = np.random.default_rng(0).integers(0, 256, 8 * 999, np.uint8).tobytes()
    whole = param(raw, dtype, (len(raw) // DTYPES[dtype].block_nbytes,))
    held_against_numpy(spread(whole, numel=numel), every(whole))


@pytest.mark.parametrize("dtype", SMALL)
def test_every_code_has_its_place(dtype: str):
    """Of 8 and 16 bits all codes, each as often as it has bits: a quantile is one of what they decode to."""
    size = DTYPES[dtype].block_nbytes
    codes = np.arange(1 << 8 * size, dtype=f"u{size}")
    whole = param(np.append(codes, codes[: 40 * size]).tobytes(), dtype, (len(codes) + 40 * size,))
    mine = spread(whole, bins=7, numel=1000)
    values = every(whole)
    held_against_numpy(mine, values)
    assert list(mine.counts) == np.histogram(values, 7)[0].tolist()


def arrays(*names: str) -> st.SearchStrategy[np.ndarray]:
    """Any bits of some dtypes, few different ones among them, so that many are equal."""

    def of(name: str) -> st.SearchStrategy[np.ndarray]:
        kind = np.dtype(CODES[name])
        few = st.sampled_from([0, 1, 2, 3]).map(kind.type)
        some = stn.from_dtype(kind) if kind.kind != "f" else st.floats(width=kind.itemsize * 8).map(kind.type)
        return stn.arrays(kind, st.integers(1, 50), elements=few | some)

    return st.sampled_from(names).flatmap(of)


@settings(max_examples=150, deadline=None)
@given(
    arrays("float32", "float64", "float16", "int8", "int64", "uint64", "bool"),
    st.lists(st.floats(0, 1), min_size=1, max_size=4), st.integers(1, 20),
)  # fmt: skip
def test_any_quantile_of_anything(values: np.ndarray, at: list[float], numel: int):
    """In pieces of any length; without finite elements there is none."""
    whole = of_array(values)
    mine = spread(whole, at=at, numel=numel)
    finite = every(whole)
    assert list(mine.quantiles) == (quantiles(finite, at) if finite.size else [None] * len(at))


def test_order_statistics_are_exact():
    """At k / (n - 1) a quantile is the k-th element itself."""
    for values in (np.random.default_rng(0).standard_normal(65).astype("f4"), np.arange(65) * (1 << 56) - (1 << 62)):
        at = [k / 64 for k in range(65)]
        assert list(spread(of_array(values), at=at).quantiles) == sorted(values.tolist())


def test_whole_numbers_stay_whole():
    """An element of an integer type beyond 2**53 is that integer; between two is the nearest float64."""
    values = np.array([(1 << 62) + 1, (1 << 62) + 3, -(1 << 63), (1 << 63) - 1])
    mine = spread(of_array(values), at=(0, 1, 0.5, 1 / 3))
    assert mine.quantiles == (-(1 << 63), (1 << 63) - 1, float((1 << 62) + 2), (1 << 62) + 1)


def test_between_the_ends_of_float64():
    """The line between the least and the greatest number does not overflow."""
    top = np.finfo(np.float64).max
    mine = spread(of_array(np.array([-top, top])), at=(0.25, 0.5, 0.75))
    assert mine.quantiles == (-top / 2, 0.0, top / 2)
    assert spread(of_array(np.array([0.0, 5e-324, 1e-323])), at=(0.25, 0.5, 0.75, 1)).quantiles == (
        0.0,
        5e-324,
        1e-323,
        1e-323,
    )


# ----------------------------------------------------------------------------- bins


@settings(max_examples=200, deadline=None)
@given(
    arrays("float32", "float64", "float16", "int8", "int32", "int64", "bool"), st.integers(1, 12), st.integers(1, 20)
)
def test_counts_are_those_between_edges(values: np.ndarray, bins: int, numel: int):
    """Every finite element is in one bin, the one whose edges it lies between."""
    whole = of_array(values)
    mine, finite = spread(whole, at=(), bins=bins, numel=numel), every(whole).astype(np.float64)
    assert len(mine.counts) == bins
    assert sum(mine.counts) == len(finite)
    if finite.size:
        edges = distributions._edges(bins, float(finite.min()), float(finite.max()))
        places = np.clip(np.searchsorted(edges, finite, "right") - 1, 0, bins - 1)
        assert list(mine.counts) == np.bincount(places, minlength=bins).tolist()


@pytest.mark.parametrize("bins", [1, 2, 3, 7, 10, 64, 1000])
@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).standard_normal(5000),
        np.random.default_rng(1).standard_normal(5000).astype(np.float32),
        np.arange(-50, 51),
        np.arange(1000) % 17,
        np.linspace(-1, 1, 1001),
        np.linspace(0, 0.7, 71).astype(np.float32),
        np.array([3.5] * 9),
        np.array([-2]),
        np.array([0.1, 0.2, 0.30000000000000004, 0.3, 0.7]),
        np.array([0.0, 5e-310, 2e-310, 1e-310]),
        np.array([1e30, -1e30, 0, 3]),
        np.array([True, False, True]),
        np.array([1e-30, 2e-30, 1.0, math.nan, math.inf]),
        np.array([2**62, 2**62 + 1, 2**63 - 1]),
    ],
)
def test_histograms_are_numpy_s(values: np.ndarray, bins: int):
    """The counts of `numpy.histogram`, of elements on edges too; about a single number half to either side."""
    whole = of_array(values)
    theirs = np.histogram(every(whole).astype(np.float64), bins)[0]
    assert list(spread(whole, at=(), bins=bins).counts) == theirs.tolist()


def test_elements_on_their_edges():
    """Every edge that `numpy.linspace` gives, and the numbers next to it, fall where comparing puts them."""
    for low, high, bins in ((0.0, 0.7, 7), (-1.1, 2.3, 33), (1e-310, 7e-310, 6), (-1e-5, 1e5, 100)):
        edges = np.linspace(low, high, bins + 1)
        beside = [np.nextafter(edges, to) for to in (low, high)]
        values = np.unique(np.concatenate([edges, *beside]))
        theirs = np.histogram(values, bins, (low, high))[0]
        assert list(spread(of_array(values), at=(), bins=bins).counts) == theirs.tolist()


@pytest.mark.parametrize("low", [-distributions._MOST, 0.0, -1e308, 1e307])
def test_ranges_beyond_float64(low: float):
    """Where the width of the range, or a step of it, overflows, as elsewhere: by fractions."""
    high = distributions._MOST
    values = np.append(np.random.default_rng(0).uniform(low / 2, high / 2, 500) * 2, [low, high])
    width = (Fraction(values.max()) - Fraction(values.min())) / 9
    places = [min(int((Fraction(value) - Fraction(values.min())) / width), 8) for value in values.tolist()]
    assert list(spread(of_array(values), at=(), bins=9).counts) == np.bincount(places, minlength=9).tolist()


@pytest.mark.parametrize(
    ("values", "bins", "counts"),
    [
        ([1e300, 1e300], 4, (0, 0, 2, 0)),  # a half is nothing beside it
        ([1.7976931348623157e308], 3, (0, 0, 1)),  # and beside this there is nothing above
        ([1.0, np.nextafter(1.0, 2)], 3, (0, 1, 1)),  # no number lies between, and two edges are the first
        ([0.0, 5e-324], 3, (0, 1, 1)),
        ([5e-324, 5e-324, 1e-323], 2, (0, 3)),
        ([math.nan, math.inf], 2, (0, 0)),
        ([], 3, (0, 0, 0)),
    ],
)
def test_ranges_narrower_than_their_bins(values: list[float], bins: int, counts: tuple[int, ...]):
    """Where there are fewer numbers than edges every element has a place all the same."""
    mine = spread(of_array(np.array(values)), at=(), bins=bins).counts
    assert sum(mine) == sum(map(math.isfinite, values))
    assert mine == counts


# ----------------------------------------------------------------------------- tensors taken together


GROUPS = {
    "of one small type": [("bfloat16", 300), ("bfloat16", 77)],
    "of one wide type": [("float32", 300), ("float32", 1), ("float32", 0)],
    "of integers": [("int64", 50), ("int64", 60)],
    "of small types": [("float16", 300), ("bfloat16", 77)],
    "of small and wide types": [("float16", 300), ("float32", 77), ("float64", 5), ("int8", 9)],
    "of integers and floats": [("int32", 30), ("uint64", 20), ("float32", 10), ("bool", 4)],
    "of complex and real": [("complex64", 30), ("complex128", 20), ("float32", 10)],
    "of blocks": [("q4_0", 320), ("float32", 50), ("float4_e2m1fn", 33)],
}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("numel", [13, 1 << 16])
def test_tensors_taken_together(group: str, numel: int):
    """As one array of all their numbers, in float64 where the types are several."""
    rng = np.random.default_rng(0)
    params = [
        param(rng.integers(0, 0x40, DTYPES[name].nbytes(n), np.uint8).tobytes(), name, (n,))
        for name, n in GROUPS[group]
    ]
    mine, values = spread(*params, bins=6, numel=numel), every(*params)
    held_against_numpy(mine, values)
    assert list(mine.counts) == np.histogram(values.astype(np.float64), 6)[0].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_elements_that_are_shown_many_times(dtype: torch.dtype):
    """An expanded tensor counts as what it shows, and a transposed one in any order."""
    column = torch.arange(-6, 7).to(dtype)
    views = [column.view(-1, 1).expand(-1, 5), torch.arange(12).to(dtype).view(3, 4).t()]
    shown = np.concatenate([view.reshape(-1).double().numpy() for view in views])
    mine = spread(*map(of_tensor, views), bins=5)
    assert list(mine.quantiles) == quantiles(shown, AT)
    assert list(mine.counts) == np.histogram(shown, 5)[0].tolist()


def test_what_was_not_asked_for_is_not_there(monkeypatch):
    """Neither bins nor quantiles cost a pass of their own unless they are wanted."""
    assert spread(of_array(np.ones(3)), at=()) == Distribution((), ())
    whole = of_array(np.random.default_rng(0).standard_normal(100))
    passes: list[Any] = []
    read = distributions.numbers
    monkeypatch.setattr(distributions, "numbers", lambda *args: passes.append(args) or read(*args))
    for wanted, count in (({"at": ()}, 0), ({"at": (0.5, 0.1)}, 4), ({"at": (), "bins": 3}, 1), ({"bins": 3}, 5)):
        passes.clear()
        spread(whole, **wanted)
        assert len(passes) == count
    assert list(itertools.chain(spread(whole, at=()).quantiles)) == []
