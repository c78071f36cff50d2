"""Blocks of quantized elements: the numbers that they stand for, bit for bit those of ggml."""

from __future__ import annotations

import struct
import sys

import gguf
import numpy as np
import pytest

from paramctl import values
from paramctl.checkpoint import Param, Storage, contiguous
from paramctl.dtypes import DTYPES
from paramctl.values import blocks

WITHOUT_ORACLE = ("q8_1", "q8_k")
CODEBOOKS = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s")
FIELDS_OF_TWO_BYTES = {  # that are turned round in a file of the other byte order
    "q4_0": [0], "q4_1": [0, 2], "q8_0": [0], "q2_k": [80, 82], "q3_k": [108], "q4_k": [0, 2], "q5_k": [0, 2],
    "q6_k": [208], "iq4_nl": [0], "iq4_xs": [0, 2], "tq1_0": [52], "tq2_0": [64], "mxfp4": [], "nvfp4": [],
}  # fmt: skip


def random_blocks(name: str, count: int) -> np.ndarray:
    """Blocks of any bytes: scales that are infinite or no numbers included."""
    return np.random.default_rng(7).integers(0, 256, (count, DTYPES[name].block_nbytes), np.uint8)


def param(raw: np.ndarray, name: str, shape: tuple[int, ...], **of: object) -> Param:
    data = memoryview(np.ascontiguousarray(raw).tobytes())
    return Param("w", DTYPES[name], shape, contiguous(shape), Storage("0", len(data), data=data, **of))


def assert_same_bits(mine: np.ndarray, theirs: np.ndarray) -> None:
    assert mine.dtype == theirs.dtype == np.float32
    mine, theirs = np.ascontiguousarray(mine).reshape(-1), np.ascontiguousarray(theirs).reshape(-1)
    number = ~(np.isnan(mine) & np.isnan(theirs))
    np.testing.assert_array_equal(mine.view(np.uint32)[number], theirs.view(np.uint32)[number])


@pytest.mark.parametrize("name", [name for name in (*blocks.LAYOUTS, *CODEBOOKS) if name not in WITHOUT_ORACLE])
def test_numbers_are_those_of_ggml(name: str):
    """Every block of any bytes has the numbers that gguf gives it, to the last bit."""
    raw = random_blocks(name, 500)
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name.upper()])
    assert_same_bits(values.array(param(raw, name, (500, DTYPES[name].block_numel))), theirs)


def test_numbers_of_intermediate_blocks():
    """Q8_1 and Q8_K, which no file should have, are a scale times int8."""
    numbers = np.arange(-128, 128).astype(np.int8)
    q8_1 = np.frombuffer(struct.pack("<ee", 0.5, 9) + numbers[:32].tobytes(), np.uint8)
    assert values.array(param(q8_1, "q8_1", (32,))).tolist() == (numbers[:32] * 0.5).tolist()
    q8_k = np.frombuffer(struct.pack("<f", 0.25) + numbers.tobytes() + bytes(32), np.uint8)
    assert values.array(param(q8_k, "q8_k", (256,))).tolist() == (numbers * 0.25).tolist()


@pytest.mark.parametrize("name", FIELDS_OF_TWO_BYTES)
def test_blocks_of_the_other_byte_order(name: str):
    """A big-endian file's blocks have their scales the other way round, and the same numbers."""
    raw = random_blocks(name, 20)
    turned = raw.copy()
    for at in FIELDS_OF_TWO_BYTES[name]:
        turned[:, [at, at + 1]] = raw[:, [at + 1, at]]
    shape = (20, DTYPES[name].block_numel)
    assert_same_bits(values.array(param(turned, name, shape, byteorder="big")), values.array(param(raw, name, shape)))


@pytest.mark.parametrize("name", ["q4_0", "q6_k"])
def test_a_view_of_blocks(name: str):
    """A view has the elements of the whole, wherever it begins in a block, and however it is strided."""
    per = DTYPES[name].block_numel
    whole = param(random_blocks(name, 12), name, (4, 3 * per))
    every = values.array(whole)
    rows = whole._replace(shape=(2, 3 * per), stride=(6 * per, 1), storage_offset=3 * per)
    assert_same_bits(values.array(rows), every[1::2])
    inside = whole._replace(shape=(3, 5), stride=(3 * per, 7), storage_offset=3 * per + 11)
    assert_same_bits(values.array(inside), every[1:, 11 : 11 + 35 : 7])
    backwards = whole._replace(shape=(3,), stride=(-1,), storage_offset=per + 1)
    assert_same_bits(values.array(backwards), every[0, per + 1 : per - 2 : -1])
    assert values.array(whole._replace(shape=(0, 3 * per))).shape == (0, 3 * per)


@pytest.mark.parametrize("name", ["q4_0_8_8", "q1_0"])
def test_numbers_of_other_blocks_are_not_read(name: str):
    """A type that is known by its size alone is refused by its name."""
    one = param(random_blocks(name, 1), name, (DTYPES[name].block_numel,))
    with pytest.raises(values.ParamctlError, match=f"^error: w: values of {name} are not read yet$"):
        values.array(one)


def test_codebooks_need_their_library(monkeypatch: pytest.MonkeyPatch):
    """A type whose numbers are of a codebook says that it needs gguf, where that is not installed."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(values.ParamctlError, match=r"^error: values of iq2_s need gguf, which is not installed\n"):
        values.array(param(random_blocks("iq2_s", 1), "iq2_s", (256,)))


def test_more_dimensions_than_numpy_has():
    """A shape beyond numpy's is an error in one line."""
    with pytest.raises(values.ParamctlError, match=r"^error: w: numpy has no such array: "):
        values.array(param(random_blocks("q4_0", 1), "q4_0", (*(1,) * 64, 32)))


def test_chunks_are_the_whole(monkeypatch: pytest.MonkeyPatch):
    """What is made by chunks is what is made at once."""
    raw = random_blocks("q4_k", 21)
    at_once = blocks.dequantized("q4_k", raw, 256)
    monkeypatch.setattr(blocks, "_CHUNK_NUMEL", 1024)
    assert_same_bits(blocks.dequantized("q4_k", raw, 256), at_once)
