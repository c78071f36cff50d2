"""State dicts to convert, made by hypothesis, and what a file holds as plain values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from paramctl import formats, sharing, values
from paramctl.checkpoint import Checkpoint
from paramctl.source import resolve

IN_ALL = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64"]
IN_TORCH_TOO = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64"]

NAMES = st.one_of(
    st.sampled_from(
        ["0.weight", "0.bias", "a b", "a.b", "a", "\x1b[31m", "new\nline", "é", "名", "🔥", "format", "layout", "a'"]
    ),
    st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=6),
).filter(lambda name: name != "__metadata__")


@st.composite
def tensors(draw: st.DrawFn, dtypes: list[str]) -> list[torch.Tensor]:
    """Tensors of one storage: the whole, and often the whole once more, a slice, a transpose."""
    dtype = getattr(torch, draw(st.sampled_from(dtypes)))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    raw = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, 8 * 64, dtype=np.uint8)
    raw = raw % 2 if dtype == torch.bool else raw
    numel = int(np.prod(shape, dtype=int))
    whole = torch.from_numpy(raw).view(dtype)[:numel].clone().reshape(shape)
    found = [whole]
    if draw(st.booleans()):
        found.append(whole.view(shape))
    if whole.dim() and draw(st.booleans()):
        found.append(draw(st.sampled_from([whole[1:], whole[..., :1], whole.transpose(0, -1)])))
    return found


@st.composite
def state_dicts(draw: st.DrawFn, dtypes: list[str]) -> dict[str, torch.Tensor]:
    """Names of tensors, some of which share storages."""
    pool = [tensor for _ in range(draw(st.integers(1, 3))) for tensor in draw(tensors(dtypes))]
    names = draw(st.lists(NAMES, min_size=len(pool), max_size=len(pool), unique=True))
    return dict(zip(names, pool, strict=True))


def read(path: Any) -> Checkpoint:
    return formats.read(resolve(str(path)))


def contents(checkpoint: Checkpoint) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and elements of each tensor."""
    return {
        name: (param.dtype.name, param.shape, np.ascontiguousarray(values.array(param)).tobytes())
        for name, param in checkpoint.params.items()
    }


def ties(checkpoint: Checkpoint) -> set[frozenset[str]]:
    """The names of the very same elements."""
    groups = sharing.groups(checkpoint.params.values())
    return {frozenset(group.names) for group in groups if group.relation == "same"}


def metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """Without the aliases, and without what is about the file, or written for transformers."""
    said = {k: v for k, v in checkpoint.metadata.items() if k not in checkpoint.params and k != "dcp_version"}
    return {k: v for k, v in said.items() if (k, v) != ("format", "pt")}
