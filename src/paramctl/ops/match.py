"""Header tier: would a checkpoint load into a model, and if not, what is nearest and what would mend it.

What `torch.nn.Module.load_state_dict(strict=True)` would say is told by names, shapes and dtypes alone. A definition is
of the torch tier, and built on the meta device; where modules of it have a say in how they are loaded (batch
normalization that fills in `num_batches_tracked`, hooks), its own `load_state_dict` is asked, with tensors on that
device.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from typing import Any

from paramctl import formats, sharing
from paramctl.checkpoint import Checkpoint, branches
from paramctl.correspondence import Correspondence, correspond, form
from paramctl.errors import ParamctlError, shortened
from paramctl.ops._diff_rows import described
from paramctl.ops._match_candidates import with_candidates
from paramctl.ops._match_mending import mended, mending, notes, rename_file
from paramctl.ops._match_rows import FAULTS, STATUSES, Row, Side, Status
from paramctl.ops._match_shown import shown
from paramctl.report import Column, Report

__all__ = ["COLUMNS", "match", "rename_file", "shown"]

COLUMNS = (
    Column("name", "name"),
    Column("status", "word"),
    Column("a", "layout"),
    Column("b", "layout"),
    Column("candidate", "name"),
    Column("detail"),
)

_NESTED = 3  # branches within branches that are looked into for what is no tensor
_WIDEST = 500  # characters of an error of the model's own
_TIED_TO = "tied to "
LOADING = "paramctl.formats.loading"  # torch tier
_PICKLED = frozenset(("torch-zip", "torch-legacy", "torch-tar"))  # what is no tensor is a key of the dict, too
_COPIED = frozenset((  # each into any of these
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
    "float8_e8m0fnu", "complex32", "complex64", "complex128", "int64", "int32", "int16", "int8", "uint64", "uint32",
    "uint16", "uint8", "bool",
))  # fmt: skip


def match(a: Checkpoint, b: Checkpoint, *, strict_dtype: bool = False, at: str = "") -> Report:
    """A row for each name of both: the model's in its order, then what it does not want.

    Args:
        a: the checkpoint.
        b: the model, or the checkpoint whose place it would take.
        strict_dtype: whether another dtype is a fault: torch copies it, and the model keeps its own.
        at: where the checkpoint is rooted, for the command that is said.

    Returns:
        Rows of which `a` and `b` are as `float32 [8,4]`. `totals["fits"]` is the answer. `totals["mending"]` is what
        would make it fit, None if nothing was found: `at`, `rules` for `convert --rename-file`, `steps` with their
        evidence, what no renaming mends, and `then`: what is left.
    """
    given, wanted = given_of(a), wanted_of(b)
    rows, said = outcome(given, wanted, strict_dtype=strict_dtype)
    found = _correspondence(given, wanted)
    then, last = None, rows
    if found.root.path or found.steps:
        last, more = outcome(mended(given, found), wanted, strict_dtype=strict_dtype)
        then = {"fits": not more and _fits(last), **_counts(last)}
    rows = _with_tied_candidates(with_candidates(rows, found), wanted)
    made = mending(found, then, at=at)
    fits = not said and _fits(rows)
    counts = _counts(rows)
    words = (*said, *notes(made, counts, (a.source, b.source), fits=fits, lacking=_lacking(last)))
    return Report(COLUMNS, tuple(map(_told, rows)), {"fits": fits, **counts, "mending": made}, a.source.name, a.format,
                  notes=words)  # fmt: skip


def _lacking(rows: Iterable[Row]) -> list[str]:
    """Names that are missing, and tied to one that is there."""
    return [row.name for row in rows if row.status == "missing" and row.candidate and row.detail.startswith(_TIED_TO)]


def _counts(rows: Iterable[Row]) -> dict[str, int]:
    counts = dict.fromkeys(STATUSES, 0)
    for row in rows:
        counts[row.status] += 1
    return {str(status): count for status, count in counts.items()}


def _fits(rows: Iterable[Row]) -> bool:
    return all(row.status not in FAULTS for row in rows)


def _told(row: Row) -> tuple[Any, ...]:
    return (row.name, row.status, described(row.a), described(row.b), row.candidate, row.detail or None)


def _correspondence(given: Side, wanted: Side) -> Correspondence:
    forms = ({p.name: form(p.dtype, p.shape) for p in side.params.values()} for side in (given, wanted))
    inside = _inside(given.checkpoint.extras, set(branches(given.params)))
    return correspond(*forms, extras=(*given.others, *inside))


def _inside(extras: Mapping[str, Any], above: Collection[str], path: str = "", levels: int = _NESTED) -> Iterator[str]:
    """Paths of what is no tensor in the branches that have tensors."""
    for key, value in extras.items():
        name = f"{path}.{key}" if path else key
        if name in above and isinstance(value, Mapping) and levels:
            yield from _inside(value, above, name, levels - 1)
        elif path:
            yield name


# ----------------------------------------------------------------------------- what is there, and what is wanted


def given_of(checkpoint: Checkpoint) -> Side:
    """What the dict would hold that torch, or safetensors' `load_file`, makes of a checkpoint."""
    if checkpoint.live is not None:
        return wanted_of(checkpoint)
    params, others = dict(checkpoint.params), {}
    if checkpoint.knows_types:  # a whole module: its state dict has no plain attributes
        params = {name: param for name, param in params.items() if param.kind != "tensor"}
    elif checkpoint.format in _PICKLED and checkpoint.extras:
        above = set(branches(params))
        others = {key: value for key, value in checkpoint.extras.items() if key not in above or _is_plain(value)}
    aliases = frozenset(name for name, param in params.items() if param.declared)
    return Side(checkpoint, params, others, aliases)


