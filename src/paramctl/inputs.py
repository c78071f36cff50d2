"""Torch tier: what is put into a model, as a small language, and what a layer takes.

    feed  = [ NAME "=" ] ( FILE | [ kind ":" ] shape [ ":" LOW "-" HIGH ] )
    kind  = "int" | "bool" | "float"
    shape = size { "," size }

`2,4` is drawn from N(0, 1), `2,4:0-1` from U(0, 1), `int:2,16:0-999` from the whole numbers 0 to 999, both ones
included, each as torch would draw it: `randn`, `rand` and `randint`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from paramctl.errors import ParamctlError, caret, shortened

Kind = Literal["int", "bool", "float"]

_NUMBER = r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_FEED = re.compile(
    rf"(?:(?P<kind>int|bool|float):)?(?P<shape>\d+(?:,\d+)*)(?P<range>:(?P<low>{_NUMBER})-(?P<high>{_NUMBER}))?"
)
_NAMED = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_LIKE_A_FEED = re.compile(r"[\d\sx×*,;:.\-()\[\]]+|(?:int|bool|float)\b.*")
_OTHERWISE = re.compile(r"[\[(]?\s*\d+(?:\s*[x×*, ]\s*\d+)*\s*,?\s*[\])]?")
FORMS = "a shape as 2,4 or 2,4:0-1 or int:2,16:0-999, or a file as x.npy"


class Feed(NamedTuple):
    """One tensor that is given to a model: a file's, or drawn."""

    text: str  # as it was written
    name: str = ""  # the argument of forward that it is for
    file: str = ""
    kind: Kind = "float"
    shape: tuple[int, ...] = ()
    low: float | None = None
    high: float | None = None

    @property
    def is_drawn(self) -> bool:
        return not self.file


def parse(text: str, option: str) -> Feed:
    """The feed that `text` describes; a file if it is of no other form.

    Raises:
        ParamctlError: a range that is none, or what was meant to be a shape and is not.
    """
    named = _NAMED.fullmatch(text)
    name, rest = named.groups() if named else ("", text)
    match = _FEED.fullmatch(rest)
    if match is None:
        if not rest or _LIKE_A_FEED.fullmatch(rest):
            raise ParamctlError(
                f"{option} {shortened(text)!r}: no shape and no file", hint=_meant(named, rest) or FORMS
            )
        return Feed(text, name, rest)
    kind: Any = match["kind"] or "float"
    shape = tuple(map(int, match["shape"].split(",")))
    if match["range"] is None:
        return Feed(text, name, "", kind, shape, *((0, 1) if kind == "bool" else ()))
    if kind != "float" and not (_is_whole(match["low"]) and _is_whole(match["high"])):
        raise ParamctlError(f"{option}: the ends of {kind} are whole numbers", pointer=_under(text, match["range"]))
    low, high = (int(end) if kind != "float" else float(end) for end in (match["low"], match["high"]))
    if not low <= high or not -(1 << 63) <= low <= high < (1 << 63) - 1:
        raise ParamctlError(
            f"{option}: a range goes up, and its ends have 64 bits", pointer=_under(text, match["range"])
        )
    return Feed(text, name, "", kind, shape, low, high)


def _meant(named: re.Match[str] | None, rest: str) -> str:
    """`2,4` for `(2, 4)`, `2x4` and `2 4`; "" where it is not as clear."""
    sizes = re.findall(r"\d+", rest) if _OTHERWISE.fullmatch(rest) else []
    return (f"{named[1]}=" if named else "") + ",".join(sizes) if sizes else ""


def _is_whole(text: str) -> bool:
    return text.lstrip("-").isdigit()


def _under(text: str, piece: str) -> str:
    return caret(text, text.rindex(piece) + 1)


