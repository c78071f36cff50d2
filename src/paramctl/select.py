"""Header tier: which parameters a command is about.

    pattern   = ["!"] ( name | module | "re:" regex | wildcard | position )  [ "[" slice "]" ]
    wildcard  = see `wildcard`
    position  = "[" int "]" { "[" int "]" } [ "." pattern ]
    slice     = see `slices`

A name that is present wins over every other reading; a module stands for all below it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from paramctl.checkpoint import Checkpoint, Param, at, branches
from paramctl.dtypes import DTYPES
from paramctl.errors import FileError, SelectError, caret, nearest, shortened, unescaped
from paramctl.slices import Item, parse_slice, sliced
from paramctl.wildcard import is_wildcard, matching

_POSITION = re.compile(r"\[\s*(-?[0-9]{1,18})\s*\]")
_SLICE = re.compile(r"\[(?!\d+-\d+\])[\d\s:,.+-]*\]")  # and not a range of numbers
_CLASS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_MOST_COMPARED = 2_000  # names, for a hint


class Pick(NamedTuple):
    """A chosen parameter, or a slice of it: `view` looks at the elements that were picked."""

    param: Param
    view: Param
    slice: str  # as it was written, without the brackets; "" for the whole


class Selection(NamedTuple):
    """What was chosen and what was not, both in the checkpoint's order: `chosen ∪ rest == all`."""

    expression: str
    chosen: tuple[Param, ...]
    rest: tuple[Param, ...]
    picks: tuple[Pick, ...]
    named: frozenset[str] = frozenset()  # chosen by its own name, not by a pattern or a module
    pattern: frozenset[str] = frozenset()  # chosen by a pattern that is about parameters, as `*.bias`


class Filters(NamedTuple):
    """What narrows a selection: each empty, or a choice of which one must hold."""

    layers: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()


class _Match(NamedTuple):
    names: tuple[str, ...]
    how: str  # "name", "pattern", "module"
    items: tuple[Item, ...] = ()
    slice: str = ""


def select(checkpoint: Checkpoint, patterns: Sequence[str] = (), filters: Filters | None = None) -> Selection:
    """Choose by patterns, of which one must match and no `!` one may, and by filters.

    Raises:
        SelectError: a malformed pattern, a name that is not there, or nothing chosen.
    """
    filters = filters or Filters()
    if not checkpoint.params:
        hint = "info shows what it holds" if checkpoint.extras or checkpoint.metadata else ""
        made = checkpoint.extras.get("class")  # of what was saved, where that is no dict
        is_class = isinstance(made, str) and _CLASS.fullmatch(made)
        what = f"no tensors in it, but one {shortened(str(made))}" if is_class else "no tensors in it"
        raise FileError(checkpoint.source.name, what, hint=hint)
    negative = [pattern for pattern in patterns if _is_negative(checkpoint, pattern)]
    matches = [resolve(checkpoint, pattern) for pattern in patterns if pattern not in negative]
    wanted = {name for match in matches for name in match.names} if matches else set(checkpoint.params)
    for pattern in negative:
        wanted.difference_update(_whole(checkpoint, pattern[1:], pattern))
    for keep in _filters(checkpoint, filters):
        wanted = {name for name in wanted if keep(checkpoint.params[name])}
    if not wanted:
        raise SelectError(f"{shortened(checkpoint.source.name)}: {_nothing(patterns, filters)}", hint=_some(checkpoint))
    everything = tuple(checkpoint.params.values())
    is_all = len(wanted) == len(everything)
    chosen = everything if is_all else tuple(param for param in everything if param.name in wanted)
    return Selection(
        " ".join(patterns),
        chosen,
        () if is_all else tuple(param for param in everything if param.name not in wanted),
        tuple(_picks(chosen, matches)),
        frozenset(n for m in matches if m.how == "name" for n in m.names if n in wanted),
        frozenset(n for m in matches if m.how == "pattern" for n in m.names if n in wanted),
    )


def narrowed(checkpoint: Checkpoint, selection: Selection, names: Collection[str]) -> Selection:
    """Of the selection only these names; there may be none."""
    kept = {param.name for param in selection.chosen}.intersection(names)
    everything = checkpoint.params.values()
    return selection._replace(
        chosen=tuple(param for param in everything if param.name in kept),
        rest=tuple(param for param in everything if param.name not in kept),
        picks=tuple(pick for pick in selection.picks if pick.param.name in kept),
        named=selection.named & kept,
        pattern=selection.pattern & kept,
    )


def _picks(chosen: tuple[Param, ...], matches: list[_Match]) -> Iterator[Pick]:
    if not any(match.slice for match in matches):
        for param in chosen:
            yield Pick(param, param, "")
        return
    written: dict[str, dict[str, tuple[Item, ...]]] = {}
    for match in matches:
        for name in match.names:
            written.setdefault(name, {}).setdefault(match.slice, match.items)
    for param in chosen:
        for text, items in written[param.name].items():
            yield Pick(param, sliced(param, items, text) if text else param, text)


