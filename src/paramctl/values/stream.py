"""Values tier: the elements of a tensor, a piece that fits the cache at a time, in constant memory.

Nothing is mapped: a piece is read into a buffer that is used again. That costs no page faults, keeps the process
small, and a file that is cut while it is read is an error and not a signal.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramctl.checkpoint import Param, is_dense_in_order, reach
from paramctl.contents import Window
from paramctl.errors import ParamctlError, shortened
from paramctl.values.lanes import Lane

Array = NDArray[Any]

CHUNK_NUMEL = 1 << 16
_GATHERED_NUMEL = 1 << 22  # of a tensor that lies by strides, held in memory at once
_SPARSE = 4  # a part is read whole if it has at least one wanted element in so many
_MOST_OVERLAPPING = 1 << 24  # elements, of a tensor that shows the same bytes many times


def distinct(param: Param) -> tuple[Param, int]:
    """A tensor that has each element that lies in memory once, in the order in which they lie; and how many times.

    For what does not depend on the order of the elements: an expanded tensor is read once, a transposed one as it
    lies.
    """
    if 0 in param.shape:
        return param, 1
    axes = [(size, by) for size, by in zip(param.shape, param.stride, strict=True) if size != 1]
    times = math.prod(size for size, by in axes if by == 0)
    offset = param.storage_offset + sum((size - 1) * by for size, by in axes if by < 0)
    kept = sorted(((abs(by), size) for size, by in axes if by), reverse=True)
    shape, stride = tuple(size for _, size in kept), tuple(by for by, _ in kept)
    return param._replace(shape=shape, stride=stride, storage_offset=offset), times


def pieces(param: Param, lane: Lane, window: Window, *, numel: int = CHUNK_NUMEL) -> Iterator[Array]:
    """The stored elements in row-major order, flat, about `numel` at a time; each is good until the next.

    Raises:
        FileError: the file cannot be read, or has become shorter.
        ParamctlError: the bytes cannot be had.
    """
    if 0 in param.shape:
        return
    if is_dense_in_order(param.shape, param.stride):
        yield from _in_order(param, lane, window, numel)
    elif param.dtype.block_numel > 1:
        raise ParamctlError(f"{shortened(param.name)}: blocks of {param.dtype.name} that lie by strides")
    else:
        _hold_against_bytes(param)
        yield from _by_strides(param, lane, window, numel)


def numbers(param: Param, lane: Lane, window: Window, *, numel: int = CHUNK_NUMEL) -> Iterator[Array]:
    """The elements in row-major order as float32, float64 or 64-bit integers, flat; a complex one as two.

    As `pieces`, decoded; what else is in the first and the last block is left out.
    """
    before, left = param.storage_offset % param.dtype.block_numel, param.numel * lane.per_element
    for piece in pieces(param, lane, window, numel=numel):
        values = lane.decode(piece)[before : before + left]
        before, left = 0, left - len(values)
        yield values


def _in_order(param: Param, lane: Lane, window: Window, numel: int) -> Iterator[Array]:
    dtype = param.dtype
    at, end = param.span
    step = max(numel // dtype.block_numel, 1) * dtype.block_nbytes
    while at < end:
        until = min(at + step, end)
        yield _typed(param, lane, window.read(param, at, until))
        at = until


def _typed(param: Param, lane: Lane, raw: Any) -> Array:
    """Bytes as what is stored, in the machine's own order, and aligned."""
    found = np.frombuffer(raw, lane.stored)
    if param.storage.byteorder == "big" and lane.stored.itemsize > 1:
        return found.byteswap()
    return found if found.flags.aligned else found.copy()


def _hold_against_bytes(param: Param) -> None:
    low, high = reach(param.shape, param.stride)
    if param.numel > max(_MOST_OVERLAPPING, 8 * (high - low)):
        raise ParamctlError(f"{shortened(param.name)}: its {param.numel:,} elements are {high - low:,} that overlap")


def _by_strides(param: Param, lane: Lane, window: Window, numel: int) -> Iterator[Array]:
    """Blocks of rows, put in order one at a time."""
    axis = 0
    while axis < len(param.shape) - 1 and math.prod(param.shape[axis + 1 :]) > _GATHERED_NUMEL:
        axis += 1
    inner = math.prod(param.shape[axis + 1 :])
    count = max(_GATHERED_NUMEL // inner, 1)
    per_element = lane.per_element if lane.is_complex else 1
    for index in itertools.product(*map(range, param.shape[:axis])):
        offset = param.storage_offset + sum(i * by for i, by in zip(index, param.stride, strict=False))
        for first in range(0, param.shape[axis], count):
            shape = (min(count, param.shape[axis] - first), *param.shape[axis + 1 :])
            out = np.empty((*shape, per_element), lane.stored)
            start = offset + first * param.stride[axis]
            _gather(param._replace(shape=shape, stride=param.stride[axis:], storage_offset=start), lane, window, out)
            flat = out.reshape(-1)
            for at in range(0, len(flat), numel):
                yield flat[at : at + numel]


def _gather(param: Param, lane: Lane, window: Window, out: Array) -> None:
    """Put the elements into `out` (*shape, numbers of an element): by one read where they lie close, else by parts."""
    low, high = reach(param.shape, param.stride)
    if high - low <= max(_SPARSE * param.numel, 1 << 12):
        itemsize = param.dtype.block_nbytes
        start, end = ((param.storage_offset + edge) * itemsize for edge in (low, high))
        raw = _typed(param, lane, window.read(param, start, end))
        by = [step * itemsize for step in param.stride]
        np.copyto(out, np.ndarray(out.shape, lane.stored, raw, -low * itemsize, [*by, lane.stored.itemsize]))
        return
    axis = max(range(len(param.shape)), key=lambda i: abs(param.stride[i]) if param.shape[i] > 1 else -1)
    shape = (*param.shape[:axis], 1, *param.shape[axis + 1 :])
    for i in range(param.shape[axis]):
        part = param._replace(shape=shape, storage_offset=param.storage_offset + i * param.stride[axis])
        _gather(part, lane, window, out[(slice(None),) * axis + (slice(i, i + 1),)])
