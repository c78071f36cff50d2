r"""Header tier: `old=>new`, the rules that rename tensors. Each is applied to what the one before it made.

    rule     = "re:" regex "=>" template | old "=>" new
    old      = a name, a module, or a beginning that ends with a dot; "*" stands for any text
    template = as of `re.sub`: "\1", "\g<name>"

`module.=>` takes a beginning away, `=>model.` puts one before every name, `h.*.attn=>layers.*.attention` keeps what the
stars stood for, in order. What follows a module in a name stays. A regular expression replaces what it finds, wherever
it finds it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from paramctl.checkpoint import branches
from paramctl.errors import FileError, SelectError, caret, nearest, shortened

ARROW = "=>"


class Rule(NamedTuple):
    """A rule as it was written, and what it makes of a name."""

    text: str
    apply: Callable[[str], str]
    where: str = ""  # the file and line that it is from


def rule(text: str, *, where: str = "") -> Rule:
    """One rule.

    Raises:
        SelectError: it is malformed; points at it.
    """
    old, arrow, new = text.rpartition(ARROW) if text.startswith("re:") else text.partition(ARROW)
    if not arrow:
        raise SelectError(f"{where}not a renaming: OLD=>NEW", pointer=caret(text, len(text)))
    made = _by_regex(text, old[3:], new) if old.startswith("re:") else _by_beginning(text, old.strip(), new.strip())
    return Rule(text, made, where)


def read(path: str) -> list[Rule]:
    """The rules of a file, one a line; empty lines and those that begin with # are none.

    Raises:
        FileError: it cannot be read.
        SelectError: a rule is malformed.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(path, (getattr(error, "strerror", None) or str(error)).lower()) from error
    rules = enumerate((line.strip() for line in lines), 1)
    return [rule(line, where=f"{shortened(path)}, line {at}: ") for at, line in rules if line and line[0] != "#"]


def names(rules: Sequence[Rule], given: Iterable[str]) -> dict[str, str]:
    """The new name of each name.

    Raises:
        SelectError: a rule that changes nothing, or that makes what is no name.
    """
    old = list(given)
    new = old
    for one in rules:
        try:
            made = [one.apply(name) for name in new]
        except (re.error, IndexError) as error:
            said = shortened(str(error))
            raise SelectError(f"{one.where}{shortened(one.text)}: the template is wrong: {said}") from None
        if made == new:
            raise _unmatched(one, new)
        new = made
    return dict(zip(old, new, strict=True))


def _unmatched(one: Rule, given: Sequence[str]) -> SelectError:
    old = one.text.partition(ARROW)[0].strip().rstrip(".")
    close = [] if one.text.startswith("re:") else nearest(old, [*branches(given[:2000]), *given[:2000]])
    found = f"nearest: {', '.join(map(shortened, close))}" if close else f"there is {shortened(given[0])}"
    return SelectError(f"{one.where}{shortened(one.text)} renames nothing", hint=found)


def _by_regex(text: str, pattern: str, template: str) -> Callable[[str], str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        at = 3 + (error.pos or 0)
        raise SelectError(f"the regular expression is wrong here: {error.msg}", pointer=caret(text, at)) from None
    except (OverflowError, RecursionError) as error:
        raise SelectError(f"the regular expression is too large: {error}", pointer=caret(text, 3)) from None
    return lambda name: compiled.sub(template, name)


def _by_beginning(text: str, old: str, new: str) -> Callable[[str], str]:
    if new.count("*") > old.count("*"):
        at = len(text) - len(text.rpartition("*")[2]) - 1
        raise SelectError("a star that stands for nothing of the old name", pointer=caret(text, at))
    if "*" in old:
        return _by_stars(old, new)

    def apply(name: str) -> str:
        if name == old:
            return new
        if not name.startswith(old) or not (not old or old.endswith(".") or name[len(old)] == "."):
            return name
        return _joined(new, name[len(old) :], old)

    return apply


def _by_stars(old: str, new: str) -> Callable[[str], str]:
    """A star takes as little as it can; what is named ends where a step of the name does."""
    end = r"\Z" if old.endswith("*") else "" if old.endswith(".") else r"(?=\.|\Z)"
    compiled = re.compile("(.*?)".join(map(re.escape, old.split("*"))) + end, re.DOTALL)

    def apply(name: str) -> str:
        match = compiled.match(name)
        if match is None:
            return name
        stars = iter(match.groups())
        made = "".join(next(stars) if piece == "*" else piece for piece in re.split(r"(\*)", new))
        return _joined(made, name[match.end() :], old)

    return apply


def _joined(new: str, rest: str, old: str) -> str:
    """A new beginning and what stays of the name; where a module is taken away its dot goes along."""
    return rest[1:] if not new and not old.endswith(".") and rest.startswith(".") else new + rest
