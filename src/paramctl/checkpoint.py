"""Header tier: the nouns. What a checkpoint holds, told without reading a weight.

Nouns of the header tier are named tuples and not frozen dataclasses: each dataclass costs 1.4 ms when the program
starts, a named tuple 0.2; and a checkpoint of 90,000 tensors makes 270,000 of them, at a quarter of the time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from paramctl.dtypes import DType
from paramctl.errors import FileError, nearest, shortened
from paramctl.source import Source

ParamKind = Literal["parameter", "buffer", "tensor"]
ProblemKind = Literal["nowhere", "elsewhere", "twice", "unindexed", "stray", "total", "more"]
_DIGITS = re.compile(r"[0-9]+")


class Extent(NamedTuple):
    """Where bytes lie in a file.

    Several extents of a storage follow each other, unless each has a `box`: the part of a row-major tensor that it
    holds, as (start, size) along each axis.
    """

    path: str
    offset: int
    nbytes: int  # as they lie there
    packing: Literal["", "deflate", "torch-save"] = ""
    skip: int = 0  # unpacked bytes before the storage's own, as an array's header
    box: tuple[tuple[int, int], ...] = ()


class Storage(NamedTuple):
    """Bytes that one or more tensors look at, as `torch.UntypedStorage`.

    `data` holds bytes that are in memory: a definition that was built, or an array inside a pickle.
    With neither `data` nor `extents` there are no bytes: a definition on the meta device.
    """

    key: str  # unique within its checkpoint
    nbytes: int
    extents: tuple[Extent, ...] = ()
    data: memoryview | None = None
    byteorder: Literal["little", "big"] = "little"
    why_unreadable: str = ""  # where the bytes are there, and cannot be had as they are

    @property
    def is_meta(self) -> bool:
        return not self.extents and self.data is None and not self.why_unreadable and self.nbytes > 0


class Param(NamedTuple):
    """A named tensor: a parameter, a buffer, or a tensor of which the file says no more."""

    name: str  # fully qualified, as in `state_dict()`
    dtype: DType
    shape: tuple[int, ...]
    stride: tuple[int, ...]  # elements
    storage: Storage
    storage_offset: int = 0  # elements
    kind: ParamKind = "tensor"
    requires_grad: bool | None = None  # None: the file does not say
    cls: str = "Tensor"  # torch's class for it, without its module
    declared: str = ""  # the metadata that declares this name an alias: "metadata", "config"

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.dtype.nbytes(self.numel)

    @property
    def span(self) -> tuple[int, int]:
        """First byte and the byte after the last, within the storage."""
        low, high = reach(self.shape, self.stride)
        if low == high:
            return (0, 0)
        per_block = self.dtype.block_numel
        start, end = self.storage_offset + low, self.storage_offset + high
        return (start // per_block * self.dtype.block_nbytes, self.dtype.nbytes(end))

    @property
    def is_contiguous(self) -> bool:
        return is_dense_in_order(self.shape, self.stride)


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a row-major tensor, as torch gives them (a dimension of 0 counts as 1)."""
    if len(shape) == 1:
        return (1,)
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def is_dense_in_order(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether the elements lie in row-major order without gaps; strides of dimensions of 1 do not matter."""
    step = 1
    for size, by in zip(reversed(shape), reversed(stride), strict=True):
        if size == 0:
            return True
        if size != 1 and by != step:
            return False
        step *= size
    return True


def reach(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, int]:
    """Lowest element and the element after the highest, relative to the first; (0, 0) for an empty tensor."""
    low = high = 0
    for size, by in zip(shape, stride, strict=True):
        if size == 0:
            return (0, 0)
        if by < 0:
            low += (size - 1) * by
        else:
            high += (size - 1) * by
    return (low, high + 1)


class Module(NamedTuple):
    """A module of the tree. `type` is its class name, empty where the file does not know it."""

    path: str
    type: str = ""
    hyperparameters: Mapping[str, Any] = MappingProxyType({})
    qualified: str = ""  # the class with its Python module: "torch.nn.modules.linear.Linear"
    version: int | None = None  # of how its class saves itself, where a state dict says so


class Problem(NamedTuple):
    """What does not fit in a source, and keeps nobody from reading it."""

    kind: ProblemKind
    name: str  # of the tensor or the file that it is about; empty where it is about neither
    sentence: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a source holds: named tensors in the source's order, the module tree, and everything that is no tensor."""

    source: Source
    format: str
    params: Mapping[str, Param]
    modules: Mapping[str, Module] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)
    live: Any = field(default=None, repr=False, compare=False)  # the torch module, where a definition was built
    config: str = field(default="", compare=False)  # the path of a config.json that belongs to it
    root: str = field(default="", compare=False)  # the path in its file from which on names are told
    parts: tuple[Checkpoint, ...] = field(default=(), repr=False, compare=False)  # of which it was merged
    problems: tuple[Problem, ...] = field(default=(), repr=False, compare=False)  # their sentences are in `extras`

    @property
    def knows_types(self) -> bool:
        return any(module.type for module in self.modules.values())


def at(checkpoint: Checkpoint, path: str) -> Checkpoint:
    """The part of a nested checkpoint below `path`, with names as they are there.

    Raises:
        FileError: no tensor lies below `path`.
    """
    prefix = path + "."
    params = {
        name[len(prefix) :]: param._replace(name=name[len(prefix) :])
        for name, param in checkpoint.params.items()
        if name.startswith(prefix)
    }
    if not params:
        close = nearest(path, branches(checkpoint.params))
        raise FileError(
            checkpoint.source.name,
            f"no tensors at {shortened(path)!r}",
            hint=f"tensors are at {', '.join(shortened(name) for name in close or branches(checkpoint.params)[:5])}",
        )
    modules = {
        module.path[len(prefix) :] if module.path != path else "": module
        for module in checkpoint.modules.values()
        if module.path == path or module.path.startswith(prefix)
    }
    extras: Any = checkpoint.extras
    for step in path.split("."):
        extras = extras.get(step) if isinstance(extras, Mapping) else None
    return replace(
        checkpoint,
        params=params,
        modules={key: module._replace(path=key) for key, module in modules.items()},
        extras=extras if isinstance(extras, Mapping) else {},
        root=f"{checkpoint.root}.{path}" if checkpoint.root else path,
    )


def branches(names: Iterable[str]) -> list[str]:
    """Every path that has a name below it, parents first."""
    seen: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        if len(parts) > 100:
            continue
        for depth in range(1, len(parts)):
            seen.setdefault(".".join(parts[:depth]))
    return list(seen)


def sortable(text: str) -> str:
    """The text with each number's digits behind their count, so that text sorts as numbers do: 2 before 10."""
    return _DIGITS.sub(lambda digits: chr(min(len(digits[0]), 31)) + digits[0], text)
