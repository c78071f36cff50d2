"""Header tier: which tensors share bytes, how, and what everything takes when a shared element counts once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from paramctl.checkpoint import Checkpoint, Param, is_dense_in_order

Relation = Literal["same", "view", "overlap"]
Runs = list[tuple[int, int]]
MOST_RUNS = 200_000  # of the strided views of one storage, told apart element by element; beyond, by their spans
_MOST_COMPARED = 1_000_000  # runs, pair by pair
_MOST_OTHERS = 100
HEADS = {  # input embedding: the output's weight, in the models that `transformers` has
    "model.embed_tokens.weight": "lm_head.weight",
    "model.decoder.embed_tokens.weight": "lm_head.weight",
    "model.language_model.embed_tokens.weight": "lm_head.weight",
    "language_model.model.embed_tokens.weight": "language_model.lm_head.weight",
    "transformer.wte.weight": "lm_head.weight",
    "transformer.word_embeddings.weight": "lm_head.weight",
    "backbone.embeddings.weight": "lm_head.weight",
    "backbone.embedding.weight": "lm_head.weight",
    "gpt_neox.embed_in.weight": "embed_out.weight",
    "model.shared.weight": "lm_head.weight",
    "shared.weight": "lm_head.weight",
}


class Group(NamedTuple):
    """Names that share bytes. `saved_nbytes`: what they would take more if each had its own."""

    names: tuple[str, ...]
    relation: Relation
    first: Param
    saved_nbytes: int
    source: str  # "storage", "metadata" or "config": where it is known from


def by_storage(params: Iterable[Param]) -> list[list[Param]]:
    """The storages that more than one name looks at, in the order of their first names."""
    params = tuple(params)
    keys = [param.storage.key for param in params]
    if len(set(keys)) == len(keys):
        return []
    found: dict[str, list[Param]] = {}
    for key, param in zip(keys, params, strict=True):
        if 0 not in param.shape:
            found.setdefault(key, []).append(param)
    return [sharers for sharers in found.values() if len(sharers) > 1]


def sharers(params: Iterable[Param]) -> frozenset[str]:
    """The names whose elements may be counted twice: those that share a storage, and those that are not dense."""
    params = tuple(params)
    known: dict[Any, bool] = {}
    found = {param.name for sharing in by_storage(params) for param in sharing}
    for param in params:
        geometry = (param.shape, param.stride)
        if geometry not in known:
            known[geometry] = is_dense_in_order(*geometry)
        if not known[geometry]:
            found.add(param.name)
    return frozenset(found)


def identity(param: Param) -> tuple[Any, ...]:
    """The same for names of the very same elements."""
    return (param.storage.key, *_geometry(param))


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
            seen = all_runs(heads)
            saved = sum(head.nbytes for head in heads) - _size(merged([run for some in seen for run in some]))
            names = tuple(head.name for head in heads)
            found.append(Group(names, _relation(seen), heads[0], max(saved, 0), _source(heads)))
    return found


def _source(params: Sequence[Param]) -> str:
    return next((param.declared for param in params if param.declared), "storage")


def _relation(seen: Sequence[Runs]) -> Relation:
    """`overlap` where two tensors share some elements and each has others, else `view`: parts, transposes, slices."""
    total = sum(map(len, seen))
    if total > len(seen) and len(seen) * total <= _MOST_COMPARED:
        pairs = ((a, b) for i, a in enumerate(seen) for b in seen[:i])
        return "overlap" if any(_meet(a, b) == "overlap" for a, b in pairs) else "view"
    open_ends: list[int] = []
    for start, negative_end in sorted((some[0][0], -some[-1][1]) for some in seen):
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
    return _meet(*all_runs((a, b)))


def _meet(mine: Runs, other: Runs) -> Literal["apart", "within", "overlap"]:
    shared = _size(mine) + _size(other) - _size(merged(mine + other))
    if shared <= 0:
        return "apart"
    return "within" if shared == min(_size(mine), _size(other)) else "overlap"


def how(a: Param, b: Param) -> str:
    """What `b` is to `a`, for people: to be followed by "of" and the name of `a`."""
    mine, other = all_runs((a, b))
    kind = _meet(mine, other)
    if kind == "apart":
        return "another part of the storage"
    if kind == "overlap":
        return "an overlapping view"
    dtype = "" if a.dtype == b.dtype else f", as {b.dtype.name},"
    if _size(other) != _size(mine):
        return ("a slice" if _size(other) < _size(mine) else "a view that contains all") + dtype
    if dtype:
        return f"a view{dtype}"
    dims = [sorted(zip(p.shape, p.stride, strict=True)) for p in (a, b)]
    if dims[0] == dims[1]:
        return "the transpose" if len(a.shape) == 2 else "a permutation"
    return "a reshape" if a.numel == b.numel else "an expansion"


# ----------------------------------------------------------------------------- bytes that are there


def runs(param: Param, most: int = MOST_RUNS) -> Runs:
    """The bytes of a tensor's elements as sorted ranges; its whole span where there would be more than `most`."""
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
    if math.prod(size for _, size in outer) > most:
        return [(start, end)]
    itemsize = param.dtype.block_nbytes
    offsets = [0]
    for by, size in reversed(outer):
        offsets = [offset + by * i for offset in offsets for i in range(size)]
    found = [(start + offset * itemsize, start + (offset + width) * itemsize) for offset in offsets]
    return found if _are_apart(outer, width) else merged(found)


