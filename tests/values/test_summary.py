"""Moments of a tensor: those of longdouble or of fractions, and of a whole the merged ones of its parts."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from paramctl.checkpoint import Param
from paramctl.contents import Window
from paramctl.values import kernels, stream, summary
from paramctl.values.lanes import lane
from paramctl.values.summarize import Extra, chosen, summarize
from paramctl.values.summary import Summary, merged
from tensors import CODES, of_array, of_tensor, param

EVERY = Extra(shape=True, absolutes=True, threshold=0.1)
FIELDS = ("mean", "std", "l2", "l1", "rms", "skew", "kurtosis")


def summarized(param: Param, extra: Extra = EVERY) -> Summary:
    with Window() as window:
        return summarize(param, window, extra)


def in_pieces(param: Param, numel: int, extra: Extra = EVERY) -> Summary:
    """As `summarized`, so many elements at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream.numbers, "__kwdefaults__", {"numel": numel})
        return summarized(param, extra)


@functools.lru_cache(2)
def exact(values: tuple[Any, ...]) -> dict[str, Any]:
    """Statistics of finite numbers by whole numbers of the smallest unit that all have, each rounded once or twice."""
    n = len(values)
    if not n:
        return {
            "size": 0.0,
            "mean": None,
            "std": None,
            "l2": 0.0,
            "l1": 0.0,
            "rms": None,
            "skew": None,
            "kurtosis": None,
        }
    ratios = [value.as_integer_ratio() for value in values]
    unit = max(below for _, below in ratios)
    whole = [above * (unit // below) for above, below in ratios]
    s1, s2, s3, s4 = (sum(number**power for number in whole) for power in (1, 2, 3, 4))
    mean = Fraction(s1, n)
    m2 = s2 - n * mean**2
    m3 = s3 - 3 * mean * s2 + 2 * n * mean**3
    m4 = s4 - 4 * mean * s3 + 6 * mean**2 * s2 - 3 * n * mean**4
    return {
        "mean": rounded(mean / unit),
        "std": root(m2 / n / unit**2),
        "l2": root(Fraction(s2, unit**2)),
        "l1": rounded(Fraction(sum(map(abs, whole)), unit)),
        "size": rounded(Fraction(sum(map(abs, whole)), unit * n)),
        "rms": root(Fraction(s2, n * unit**2)),
        "skew": (-1 if m3 < 0 else 1) * root(n * m3**2 / m2**3) if m2 else None,
        "kurtosis": rounded(n * m4 / m2**2 - 3) if m2 else None,
    }


def rounded(number: Fraction) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def root(number: Fraction) -> float:
    """The square root of a fraction of any size, to 1e-15."""
    if not number:
        return 0.0
    by = (number.numerator.bit_length() - number.denominator.bit_length()) // 2
    return summary._ldexp(math.sqrt(number / Fraction(4) ** by), by)


def close(mine: Summary, values: Sequence[Any], *, within: float = 1e-12) -> None:
    """Every statistic is the exact one to 1e-12, and to the condition of the numbers where that is worse.

    A mean is held against the magnitudes that it is of, and a skew and a kurtosis against a normal distribution's.
    """
    theirs = exact(tuple(values))
    worst = (
        np.finfo(np.float64).eps * abs(theirs["mean"] or 0.0) / (theirs["std"] or math.inf)
    )  # of what is summed about the mean
    sizes = {"mean": theirs["size"], "skew": 3.0, "kurtosis": 3.0}
    for key in FIELDS:
        told, want = getattr(mine, key), theirs[key]
        if want is None or not math.isfinite(want):
            assert told == want, (key, told, want)
            continue
        size = max(abs(want), sizes.get(key, 0.0))
        slack = 0.0 if key in ("mean", "l2", "l1", "rms") else 4 * worst
        assert abs(told - want) <= (within + slack) * size + 5e-324, (key, told, want)


def assert_counts(mine: Summary, values: np.ndarray, threshold: float = 0.1) -> None:
    """Counts, and the least and the greatest element."""
    wide = values if values.dtype.kind in "iu" else values.astype(np.float64)
    finite = wide[np.isfinite(wide)] if values.dtype.kind not in "iu" else wide
    limit = Fraction(threshold)
    assert (mine.numel, mine.nan, mine.inf) == (finite.size, np.isnan(wide).sum(), np.isinf(wide).sum())
    assert mine.zeros == (finite == 0).sum()
    assert mine.small == sum(abs(Fraction(value)) <= limit for value in finite.tolist())
    ends = (finite.min().item(), finite.max().item()) if finite.size else (None, None)
    assert (mine.min, mine.max) == ends
    assert mine.absmax == (None if ends[0] is None else max(abs(ends[0]), abs(ends[1])))


# ----------------------------------------------------------------------------- hard cases


def normal(mean: float, std: float, n: int = 3000, dtype: Any = np.float64) -> np.ndarray:
    return (mean + std * np.random.default_rng(0).standard_normal(n)).astype(dtype)


HARD = {
    "weights": normal(0, 0.02),
    "norm weights": normal(1, 0.01),
    "narrow norm weights": normal(1, 0.001),
    "a far mean": normal(100, 0.001),
    "a very far mean": normal(1e6, 1e-3),
    "a mean below": normal(-100, 0.001),
    "large": normal(0, 1e30),
    "small": normal(0, 1e-30),
    "large, one sign": normal(1e30, 1e28),
    "one": np.array([0.1]),
    "two": np.array([0.1, 0.2]),
    "none": np.array([]),
    "equal": np.full(1001, 0.1),
    "equal but one": np.append(np.full(1000, 0.1), 0.3),
    "zeros": np.zeros(77),
    "zeros of both signs": np.array([0.0, -0.0, -0.0]),
    "zeros and ones": np.arange(99) % 2,
    "NaN and infinities": np.array([math.nan, math.inf, 1, 2, -math.inf, math.nan, 4]),
    "NaN alone": np.full(9, math.nan),
    "infinities alone": np.array([math.inf, -math.inf]),
    "NaN in norm weights": np.append(normal(1, 0.01), [math.nan, math.inf]),
    "halves far apart": np.concatenate([np.zeros(2000), np.full(2000, 1000.0)]),
    "a ramp": np.linspace(-5, 20, 5001),
    "skewed": np.exp(normal(0, 1)),
    "steps of one": 5.0 + np.arange(4000) % 3,
}
FLOATS = {
    "float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz, "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
}  # fmt: skip


def assert_summarized(values: np.ndarray, dtype: str, sizes: Sequence[int]) -> None:
    """By both kernels, in pieces of each of some sizes."""
    wide = values.astype(np.float64)
    finite = wide[np.isfinite(wide)].tolist()
    for numel, without in itertools.product(sizes, (False, True)):
        with pytest.MonkeyPatch.context() as patch:
            if without:
                patch.setattr(kernels, "numkong", None)
            mine = in_pieces(of_array(values, dtype), numel)
        close(mine, finite)
    assert_counts(mine, wide)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", HARD)
def test_hard_cases(case: str, dtype: str):
    """To 1e-12 of what the numbers are once they are rounded to the dtype; counts and limits exactly."""
    with np.errstate(all="ignore"):
        values = HARD[case].astype(FLOATS[dtype])
    assert_summarized(values, dtype, (512, 1 << 16))


WIDE = {
    "1e200": normal(0, 1e200, 700),
    "1e308": np.array([1.7e308, -1.7e308, 1e308, 3.0]),
    "1e308, one sign": np.full(700, 1.7e308) - normal(1e300, 1e299, 700),
    "1e-200": normal(0, 1e-200, 700),
    "1e-308": normal(0, 1e-308, 700),
    "denormal": np.arange(-300, 400) * 5e-324,
    "the least": np.array([5e-324]),
    "zeros and 1e-200": np.append(np.zeros(700), normal(0, 1e-200, 700)),
    "1e-200 and zeros": np.append(normal(3e-200, 1e-200, 700), np.zeros(700)),
    "1e-100": normal(0, 1e-100, 700),  # whose fourth powers are no float64
    "1e-70": normal(0, 1e-70, 700),
    "1e70": normal(0, 1e70, 700),
    "both ends": np.append(normal(0, 1e300, 700), normal(0, 1e-300, 700)),
    "1e-300, then 1": np.append(normal(0, 1e-300, 700), normal(0, 1, 700)),
    "1e308 and NaN": np.array([1e308, math.nan, -math.inf, 1.5e308]),
    "1e-310 and NaN": np.array([1e-310, math.nan, 2e-310, 0.0]),
}


@pytest.mark.parametrize("case", WIDE)
def test_powers_beyond_float64(case: str):
    """Where squares or fourth powers overflow or vanish, every statistic is the exact one all the same."""
    assert_summarized(WIDE[case], "float64", (100, 1 << 16))


@pytest.mark.parametrize("tiny", [1e-45, 1e-40, 1e30, 3e38])
def test_the_ends_of_float32(tiny: float):
    """Subnormals of float32 and its greatest numbers."""
    assert_summarized((normal(0, 1, 300) % 1 * tiny).astype(np.float32), "float32", (100, 1 << 16))


@pytest.mark.parametrize(
    ("code", "bits", "nan"), [("f4", "u4", 0x7F800001), ("f8", "u8", 0x7FF0000000000001), ("f2", "u2", 0x7C01)]
)
def test_signalling_nan_is_nan(code: str, bits: str, nan: int):
    """It is counted as others are, and nothing is said of it; in complex numbers too."""
    values = np.ones(10, code)
    values.view(bits)[3] = nan
    mine = summarized(of_array(values))
    assert (mine.nan, mine.numel, mine.mean) == (1, 9, 1.0)
    name = {"f4": "complex64", "f8": "complex128", "f2": "complex32"}[code]
    mine = summarized(param(values.tobytes(), name, (5,)))
    assert (mine.nan, mine.numel, mine.mean) == (1, 4, math.sqrt(2))


# ----------------------------------------------------------------------------- any numbers of any dtype


def numbers_of(dtype: str) -> st.SearchStrategy[np.ndarray]:
    kind = np.dtype(CODES[dtype])
    if kind.kind == "f":
        width = kind.itemsize * 8
        elements = st.floats(width=width) | st.sampled_from([0.0, -0.0, 1.0, 1.5, math.nan, math.inf, -math.inf])
    else:
        elements = None
    return stn.arrays(kind, st.integers(0, 40), elements=elements)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([name for name in CODES if "complex" not in name]).flatmap(numbers_of), st.integers(1, 41))
def test_any_numbers(values: np.ndarray, numel: int):
    """Of any bits: as by fractions, in pieces of any length."""
    mine = in_pieces(of_array(values), numel)
    plain = values.astype(np.uint8) if values.dtype == np.bool_ else values
    finite = plain[np.isfinite(plain)] if plain.dtype.kind == "f" else plain
    close(mine, finite.tolist(), within=1e-11)
    assert_counts(mine, plain)


INTEGERS = [name for name in CODES if np.dtype(CODES[name]).kind in "iu"]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(INTEGERS).flatmap(lambda name: stn.arrays(np.dtype(CODES[name]), st.integers(1, 60))),
    st.integers(1, 61),
    st.integers(-1, 70),
)
def test_integers_are_exact(values: np.ndarray, numel: int, bits: int):
    """Sums, means, and limits of integers are those of Python's, however large; so is a count by a threshold."""
    threshold = float((1 << bits) - 1) if bits >= 0 else -0.5
    mine = in_pieces(of_array(values), numel, Extra(threshold=threshold))
    whole = values.tolist()
    assert (type(mine.total), mine.total, mine.min, mine.max) == (int, sum(whole), min(whole), max(whole))
    assert mine.mean == sum(whole) / len(whole)
    assert mine.small == sum(abs(number) <= threshold for number in whole)


