"""Header tier: which parameters a command is about.

    pattern   = ["!"] ( name | module | "re:" regex | wildcard | position )  [ "[" slice "]" ]
    wildcard  = text with  *  (any text, dots too)  ?  [abc]  [!abc]  [0-31]  (numbers)  {a,b}
    position  = "[" int "]" { "[" int "]" } [ "." pattern ]
    slice     = item { "," item };  item = int | [int] ":" [int] [ ":" [int] ] | "..."

A name that is present wins over every other reading; a module stands for all below it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import EllipsisType
from typing import NamedTuple

from paramctl.checkpoint import Checkpoint, Param, branches
from paramctl.dtypes import DTYPES
from paramctl.errors import FileError, SelectError, caret, nearest, shortened, unescaped

Item = int | slice | EllipsisType


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
        raise FileError(checkpoint.source.name, "no tensors in it")
    positive = [p for p in patterns if not _is_negative(checkpoint, p)]
    matches = [resolve(checkpoint, pattern) for pattern in positive]
    excluded = {n for p in patterns if _is_negative(checkpoint, p) for n in resolve(checkpoint, p[1:]).names}
    wanted = {name for match in matches for name in match.names} if positive else set(checkpoint.params)
    wanted -= excluded
    for keep in _filters(checkpoint, filters):
        wanted = {name for name in wanted if keep(checkpoint.params[name])}
    if not wanted:
        raise SelectError(f"{shortened(checkpoint.source.name)}: {_nothing(patterns, filters)}", hint=_some(checkpoint))
    everything = checkpoint.params.values()
    chosen = tuple(everything) if len(wanted) == len(everything) else tuple(p for p in everything if p.name in wanted)
    return Selection(
        " ".join(patterns),
        chosen,
        tuple(p for p in everything if p.name not in wanted) if len(chosen) < len(everything) else (),
        tuple(_picks(chosen, matches)),
        frozenset(n for m in matches if m.how == "name" for n in m.names if n in wanted),
        frozenset(n for m in matches if m.how == "pattern" for n in m.names if n in wanted),
    )


def _picks(chosen: tuple[Param, ...], matches: list[_Match]) -> Iterator[Pick]:
    if not any(match.slice for match in matches):
        for param in chosen:
            yield Pick(param, param, "")
        return
    for param in chosen:
        written: dict[str, tuple[Item, ...]] = {}
        for match in matches:
            if param.name in match.names:
                written.setdefault(match.slice, match.items)
        for text, items in written.items():
            yield Pick(param, sliced(param, items, text) if text else param, text)


def _is_negative(checkpoint: Checkpoint, pattern: str) -> bool:
    return pattern.startswith("!") and pattern not in checkpoint.params


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
        below = {name for layer in filters.layers for name in layer_names(checkpoint, layer)}
        yield lambda param: param.name in below
    if filters.types:
        if not checkpoint.knows_types:
            raise SelectError(
                f"{shortened(checkpoint.source.name)}: --type, and a {checkpoint.format} file like this knows no classes",
                hint="whole pickled modules and Python definitions do; --layer and patterns work on any file",
            )
        known = {module.type for module in checkpoint.modules.values()}
        for wanted in filters.types:
            if wanted not in known and not any(module.qualified == wanted for module in checkpoint.modules.values()):
                there = ", ".join(shortened(name, 40) for name in sorted(known - {""})[:8])
                raise SelectError(
                    f"{shortened(checkpoint.source.name)}: no module of type {shortened(wanted)}",
                    hint=f"its types are {there}",
                )
        owners = {m.path for m in checkpoint.modules.values() if {m.type, m.qualified} & set(filters.types)}
        yield lambda param: param.name.rpartition(".")[0] in owners
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


def layer_names(checkpoint: Checkpoint, layer: str) -> tuple[str, ...]:
    """The parameters of the module that `--layer` names: its path, a position, or a wildcard over paths."""
    match = resolve(checkpoint, layer)
    if match.slice:
        raise SelectError(f"--layer {shortened(layer)}: a slice goes after a parameter's name")
    return match.names


# ----------------------------------------------------------------------------- one pattern


def resolve(checkpoint: Checkpoint, pattern: str) -> _Match:
    """What one pattern, without its `!`, stands for.

    Raises:
        SelectError: malformed, or of something that is not there.
    """
    params = checkpoint.params
    for name in (pattern, unescaped(pattern)):
        if name in params:
            return _Match((name,), "name")
    for name in (pattern, unescaped(pattern)):
        below = _below(checkpoint, name)
        if below:
            return _Match(below, "module")
    if pattern in checkpoint.modules:
        kind = checkpoint.modules[pattern].type or "module"
        raise SelectError(f"{shortened(checkpoint.source.name)}: {shortened(pattern)} is a {kind} without parameters")
    if pattern.startswith("re:"):
        return _Match(_regex(params, pattern), "pattern")
    if re.match(r"\[\s*-?\d+\s*\]", pattern):
        return _position(checkpoint, pattern)
    bracket = _slice_start(pattern)
    if bracket:
        base = resolve_tensor(checkpoint, pattern, bracket)
        if base is not None:
            return base._replace(items=parse_slice(pattern, bracket), slice=pattern[bracket + 1 : -1].strip())
    if re.search(r"[*?\[{]", pattern):
        return _wildcard(checkpoint, pattern)
    raise _unknown(checkpoint, pattern)


def resolve_tensor(checkpoint: Checkpoint, pattern: str, bracket: int) -> _Match | None:
    """What stands before a slice, or None where the bracket at `bracket` is a wildcard's."""
    base = pattern[:bracket]
    if base in checkpoint.params or unescaped(base) in checkpoint.params or base.startswith(("re:", "[")):
        return resolve(checkpoint, base)
    if not re.fullmatch(r"\[[\d\s:,.+-]*\]", pattern[bracket:]) or re.fullmatch(r"\[\d+-\d+\]", pattern[bracket:]):
        return None
    return resolve(checkpoint, base)


