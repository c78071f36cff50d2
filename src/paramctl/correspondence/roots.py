"""Header tier: where in a nested checkpoint the tensors are that are wanted: below `state_dict`, `model` or `ema`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from paramctl.correspondence.forms import Form, Forms, agrees
from paramctl.correspondence.templates import MOST_DEEP, samples

_USUAL = ("state_dict", "model_state_dict", "model", "module", "net", "network", "params", "weights", "generator")
_DEEPEST = 4
_ENOUGH = 0.5  # of the wanted names that are there as they are: then the checkpoint is no container
_SHARE = 0.3  # of the wanted names that a branch must have
_ALSO = 0.5  # of what the best branch has, in one that is said to have the same
_MOST_SHAPES = 0.8  # of the wanted shapes
_MOST_KEYS = 64  # of a container


class Root(NamedTuple):
    """A branch, and others that have the same in them, as `ema` beside `state_dict`."""

    path: str = ""
    others: tuple[str, ...] = ()


class _Branch(NamedTuple):
    key: str
    hits: frozenset[str]  # wanted names that are found at the end of names in it
    tensors: int


def root(given: Forms, wanted: Forms, extras: Iterable[str] = ()) -> Root:
    """The branch that has what is wanted; the top itself where no branch has it alone.

    `extras` are paths of what is no tensor.
    """
    found = Root()
    inside, beside = given, list(extras)
    for _ in range(_DEEPEST):
        there = sum(agrees(form, wanted.get(name)) for name, form in inside.items())
        if there >= _ENOUGH * min(len(inside), len(wanted)):
            break
        key, others = _best(inside, wanted, beside)
        if not key:
            break
        path = f"{found.path}.{key}" if found.path else key
        found = Root(path, others)
        inside = {name[len(key) + 1 :]: form for name, form in inside.items() if name.startswith(key + ".")}
        beside = [name[len(key) + 1 :] for name in beside if name.startswith(key + ".")]
    return found


def _best(inside: Forms, wanted: Forms, beside: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    keys = {name.partition(".")[0] for name in (*inside, *beside)}
    if not 2 <= len(keys) <= _MOST_KEYS:
        return "", ()
    branches = _branches(inside, wanted)
    best = max(branches, key=lambda branch: (len(branch.hits), _usual(branch.key), branch.tensors))
    rest = [branch for branch in branches if branch is not best]
    if len(best.hits) < _SHARE * len(samples(wanted)):
        return _by_forms(inside, wanted, branches), ()
    if best.tensors == 1 or any(branch.hits - best.hits for branch in rest):
        return "", ()
    return best.key, tuple(branch.key for branch in rest if len(branch.hits) >= _ALSO * len(best.hits))


def _by_forms(inside: Forms, wanted: Forms, branches: Sequence[_Branch]) -> str:
    """The branch that alone has the shapes that are wanted, whatever they are called; none if some name is right."""
    forms = Counter(wanted.values())
    shapes: dict[str, Counter[Form]] = {}
    for name, form in inside.items():
        shapes.setdefault(name.partition(".")[0], Counter())[form] += 1
    found = {key: (below & forms).total() for key, below in shapes.items()}
    best = max(found, key=lambda key: (found[key], _usual(key)))
    if found[best] < max(_MOST_SHAPES * len(wanted), 2) or any(map(wanted.__contains__, inside)):
        return ""
    hits = next(branch.hits for branch in branches if branch.key == best)
    rest = forms - shapes[best]
    others = [branch for branch in branches if branch.key != best]
    return "" if any(shapes[other.key] & rest or other.hits - hits for other in others) else best


def _usual(key: str) -> int:
    return -_USUAL.index(key) if key in _USUAL else -len(_USUAL)


def _branches(inside: Forms, wanted: Forms) -> list[_Branch]:
    grouped: dict[str, dict[str, None]] = {}
    for name in inside:
        grouped.setdefault(name.partition(".")[0], {})[name] = None
    wanted_samples = [name for name, _ in samples(wanted)]
    made = []
    for key, names in grouped.items():
        below = {name: inside[name] for name in names}
        stripped = {name.removeprefix(f"{key}."): form for name, form in below.items()}
        hits = {hit for name, _ in samples(below) if (hit := _hit(name, below, wanted))}
        hits |= {name for name in wanted_samples if _is_there(name, wanted, below) or _is_there(name, wanted, stripped)}
        made.append(_Branch(key, frozenset(hits), len(below)))
    return made


def _hit(name: str, inside: Forms, wanted: Forms) -> str:
    """The wanted name that is this one, or its end."""
    return next((tail for tail in _tails(name) if agrees(inside[name], wanted.get(tail))), "")


def _is_there(name: str, wanted: Forms, inside: Forms) -> bool:
    """Whether a wanted name is there, or its end."""
    return any(agrees(inside.get(tail), wanted[name]) for tail in _tails(name))


def _tails(name: str) -> Iterator[str]:
    """`a.b.c`, `b.c` of `a.b.c`: the last step alone says little."""
    parts = name.split(".")
    for at in range(min(max(len(parts) - 1, 1), MOST_DEEP)):
        yield ".".join(parts[at:])
