"""Header tier: what a name may have become, each found by a look at all names: a table of detectors.

A detector proposes; what it proposes is held against every name by `State.held`. The votes are of a few names of each
template.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal

from paramctl.correspondence import pairing, rules
from paramctl.correspondence.forms import agrees
from paramctl.correspondence.state import Proposal, State
from paramctl.correspondence.templates import MOST_DEEP, Level, closed, heads, lists, samples, starred
from paramctl.correspondence.words import contradict, likeness

Detector = Callable[[State], Iterator[Proposal]]

_TRIED = 4  # of what was voted for, those that are held against all names
_HALF, _QUARTER = 0.5, 0.25
_SEVERAL = 4
_MOST_ALONE = 20_000  # names that are looked at one by one
_MOST_SEARCHED = 3_000_000  # names, one regular expression after another
WRAPPERS = {  # steps that a wrapper puts into every name
    "module": "DataParallel and DistributedDataParallel",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "checkpoint_wrapper",
    "_forward_module": "Lightning Fabric",
}


def taken_away(state: State) -> Iterator[Proposal]:
    """A beginning that all names have, and the wanted have not: `module.`, `model.`, `_orig_mod.module.`."""
    votes: Counter[tuple[str, str]] = Counter()
    for name, count in state.samples[0]:
        parts = name.split(".")
        for at in range(1, min(len(parts), MOST_DEEP)):
            if agrees(state.given[name], state.wanted.get(".".join(parts[at:]))):
                head = ".".join(parts[:at]) + "."
                votes[head, ""] += count
                if at < len(parts) - 1:
                    votes[f"{head}{parts[at]}.", f"{parts[at]}."] += count
    for (old, new), _ in _none_of_several(votes, of=0).most_common(_TRIED):
        changes = {name: new + name[len(old) :] for name in state.given if name.startswith(old)}
        gone = old[: len(old) - len(new)]
        whose = f" below {new[:-1]}" if new else ""
        why = f"names{whose} begin with {gone}{_known(gone)}, and the model's do not"
        yield Proposal("prefix", (rules.beginning(old, new),), changes, why, needs=_HALF)


def put_before(state: State) -> Iterator[Proposal]:
    """A beginning that the wanted names have, all or those below one module."""
    votes: Counter[tuple[str, str]] = Counter()
    for name, count in state.samples[1]:
        parts = name.split(".")
        for at in range(1, min(len(parts), MOST_DEEP)):
            tail = ".".join(parts[at:])
            if agrees(state.given.get(tail), state.wanted[name]):
                head = ".".join(parts[:at]) + "."
                votes["", head] += count
                if at < len(parts) - 1:
                    votes[f"{parts[at]}.", f"{head}{parts[at]}."] += count
    for (old, new), _ in _none_of_several(votes, of=1).most_common(_TRIED):
        changes = {name: new + name[len(old) :] for name in state.given if name.startswith(old)}
        whose = f"below {old[:-1]} " if old else ""
        why = f"the model's names {whose}begin with {new[: len(new) - len(old)]}"
        yield Proposal("prefix", (rules.beginning(old, new),), changes, why, needs=_HALF)


def _none_of_several(votes: Counter[tuple[str, str]], *, of: Literal[0, 1]) -> Counter[tuple[str, str]]:
    """Without modules that are alike in each layer, where one stands outside of layers: `h.*.norm` and `norm`.

    Any layer's would do as well, and so none does.
    """
    alike = Counter((starred(both[of][:-1])[0], both[1 - of]) for both in votes)
    return Counter(
        {
            both: count
            for both, count in votes.items()
            if not both[1 - of] or alike[starred(both[of][:-1])[0], both[1 - of]] == 1
        }
    )


def unwrapped(state: State) -> Iterator[Proposal]:
    """A step that stands anywhere in the names, as `_orig_mod` where a layer was compiled by itself."""
    votes: Counter[str] = Counter()
    for name, count in state.samples[0]:
        parts = name.split(".")
        for at in range(min(len(parts) - 1, MOST_DEEP)):
            if agrees(state.given[name], state.wanted.get(".".join(parts[:at] + parts[at + 1 :]))):
                votes[parts[at]] += count
    for part, _ in votes.most_common(_TRIED):
        found = re.compile(rf"(\A|\.){re.escape(part)}\.")
        changes = {name: found.sub(r"\g<1>", name) for name in state.given if part in name}
        why = f"{part} stands in the names{_known(part)}, and not in the model's"
        yield Proposal("step", (rules.step(part, ""),), changes, why, needs=_HALF)


def _known(text: str) -> str:
    who = [WRAPPERS[part] for part in text.split(".") if part in WRAPPERS]
    return f" ({', '.join(who)})" if who else ""


def reworded(state: State) -> Iterator[Proposal]:
    """One word for another throughout: `gamma` for `weight`, `attention` for `attn`."""
    wanted: dict[tuple[str, ...], list[str]] = {}
    for name, _ in samples(state.missing):
        for masked, part in _masked(name):
            wanted.setdefault(masked, []).append(part)
    votes: Counter[tuple[str, str]] = Counter()
    for name, count in samples(state.free):
        for masked, part in _masked(name):
            for new in wanted.get(masked, ())[:_TRIED]:
                full = ".".join(new if step == "" else step for step in masked)
                if not contradict(part, new) and agrees(state.given[name], state.wanted.get(full)):
                    votes[part, new] += count
    for old, new in _undisputed(votes)[:_TRIED]:
        found = re.compile(rf"(\A|\.){re.escape(old)}(?=\.|\Z)")
        made = new.replace("\\", r"\\")
        changes = {name: found.sub(rf"\g<1>{made}", name) for name in state.given if old in name}
        why = f"{new} is called {old}"
        yield Proposal("word", (rules.step(old, new),), changes, why, needs=_HALF)


def _undisputed(votes: Counter[tuple[str, str]]) -> list[tuple[str, str]]:
    """Of which neither word may as well be another; and that are alike, or stand in several names."""
    kept = []
    for (old, new), count in votes.most_common():
        rivals = [
            votes[one, other] for one, other in votes if (one == old) != (other == new) and votes[one, other] >= count
        ]
        if not rivals and (count >= _SEVERAL or likeness(old, new) > 0):
            kept.append((old, new))
    return kept


def _masked(name: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """The path with one step left empty, and that step; numbers are for `renumbered`."""
    parts = name.split(".")
    if len(parts) <= MOST_DEEP:
        for at, part in enumerate(parts):
            if part and not part.isdigit():
                yield (*parts[:at], "", *parts[at + 1 :]), part


def renumbered(state: State) -> Iterator[Proposal]:
    """Layers that are counted from another number."""
    wanted = lists(state.wanted)
    for path, numbers in lists(state.given).items():
        others = wanted.get(path, set())
        by = min(others) - min(numbers) if others else 0
        if not by or {number + by for number in numbers} != others:
            continue
        order = sorted(numbers, reverse=by > 0)  # so that none takes a number that is still another's
        depth = path.count(".") + 1 if path else 0
        changes = {name: _moved(name, depth, by) for name in state.given if _is_in_list(name, path, depth)}
        stem = f"{path}." if path else ""
        pairs = [(f"{stem}{number}", f"{stem}{number + by}") for number in order]
        counted = f"{path or 'the top'} counts from {min(numbers)}, the model's from {min(others)}"
        told = tuple(rules.Head(old, new).rule() for old, new in pairs)
        yield Proposal("offset", told, changes, counted, needs=_QUARTER)  # its other words may come after


def _is_in_list(name: str, path: str, depth: int) -> bool:
    parts = name.split(".", depth + 1)
    return len(parts) > depth and ".".join(starred(name)[0].split(".")[: depth + 1]) == (f"{path}.*" if path else "*")


def _moved(name: str, depth: int, by: int) -> str:
    parts = name.split(".")
    parts[depth] = str(int(parts[depth]) + by)
    return ".".join(parts)


def renamed(state: State) -> Iterator[Proposal]:
    """Names that differ anyhow: families of the same shapes, paired by what their words mean."""
    for level in pairing.LEVELS if len(state.free) <= _MOST_ALONE else pairing.LEVELS[:1]:
        for is_transposed in (False, True):
            pairs = pairing.pairs(state.free, state.missing, level, is_transposed=is_transposed)
            if pairs:
                yield _of_pairs(state, pairs, level)
                return


def in_order(state: State) -> Iterator[Proposal]:
    """The same shapes in the same order, whatever the names."""
    pairs = pairing.sequence(state.free, state.missing)
    if pairs:
        yield _of_pairs(state, pairs, "none")


def _of_pairs(state: State, pairs: list[pairing.Pair], level: Level) -> Proposal:
    changes: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for pair in pairs:
        for indices, old in pair.given.names.items():
            new = changes[old] = pair.wanted.names[indices]
            reasons[new] = pair.why
    made = _heads_of(state, pairs, level)
    first = pairs[0]
    why = f"{first.wanted.template} is called {first.given.template}, {first.why}"
    more = f" (and {len(pairs) - 1:,} more such pairs)" if len(pairs) > 1 else ""
    return Proposal("name", made, changes, why + more, reasons)


def _heads_of(state: State, pairs: list[pairing.Pair], level: Level) -> tuple[str, ...]:
    """As few rules as say it: what the ends of two templates have in common is left out, if all below goes along."""
    votes: Counter[tuple[str, str]] = Counter()
    for pair in pairs:
        for both in _shorter(pair.given.template, pair.wanted.template):
            votes[both] += len(pair.given.names)
    count = _counter(state, level, len(pairs))
    chosen: dict[tuple[str, str], bool] = {}
    for pair in pairs:
        shorter = _shorter(pair.given.template, pair.wanted.template)
        short = next((each for each in shorter if votes[each] == count(each[0])), None)
        if short is not None:
            chosen[short] = False
        else:  # other names are below it, or have its template: then each name for itself
            alone = ((closed(old), closed(pair.wanted.names[at])) for at, old in pair.given.names.items())
            chosen |= dict.fromkeys(alone, True)
    made = [rules.Head(old, new, is_whole) for (old, new), is_whole in chosen.items()]
    if len(state.given) * len(made) <= _MOST_SEARCHED:
        names = [*state.given, *(name for pair in pairs for name in pair.wanted.names.values())]
        made = [head._replace(by_stars=True) if head.finds_the_same(names) else head for head in made]
    return rules.in_order(made, state.given)


def _shorter(old: str, new: str) -> list[tuple[str, str]]:
    """The pair without ever less of a common end, the shortest first."""
    one, other = old.split("."), new.split(".")
    common = 0
    most = min(len(one), len(other)) - 1 if max(len(one), len(other)) <= MOST_DEEP else 0
    while common < most and one[-1 - common] == other[-1 - common]:
        common += 1
    return [(".".join(one[: len(one) - n]), ".".join(other[: len(other) - n])) for n in range(common, -1, -1)]


def _counter(state: State, level: Level, times: int) -> Callable[[str], int]:
    """How many of the names begin with a head."""
    if level != "one":
        counts = heads(state.given, level)
        return counts.__getitem__
    if len(state.given) * times > _MOST_SEARCHED:
        return lambda _: -1  # then every name has a rule of its own template
    return lambda head: sum(map(bool, map(rules.matcher(head), state.given)))


_BY_SPELLING: tuple[Detector, ...] = (taken_away, put_before, unwrapped, reworded, renumbered)
SPELLED = frozenset(("prefix", "step", "word", "offset"))  # kinds of what these propose
DETECTORS: tuple[tuple[Detector, ...], ...] = (  # tables, of which the first is used that is convincing
    (*_BY_SPELLING, renamed, in_order),
    (*_BY_SPELLING, in_order),
    _BY_SPELLING,
)
