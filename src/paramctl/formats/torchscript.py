"""Header tier: TorchScript archives, the zip that `torch.jit.save` writes since torch 1.4.

`ROOT/data.pkl` pickles the module tree, each object a class of `ROOT/code/`, whose sources say which of its tensors
are parameters and which are buffers; they are read as text, and never run. `ROOT/constants.pkl` is the tuple that the
code calls `CONSTANTS.c0`, `CONSTANTS.c1` and so on. The storages of the one are `ROOT/data/KEY`, those of the other
`ROOT/constants/KEY`, so the same key names two.

Source: torch/csrc/jit/serialization/export_module.cpp (`ScriptModuleSerializer`), import.cpp
(`ScriptModuleDeserializer`), import_source.cpp (`importClass`), python_print.cpp (what the sources look like),
import_export_helpers.cpp (`qualifierToArchivePath`); torch/csrc/jit/frontend/name_mangler.cpp.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from paramctl.checkpoint import Checkpoint, Storage
from paramctl.errors import FileError, shortened
from paramctl.formats import objects, torch_zip, unpickle
from paramctl.formats.notes import Allowance, StandIn, StorageNote, TensorNote, stand_in
from paramctl.formats.zip_directory import Member, contents, directory
from paramctl.source import Reader

NAME = "torchscript"

_MOST_SOURCE_NBYTES = 1 << 25
_MOST_DECLARED = 1_000_000  # classes and names in all sources
_MOST_LITERAL = 200  # characters of a hyperparameter
_SPACE = "__torch__."
_BESIDE = {
    "bytecode.pkl": "the code for torch's mobile interpreter",
    "mobile_debug_handles.pkl": "where that code comes from",
    "traced_inputs.pkl": "the inputs that it was traced with",
}
_MANGLED = re.compile(r"___torch_mangle_\d+\.")
_CLASS = re.compile(rb"^class (\w+)\((\w*)\):\n((?:  (?!def ).*(?:\n|\Z)|\n)*)", re.MULTILINE)
_LISTS = re.compile(rb"^  __(parameters|buffers)__ = \[(.*)\]$", re.MULTILINE)
_FINAL = re.compile(rb"^  (\w+) : Final\[[^=\n]*\] = (.+)$", re.MULTILINE)


class _Declared(NamedTuple):
    """What a class's source says of it."""

    is_module: bool
    parameters: frozenset[str]
    buffers: frozenset[str]
    finals: Mapping[str, Any]


_NONE: frozenset[str] = frozenset()
_UNDECLARED = _Declared(True, _NONE, _NONE, {})


def sniff(reader: Reader) -> bool:
    """Whether it is a zip of a scripted or traced module, or of what came before that format.

    Raises:
        FileError: an archive of torch 1.0 to 1.3.
    """
    if not reader.head.startswith(b"PK\x03\x04"):
        return False
    members = directory(reader)
    if _root(members) is not None:
        return True
    old = _old_root(members)
    if old is not None:
        raise FileError(
            reader.name,
            f"a TorchScript archive of before torch 1.4 ({shortened(old)}model.json), which is not read",
            hint="torch.jit.load it and torch.jit.save it again with a newer torch",
        )
    return False


def _root(members: Mapping[str, Member]) -> str | None:
    """The folder of data.pkl, if constants.pkl stands beside it."""
    roots = [name[: -len("constants.pkl")] for name in members if name.endswith("constants.pkl")]
    found = [root for root in roots if f"{root}data.pkl" in members and (not root or root.endswith("/"))]
    return min(found, key=len) if found else None


def _old_root(members: Mapping[str, Member]) -> str | None:
    for name in members:
        root = name[: -len("model.json")]
        if name.endswith("model.json") and root.count("/") == (1 if root else 0) and f"{root}data.pkl" not in members:
            inside = (f"{root}code/", f"{root}tensors/", f"{root}attributes.pkl")
            if any(other.startswith(inside) for other in members):
                return root
    return None