def _is_negative(checkpoint: Checkpoint, pattern: str) -> bool:
    return pattern.startswith("!") and _literal(checkpoint, pattern) is None


def _whole(checkpoint: Checkpoint, pattern: str, said: str) -> tuple[str, ...]:
    """The names of a pattern that may have no slice: one cannot leave out a part of a parameter, nor a layer's."""
    match = resolve(checkpoint, pattern)
    if match.slice:
        raise SelectError(f"{shortened(said)}: a slice is of what is chosen, and not of this")
    return match.names


def _nothing(patterns: Sequence[str], filters: Filters) -> str:
    asked = [*patterns]
    for flag, values in (
        ("--layer", filters.layers),
        ("--type", filters.types),
        ("--dtype", filters.dtypes),
        ("--kind", filters.kinds),
    ):
        asked += [f"{flag} {value}" for value in values]
    return f"nothing is selected by {shortened(' '.join(asked), 200)}" if asked else "nothing is selected"


def _some(checkpoint: Checkpoint) -> str:
    names = [shortened(name, 60) for name in list(checkpoint.params)[:3]]
    return f"it has {', '.join(names)}{' …' if len(checkpoint.params) > 3 else ''}"


def _filters(checkpoint: Checkpoint, filters: Filters) -> Iterator[Callable[[Param], bool]]:
    if filters.layers:
        below = {name for layer in filters.layers for name in _whole(checkpoint, layer, f"--layer {layer}")}
        yield lambda param: param.name in below
    if filters.types:
        if not checkpoint.knows_types:
            raise SelectError(
                f"{shortened(checkpoint.source.name)}: --type, and this {checkpoint.format} file knows no classes",
                hint="whole pickled modules and Python definitions do; --layer and patterns work on any file",
            )
        owned = {name for wanted in filters.types for name in _of_type(checkpoint, wanted)}
        yield lambda param: param.name in owned
    if filters.dtypes:
        for wanted in filters.dtypes:
            if wanted not in DTYPES:
                close = nearest(wanted, list(DTYPES))
                raise SelectError(
                    f"--dtype {shortened(wanted)}: no such dtype", hint=_or(close) or "as torch names them: float32"
                )
        yield lambda param: param.dtype.name in filters.dtypes
    if filters.kinds:
        for wanted in filters.kinds:
            if wanted not in ("parameter", "buffer", "tensor"):
                raise SelectError(f"--kind {shortened(wanted)}: no such kind", hint="parameter, buffer or tensor")
        yield lambda param: param.kind in filters.kinds


# ----------------------------------------------------------------------------- one pattern


def resolve(checkpoint: Checkpoint, pattern: str) -> _Match:
    """What one pattern, without its `!`, stands for.

    Raises:
        SelectError: malformed, or of something that is not there.
    """
    if not pattern:
        raise SelectError("an empty pattern chooses nothing", hint=_some(checkpoint))
    found = _literal(checkpoint, pattern)
    if found is not None:
        return found
    if pattern in checkpoint.modules:
        kind = checkpoint.modules[pattern].type or "module"
        raise SelectError(f"{shortened(checkpoint.source.name)}: {shortened(pattern)} is a {kind} without parameters")
    if pattern.startswith("re:"):
        return _Match(_regex(checkpoint.params, pattern), "pattern")
    if _POSITION.match(pattern):
        return _position(checkpoint, pattern)
    bracket = pattern.rfind("[") if pattern.endswith("]") else -1
    if bracket > 0:
        base = _literal(checkpoint, pattern[:bracket])
        if base is None and _SLICE.fullmatch(pattern, bracket) and is_wildcard(pattern[:bracket]):
            base = _wildcard(checkpoint, pattern[:bracket])
        if base is not None and base.names:
            return base._replace(items=parse_slice(pattern, bracket), slice=pattern[bracket + 1 : -1].strip())
    if is_wildcard(pattern):
        match = _wildcard(checkpoint, pattern)
        if match.names or bracket < 0 or is_wildcard(pattern[:bracket]) or not _SLICE.fullmatch(pattern, bracket):
            return match
        raise _unknown(checkpoint, pattern[:bracket])
    raise _unknown(checkpoint, pattern)


def _literal(checkpoint: Checkpoint, text: str) -> _Match | None:
    """The parameter of that name, else the module; the text as it is, or with escapes as tables show them."""
    spellings = (text, unescaped(text)) if "\\" in text else (text,)
    for name in spellings:
        if name in checkpoint.params:
            return _Match((name,), "name")
    for name in spellings:
        below = _below(checkpoint, name)
        if below:
            return _Match(below, "module")
    return None


def _below(checkpoint: Checkpoint, path: str) -> tuple[str, ...]:
    prefix = path + "."
    return tuple(name for name in checkpoint.params if name.startswith(prefix)) if path else ()


def _unknown(checkpoint: Checkpoint, pattern: str) -> SelectError:
    close = nearest(pattern, _candidates(checkpoint, pattern))
    return SelectError(
        f"{shortened(checkpoint.source.name)}: no parameter and no module {shortened(pattern)}",
        hint=f"nearest: {', '.join(shortened(name) for name in close)}" if close else _some(checkpoint),
    )


