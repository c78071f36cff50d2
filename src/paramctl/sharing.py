"""Header tier: which tensors share bytes, how, and what everything takes when a shared element counts once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from paramctl.checkpoint import Checkpoint, Param, is_dense_in_order

Relation = Literal["same", "view", "overlap"]
Runs = list[tuple[int, int]]
MOST_RUNS = 100_000  # of a strided view that is told apart element by element; beyond, by its span
_PAIRWISE = 64


class Group(NamedTuple):
    """Names that share bytes. `saved_nbytes`: what they would take more if each had its own."""

    names: tuple[str, ...]
    relation: Relation
    first: Param
    saved_nbytes: int
    source: str  # "storage", "metadata" or "config": where it is known from


def by_storage(params: Iterable[Param]) -> list[list[Param]]:
    """The storages that more than one name looks at, in the order of their first names."""
    found: dict[str, list[Param]] = {}
    for param in params:
        if param.numel:
            found.setdefault(param.storage.key, []).append(param)
    return [sharers for sharers in found.values() if len(sharers) > 1]


def _geometry(param: Param) -> tuple[Any, ...]:
    squeezed = [(size, by) for size, by in zip(param.shape, param.stride, strict=True) if size != 1]
    return (param.shape, tuple(squeezed), param.storage_offset, param.dtype.name)


def groups(params: Iterable[Param]) -> list[Group]:
    """Ties: names of the very same elements, and, a group of its own, tensors that see one storage differently."""
    found: list[Group] = []
    for sharers in by_storage(params):
        alike: dict[tuple[Any, ...], list[Param]] = {}
        for param in sharers:
            alike.setdefault(_geometry(param), []).append(param)
        for same in alike.values():
            if len(same) > 1:
                saved = (len(same) - 1) * same[0].nbytes
                found.append(Group(tuple(p.name for p in same), "same", same[0], saved, _source(same)))
        heads = [same[0] for same in alike.values()]
        if len(heads) > 1:
            saved = sum(head.nbytes for head in heads) - sum(end - start for start, end in union(heads))
            names = tuple(head.name for head in heads)
            found.append(Group(names, relation(heads), heads[0], max(saved, 0), _source(heads)))
    return found


def _source(params: Sequence[Param]) -> str:
    return next((param.declared for param in params if param.declared), "storage")


def relation(heads: Sequence[Param]) -> Relation:
    """`overlap` where two tensors share some elements and each has others, else `view`: parts, transposes, slices."""
    if len(heads) <= _PAIRWISE:
        pairs = ((a, b) for i, a in enumerate(heads) for b in heads[:i])
        return "overlap" if any(meet(a, b) == "overlap" for a, b in pairs) else "view"
    open_ends: list[int] = []
    for start, negative_end in sorted((head.span[0], -head.span[1]) for head in heads):
        while open_ends and open_ends[-1] <= start:
            open_ends.pop()
        if open_ends and -negative_end > open_ends[-1]:
            return "overlap"
        open_ends.append(-negative_end)
    return "view"


def meet(a: Param, b: Param) -> Literal["apart", "within", "overlap"]:
    """How the elements of two tensors of one storage meet."""
    if a.span[1] <= b.span[0] or b.span[1] <= a.span[0]:
        return "apart"
    mine, other = _size(runs(a)), _size(runs(b))
    shared = mine + other - _size(merged(runs(a) + runs(b)))
    if shared <= 0:
        return "apart"
    return "within" if shared == min(mine, other) else "overlap"


def how(a: Param, b: Param) -> str:
    """What `b` is to `a`, for people: to be followed by "of" and the name of `a`."""
    kind = meet(a, b)
    if kind == "apart":
        return "another part of the storage"
    if kind == "overlap":
        return "an overlapping view"
    dims = [sorted(zip(p.shape, p.stride, strict=True)) for p in (a, b)]
    if dims[0] == dims[1] and a.storage_offset == b.storage_offset:
        return "the transpose" if len(a.shape) == 2 else "a permutation"
    return "a reshape" if a.nbytes == b.nbytes else "a slice" if b.nbytes < a.nbytes else "a view that contains all"


# ----------------------------------------------------------------------------- bytes that are there


def runs(param: Param) -> Runs:
    """The bytes of a tensor's elements as sorted ranges; its whole span where there would be too many."""
    start, end = param.span
    if end == start:
        return []
    if param.dtype.block_numel > 1 or is_dense_in_order(param.shape, param.stride):
        return [(start, end)]
    dims = sorted((abs(by), size) for size, by in zip(param.shape, param.stride, strict=True) if size > 1 and by)
    width, inner = 1, 0
    for by, size in dims:  # what lies side by side is one run, whatever the order of the dimensions
        if by != width:
            break
        width, inner = width * size, inner + 1
    outer = dims[inner:]
    if math.prod(size for _, size in outer) > MOST_RUNS:
        return [(start, end)]
    itemsize = param.dtype.block_nbytes
    offsets = [0]
    for by, size in outer:
        offsets = [offset + by * i for offset in offsets for i in range(size)]
    return merged([(start + offset * itemsize, start + (offset + width) * itemsize) for offset in offsets])


