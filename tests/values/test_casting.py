"""A cast rounds as torch's `.to()` does, bit for bit, and what it costs is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paramctl.checkpoint import Param, Storage, contiguous
from paramctl.contents import Window
from paramctl.dtypes import DTYPES
from paramctl.outline import CAST_TO
from paramctl.values import casting

WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
EDGES = [
    0.0,
    -0.0,
    1.0,
    57344.0,
    61439.9,
    61440.0,
    65504.0,
    65519.99,
    65520.0,
    240.0,
    247.9,
    248.0,
    448.0,
    463.9,
    464.0,
]
EDGES += [464.1, 480.0, 3.3895314e38, 3.39617749e38, 3.3961776e38, 3.4e38, 1e-45, 2.0**-10, 6e-8, np.inf, np.nan]


def param_of(tensor: torch.Tensor) -> Param:
    """A tensor that lies in memory."""
    name = str(tensor.dtype).removeprefix("torch.")
    raw = memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    shape = tuple(tensor.shape)
    return Param("w", DTYPES[name], shape, contiguous(shape), Storage("w", len(raw), (), raw))


def cast(tensor: torch.Tensor, target: str) -> bytes:
    with Window() as window:
        return b"".join(map(bytes, casting.pieces(param_of(tensor), DTYPES[target], window)))


def numbers(name: str) -> torch.Tensor:
    """Every number of a small type; of a large one a spread of bit patterns, and the edges of the small types."""
    dtype = getattr(torch, name)
    itemsize = torch.empty(0, dtype=dtype).element_size()
    if itemsize <= 2:
        codes = np.arange(1 << 8 * itemsize, dtype=WORDS[itemsize])
        return torch.from_numpy(codes.view(np.uint8)).view(dtype)
    if name == "float64":
        spread = np.random.default_rng(0).standard_normal(100_000) * 2.0 ** np.random.default_rng(1).integers(
            -180, 180, 100_000
        )
        return torch.from_numpy(
            np.concatenate([spread, EDGES, np.negative(EDGES), [1e39, 3.4028235677973366e38, 1e300]])
        )
    codes = np.arange(0, 1 << 32, 20011, dtype=np.uint64).astype(np.uint32)
    return torch.from_numpy(
        np.concatenate([codes.view(np.float32), np.array([*EDGES, *np.negative(EDGES)], np.float32)])
    )


SOURCES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
]


@pytest.mark.parametrize("target", CAST_TO)
@pytest.mark.parametrize("source", SOURCES)
def test_a_cast_is_torchs(source, target):
    """Every number becomes the bits that torch gives it, and what is NaN stays NaN."""
    if source == target:
        pytest.skip("no cast")
    values = numbers(source)
    there = values.to(getattr(torch, target))
    word = WORDS[there.element_size()]
    theirs = there.view(torch.uint8).numpy().view(word)
    mine = np.frombuffer(cast(values, target), word)
    nan = torch.isnan(values.to(torch.float64)).numpy()
    np.testing.assert_array_equal(mine[~nan], theirs[~nan])
    again = torch.from_numpy(mine.view(np.uint8).copy()).view(there.dtype)
    assert torch.isnan(again.to(torch.float64))[torch.from_numpy(nan)].all()


@pytest.mark.parametrize("target", CAST_TO[1:])
def test_what_overflows_is_counted(target):
    """Counted is what torch makes infinite or NaN of a finite number, or, where it stops at the largest, what is rounded beyond it."""
    values = numbers("float64")
    caster = casting.Caster(DTYPES[target])
    caster(values.numpy())
    made = values.to(getattr(torch, target)).to(torch.float64)
    lost = values.isfinite() & ~made.isfinite()
    if target == "float8_e4m3fn":
        lost = (values.to(torch.float32).abs() > 464) & ~values.isnan()
    elif target.endswith("fnuz"):
        lost |= values.isinf()
    assert caster.overflowed == int(lost.sum())


@pytest.mark.parametrize("target", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_the_error_is_that_of_float64(target):
    """The relative error is ‖x − cast(x)‖ / ‖x‖ in float64, and the greatest that of the worst element."""
    torch.manual_seed(0)
    values = torch.randn(300_000)
    with Window() as window:
        loss = casting.loss(param_of(values), DTYPES[target], window)
    wide = values.to(torch.float64)
    error = wide - values.to(getattr(torch, target)).to(torch.float64)
    assert loss.overflowed == 0
    assert loss.rel_l2 == pytest.approx(float(error.norm() / wide.norm()), rel=1e-12)
    assert loss.max_abs == float(error.abs().max())


def test_what_overflows_is_not_in_the_error():
    """A number beyond the type is counted, and the error is that of the others."""
    values = torch.tensor([1.0, 1e30, float("nan"), float("inf"), 3.0])
    with Window() as window:
        loss = casting.loss(param_of(values), DTYPES["float16"], window)
    assert (loss.overflowed, loss.rel_l2, loss.text) == (1, 0.0, "relative error 0, 1 overflow")


def test_what_lies_by_strides_is_put_in_order():
    """A transposed tensor is cast in its own order, and a big-endian one is turned."""
    values = torch.arange(12.0).reshape(3, 4)
    param = param_of(values)._replace(shape=(4, 3), stride=(1, 4))
    with Window() as window:
        made = b"".join(map(bytes, casting.pieces(param, DTYPES["float64"], window)))
        same = b"".join(map(bytes, casting.pieces(param, DTYPES["float32"], window)))
    assert np.frombuffer(made).reshape(4, 3).tolist() == values.t().tolist()
    assert np.frombuffer(same, np.float32).reshape(4, 3).tolist() == values.t().tolist()
    big = memoryview(np.arange(3, dtype=">i4").view(np.uint8))
    param = Param("w", DTYPES["int32"], (3,), (1,), Storage("w", 12, (), big, "big"))
    with Window() as window:
        assert (
            b"".join(map(bytes, casting.pieces(param, DTYPES["int32"], window))) == np.arange(3, dtype="<i4").tobytes()
        )
