"""Values tier: ties by content, of tensors that hold the same bytes and do not share them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from paramctl import sharing
from paramctl.checkpoint import Param
from paramctl.errors import ParamctlError, shortened
from paramctl.values import stream
from paramctl.values.equal import Candidate, Pair, pairs

_HOW = {"reshape": "a reshape", "transpose": "the transpose"}


class Alike(NamedTuple):
    """A name for each time that equal bytes are there, and how many would be saved if they were there once."""

    names: tuple[str, ...]
    first: Param
    saved_nbytes: int
    notes: tuple[str, ...]  # what those are of others that are no plain copies


def alike(
    params: Iterable[Param],
    chosen: AbstractSet[str],
    *,
    constants: bool = False,
    tell: Callable[[int], None] | None = None,
) -> tuple[list[Alike], list[str]]:
    """The groups of which a name was chosen, and what is to be said of tensors that could not be compared.

    Args:
        params: all of a checkpoint.
        chosen: names.
        constants: also tensors whose elements are all the same.
        tell: told the bytes that are read, as they are.

    Raises:
        FileError: a file cannot be read, or has become shorter.
        ParamctlError: bytes are packed, and do not unpack.
    """
    names: dict[Any, list[str]] = {}
    heads: dict[Any, Param] = {}
    for param in params:
        if param.numel and not param.storage.is_meta:
            key = sharing.identity(param)
            heads.setdefault(key, param)
            names.setdefault(key, []).append(param.name)
    is_chosen = {heads[key].name for key, some in names.items() if not chosen.isdisjoint(some)}
    sizes: dict[Any, list[Param]] = {}
    for head in heads.values():
        sizes.setdefault((head.dtype.name, head.numel), []).append(head)
    worth = {size for size, some in sizes.items() if len(some) > 1 and any(head.name in is_chosen for head in some)}
    readable, notes = _readable(head for head in heads.values() if (head.dtype.name, head.numel) in worth)
    candidates = [Candidate(place, head, owner) for place, (head, owner) in enumerate(_owned(readable))]
    wanted = {item.owner for item in candidates if item.param.name in is_chosen}
    found = pairs(candidates, constants=constants, tell=tell)
    groups = [group for group in _connected(candidates, found) if not wanted.isdisjoint(group)]
    return [_alike(candidates, group, found) for group in groups], notes


def _readable(heads: Iterable[Param]) -> tuple[list[Param], list[str]]:
    found: list[Param] = []
    notes = []
    for head in heads:
        try:
            stream.hold(head)
        except ParamctlError as error:
            notes.append(f"{error.what}; it was not compared")
        else:
            found.append(head)
    return found, notes


def _owned(heads: Sequence[Param]) -> list[tuple[Param, int]]:
    """Each with the place of the first that has the very same elements, as a tensor and its transpose."""
    storages: dict[str, list[int]] = {}
    for place, head in enumerate(heads):
        storages.setdefault(head.storage.key, []).append(place)
    owners = list(range(len(heads)))
    for places in storages.values():
        known: dict[Any, int] = {}
        for place, runs in zip(places, _runs([heads[place] for place in places]), strict=True):
            owners[place] = known.setdefault((heads[place].dtype.name, heads[place].numel, runs), place)
    return list(zip(heads, owners, strict=True))


def _runs(sharers: Sequence[Param]) -> Iterable[Any]:
    return map(tuple, sharing.all_runs(sharers)) if len(sharers) > 1 else [()]


def _connected(candidates: Sequence[Candidate], found: Iterable[Pair]) -> list[list[int]]:
    """The owners that pairs connect, each group in order, the groups in the order of their first."""
    groups = {item.owner: [item.owner] for item in candidates}
    for pair in found:
        one, other = groups[candidates[pair.first].owner], groups[candidates[pair.other].owner]
        if one is other:
            continue
        less, more = sorted((one, other), key=len)
        more += less
        groups.update(dict.fromkeys(less, more))
    distinct = {id(group): sorted(group) for group in groups.values() if len(group) > 1}
    return sorted(distinct.values())


def _alike(candidates: Sequence[Candidate], group: Sequence[int], found: Iterable[Pair]) -> Alike:
    members = [candidates[owner].param for owner in group]
    storages: dict[str, list[Param]] = {}
    for member in members:
        storages.setdefault(member.storage.key, []).append(member)
    held = sum(sharing.unique(several)[1] for several in storages.values())
    kept = min(sharing.unique([member])[1] for member in members)
    inside = set(group)
    notes: dict[int, str] = {}
    copies = {
        candidates[pair.other].owner
        for pair in found
        if pair.how == "copy" and candidates[pair.first].param.name == members[0].name
    }
    for pair in found:
        first, other = candidates[pair.first], candidates[pair.other]
        if other.owner in copies or other.owner not in inside or first.owner == other.owner:
            continue
        if pair.how in _HOW:
            said = f"{shortened(other.param.name)} is {_HOW[pair.how]} of {shortened(first.param.name)}"
            notes.setdefault(other.owner, said)
    return Alike(tuple(member.name for member in members), members[0], held - kept, tuple(notes.values()))
