"""Header tier: what is to be known of a tensor to find its like: its shape, and what kind of numbers it holds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

from paramctl.dtypes import DType

Relation = Literal["same", "transposed", "rows", ""]

_KINDS = {"uint": "int", "complex": "float", "quantized": "float"}


class Form(NamedTuple):
    """A shape, and `float`, `int` or `bool`: a counter is never taken for a weight."""

    shape: tuple[int, ...]
    kind: str = "float"

    @property
    def transposed(self) -> Form:
        """Of the transpose; itself, where it is no matrix."""
        return Form(self.shape[::-1], self.kind) if len(self.shape) == 2 else self


Forms = Mapping[str, Form]


@lru_cache(maxsize=4096)
def form(dtype: DType, shape: tuple[int, ...]) -> Form:
    """The form of a tensor."""
    return Form(shape, _KINDS.get(dtype.kind, dtype.kind))


def relation(a: Form, b: Form) -> Relation:
    """How two shapes are alike. `rows`: they differ in how many rows they have, and in nothing else."""
    if a.shape == b.shape:
        return "same"
    if len(a.shape) == 2 and a.shape == b.shape[::-1]:
        return "transposed"
    if len(a.shape) == len(b.shape) > 0 and a.shape[1:] == b.shape[1:]:
        return "rows"
    return ""


def agrees(a: Form | None, b: Form | None) -> bool:
    """Whether one may stand for the other, transposed if need be."""
    if a is None or b is None:
        return False
    return a is b or (a.kind == b.kind and relation(a, b) in ("same", "transposed"))
