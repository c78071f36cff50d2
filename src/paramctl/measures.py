"""Torch tier: what is told of live parameters and gradients in numbers, and which names are one parameter."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from paramctl.values import kernels


def named(root: nn.Module) -> dict[int, tuple[nn.Parameter, tuple[str, ...]]]:
    """Each parameter once, by its identity, with all of its names."""
    found: dict[int, tuple[nn.Parameter, tuple[str, ...]]] = {}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        _, names = found.get(id(parameter), (parameter, ()))
        found[id(parameter)] = (parameter, (*names, name))
    return found


class Measure(NamedTuple):
    """`l2` is of the finite elements, in float64."""

    l2: float
    zeros: int
    nan: int
    inf: int


def measured(tensor: Tensor) -> Measure:
    """The norm and the special elements of a tensor, sparse ones too."""
    values = dense(tensor)
    zeros = values.numel() - int(torch.count_nonzero(values))
    flat = (torch.view_as_real(values) if values.is_complex() else values).flatten()
    square = _square(flat)
    if (
        _SMALLEST < square < math.inf or zeros == values.numel()
    ):  # then all are finite, and no square was beyond float64
        return Measure(math.sqrt(square), zeros, 0, 0)
    finite = torch.isfinite(flat)
    nan = int(torch.isnan(flat).sum())
    inf = flat.numel() - int(finite.sum()) - nan
    known = torch.where(finite, flat, torch.zeros_like(flat)).double()
    greatest = float(known.abs().max())
    return Measure(greatest * math.sqrt(_square(known / greatest)) if greatest else 0.0, zeros, nan, inf)


_CHUNK = 1 << 16  # elements whose float32 copies stay in the cache
_SMALLEST = 1e-290  # of a sum of squares that has lost nothing


def _square(flat: Tensor) -> float:
    """The sum of squares, in float64; of narrower types by pieces that are widened."""
    if flat.dtype in (torch.float32, torch.float64):
        return _dot(flat)
    return sum(_dot(flat[at : at + _CHUNK].float()) for at in range(0, flat.numel(), _CHUNK))


def _dot(flat: Tensor) -> float:
    array = flat.cpu().numpy()
    return kernels.dot(array, array)


def dense(tensor: Tensor) -> Tensor:
    """The tensor itself, detached, of a type that torch can reckon with."""
    values = tensor.detach()
    if values.layout != torch.strided:
        values = values.to_dense()
    if values.is_complex() or (values.is_floating_point() and values.element_size() > 1):
        return values
    return values.double()
