"""A tensor over a row of checkpoints: norms, updates and angles as numpy has them in float64, however it lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lying import WAYS
from lying import param as lying

from paramctl.checkpoint import Param
from paramctl.contents import Window
from paramctl.values import course as module
from paramctl.values.course import Angle, Point, course
from tensors import of_array, of_tensor

DTYPES = {
    "float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16,
    "float8_e5m2": ml_dtypes.float8_e5m2, "int64": np.int64, "int8": np.int8, "bool": np.bool_, "complex64": np.complex64,
}  # fmt: skip


def read(params: Sequence[Param | None]) -> list[Point | None]:
    windows = [Window() for _ in params]
    return course(params, windows)


def expected(arrays: Sequence[np.ndarray | None]) -> list[dict[str, Any] | None]:
    """By numpy, in float64; complex numbers as pairs."""
    there = [at for at, array in enumerate(arrays) if array is not None]
    made: list[dict[str, Any] | None] = []
    for at, array in enumerate(arrays):
        if array is None:
            made.append(None)
            continue
        before = arrays[at - 1] if at else None
        first, last = arrays[there[0]], arrays[there[-1]]
        change, norm = _change(before, array)
        made.append(
            {
                "l2": np.linalg.norm(wide(array)[finite(array)]),
                "nan": int(np.isnan(array).sum()),
                "inf": int((np.isinf(array) & ~np.isnan(array)).sum()),
                "update": change,
                "rel_update": None if change is None else 0.0 if not change else None if not norm else change / norm,
                "first": _cosine(first, array),
                "last": _cosine(last, array),
            }
        )
    return made


def wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def finite(*arrays: np.ndarray) -> np.ndarray:
    return np.logical_and.reduce([np.isfinite(wide(array)) for array in arrays])


def _change(before: np.ndarray | None, array: np.ndarray) -> tuple[float | None, float]:
    if before is None or before.shape != array.shape:
        return None, 0.0
    both = finite(before, array)
    return float(np.linalg.norm(wide(array)[both] - wide(before)[both])), float(np.linalg.norm(wide(before)[both]))


def _cosine(a: np.ndarray, b: np.ndarray) -> float | None:
    if a.shape != b.shape:
        return None
    both = finite(a, b)
    one, other = wide(a)[both].reshape(-1), wide(b)[both].reshape(-1)
    norms = np.linalg.norm(one) * np.linalg.norm(other)
    return float(np.vdot(one, other).real / norms) if norms else None


def told(point: Point | None) -> dict[str, Any] | None:
    if point is None:
        return None
    cosines = [None if one is None else one.cosine for one in (point.first, point.last)]
    return {
        "l2": point.l2, "nan": point.nan, "inf": point.inf, "update": point.update, "rel_update": point.rel_update,
        "first": cosines[0], "last": cosines[1],
    }  # fmt: skip


def assert_same(points: Sequence[Point | None], arrays: Sequence[np.ndarray | None]) -> None:
    for point, want in zip(map(told, points), expected(arrays), strict=True):
        assert (point is None) == (want is None)
        for key in want or ():
            close = pytest.approx(want[key], rel=1e-6, abs=1e-9) if isinstance(want[key], float) else want[key]
            assert point[key] == close, (key, point, want)


@pytest.fixture
def small_pieces(monkeypatch):
    """A few elements at a time, so that pieces end within tensors."""
    monkeypatch.setattr(module, "_ALL_NUMEL", 8)
    monkeypatch.setattr(module, "_LEAST_NUMEL", 4)


NUMBERS = st.floats(-1000, 1000, width=16) | st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf])


@st.composite
def arrays(draw, shape: tuple[int, ...], kind: str | None = None) -> np.ndarray:
    name = kind or draw(st.sampled_from(sorted(DTYPES)))
    values = np.array(draw(st.lists(NUMBERS, min_size=math.prod(shape), max_size=math.prod(shape))), np.float64)
    if name in ("int64", "int8", "bool"):
        values = np.nan_to_num(values, nan=0, posinf=100, neginf=-100).clip(-100, 100)
    with np.errstate(all="ignore"):
        return values.reshape(shape).astype(DTYPES[name])


def as_param(array: np.ndarray) -> Param:
    name = next(name for name, dtype in DTYPES.items() if np.dtype(dtype) == array.dtype)
    if name in ("bfloat16", "float8_e5m2"):
        return of_array(array.view(np.uint16 if name == "bfloat16" else np.uint8), name)
    return of_array(array)


@pytest.mark.filterwarnings("ignore:.*invalid value")
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_numbers_are_numpys(data):
    """Over steps of any dtypes, some missing, some of another shape, with NaN and infinities."""
    usual = data.draw(st.sampled_from([(), (1,), (0,), (7,), (3, 5), (2, 3, 4)]))
    steps = [
        data.draw(st.none() | arrays(data.draw(st.sampled_from([usual] * 4 + [(2, 2)]))))
        for _ in range(data.draw(st.integers(1, 6)))
    ]
    assert_same(read([None if array is None else as_param(array) for array in steps]), steps)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_how_it_lies_does_not_matter(way, dtype, small_pieces):
    """A step may lie by other strides, backwards or in the other byte order: the elements are those of the same index."""
    rng = np.random.default_rng(0)
    steps = [rng.normal(size=(5, 7)).astype(DTYPES[dtype]) for _ in range(4)]
    bits = np.uint32 if dtype == "float32" else np.uint16
    params = [lying(array.view(bits)[..., None], dtype, way if at % 2 else "dense") for at, array in enumerate(steps)]
    assert_same(read(params), steps)
    assert_same(read([lying(array.view(bits)[..., None], dtype, way) for array in steps]), steps)


def test_pieces_add_up(small_pieces):
    """A tensor of many pieces, of which some have NaN, is as one piece."""
    rng = np.random.default_rng(1)
    steps = [rng.normal(size=1000).astype(np.float32) for _ in range(5)]
    steps[2][500] = np.nan
    steps[3][::97] = np.inf
    assert_same(read(list(map(as_param, steps))), steps)


@pytest.mark.parametrize("numel", [1, 3, 1 << 16, (1 << 18) + 5])
def test_large_tensors_are_read_in_full(numel):
    """Tensors of less and of more than a piece: every element counts."""
    rng = np.random.default_rng(2)
    steps = [rng.normal(size=numel).astype(np.float32) for _ in range(3)]
    assert_same(read(list(map(as_param, steps))), steps)


def test_equals_have_a_cosine_of_exactly_1_and_no_update():
    """What did not change at all is told so, without rounding."""
    array = np.random.default_rng(3).normal(size=100_000).astype(np.float32)
    for point in read([as_param(array)] * 3)[1:]:
        assert (point.update, point.rel_update, point.first.cosine, point.last.cosine) == (0.0, 0.0, 1.0, 1.0)


def test_small_changes_of_large_numbers_are_exact():
    """A change of one unit in the last place is seen as what it is."""
    before = np.full(1000, 1000.0, np.float32)
    after = np.nextafter(before, np.float32(2000))
    (_, point) = read([as_param(before), as_param(after)])
    assert point.update == pytest.approx(float(np.linalg.norm(after.astype(np.float64) - before)), rel=1e-12)


def test_differences_beyond_float32_are_told():
    """From the largest float32 to the least: the difference is none of float32's, and is told."""
    top = np.full(3, np.finfo(np.float32).max, np.float32)
    (_, point) = read([as_param(top), as_param(-top)])
    assert point.update == pytest.approx(2 * float(top[0]) * math.sqrt(3))


