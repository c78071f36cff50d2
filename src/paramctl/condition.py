"""Header tier: the pieces of a parsed condition. `where` has the grammar, `predicate` what they mean for a row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

Scalar = bool | int | float | str


class Word(NamedTuple):
    """A column, or a text without quotes. `at` and `end` are places in the text of the condition, here and below."""

    at: int
    end: int
    text: str


class Constant(NamedTuple):
    """A number, a text, true, false, or a list."""

    at: int
    end: int
    value: Scalar | list[Scalar]


class Item(NamedTuple):
    """`shape[0]`; a negative index counts from the end."""

    at: int
    end: int
    operand: Word
    place: int


class Apply(NamedTuple):
    """One of `not`, `-`, `abs` and `len`, of an operand."""

    at: int
    end: int
    function: str
    operand: Node


class Chain(NamedTuple):
    """Operands with operators of one power between them: `a or b or c`, `0 < std < 1`, `a - b + c`."""

    at: int
    end: int
    operands: tuple[Node, ...]
    operators: tuple[str, ...]


class Among(NamedTuple):
    """`value in (a, b)`."""

    at: int
    end: int
    operand: Node
    choices: tuple[Node, ...]
    negated: bool


class Search(NamedTuple):
    """`value ~ pattern`."""

    at: int
    end: int
    operand: Node
    pattern: re.Pattern[str]
    negated: bool


class State(NamedTuple):
    """`value is null`."""

    at: int
    end: int
    operand: Node
    state: str
    negated: bool


Node = Word | Constant | Item | Apply | Chain | Among | Search | State


class Where(NamedTuple):
    """A condition as it was written, and parsed. No column has been looked up."""

    text: str
    condition: Node


def words(node: Node) -> Iterator[str]:
    """What may be a column in it."""
    match node:
        case Word():
            yield node.text
        case Chain():
            for operand in node.operands:
                yield from words(operand)
        case Among():
            for operand in (node.operand, *node.choices):
                yield from words(operand)
        case Item() | Apply() | Search() | State():
            yield from words(node.operand)
