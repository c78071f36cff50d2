"""The spread that is expected of a law is the one that a large tensor has."""

from __future__ import annotations

import pytest
import torch

from paramctl import spreads
from paramctl.initializers import INITIALIZERS, parse
from program import MODELS

SCHEMES = [
    "uniform", "uniform(a=-3, b=0.5)", "normal", "normal(mean=2, std=0.01)", "trunc_normal",
    "trunc_normal(std=0.02, a=-0.03, b=0.01)", "trunc_normal(mean=3, a=4, b=5)", "constant(val=3)", "ones", "zeros",
    "xavier_uniform", "xavier_normal(gain=0.3)", "kaiming_uniform", 'kaiming_normal(mode="fan_out", nonlinearity="relu")',
    "lecun_uniform", "lecun_normal", "trunc_normal_fan_in(scale=3)", "gpt2_residual(layers=6)",
]  # fmt: skip
SHAPED = {
    "eye": (30, 50), "orthogonal(gain=2)": (200, 300), "orthogonal": (300, 40, 3), "sparse(sparsity=0.3, std=2)": (777, 99),
    "dirac": (12, 6, 3), "dirac(groups=2)": (8, 6, 3, 3), "delta_orthogonal": (90, 60, 3),
}  # fmt: skip
CASES = [*((scheme, (400, 60, 5)) for scheme in SCHEMES), *SHAPED.items()]


@pytest.mark.parametrize(("scheme", "shape"), CASES, ids=str)
def test_what_is_expected_is_what_is_drawn(scheme, shape):
    """The standard deviation of the filled tensor is that of the law, but for chance."""
    torch.manual_seed(0)
    tensor = torch.empty(shape, dtype=torch.float64)
    parse(scheme)(tensor)
    assert spreads.expected(parse(scheme), shape) == pytest.approx(float(tensor.std(correction=0)), rel=0.01, abs=1e-12)


def test_every_law_has_a_spread():
    """No initializer is without, and what is no named law has none."""
    assert {scheme.partition("(")[0] for scheme, _ in CASES} == INITIALIZERS.keys()
    assert spreads.expected(parse("default"), (3, 4)) is None


def test_a_preview_tells_both(run):
    """With --preview the plan says what spread each law has, and what was drawn."""
    words = ["--scheme", "xavier", "--bias", "zeros", "--seed", "0", "--preview", "-f", "json"]
    rows = run("init", MODELS / "mlp.py", *words).rows
    assert [row["detail"] for row in rows[:2]] == [
        "xavier_uniform: std 0.4082 by its law, 0.3888 drawn",
        "zeros: std 0 by its law, 0 drawn",
    ]