@pytest.mark.parametrize("dtype", ["int32", "uint32"])
def test_large_sums_of_integers_are_exact(dtype: str):
    """Millions of elements of odd values, whose sum float64 does not hold."""
    top = int(np.iinfo(dtype).max)
    values = np.full((1 << 22) + 7, top, dtype)
    values[:2] = top - 1
    mine = summarized(of_array(values), Extra())
    assert mine.total == top * len(values) - 2 != int(float(mine.total))
    assert mine.mean == mine.total / len(values)


def test_integers_near_each_other():
    """A spread of one about 2**62 is a spread of one."""
    values = np.array([1 << 62, (1 << 62) + 1] * 500)
    mine = summarized(of_array(values))
    assert (mine.std, mine.skew, mine.kurtosis, mine.mean) == (0.5, 0.0, -2.0, float((1 << 62) + 0.5))
    close(summarized(of_array(np.array([-(2**63), 2**63 - 1, 5]))), [-(2**63), 2**63 - 1, 5])


@pytest.mark.parametrize("name", ["complex32", "complex64", "complex128"])
def test_complex_numbers_count_by_their_magnitude(name: str):
    """As torch's `abs` in float64; NaN wins over an infinity beside it."""
    parts = normal(0.5, 1, 400, {"complex32": "f2", "complex64": "f4", "complex128": "f8"}[name])
    parts[:8] = [math.nan, 1, math.nan, math.inf, 3, -math.inf, 0, -0.0]
    mine = summarized(param(parts.tobytes(), name, (200,)))
    sizes = torch.view_as_complex(torch.from_numpy(parts.astype(np.float64)).view(-1, 2)).abs().numpy()
    close(mine, sizes[np.isfinite(sizes) & ~np.isnan(parts[::2])].tolist())
    assert (mine.nan, mine.inf, mine.zeros, mine.numel) == (2, 1, 1, 197)


