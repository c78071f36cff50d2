"""Header tier: a folder that holds one model: a Hub snapshot, an index and its shards, numbered shards, a lone file.

Which file is the model is told by the names that `transformers`, `diffusers` and `peft` give; what is in it, by its
content. Where the same model is there twice, as `model.safetensors` and `pytorch_model.bin`, safetensors is read.
What lies beside the model and is not read, adapters and a trainer's state with it, is told in `extras["beside"]`.

Source: transformers/utils/__init__.py (`SAFE_WEIGHTS_NAME` …), modeling_utils.py (`_add_variant`);
diffusers/utils/constants.py; peft/utils/constants.py; transformers/trainer.py (`TRAINING_ARGS_NAME` …).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from paramctl import formats
from paramctl.checkpoint import Checkpoint
from paramctl.errors import FileError, shortened
from paramctl.formats import config_ties, sharded, stranger_folders
from paramctl.source import Reader, Source

NAME = "folder"
_MOST_LISTED = 5
_SUFFIXES = ("safetensors", "bin", "pt", "pth", "ckpt", "gguf", "pt2", "npz", "npy")  # the sooner, the rather
_SUFFIX = "(?P<suffix>" + "|".join(_SUFFIXES) + ")"
_INDEX = re.compile(rf"^(?P<stem>.+)\.{_SUFFIX}\.index(\.(?P<variant>[^.]+))?\.json$")
_SHARD = re.compile(rf"^(?P<stem>.+)-(?P<number>\d{{5}})-of-(?P<count>\d{{5}})(\.(?P<variant>[^.]+))?\.{_SUFFIX}$")
_FILE = re.compile(rf"^(?P<stem>.+)\.{_SUFFIX}$")
_STEMS = {"pytorch_model": "model"}  # of one model, whatever the format
_ADAPTERS = re.compile(r"^(adapter_model|pytorch_lora_weights|adapter)\b")
_STATES = re.compile(  # what a trainer leaves beside the model
    r"^(optimizer|scheduler|scaler|rng_state|random_states|training_args|trainer_state|optim_states)(?![a-z])"
)
_BIN_BEGINNINGS = (b"PK", b"\x80", b"version https://git-lfs", b"<", b"GGUF")
_ARRAYS = ("npz", "npy")
_NOT_MODELS = (".json", ".txt", ".md", ".py", ".yaml", ".yml", ".toml", ".log", ".csv", ".png", ".jpg", ".lock", ".cfg")

Kind = Literal["index", "shards", "file"]
Role = Literal["model", "adapter", "state"]


class Found(NamedTuple):
    """A model in a folder, in one of its forms."""

    stem: str  # with its variant, alike for all forms of one model
    suffix: str
    kind: Kind
    files: tuple[str, ...]  # the index, the shards, or the file
    role: Role

    @property
    def name(self) -> str:
        """What stands for it in a list."""
        return self.files[0]


def sniff(source: Source) -> bool:
    """Whether a model's files lie in it; or one file that may be a model, and nothing that is known to be none."""
    names = _names(source)
    if any(_INDEX.match(name) or _FILE.match(name) for name in names):
        return True
    return stranger_folders.recognised(source) is None and len(_others(names)) == 1


def read(source: Source) -> Checkpoint:
    """The model in a folder.

    The source of a lone file is the file itself; of shards, the folder.

    Raises:
        FileError: more than one model, or one that cannot be read.
    """
    folder = source.path or Path()
    names = _names(source)
    found = models(names)
    found = [one for one in found if _may_be_a_model(folder, one)] or _unless_recognised(source, found)
    role = next((role for role in ("model", "adapter", "state") if any(one.role == role for one in found)), None)
    if role is None:
        return _read_file(source, folder, _others(names)[0])
    chosen = _the_one(source, folder, [one for one in found if one.role == role])
    made = config_ties.declared(_read(source, folder, chosen, names), folder)
    beside = {one.name: _why_beside(one, chosen) for one in found if one is not chosen}
    return replace(made, extras={**made.extras, "beside": beside}) if beside else made


def _names(source: Source) -> list[str]:
    """The files of a folder, links that lead nowhere included, in natural order."""
    try:
        with os.scandir(source.path) as entries:
            return sharded.in_order(entry.name for entry in entries if not entry.is_dir())
    except OSError as error:
        raise FileError(source.name, (error.strerror or str(error)).lower()) from error


def _others(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith(".") and Path(name).suffix.lower() not in _NOT_MODELS]


def models(names: Sequence[str]) -> list[Found]:
    """The models among the files of a folder, each in each of its forms."""
    indexes = {match.group(): match for name in names if (match := _INDEX.match(name))}
    shards: dict[tuple[str, str, str], list[str]] = {}
    found = [
        _found(match["stem"], match["variant"], match["suffix"], "index", [name]) for name, match in indexes.items()
    ]
    covered = {(one.stem, one.suffix) for one in found}
    for name in names:
        match = _SHARD.match(name)
        if match:
            stem = _stem(match["stem"], match["variant"])
            shards.setdefault((stem, match["suffix"], match["count"]), []).append(name)
        elif (match := _FILE.match(name)) and not name.startswith("."):
            found.append(_found(match["stem"], None, match["suffix"], "file", [name]))
    for (stem, suffix, _), files in shards.items():
        if (stem, suffix) not in covered:
            found.append(Found(stem, suffix, "shards", tuple(files), _role(stem, suffix)))
    return found


