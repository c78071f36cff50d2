"""Values tier: which tensors hold the same bytes, as they are or transposed, in constant memory.

Candidates are of one dtype and size. They are told apart by their first and last elements, which transposing leaves
where they are; then by a digest of what they begin with, along the rows and, of a transpose, along the columns; what
is left is compared byte by byte, in tiles where one of two lies across the other.

Bytes are compared, and not numbers: -0.0 is not 0.0, and a NaN equals the NaN of the same bits.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from paramctl.checkpoint import Param
from paramctl.contents import Window
from paramctl.errors import ParamctlError
from paramctl.values import stream
from paramctl.values.digest import of_elements
from paramctl.values.lanes import codes, lane

Array = NDArray[Any]
Windows = tuple[Window, Window]
Item = TypeVar("Item")

_HEAD_NUMEL = 1 << 10  # elements that tensors begin with, told apart by their digest
_NEAR_NBYTES = 1 << 14  # read at once, to have both ends
_TILE_NBYTES = 1 << 22
_ROUNDS = 4  # of comparing all with one; what is left then is told apart by digests


class Candidate(NamedTuple):
    """A tensor's elements in row-major order, or in that of its transpose: then shape and strides are turned round.

    Those of one `owner` share their elements already, so that there is nothing to find out.
    """

    place: int
    param: Param
    owner: int
    is_transposed: bool = False


class Pair(NamedTuple):
    """Two candidates by their places, and what the second is of the first."""

    first: int
    other: int
    how: Literal["copy", "reshape", "transpose"]


def pairs(
    candidates: Iterable[Candidate],
    *,
    constants: bool = False,
    transposes: bool = True,
    tell: Callable[[int], None] | None = None,
) -> list[Pair]:
    """Which candidates of different owners hold the same bytes: enough pairs to connect all that do.

    Args:
        candidates: tensors that `stream.hold` lets pass, none of them empty, in the order of their places.
        constants: also those whose elements are all the same.
        transposes: also matrices that are each other's transpose.
        tell: told the bytes that are read, as they are.

    Raises:
        FileError: a file cannot be read, or has become shorter.
        ParamctlError: bytes are packed, and do not unpack.
    """
    found: list[Pair] = []
    with Window(tell) as window, Window(tell) as other:
        for alike in _grouped(candidates, lambda item: (item.param.dtype.name, item.param.numel)):
            is_packed = any(_is_packed(item.param) for item in alike)  # to have the last, all would be unpacked
            for group in _grouped(alike, lambda item: _ends(item.param, window, only_first=is_packed)):  # noqa: B023
                some = group if constants else [item for item in group if not is_constant(item.param, window)]
                found += _pairs(some, (window, other), transposes=transposes)
    return found


def _grouped(candidates: Iterable[Candidate], key: Callable[[Candidate], Hashable]) -> list[list[Candidate]]:
    """Those of one key together, where they are of several owners."""
    groups: dict[Hashable, list[Candidate]] = {}
    for item in candidates:
        groups.setdefault(key(item), []).append(item)
    return [group for group in groups.values() if _are_several(group)]


def _are_several(group: Sequence[Candidate]) -> bool:
    return any(item.owner != group[0].owner for item in group)


def _pairs(group: Sequence[Candidate], windows: Windows, *, transposes: bool) -> Iterator[Pair]:
    """Of candidates of one dtype and size with the same ends."""
    turned = _transposed(group) if transposes else []
    is_whole = group[0].param.numel <= _HEAD_NUMEL if group else True
    for alike in _grouped([*group, *turned], lambda item: _head(item.param, windows[0])):
        plain = [item for item in alike if not item.is_transposed]
        if not plain:
            continue
        across = [item for item in alike if item.is_transposed and item.place > plain[0].place]
        some = [*plain, *across]  # without those that are found the other way round
        for same in [some] if is_whole else _equal(some, windows):
            yield from _connected(same)


def _transposed(group: Sequence[Candidate]) -> list[Candidate]:
    """The transposes of matrices, where another has their shape."""
    matrices = [(item, _squeezed(item.param)) for item in group if item.param.dtype.block_numel == 1]
    owners: dict[tuple[int, ...], set[int]] = {}
    for item, param in matrices:
        owners.setdefault(param.shape, set()).add(item.owner)
    return [
        item._replace(param=param._replace(shape=param.shape[::-1], stride=param.stride[::-1]), is_transposed=True)
        for item, param in matrices
        if len(param.shape) == 2 and not owners.get(param.shape[::-1], set()) <= {item.owner}
    ]


def _squeezed(param: Param) -> Param:
    """Without dimensions of 1."""
    kept = [(size, by) for size, by in zip(param.shape, param.stride, strict=True) if size != 1]
    return param._replace(shape=tuple(size for size, _ in kept), stride=tuple(by for _, by in kept))


def _equal(group: Sequence[Candidate], windows: Windows) -> Iterator[list[Candidate]]:
    """Those that are equal together: by comparing all with the first, then what is left with its first, and so on.

    If that has no end, by digests, so that the time does not grow by the square.
    """
    left = list(group)
    for _ in range(_ROUNDS):
        if len(left) < 2 or left[0].is_transposed:
            return
        first, *others = left
        same, left = [first], []
        known = {first.place}
        for item in others:
            if item.is_transposed and item.place in known:
                continue
            if is_same(first.param, item.param, windows):
                same.append(item)
                known.add(item.place)
            else:
                left.append(item)
        yield same
    yield from _grouped(left, lambda item: of_elements(item.param, windows[0]))


def _connected(same: Sequence[Candidate]) -> Iterator[Pair]:
    """Each of some that are equal, but the first, with another."""
    plain: dict[tuple[int, ...], Candidate] = {}
    for item in same:
        if not item.is_transposed:
            plain.setdefault(_squeezed(item.param).shape, item)
    if not plain:
        return
    known = {same[0].place}
    for item in same[1:]:
        if item.place in known:
            continue
        if not item.is_transposed:
            known.add(item.place)
            yield Pair(same[0].place, item.place, "copy" if item.param.shape == same[0].param.shape else "reshape")
        elif item.param.shape in plain:
            known.add(item.place)
            yield Pair(plain[item.param.shape].place, item.place, "transpose")


# ----------------------------------------------------------------------------- one, and two


def _is_packed(param: Param) -> bool:
    return any(extent.packing == "deflate" for extent in param.storage.extents)


def _ends(param: Param, window: Window, *, only_first: bool) -> tuple[bytes, ...]:
    """The bytes of the first and last element, or block."""
    width = param.dtype.block_nbytes
    start, end = param.span
    if not param.is_contiguous:
        start = param.storage_offset * width
        end = start + width + sum((n - 1) * by * width for n, by in zip(param.shape, param.stride, strict=True))
    if only_first:
        return (_in_order(window.read(param, start, start + width), param),)
    if 0 < end - start <= _NEAR_NBYTES:
        near = window.read(param, start, end)
        return _in_order(near[:width], param), _in_order(near[-width:], param)
    edges = (start, end - width)
    return tuple(_in_order(window.read(param, at, at + width), param) for at in edges)


def _in_order(raw: memoryview, param: Param) -> bytes:
    """The bytes of an element, each number little-endian."""
    if param.storage.byteorder == "little" or param.dtype.block_numel > 1:
        return bytes(raw)
    return np.frombuffer(raw, codes(param).stored).byteswap().tobytes()


def _head(param: Param, window: Window) -> bytes:
    """The digest of the first elements."""
    kind = codes(param)
    if not param.is_contiguous:
        first: Any = stream.gathered(_beginning(param), kind, window)[: _HEAD_NUMEL * kind.per_element]
    else:
        first = next(stream.pieces(param, kind, window, numel=_HEAD_NUMEL))
    return hashlib.sha256(first).digest()


def _beginning(param: Param) -> Param:
    """A part that has the first elements, and fewer than as many others."""
    shape: list[int] = []
    numel = 1
    for size in reversed(param.shape):
        shape.insert(0, min(size, -(-_HEAD_NUMEL // numel)))
        numel *= shape[0]
    return param._replace(shape=tuple(shape))


def is_constant(param: Param, window: Window) -> bool:
    """Whether all elements have the same bits; of blocks, whether they are the same, and one number all over."""
    once, _ = stream.distinct(param)
    kind, dtype = codes(param), param.dtype
    width = dtype.block_nbytes if dtype.block_numel > 1 else kind.per_element
    first: Array | None = None
    for piece in stream.pieces(once, kind, window):
        rows = piece.reshape(-1, width)
        first = rows[0].copy() if first is None else first
        if not np.array_equal(rows, np.broadcast_to(first, rows.shape)):
            return False
    return dtype.block_numel == 1 or _is_constant_block(param, window)


def _is_constant_block(param: Param, window: Window) -> bool:
    numel = min(param.numel, param.dtype.block_numel)
    block = param._replace(shape=(numel,), stride=(1,))
    try:
        (values,) = stream.numbers(block, lane(block), window)
    except ParamctlError:  # what its numbers are is not known: blocks that are all the same are taken for constant
        return param.numel > numel
    return np.array_equal(values, np.broadcast_to(values[:1], values.shape))


def is_same(a: Param, b: Param, windows: Windows) -> bool:
    """Whether two tensors of one dtype and size have the same bytes in row-major order.

    Raises:
        FileError: a file cannot be read, or has become shorter.
        ParamctlError: the bytes cannot be had.
    """
    one, other = _squeezed(a), _squeezed(b)
    is_across = one.shape == other.shape and len(one.shape) == 2 and not (one.is_contiguous and other.is_contiguous)
    parts = _by_tiles(one, other, windows) if is_across else _in_step(a, b, windows)
    return all(np.array_equal(mine, others) for mine, others in parts)


def _in_step(a: Param, b: Param, windows: Windows) -> Iterator[tuple[Array, Array]]:
    """The elements of both in row-major order, as many of one as of the other."""
    streams = [stream.pieces(param, codes(param), window) for param, window in zip((a, b), windows, strict=True)]
    mine = others = np.empty(0, np.uint8)
    while True:
        if not len(mine):
            mine = next(streams[0], mine)
        if not len(others):
            others = next(streams[1], others)
        many = min(len(mine), len(others))
        if not many:
            break
        yield mine[:many], others[:many]
        mine, others = mine[many:], others[many:]


def _by_tiles(a: Param, b: Param, windows: Windows) -> Iterator[tuple[Array, Array]]:
    """Parts of two matrices of one shape, near to squares, so that both are read by long stretches."""
    height, width = a.shape
    most = _TILE_NBYTES // a.dtype.block_nbytes
    rows = min(height, max(math.isqrt(most), most // width))
    columns = min(width, most // rows)
    for i, j in itertools.product(range(0, height, rows), range(0, width, columns)):
        shape = (min(rows, height - i), min(columns, width - j))
        mine, others = (
            stream.gathered(_tile(param, (i, j), shape), codes(param), window)
            for param, window in zip((a, b), windows, strict=True)
        )
        yield mine, others


def _tile(param: Param, at: tuple[int, int], shape: tuple[int, int]) -> Param:
    offset = param.storage_offset + sum(i * by for i, by in zip(at, param.stride, strict=True))
    return param._replace(shape=shape, storage_offset=offset)
