"""How two tensors differ: against numpy in float64, and Python's integers, for every pair of dtypes."""

from __future__ import annotations

import itertools
import math

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paramctl.checkpoint import Extent, Param, Storage
from paramctl.dtypes import DTYPES
from paramctl.values import compare as compares
from paramctl.values.compare import Side, Sides, compare, index, unchanged
from paramctl.values.comparison import Comparison, Scaled, Tolerance
from tensors import of_array, of_tensor, param

FLOATS = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
)  # fmt: skip
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.uint16, torch.uint64)
COMPLEX = (torch.complex64, torch.complex128)
EVERY = settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))


def compared(a: Param, b: Param, tolerance: Tolerance = Tolerance()) -> Comparison | None:  # noqa: B008
    with Side() as mine, Side() as theirs:
        return compare(a, b, Sides(mine, theirs), tolerance)


def drawn(data: st.DataObject, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers of a dtype; of a float some are NaN, infinite, and zeros of either sign."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    if dtype in INTEGERS:
        low, high = (0, 2) if dtype == torch.bool else (0 if "uint" in str(dtype) else -100, 100)
        return torch.randint(low, high, shape, generator=generator).to(dtype)
    wide = torch.randn(shape, dtype=torch.float64, generator=generator)
    flat = wide.view(-1)
    for value in data.draw(st.lists(st.sampled_from((math.nan, math.inf, -math.inf, 0.0, -0.0)), max_size=4)):
        if len(flat):
            flat[data.draw(st.integers(0, len(flat) - 1))] = value
    return wide.to(dtype)


def check(found: Comparison | None, x: np.ndarray, y: np.ndarray, tolerance: Tolerance = Tolerance()) -> None:  # noqa: B008
    """What numpy says of two arrays of float64 or complex128."""
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    finite = np.isfinite(x) & np.isfinite(y)
    with np.errstate(all="ignore"):
        sizes = np.where(finite, np.abs(y - x), -1.0)
        far = np.where(finite, sizes > tolerance.absolute + tolerance.relative * np.abs(x), ~same)
    if found is None:
        assert same.all()
        return
    a, b = x[finite], y[finite]
    assert (found.numel, found.finite) == (x.size, a.size)
    assert (found.differing, found.unbounded) == (int(far.sum()), int((far & ~finite).sum()))
    assert found.changed == (far.sum() / x.size if x.size else 0)
    assert found.max_abs == pytest.approx(max(sizes.max(initial=0), 0), rel=1e-6)
    if found.max_at is not None:
        assert sizes.reshape(-1)[found.max_at] == pytest.approx(found.max_abs, rel=1e-6)
    norm, other, change = np.linalg.norm(a), np.linalg.norm(b), np.linalg.norm(b - a)
    assert found.l2 == pytest.approx(change, rel=1e-6)
    if change == 0:
        assert (found.rel_l2, found.cosine, found.max_at) == (0, 1, None)
        return
    assert found.rel_l2 == (None if norm == 0 else pytest.approx(change / norm, rel=1e-6))
    cosine = None if 0 in (norm, other) else pytest.approx(np.vdot(a, b).real / norm / other, abs=1e-6)
    assert found.cosine == cosine


def wide(tensor: torch.Tensor) -> np.ndarray:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64).numpy()


@pytest.mark.parametrize(("first", "second"), [*itertools.product(FLOATS + INTEGERS, repeat=2)], ids=str)
@EVERY
@given(data=st.data())
def test_every_pair_of_dtypes(first: torch.dtype, second: torch.dtype, data: st.DataObject):
    """Counts, norms, angle and largest difference are numpy's in float64, in pieces of any length."""
    shape = data.draw(st.sampled_from([(), (0, 3), (1,), (40,), (5, 8), (2, 3, 4)]))
    a, b = drawn(data, first, shape), drawn(data, second, shape)
    if data.draw(st.booleans()):
        b = torch.where(drawn(data, torch.bool, shape), a.to(torch.float64), b.to(torch.float64)).to(second)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compares, "_NUMEL", data.draw(st.sampled_from([1, 7, 16, 1 << 16])))
        check(compared(of_tensor(a), of_tensor(b)), wide(a), wide(b))