def read(reader: Reader) -> Checkpoint:
    """The modules, parameters, buffers, tensor attributes and constants of a TorchScript archive.

    Raises:
        FileError: it is damaged, or was made to mislead.
    """
    members = directory(reader)
    root = _root(members) or ""
    sources = _Sources(reader, members, f"{root}code/")
    tree = _unpickled(reader, members[f"{root}data.pkl"], sources)
    constants = _unpickled(reader, members[f"{root}constants.pkl"], sources)
    if type(constants) in (tuple, list):
        constants = {f"c{i}": _unless_empty(item) for i, item in enumerate(constants)}
    found = _named(reader, members, f"{root}data", tree)
    more = _named(reader, members, f"{root}constants", {"CONSTANTS": constants} if constants else {})
    params = dict(found.params)
    for said, param in more.params.items():
        name = said
        while name in params:
            name += "'"
        params[name] = param._replace(name=name)
    extras = dict(found.extras) | dict(more.extras) | _extras(members, root)
    return replace(found, params=params, metadata=_metadata(reader, members, root), extras=extras)


def unmangled(qualified: str) -> str:
    """The class of Python that a class of TorchScript was made of.

    >>> unmangled("__torch__.torch.nn.modules.linear.___torch_mangle_0.Linear")
    'torch.nn.modules.linear.Linear'
    """
    return _MANGLED.sub("", qualified.removeprefix(_SPACE))


def _unpickled(reader: Reader, member: Member, sources: _Sources) -> Any:
    pickled = contents(reader, member)
    tree = unpickle.load(pickled, reader.name)
    values = list(tree) if type(tree) in (tuple, list) else [tree]
    try:
        _give_modules_their_parts(values, sources, Allowance(1000 + len(pickled)))
    except ValueError as error:
        raise FileError(reader.name, f"the pickle is damaged: {error}") from None
    return tree


def _named(reader: Reader, members: dict[str, Member], pickled: str, tree: Any) -> Checkpoint:
    """The tensors of a pickle without its suffix, whose storages are in the folder of that name."""
    root, _, folder = pickled.rpartition("/")
    order = torch_zip.byteorder(reader, members, f"{root}/" if root else "")
    find = torch_zip.finder(reader, members, f"{pickled}/", order)

    def find_storage(note: StorageNote, name: str) -> Storage:
        return find(note, name)._replace(key=f"{folder}/{note.key}")

    budget = 1_000_000 + 100 * members[f"{pickled}.pkl"].nbytes
    return objects.checkpoint(tree, reader.source, NAME, find_storage, budget=budget)


def _metadata(reader: Reader, members: Mapping[str, Member], root: str) -> dict[str, str]:
    version = members.get(f"{root}version")
    if version is None or version.nbytes > 64:
        return {}
    return {"version": contents(reader, version).decode("utf-8", "replace").strip()}


def _extras(members: Mapping[str, Member], root: str) -> dict[str, Any]:
    """What else is in the archive, by name and size."""
    told: dict[str, Any] = {}
    extra = f"{root}extra/"
    files = {name.removeprefix(extra): _size(m) for name, m in members.items() if name.startswith(extra)}
    files.pop("", None)  # the folder itself, in an archive that was packed anew
    if files:
        told["extra_files"] = files
    for name, what in _BESIDE.items():
        if f"{root}{name}" in members:
            told[name] = f"{what}, {_size(members[root + name])}"
    return told


def _size(member: Member) -> str:
    return f"{member.nbytes:,} bytes"


# ----------------------------------------------------------------------------- sources


