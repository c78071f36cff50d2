"""Header tier: the ties that a model's config.json declares.

`"tie_word_embeddings": true` says that the head's weight is the input embedding's; files keep it once then. It is
declared for folders and indexes, where config.json is part of the model, and not for a file that is named by itself.
Whether a class ties when its config does not say is the class's own business, and not guessed.

Source: transformers/modeling_utils.py (`tie_weights`, `_tied_weights_keys`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from paramctl.checkpoint import Checkpoint
from paramctl.errors import FileError, shortened
from paramctl.formats.safetensors_file import NAME as SAFETENSORS
from paramctl.formats.safetensors_file import naturally
from paramctl.sharing import HEADS
from paramctl.source import Reader, Source

_MOST_CONFIG_NBYTES = 10_000_000
_WITH_HEAD = ("ForCausalLM", "LMHead", "ForConditionalGeneration")
_OTHERHEADS = ("whisper",)  # model types whose head has another name


def declared(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The checkpoint with the tied head as a name of its own, where `folder` has a config.json that declares it.

    It does so where exactly one known input embedding is there, and no head of any kind.
    """
    path = folder / "config.json"
    if not path.is_file():
        return checkpoint
    try:
        config = _config(path)
    except FileError as error:
        return replace(checkpoint, extras={**checkpoint.extras, "config": error.what})
    checkpoint = replace(checkpoint, config=str(path))
    embedding = _tied_embedding(config, checkpoint)
    if embedding is None:
        return checkpoint
    head = HEADS[embedding]
    params = {**checkpoint.params, head: checkpoint.params[embedding]._replace(name=head, declared="config")}
    is_sorted = SAFETENSORS in (checkpoint.format, _shard_format(checkpoint))
    return replace(checkpoint, params=naturally(params) if is_sorted else params)


def dtype(path: str) -> str:
    """The dtype that a config.json says its parameters have, by torch's name; "" where it says none."""
    config = _config(Path(path))
    said = config.get("dtype", config.get("torch_dtype"))
    return said.removeprefix("torch.") if isinstance(said, str) else ""


def _config(path: Path) -> Mapping[str, Any]:
    with Reader(Source(str(path), "file", path)) as reader:
        if reader.nbytes > _MOST_CONFIG_NBYTES:
            raise FileError(reader.name, f"{reader.nbytes:,} bytes are no config")
        try:
            config = json.loads(reader.read(0, reader.nbytes).decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise FileError(reader.name, f"not JSON: {shortened(str(error))}") from None
    return config if isinstance(config, dict) else {}


def _tied_embedding(config: Mapping[str, Any], checkpoint: Checkpoint) -> str | None:
    text = config.get("text_config")
    said = config.get("tie_word_embeddings", text.get("tie_word_embeddings") if isinstance(text, dict) else None)
    if said is not True or config.get("model_type") in _OTHERHEADS:
        return None
    classes = config.get("architectures")
    if isinstance(classes, list) and classes and not any(mark in str(name) for name in classes for mark in _WITH_HEAD):
        return None
    params = checkpoint.params
    found = [name for name in HEADS if name in params and len(params[name].shape) == 2]
    if not found or len({params[name].storage.key for name in found}) > 1:
        return None
    parent = HEADS[found[0]].removesuffix("weight")
    has_head = any(name.startswith(parent) and name != f"{parent}bias" for name in params)
    return None if has_head else found[0]


def _shard_format(checkpoint: Checkpoint) -> str:
    index = checkpoint.extras.get("index")
    return str(index.get("format")) if isinstance(index, dict) else ""