def draw(feed: Feed, option: str, dtype: torch.dtype) -> Tensor:
    """A tensor drawn from torch's generator.

    Args:
        feed: with a range, if it is of integers.
        option: for the error.
        dtype: of floats.

    Raises:
        ParamctlError: torch cannot make it.
    """
    try:
        if feed.kind == "float":
            if feed.low is None or feed.high is None:
                return torch.randn(feed.shape, dtype=dtype)
            return torch.empty(feed.shape, dtype=dtype).uniform_(feed.low, feed.high)
        drawn = torch.randint(int(feed.low or 0), int(feed.high or 0) + 1, feed.shape)
        return drawn.bool() if feed.kind == "bool" else drawn
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        first = shortened(str(error).split("\n", 1)[0], 200)
        raise ParamctlError(f"{option} {shortened(feed.text)}: {first}") from error


# ----------------------------------------------------------------------------- what a layer takes


class Layer(NamedTuple):
    """A module, and where it is."""

    path: str
    module: nn.Module

    @property
    def said(self) -> str:
        """`0 (Linear)`."""
        name = type(self.module).__name__
        return f"{shortened(self.path, 60)} ({shortened(name, 40)})" if self.path else shortened(name, 40)


def _last(sizes: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """The shape with its last dimensions replaced; two rows, where there is none."""
    return (*(shape[: max(len(shape) - len(sizes), 0)] if shape else (2,)), *sizes)


def _channels(channels: int, shape: Sequence[int], spatial: int) -> tuple[int, ...]:
    """Batch, channels and `spatial` dimensions of 32, or of what they are already."""
    if len(shape) == spatial + 1:
        return (channels, *shape[1:])
    there = len(shape) == spatial + 2
    return (shape[0] if there else 2, channels, *(shape[2:] if there else (32,) * spatial))


def _sequence(size: int, shape: Sequence[int]) -> tuple[int, ...]:
    return (*shape[:2], size) if len(shape) == 3 else (2, 8, size)


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_Takes = Callable[[Any, Sequence[int]], tuple[int, ...]]
_TAKES: tuple[tuple[tuple[type[nn.Module], ...], _Takes], ...] = (
    ((nn.Linear,), lambda m, shape: _last([m.in_features], shape)),
    (_CONVOLUTIONS, lambda m, shape: _channels(m.in_channels, shape, len(m.kernel_size))),
    ((nn.RNNBase,), lambda m, shape: _sequence(m.input_size, shape)),
    ((nn.RNNCellBase,), lambda m, shape: _last([m.input_size], shape)),
    ((nn.MultiheadAttention,), lambda m, shape: _sequence(m.embed_dim, shape)),
    ((nn.LayerNorm, nn.RMSNorm), lambda m, shape: _last(list(m.normalized_shape), shape)),
    ((nn.BatchNorm1d,), lambda m, shape: _last([m.num_features], shape)),
    ((nn.BatchNorm2d, nn.InstanceNorm2d), lambda m, shape: _channels(m.num_features, shape, 2)),
    ((nn.BatchNorm3d, nn.InstanceNorm3d), lambda m, shape: _channels(m.num_features, shape, 3)),
    ((nn.GroupNorm,), lambda m, shape: _channels(m.num_channels, shape, max(len(shape) - 2, 2))),
)


def taken(module: nn.Module, shape: Sequence[int] = ()) -> str:
    """The feed that a layer takes, as like `shape` as may be; "" where that is not known.

    >>> taken(nn.Linear(4, 8), (16, 5))
    '16,4'
    """
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        sizes = ",".join(map(str, shape or (2, 8)))
        return f"int:{sizes}:0-{module.num_embeddings - 1}"
    for kinds, takes in _TAKES:
        if isinstance(module, kinds):
            return ",".join(map(str, takes(module, shape)))
    return ""


def first_layer(root: nn.Module) -> Layer | None:
    """The first module that says what it takes."""
    return next((Layer(path, module) for path, module in root.named_modules() if taken(module)), None)


def most_tokens(root: nn.Module) -> int | None:
    """Rows of the first embedding, whose input is below that."""
    found = (m.num_embeddings for m in root.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)))
    return next(found, None)


def float_dtype(root: nn.Module) -> torch.dtype:
    """That of the first parameter of floats; else torch's default."""
    found = (parameter.dtype for parameter in root.parameters() if parameter.dtype.is_floating_point)
    return next(found, torch.get_default_dtype())


def sizes_text(tensor: Tensor) -> str:
    """`2×4`."""
    return "×".join(map(str, tensor.shape)) or "one number"
