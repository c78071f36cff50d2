"""Header tier: what a parameter is to its layer, by its kind and its name: a weight, a bias, or neither."""

from __future__ import annotations

import re
from typing import Literal

from paramctl.checkpoint import Param

Role = Literal["weight", "bias", "other"]

_BIAS = re.compile(r"(^|_)bias(_|$|\d)|_b$|^b$")
_WEIGHT = re.compile(r"weight")


def role(param: Param) -> Role:
    """`bias` by its name (`bias`, `in_proj_bias`, `bias_ih_l0`).

    `weight` is every other parameter where the source knows its parameters, and else what is called one: an
    optimizer's moments, a running mean and a mask are none.
    """
    if param.dtype.kind not in ("float", "complex") or param.kind == "buffer":
        return "other"
    last = param.name.rpartition(".")[2]
    if _BIAS.search(last):
        return "bias"
    return "weight" if param.kind == "parameter" or _WEIGHT.search(last) else "other"