@pytest.mark.parametrize(
    "name", ["float4_e2m1fn", "float6_e2m3fn", "q4_0", "q6_k", "float8_e8m0fnu", "quint2x4", "bool"]
)
def test_other_dtypes(name: str):
    """Of what `numbers` gives: the lanes have their own tests."""
    raw = np.random.default_rng(0).integers(0, 0x40, 420 * 18, np.uint8).tobytes()
    count = {"q4_0": 420 * 32, "q6_k": 36 * 256}.get(name, 5000)
    whole = param(raw, name, (count,))
    with Window() as window:
        values = np.concatenate([part.copy() for part in stream.numbers(whole, lane(whole), window)]).astype(np.float64)
    close(summarized(whole), values[np.isfinite(values)].tolist())
    assert_counts(summarized(whole), values)


def test_thresholds_are_not_rounded():
    """0.1 of float32 is more than 0.1, and of float16 less: a magnitude is held against the very number."""
    for dtype, small in (("float32", 0), ("float16", 2), ("float64", 2)):
        assert summarized(of_array(np.array([0.1, -0.1, 0.2], dtype))).small == small
    for threshold, small in ((1e300, 3), (math.inf, 3), (-1.0, 0), (0.0, 1), (5e-324, 1)):
        mine = summarized(of_array(np.array([0, 1e-45, 3e38], np.float32)), Extra(threshold=threshold))
        assert mine.small == small


