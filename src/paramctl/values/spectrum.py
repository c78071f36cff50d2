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
    rows, columns = param.shape[0], math.prod(param.shape[1:])
    if min(rows, columns) > _MOST_SIDE:
        raise ParamctlError(f"{shortened(param.name)}: {rows:,}×{columns:,} is too large for its singular values")
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


def _rows(param: Param, window: Window, width: int) -> Iterator[Array]:
    """Blocks of whole rows, in float64 or complex128."""
    found = lane(param)
    waiting: list[Array] = []
    held, step = 0, max(_BLOCK_NUMEL // width, 2 * width) * width
    for values in numbers(param, found, window):
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
    """The transpose, by blocks of its rows."""
    rows = param.shape[0]
    if param.dtype.block_numel > 1:  # which cannot be read by columns
        yield np.concatenate(list(_rows(param, window, math.prod(param.shape[1:])))).T
        return
    flat = param._replace(shape=(rows, math.prod(param.shape[1:])), stride=_flattened(param))
    width = flat.shape[1]
    step = max(_BLOCK_NUMEL // rows, 2 * rows)
    for at in range(0, width, step):
        part = flat._replace(
            shape=(min(step, width - at), rows),
            stride=(flat.stride[1], flat.stride[0]),
            storage_offset=flat.storage_offset + at * flat.stride[1],
        )
        yield from _rows(part, window, rows)


def _flattened(param: Param) -> tuple[int, int]:
    """Strides of the tensor as a matrix.

    Raises:
        ParamctlError: its axes from the second on are not one.
    """
    by = param.stride[-1]
    step = by
    for size, stride in zip(reversed(param.shape[1:]), reversed(param.stride[1:]), strict=True):
        if size != 1 and stride != step:
            raise ParamctlError(f"{shortened(param.name)}: its strides {list(param.stride)} are of no matrix")
        step *= size
    return param.stride[0], by
