"""Values tier: the numerical rank of a change: whether it was a low-rank update, and of what rank.

A sum that is stored is rounded, so that a low-rank change to a weight comes with noise of full rank. Each element's
is about its dtype's unit in the last place, over the root of 12; of a matrix of independent noise with variances v the
largest singular value is about max_i √(Σ_j v_ij) + max_j √(Σ_i v_ij). What is not above that is no change that can be
told from rounding. Rows and columns in which nothing changed have no noise.

A tensor of more dimensions than two is a matrix of its first axis by all others. The shorter side decides how: up to
2,048 all singular values by the Gram matrix, in float64, a block of rows at a time; beyond that the largest 256, by
subspace iteration from a fixed start, so that memory goes with the shorter side and the result is always the same.

Source: Bandeira and van Handel 2016, "Sharp nonasymptotic bounds on the norm of random matrices with independent
entries", theorem 3.1; Halko, Martinsson and Tropp 2011, "Finding structure with randomness", algorithm 4.4;
`torch.linalg.matrix_rank` for the tolerance where nothing is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramctl.checkpoint import Param
from paramctl.values.compare import Sides, aligned

Array = NDArray[Any]

MOST = 256  # that are told apart where the shorter side is long
_LONG = 2048
_SKETCHED = MOST + 32
_PASSES = 3
_SMALL = 1 << 20  # elements whose singular values are had directly
_BLOCK_NUMEL = 1 << 20
_SAFETY = 1.15
_FLOATS = {  # bits of the fraction, and the exponent of the least number
    "float64": (52, -1074), "float32": (23, -149), "float16": (10, -24), "bfloat16": (7, -133),
    "float8_e4m3fn": (3, -9), "float8_e4m3fnuz": (3, -10), "float8_e5m2": (2, -16), "float8_e5m2fnuz": (2, -17),
}  # fmt: skip


class Rank(NamedTuple):
    """A rank, or, where `is_least`, one that it has at least."""

    rank: int
    is_least: bool = False


def numerical_rank(a: Param, b: Param, sides: Sides) -> Rank | None:
    """The rank of `b - a`; None where it has none: vectors, quantized and complex numbers, NaN and infinities.

    Raises:
        FileError: the bytes are not there.
        ParamctlError: they cannot be had.
    """
    if len(a.shape) < 2 or not a.numel or not _has_rank(a) or not _has_rank(b):
        return None
    matrices = _tall(a, b)
    rows, columns = matrices.rows, matrices.columns
    noise = _Noise(matrices)
    if rows * columns <= _SMALL:
        values = _directly(matrices, sides, noise)
    elif columns <= _LONG:
        values = _by_gram(matrices, sides, noise)
    else:
        values = _largest(matrices, sides, noise)
    if values is None or not np.isfinite(values).all():
        return None
    precision = math.sqrt(np.finfo(np.float64).eps * columns) if rows * columns > _SMALL else 0.0
    found = int(np.count_nonzero(values > max(noise.floor(), noise.least(rows) * values[0], precision * values[0])))
    return Rank(min(found, MOST), found > MOST) if columns > _LONG else Rank(found)


def _has_rank(param: Param) -> bool:
    return param.dtype.name in _FLOATS or param.dtype.kind in ("int", "uint", "bool")


class _Matrices(NamedTuple):
    """The tensors as matrices with at least as many rows as columns: transposed, where they have fewer."""

    a: Param
    b: Param
    rows: int
    columns: int


def _tall(a: Param, b: Param) -> _Matrices:
    rows, columns = a.shape[0], math.prod(a.shape[1:])
    if rows >= columns:
        return _Matrices(a, b, rows, columns)
    turned = [p._replace(shape=p.shape[1:] + p.shape[:1], stride=p.stride[1:] + p.stride[:1]) for p in (a, b)]
    return _Matrices(turned[0], turned[1], columns, rows)


def _blocks(of: _Matrices, sides: Sides) -> Iterator[tuple[Array, Array]]:
    """Both sides by blocks of whole rows, in float64."""
    columns = of.columns
    step = max(_BLOCK_NUMEL // columns, 1) * columns
    waiting: tuple[list[Array], list[Array]] = ([], [])
    held = 0
    for pair in aligned(of.a, of.b, sides, numel=step):
        for kept, values in zip(waiting, pair, strict=True):
            kept.append(values.astype(np.float64))
        held += len(pair[0])
        if held >= step:
            yield _rows(waiting[0], columns), _rows(waiting[1], columns)
            waiting, held = ([], []), 0
    if held:
        yield _rows(waiting[0], columns), _rows(waiting[1], columns)


def _rows(waiting: list[Array], columns: int) -> Array:
    return np.concatenate(waiting).reshape(-1, columns)


class _Noise:
    """What rounding may have added, summed over blocks of rows."""

    def __init__(self, of: _Matrices) -> None:
        names = [param.dtype.name for param in (of.a, of.b)]
        self._floats = [_FLOATS.get(name) for name in names]
        coarse = [known for known in self._floats if known]
        self._coarsest = min(coarse) if coarse else None
        self._row = 0.0
        self._columns: Array = np.zeros(of.columns)
        self._changed = np.zeros(of.columns, bool)

    def add(self, a: Array, b: Array) -> Array:
        """Of blocks of rows their difference."""
        difference: Array = b - a
        is_changed = difference != 0
        rows = is_changed.any(axis=1)
        if self._coarsest is not None and rows.any():
            kinds = (*self._floats, self._coarsest)
            variance = np.zeros(difference.shape)
            for values, kind in zip((a, b, difference), kinds, strict=True):
                if kind is not None:
                    variance += np.square(_unit(values, kind)) / 12
            variance = variance[rows]
            self._row = max(self._row, float(variance.sum(axis=1).max()))
            self._columns += variance.sum(axis=0)
            self._changed |= is_changed.any(axis=0)
        return difference

    def floor(self) -> float:
        """What a singular value must be above to be no noise."""
        column = float(self._columns[self._changed].max(initial=0.0))
        return _SAFETY * (math.sqrt(self._row) + math.sqrt(column))

    def least(self, rows: int) -> float:
        """What it must be above relative to the largest: products of narrow types are summed in float32."""
        if self._coarsest is None or self._coarsest == _FLOATS["float64"]:
            return rows * float(np.finfo(np.float64).eps)
        return 8 * float(np.finfo(np.float32).eps)


def _unit(values: Array, kind: tuple[int, int]) -> Array:
    """The distance to the next number of a float type."""
    bits, least = kind
    exponents = np.frexp(values)[1]
    exponents -= bits + 1
    exponents[values == 0] = least
    found: Array = np.ldexp(1.0, np.maximum(exponents, least, out=exponents))
    return found


# ----------------------------------------------------------------------------- singular values, the largest first


def _directly(of: _Matrices, sides: Sides, noise: _Noise) -> Array | None:
    whole = np.concatenate([noise.add(*pair) for pair in _blocks(of, sides)])
    if not np.isfinite(whole).all():
        return None
    found: Array = np.linalg.svd(whole, compute_uv=False)
    return found


def _by_gram(of: _Matrices, sides: Sides, noise: _Noise) -> Array | None:
    gram = np.zeros((of.columns,) * 2)
    for pair in _blocks(of, sides):
        difference = noise.add(*pair)
        gram += difference.T @ difference
    return _roots(gram)


def _largest(of: _Matrices, sides: Sides, noise: _Noise) -> Array | None:
    columns = of.columns
    basis: Array = np.random.default_rng(0).standard_normal((columns, _SKETCHED))
    for turn in range(_PASSES):
        basis = np.linalg.qr(basis)[0]
        image = np.zeros_like(basis)
        for pair in _blocks(of, sides):
            difference = noise.add(*pair) if turn == 0 else pair[1] - pair[0]
            image += difference.T @ (difference @ basis)
        if not np.isfinite(image).all():
            return None
        ritz = basis.T @ image
        basis = image
    return _roots(ritz)


def _roots(gram: Array) -> Array | None:
    if not np.isfinite(gram).all():
        return None
    found: Array = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0))
    return found