def _below(checkpoint: Checkpoint, path: str) -> tuple[str, ...]:
    prefix = path + "."
    return tuple(name for name in checkpoint.params if name.startswith(prefix)) if path else ()


def _unknown(checkpoint: Checkpoint, pattern: str) -> SelectError:
    close = nearest(pattern, [*checkpoint.params, *branches(list(checkpoint.params)[:20_000])])
    return SelectError(
        f"{shortened(checkpoint.source.name)}: no parameter and no module {shortened(pattern)}",
        hint=f"nearest: {', '.join(shortened(name) for name in close)}" if close else _some(checkpoint),
    )


def _or(words: Iterable[str]) -> str:
    return f"{' or '.join(words)}?" if words else ""


def _regex(names: Iterable[str], pattern: str) -> tuple[str, ...]:
    try:
        compiled = re.compile(pattern[3:])
    except re.error as error:
        at = 3 + (error.pos or 0)
        raise SelectError(f"the regular expression is wrong here: {error.msg}", pointer=caret(pattern, at)) from None
    return tuple(name for name in names if compiled.search(name))


def _wildcard(checkpoint: Checkpoint, pattern: str) -> _Match:
    compiled = re.compile(translated(pattern), re.DOTALL)
    found = tuple(name for name in checkpoint.params if compiled.fullmatch(name))
    if found:
        return _Match(found, "pattern")
    modules = {path for path in branches(checkpoint.params) if compiled.fullmatch(path)}
    if modules:
        below = tuple(name for name in checkpoint.params if any(path in modules for path in _ancestors(name)))
        return _Match(below, "module")
    return _Match((), "pattern")


def _ancestors(name: str) -> Iterator[str]:
    at = name.find(".")
    while at >= 0:
        yield name[:at]
        at = name.find(".", at + 1)


def translated(pattern: str) -> str:
    """A wildcard as a regular expression.

    Raises:
        SelectError: a bracket or brace that is not closed.
    """
    out, at, open_braces = [], 0, []
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            out.append(".*")
        elif char == "?":
            out.append(".")
        elif char == "\\" and at < len(pattern):
            out.append(re.escape(pattern[at]))
            at += 1
        elif char == "[":
            end = pattern.find("]", at + 1)
            if end < 0:
                raise SelectError("the bracket is not closed", pointer=caret(pattern, at - 1))
            out.append(_bracket(pattern[at:end], pattern, at))
            at = end + 1
        elif char == "{":
            open_braces.append(at - 1)
            out.append("(?:")
        elif char == "," and open_braces:
            out.append("|")
        elif char == "}" and open_braces:
            open_braces.pop()
            out.append(")")
        else:
            out.append(re.escape(char))
    if open_braces:
        raise SelectError("the brace is not closed", pointer=caret(pattern, open_braces[-1]))
    return "".join(out)


def _bracket(inside: str, pattern: str, at: int) -> str:
    numbers = re.fullmatch(r"(\d+)-(\d+)", inside)
    if numbers and max(map(len, numbers.groups())) > 1:
        low, high = int(numbers[1]), int(numbers[2])
        if high - low > 100_000:
            raise SelectError("the range of numbers is too long", pointer=caret(pattern, at))
        return "(?:" + "|".join(map(str, range(low, high + 1))) + ")" if low <= high else "(?!)"
    negated = inside.startswith(("!", "^"))
    body = re.sub(r"([\\\]\[^&~|])", r"\\\1", inside[1:] if negated else inside)
    try:
        re.compile(f"[{body}]")
    except re.error:
        raise SelectError("the bracket holds no set of characters", pointer=caret(pattern, at)) from None
    return f"[{'^' if negated else ''}{body}]"


