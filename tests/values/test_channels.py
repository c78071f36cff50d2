"""Rows and columns that do nothing: those that a loop over the whole array finds."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramctl.checkpoint import Param
from paramctl.contents import Window
from paramctl.dtypes import DTYPES
from paramctl.errors import ParamctlError
from paramctl.values import channels as module
from paramctl.values.channels import Channels, channels
from tensors import of_array, of_tensor, param


def told(param: Param, *, numel: int = module.CHUNK_NUMEL) -> Channels | None:
    with Window() as window, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_NUMEL", numel)
        return channels(param, window)


def brute(array: np.ndarray) -> Channels:
    """Rows along the first axis, columns along the second."""
    is_zero = array == 0
    rows = {row.tobytes() for row in array}
    return Channels(
        sum(bool(row.all()) for row in is_zero),
        sum(bool(is_zero[:, i].all()) for i in range(array.shape[1])),
        len(array) - len(rows),
    )


def sparse(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Small integers, with rows and columns of zeros, and rows that stand several times."""
    rng = np.random.default_rng(seed)
    array = rng.integers(-1, 2, shape)
    array[rng.integers(0, 4, shape[0]) == 0] = 0
    array[:, rng.integers(0, 4, shape[1]) == 0] = 0
    array[rng.integers(0, shape[0], 2)] = array[-1]
    return array


SHAPES = [(1, 1), (7, 3), (3, 40), (40, 3), (9, 4, 3, 3), (5, 2, 1, 7), (60, 17), (2, 333)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("numel", [1, 8, 50, 100, 1 << 16])
def test_channels_are_those_of_a_loop(shape: tuple[int, ...], numel: int):
    """In parts of rows, rows, and blocks of rows; of a convolution's weight, input and output channels."""
    for dtype in (np.float32, np.float64, np.int64, np.float16, np.bool_):
        array = sparse(shape).astype(dtype)
        assert told(of_array(array), numel=numel) == brute(array)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=4), st.integers(0, 99), st.integers(1, 60), st.randoms())
def test_any_shape_and_strides(shape: list[int], seed: int, numel: int, rng):
    """Transposed, and every second row, as of the array that it shows."""
    order = rng.sample(range(len(shape)), len(shape))
    view = torch.from_numpy(sparse(tuple(shape), seed).astype(np.float32)).permute(order)[:: rng.choice([1, 2, 3])]
    assert told(of_tensor(view), numel=numel) == brute(view.contiguous().numpy())


@pytest.mark.parametrize("numel", [3, 1 << 16])
def test_complex_numbers_and_pairs(numel: int):
    """Zero where both parts are; where torch counts a pair as one element, likewise."""
    array = sparse((12, 9)) + 1j * sparse((12, 9), 1)
    assert told(of_array(array.astype(np.complex64)), numel=numel) == brute(array.astype(np.complex64))
    codes = np.abs(sparse((12, 18))).astype(np.uint8)
    pairs = param((codes[:, ::2] | codes[:, 1::2] << 4).tobytes(), "float4_e2m1fn_x2", (12, 9))
    assert told(pairs, numel=numel) == brute(codes[:, ::2] + 2 * codes[:, 1::2])


@pytest.mark.parametrize("shape", [(6, 64), (40, 3)])
@pytest.mark.parametrize("numel", [1, 32, 100, 1 << 16])
def test_packed_rows(shape: tuple[int, ...], numel: int):
    """Rows that begin within a byte, and rows of many blocks."""
    codes = np.abs(sparse(shape)).astype(np.uint8) * 5
    flat = codes.reshape(-1)
    fours = param((flat[::2] | flat[1::2] << 4).tobytes(), "float4_e2m1fn", shape)
    assert told(fours, numel=numel) == brute(codes)
    if shape[1] % 32 == 0:
        blocks = np.zeros((shape[0], shape[1] // 32, 34), np.uint8)
        blocks[..., 1] = 0x3C  # a scale of one
        blocks[..., 2:] = codes.reshape(shape[0], -1, 32)
        assert told(param(blocks.tobytes(), "q8_0", shape), numel=numel) == brute(codes)


def test_no_number_is_no_zero():
    """NaN and infinities are alive; zeros of both signs are not, and rows of them differ."""
    array = np.array([[0.0, -0.0, 0.0], [0.0, 0.0, math.nan], [-math.inf, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    assert told(of_array(array)) == Channels(2, 1, 0)
    assert told(of_array(array.astype(ml_dtypes.bfloat16), "bfloat16")) == Channels(2, 1, 0)


@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (3, 0), (2, 3, 0)])
def test_what_has_no_rows_and_columns(shape: tuple[int, ...]):
    """Of scalars, vectors and empty tensors there is nothing to tell."""
    assert told(of_array(np.zeros(shape))) is None


HADAMARD = np.array([[(-1) ** (i & j).bit_count() for j in range(1024)] for i in range(1024)])


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64, np.int8, np.int32])
def test_rows_that_differ_are_not_taken_for_the_same(dtype: type):
    """Signs, single places, and orders of the same numbers: a thousand rows each, none like another."""
    rng = np.random.default_rng(0)
    for array in (
        HADAMARD,
        np.eye(1024),
        np.sign(rng.standard_normal((3000, 64))),
        rng.permuted(np.tile(np.arange(64), (3000, 1)), axis=1),
        np.roll(np.eye(1024), 1, axis=1) * 2 + np.eye(1024),
        1 << (np.arange(1024)[:, None] >> np.arange(10) & 1) * 6,
    ):
        assert told(of_array(array.astype(dtype))).repeated_rows == 0


def test_what_cannot_be_read_is_an_error():
    """Elements that are shown very often are not read, nor are blocks by strides."""
    shown = of_tensor(torch.zeros(1))._replace(shape=(1 << 20, 1 << 20), stride=(0, 0))
    with pytest.raises(ParamctlError, match=r"elements are 1 that overlap$"):
        told(shown)
    blocks = param(bytes(18 * 8), "q4_0", (32, 8), (1, 32))
    with pytest.raises(ParamctlError, match=r"^error: w: blocks of q4_0 that lie by strides$"):
        told(blocks)
    assert DTYPES["q4_0"].block_numel == 32