def _found(stem: str, variant: str | None, suffix: str, kind: Kind, files: list[str]) -> Found:
    return Found(_stem(stem, variant), suffix, kind, tuple(files), _role(stem, suffix))


def _stem(stem: str, variant: str | None) -> str:
    first, _, rest = stem.partition(".")
    return ".".join(part for part in (_STEMS.get(first, first), rest, variant) if part)


def _role(stem: str, suffix: str) -> Role:
    if _ADAPTERS.match(stem):
        return "adapter"
    return "state" if _STATES.match(stem) or suffix in _ARRAYS else "model"


def preference(one: Found) -> int:
    """The less, the rather it is read, of forms of one model."""
    return _SUFFIXES.index(one.suffix)


# ----------------------------------------------------------------------------- which


def _the_one(source: Source, folder: Path, found: Sequence[Found]) -> Found:
    """The one model of a folder, in the best of its forms."""
    if len(found) == 1:
        return found[0]
    there = [one for one in found if one.kind != "index" or _has_a_shard(folder, one)] or list(found)
    stems = list(dict.fromkeys(one.stem for one in there))
    best = min(map(preference, there))
    first = [one for one in there if preference(one) == best]
    if len(stems) == 1 and len(first) == 1:
        return first[0]
    names = [shortened(str(folder / one.name)) for one in (there if len(stems) > 1 else first)]
    more = f" and {len(names) - _MOST_LISTED:,} more" if len(names) > _MOST_LISTED else ""
    raise FileError(
        source.name,
        f"a folder of {len(names):,} models: which one?",
        hint=f"name one: {', '.join(names[:_MOST_LISTED])}{more}",
    )


def _has_a_shard(folder: Path, one: Found) -> bool:
    """Whether some shard of an index is there: snapshots often have the index of files that were left out."""
    path = folder / one.name
    try:
        with Reader(Source(str(path), "file", path)) as reader:
            return any(os.path.lexists(folder / shard) for shard in sharded.index(reader).shards)
    except FileError:
        return True  # what is wrong with it will be said


def _may_be_a_model(folder: Path, one: Found) -> bool:
    """Anything is called .bin: of those, what begins as a torch file, or as what may stand in one's place."""
    if one.suffix != "bin" or one.kind != "file":
        return True
    path = folder / one.name
    try:
        with Reader(Source(str(path), "file", path)) as reader:
            return not reader.head or reader.head.startswith(_BIN_BEGINNINGS)
    except FileError:
        return True  # what is wrong with it will be said


def _unless_recognised(source: Source, found: list[Found]) -> list[Found]:
    stranger = stranger_folders.recognised(source)
    if stranger is not None:
        raise stranger
    return found


def _why_beside(one: Found, chosen: Found) -> str:
    if one.role == "adapter":
        return "an adapter: it is read when it is named"
    if one.role == "state":
        return "a trainer's state, or arrays: it is read when it is named"
    return f"the same model in another file: {chosen.name} is read"


# ----------------------------------------------------------------------------- reading


def _read(source: Source, folder: Path, chosen: Found, names: Sequence[str]) -> Checkpoint:
    if chosen.kind == "index":
        path = folder / chosen.name
        with Reader(Source(str(path), "file", path)) as reader:
            what = sharded.index(reader)
        others = [name for name in names if _is_shard_of(name, chosen) and name not in what.shards]
        return sharded.gather(source, folder, what, strays=others)
    if chosen.kind == "shards":
        return sharded.gather(source, folder, sharded.Index("", _all_numbers(chosen), {}, {}))
    return _read_file(source, folder, chosen.name)


def _is_shard_of(name: str, chosen: Found) -> bool:
    match = _SHARD.match(name)
    return match is not None and (_stem(match["stem"], match["variant"]), match["suffix"]) == (
        chosen.stem,
        chosen.suffix,
    )


def _all_numbers(chosen: Found) -> tuple[str, ...]:
    """The shards that the names of some tell of, as far as the first that is missing."""
    there = set(chosen.files)
    match = _SHARD.match(chosen.name)
    if match is None:
        return chosen.files
    start, end = match.span("number")
    first = 0 if int(match["number"]) == 0 else 1
    for number in range(first, first + int(match["count"])):
        name = f"{chosen.name[:start]}{number:05}{chosen.name[end:]}"
        if name not in there:
            return (*chosen.files, name)
    return chosen.files


def _read_file(source: Source, folder: Path, name: str) -> Checkpoint:
    path = folder / name
    if path.is_symlink() and not path.exists():
        said = f"a link to {shortened(str(path.readlink()))}, which is not there"
        raise FileError(path, said, hint="the Hub's cache is not whole: download the model again")
    return formats.read(source._replace(name=str(path), kind="file", path=path))
