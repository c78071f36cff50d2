"""Header tier: how a checkpoint nests its tensors, and what in it is no tensor, as values.

What a reader tells in `extras` is for the eye; here are the values themselves, for a format that can hold them. They
are plain: None, numbers, text, bytes, and lists, tuples, sets and dicts of those. An object of a class of its own is
none: whoever loads it runs the code of that class, and `torch.load` refuses it.

A dict is gone into, and a list that holds tensors or dicts; any other list is one value, as in `flatten_state_dict`.

Source: torch/distributed/checkpoint/_traverse.py (`traverse_state_dict`), torch/_weights_only_unpickler.py
(`_get_allowed_globals`).
"""

from __future__ import annotations

import importlib
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from paramctl.checkpoint import Checkpoint
from paramctl.formats import objects
from paramctl.formats.notes import Device, Dict, InTuple, Key, Name, Set, StandIn, TensorNote
from paramctl.outline import MERGED
from paramctl.source import Reader, Source

TREES = {"torch-zip": "paramctl.formats.torch_zip", "torch-legacy": "paramctl.formats.torch_legacy"}  # `tree(reader)`
DCP = "paramctl.formats.dcp"
_PLAIN = frozenset((type(None), bool, int, float, complex, str, bytes, Device))
_NO = object()


Path = tuple[Any, ...]  # keys of dicts, as text or a `Key`; whole numbers are positions in lists and, `InTuple`, tuples


class Nesting(NamedTuple):
    """`alien`: the names of what is no tensor, and not plain either."""

    paths: dict[str, Path]  # of the tensors, by their names
    extras: dict[Path, Any]
    alien: list[str]


def of(checkpoint: Checkpoint) -> Nesting | None:
    """How a checkpoint is nested, with the names that it gives to its tensors; None of a format that is flat.

    Raises:
        FileError: its file cannot be read any more.
    """
    if checkpoint.format == MERGED:
        return _merged([(part, of(part)) for part in checkpoint.parts])
    walk = _Walk(f"{checkpoint.root}.{name}" if checkpoint.root else name for name in checkpoint.params)
    if checkpoint.format == "dcp":
        for name, path, value in importlib.import_module(DCP).entries(checkpoint.source):
            walk.entry(name, path, value)
    elif checkpoint.format in TREES and checkpoint.source.kind == "file":
        walk.root(_tree(checkpoint.source, TREES[checkpoint.format]))
    else:
        return None
    found = walk.nesting()
    return _below(found, checkpoint.root) if checkpoint.root else found


def _tree(source: Source, module: str) -> Any:
    with Reader(source) as reader:
        return importlib.import_module(module).tree(reader)


def dotted(path: Path) -> str:
    """What a path is called."""
    return ".".join(map(str, path))


# ----------------------------------------------------------------------------- the tree


class _Walk:
    """What was found so far. The reader went over all of it before, so it is known to end."""

    def __init__(self, names: Iterator[str]) -> None:
        self.names = sorted(names)
        self.paths: dict[str, Path] = {}
        self.extras: dict[Path, Any] = {}
        self.alien: list[str] = []
        self.open: set[int] = set()

    def nesting(self) -> Nesting:
        """With tensors that have no place of their own at the top."""
        paths = {name: self.paths.get(name, (name,)) for name in self.names}
        return Nesting(paths, self.extras, self.alien)

    def root(self, tree: Any) -> None:
        if type(tree) in (list, tuple):
            for i, item in enumerate(tree):
                self.visit(item, (str(i),), str(i))
        elif isinstance(tree, dict):
            self.visit(tree, (), "")
        elif isinstance(tree, StandIn):
            self.inside(tree, (), "")

    def entry(self, name: str, path: Path, value: Any) -> None:
        """An entry of a folder."""
        is_known = type(value) is not TensorNote or self.has(name)
        if type(value) is object or not is_known:  # it is not read
            self.alien.append(name)
        else:
            self.visit(value, path, name)

    def visit(self, given: Any, path: Path, name: str) -> None:
        value = objects.noted(given)
        if type(value) is TensorNote:
            if self.has(name):
                self.paths.setdefault(name, path)
            if isinstance(value.state, StandIn):
                self.alien.append(name)  # how a quantized tensor is read
        elif isinstance(value, (dict, list, tuple)) and self.is_branch(value):
            if id(value) in self.open or len(path) > objects.DEEPEST:
                self.alien.append(name)
                return
            self.open.add(id(value))
            for step, item in _items(value):
                text = str(step)
                self.visit(item, (*path, step), f"{name}.{text}" if path else text)
            self.open.discard(id(value))
        else:
            self.leaf(given, path, name)

    def leaf(self, value: Any, path: Path, name: str) -> None:
        found = plain(value)
        if found is not _NO and path not in self.extras:
            self.extras[path] = found
        elif not (isinstance(value, StandIn) and self.inside(value, path, name)):
            self.alien.append(name)

    def inside(self, value: Any, path: Path, name: str) -> bool:
        """Give places to the tensors in an object; whether it is a module, of whose class others tell."""
        prefix = f"{name}." if name else ""
        at = bisect_left(self.names, prefix)
        while at < len(self.names) and self.names[at].startswith(prefix):
            self.paths.setdefault(self.names[at], (*path, self.names[at][len(prefix) :]))
            at += 1
        return objects.is_module(value)

    def has(self, name: str) -> bool:
        at = bisect_left(self.names, name)
        return at < len(self.names) and self.names[at] == name

    def is_branch(self, value: Any) -> bool:
        """Whether it is gone into: a dict with something in it, or a list with tensors or dicts."""
        if isinstance(value, dict):
            return bool(value)
        return type(value) is not Set and _has(value, lambda item: type(objects.noted(item)) is TensorNote or (
            isinstance(item, dict) and isinstance(value, list)
        ))  # fmt: skip