def _is_plain(value: Any) -> bool:
    return not isinstance(value, (Mapping, list))


def wanted_of(checkpoint: Checkpoint) -> Side:
    """What `load_state_dict` would look for."""
    if checkpoint.live is None:
        return given_of(checkpoint)._replace(aliases=frozenset())
    expected = formats.torch_tier(LOADING).expected(checkpoint)
    params = {name: checkpoint.params[name] for name in expected.names}
    extra_states = dict.fromkeys(expected.extra_states, "extra state")
    return Side(checkpoint, params, extra_states, frozenset(), expected.passed_over, expected.hooked)


# ----------------------------------------------------------------------------- what load_state_dict would say


def outcome(given: Side, wanted: Side, *, strict_dtype: bool) -> tuple[list[Row], tuple[str, ...]]:
    """A row for each name, and errors that are of no name."""
    rows = [_of_wanted(name, given, wanted, strict_dtype=strict_dtype) for name in wanted.params]
    rows += [_of_extra_state(name, given) for name in wanted.others]
    inside = tuple(f"{name}." for name in wanted.others)
    for name in dict.fromkeys((*given.params, *given.others)):
        is_inside = bool(inside) and name.startswith(inside) and name not in given.others
        if name not in wanted.params and name not in wanted.others and not is_inside:
            rows.append(_of_stranger(name, given, wanted))
    rows = _with_ties(rows, given, wanted)
    return _asked(rows, given, wanted) if wanted.hooked else (rows, ())


def _of_wanted(name: str, given: Side, wanted: Side, *, strict_dtype: bool) -> Row:
    b, a = wanted.params[name], given.params.get(name)
    if a is None:
        if name in given.others:
            return Row(name, "dtype", None, b, None, f"no tensor in the file: {_described(given.others[name])}")
        return Row(name, "missing", None, b)
    if name in given.aliases:
        return Row(
            name, "missing", None, b, None, f"an alias, by the {a.declared}: the file holds it under its other name"
        )
    if a.shape != b.shape:
        if (a.shape, b.shape) == ((1,), ()):
            return Row(name, "ok", a, b, None, "one element, as before torch 0.4")
        return Row(name, "shape", a, b)
    if a.dtype == b.dtype:
        return Row(name, "ok", a, b)
    if not {a.dtype.name, b.dtype.name} <= _COPIED:
        return Row(name, "dtype", a, b, None, f"torch copies no {a.dtype.name} into {b.dtype.name}")
    if strict_dtype:
        return Row(name, "dtype", a, b)
    return Row(name, "cast", a, b, None, f"copied as {b.dtype.name}")


def _of_extra_state(name: str, given: Side) -> Row:
    is_there = name in given.others or name in given.params or any(key.startswith(f"{name}.") for key in given.params)
    if is_there or given.checkpoint.live is not None:
        return Row(name, "ok", None, None, None, "extra state")
    return Row(name, "missing", None, None, None, "extra state")


def _of_stranger(name: str, given: Side, wanted: Side) -> Row:
    a = given.params.get(name)
    if wanted.passed_over and name.startswith(wanted.passed_over):
        return Row(name, "ok", a, None, None, "passed over: the model's child there is None")
    return Row(name, "unexpected", a, None, None, "" if a else f"no tensor: {_described(given.others[name])}")


def _described(value: Any) -> str:
    if isinstance(value, Mapping) and isinstance(value.get("class"), str):
        return str(value["class"].rpartition(".")[2])
    return "extra state" if value == "extra state" else type(value).__name__


