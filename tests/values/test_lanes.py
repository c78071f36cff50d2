"""From bytes to numbers: for every dtype the numbers that torch, ml_dtypes or ggml give its bits."""

from __future__ import annotations

import math
import warnings

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch

from paramctl.checkpoint import Param
from paramctl.contents import Window
from paramctl.dtypes import DTYPES
from paramctl.errors import ParamctlError
from paramctl.values import blocks, lanes, stream
from tensors import CODES, param

FLOATS = ("bfloat16", "float16", *(name for name in DTYPES if name.startswith("float8")))
PACKED = {  # how many bits an element has, and what its code stands for
    "float4_e2m1fn": (4, ml_dtypes.float4_e2m1fn),
    "float4_e2m1fn_x2": (4, ml_dtypes.float4_e2m1fn),
    "float6_e2m3fn": (6, ml_dtypes.float6_e2m3fn),
    "float6_e3m2fn": (6, ml_dtypes.float6_e3m2fn),
    "quint4x2": (4, np.uint8),
    "quint2x4": (2, np.uint8),
}
INTEGERS = {  # stored as numpy's
    **{name: CODES[name] for name in CODES if CODES[name][0] in "iu"},
    "quint8": "u1", "qint8": "i1", "qint32": "i4", "bits8": "u1", "bits16": "u2",
    **dict.fromkeys(("bits1x8", "bits2x4", "bits4x2"), "u1"),
    **{f"uint{bits}": "u1" for bits in range(1, 8)}, **{f"int{bits}": "i1" for bits in range(1, 8)},
}  # fmt: skip
WIDE = ("float32", "float64", "complex32", "complex64", "complex128")
UNKNOWN = [name for name in DTYPES if name == "q1_0" or "_4_" in name or name.endswith("_8_8")]
BLOCKS = [name for name in DTYPES if DTYPES[name].block_numel >= 32 and name not in UNKNOWN]


def told(param: Param, *, numel: int = 100) -> np.ndarray:
    """All numbers, in float64 or 64-bit integers, read in pieces of about `numel`."""
    found = lanes.lane(param)
    with Window() as window:
        made = np.concatenate([piece.copy() for piece in stream.numbers(param, found, window, numel=numel)])
    assert made.dtype.str[1:] == found.number
    with np.errstate(invalid="ignore"):  # signalling NaN
        return made if made.dtype.kind in "iu" else made.astype(np.float64)


def same(mine: np.ndarray, theirs: np.ndarray) -> None:
    """The same numbers, NaN in the same places, and the same signs of zeros."""
    np.testing.assert_array_equal(mine, theirs)
    kept = ~np.isnan(theirs)
    np.testing.assert_array_equal(np.signbit(mine)[kept], np.signbit(theirs)[kept])


def random_bytes(nbytes: int) -> bytes:
    return np.random.default_rng(3).integers(0, 256, nbytes, np.uint8).tobytes()


def test_every_dtype_is_told_or_refused():
    """The tables of these tests have every dtype that there is, each once."""
    known = [*FLOATS, *PACKED, *INTEGERS, *WIDE, *BLOCKS, "bool"]
    assert sorted(known + UNKNOWN) == sorted(DTYPES)


@pytest.mark.parametrize("name", FLOATS)
def test_every_code_is_torch_s_number(name: str):
    """All 256 or 65,536 codes: also subnormals, infinities, every NaN, and both zeros."""
    size = DTYPES[name].block_nbytes
    raw = np.arange(1 << 8 * size).astype(f"u{size}").tobytes()
    theirs = torch.frombuffer(bytearray(raw), dtype=getattr(torch, name)).to(torch.float64).numpy()
    for numel in (100, 1 << 8 * size):  # float16 has a way for pieces that are finite, and one for others
        same(told(param(raw, name, theirs.shape), numel=numel), theirs)


