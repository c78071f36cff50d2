"""Singular values, and what they say: those of the whole matrix in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramctl.checkpoint import Param
from paramctl.contents import Window
from paramctl.errors import ParamctlError
from paramctl.values import spectrum as module
from paramctl.values import stream
from paramctl.values.lanes import lane
from paramctl.values.spectrum import Spectrum, singular_values, spectrum
from tensors import of_array, of_tensor, param


def values_of(param: Param, *, numel: int = 1 << 22) -> np.ndarray | None:
    """By blocks of about so many elements."""
    with Window() as window, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_NUMEL", numel)
        return singular_values(param, window)


def told(param: Param) -> Spectrum | None:
    with Window() as window:
        return spectrum(param, window)


def svd(array: np.ndarray) -> np.ndarray:
    wide = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    return np.linalg.svd(wide.reshape(len(wide), -1), compute_uv=False)


def same(mine: np.ndarray | None, theirs: np.ndarray) -> None:
    """To 1e-13 of the largest."""
    assert mine is not None
    assert mine.shape == theirs.shape
    assert np.abs(mine - theirs).max() <= 1e-13 * max(theirs[0], 5e-324)


def matrix(shape: tuple[int, ...], dtype: str = "float64") -> np.ndarray:
    rng = np.random.default_rng(0)
    made = rng.standard_normal(shape)
    return (made + 1j * rng.standard_normal(shape)).astype(dtype) if dtype[0] == "c" else made.astype(dtype)


SHAPES = [(1, 1), (1, 9), (9, 1), (20, 20), (200, 7), (7, 200), (16, 3, 3, 3), (3, 16, 3, 3), (4, 4, 1, 1), (30, 2, 50)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "complex64", "complex128", "int64"])
@pytest.mark.parametrize("numel", [1, 100, 1 << 22])
def test_singular_values_are_numpy_s(shape: tuple[int, ...], dtype: str, numel: int):
    """Long, wide and square, and the weights of convolutions, whole or by blocks."""
    array = matrix(shape, dtype) if dtype != "int64" else (matrix(shape) * 100).astype(np.int64)
    same(values_of(of_array(array), numel=numel), svd(array))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.integers(1, 60), st.randoms())
def test_any_strides(shape: list[int], numel: int, rng):
    """Transposed, channels-last, expanded, and every second of an axis: as the array that is shown."""
    order = rng.sample(range(len(shape)), len(shape))
    view = torch.from_numpy(matrix(tuple(shape))).permute(order)
    view = view[(slice(None),) * rng.randrange(len(shape)) + (slice(None, None, rng.choice([1, 2])),)]
    view = view.unsqueeze(2).expand(*view.shape[:2], rng.choice([1, 3]), *view.shape[2:])
    same(values_of(of_tensor(view), numel=numel), svd(view.contiguous().numpy()))


def test_blocks_keep_small_singular_values():
    """A singular value 1e-10 of the largest has six digits left, also when the matrix is long and read by blocks."""
    left, right = (np.linalg.qr(matrix(shape))[0] for shape in ((900, 12), (12, 12)))
    wanted = np.logspace(0, -10, 12)
    for array in (left * wanted @ right, (left * wanted @ right).T.copy()):
        assert values_of(of_array(array), numel=1000) == pytest.approx(wanted, rel=1e-5)


def test_words_of_torch():
    """The spectral norm and the condition are torch's; a stable rank is ‖A‖²_F / ‖A‖²₂."""
    for shape in ((40, 30), (30, 40)):
        wide = torch.from_numpy(matrix(shape, "float32")).double()
        found = told(of_array(matrix(shape, "float32")))
        assert found.spectral_norm == pytest.approx(torch.linalg.matrix_norm(wide, 2).item(), rel=1e-12)
        assert found.condition == pytest.approx(torch.linalg.cond(wide).item(), rel=1e-11)
        ratio = torch.linalg.matrix_norm(wide).item() / torch.linalg.matrix_norm(wide, 2).item()
        assert found.stable_rank == pytest.approx(ratio**2, rel=1e-12)


def test_a_convolution_is_the_matrix_of_spectral_norm():
    """As `torch.nn.utils.parametrizations.spectral_norm` sees it: the first axis by all others."""
    weight = torch.from_numpy(matrix((6, 5, 3, 3), "float32"))
    flat = weight.flatten(1).double()
    for view in (weight, weight.to(memory_format=torch.channels_last), weight[:, :, 1:], weight[::2]):
        norm = torch.linalg.matrix_norm(view.flatten(1).double(), 2).item()
        assert told(of_tensor(view)).spectral_norm == pytest.approx(norm, rel=1e-12)
    assert flat.shape == (6, 45)


