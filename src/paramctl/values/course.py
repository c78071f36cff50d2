"""Values tier: how a tensor changed over a row of checkpoints: norms, what was added to it, and angles, in one pass.

All files are read side by side, a piece of each at a time, so that every byte is read once and memory is bounded by
the pieces, whatever the files' size: what an element was in the step before, at first and at last is there with it.

A sum over two steps is of the elements that are finite in both. float32 is subtracted in float32, which is right to
6e-8 of each difference; everything else is summed in float64. Squares beyond float64 are infinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramctl.checkpoint import Param, is_dense_in_order
from paramctl.contents import Window
from paramctl.values import kernels
from paramctl.values.lanes import Lane, lane
from paramctl.values.stream import distinct, numbers

Array = NDArray[Any]

_ALL_NUMEL = 1 << 18  # elements of all pieces together, which the cache holds
_MOST_NUMEL, _LEAST_NUMEL = 1 << 16, 1 << 14  # of a piece


class Angle(NamedTuple):
    """Sums over the elements of two steps."""

    dot: float = 0.0
    a: float = 0.0  # squares
    b: float = 0.0

    def plus(self, other: Angle) -> Angle:
        """Over the elements of both."""
        return Angle(self.dot + other.dot, self.a + other.a, self.b + other.b)

    @property
    def cosine(self) -> float | None:
        """None where a side is 0, or its squares are beyond float64."""
        norms = self.a if self.a == self.b else math.sqrt(self.a) * math.sqrt(self.b)  # exactly 1 between equals
        if not (norms and math.isfinite(norms) and math.isfinite(self.dot)):
            return None
        return max(-1.0, min(1.0, self.dot / norms))


class Point(NamedTuple):
    """A tensor, or several together, in one step.

    `change` are squares of the difference from the step before, `before` squares in that step; None where there is
    none to compare with: at first, or where the shape is another. `first` and `last` are with those steps.
    """

    squares: float = 0.0  # of what is finite
    nan: int = 0
    inf: int = 0
    change: float | None = None
    before: float = 0.0
    first: Angle | None = None
    last: Angle | None = None

    @property
    def l2(self) -> float:
        """The Euclidean norm."""
        return math.sqrt(self.squares)

    @property
    def update(self) -> float | None:
        """The Euclidean norm of the difference from the step before."""
        return None if self.change is None else math.sqrt(self.change)

    @property
    def rel_update(self) -> float | None:
        """The update over the norm before it; None where only that is 0."""
        if self.change is None or not (self.before or not self.change):
            return None
        return math.sqrt(self.change) / math.sqrt(self.before) if self.change else 0.0

    def plus(self, other: Point) -> Point:
        """Of the elements of both; what only one can tell is told of that one."""
        return Point(
            self.squares + other.squares,
            self.nan + other.nan,
            self.inf + other.inf,
            _either(self.change, other.change, lambda a, b: a + b),
            self.before + other.before,
            _either(self.first, other.first, Angle.plus),
            _either(self.last, other.last, Angle.plus),
        )

    def times(self, many: int) -> Point:
        """Of the same elements, each told so many times."""
        if many == 1:
            return self
        angles = [None if one is None else Angle(*(each * many for each in one)) for one in (self.first, self.last)]
        change = None if self.change is None else self.change * many
        return Point(self.squares * many, self.nan * many, self.inf * many, change, self.before * many, *angles)


def _either(a: Any, b: Any, both: Any) -> Any:
    if a is None or b is None:
        return b if a is None else a
    return both(a, b)


def course(params: Sequence[Param | None], windows: Sequence[Window]) -> list[Point | None]:
    """A point for each step; None where the tensor is not there.

    The first and the last step are those that have it. Each step has a window of its own.

    Raises:
        FileError: the bytes are not there.
        ParamctlError: they cannot be had, or their numbers are not known.
    """
    points: list[Point | None] = [None] * len(params)
    there = [at for at, param in enumerate(params) if param is not None]
    shapes: dict[tuple[int, ...], list[int]] = {}
    for at in there:
        shapes.setdefault(params[at].shape, []).append(at)  # type: ignore[union-attr]
    for steps in shapes.values():
        some = [param for at in steps if (param := params[at]) is not None]
        row = _Row(steps, is_first=steps[0] == there[0], is_last=steps[-1] == there[-1])
        for at, point in zip(steps, row.read(some, [windows[at] for at in steps]), strict=True):
            points[at] = point
    return points


class _Piece(NamedTuple):
    """Numbers of one step; `finite` is a mask where not all are."""

    values: Array
    squares: float
    finite: Array | None = None


class _Row:
    """The steps in which a tensor has one shape."""

    def __init__(self, steps: Sequence[int], *, is_first: bool, is_last: bool) -> None:
        self.has_before = [at > 0 and steps[at - 1] == step - 1 for at, step in enumerate(steps)]
        self.is_first, self.is_last = is_first, is_last
        self.scratch = np.empty(0, np.float32)
        nothing = Point(first=Angle() if is_first else None, last=Angle() if is_last else None)
        self.points = [nothing._replace(change=0.0 if has else None) for has in self.has_before]

    def read(self, params: Sequence[Param], windows: Sequence[Window]) -> list[Point]:
        params, times = _once(params)
        lanes = [lane(param) for param in params]
        parts = 2 if any(one.is_complex for one in lanes) else 1
        for arrays in _side_by_side(params, lanes, windows, parts):
            pieces = [self.piece(at, values, parts) for at, values in enumerate(arrays)]
            for at, piece in enumerate(pieces):
                self.points[at] = self.points[at].plus(self.between(at, pieces, piece))
        return [point.times(times) for point in self.points]

    def piece(self, at: int, values: Array, parts: int) -> _Piece:
        if values.dtype.kind != "f":
            values = values.astype(np.float64)  # 64-bit integers
        squares = _squares(values)
        if math.isfinite(squares):
            return _Piece(values, squares)
        pairs = values.reshape(-1, parts)
        is_nan = np.isnan(pairs).any(axis=1)
        is_inf = np.isinf(pairs).any(axis=1) & ~is_nan
        point = self.points[at]
        nan, inf = (point.nan + int(is_nan.sum()), point.inf + int(is_inf.sum()))
        self.points[at] = point._replace(nan=nan, inf=inf)
        finite = np.repeat(~(is_nan | is_inf), parts)
        return _Piece(values, _squares(values[finite]), finite)

    def between(self, at: int, pieces: Sequence[_Piece], piece: _Piece) -> Point:
        change, before = (self.change(pieces[at - 1], piece)) if self.has_before[at] else (None, 0.0)
        first = _angle(pieces[0], piece) if self.is_first else None
        last = _angle(pieces[-1], piece) if self.is_last else None
        return Point(piece.squares, 0, 0, change, before, first, last)

    def change(self, before: _Piece, piece: _Piece) -> tuple[float, float]:
        """Squares of the difference, and of what was before."""
        a, b, squares = before.values, piece.values, before.squares
        if before.finite is None and piece.finite is None and a.dtype == b.dtype == np.float32:
            if len(self.scratch) < len(a):
                self.scratch = np.empty(len(a), np.float32)
            with np.errstate(over="ignore"):
                found = _squares(np.subtract(b, a, out=self.scratch[: len(a)]))
            if math.isfinite(found):
                return found, squares
        if before.finite is not None or piece.finite is not None:
            mask = _both(before, piece)
            a, b = a[mask], b[mask]
            squares = _squares(a)
        return _squares(np.subtract(b, a, dtype=np.float64)), squares


def _once(params: Sequence[Param]) -> tuple[Sequence[Param], int]:
    """The tensors in the order in which they lie, each element once, where all lie by the same strides."""
    strides = {param.stride for param in params}
    if all(is_dense_in_order(param.shape, param.stride) for param in params) or len(strides) > 1:
        return params, 1
    once = [distinct(param) for param in params]
    return [param for param, _ in once], once[0][1]


def _side_by_side(
    params: Sequence[Param], lanes: Sequence[Lane], windows: Sequence[Window], parts: int
) -> Iterator[list[Array]]:
    """A piece of each, of the same elements, until there are none; good until the next."""
    numel = min(_MOST_NUMEL, max(_LEAST_NUMEL, _ALL_NUMEL // len(params)))
    streams = [
        _stream(param, one, window, numel, parts) for param, one, window in zip(params, lanes, windows, strict=True)
    ]
    left = [next(stream, None) for stream in streams]
    while all(values is not None and len(values) for values in left):
        arrays = [values for values in left if values is not None]
        count = min(map(len, arrays))
        yield [values[:count] for values in arrays]
        left = [
            values[count:] if len(values) > count else next(stream, None)
            for values, stream in zip(arrays, streams, strict=True)
        ]


def _stream(param: Param, found: Lane, window: Window, numel: int, parts: int) -> Iterator[Array]:
    """The numbers of one step; a real one beside complex ones has an imaginary part of 0."""
    for values in numbers(param, found, window, numel=numel):
        if parts == 1 or found.is_complex:
            yield values
            continue
        pairs = np.zeros((len(values), 2), np.float64)
        pairs[:, 0] = values
        yield pairs.reshape(-1)


def _both(a: _Piece, b: _Piece) -> Array:
    if a.finite is None or b.finite is None:
        found = b.finite if a.finite is None else a.finite
        return np.ones(len(a.values), np.bool_) if found is None else found
    both: Array = a.finite & b.finite
    return both


def _angle(a: _Piece, b: _Piece) -> Angle:
    if a is b:
        return Angle(a.squares, a.squares, a.squares)
    if a.finite is None and b.finite is None:
        return Angle(_dot(a.values, b.values), a.squares, b.squares)
    mask = _both(a, b)
    one, other = a.values[mask], b.values[mask]
    return Angle(_dot(one, other), _squares(one), _squares(other))


def _dot(a: Array, b: Array) -> float:
    if a.dtype != b.dtype:
        a, b = a.astype(np.float64), b.astype(np.float64)
    return kernels.dot(a, b)


def _squares(values: Array) -> float:
    return kernels.dot(values, values)
