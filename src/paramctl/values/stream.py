"""Values tier: the elements of a tensor, a piece that fits the cache at a time, in constant memory.

Nothing is mapped: a piece is read into a buffer that is used again. That costs no page faults, keeps the process
small, and a file that is cut while it is read is an error and not a signal.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramctl.checkpoint import Param, is_dense_in_order, reach
from paramctl.contents import Window
from paramctl.errors import ParamctlError, shortened
from paramctl.values.lanes import Lane

Array = NDArray[Any]

CHUNK_NUMEL = 1 << 16
_GATHERED_NBYTES = 1 << 24  # of a tensor that lies by strides, held in memory at once
_READ_NBYTES = 1 << 20  # of what lies about them, by one call
_GAP_NBYTES = 1 << 14  # that are read along sooner than by another call
_STRIP = 16  # rows at a time, of a matrix that is turned round
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
    else:
        hold(param)
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


def hold(param: Param) -> None:
    """Refuse a tensor whose elements are not to be had as bytes in row-major order, before anything of it is read.

    Raises:
        ParamctlError: there are no bytes, it begins within a block, blocks lie by strides, or a few bytes are told
            very many times.
    """
    if 0 in param.shape:
        return
    storage = param.storage
    if storage.why_unreadable or (storage.data is None and not storage.extents and storage.nbytes):
        raise ParamctlError(f"{shortened(param.name)}: {storage.why_unreadable or 'it has a shape, and no values'}")
    if param.storage_offset % param.dtype.block_numel:
        raise ParamctlError(f"{shortened(param.name)}: it begins within a block of {param.dtype.name}")
    if is_dense_in_order(param.shape, param.stride):
        return
    if param.dtype.block_numel > 1:
        raise ParamctlError(f"{shortened(param.name)}: blocks of {param.dtype.name} that lie by strides")
    bounded(param)


def bounded(param: Param) -> None:
    """Refuse a tensor that tells a few bytes so many times that going over its elements would take for ever.

    Raises:
        ParamctlError: it does.
    """
    low, high = reach(param.shape, param.stride)
    if param.numel > max(_MOST_OVERLAPPING, 8 * (high - low)):
        raise ParamctlError(f"{shortened(param.name)}: its {param.numel:,} elements are {high - low:,} that overlap")


def _by_strides(param: Param, lane: Lane, window: Window, numel: int) -> Iterator[Array]:
    """Blocks of rows, put in order one at a time."""
    most = max(_GATHERED_NBYTES // param.dtype.block_nbytes, 1)
    axis = 0
    while axis < len(param.shape) - 1 and math.prod(param.shape[axis + 1 :]) > most:
        axis += 1
    count = max(most // math.prod(param.shape[axis + 1 :]), 1)
    for index in itertools.product(*map(range, param.shape[:axis])):
        offset = param.storage_offset + sum(i * by for i, by in zip(index, param.stride, strict=False))
        for first in range(0, param.shape[axis], count):
            shape = (min(count, param.shape[axis] - first), *param.shape[axis + 1 :])
            start = offset + first * param.stride[axis]
            part = param._replace(shape=shape, stride=param.stride[axis:], storage_offset=start)
            flat = gathered(part, lane, window)
            step = numel * (lane.per_element if lane.is_complex else 1)
            for at in range(0, len(flat), step):
                yield flat[at : at + step]


def gathered(param: Param, lane: Lane, window: Window) -> Array:
    """The stored elements of a tensor that fits in memory, in row-major order, flat.

    What lies close together is read by one call, some MiB at a time, and the rest part by part.

    Raises:
        FileError: the file cannot be read, or has become shorter.
        ParamctlError: the bytes cannot be had.
    """
    per_element = lane.per_element if lane.is_complex else 1
    out = np.empty((*param.shape, per_element), lane.stored)
    itemsize = param.dtype.block_nbytes
    order = sorted((i for i, size in enumerate(param.shape) if size > 1), key=lambda i: abs(param.stride[i]))
    counts, far = _at_once(param, order)
    steps = [param.stride[i] * itemsize for i in range(len(param.shape))]
    strides = [*steps, lane.stored.itemsize]
    for places in itertools.product(*(range(0, param.shape[i], counts[i]) for i in far)):
        where: list[Any] = [slice(None)] * len(param.shape)
        at = param.storage_offset * itemsize
        for i, place in zip(far, places, strict=True):
            where[i] = slice(place, place + counts[i])
            at += place * steps[i]
        part = out[tuple(where)]
        low, high = _span(part.shape[:-1], steps)
        raw = _typed(param, lane, window.read(param, at + low, at + high + itemsize))
        _put(part, np.ndarray(part.shape, lane.stored, raw, -low, strides), order)
    return out.reshape(-1)


def _put(into: Array, taken: Array, order: Sequence[int]) -> None:
    """Copy; what turns a matrix round by strips, whose lines stay in the cache, in a third of the time."""
    far = next((i for i in reversed(order) if into.shape[i] > 1), 0)
    if into.size <= _STRIP**3 or all(size == 1 for size in into.shape[:far]):
        np.copyto(into, taken)
        return
    for at in range(0, into.shape[far], _STRIP):
        strip = (slice(None),) * far + (slice(at, at + _STRIP),)
        np.copyto(into[strip], taken[strip])


def _at_once(param: Param, order: Sequence[int]) -> tuple[dict[int, int], list[int]]:
    """How many steps along each axis one call reads, and the axes, from the farthest on, along which there are more.

    `order` has the axes from the closest on.
    """
    itemsize = param.dtype.block_nbytes
    counts = dict.fromkeys(order, 1)
    nbytes = itemsize
    for place, i in enumerate(order):
        by = abs(param.stride[i]) * itemsize
        if by - nbytes > _GAP_NBYTES:
            return counts, [*reversed(order[place:])]
        counts[i] = param.shape[i] if not by else min(max((_READ_NBYTES - nbytes) // by, 0) + 1, param.shape[i])
        nbytes += (counts[i] - 1) * by
        if counts[i] < param.shape[i]:
            return counts, [*reversed(order[place:])]
    return counts, []


def _span(shape: Sequence[int], steps: Sequence[int]) -> tuple[int, int]:
    """From the first element's first byte to the lowest and the highest element's."""
    ends = [(size - 1) * by for size, by in zip(shape, steps, strict=True)]
    return sum(end for end in ends if end < 0), sum(end for end in ends if end > 0)