def test_ranks_are_those_of_known_spectra():
    """Of k equal singular values both ranks are k; of one direction, 1; effective rank is exp of the entropy."""
    for k in (1, 3, 8):
        array = np.zeros((20, 10))
        array[:k, :k] = np.linalg.qr(matrix((k, k)))[0] * 5
        found = told(of_array(array))
        assert (found.spectral_norm, found.stable_rank, found.effective_rank) == pytest.approx((5, k, k), rel=1e-12)
        assert found.condition > 1e14
    assert told(of_array(np.outer(np.arange(1, 5), np.arange(1, 4)))).effective_rank == pytest.approx(1, abs=1e-12)
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    entropy = -(shares * np.log(shares)).sum()
    assert told(of_array(np.diag(shares * 9))).effective_rank == pytest.approx(math.exp(entropy), rel=1e-12)
    assert told(of_array(np.eye(5))) == pytest.approx((1, 1, 5, 5))


def test_a_matrix_of_zeros():
    """Its norm is 0, and there is no ratio; a singular value of 0 makes the condition infinite."""
    found = told(of_array(np.zeros((4, 3))))
    assert found.spectral_norm == 0
    assert all(map(math.isnan, found[1:]))
    assert told(of_array(np.diag([2.0, 0.0]))).condition == math.inf


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e160, 1e300])
def test_any_magnitude(size: float):
    """Ratios do not depend on it."""
    one, other = told(of_array(matrix((9, 5)))), told(of_array(matrix((9, 5)) * size))
    assert other.spectral_norm == pytest.approx(one.spectral_norm * size, rel=1e-12)
    assert other[1:] == pytest.approx(one[1:], rel=1e-10)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (-1, -1)])
def test_what_is_not_finite_has_none(value: float, place: tuple[int, int]):
    """One element that is no number, and there is no spectrum; of vectors and of nothing neither."""
    for shape, dtype in (((50, 4), "float32"), ((4, 50), "float16"), ((50, 4), "complex64")):
        array = matrix(shape, dtype)
        array[place] = value
        assert told(of_array(array)) is None
    signalling = np.ones((5, 4), np.float32)
    signalling.view(np.uint32)[2, 1] = 0x7F800001
    assert told(of_array(signalling)) is None


@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (3, 0)])
def test_what_is_no_matrix(shape: tuple[int, ...]):
    """Scalars, vectors and empty tensors have no spectrum."""
    assert told(of_array(np.zeros(shape))) is None


@pytest.mark.parametrize(("name", "shape"), [("q8_0", (5, 64)), ("q8_0", (80, 32)), ("float4_e2m1fn", (3, 40)), ("float4_e2m1fn", (41, 3)), ("float4_e2m1fn_x2", (9, 4)), ("float4_e2m1fn_x2", (4, 9)), ("float6_e2m3fn", (4, 7)), ("bfloat16", (6, 30))])  # fmt: skip
def test_other_dtypes(name: str, shape: tuple[int, ...]):
    """Of packed types and blocks, wide ones too; where torch counts a pair as one element, a column is a pair's part."""
    raw = np.random.default_rng(0).integers(0, 0x3C, 34 * 400, np.uint8).tobytes()
    whole = param(raw, name, shape)
    with Window() as window:
        values = np.concatenate([part.copy() for part in stream.numbers(whole, lane(whole), window)])
    same(values_of(whole, numel=64), svd(values.reshape(shape[0], -1)))


def test_what_is_too_large_is_an_error(monkeypatch):
    """A matrix whose shorter side is too long is refused before it is read, and so is a wide one of too many blocks."""
    shape = (1 << 15, 1 << 16)
    large = of_array(np.zeros((1, 1)))._replace(shape=shape, stride=(1 << 16, 1))
    with pytest.raises(ParamctlError, match=r"^error: w: 32,768×65,536 is too large for its singular values$"):
        told(large)
    monkeypatch.setattr(module, "_MOST_HELD", 100)
    with pytest.raises(ParamctlError, match=r"^error: w: 5×32 is too large for its singular values$"):
        told(param(bytes(34 * 5), "q8_0", (5, 32)))