@pytest.mark.parametrize(
    ("first", "second"), [*itertools.product(COMPLEX, (*COMPLEX, torch.float32, torch.int64))], ids=str
)
@EVERY
@given(data=st.data())
def test_complex_numbers_by_their_magnitude(first: torch.dtype, second: torch.dtype, data: st.DataObject):
    """|b - a| of complex numbers, also beside real ones; one with a part that is NaN is NaN."""
    parts = [torch.view_as_complex(drawn(data, torch.float64, (9, 2))).to(first) for _ in range(2)]
    b = parts[1].to(second) if second in COMPLEX else drawn(data, second, (9,))
    for x, y in ((parts[0], b), (b, parts[0])):
        check(compared(of_tensor(x), of_tensor(y)), wide(x), wide(y))


@EVERY
@given(data=st.data())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.complex64], ids=str)
@pytest.mark.parametrize("tolerance", [Tolerance(0.1), Tolerance(0, 0.3), Tolerance(0.05, 0.2)], ids=str)
def test_a_tolerance_is_absolute_and_relative_to_a(dtype: torch.dtype, tolerance: Tolerance, data: st.DataObject):
    """Elements differ where |b - a| > atol + rtol · |a|, and the numbers are of all that is finite."""
    a = drawn(data, dtype, (30,)) if dtype not in COMPLEX else torch.randn(30, dtype=dtype)
    b = (a.to(torch.complex128 if a.is_complex() else torch.float64) + 0.2 * torch.randn(30)).to(dtype)
    check(compared(of_tensor(a), of_tensor(b), tolerance), wide(a), wide(b), tolerance)


def test_a_tolerance_at_its_edge():
    """What is exactly as far off as is allowed does not differ; relative is to A and not to B."""
    a, b = of_array(np.float32([1.0, 2.0])), of_array(np.float32([1.5, 2.5]))
    assert compared(a, b, Tolerance(0.5)).differing == 0
    assert compared(a, b, Tolerance(0, 0.5)).differing == 0
    assert compared(a, b, Tolerance(0, 0.4)).differing == 1
    assert compared(b, a, Tolerance(0, 0.4)).differing == 0
    assert compared(a, of_array(np.float32([math.nan, 2.0])), Tolerance(math.inf)).differing == 1


# ---------------------------------------------------------------------- numbers that are far off