def _with_ties(rows: list[Row], given: Side, wanted: Side) -> list[Row]:
    """Ties that one side has and the other has not; a name that is missing has its tie as the candidate."""
    ours, theirs = _tied(given), _tied(wanted)
    if not ours and not theirs:
        return rows
    there = _first_of_each(theirs, given.params.keys() - given.aliases)
    return [
        _tied_to(row, there.get(row.name)) if row.status == "missing" else _with_tie(row, given, wanted, ours, theirs)
        for row in rows
    ]


Ties = Mapping[str, tuple[str, ...]]  # all names of a tie, which is one object


def _first_of_each(ties: Ties, known: Container[str]) -> dict[str, str]:
    """For each name the first of its tie that is known. Each tie is gone over once, as it may be of all names."""
    every = {names[0]: names for names in ties.values()}
    firsts = {key: next((name for name in names if name in known), None) for key, names in every.items()}
    found = ((name, firsts[names[0]]) for name, names in ties.items())
    return {name: first for name, first in found if first is not None}


def _tied_to(row: Row, name: str | None) -> Row:
    """A name that is missing, whose tie has this one."""
    if name is None:
        return row._replace(candidate=None)
    return row._replace(candidate=name, detail=row.detail or f"{_TIED_TO}{name} in the model")


def _with_tie(row: Row, given: Side, wanted: Side, ours: Ties, theirs: Ties) -> Row:
    mine, others = ours.get(row.name, ()), theirs.get(row.name, ())
    if row.status not in ("ok", "cast"):
        return row
    first = others[0] if others else ""
    if first != row.name and first in given.params and (not mine or ours.get(first) is not mine):
        what = f"tied to {first} in the model, and two tensors here: the last to be copied wins"
        return row._replace(status="tie", detail=what)
    first = mine[0] if mine else ""
    if first != row.name and first in wanted.params and (not others or theirs.get(first) is not others):
        return row._replace(status="untied", detail=f"tied to {first} here, and a tensor of its own in the model")
    return row


def _with_tied_candidates(rows: list[Row], wanted: Side) -> list[Row]:
    """A missing name that is tied to one whose candidate is known has that candidate, too."""
    ties = _tied(wanted)
    if not ties:
        return rows
    known = {row.name: row.candidate for row in rows if row.status == "missing" and row.candidate}
    firsts = _first_of_each(ties, known)
    made = []
    for row in rows:
        first = firsts.get(row.name)
        if row.status == "missing" and not row.candidate and first:
            row = row._replace(candidate=known[first], detail=f"tied to {first} in the model")  # noqa: PLW2901
        made.append(row)
    return made


def _tied(side: Side) -> dict[str, tuple[str, ...]]:
    """For each name that has the very elements of others, all that have them."""
    held = [param for param in side.params.values() if param.name not in side.aliases]
    same = (group.names for group in sharing.groups(held) if group.relation == "same")
    return {name: names for names in same for name in names}


def _asked(rows: list[Row], given: Side, wanted: Side) -> tuple[list[Row], tuple[str, ...]]:
    """With what the model's own `load_state_dict` says, where it has a say."""
    loading = formats.torch_tier(LOADING)
    params = {name: param for name, param in given.params.items() if name not in given.aliases}
    params = {name: param for name, param in params.items() if not _is_extra_state(name, wanted)}
    others = [name for name in given.others if not _is_extra_state(name, wanted)]
    try:
        said = loading.load(wanted.checkpoint, params, others, _versions(given.checkpoint))
    except ParamctlError as error:
        return rows, (f"the model's own way to load could not be asked: {error.what}",)
    told: dict[str, Status] = dict.fromkeys(said.mismatched, "shape")
    told |= dict.fromkeys(said.unexpected, "unexpected")
    told |= {name: "missing" for name in said.missing if name not in wanted.others}
    made = [_corrected(row, told.get(row.name)) for row in rows]
    return made, tuple(shortened(error, _WIDEST) for error in said.errors)


def _is_extra_state(name: str, wanted: Side) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in wanted.others)  # a state of tensors is a branch


def _corrected(row: Row, said: Status | None) -> Row:
    if said == row.status or (said is None and row.status not in ("missing", "unexpected", "shape")):
        return row
    if said is None:
        return (
            row if row.detail == "extra state" else row._replace(status="ok", detail="the model's own code sees to it")
        )
    return row._replace(status=said, detail="by the model's own code")


def _versions(checkpoint: Checkpoint) -> dict[str, int]:
    """What a state dict's `_metadata` says; of a whole module, what torch would write now."""
    if checkpoint.knows_types:
        return dict.fromkeys(checkpoint.modules, 2)
    return {path: module.version for path, module in checkpoint.modules.items() if module.version is not None}