class _Sources:
    """The classes of `code/`, each file read when a class of it is asked for."""

    def __init__(self, reader: Reader, members: Mapping[str, Member], folder: str) -> None:
        self._reader = reader
        self._members = members
        self._folder = folder
        self._nbytes_left = _MOST_SOURCE_NBYTES
        self._names_left = _MOST_DECLARED
        self._files: dict[str, dict[str, _Declared]] = {}

    def declared(self, qualified: str) -> _Declared | None:
        """What the source of the class called `__torch__.a.b.Name` says; None where there is none.

        Raises:
            FileError: the sources are larger than any model's.
        """
        module, _, name = qualified.rpartition(".")
        if module not in self._files:
            member = self._members.get(f"{self._folder}{module.replace('.', '/')}.py")
            self._files[module] = self._classes(member) if member is not None else {}
        return self._files[module].get(name)

    def _classes(self, member: Member) -> dict[str, _Declared]:
        self._nbytes_left -= member.nbytes
        if self._nbytes_left < 0:
            raise FileError(
                self._reader.name,
                f"its sources take more than {_MOST_SOURCE_NBYTES:,} bytes, with {shortened(member.name)}",
            )
        found: dict[str, _Declared] = {}
        for match in _CLASS.finditer(contents(self._reader, member)):
            name, base, body = match.groups()
            most = self._names_left
            lists = {kind: _names(names, most) for kind, names in _LISTS.findall(body)}
            finals = {final[1].decode(): _literal(final[2]) for final in islice(_FINAL.finditer(body), most)}
            self._names_left -= 1 + len(finals) + sum(map(len, lists.values()))
            if self._names_left < 0:
                raise FileError(self._reader.name, f"its sources declare more than {_MOST_DECLARED:,} names")
            found[name.decode()] = _Declared(
                base == b"Module", lists.get(b"parameters", _NONE), lists.get(b"buffers", _NONE), finals
            )
        return found


def _names(raw: bytes, most: int) -> frozenset[str]:
    """The names of a list `"weight", "bias", `, whose printer escapes nothing; about `most` of them."""
    raw = raw.strip().removesuffix(b",").removeprefix(b'"').removesuffix(b'"')
    return frozenset(name.decode("utf-8", "surrogateescape") for name in raw.split(b'", "', most) if name)


def _literal(raw: bytes) -> Any:
    text = raw.decode("utf-8", "replace")
    if len(text) > _MOST_LITERAL:
        return f"{text[:_MOST_LITERAL]}…"
    try:
        value = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text
    return list(value) if isinstance(value, tuple) else value


# ----------------------------------------------------------------------------- modules


def _give_modules_their_parts(values: list[Any], sources: _Sources, allowance: Allowance) -> None:
    """Turn the state of each module's stand-in into what a pickled `torch.nn.Module` has, and its class name back."""
    known: dict[int, tuple[StandIn, dict[str, Any], _Declared | None]] = {}
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if not isinstance(value, StandIn) or id(value) in known or not type(value).qualified.startswith(_SPACE):
            continue
        attributes = _attributes(value.state, allowance)
        known[id(value)] = (value, attributes, sources.declared(type(value).qualified))
        waiting.extend(attributes.values())
    modules = {
        key
        for key, (_, attributes, declared) in known.items()
        if (declared.is_module if declared else "training" in attributes)
    }
    for key, (value, attributes, declared) in known.items():
        value.__class__ = stand_in(unmangled(type(value).qualified))
        if key in modules:
            value.state = _parts(attributes, declared or _UNDECLARED, modules)
        elif value.state is not None:
            value.state = attributes


def _attributes(state: Any, allowance: Allowance) -> dict[str, Any]:
    """The attributes of an object; by position where its class has a `__getstate__` that gives a tuple."""
    if type(state) in (tuple, list):
        state = {str(i): item for i, item in enumerate(state)}
    if not isinstance(state, dict):
        return {} if state is None else {"state": state}
    allowance.spend(len(state))
    return {key: item for key, item in state.items() if type(key) is str}


def _parts(attributes: dict[str, Any], declared: _Declared, modules: set[int]) -> dict[str, Any]:
    """A module's attributes as `torch.nn.Module` keeps them, each kind in a dict of its own."""
    parameters: dict[str, Any] = {}
    buffers: dict[str, Any] = {}
    children: dict[str, Any] = {}
    rest: dict[str, Any] = dict(declared.finals)
    for name, item in attributes.items():
        if id(item) in modules:
            children[name] = item
        elif type(item) is TensorNote and name in declared.parameters:
            parameters[name] = item
        elif type(item) is TensorNote and name in declared.buffers:
            buffers[name] = item
        else:
            rest[name] = _unless_empty(item)
    return {"_parameters": parameters, "_buffers": buffers, "_modules": children} | rest


def _unless_empty(item: Any) -> Any:
    """An attribute or a constant without elements, as a state that forward will fill, is told and not listed."""
    return "an empty tensor" if type(item) is TensorNote and 0 in item.shape else item
