"""Header tier: `0.weight[0, 0] = 42` and its like, parsed and never evaluated.

assignment = target operator value
operator   = "=" | "+=" | "-=" | "*=" | "/="
target     = a pattern of `select`: a name or a wildcard, perhaps with a slice
value      = number | "True" | "False" | list of values | a parameter's name, perhaps with a slice
"""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from paramctl.checkpoint import Checkpoint
from paramctl.errors import ParamctlError, SelectError, caret, shortened
from paramctl.select import Pick, resolve, select

Operator = Literal["=", "+=", "-=", "*=", "/="]
_OPERATOR = re.compile(r"\s*([+\-*/]?=)\s*")
_SPECIAL = {"inf": math.inf, "+inf": math.inf, "-inf": -math.inf, "nan": math.nan, "True": True, "False": False}


@dataclass(frozen=True, slots=True)
class Assignment:
    """One assignment, its names looked up. `value` is a number, nested lists of them, or a picked parameter."""

    text: str
    picks: tuple[Pick, ...]
    operator: Operator
    value: Any


def has_operator(text: str) -> bool:
    """Whether the text reads as an assignment."""
    return _OPERATOR.search(text) is not None


def begins(text: str) -> bool:
    """Whether the text is an operator and what follows it."""
    return _OPERATOR.match(text) is not None


def parse(checkpoint: Checkpoint, text: str) -> Assignment:
    """One assignment on `checkpoint`. A name may hold an "="; the first reading whose target is there is taken.

    Raises:
        SelectError: no operator, a target that is not there, or a value that is none; points at it.
    """
    found = list(_OPERATOR.finditer(text))
    if not found:
        raise SelectError(
            "no assignment here: TARGET = VALUE, with =, +=, -=, *= or /=", pointer=caret(text, len(text))
        )
    match = next((m for m in found if _is_target(checkpoint, text[: m.start()])), found[0])
    target = text[: match.start()].strip()
    if not target:
        raise SelectError("nothing to assign to", pointer=caret(text, 0))
    chosen = resolve(checkpoint, target)
    if chosen.how == "module" and chosen.names:
        said = shortened(target)
        raise SelectError(f"{said} is a module, and not a parameter", hint=f"write {said}.* to mean all below it")
    picks = select(checkpoint, [target]).picks
    value = _value(checkpoint, text, match.end())
    operator: Any = match[1]
    return Assignment(text, picks, operator, value)


def shape(value: Any) -> tuple[int, ...] | None:
    """The shape of a number or of nested lists; None where lists side by side are not of one length."""
    if not isinstance(value, list):
        return ()
    shapes = {shape(item) for item in value}
    if len(shapes) > 1 or None in shapes:
        return None
    return (len(value), *(shapes.pop() or () if shapes else ()))


def _is_target(checkpoint: Checkpoint, target: str) -> bool:
    name = target.strip()
    return name in checkpoint.params or name.partition("[")[0] in checkpoint.params


def _value(checkpoint: Checkpoint, text: str, at: int) -> Any:
    word = text[at:].strip()
    if not word:
        raise SelectError("a value is missing", pointer=caret(text, len(text)))
    if word in checkpoint.params:
        return _one(checkpoint, word, text, at)
    if word.lower() in ("nan", "inf", "+inf", "-inf"):
        return _SPECIAL[word.lower()]
    try:
        return _literal(ast.parse(word, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    if word[:1] in "[(0123456789+-." and not _is_target(checkpoint, word):
        raise SelectError("this is no number, no list of numbers and no parameter", pointer=caret(text, at))
    return _one(checkpoint, word, text, at)


def _one(checkpoint: Checkpoint, word: str, text: str, at: int) -> Pick:
    try:
        picks = select(checkpoint, [word]).picks
    except ParamctlError as error:
        if error.pointer:
            raise
        raise SelectError(f"no number, and {error.what.partition(': ')[2] or error.what}", hint=error.hint) from None
    if len(picks) != 1:
        raise SelectError(f"a value is one parameter, and this is {len(picks)}", pointer=caret(text, at))
    return picks[0]


def _literal(node: ast.expr) -> Any:
    """Numbers, lists of them, and sums like `1+2j`."""
    match node:
        case ast.List(items) | ast.Tuple(items):
            return [_literal(item) for item in items]
        case ast.Constant(bool() | int() | float() | complex() as number):
            return number
        case ast.Name("inf" | "nan" as word):
            return _SPECIAL[word]
        case ast.UnaryOp(ast.USub() | ast.UAdd() as sign, operand):
            return -_number(operand) if isinstance(sign, ast.USub) else _number(operand)
        case ast.BinOp(left, ast.Add() | ast.Sub() as sign, ast.Constant(complex() as imaginary)):
            return _number(left) + imaginary if isinstance(sign, ast.Add) else _number(left) - imaginary
    raise ValueError


def _number(node: ast.expr) -> Any:
    value = _literal(node)
    if isinstance(value, (list, bool)):
        raise ValueError  # noqa: TRY004 - as for any other text that is no number
    return value