def _has(value: Any, wanted: Callable[[Any], bool], depth: int = 0) -> bool:
    """Whether a list has such an item, or lists in it have."""
    if depth > objects.DEEPEST:
        return False
    return any(wanted(item) or (isinstance(item, (list, tuple)) and _has(item, wanted, depth + 1)) for item in value)


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if not isinstance(value, dict):
        yield from ((InTuple(i) if type(value) is tuple else i, item) for i, item in enumerate(value))
        return
    for name, item, key in objects.named(value):
        made = key if type(key) is str else plain(key)
        yield (name if made is _NO else key if type(key) is str else Key(made, name)), item


# ----------------------------------------------------------------------------- values


def plain(value: Any, depth: int = 0) -> Any:
    """The value as one of Python's own, with no class of anybody's in it; `_NO` where it is none."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is Name:
        return value if value.dtype is not None and not value.is_storage else _NO
    if isinstance(value, StandIn):
        return _called(value)
    if depth > objects.DEEPEST or not (kind in (list, tuple, Set, dict) or isinstance(value, Dict)):
        return _NO
    if isinstance(value, dict):
        pairs = [(plain(key, depth + 1), plain(item, depth + 1)) for key, item in value.items()]
        return _NO if any(_NO in pair for pair in pairs) else dict(pairs)
    made = [plain(item, depth + 1) for item in value]
    return _NO if any(item is _NO for item in made) else tuple(made) if kind is tuple else kind(made)


def is_plain(value: Any) -> bool:
    return plain(value) is not _NO


def _called(value: StandIn) -> Any:
    """A complex number, a bytearray and no bytes, which are pickled as calls of their classes."""
    qualified, args = type(value).qualified.replace("__builtin__", "builtins"), value.args
    if value.state is not None or value.items or value.elements or value.kwargs:
        return _NO
    if qualified == "builtins.complex" and len(args) == 2 and all(type(part) is float for part in args):
        return complex(*args)
    if qualified == "builtins.bytes" and not args:
        return b""
    if qualified == "builtins.bytearray" and len(args) < 2 and all(type(part) is bytes for part in args):
        return bytearray(*args)
    return _NO


# ----------------------------------------------------------------------------- parts, and several


def _below(found: Nesting, root: str) -> Nesting:
    """What is below a path, with names as they are there."""
    cut = len(root) + 1
    paths = {name[cut:]: _rest(path, root) or (name[cut:],) for name, path in found.paths.items()}
    extras = {rest: value for path, value in found.extras.items() if (rest := _rest(path, root))}
    return Nesting(paths, extras, [name[cut:] for name in found.alien if name.startswith(f"{root}.")])


def _rest(path: Path, root: str) -> Path:
    """A path from `root` on; () of one that does not lead there."""
    left = root
    for at, step in enumerate(path):
        text = str(step)
        if text == left:
            rest = path[at + 1 :]
            return (str(rest[0]), *rest[1:]) if rest and isinstance(rest[0], int) else rest
        if left.startswith(f"{text}."):
            left = left[len(text) + 1 :]
        elif type(step) is str and text.startswith(f"{left}."):
            return (text[len(left) + 1 :], *path[at + 1 :])
        else:
            return ()
    return ()


def _merged(parts: Collection[tuple[Checkpoint, Nesting | None]]) -> Nesting | None:
    """Several as one, of which a later one wins. Tensors of a flat one go where those of the others are."""
    nested = [found for _, found in parts if found is not None]
    if not nested:
        return None
    made = Nesting({}, {}, [])
    for one in nested:
        made.paths.update(one.paths)
        made.extras.update(one.extras)
        made.alien.extend(one.alien)
    inner = branches(made.paths.values())
    for checkpoint, found in parts:
        if found is None:
            made.paths.update({n: placed(n, inner) for n in checkpoint.params if n not in made.paths})
    return made


def branches(paths: Iterable[Path]) -> dict[str, Path]:
    """What is around tensors, by its name."""
    return {dotted(path[:at]): path[:at] for path in paths for at in range(1, len(path))}


def placed(name: str, inner: Mapping[str, Path]) -> Path:
    """The path of a new name: in the innermost branch that the name leads into."""
    at = len(name)
    while (at := name.rfind(".", 0, at)) > 0:
        branch = inner.get(name[:at])
        if branch is not None and name[at + 1 :]:
            return (*branch, name[at + 1 :])
    return (name,)