@pytest.mark.parametrize("exponent", [-1000, -500, -300, 0, 300, 500, 1000])
@pytest.mark.parametrize("other", [-1000, 0, 1000])
def test_magnitudes_whose_squares_float64_has_not(exponent: int, other: int):
    """Norms and angles of the largest and of the least numbers, in one tensor too: scaled by a power of two."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 50))
    a, b = np.ldexp(x, exponent), np.ldexp(y, exponent)
    found = compared(of_array(a), of_array(b))
    assert found.l2 == pytest.approx(math.ldexp(np.linalg.norm(y - x), exponent))
    assert found.rel_l2 == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x))
    assert found.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    equal = np.full(3, math.ldexp(1.0, other))  # the same on both sides: a part of the norm, and not of the change
    found = compared(of_array(np.concatenate([a, equal])), of_array(np.concatenate([b, equal])))
    assert found.l2 == pytest.approx(math.ldexp(np.linalg.norm(y - x), exponent))
    norm = math.hypot(
        *(math.ldexp(v, exponent - max(exponent, other)) for v in x), math.ldexp(3**0.5, other - max(exponent, other))
    )
    assert found.rel_l2 == pytest.approx(
        math.ldexp(np.linalg.norm(y - x) / norm, exponent - max(exponent, other)), rel=1e-9
    )


def test_a_difference_that_overflows():
    """The difference of the two largest numbers of opposite sign is told as it is, where float64 has it."""
    most = np.finfo(np.float32).max
    found = compared(of_array(np.float32([-most, 1])), of_array(np.float32([most, 1])))
    assert (found.max_abs, found.l2, found.cosine) == (2 * float(most), 2 * float(most), -1)
    most = np.finfo(np.float64).max
    found = compared(of_array(np.float64([-most, 1, 0])), of_array(np.float64([most, 1, 5e-324])))
    assert (found.differing, found.max_abs, found.rel_l2, found.cosine) == (2, math.inf, 2, -1)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e5m2"])
def test_the_least_difference_counts(dtype: str):
    """Neighbours differ, also the least of all numbers and zero; zeros of either sign do not."""
    size = DTYPES[dtype].block_nbytes
    codes = np.array([0, 1, 2, 1 << 8 * size - 1], f"u{size}")
    zero, one, two, minus = (param(code.tobytes(), dtype, (1,)) for code in codes)
    assert (compared(zero, one).differing, compared(one, two).differing) == (1, 1)
    assert compared(zero, one).max_abs == compared(one, two).max_abs > 0
    assert compared(zero, minus).differing == 0


# ---------------------------------------------------------------------- integers

EDGES = {"int64": (-(2**63), 2**63 - 1), "uint64": (0, 2**64 - 1)}


@pytest.mark.parametrize(("first", "second"), [*itertools.product(("int64", "uint64", "int32", "uint8"), repeat=2)])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_integers_are_exact(first: str, second: str, data: st.DataObject):
    """The largest difference of 64-bit integers is Python's, to the last digit."""
    limits = {name: EDGES.get(name) or (np.iinfo(name).min, np.iinfo(name).max) for name in (first, second)}
    lists = [
        data.draw(
            st.lists(st.one_of(st.integers(*limits[name]), st.sampled_from(limits[name])), min_size=6, max_size=6)
        )
        for name in (first, second)
    ]
    a, b = (of_array(np.array(values, name)) for values, name in zip(lists, (first, second), strict=True))
    found = compared(a, b)
    sizes = [abs(x - y) for x, y in zip(*lists, strict=True)]
    if found is None:
        assert sizes == [0] * 6
        return
    assert (found.max_abs, found.differing) == (max(sizes), sum(size > 0 for size in sizes))
    assert found.max_at == (sizes.index(max(sizes)) if max(sizes) else None)
    assert found.l2 == pytest.approx(math.sqrt(sum(size * size for size in sizes)), rel=1e-12)
    assert isinstance(found.max_abs, int)


@pytest.mark.parametrize("integer", [2**53 + 1, 2**63 - 1, -(2**63), 2**53 - 1, 0])
def test_an_integer_beside_a_float(integer: int):
    """A float is equal to an integer only where it is that very number."""
    a = of_array(np.array([integer], np.int64))
    near = float(integer)
    found = compared(a, of_array(np.array([near])))
    assert (found.max_abs, found.differing) == (abs(int(near) - integer), int(int(near) != integer))
    for odd in (math.nan, math.inf):
        found = compared(a, of_array(np.array([odd])))
        assert (found.differing, found.unbounded, found.is_measured) == (1, 1, False)


# ---------------------------------------------------------------------- layouts

VIEWS = {
    "transposed": lambda t: t.t(),
    "every other": lambda t: t[:, ::2],
    "a slice": lambda t: t[3:9, 2:7],
    "expanded": lambda t: t[:1].expand(20, -1),
    "a row, many times": lambda t: t[0].expand(4, 5, -1),
    "permuted": lambda t: t.view(4, 3, 12).permute(2, 0, 1),
    "a scalar": lambda t: t[0, 0],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.complex64], ids=str)
@pytest.mark.parametrize("numel", [5, 1 << 16])
def test_a_view_is_its_elements(view: str, dtype: torch.dtype, numel: int, monkeypatch: pytest.MonkeyPatch):
    """Strided, transposed and expanded tensors are compared element by element, with a view and with a dense one."""
    monkeypatch.setattr(compares, "_NUMEL", numel + numel % 2)
    torch.manual_seed(0)
    a, b = (VIEWS[view]((10 * torch.randn(12, 12)).to(dtype)) for _ in range(2))
    for mine, theirs in ((a, b), (a, b.contiguous()), (a.contiguous(), b)):
        found = compared(of_tensor(mine), of_tensor(theirs))
        check(found, wide(a), wide(b))
    assert (
        compared(of_tensor(a), of_tensor(a.clone())) is None
        or compared(of_tensor(a), of_tensor(a.clone())).differing == 0
    )


