"""Torch tier: the standard deviation that each law has, by the shape of the tensor that it fills.

It is of the elements about 0's side as a whole: what `std` of the filled tensor comes to, but for chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.nn.init import calculate_gain

from paramctl.initializers import Scheme

Shape = tuple[int, ...]


def expected(scheme: Scheme, shape: Shape) -> float | None:
    """The standard deviation of what `scheme` fills a tensor of that shape with; None where it is not known."""
    law = _SPREADS.get(scheme.text.partition("(")[0])
    if law is None or scheme.of != "tensor" or 0 in shape:
        return None
    return law(shape, **scheme.arguments)


def _fans(shape: Shape) -> tuple[int, int]:
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def _uniform(_: Shape, *, a: float = 0.0, b: float = 1.0) -> float:
    return (b - a) / math.sqrt(12)


def _normal(_: Shape, *, mean: float = 0.0, std: float = 1.0) -> float:
    del mean
    return std


def _trunc_normal(_: Shape, *, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> float:
    """Source: Johnson, Kotz and Balakrishnan, Continuous Univariate Distributions 1, section 13.10.1."""
    low, high = (a - mean) / std, (b - mean) / std
    mass = _cdf(high) - _cdf(low)
    if mass < 1e-9:
        return (b - a) / math.sqrt(12)
    shift = (_pdf(low) - _pdf(high)) / mass
    return std * math.sqrt(max(1 + (low * _pdf(low) - high * _pdf(high)) / mass - shift * shift, 0.0))


def _pdf(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def _constant(_: Shape, **__: Any) -> float:
    return 0.0


def _of_ones(part: float) -> float:
    """Of zeros, and so great a part of ones."""
    return math.sqrt(part * (1 - part))


def _eye(shape: Shape) -> float:
    return _of_ones(min(shape) / math.prod(shape))


def _dirac(shape: Shape, *, groups: int = 1) -> float:
    return _of_ones(groups * min(shape[0] // groups, shape[1]) / math.prod(shape))


def _xavier(shape: Shape, *, gain: float = 1.0) -> float:
    return gain * math.sqrt(2 / sum(_fans(shape)))


def _kaiming(shape: Shape, *, a: float = 0, mode: str = "fan_in", nonlinearity: Any = "leaky_relu") -> float:
    return calculate_gain(nonlinearity, a) / math.sqrt(_fans(shape)[mode == "fan_out"])


def _orthogonal(shape: Shape, *, gain: float = 1) -> float:
    return gain / math.sqrt(max(shape[0], math.prod(shape[1:])))


def _sparse(shape: Shape, *, sparsity: float, std: float = 0.01) -> float:
    return std * math.sqrt(1 - math.ceil(sparsity * shape[0]) / shape[0])


def _lecun(shape: Shape) -> float:
    return math.sqrt(1 / _fans(shape)[0])


def _fan_in_scaled(shape: Shape, *, scale: float = 1.0) -> float:
    return math.sqrt(scale / _fans(shape)[0])


def _residual(_: Shape, *, layers: int, std: float = 0.02) -> float:
    return std / math.sqrt(2 * layers)


def _delta(shape: Shape, *, gain: float = 1) -> float:
    return gain * math.sqrt(shape[1] / math.prod(shape))


_SPREADS: dict[str, Callable[..., float]] = {
    "uniform": _uniform,
    "normal": _normal,
    "trunc_normal": _trunc_normal,
    "constant": _constant,
    "ones": _constant,
    "zeros": _constant,
    "eye": _eye,
    "dirac": _dirac,
    "xavier_uniform": _xavier,
    "xavier_normal": _xavier,
    "kaiming_uniform": _kaiming,
    "kaiming_normal": _kaiming,
    "orthogonal": _orthogonal,
    "sparse": _sparse,
    "lecun_uniform": _lecun,
    "lecun_normal": _lecun,
    "trunc_normal_fan_in": _fan_in_scaled,
    "gpt2_residual": _residual,
    "delta_orthogonal": _delta,
}