def _are_apart(dims: Sequence[tuple[int, int]], width: int) -> bool:
    """Whether runs of `width` neither touch nor overlap; the dimensions from the least stride on."""
    for by, size in dims:
        if by <= width:
            return False
        width += by * (size - 1)
    return True


def all_runs(params: Sequence[Param]) -> list[Runs]:
    """The runs of each of some tensors of one storage, `MOST_RUNS` together at most."""
    most = max(MOST_RUNS // max(len(params), 1), 1)
    return [runs(param, most) for param in params]


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


def others(names: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each name of a tie with the others; where they are very many, with the first of them alone.

    So what is told of a tie grows with its names, and not with their square.
    """
    if len(names) <= _MOST_OTHERS:
        for name in names:
            yield name, tuple(other for other in names if other != name)
        return
    for name in names:
        yield name, (names[0] if name != names[0] else names[1],)


def first_names(params: Iterable[Param]) -> dict[str, str]:
    """For each name whose elements an earlier name has too, that earlier name.

    It is the first of the very same elements, or one before it that has them all; else the first that has any.
    """
    ties: dict[str, str] = {}
    for sharers in by_storage(params):
        heads = _heads(sharers)
        known = list(heads.values())
        firsts = dict(zip(heads, _first_owners(known), strict=True))
        for param in sharers:
            geometry = _geometry(param)
            head, first = heads[geometry], firsts[geometry]
            if head is not param and (first is None or not _contains(known[first], head)):
                ties[param.name] = head.name
            elif first is not None:
                ties[param.name] = known[first].name
    return ties


def _heads(sharers: Iterable[Param]) -> dict[tuple[Any, ...], Param]:
    """The first tensor of each geometry."""
    heads: dict[tuple[Any, ...], Param] = {}
    for param in sharers:
        heads.setdefault(_geometry(param), param)
    return heads


def _contains(a: Param, b: Param) -> bool:
    mine, other = all_runs((a, b))
    return _size(merged(mine + other)) == _size(mine)


def _first_owners(heads: Sequence[Param]) -> list[int | None]:
    """For each tensor the first before it that has some of its bytes, by its place in the row."""
    if len(heads) == 1:
        return [None]
    _, spans, owners = _owned(heads)
    longest = max(end - start for some in spans for start, end in some)
    levels = [owners]  # levels[k][i]: the first owner of the 2**k pieces from i on
    while longest >= 1 << len(levels):
        half = levels[-1]
        levels.append(list(map(min, half, half[1 << (len(levels) - 1) :])))
    firsts: list[int | None] = []
    for index, some in enumerate(spans):
        first = index
        for start, end in some:
            k = (end - start).bit_length() - 1
            first = min(first, levels[k][start], levels[k][end - (1 << k)])
        firsts.append(first if first < index else None)
    return firsts


def _owned(heads: Sequence[Param]) -> tuple[list[int], list[Runs], list[int]]:
    """One storage cut wherever a run begins or ends: the cuts, the runs as ranges of pieces, and each piece's owner.

    A piece belongs to the first tensor that has it, or to nobody: `len(heads)`.
    """
    seen = all_runs(heads)
    cuts = sorted({edge for some in seen for run in some for edge in run})
    place = {edge: i for i, edge in enumerate(cuts)}
    spans = [[(place[start], place[end]) for start, end in some] for some in seen]
    owners = [len(heads)] * len(cuts)
    following = list(range(len(cuts) + 1))  # of a piece that has an owner, one after it
    for index, some in enumerate(spans):
        for start, end in some:
            at = _free(following, start)
            while at < end:
                owners[at] = index
                following[at] = at + 1
                at = _free(following, at)
    return cuts, spans, owners


def _free(following: list[int], at: int) -> int:
    """The next piece from `at` on that is nobody's."""
    end = at
    while following[end] != end:
        end = following[end]
    while following[at] != end:
        following[at], at = end, following[at]
    return end


def totals(checkpoint: Checkpoint, params: Sequence[Param]) -> dict[str, Any]:
    """What every command tells: `unique_*` count a shared element once, `storage_nbytes` the bytes that are there."""
    kinds = {param.dtype.name: param.dtype for param in params}
    alike = Counter([(param.dtype.name, param.shape) for param in params])
    dtypes: dict[str, dict[str, int]] = {}
    for (name, shape), times in alike.items():
        numel = math.prod(shape)
        tally = dtypes.setdefault(name, {"tensors": 0, "numel": 0, "nbytes": 0})
        tally["tensors"] += times
        tally["numel"] += times * numel
        tally["nbytes"] += times * kinds[name].nbytes(numel)
    numel, nbytes = (sum(tally[key] for tally in dtypes.values()) for key in ("numel", "nbytes"))
    unique_numel, unique_nbytes = numel, nbytes
    doubtful = sharers(params)
    storages: dict[str, list[Param]] = {}
    for param in params if doubtful else ():
        if param.name in doubtful:
            storages.setdefault(param.storage.key, []).append(param)
    for several in storages.values():
        once_numel, once_nbytes = unique(several)
        unique_numel += once_numel - sum(param.numel for param in several)
        unique_nbytes += once_nbytes - sum(param.nbytes for param in several)
    return {
        "tensors": len(params),
        "numel": numel,
        "unique_numel": unique_numel,
        "nbytes": nbytes,
        "unique_nbytes": unique_nbytes,
        "storage_nbytes": sum({param.storage.key: param.storage.nbytes for param in params}.values()),
        "dtypes": dtypes,
        "modules": len(checkpoint.modules),
    }


def unique(sharers: Sequence[Param]) -> tuple[int, int]:
    """Elements and bytes of one storage, each counted once; elements by the dtype that saw them first."""
    if len(sharers) == 1 and is_dense_in_order(sharers[0].shape, sharers[0].stride):
        return sharers[0].numel, sharers[0].nbytes
    heads = list(_heads(sharers).values())
    cuts, _, owners = _owned(heads)
    fresh = [0] * (len(heads) + 1)
    for owner, start, end in zip(owners, cuts, cuts[1:], strict=False):
        fresh[owner] += end - start
    numel = nbytes = 0
    for param, more in zip(heads, fresh, strict=False):
        more = min(more, param.nbytes)  # noqa: PLW2901 - a span may be more than what is seen of it
        nbytes += more
        numel += min(more // param.dtype.block_nbytes * param.dtype.block_numel, param.numel)
    return numel, nbytes