@pytest.mark.parametrize("without", [False, True])
def test_the_rounding_of_a_mean_is_taken_out(monkeypatch, without: bool):
    """A spread of a few units of the last place of the mean has its shape all the same."""
    if without:
        monkeypatch.setattr(kernels, "numkong", None)
    values = (1 << 20) + np.array([0, 1, 1, 2, 2, 2, 3, 9, 9, 20] * 7) * 2.0**-31
    mine, theirs = summarized(of_array(values)), exact(tuple((values - (1 << 20)).tolist()))
    assert mine.deviation(0) == pytest.approx(theirs["std"], rel=1e-12)
    assert (mine.skew, mine.kurtosis) == pytest.approx((theirs["skew"], theirs["kurtosis"]), rel=1e-12)


def test_torch_agrees():
    """The usual functions of torch in float64, on a tensor of many pieces."""
    tensor = torch.randn(1000, 300, generator=torch.Generator().manual_seed(0)).mul(0.02).add(0.01)
    mine, wide = summarized(of_tensor(tensor)), tensor.double()
    assert mine.mean == pytest.approx(wide.mean().item(), rel=1e-13)
    assert mine.std == pytest.approx(wide.std(correction=0).item(), rel=1e-13)
    assert mine.deviation(1) == pytest.approx(wide.std().item(), rel=1e-13)
    assert mine.l2 == pytest.approx(torch.linalg.vector_norm(wide).item(), rel=1e-13)
    assert (mine.min, mine.max) == (wide.min().item(), wide.max().item())


def test_deviations_of_few():
    """With n - 1 there is none of a single element; nor any of none."""
    assert [Summary().deviation(0), summarized(of_array(np.array([3.0]))).deviation(1)] == [None, None]
    assert summarized(of_array(np.array([1.0, 3.0]))).deviation(1) == math.sqrt(2)


# ----------------------------------------------------------------------------- laws of merging


PARTS = st.lists(
    st.sampled_from(["float64", "float32", "int64", "int32", "bool"]).flatmap(numbers_of).map(of_array), max_size=5
)


def agree(a: Summary, b: Summary, *, within: float = 1e-12) -> None:
    """The same counts and limits, and the same statistics to so much of what they are sums of."""
    for key in ("numel", "zeros", "nan", "inf", "min", "max", "small"):
        assert getattr(a, key) == getattr(b, key), key
    sizes = {"mean": (b.l1 or 0) / max(b.numel, 1), "skew": 3.0, "kurtosis": 3.0, "std": 1e-3 * (b.rms or 0)}
    for key in FIELDS:
        mine, theirs = getattr(a, key), getattr(b, key)
        if mine is None or theirs is None or not math.isfinite(theirs):
            assert mine == theirs, key
        else:
            assert abs(mine - theirs) <= within * max(abs(theirs), sizes.get(key, 0)) + 5e-324, (key, mine, theirs)