def _candidates(checkpoint: Checkpoint, pattern: str) -> list[str]:
    """Modules and names to compare with a word that is neither: of very many, those that begin or end as it does."""
    everything = [*branches(checkpoint.params), *checkpoint.params]
    if len(everything) <= _MOST_COMPARED:
        return everything
    first, _, _ = pattern.partition(".")
    _, _, last = pattern.rpartition(".")
    likely = [name for name in everything if name.startswith(first + ".") or name.endswith("." + last)]
    alike = [name for name in likely if abs(len(name) - len(pattern)) <= 2]
    return [*alike, *likely, *everything][:_MOST_COMPARED]


def _or(words: Sequence[str]) -> str:
    return f"{' or '.join(words)}?" if words else ""


def _regex(names: Iterable[str], pattern: str) -> tuple[str, ...]:
    try:
        compiled = re.compile(pattern[3:])
    except re.error as error:
        at = 3 + (error.pos or 0)
        what = f"the regular expression is wrong here: {shortened(error.msg)}"
        raise SelectError(what, pointer=caret(pattern, at)) from None
    except (OverflowError, RecursionError) as error:
        raise SelectError(f"the regular expression is too large: {error}", pointer=caret(pattern, 3)) from None
    return tuple(name for name in names if compiled.search(name))


def _wildcard(checkpoint: Checkpoint, pattern: str) -> _Match:
    """The parameters that a wildcard fits, else what is below the modules that it fits."""
    found = matching(pattern, checkpoint.params)
    if found:
        return _Match(tuple(found), "pattern")
    modules = set(matching(pattern, branches(checkpoint.params)))
    return _Match(tuple(name for name in checkpoint.params if not modules.isdisjoint(_ancestors(name))), "module")


def _of_type(checkpoint: Checkpoint, wanted: str) -> Iterator[str]:
    """The parameters of the modules of a type, named as `Linear` or in full, and of all below them."""
    modules = checkpoint.modules.values()
    paths = {module.path for module in modules if wanted in (module.type, module.qualified)}
    if not paths:
        types = sorted({module.type for module in modules if module.type})
        close = nearest(wanted, types)
        raise SelectError(
            f"{shortened(checkpoint.source.name)}: no module of type {shortened(wanted)}",
            hint=_or(close) or f"its types are {', '.join(shortened(name, 40) for name in types[:8])}",
        )
    return (name for name in checkpoint.params if "" in paths or not paths.isdisjoint(_ancestors(name)))


def _ancestors(name: str) -> Iterator[str]:
    at = name.find(".")
    while at >= 0:
        yield name[:at]
        at = name.find(".", at + 1)


# ----------------------------------------------------------------------------- by position


def _position(checkpoint: Checkpoint, pattern: str) -> _Match:
    children = _children(checkpoint)
    path, end = "", 0
    while (step := _POSITION.match(pattern, end)) and path not in checkpoint.params:
        path = _child(checkpoint, children, path, int(step[1]), caret(pattern, end + 1))
        end = step.end()
    rest = pattern[end:]
    if not is_wildcard(rest) and not rest.startswith(".re:"):
        return resolve(checkpoint, path + rest)
    if path in checkpoint.params and rest.startswith("["):
        return _Match((path,), "name", parse_slice(pattern, end), rest[1:-1].strip())
    if not rest.startswith("."):
        raise SelectError("this is neither a position nor a name below one", pointer=caret(pattern, end))
    if path + rest in checkpoint.params:
        return _Match((path + rest,), "name")
    if not _below(checkpoint, path):
        return resolve(checkpoint, path)
    match = resolve(at(checkpoint, path), rest[1:])
    return match._replace(names=tuple(f"{path}.{name}" for name in match.names))


def _children(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """The children of each module, in order: where the file does not name its modules, those that hold something."""
    found: dict[str, dict[str, None]] = {}
    for path in (*checkpoint.modules, *branches(checkpoint.params)):
        if path:
            parent, _, last = path.rpartition(".")
            found.setdefault(parent, {})[last] = None
    return {parent: list(names) for parent, names in found.items()}


def _child(checkpoint: Checkpoint, children: dict[str, list[str]], path: str, index: int, pointer: str) -> str:
    """The path of a child: the one called `index` where they are numbered, else the one at that place."""
    below = children.get(path, [])
    prefix = f"{path}." if path else ""
    if str(index) in below or f"{prefix}{index}" in checkpoint.params:
        return f"{prefix}{index}"
    if -len(below) <= index < len(below) and (index < 0 or not all(map(str.isdecimal, below))):
        return prefix + below[index]
    where = shortened(path) or "the model"
    said = (
        f"children {', '.join(below)}"
        if below and len(below) < 9 and all(map(str.isdecimal, below))
        else (f"{len(below):,} children" if below else "no children")
    )
    raise SelectError(f"{where} has {said}, and no [{index}]", pointer=pointer)
