"""Norms and counts of live tensors, against torch in float64 and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from paramctl.measures import Measure, measured, named

DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.int64,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (70_001,)], ids=str)
def test_a_norm_is_torchs_in_float64(dtype, shape):
    """Of every dtype and shape, in pieces or not, the norm is that of the same values in float64."""
    torch.manual_seed(0)
    values = torch.randn(shape, dtype=torch.complex64 if dtype.is_complex else torch.float32).mul(8).to(dtype)
    wide = values.to(torch.complex128 if dtype.is_complex else torch.float64)
    found = measured(values)
    assert found.l2 == pytest.approx(float(torch.linalg.vector_norm(wide)), rel=1e-12)
    assert found[1:] == (int((wide == 0).sum()), 0, 0)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_no_square_is_lost(scale):
    """A norm is right where the squares of its elements are beyond float64."""
    assert measured(torch.tensor([3.0, -4.0, 0.0], dtype=torch.float64) * scale) == Measure(
        pytest.approx(5 * scale, rel=1e-12, abs=0), 1, 0, 0
    )


SPECIAL = st.sampled_from([0.0, -0.0, 3.0, -4.0, math.nan, math.inf, -math.inf])


@given(st.lists(SPECIAL, max_size=9))
def test_what_is_not_finite_is_counted_and_left_out(numbers):
    """The norm is of the finite elements; zeros of either sign, NaN and infinities are counted."""
    finite = [number for number in numbers if math.isfinite(number)]
    assert measured(torch.tensor(numbers)) == Measure(
        pytest.approx(math.hypot(*finite)),
        numbers.count(0.0),
        sum(map(math.isnan, numbers)),
        sum(map(math.isinf, numbers)),
    )


def test_a_sparse_gradient_is_counted_as_the_dense_one():
    """Duplicate entries of a sparse tensor are summed before they are counted."""
    sparse = torch.sparse_coo_tensor([[1, 1, 3]], [1.0, 2.0, 4.0], (5,), check_invariants=True)
    assert measured(sparse) == Measure(5.0, 3, 0, 0)


def test_each_parameter_has_all_of_its_names():
    """Names of one object stand together, in order; equal parameters are not one."""
    one = nn.Linear(2, 2)
    net = nn.Sequential(one, nn.Linear(2, 2), one)
    assert [names for _, names in named(net).values()] == [
        ("0.weight", "2.weight"), ("0.bias", "2.bias"), ("1.weight",), ("1.bias",),
    ]  # fmt: skip
