"""Values: the elements of a tensor and no other bytes, each exactly."""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from paramctl import values
from paramctl.checkpoint import Extent, Param, Storage
from paramctl.dtypes import DTYPES
from tensors import param

PAIRS = ("float4_e2m1fn_x2", "quint4x2", "quint2x4")


@pytest.mark.parametrize("dtype", [d for d in DTYPES if DTYPES[d].block_numel == 1 and d not in PAIRS])
def test_every_dtype_has_values(dtype: str):
    """Each element of each dtype is read, a strided view of it too, and is itself a Python value."""
    size = DTYPES[dtype].block_nbytes
    raw = bytes([0, 1] * 3 * size)[: 6 * size] if dtype != "bool" else bytes([0, 1] * 3)
    dense = values.array(param(raw, dtype, (6,), (1,)))
    strided = values.array(param(raw, dtype, (2, 2), (1, 3), 1))
    assert dense.dtype.itemsize * (2 if dtype == "complex32" else 1) == size
    assert strided.tolist() == [[dense.tolist()[1], dense.tolist()[4]], [dense.tolist()[2], dense.tolist()[5]]]
    flat = np.ravel(values.nested(strided)).tolist()
    assert all(type(value) in (int, float, bool) for value in flat)


@pytest.mark.parametrize("dtype", ["q4_0_4_4", "q1_0", "iq4_nl_8_8"])
def test_a_dtype_that_is_not_known_is_said(dtype: str):
    """A dtype whose numbers are not known is refused by name."""
    kind = DTYPES[dtype]
    with pytest.raises(values.ParamctlError, match=f"^error: w: values of {dtype} are not read yet$"):
        values.array(param(bytes(kind.block_nbytes), dtype, (kind.block_numel,), (1,)))


def test_packed_values_are_those_of_ml_dtypes():
    """Of every code of four and six bits the number, low bits first; a view and an odd count too."""
    fours = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    raw = bytes(2 * i | (2 * i + 1) << 4 for i in range(8))
    assert values.array(param(raw, "float4_e2m1fn", (16,), (1,))).tolist() == fours.tolist()
    assert (
        values.array(param(raw, "float4_e2m1fn", (3, 2), (4, 2), 1)).tolist()
        == fours[1:13].reshape(3, 4)[:, ::2].tolist()
    )
    assert values.array(param(raw, "float4_e2m1fn_x2", (8,), (1,))).tolist() == fours.reshape(8, 2).tolist()
    sixes = np.arange(64, dtype=np.uint8).view(ml_dtypes.float6_e2m3fn).astype(np.float32)
    words = (sum((4 * i + k) << 6 * k for k in range(4)) for i in range(16))
    raw = b"".join(word.to_bytes(3, "little") for word in words)
    assert values.array(param(raw, "float6_e2m3fn", (63,), (1,))).tolist() == sixes[:63].tolist()


@pytest.mark.parametrize(
    ("dtype", "raw", "expected"),
    [
        ("bfloat16", b"\x80\x3f", 1.0),
        ("float8_e4m3fn", b"\x7e", 448.0),
        ("float8_e5m2", b"\x01", 2.0**-16),
        ("float8_e8m0fnu", b"\x00", 2.0**-127),
        ("uint64", b"\xff" * 8, 2**64 - 1),
        ("int64", b"\x00" * 7 + b"\x80", -(2**63)),
        ("float64", b"\x01" + b"\x00" * 7, 5e-324),
        ("float16", b"\x00\xfc", -math.inf),
        ("bool", b"\x01", True),
    ],
)
def test_a_number_is_exact(dtype: str, raw: bytes, expected: float):
    """A value is the very number that the bits stand for."""
    assert values.nested(values.array(param(raw, dtype, (), ()))) == expected


def test_complex_values_are_pairs():
    """A complex number is a list of its two parts, of complex32 as of the others."""
    for dtype, real in (("complex32", np.float16), ("complex64", np.float32), ("complex128", np.float64)):
        raw = np.array([1, -2, 3, 4], real).tobytes()
        assert values.nested(values.array(param(raw, dtype, (2,), (1,)))) == [[1, -2], [3, 4]]
        assert values.nested(values.array(param(raw, dtype, (), (), 1))) == [3, 4]


def test_big_endian_values():
    """A storage of the other byte order has its own values."""
    for dtype in ("float32", "int16", "complex64"):
        raw = np.array([1, 2], np.dtype(dtype).newbyteorder(">")).tobytes()
        array = values.array(param(raw, dtype, (2,), (1,), byteorder="big"))
        assert array.tolist() == [1, 2]


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_big_endian_values_beyond_numpy(dtype: str):
    """bfloat16 of the other byte order too."""
    assert values.nested(values.array(param(b"\x3f\x80\x40\x00", dtype, (2,), (1,), byteorder="big"))) == [1.0, 2.0]


def test_only_the_span_is_read(tmp_path: Path):
    """A view of a large storage costs its own bytes: the rest of the file need not even be there."""
    path = tmp_path / "bytes"
    path.write_bytes(bytes(16) + np.arange(4, dtype=np.float32).tobytes())
    storage = Storage("0", 1 << 40, (Extent(str(path), 0, 1 << 40),))
    view = Param("w", DTYPES["float32"], (2,), (2,), storage, 5)
    assert values.array(view).tolist() == [1, 3]
    beyond = view._replace(storage_offset=8)
    with pytest.raises(values.ParamctlError, match=r"^error: .*bytes: it ends before the bytes of w$"):
        values.array(beyond)


def test_no_values_are_said_to_be_none():
    """A tensor of the meta device has a shape, and no values; an empty one needs none."""
    meta = Param("w", DTYPES["float32"], (2,), (1,), Storage("0", 8))
    with pytest.raises(values.ParamctlError, match=r"^error: w: it has a shape, and no values$"):
        values.array(meta)
    assert values.array(meta._replace(shape=(0, 3), stride=(3, 1), storage=Storage("0", 0))).shape == (0, 3)


@pytest.mark.parametrize("shape", [(1,) * 65, (1 << 40, 1 << 40, 0)])
def test_shapes_that_numpy_has_not(shape: tuple[int, ...]):
    """A shape beyond numpy's is an error in one line."""
    with pytest.raises(values.ParamctlError, match=r"^error: w: numpy has no such array: "):
        values.array(param(bytes(4), "float32", shape, (0,) * len(shape)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool", "complex64", "uint8"])
def test_spread_is_of_float64(dtype: str):
    """Mean and standard deviation are those of float64, however large the mean."""
    raw = values.numpy_dtype(param(b"", dtype, (0,), (1,)))
    numbers = (np.arange(100) % 2).astype(raw)
    said = values.spread(values.array(param(np.ascontiguousarray(numbers).tobytes(), dtype, (100,), (1,))))
    assert said == ("50 of 100 true" if dtype == "bool" else "mean 0.5 std 0.5")


@pytest.mark.parametrize(("numbers", "said"), [([], "empty"), ([2.5], "2.5"), ([1e8, 1e8 + 8], "mean 1e+08 std 4")])
def test_spread_of_few(numbers: list[float], said: str):
    """Nothing, one, and a mean that dwarfs its spread."""
    raw = np.array(numbers, np.float32).tobytes()
    assert values.spread(values.array(param(raw, "float32", (len(numbers),), (1,)))) == said
