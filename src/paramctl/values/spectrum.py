"""Values tier: the singular values of a weight, and what they say of it.

A tensor of more dimensions than two is a matrix of its first axis by all others, as `torch.nn.utils.spectral_norm`
sees a convolution. A long matrix is first brought to a square one by QR, a block of rows at a time, which keeps every
singular value to the last digits; so memory goes with the shorter side. All is float64.

Source: Golub and Van Loan, Matrix Computations, 5.2 (QR by blocks); Rudelson and Vershynin 2007 (stable rank);
Roy and Vetterli 2007 (effective rank).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramctl.checkpoint import Param
from paramctl.contents import Window
from paramctl.errors import ParamctlError, shortened
from paramctl.values.lanes import lane
from paramctl.values.stream import numbers

Array = NDArray[Any]

_MOST_SIDE = 16_384  # of the shorter side: 2 GiB
_MOST_HELD = 1 << 28  # elements of a wide matrix that cannot be read by columns: 2 GiB
_BLOCK_NUMEL = 1 << 22


class Spectrum(NamedTuple):
    """Of a matrix A with singular values s.

    `spectral_norm` is the largest s, `condition` the largest over the smallest (infinite where that is 0),
    `stable_rank` is ‖A‖²_F / ‖A‖²₂, and `effective_rank` exp of the entropy of s / Σs.
    """

    spectral_norm: float
    condition: float
    stable_rank: float
    effective_rank: float


def spectrum(param: Param, window: Window) -> Spectrum | None:
    """Of a tensor of two dimensions or more, with finite elements; None of any other.

    Raises:
        FileError: the bytes are not there.
        ParamctlError: they cannot be had, or the matrix is too large.
    """
    if len(param.shape) < 2 or 0 in param.shape:
        return None
    found = singular_values(param, window)
    if found is None:
        return None
    largest, smallest = float(found[0]), float(found[-1])
    if largest == 0:
        return Spectrum(0.0, math.nan, math.nan, math.nan)
    shares = found / largest
    weights = shares / shares.sum()
    weights = weights[weights > 0]
    return Spectrum(
        largest,
        largest / smallest if smallest else math.inf,
        float(np.square(shares).sum()),
        float(np.exp(-(weights * np.log(weights)).sum())),
    )


def singular_values(param: Param, window: Window) -> Array | None:
    """The singular values, the largest first; None where an element is not finite.

    Raises:
        ParamctlError: the shorter side is too long.
    """
    rows, columns = param.shape[0], _width(param)
    if min(rows, columns) > _MOST_SIDE:
        raise _too_large(param)
    blocks = _rows(param, window, columns) if rows >= columns else _columns(param, window)
    held: Array | None = None
    for block in blocks:
        if not np.isfinite(block).all():
            return None
        stacked = block if held is None else np.concatenate([held, block])
        held = np.asarray(np.linalg.qr(stacked, mode="r")) if len(stacked) > stacked.shape[1] else stacked
    if held is None:
        return None
    found: Array = np.linalg.svd(held, compute_uv=False)
    return found


def _too_large(param: Param) -> ParamctlError:
    what = f"{param.shape[0]:,}×{_width(param):,} is too large for its singular values"
    return ParamctlError(f"{shortened(param.name)}: {what}")


def _width(param: Param) -> int:
    """Columns; where torch counts several numbers as one element, each is one."""
    found = lane(param)
    return math.prod(param.shape[1:]) * (1 if found.is_complex else found.per_element)


def _rows(param: Param, window: Window, width: int) -> Iterator[Array]:
    """Blocks of whole rows, in float64 or complex128."""
    found = lane(param)
    waiting: list[Array] = []
    held, step = 0, max(_BLOCK_NUMEL // width, 2 * width) * width
    for values in numbers(param, found, window):
        with np.errstate(invalid="ignore"):  # signalling NaN
            piece = values.astype(np.float64)
        waiting.append(piece.view(np.complex128) if found.is_complex else piece)
        held += len(waiting[-1])
        if held >= step:
            flat = np.concatenate(waiting)
            whole = held // width * width
            yield flat[:whole].reshape(-1, width)
            waiting, held = [flat[whole:]], held - whole
    if held:
        yield np.concatenate(waiting).reshape(-1, width)


def _columns(param: Param, window: Window) -> Iterator[Array]:
    """The transpose, by blocks of its rows, in the order in which they lie: singular values are the same in any."""
    rows, width, by = param.shape[0], _width(param), _apart(param)
    if by is None or width != math.prod(param.shape[1:]) or param.dtype.block_numel > 1:
        if rows * width > _MOST_HELD:
            raise _too_large(param)
        yield np.concatenate(list(_rows(param, window, width))).T
        return
    step = max(_BLOCK_NUMEL // rows, 2 * rows)
    for at in range(0, width, step):
        part = param._replace(
            shape=(min(step, width - at), rows),
            stride=(by, param.stride[0]),
            storage_offset=param.storage_offset + at * by,
        )
        yield from _rows(part, window, rows)


def _apart(param: Param) -> int | None:
    """How far apart the columns lie, the closest first; None where that is not always the same."""
    axes = [(by, size) for size, by in zip(param.shape[1:], param.stride[1:], strict=True) if size != 1]
    axes.sort(key=lambda axis: abs(axis[0]))
    first = step = axes[0][0] if axes else 1
    for by, size in axes:
        if by != step:
            return None
        step *= size
    return first
