"""Header tier: a folder of safetensors shards and their index, as the Hub has models.

Tensors are put into shards in their order, one after another, until the next would be too much; one that is too large
by itself has a shard of its own. One shard alone is `model.safetensors`, and has no index. Aliases stand in the
`__metadata__` of the shard that has the tensor. A folder's config.json, which may declare more of them, goes along.

Source: huggingface_hub/serialization/_base.py (`split_state_dict_into_shards_factory`), constants.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from paramctl import outline as outlines
from paramctl.formats import safetensors_writer
from paramctl.formats.pour import Pourer
from paramctl.outline import Entry, Outline

DTYPES = safetensors_writer.DTYPES
cannot_name = safetensors_writer.cannot_name
_STEM = "model"


def write(made: Outline, folder: Path, pourer: Pourer) -> None:
    """Write the shards of an outline, and their index where there are several."""
    kept_as = outlines.aliases(made)
    distinct = outlines.distinct(made, kept_as)
    shards = _as_they_were(made, distinct) if made.homes else _numbered(sharded(distinct, made.shard_nbytes))
    homes: dict[str, str] = {}
    for name, entries in shards.items():
        homes |= {entry.name: name for entry in entries}
        there = {entry.name for entry in entries}
        part = [entry for entry in made.entries if kept_as.get(entry.name, entry.name) in there]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("w+b") as file:
            safetensors_writer.write(made._replace(entries=tuple(part)), file, pourer)
    if made.config:
        (folder / "config.json").write_bytes(Path(made.config).read_bytes())
    about = made.checkpoint.extras.get("index", {}) if made.homes else {}
    if about.get("file") or (not made.homes and len(shards) > 1):
        total = sum(entry.nbytes for entries in shards.values() for entry in entries)
        index = {"metadata": {**about.get("metadata", {}), "total_size": total}, "weight_map": homes}
        text = json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (folder / about.get("file", f"{_STEM}.safetensors.index.json")).write_text(text, "utf-8")


def _numbered(shards: Sequence[list[Entry]]) -> dict[str, list[Entry]]:
    names = (f"{_STEM}{_number(at, len(shards))}.safetensors" for at in range(1, len(shards) + 1))
    return dict(zip(names, shards, strict=True))


def _as_they_were(made: Outline, entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """The shards that there were, each with what is left of it."""
    shards: dict[str, list[Entry]] = {name: [] for name in sorted(set(made.homes.values()))}
    for entry in entries:
        shards[made.homes[entry.was]].append(entry)
    is_told = bool(made.checkpoint.extras["index"].get("file"))  # without an index every number has to be there
    return {name: some for name, some in shards.items() if some or not is_told}


def sharded(entries: Sequence[Entry], most: int) -> list[list[Entry]]:
    """The entries of each shard; `most` bytes of one, or 0 for all in one."""
    shards: list[list[Entry]] = []
    current: list[Entry] = []
    held = 0
    for entry in entries:
        if most and entry.nbytes > most:
            shards.append([entry])
            continue
        if most and held + entry.nbytes > most:
            shards.append(current)
            current, held = [], 0
        current.append(entry)
        held += entry.nbytes
    return [*shards, current] if current else shards


def _number(at: int, count: int) -> str:
    return f"-{at:05}-of-{count:05}" if count > 1 else ""