def test_every_half_of_a_complex32_is_torch_s_number():
    """All 65,536 codes, as a real and as an imaginary part."""
    codes = np.arange(1 << 16, dtype=np.uint16)
    raw = np.stack([codes, codes[::-1]], axis=1).tobytes()
    theirs = torch.frombuffer(bytearray(raw), dtype=torch.float16).to(torch.float64).numpy()
    same(told(param(raw, "complex32", (1 << 16,))), theirs)


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("numel", [1, 5, 48, 100])
def test_every_packed_code_is_its_number(name: str, numel: int):
    """Low bits first, every code in every place of its byte, in pieces of any length."""
    bits, kind = PACKED[name]
    count = 24 << bits
    codes = np.random.default_rng(0).permutation(np.arange(count) % (1 << bits)).astype(np.uint8)
    packed = np.packbits((codes[:, None] >> np.arange(bits) & 1).reshape(-1), bitorder="little").tobytes()
    pairs = 2 if name.endswith("_x2") else 1
    same(told(param(packed, name, (count // pairs,)), numel=numel), codes.view(kind).astype(np.float64))


@pytest.mark.parametrize("name", [name for name in PACKED if not name.endswith("_x2")])
def test_what_fills_a_block_is_left_out(name: str):
    """An odd count has its own elements and none of the last byte's others; a part begins within a byte."""
    kind = DTYPES[name]
    per, many = kind.block_numel, 8 * kind.block_numel
    raw = random_bytes(kind.nbytes(many))
    every = told(param(raw, name, (many,)))
    for count in range(1, 2 * per + 2):
        same(told(param(raw[: kind.nbytes(count)], name, (count,))), every[:count])
        for offset in range(2 * per):
            same(told(param(raw, name, (count,), (1,), offset), numel=per), every[offset : offset + count])


@pytest.mark.parametrize(("name", "most"), [("quint4x2", 16), ("quint2x4", 4)])
def test_quantized_halves_and_quarters_are_torch_s(name: str, most: int):
    """The integers of torch's own packing."""
    numbers = torch.from_numpy(np.random.default_rng(0).integers(0, most, (5, 24))).float()
    ones, zeros = torch.ones(5), torch.zeros(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = torch.quantize_per_channel(numbers, ones, zeros, 0, getattr(torch, name))
    raw = packed.int_repr().reshape(-1)[: DTYPES[name].nbytes(120)].numpy().tobytes()
    same(told(param(raw, name, (5, 24))), numbers.double().numpy().reshape(-1))


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_are_exact(name: str):
    """Random integers, the least and the greatest, are the ones that numpy reads."""
    code = np.dtype(INTEGERS[name])
    limits = np.array([np.iinfo(code).min, np.iinfo(code).max], code)
    raw = limits.tobytes() + random_bytes(200 * code.itemsize)
    theirs = np.frombuffer(raw, code)
    assert told(param(raw, name, theirs.shape)).tolist() == theirs.tolist()


def test_a_bool_is_zero_or_one():
    """A byte of any bits but none is true, as for torch."""
    raw = bytes(range(256))
    theirs = torch.frombuffer(bytearray(raw), dtype=torch.bool).double().numpy()
    same(told(param(raw, "bool", (256,))), theirs)


@pytest.mark.parametrize("name", WIDE[:2])
def test_wide_floats_are_as_they_are(name: str):
    """Bits of any kind, signalling NaN and subnormals among them."""
    raw = random_bytes(8 * 500) + np.array([math.nan, math.inf, -math.inf, -0.0], CODES[name]).tobytes()
    raw += {"float32": b"\x01\x00\x80\x7f", "float64": b"\x01" + b"\0" * 5 + b"\xf0\x7f"}[name] + bytes([1, *[0] * 7])
    raw = raw[: len(raw) // 8 * 8]
    with np.errstate(invalid="ignore"):
        theirs = np.frombuffer(raw, CODES[name]).astype(np.float64)
    found = lanes.lane(whole := param(raw, name, theirs.shape))
    with Window() as window:
        assert b"".join(piece.tobytes() for piece in stream.numbers(whole, found, window, numel=7)) == raw


@pytest.mark.parametrize("name", ["complex64", "complex128"])
def test_complex_numbers_are_pairs(name: str):
    """A real and an imaginary part for each element."""
    numbers = (
        np.random.default_rng(0).standard_normal((50, 2)).astype(CODES[name].replace("c8", "f4").replace("c16", "f8"))
    )
    same(told(param(numbers.tobytes(), name, (50,)), numel=7), numbers.reshape(-1).astype(np.float64))


@pytest.mark.parametrize(
    "name", [name for name, kind in DTYPES.items() if kind.block_numel == 1 and kind.block_nbytes > 1]
)
def test_the_other_byte_order(name: str):
    """A big-endian storage has the same numbers; a complex one is turned round part by part."""
    size = DTYPES[name].block_nbytes // (2 if DTYPES[name].kind == "complex" else 1)
    raw = np.random.default_rng(0).integers(0, 0x3C, (300 * DTYPES[name].block_nbytes // size, size), np.uint8)
    little, big = param(raw.tobytes(), name, (300,)), param(raw[:, ::-1].tobytes(), name, (300,), byteorder="big")
    same(told(big), told(little))


@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in ("q8_1", "q8_k")])  # which no file has
@pytest.mark.parametrize("numel", [1, 100, 1000])
def test_blocks_are_those_of_ggml(name: str, numel: int):
    """Blocks of any bytes, a few at a time, a part of the last one left out."""
    per = DTYPES[name].block_numel
    raw = np.frombuffer(random_bytes(7 * DTYPES[name].block_nbytes), np.uint8)
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name.upper()]).astype(np.float64)
    same(told(param(raw.tobytes(), name, (7, per)), numel=numel), theirs)
    same(told(param(raw.tobytes(), name, (7 * per - 5,)), numel=numel), theirs[:-5])


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_refused(name: str):
    """A type of which only the size is known has no numbers."""
    kind = DTYPES[name]
    with pytest.raises(ParamctlError, match=f"^error: w: values of {name} are not read yet$"):
        lanes.lane(param(bytes(kind.block_nbytes), name, (kind.block_numel,)))


def test_a_lane_keeps_its_memory():
    """Pieces of one length are made in the same place, and a shorter one is a part of it."""
    for name in ("bfloat16", "float16", "int8", "float8_e5m2", "bool"):
        found = lanes.lane(param(b"", name, (0,)))
        first, again, less = (found.decode(np.zeros(n, found.stored)) for n in (64, 64, 5))
        assert np.shares_memory(first, again), name
        assert (np.shares_memory(first, less), less.size) == (True, 5), name


def test_tables_of_blocks_are_complete():
    """Every type that `blocks` knows has its row among the dtypes."""
    assert {name for name in DTYPES if blocks.knows(name)} == set(BLOCKS)
