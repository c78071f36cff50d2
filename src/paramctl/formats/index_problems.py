"""Header tier: what does not fit between an index and its shards, and keeps nobody from reading them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from paramctl.checkpoint import Param, Problem, ProblemKind
from paramctl.errors import shortened

_TOLD = 20  # each in words
_SENTENCES: Mapping[ProblemKind, str] = {
    "nowhere": "{name} should be in {shard}, and is in no shard",
    "elsewhere": "{name} should be in {shard}, and is in {home}",
    "twice": "{name} is in {home}, and in {shard} too",
    "unindexed": "{name} is in {home}, and not in the index",
    "stray": "{name} is not in the index",
    "total": "total_size says {total} bytes, the tensors take {nbytes:,}",
    "more": "and {count:,} more",
}


def problem(kind: ProblemKind, name: str = "", **words: str | int) -> Problem:
    """One problem, with its sentence."""
    return Problem(kind, name, _SENTENCES[kind].format(name=shortened(name), **words))


def against(
    owners: Mapping[str, str], params: Mapping[str, Param], homes: Mapping[str, str], total: Any
) -> Iterator[Problem]:
    """The index against the shards: tensors that are elsewhere, nowhere, or that it does not know, and the total.

    Args:
        owners: the shard of each tensor, as the index has it.
        params: what the shards hold.
        homes: the shard in which each tensor is.
        total: what the index calls the size of all; None where it says nothing.
    """
    for name, shard in owners.items():
        home = homes.get(name)
        if home is None:
            yield problem("nowhere", name, shard=shard)
        elif home != shard:
            yield problem("elsewhere", name, shard=shard, home=home)
    for name, param in params.items():
        if name not in owners and not param.declared:
            yield problem("unindexed", name, home=homes[name])
    nbytes = sum(param.nbytes for param in params.values() if not param.declared)
    if total is None or total == nbytes or total in _other_totals(params):
        return
    said = shortened(f"{total:,}" if type(total) is int else repr(total), 40)
    yield problem("total", total=said, nbytes=nbytes)


def _other_totals(params: Mapping[str, Param]) -> tuple[int, int]:
    """What else writers call the total: the storages' bytes, and those of the tensors with each tie counted once."""
    there = [param for param in params.values() if not param.declared]
    stored = {param.storage.key: param.storage.nbytes for param in there}
    once = {(param.storage.key, param.span): param.nbytes for param in there}
    return sum(stored.values()), sum(once.values())


def cut(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """The gravest first, and how many more there are than are told."""
    ordered = sorted(problems, key=lambda one: one.kind != "nowhere")
    more = [problem("more", count=len(ordered) - _TOLD)] if len(ordered) > _TOLD else []
    return (*ordered[:_TOLD], *more)
