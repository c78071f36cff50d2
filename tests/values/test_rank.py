"""The rank of a change: of updates of known rank, merged and rounded as they are in practice."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from paramctl.values import rank as ranks
from paramctl.values.compare import Side, Sides
from paramctl.values.rank import Rank, numerical_rank
from tensors import of_array, of_tensor, param

ROUNDED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WAYS = {"directly": {}, "gram": {"_SMALL": 0}, "largest": {"_SMALL": 0, "_LONG": 8}}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Each of the ways in which singular values are had, for matrices of any size."""
    for name, value in WAYS[request.param].items():
        monkeypatch.setattr(ranks, name, value)
    monkeypatch.setattr(ranks, "_BLOCK_NUMEL", 5_000)
    return request.param


def rank(a, b) -> Rank | None:
    first, second = (of_tensor(each) if isinstance(each, torch.Tensor) else each for each in (a, b))
    with Side() as mine, Side() as theirs:
        return numerical_rank(first, second, Sides(mine, theirs))


def weight(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (0.02 * torch.randn(shape, dtype=torch.float64)).to(dtype)


def update(rows: int, columns: int, r: int, *, scale: float = 0.1) -> torch.Tensor:
    """Of rank r, its elements `scale` times as large as a weight's."""
    a, b = torch.randn(rows, r, dtype=torch.float64), torch.randn(r, columns, dtype=torch.float64)
    return a @ b * (0.02 * scale / math.sqrt(r))


@pytest.mark.parametrize("dtype", ROUNDED, ids=str)
@pytest.mark.parametrize("shape", [(96, 96), (64, 300), (300, 64)], ids=str)
@pytest.mark.parametrize("r", [1, 8, 32])
def test_a_merged_lora_has_its_rank(dtype: torch.dtype, shape: tuple[int, int], r: int, way: str):
    """W + BA has the rank of BA, whether it is added in float64 and rounded once, or in the dtype itself."""
    torch.manual_seed(r)
    a, change = weight(*shape, dtype=dtype), update(*shape, r)
    assert rank(a, (a.double() + change).to(dtype)) == Rank(r)
    assert rank(a, a + change.to(dtype)) == Rank(r)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_both_sides_may_be_rounded(dtype: torch.dtype, way: str):
    """A base and a merged weight that were each cast from float32 differ by the rank of the update."""
    torch.manual_seed(0)
    base = weight(200, 120)
    assert rank(base.to(dtype), (base.double() + update(200, 120, 4)).to(dtype)) == Rank(4)


def test_rounding_alone_has_no_rank(way: str):
    """A cast to bfloat16 changes every element, and nothing of it is above what rounding does."""
    torch.manual_seed(0)
    a = weight(200, 120)
    assert rank(a, a.bfloat16()) == Rank(0)
    assert rank(a, a) == Rank(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_full_change_has_full_rank(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """Fine-tuning of everything has the rank of the matrix; where only the largest are had, at least so many."""
    torch.manual_seed(0)
    a = weight(300, 100, dtype=dtype)
    b = (a.double() + 0.02 * torch.randn(300, 100, dtype=torch.float64)).to(dtype)
    assert rank(a, b) == Rank(100)
    for name, value in {"_SMALL": 0, "_LONG": 64, "MOST": 20, "_SKETCHED": 30}.items():
        monkeypatch.setattr(ranks, name, value)
    assert rank(a, b) == Rank(20, is_least=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_were_changed(dtype: torch.dtype, way: str):
    """A few rows of an embedding set anew are a change of that rank: rows that nothing changed have no rounding."""
    torch.manual_seed(0)
    a = weight(2000, 32, dtype=dtype)
    b = a.clone()
    b[[3, 500, 1999]] = weight(3, 32, dtype=dtype)
    assert rank(a, b) == Rank(3)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_whole_numbers_are_not_rounded(dtype: torch.dtype):
    """Of integers it is torch.linalg.matrix_rank of the difference."""
    torch.manual_seed(0)
    a = torch.randint(0, 4, (40, 30)).to(dtype)
    b = a + (torch.randint(0, 2, (40, 3)) @ torch.randint(0, 2, (3, 30))).to(dtype)
    assert rank(a, b) == Rank(int(torch.linalg.matrix_rank(b.double() - a.double())))


@pytest.mark.parametrize("r", [1, 5])
def test_float64_has_torch_s_tolerance(r: int):
    """Small singular values of float64 count down to torch's own tolerance."""
    torch.manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64))
    change = (
        u @ torch.diag(torch.tensor([10.0 ** -(2 * i) for i in range(r)] + [0.0] * (30 - r), dtype=torch.float64)) @ u.T
    )
    zero = torch.zeros(30, 30, dtype=torch.float64)
    assert rank(zero, change) == Rank(int(torch.linalg.matrix_rank(change))) == Rank(r)


def test_convolutions_and_views_are_matrices(way: str):
    """A convolution is its output channels by all else, and a transpose has the rank of its tensor."""
    torch.manual_seed(0)
    a = weight(64, 8, 3, 3)
    b = (a.double() + update(64, 72, 5).view(64, 8, 3, 3)).float()
    assert rank(a, b) == Rank(5)
    flat = a.view(64, 72), b.view(64, 72)
    assert rank(*(each.t() for each in flat)) == rank(*flat) == rank(flat[0].t().contiguous().t(), flat[1]) == Rank(5)


def test_what_has_no_rank():
    """Vectors, empty tensors, NaN and infinities, quantized and complex numbers have none."""
    vector, matrix = np.zeros(8, np.float32), np.ones((4, 2), np.float32)
    assert rank(of_array(vector), of_array(vector + 1)) is None
    assert rank(of_array(matrix[:0]), of_array(matrix[:0])) is None
    for odd in (math.nan, math.inf):
        broken = matrix.copy()
        broken[1, 1] = odd
        assert rank(of_array(matrix), of_array(broken)) is None
    complex_ = of_array(matrix.astype(np.complex64))
    assert rank(complex_, complex_) is None
    blocks = param(bytes(2 * 34), "q8_0", (2, 32))
    assert rank(blocks, blocks) is None
    assert rank(of_array(matrix), of_array(matrix + 1)) == Rank(1)


@pytest.mark.slow
def test_a_large_matrix_has_its_rank():
    """Beyond 2,048 on the shorter side a rank up to 256 is told, in bfloat16 too."""
    torch.manual_seed(0)
    a = weight(2100, 2304, dtype=torch.bfloat16)
    for r in (16, 256):
        assert rank(a, (a.double() + update(2100, 2304, r, scale=1)).bfloat16()) == Rank(r)
