"""Header tier: the checkpoints of a training run, in the order of its steps: a folder, a pattern, or files by name.

A step is told by the file's name (`step-500`, `epoch=3-step=100.ckpt`, `checkpoint-500/`, `iter_0000100`), else by
what the checkpoint itself says (`global_step`), and else it is the place in the row.

Source: transformers/trainer_utils.py (`PREFIX_CHECKPOINT_DIR`); lightning/pytorch/callbacks/model_checkpoint.py
(`epoch=…-step=….ckpt`, `last.ckpt`); megatron/training/checkpointing.py (`iter_%07d`).
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from paramctl.errors import FileError, ParamctlError, shortened
from paramctl.formats import dcp, folder, sharded
from paramctl.source import Source, resolve

_WORDS = (  # what stands before the number of a step, the rather the sooner
    re.compile(r"(?:global_?steps?|steps?|iter(?:ation)?s?|checkpoint|ckpt)[=_.\- ]*(\d{1,18})", re.IGNORECASE),
    re.compile(r"(?:epochs?|ep)[=_.\- ]*(\d{1,18})", re.IGNORECASE),
    re.compile(r"(\d{1,18})(?!.*\d)"),
)
_SAID = ("global_step", "step", "iteration", "iter", "epoch")
_DEEPEST = 3
_MOST_NAMED = 3


class Found(NamedTuple):
    """The checkpoints of a run; `notes` say what was left out."""

    sources: list[Source]
    notes: tuple[str, ...] = ()
    is_sorted: bool = True  # whether the order is ours to choose: not where files were named in an order of their own


def found(words: Sequence[str]) -> Found:
    """What some words name: files, folders of a model, folders of several, and patterns with wildcards.

    Raises:
        FileError: nothing of that name.
        ParamctlError: a definition, which has no steps.
    """
    made = [_expanded(word) for word in words]
    sources = [source for one in made for source in one.sources]
    for source in sources:
        if source.kind == "definition":
            raise ParamctlError(f"{shortened(source.name)}: a definition has no steps", hint="name checkpoints of it")
    notes = tuple(note for one in made for note in one.notes)
    return Found(sources, notes, len(words) == 1 or list(words) == sorted(words))


def _expanded(word: str) -> Found:
    if os.path.isdir(word):  # noqa: PTH112 - the word as it was written
        return _in_folder(word, 0)
    if glob.has_magic(word) and not os.path.lexists(word):
        names = sharded.in_order(glob.glob(word, recursive=True))  # noqa: PTH207 - as it is written
        if not names:
            raise FileError(word, "no file is called so")
        return Found([resolve(name) for name in names])
    return Found([resolve(word)])


def _in_folder(path: str, depth: int) -> Found:
    """Of a folder of several models each; else the folder itself, which is one."""
    here = resolve(path)
    if dcp.sniff(here):
        return Found([here])
    files, folders = _entries(path)
    models = _models(files)
    below = [name for name in folders if _is_model(os.path.join(path, name))]  # noqa: PTH118 - as it was written
    if len(below) > 1:
        notes = (_left_out(path, models),) if models else ()
        return Found([resolve(os.path.join(path, name)) for name in below], notes)  # noqa: PTH118
    if len(models) > 1:
        return Found([resolve(os.path.join(path, name)) for name in models])  # noqa: PTH118
    if len(folders) == 1 and not models and depth < _DEEPEST:  # as lightning_logs/version_0/checkpoints
        return _in_folder(os.path.join(path, folders[0]), depth + 1)  # noqa: PTH118
    return Found([here])


def _entries(path: str) -> tuple[list[str], list[str]]:
    try:
        with os.scandir(path) as entries:
            seen = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise FileError(path, (error.strerror or str(error)).lower()) from error
    names = [sharded.in_order(name for name, is_dir in seen if is_dir == kind) for kind in (False, True)]
    return names[0], names[1]


def _models(names: Sequence[str]) -> list[str]:
    """A file for each model, the best where it is there in several formats; shards are one model."""
    best: dict[str, folder.Found] = {}
    for one in folder.models(names):
        if one.role == "model" and one.kind == "file":
            known = best.get(one.stem)
            if known is None or folder.preference(one) < folder.preference(known):
                best[one.stem] = one
    return [one.name for one in best.values()]


def _is_model(path: str) -> bool:
    files, _ = _entries(path)
    return any(one.role == "model" for one in folder.models(files)) or dcp.sniff(Source(path, "folder", Path(path)))


def _left_out(path: str, models: Sequence[str]) -> str:
    names = ", ".join(shortened(name) for name in models[:_MOST_NAMED])
    more = f" and {len(models) - _MOST_NAMED:,} more" if len(models) > _MOST_NAMED else ""
    return f"{shortened(path)}: {names}{more} beside its folders left out; name it to have it in the row"


# ----------------------------------------------------------------------------- steps


def steps(sources: Sequence[Source], extras: Sequence[Mapping[str, Any]]) -> list[int | None] | None:
    """The step of each, told alike for all; None for one that has none, as `last.ckpt`.

    None for all where nothing tells them apart.
    """
    names = _telling(sources)
    ways: list[Callable[[int], int | None]] = [
        *(lambda at, word=word: _named(word, names[at]) for word in _WORDS),
        *(lambda at, key=key: _whole(extras[at].get(key)) for key in _SAID),
    ]
    all_told = [[way(at) for at in range(len(sources))] for way in ways]
    for least in (len(sources), max(2, len(sources) // 2)):
        for told in all_told:
            known = [step for step in told if step is not None]
            if len(known) >= least and len(set(known)) == len(known):
                return told
    return None


def _telling(sources: Sequence[Source]) -> list[str]:
    """What differs in the paths: the last step in which they all do, without the suffix."""
    paths = [Path(source.name).parts for source in sources]
    for back in range(1, 1 + min(map(len, paths))):
        parts = [path[-back] for path in paths]
        if len(set(parts)) == len(parts):
            return [Path(part).stem if back == 1 and source.kind == "file" else part
                    for part, source in zip(parts, sources, strict=True)]  # fmt: skip
    return [source.name for source in sources]


def _named(word: re.Pattern[str], name: str) -> int | None:
    matches = word.findall(name)
    return int(matches[-1]) if matches else None


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None
