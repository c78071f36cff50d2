"""Header tier: what the words of a name mean, whoever wrote it: `gamma` is a weight, `wq` and `query` are queries."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

_SYNONYMS = {  # as PyTorch, Keras and Flax, transformers, timm, fairseq, Megatron and Llama's own code have them
    "gamma": "weight", "kernel": "weight", "scale": "weight", "beta": "bias", "moving": "running", "variance": "var",
    "query": "q", "queries": "q", "wq": "q", "key": "k", "keys": "k", "wk": "k", "value": "v", "values": "v", "wv": "v",
    "wo": "o", "out": "o", "output": "o", "wqkv": "qkv",
    "attention": "attn", "selfattention": "attn", "mha": "attn", "selfattn": "attn", "xattn": "crossattn",
    "ln": "norm", "layernorm": "norm", "rmsnorm": "norm", "bn": "norm", "batchnorm": "norm", "groupnorm": "norm",
    "gn": "norm", "normalization": "norm",
    "ffn": "mlp", "ff": "mlp", "feedforward": "mlp", "intermediate": "mlp",
    "wte": "embed", "embedding": "embed", "embeddings": "embed", "emb": "embed", "word": "token", "tok": "token",
    "tokens": "token", "pos": "position", "positional": "position", "positions": "position",
    "h": "layer", "layers": "layer", "block": "layer", "blocks": "layer", "resblocks": "layer",
    "dense": "linear", "lin": "linear", "fc": "linear", "proj": "linear", "projection": "linear",
    "classifier": "head", "heads": "head",
    "w1": "gate", "w2": "down", "w3": "up",
    "conv2d": "conv", "conv1d": "conv", "shortcut": "downsample", "expert": "experts",
}  # fmt: skip
_ATTN_NORM = ("input_layernorm", "ln_1", "ln1", "norm1", "norm_1", "layer_norm1", "layernorm_before")
_MLP_NORM = ("post_attention_layernorm", "ln_2", "ln2", "norm2", "norm_2", "layer_norm2", "layernorm_after")
_PHRASES = {  # a step of a path as a whole; what norms before attention, and what after it, that is before the MLP
    "wpe": ("position", "embed"), "query_key_value": ("qkv",), "feed_forward": ("mlp",), "self_attn": ("attn",),
    **dict.fromkeys(_ATTN_NORM, ("attn", "norm")),
    **dict.fromkeys(_MLP_NORM, ("mlp", "norm")),
}  # fmt: skip
_MEANINGLESS = frozenset(("self", "c", "to", "the", "module", "model", "net"))
# Words of which a tensor can be only one; what is called one of them is never taken for another.
_EXCLUSIVE = (
    frozenset(("weight", "bias", "running", "tracked")),
    frozenset(("q", "k", "v", "o", "qkv")),
    frozenset(("gate", "up", "down")),
    frozenset(("mean", "var")),
    frozenset(("embed", "norm", "attn", "mlp")),
    frozenset(("position", "token")),
    frozenset(("encoder", "decoder")),
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+[1-3](?![0-9])|[A-Z]?[a-z]+|[^\W\d_]+")
_FADES = 0.8  # what a word counts less than the one after it
_MOST_WORDS = 40


@lru_cache(maxsize=8192)
def words(name: str) -> tuple[str, ...]:
    """The words of a name in the one spelling that stands for all, numbers left out."""
    found: list[str] = []
    for part in name.split(".")[-_MOST_WORDS:]:
        lowered = part.lower()
        if lowered in _PHRASES:
            found += _PHRASES[lowered]
            continue
        for piece in _WORD.findall(part):
            word = piece.lower()
            word = word if word in _SYNONYMS else word.rstrip("123")
            found.append(_SYNONYMS.get(word, word))
    return tuple(word for word in found if word not in _MEANINGLESS)[-_MOST_WORDS:]


@lru_cache(maxsize=8192)
def _weighed(name: str) -> Counter[str]:
    weighed: Counter[str] = Counter()
    for back, word in enumerate(reversed(words(name))):
        weighed[word] = max(weighed[word], _FADES**back)  # type: ignore[assignment]
    return weighed


@lru_cache(maxsize=1 << 16)
def likeness(a: str, b: str) -> float:
    """From 0, nothing in common, to 1; the last words count most. -1: they are two different things."""
    if contradict(a, b):
        return -1.0
    one, other = _weighed(a), _weighed(b)
    most = sum((one | other).values())
    return sum((one & other).values()) / most if most else 0.0


def contradict(a: str, b: str) -> bool:
    """Whether one is called what the other cannot be, as `q` and `k`, or a weight and a bias."""
    one, other = set(words(a)), set(words(b))
    for choices in _EXCLUSIVE:
        mine, others = one & choices, other & choices
        if mine and others and mine.isdisjoint(others):
            return True
    return False