def merged(ranges: Runs) -> Runs:
    """Sorted, and joined where they touch or overlap."""
    out: Runs = []
    for start, end in sorted(ranges):
        if out and start <= out[-1][1]:
            if end > out[-1][1]:
                out[-1] = (out[-1][0], end)
        else:
            out.append((start, end))
    return out


def _size(ranges: Runs) -> int:
    return sum(end - start for start, end in ranges)


def union(params: Iterable[Param]) -> Runs:
    """The bytes of one storage that any of the tensors looks at."""
    return merged([piece for param in params for piece in runs(param)])


def first_names(params: Iterable[Param]) -> dict[str, str]:
    """For each name whose elements an earlier name has too, that earlier name."""
    ties: dict[str, str] = {}
    for sharers in by_storage(params):
        heads: dict[tuple[Any, ...], Param] = {}
        for param in sharers:
            known = heads.setdefault(_geometry(param), param)
            if known is not param:
                ties[param.name] = known.name
                continue
            for head in list(heads.values())[:_PAIRWISE]:
                if head is not param and meet(head, param) != "apart":
                    ties[param.name] = ties.get(head.name, head.name)
                    break
    return ties


def totals(checkpoint: Checkpoint, params: Sequence[Param]) -> dict[str, Any]:
    """The totals of every command: `unique_*` count a shared element once, `storage_nbytes` the bytes that are there."""
    numel = nbytes = unique_numel = unique_nbytes = 0
    storages: dict[str, int] = {}
    dtypes: dict[str, dict[str, int]] = {}
    sharing: dict[str, list[Param]] = {}
    for param in params:
        count = param.numel
        size = param.dtype.nbytes(count)
        numel += count
        nbytes += size
        storages[param.storage.key] = param.storage.nbytes
        sharing.setdefault(param.storage.key, []).append(param)
        tally = dtypes.setdefault(param.dtype.name, {"tensors": 0, "numel": 0, "nbytes": 0})
        tally["tensors"] += 1
        tally["numel"] += count
        tally["nbytes"] += size
    for sharers in sharing.values():
        if len(sharers) == 1 and is_dense_in_order(sharers[0].shape, sharers[0].stride):
            unique_numel += sharers[0].numel
            unique_nbytes += sharers[0].nbytes
        else:
            more_numel, more_nbytes = _unique(sharers)
            unique_numel += more_numel
            unique_nbytes += more_nbytes
    return {
        "tensors": len(params),
        "numel": numel,
        "unique_numel": unique_numel,
        "nbytes": nbytes,
        "unique_nbytes": unique_nbytes,
        "storage_nbytes": sum(storages.values()),
        "dtypes": dtypes,
        "modules": len(checkpoint.modules),
    }


def _unique(sharers: Sequence[Param]) -> tuple[int, int]:
    """Elements and bytes of one storage, each counted once; elements by the dtype that saw them first."""
    seen: Runs = []
    numel = nbytes = 0
    heads = {_geometry(param): param for param in reversed(sharers)}
    for param in reversed(heads.values()):
        if param.dtype.block_numel > 1:
            return param.numel, param.nbytes
        before = nbytes
        pieces = runs(param)
        if len(pieces) == 1 and param.numel < (pieces[0][1] - pieces[0][0]) // param.dtype.block_nbytes:
            low, high = pieces[0]  # too many runs to tell apart: as many elements as there can be
            fresh = min(param.nbytes, high - low, max(_size(merged([*seen, (low, high)])) - nbytes, 0))
            nbytes += fresh
            seen = merged([*seen, (low, low + fresh)])
        else:
            seen = merged(seen + pieces)
            nbytes = _size(seen)
        numel += (nbytes - before) // param.dtype.block_nbytes
    return numel, nbytes