# ----------------------------------------------------------------------------- by position


def _position(checkpoint: Checkpoint, pattern: str) -> _Match:
    children = _children(checkpoint)
    path, at = "", 0
    while step := re.compile(r"\[\s*(-?\d+)\s*\]").match(pattern, at):
        if path in checkpoint.params:
            break  # the rest is a slice
        path = _child(children, path, int(step[1]), pattern, at + 1)
        at = step.end()
    rest = pattern[at:]
    if rest.startswith("."):
        escape = "" if path + rest in checkpoint.params else re.sub(r"([*?\[{\\])", r"\\\1", path)
        special = re.search(r"[*?\[{]", rest)
        return resolve(checkpoint, (escape if special and escape else path) + rest)
    if rest:
        raise SelectError("this is neither a position nor a name below one", pointer=caret(pattern, at))
    return resolve(checkpoint, path)


def _children(checkpoint: Checkpoint) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = {}
    paths = [path for path in checkpoint.modules if path] + branches(checkpoint.params)
    for path in paths:
        parent, _, last = path.rpartition(".")
        found.setdefault(parent, {})[last] = None
    return {parent: list(names) for parent, names in found.items()}


def _child(children: dict[str, list[str]], path: str, index: int, pattern: str, at: int) -> str:
    below = children.get(path, [])
    numbered = str(index) in below
    if not numbered and not -len(below) <= index < len(below):
        where = shortened(path) or "the model"
        raise SelectError(f"{where} has {len(below)} children, and no [{index}]", pointer=caret(pattern, at))
    name = str(index) if numbered else below[index]
    return f"{path}.{name}" if path else name


# ----------------------------------------------------------------------------- slices


def _slice_start(pattern: str) -> int:
    """Where the last bracket opens, if the pattern ends with one; else 0."""
    return max(pattern.rfind("["), 0) if pattern.endswith("]") else 0


def parse_slice(text: str, bracket: int) -> tuple[Item, ...]:
    """The items between `text[bracket]`, a "[", and the final "]".

    Raises:
        SelectError: an item that is neither an integer nor a slice; points at it.
    """
    items: list[Item] = []
    at = bracket + 1
    inside = text[at:-1]
    if not inside.strip():
        raise SelectError("the slice is empty", pointer=caret(text, at))
    for piece in inside.split(","):
        word = piece.strip()
        column = at + len(piece) - len(piece.lstrip())
        at += len(piece) + 1
        if word == "...":
            items.append(...)
            continue
        parts = [part.strip() for part in word.split(":")]
        if len(parts) > 3 or (len(parts) == 1 and not parts[0]):
            raise SelectError("this is neither an index nor a slice", pointer=caret(text, column))
        for part in parts:
            if part and not re.fullmatch(r"[+-]?\d{1,18}", part):
                raise SelectError("an index is a whole number", pointer=caret(text, column))
        numbers = [int(part) if part else None for part in parts]
        if len(parts) == 3 and numbers[2] == 0:
            raise SelectError("a step cannot be 0", pointer=caret(text, column))
        items.append(slice(*numbers) if len(parts) > 1 else int(parts[0]))
    if items.count(...) > 1:
        raise SelectError("a slice has one ... at most", pointer=caret(text, bracket + 1))
    return tuple(items)


def sliced(param: Param, items: tuple[Item, ...], text: str) -> Param:
    """The view of `param` that Python's indexing would give.

    Raises:
        SelectError: more indices than dimensions, or one out of range.
    """
    where = f"{shortened(param.name)}[{text}]"
    given = len(items) - (... in items)
    if given > len(param.shape):
        raise SelectError(f"{where}: {given} indices, and it has {len(param.shape)} dimensions")
    if param.dtype.block_numel > 1:
        raise SelectError(f"{where}: elements of {param.dtype.name} share bytes and cannot be sliced")
    if ... not in items:
        items = (*items, ...)
    middle = items.index(...)
    filled = (*items[:middle], *[slice(None)] * (len(param.shape) - given), *items[middle + 1 :])
    offset, shape, stride = param.storage_offset, [], []
    for axis, (item, size, by) in enumerate(zip(filled, param.shape, param.stride, strict=True)):
        if isinstance(item, int):
            if not -size <= item < size:
                raise SelectError(f"{where}: {item} is out of range, axis {axis} has {size}")
            offset += (item + size if item < 0 else item) * by
        else:
            start, stop, step = item.indices(size)
            count = len(range(start, stop, step))
            offset += start * by if count else 0
            shape.append(count)
            stride.append(step * by)
    return param._replace(shape=tuple(shape), stride=tuple(stride), storage_offset=offset)
