"""Header tier: rules that give parts of a model their schemes or values, from `--rule` and from a TOML file.

seed = 0                          # optional; --seed wins

[[rule]]
scheme = "normal"                 # for `init`; for `set` it is `set = "*= 0.5"`
arguments = {std = 0.02}          # or in the scheme: "normal(std=0.02)"
select = "*.weight"               # or a list; with layer and type as on the command line
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from paramctl import calls
from paramctl.errors import FileError, ParamctlError, caret, shortened
from paramctl.select import Filters

Verb = Literal["scheme", "set"]
_WHERE = ("select", "layer", "type")
_KEYS: dict[Verb, tuple[str, ...]] = {"scheme": ("scheme", "arguments", *_WHERE), "set": ("set", *_WHERE)}


@dataclass(frozen=True, slots=True)
class Rule:
    """`scheme`, or for `set` an operator and a value, for what the patterns and filters choose.

    `said` is how the user wrote it, for messages.
    """

    scheme: str
    patterns: tuple[str, ...]
    filters: Filters
    said: str
    is_of_file: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """Ordered rules, of which a later one wins, and perhaps a seed."""

    rules: tuple[Rule, ...]
    seed: int | None = None


@contextlib.contextmanager
def named(rule: Rule) -> Iterator[None]:
    """Errors within say which rule of which file they are about; one of the command line is seen there."""
    try:
        yield
    except ParamctlError as error:
        if rule.is_of_file and not error.what.startswith(rule.said):
            error.what = f"{rule.said}: {error.what}"
        raise


def rule(text: str) -> Rule:
    """`SELECT=SCHEME`. The last "=" outside of brackets and before a scheme splits it.

    Raises:
        ParamctlError: no "=", or nothing on one side of it.
    """
    depth, split = 0, -1
    for at, char in enumerate(text):
        depth += (char in "([") - (char in ")]")
        if char == "=" and depth == 0:
            split = at
    pattern, scheme = text[:split].strip(), text[split + 1 :].strip()
    if split < 0 or not pattern or not scheme:
        raise ParamctlError("--rule: not of the form SELECT=SCHEME", pointer=caret(text, max(split, 0)))
    return Rule(scheme, (pattern,), Filters(), f"--rule {text}")


def read(path: str, *, verb: Verb = "scheme") -> Recipe:
    """The rules of a recipe file, each a `scheme`, or each a `set`.

    Raises:
        FileError: no such file, not TOML, or keys that are not known.
    """
    import tomllib  # noqa: PLC0415 - 6 ms that only a recipe pays

    try:
        table = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise FileError(path, (error.strerror or str(error)).lower()) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FileError(path, f"not TOML: {shortened(str(error))}") from error
    unknown = set(table) - {"seed", "rule"}
    if unknown:
        raise FileError(path, f"unknown key {shortened(min(unknown))}", hint="a recipe has seed and [[rule]]")
    seed, rules = table.get("seed"), table.get("rule", [])
    if seed is not None and type(seed) is not int:
        raise FileError(path, "seed is no whole number")
    if not isinstance(rules, list) or not rules:
        raise FileError(path, "there is no [[rule]] in it")
    return Recipe(tuple(_rule(path, index + 1, entry, verb) for index, entry in enumerate(rules)), seed)


def _rule(path: str, number: int, entry: Any, verb: Verb) -> Rule:
    if not isinstance(entry, dict):
        raise FileError(path, f"rule {number} is no table")
    keys = _KEYS[verb]
    unknown = [key for key in entry if key not in keys]
    if unknown:
        raise FileError(path, f"rule {number}: unknown key {shortened(unknown[0])}", hint=f"it has {', '.join(keys)}")
    what = entry.get(verb)
    if not isinstance(what, str):
        raise FileError(path, f"rule {number} has no {verb}")
    arguments = entry.get("arguments", {})
    if not isinstance(arguments, dict):
        raise FileError(path, f"rule {number}: arguments is no table", hint="arguments = {std = 0.02}")
    if arguments and "(" in what:
        raise FileError(path, f"rule {number} has arguments in its scheme, and beside it", hint="give them once")
    lists = {}
    for key in _WHERE:
        value = entry.get(key, [])
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise FileError(path, f"rule {number}: {key} is text, or a list of texts")
        lists[key] = tuple(value)
    filters = Filters(layers=lists["layer"], types=lists["type"])
    return Rule(calls.written(what, arguments), lists["select"], filters, f"{path}: rule {number}", is_of_file=True)
