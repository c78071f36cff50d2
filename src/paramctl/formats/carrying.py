"""Header tier: where in a new checkpoint each tensor stands, and what is no tensor, for a format that nests.

What is no tensor follows the tensors beside it: where all of a branch are called otherwise the branch is, and where
none of them stays it goes. That is how a torch file is edited, too (`pickle_removal`, `pickle_rename`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from paramctl.checkpoint import Checkpoint
from paramctl.errors import ParamctlError, shortened
from paramctl.formats import nesting
from paramctl.formats.nesting import Nesting, Path, dotted
from paramctl.formats.pickle_nodes import Maker, dump
from paramctl.outline import Outline


class Carried(NamedTuple):
    """As `Outline.paths` and `Outline.extras`; `alien`: names of what is no tensor, and cannot be held."""

    paths: dict[str, Path]
    extras: dict[Path, Any]
    alien: list[str]


def carried(made: Outline) -> Carried | None:
    """What of a checkpoint a format that nests can hold; None where the checkpoint is flat.

    Raises:
        ParamctlError: a tensor is to stand where what is no tensor does.
    """
    found = nesting.of(made.checkpoint)
    if found is None:
        return None
    there = {entry.was for entry in made.entries}
    dead = _dead(found, there)
    stays = [path for path in found.extras if not (_is_below(path, dead) or _is_without(dotted(path), made.without))]
    alien = [name for name in found.alien if not _is_without(name, made.without)]
    names = {entry.was: entry.name for entry in made.entries}
    moved = _moved(found, names) if any(old != new for old, new in names.items()) else {}
    inner = {dotted(new): new for new in (_under(moved, path[:at]) for path, at in _around(found, there))}
    paths = {}
    for old, new in names.items():
        path = _under(moved, found.paths[old])
        paths[new] = path if dotted(path) == new else nesting.placed(new, inner)
    extras = {_under(moved, path): found.extras[path] for path in stays}
    _refuse_two(paths, extras)
    return Carried(paths, extras, alien)


def _around(found: Nesting, names: Iterable[str]) -> Iterator[tuple[Path, int]]:
    """Each branch around some tensors, as a path and how much of it."""
    seen: set[Path] = set()
    for name in names:
        path = found.paths[name]
        for at in range(len(path) - 1, 0, -1):
            if path[:at] in seen:
                break
            seen.add(path[:at])
            yield path, at


def _dead(found: Nesting, there: Iterable[str]) -> set[Path]:
    """The branches of which no tensor stays."""
    alive = {path[:at] for path, at in _around(found, there)}
    return {path[:at] for path, at in _around(found, found.paths)} - alive


def _is_below(path: Path, branches: set[Path]) -> bool:
    return bool(branches) and any(path[:at] in branches for at in range(1, len(path) + 1))


def _is_without(name: str, without: Iterable[str]) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in without)


def differing(extras: Mapping[Path, Any], written: Checkpoint) -> str | None:
    """What is no tensor, and is not as planned in what was written; None if all is."""
    found = nesting.of(written)
    there = {dotted(path): _pickled(value) for path, value in (found.extras if found else {}).items()}
    return next((dotted(path) for path in extras if there.get(dotted(path)) != _pickled(extras[path])), None)


def _pickled(value: Any) -> bytes:
    return dump(Maker({}).value(value))  # in which a NaN is a NaN


# ----------------------------------------------------------------------------- new names


def _moved(found: Nesting, names: Mapping[str, str]) -> dict[Path, Path]:
    """Where each branch goes, of which all tensors are called alike otherwise."""
    below: dict[Path, list[str]] = defaultdict(list)
    for name in names:
        path = found.paths[name]
        for at in range(1, len(path)):
            below[path[:at]].append(name)
    moved: dict[Path, Path] = {}
    for branch in sorted(below, key=len):
        around = moved.get(branch[:-1], branch[:-1])
        moved[branch] = (*around, _step(branch, around, {name: names[name] for name in below[branch]}))
    return moved


def _step(branch: Path, around: Path, names: Mapping[str, str]) -> Any:
    """The last step of a branch that is now in `around`."""
    tails = len(dotted(branch))
    heads = {new[: len(new) - len(old) + tails] if new.endswith(old[tails:]) else "" for old, new in names.items()}
    head, base = next(iter(heads)), f"{dotted(around)}." if around else ""
    if len(heads) > 1 or not head.startswith(base) or head == base or isinstance(branch[-1], int):
        return branch[-1]
    new = head[len(base) :]
    return branch[-1] if new == str(branch[-1]) else new


def _under(moved: Mapping[Path, Path], path: Path) -> Path:
    """A path, by where the branches around it go."""
    for at in range(len(path), 0, -1):
        if path[:at] in moved:
            return (*moved[path[:at]], *path[at:])
    return path


def _refuse_two(paths: Mapping[str, Path], extras: Mapping[Path, Any]) -> None:
    """No path may lead through a value, and no two things stand in one place."""
    taken = {path: name for name, path in paths.items()}
    for name, path in paths.items():
        if any(path[:at] in extras for at in range(1, len(path) + 1)):
            what = f"{shortened(name)} would stand where what is no tensor does"
            raise ParamctlError(what, hint="--drop leaves it out; --rename gives the tensor another name")
    for path in extras:
        inside = next((taken[path[:at]] for at in range(1, len(path)) if path[:at] in taken), None)
        if inside is not None:
            what = f"{shortened(dotted(path))} would stand in {shortened(inside)}, which is a tensor"
            raise ParamctlError(what, hint="--rename gives the tensor another name")