def test_negative_strides_and_the_other_byte_order():
    """Numpy's reversed axes, and big-endian numbers beside little-endian ones."""
    x, y = np.random.default_rng(0).standard_normal((2, 3, 4))
    reversed_ = [param(each.tobytes(), "float64", (3, 4), (-4, 1), 8) for each in (x, y)]
    found = compared(*reversed_)
    check(found, x[::-1], y[::-1])
    big = [param(each.astype(">f8").tobytes(), "float64", (3, 4), byteorder="big") for each in (x, y)]
    check(compared(*big), x, y)
    check(compared(big[0], of_array(y)), x, y)
    assert compared(big[0], of_array(x)).differing == 0


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q6_K", "Q4_K"])
def test_blocks_are_compared_as_the_numbers_they_stand_for(kind: str):
    """ggml's blocks beside floats, and beside blocks of another type, by gguf's own numbers."""
    rng = np.random.default_rng(0)
    kinds = gguf.GGMLQuantizationType[kind]
    nbytes = DTYPES[kind.lower()].block_nbytes
    per_block = DTYPES[kind.lower()].block_numel
    raw = rng.integers(0, 60, (4, 512 // per_block * nbytes), np.uint8)
    numbers = gguf.quants.dequantize(raw, kinds).astype(np.float64)
    blocks = param(raw.tobytes(), kind.lower(), (4, 512))
    floats = (numbers + rng.standard_normal(numbers.shape)).astype(np.float32)
    check(compared(blocks, of_array(floats)), numbers, floats.astype(np.float64))
    changed = raw.copy()
    changed[2, 40] ^= 15
    other = gguf.quants.dequantize(changed, kinds).astype(np.float64)
    check(compared(blocks, param(changed.tobytes(), kind.lower(), (4, 512))), numbers, other)


@pytest.mark.parametrize("count", [1, 5, 6, 63])
def test_packed_numbers_fill_no_block(count: int):
    """What fills up the last byte of packed numbers is no difference, and a part begins within one."""
    low, high = bytes([0x21] * 32), bytes([0x21] * ((count - 1) // 2) + [0xF1 if count % 2 else 0x21] + [0x99] * 40)
    a, b = (param(raw, "float4_e2m1fn", (count,)) for raw in (low, high))
    found = compared(a, b)
    assert found is None or found.differing == 0
    if count > 5:
        shifted = [each._replace(shape=(count - 1,), stride=(1,), storage_offset=1) for each in (a, b)]
        assert (compared(*shifted) or Comparison()).differing == 0
        assert compared(shifted[0], a._replace(shape=(count - 1,))).differing == count - 1


def test_pairs_that_torch_counts_as_one():
    """Of float4 pairs the place of the largest difference is the pair's, and the share is of their numbers."""
    a, b = (param(raw, "float4_e2m1fn_x2", (2, 2)) for raw in (bytes(4), bytes([0, 0, 0x70, 0x20])))
    found = compared(a, b)
    assert (found.max_abs, found.max_at, found.changed) == (6.0, 2, 0.25)


# ---------------------------------------------------------------------- what is read


@pytest.fixture
def file(tmp_path):
    """A tensor in a file of its own."""

    def _file(name: str, array: np.ndarray) -> Param:
        path = tmp_path / name
        path.write_bytes(array.tobytes())
        found = of_array(array)
        return found._replace(storage=Storage(name, array.nbytes, (Extent(str(path), 0, array.nbytes),)))

    return _file


def read_bytes(a: Param, b: Param) -> tuple[Comparison | None, list[int]]:
    told = [0, 0]
    with (
        Side(lambda nbytes: told.__setitem__(0, told[0] + nbytes)) as mine,
        Side(lambda nbytes: told.__setitem__(1, told[1] + nbytes)) as theirs,
    ):
        return compare(a, b, Sides(mine, theirs)), told


def test_the_same_place_is_not_read(file, tmp_path):
    """What lies at one place of one file is the same unread, whatever the name of the file; elsewhere each is read once."""
    values = np.arange(300_000, dtype=np.float32)
    a, other = file("a", values), file("b", values)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    linked = a._replace(storage=Storage("x", values.nbytes, (Extent(str(tmp_path / "link"), 0, values.nbytes),)))
    assert read_bytes(a, linked) == (None, [0, 0])
    assert read_bytes(a, other) == (None, [values.nbytes] * 2)


def test_a_change_at_the_end_reads_one_side_twice(file):
    """Bytes that are the same before the first change are read once on B's side; A's norm is of all of them."""
    values = np.random.default_rng(0).standard_normal(300_000).astype(np.float32)
    changed = values.copy()
    changed[-1] += 1
    found, (mine, theirs) = read_bytes(file("a", values), file("b", changed))
    assert (found.differing, found.max_at, theirs) == (1, 299_999, values.nbytes)
    assert values.nbytes < mine < 2 * values.nbytes
    assert found.rel_l2 == pytest.approx(1 / np.linalg.norm(values.astype(np.float64)))
    assert found.cosine == pytest.approx(
        float(values.astype(np.float64) @ changed / np.linalg.norm(values) / np.linalg.norm(changed))
    )


def test_what_is_unchanged_has_a_norm():
    """The norm of what is the same on both sides is that of A, with infinities left out."""
    values = np.float32([3, 4, math.inf, math.nan])
    a = of_array(values)
    with Side() as mine, Side() as theirs:
        found = unchanged(a, a, Sides(mine, theirs))
    assert (found.numel, found.differing, float(found.a.root)) == (4, 0, 5.0)
    assert (found.l2, found.rel_l2, found.cosine) == (0, 0, 1)


# ---------------------------------------------------------------------- laws

NUMBERS = st.lists(st.tuples(st.floats(), st.floats()), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(pairs=NUMBERS, cut=st.integers(0, 12))
def test_parts_make_the_whole(pairs: list[tuple[float, float]], cut: int):
    """Merged, the comparisons of two parts are the comparison of the whole."""
    cut = min(cut, len(pairs))
    x, y = np.array(pairs).T
    whole = compared(of_array(x), of_array(y)) or Comparison(len(x))
    first, second = (compared(of_array(x[s]), of_array(y[s])) for s in (slice(cut), slice(cut, None)))
    made = (first or Comparison(cut)).merge(second or Comparison(len(x) - cut))
    assert (made.numel, made.differing, made.unbounded) == (whole.numel, whole.differing, whole.unbounded)
    assert made.max_abs == whole.max_abs
    assert made.l2 == pytest.approx(whole.l2, rel=1e-12)


@settings(max_examples=200, deadline=None)
@given(pairs=NUMBERS)
def test_a_difference_goes_both_ways(pairs: list[tuple[float, float]]):
    """B against A differs in the same elements as A against B, as far, and at the same angle."""
    x, y = np.array(pairs).T
    one, other = compared(of_array(x), of_array(y)), compared(of_array(y), of_array(x))
    assert (one is None) == (other is None)
    if one is not None:
        assert one[:6] == other[:6]
        assert one.l2 == other.l2
        assert one.cosine == (None if other.cosine is None else pytest.approx(other.cosine, abs=1e-12))


@given(value=st.floats(1, 2), exponents=st.lists(st.integers(-3000, 3000), min_size=1, max_size=9))
def test_scaled_sums(value: float, exponents: list[int]):
    """A sum of numbers of any magnitude is the exact one, rounded, where float64 has it."""
    from fractions import Fraction

    total, exact = Scaled(), Fraction(0)
    for exponent in exponents:
        total = total.plus(Scaled(value, 2 * exponent))
        exact += Fraction(value) * Fraction(2) ** (2 * exponent)
    made = Fraction(total.value) * Fraction(2) ** total.exponent
    assert abs(made - exact) <= exact / 2**50
    if 2**-1000 < exact < 2**1000:
        assert float(total) == pytest.approx(float(exact), rel=1e-14)


def test_an_index_of_a_place():
    """A place in row-major order as an index; of a scalar it is empty."""
    assert index(of_array(np.zeros((3, 4, 5))), 37) == [1, 3, 2]
    assert index(of_array(np.zeros(())), 0) == []