@settings(max_examples=150, deadline=None)
@given(PARTS, st.randoms())
def test_merging_is_a_commutative_monoid(parts: list[Param], rng: Any):
    """Nothing merged is the same; and in any order and any grouping a merge is the same to 1e-11."""
    made = [summarized(part) for part in parts]
    for one in made:
        assert one.merge(Summary()) == Summary().merge(one) == one
    mixed = rng.sample(made, len(made))
    agree(merged(mixed), merged(made), within=1e-11)
    grouped = list(made)
    while len(grouped) > 1:
        i = rng.randrange(len(grouped) - 1)
        grouped[i : i + 2] = [grouped[i].merge(grouped[i + 1])]
    agree(grouped[0] if grouped else Summary(), merged(made), within=1e-11)


@pytest.mark.parametrize("case", {**HARD, **WIDE})
def test_any_split_merges_to_the_whole(case: str):
    """Wherever numbers are cut, and merged one by one."""
    values = {**HARD, **WIDE}[case].astype(np.float64)
    rng = np.random.default_rng(1)
    finite = values[np.isfinite(values)].tolist()
    for count in (1, 2, 7):
        cuts = [0, *sorted(rng.integers(0, len(values) + 1, count).tolist()), len(values)]
        parts = [summarized(of_array(values[a:b])) for a, b in itertools.pairwise(cuts)]
        close(merged(parts), finite)
        assert_counts(merged(parts), values)


def test_what_is_equal_has_no_spread():
    """Pieces of different length of one number, whose sums are rounded differently, are still of one number."""
    for value in (0.1, 1 / 3, 1e-200, 1e300):
        parts = [summarized(of_array(np.full(n, value))) for n in (1, 2, 3, 1000, 777)]
        mine = merged(parts)
        assert (mine.std, mine.skew, mine.kurtosis) == (0.0, None, None)
        assert mine.mean == pytest.approx(value, rel=1e-15)


def concatenation(values: Iterable[np.ndarray]) -> list[float]:
    return np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in values]).tolist()


def test_dtypes_are_merged():
    """Of integers, floats and a denormal together, as of one array of float64."""
    parts = [
        np.arange(-5, 50),
        normal(1, 0.01, 500, np.float32),
        np.array([5e-324]),
        np.array([1e200]),
        np.array([True]),
    ]
    close(merged(summarized(of_array(part)) for part in parts), concatenation(parts))


@pytest.mark.parametrize("times", [1, 2, 1000])
def test_elements_that_are_shown_many_times(times: int):
    """An expanded tensor is as if each element stood there so often."""
    values = np.append(normal(1, 0.5, 50), [math.nan, math.inf, 0.0])
    mine = summarized(of_tensor(torch.from_numpy(values).view(-1, 1).expand(-1, times)))
    close(mine, np.repeat(values[np.isfinite(values)], times).tolist())
    assert_counts(mine, np.repeat(values, times))


def test_both_kernels_agree(monkeypatch):
    """NumKong's sums and numpy's are the same to 1e-12 of the sum of magnitudes."""
    if kernels.numkong is None:
        pytest.skip("numkong is not installed")
    for dtype, n in itertools.product((np.float32, np.float64), (1, 7, 64, 1000, 65_536)):
        values = normal(3, 100, n, dtype)
        other = values[::-1].copy()
        total, squares, product = (*kernels.moments(values), kernels.dot(values, other))
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "numkong", None)
            again = (*kernels.moments(values), kernels.dot(values, other))
        sizes = (np.abs(values).sum(dtype=np.float64), squares, np.abs(values * other).sum(dtype=np.float64))
        for mine, theirs, size in zip((total, squares, product), again, sizes, strict=True):
            assert abs(mine - theirs) <= 1e-12 * size


def test_only_what_is_asked_for_is_looked_at(monkeypatch):
    """Third and fourth moments, magnitudes and the threshold cost passes of their own."""
    passes: list[str] = []
    monkeypatch.setattr(kernels, "dot", lambda a, b: passes.append("dot") or 0.0)
    values = of_array(normal(1, 0.01, 100))
    mine = summarized(values, Extra())
    assert (passes, mine.absolutes, mine.small) == ([], 0.0, 0)
    assert chosen(["skew"]) == chosen(["kurtosis", "rms"]) == Extra(shape=True)
    assert chosen(["sparsity", "l1"], threshold=0.5) == Extra(absolutes=True, threshold=0.5)
    summarized(values, chosen(["skew"]))
    assert passes == ["dot"]
