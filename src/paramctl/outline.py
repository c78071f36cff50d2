"""Header tier: what a new checkpoint will be, before a byte of it is written.

An outline is made of a checkpoint, and each step, as renaming or casting, makes another of it. Nothing here knows a
format: what one cannot hold is found by `formats.convert`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from paramctl import plan, sharing
from paramctl.checkpoint import Checkpoint, Param, Storage, contiguous
from paramctl.dtypes import DTYPES, DType
from paramctl.errors import ParamctlError, SelectError, nearest, shortened
from paramctl.report import Report
from paramctl.select import Selection

Action = Literal["keep", "rename", "cast", "drop", "tie", "untie", "alias"]

_DTYPE_WORDS = {  # as people write them
    "fp64": "float64", "f64": "float64", "double": "float64",
    "fp32": "float32", "f32": "float32", "float": "float32",
    "fp16": "float16", "f16": "float16", "half": "float16",
    "bf16": "bfloat16",
    "fp8": "float8_e4m3fn", "f8": "float8_e4m3fn", "e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2",
    **{f"{head}8_{tail}": f"float8_{full}"
       for head in ("fp", "f", "float")
       for tail, full in {"e4m3": "e4m3fn", "e4m3fn": "e4m3fn", "e4m3fnuz": "e4m3fnuz", "e5m2": "e5m2",
                          "e5m2fnuz": "e5m2fnuz"}.items()},
}  # fmt: skip
CAST_TO = (
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"
)  # fmt: skip
MERGED = "merged"  # the format of several checkpoints
ABOUT_FOLDERS = ("index", "beside", "config")  # extras that readers of folders add, and that are no content
_NESTED = ("torch-zip", "torch-legacy", "dcp")  # formats whose extras are merged
_NOTHING = object()
_OF_CONTAINERS = {"dcp": ("dcp_version", "save_id")}  # metadata that is about the files, and not about what they hold


class Entry(NamedTuple):
    """A tensor of the new checkpoint: `param` is where its elements come from, and how they lie there."""

    name: str
    param: Param
    dtype: DType  # that it will have
    action: Action = "keep"
    detail: str = ""
    is_own: bool = False  # it shares nothing, whatever the storage of `param` says
    was: str = ""  # its name in the checkpoint that it is made of

    @property
    def nbytes(self) -> int:
        return self.dtype.nbytes(self.param.numel)

    @property
    def is_cast(self) -> bool:
        return self.dtype != self.param.dtype


class Dropped(NamedTuple):
    """A tensor that will not be there, and why."""

    param: Param
    why: str


class Outline(NamedTuple):
    """The tensors of a new checkpoint, in its order, and what else it holds. `lost`: what it cannot hold, in words."""

    checkpoint: Checkpoint  # that it is made of
    entries: tuple[Entry, ...]
    at: str = ""  # the path at which that is rooted in its file
    dropped: tuple[Dropped, ...] = ()
    without: tuple[str, ...] = ()  # paths of what is no tensor, and is not to be there either
    metadata: Mapping[str, str] = MappingProxyType({})
    paths: Mapping[str, tuple[Any, ...]] = MappingProxyType({})  # of tensors, by their names, where a format nests
    extras: Mapping[tuple[Any, ...], Any] = MappingProxyType({})  # what is no tensor, by path, where a format holds it
    config: str = ""  # the path of a config.json that goes along
    is_compact: bool = False  # no tensor drags more of a storage than its own elements
    homes: Mapping[str, str] = MappingProxyType({})  # the shard of each tensor, by its old name, where that stays
    shard_nbytes: int = 0  # of a shard, where there are shards; 0: any number
    is_split: bool = False  # a file for each module at the top
    keeps_pickle: bool = False  # what is not named stays, though the file is of another format
    has_views: bool = True  # whether views of one storage stay so
    lost: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def outline(checkpoint: Checkpoint, *, at: str = "") -> Outline:
    """All of a checkpoint, that is rooted at `at`, as it is; of a definition what its state dict holds."""
    params: Iterable[Param] = checkpoint.params.values()
    if checkpoint.live is not None:
        saved = set(checkpoint.live.state_dict())
        params = [param for param in params if param.name in saved]
    not_said = {param.name for param in checkpoint.params.values() if param.declared == "metadata"}
    not_said.update(_OF_CONTAINERS.get(checkpoint.format, ()))
    metadata = {key: text for key, text in checkpoint.metadata.items() if key not in not_said}
    entries = tuple(Entry(param.name, param, param.dtype, was=param.name) for param in params)
    return Outline(checkpoint, entries, at, metadata=metadata)


# ----------------------------------------------------------------------------- several into one


def merged(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """One checkpoint of several, of which a later one wins."""
    params: dict[str, Param] = {}
    metadata: dict[str, str] = {}
    extras: dict[str, Any] = {}
    for number, checkpoint in enumerate(checkpoints):
        storages: dict[str, Storage] = {}
        for name, param in checkpoint.params.items():
            key = param.storage.key
            storage = storages.setdefault(key, param.storage._replace(key=f"{number}:{key}"))
            params[name] = param._replace(storage=storage)
        metadata |= checkpoint.metadata
        extras |= checkpoint.extras
    modules = {path: module for checkpoint in checkpoints for path, module in checkpoint.modules.items()}
    parts = tuple(checkpoints)
    return Checkpoint(checkpoints[0].source, MERGED, params, modules, metadata, extras, parts=parts)


def conflicts(checkpoints: Sequence[Checkpoint]) -> Iterator[tuple[str, str, str]]:
    """What more than one checkpoint has under one name: the name, whose it was, and whose it is.

    What is no tensor is no conflict where it is the same.
    """
    homes: dict[str, str] = {}
    values: dict[str, Any] = {}
    for checkpoint in checkpoints:
        others = dict(_leaves(checkpoint.extras)) if checkpoint.format in _NESTED else {}
        for name in (*checkpoint.params, *others):
            if name in homes and not (name in others and values.get(name, _NOTHING) == others[name]):
                yield name, homes[name], checkpoint.source.name
            homes[name] = checkpoint.source.name
        values |= others


def _leaves(extras: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in extras.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif prefix or key not in ABOUT_FOLDERS:
            yield prefix + key, value


# ----------------------------------------------------------------------------- steps


def kept(before: Outline, selection: Selection, why: str) -> Outline:
    """Only what was chosen."""
    chosen = {param.name for param in selection.chosen}
    return without(before, lambda entry: entry.name not in chosen, why)


def without(before: Outline, goes: Callable[[Entry], bool], why: str) -> Outline:
    """All but the entries that go."""
    entries = tuple(entry for entry in before.entries if not goes(entry))
    left = {entry.name for entry in entries}
    gone = tuple(Dropped(entry.param, why) for entry in before.entries if entry.name not in left)
    return before._replace(entries=entries, dropped=before.dropped + gone)


def renamed(before: Outline, names: Mapping[str, str]) -> Outline:
    """With new names, by the old ones.

    Raises:
        SelectError: two tensors would have one name, or one none.
    """
    entries = tuple(
        entry._replace(name=names[entry.name], action="rename", detail=f"from {shortened(entry.name)}")
        if names.get(entry.name, entry.name) != entry.name
        else entry
        for entry in before.entries
    )
    taken: dict[str, str] = {}
    for old, new in zip(before.entries, entries, strict=True):
        if not new.name:
            raise SelectError(f"the new name of {shortened(old.name)} is empty")
        if new.name in taken:
            pair = f"{shortened(taken[new.name])} and {shortened(old.name)}"
            raise SelectError(f"{pair} would both be called {shortened(new.name)}", hint="--drop one of them")
        taken[new.name] = old.name
    return before._replace(entries=entries)


def cast(before: Outline, dtype: DType) -> Outline:
    """With floats, and the blocks of ggml, as another float type: masks, counters and complex numbers stay."""
    return before._replace(
        entries=tuple(
            entry._replace(
                dtype=dtype,
                action="cast",
                detail=_joined(f"{entry.dtype.name} → {dtype.name}", entry.detail),
            )
            if entry.dtype != dtype and _is_of_floats(entry.param)
            else entry
            for entry in before.entries
        )
    )


def _is_of_floats(param: Param) -> bool:
    return param.dtype.kind == "float" or (param.dtype.kind == "quantized" and param.dtype.block_numel > 4)


def dtype_of(word: str) -> DType:
    """The dtype of a word as people write it: bf16, fp16, float8_e4m3fn.

    Raises:
        ParamctlError: no such dtype, or none of floats.
    """
    name = _DTYPE_WORDS.get(word.lower(), word.lower().removeprefix("torch."))
    if name in CAST_TO:
        return DTYPES[name]
    if name in DTYPES:
        raise ParamctlError(f"--dtype {shortened(word)}: tensors are cast between floats", hint=", ".join(CAST_TO[:5]))
    close = nearest(word, [*_DTYPE_WORDS, *CAST_TO])
    raise ParamctlError(
        f"--dtype {shortened(word)}: no such dtype", hint=f"{' or '.join(close)}?" if close else ", ".join(CAST_TO[:5])
    )


def tied(before: Outline, names: Sequence[str], *, winner: str) -> Outline:
    """With names as one tensor, that of `winner`.

    Raises:
        ParamctlError: they are not of one shape and dtype.
    """
    entries = {entry.name: entry for entry in before.entries}
    first = entries[winner]
    for name in names:
        other = entries[name]
        if (other.param.shape, other.dtype) != (first.param.shape, first.dtype):
            said = [f"{shortened(one.name)} is {_shape(one.param)} of {one.dtype.name}" for one in (first, other)]
            raise ParamctlError(f"{said[0]}, and {said[1]}", hint="tensors of one shape and dtype can be tied")
    others = {*names} - {winner}
    made = tuple(
        entry._replace(param=first.param, is_own=first.is_own, action="tie", detail=f"to {shortened(winner)}")
        if entry.name in others
        else entry
        for entry in before.entries
    )
    return before._replace(entries=made)


def untied(before: Outline, names: Iterable[str]) -> Outline:
    """With each of the names a tensor of its own; where all of a tie are named the first keeps its storage.

    Raises:
        SelectError: none of them is tied.
    """
    wanted = set(names)
    free: dict[str, str] = {}
    for group in groups(before):
        here = [name for name in group.names if name in wanted]
        stays = group.names[0] if len(here) == len(group.names) else ""
        for name in here:
            if name != stays:
                free.setdefault(name, next(other for other in group.names if other != name))
    if not free:
        raise SelectError("none of them is tied", hint="paramctl ties shows what is")
    return before._replace(
        entries=tuple(
            entry._replace(is_own=True, action="untie", detail=f"from {shortened(free[entry.name])}")
            if entry.name in free
            else entry
            for entry in before.entries
        )
    )


def compact(before: Outline) -> Outline:
    """With no tensor that drags more of a storage than its own elements."""
    return before._replace(
        is_compact=True,
        entries=tuple(
            entry._replace(detail=_joined(entry.detail, f"cut out of {entry.param.storage.nbytes:,} bytes"))
            if entry.param.storage.nbytes > entry.param.nbytes
            else entry
            for entry in before.entries
        ),
    )


def with_metadata(before: Outline, pairs: Mapping[str, str]) -> Outline:
    """With more metadata; an empty text takes the key away."""
    said = {**before.metadata, **pairs}
    return before._replace(metadata={key: text for key, text in said.items() if text or key not in pairs})


# ----------------------------------------------------------------------------- what it says


def groups(made: Outline) -> list[sharing.Group]:
    """The ties of the new checkpoint, by its names; views of one storage are a group too."""
    keys = [entry.param.storage.key for entry in made.entries]
    if len(set(keys)) == len(keys):
        return []
    times = Counter(keys)
    several = (entry for entry, key in zip(made.entries, keys, strict=True) if times[key] > 1)
    return sharing.groups(as_named(entry) for entry in several)


def as_named(entry: Entry) -> Param:
    """The source of an entry under its new name, with a storage of its own where it has one."""
    param = entry.param._replace(name=entry.name, declared="")
    if not entry.is_own:
        return param
    return param._replace(storage=param.storage._replace(key=f"{param.storage.key}\0{entry.name}"))


def aliases(made: Outline) -> dict[str, str]:
    """For each name that another has the very elements of, the name under which they are kept.

    That is the first by the alphabet, as `save_model` has it; but one that is there before one that a config declares,
    and a known input embedding before its head, since `transformers` makes the head of it and not it of the head.

    Source: safetensors/torch.py (`_remove_duplicate_names`); transformers/modeling_utils.py (`save_pretrained`).
    """
    same = [group.names for group in groups(made) if group.relation == "same"]
    declared = {entry.name for entry in made.entries if entry.param.declared} if same else set()
    found: dict[str, str] = {}
    for names in same:
        heads = {sharing.HEADS[name] for name in names if name in sharing.HEADS}
        kept = min(names, key=lambda name: (name in declared, name in heads, name))
        found.update((name, kept) for name in names if name != kept)
    return found


def distinct(made: Outline, kept_as: Mapping[str, str]) -> list[Entry]:
    """The entries that are no alias."""
    return [entry for entry in made.entries if entry.name not in kept_as]


def parts(made: Outline) -> dict[str, Outline]:
    """What is below each module at the top; `_root` is what lies at the top itself, and what has no tensor below it."""
    found: dict[str, list[Entry]] = {}
    for entry in made.entries:
        top, dot, _ = entry.name.partition(".")
        found.setdefault(top if dot and top else "_root", []).append(entry)
    extras: dict[str, dict[tuple[Any, ...], Any]] = {}
    for path, value in made.extras.items():
        top, dot, _ = ".".join(map(str, path)).partition(".")
        extras.setdefault(top if dot and top in found else "_root", {})[path] = value
    if "_root" in extras:
        found.setdefault("_root", [])
    return {top: made._replace(entries=tuple(some), extras=extras.get(top, {})) for top, some in found.items()}


def params(made: Outline) -> list[Param]:
    """The tensors as they will be, each tie one storage: for totals, and to be compared with what was written."""
    kept_as = aliases(made)
    found = []
    for entry in made.entries:
        shape, key = entry.param.shape, kept_as.get(entry.name, entry.name)
        found.append(Param(entry.name, entry.dtype, shape, contiguous(shape), Storage(key, entry.nbytes)))
    return found


def report(made: Outline) -> Report:
    """A tensor a row: those that will be there, then those that will not."""
    along: dict[str, list[str]] = {}
    for group in groups(made):
        for name, told in sharing.others(group.names) if made.has_views or group.relation == "same" else ():
            along.setdefault(name, []).extend(told)
    rows = [
        (e.name, list(e.param.shape), e.dtype.name, e.action, e.detail, list(dict.fromkeys(along.get(e.name, ()))))
        for e in made.entries
    ]
    rows += [(p.name, list(p.shape), p.dtype.name, "drop", why, []) for p, why in made.dropped]
    source = made.checkpoint.source.name
    return Report(plan.COLUMNS, tuple(rows), totals(made), source, made.checkpoint.format)


def totals(made: Outline, names: Container[str] | None = None) -> dict[str, Any]:
    """Of the tensors as they will be: of all, or of some."""
    some = [param for param in params(made) if names is None or param.name in names]
    return sharing.totals(replace(made.checkpoint, modules={}), some)


def _joined(*texts: str) -> str:
    return ", ".join(text for text in texts if text)


def _shape(param: Param) -> str:
    return "×".join(map(str, param.shape)) or "a scalar"
