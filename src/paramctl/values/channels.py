"""Values tier: rows and columns of a tensor that do nothing: unused rows of an embedding, dead output channels.

A row is an index along the first axis, a column one along the second; of a convolution's weight that is an output and
an input channel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramctl.checkpoint import Param
from paramctl.contents import Window
from paramctl.values.lanes import lane
from paramctl.values.stream import CHUNK_NUMEL, numbers

Array = NDArray[Any]


class Channels(NamedTuple):
    """How many rows and columns are all zero, and how many rows are the same as an earlier one, bit for bit."""

    zero_rows: int
    zero_cols: int
    repeated_rows: int


def channels(param: Param, window: Window) -> Channels | None:
    """Of a tensor of two dimensions or more; None of any other. Memory is some bytes for each row and each column.

    Repeated rows are told by a hash of 64 bits, of which two that differ are the same once in 2**64.

    Raises:
        FileError: the bytes are not there.
        ParamctlError: they cannot be had, or their numbers are not known.
    """
    if len(param.shape) < 2 or 0 in param.shape:
        return None
    rows, columns, inner = param.shape[0], param.shape[1], math.prod(param.shape[2:])
    width = columns * inner * lane(param).per_element
    used = np.zeros(width, np.bool_)
    alive, hashes = np.zeros(rows, np.bool_), np.zeros(rows, np.uint64)
    for first, at, block in _blocks(param, window, width):
        many, part = block.shape
        told = block != 0
        used[at : at + part] |= told.any(axis=0)
        alive[first : first + many] |= told.any(axis=1)
        hashes[first : first + many] += _hashed(block, at)
    per_column = used.reshape(columns, -1).any(axis=1)
    zero_rows = rows - int(np.count_nonzero(alive))
    return Channels(zero_rows, columns - int(np.count_nonzero(per_column)), rows - len(np.unique(hashes)))


def _blocks(param: Param, window: Window, width: int) -> Iterator[tuple[int, int, Array]]:
    """Blocks of whole rows, or parts of one row: the first row, where in it the part begins, and the numbers."""
    found = lane(param)
    row = at = 0
    step = max(CHUNK_NUMEL // width, 1) * width // found.per_element
    for values in numbers(param, found, window, numel=step if width <= CHUNK_NUMEL else CHUNK_NUMEL):
        flat = values
        while len(flat):
            many = 1 if at else max(len(flat) // width, 1)
            part = min(width - at, len(flat))
            yield row, at, flat[: many * part].reshape(many, part)
            flat, at = flat[many * part :], at + part
            if at == width:
                row, at = row + many, 0


def _hashed(block: Array, at: int) -> Array:
    """A weighted sum of the mixed bits of each row, modulo 2**64, from column `at` on: parts of a row add up."""
    bits = np.ascontiguousarray(block).view(f"u{block.dtype.itemsize}").astype(np.uint64)
    weights = _mixed(np.arange(at + 1, at + 1 + block.shape[1], dtype=np.uint64)) | np.uint64(1)
    found: Array = _mixed(bits) @ weights
    return found


def _mixed(bits: Array) -> Array:
    """Each number as another, so that numbers that differ in high bits only, as signs, differ in all.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators" (the finalizer of SplitMix).
    """
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return bits