def test_an_expanded_tensor_counts_each_element_that_it_shows():
    """Elements that lie there once and are shown often are read once and counted as often."""
    steps = [torch.arange(1.0, 4.0).mul(scale).expand(5, 3) for scale in (1, 2)]
    assert_same(read([of_tensor(tensor) for tensor in steps]), [tensor.numpy() for tensor in steps])


def test_each_byte_is_read_once():
    """All windows together read as many bytes as the steps have."""
    steps = [np.random.default_rng(at).normal(size=200_000).astype(np.float32) for at in range(4)]
    taken = [0]

    def tell(nbytes: int) -> None:
        taken[0] += nbytes

    course(list(map(as_param, steps)), [Window(tell) for _ in steps])
    assert taken[0] == sum(array.nbytes for array in steps)


POINTS = st.builds(
    Point,
    st.floats(0, 1e6), st.integers(0, 9), st.integers(0, 9), st.none() | st.floats(0, 1e6), st.floats(0, 1e6),
    *[st.none() | st.builds(Angle, st.floats(-10, 10), st.floats(0, 10), st.floats(0, 10))] * 2,
)  # fmt: skip


@given(a=POINTS, b=POINTS)
def test_points_add_up(a, b):
    """Squares and products of two tensors are those of both together, whichever comes first; what one lacks is the other's."""
    both = a.plus(b)
    assert both == b.plus(a)
    assert both.l2 == pytest.approx(math.hypot(a.l2, b.l2))
    assert (both.change is None) == (a.change is None and b.change is None)
    assert a.plus(Point()) == a
    assert a.times(1) == a
    assert a.times(3).squares == 3 * a.squares
