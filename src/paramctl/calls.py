"""Header tier: `NAME(arg=value, …)` as text: parsed and never evaluated, bound to a signature, and written again.

arguments = "(" [ argument { "," argument } ] ")"
argument  = [ word "=" ] ( Python literal | bare word | "inf" | "nan" )
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import warnings
from collections.abc import Mapping, Sequence

from paramctl.errors import InitError, caret, shortened

Arguments = tuple[list[object], dict[str, object]]  # positional, named

_WANTED = "not a number, a string, True, False, None or a tuple"


def arguments(text: str, start: int) -> Arguments:
    """Positional and named literals of the call whose parentheses are `text[start:]`; none where that is empty.

    Raises:
        InitError: not a list of literals; points at what is none.
    """
    source = "f" + (text[start:] or "()")

    def malformed(why: str, column: int) -> InitError:
        return InitError(why, pointer=caret(text, min(max(start + column - 1, 0), len(text))))

    def column(node: ast.expr | ast.keyword) -> int:  # ast counts bytes
        return len(source.encode()[: node.col_offset].decode())

    def value(node: ast.expr) -> object:
        try:
            return _literal(node)
        except (ValueError, TypeError, RecursionError, MemoryError):
            raise malformed(_WANTED, column(node)) from None

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "invalid escape sequence"
            call = ast.parse(source, mode="eval").body
    except SyntaxError as error:
        raise malformed(error.msg, (error.offset or 1) - 1) from None
    except (ValueError, RecursionError, MemoryError):
        raise malformed("not a list of arguments", 1) from None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise malformed("a scheme ends with its arguments", 1)
    named: dict[str, object] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise malformed("`**` is not taken here", column(keyword))
        if keyword.arg in named:
            raise malformed(f"{keyword.arg} is given twice", column(keyword))
        named[keyword.arg] = value(keyword.value)
    return [value(node) for node in call.args], named


def _literal(node: ast.expr) -> object:
    if isinstance(node, ast.Name):
        return {"inf": math.inf, "nan": math.nan}.get(node.id, node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Name):
        return -float(node.operand.id)
    return ast.literal_eval(node)


def bind(name: str, parameters: Sequence[inspect.Parameter], given: Arguments) -> dict[str, object]:
    """Arguments by name, in the function's order.

    Raises:
        InitError: too many, too few, or of other names; says what `name` takes.
    """
    args, kwargs = given
    named = [parameter for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_POSITIONAL]
    rest = [parameter.name for parameter in named if parameter.kind is inspect.Parameter.VAR_KEYWORD]
    hint = takes(named)
    unknown = [] if rest else [key for key in kwargs if key not in {parameter.name for parameter in named}]
    if unknown:
        raise InitError(f"{name}: no argument '{shortened(unknown[0])}'", hint=hint)
    needed = [one.name for one in named if one.default is one.empty and one.name not in {*rest, *kwargs}]
    if not rest and not args and needed:
        raise InitError(f"{name}: needs {', '.join(needed)}", hint=hint)
    try:
        bound = inspect.Signature(named).bind(*args, **kwargs).arguments
    except TypeError as error:
        raise InitError(f"{name}: {first_line(error)}", hint=hint) from None
    more = bound.pop(rest[0], {}) if rest else {}
    return {**bound, **more}


def takes(parameters: Sequence[inspect.Parameter]) -> str:
    """A hint that lists the parameters with their defaults."""
    return f"it takes {signature(parameters) or 'no arguments'}"


def signature(parameters: Sequence[inspect.Parameter]) -> str:
    """`mean=0.0, std=1.0`: as they are written in a call."""
    plain = (parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters)
    return ", ".join(shortened(str(parameter), 60) for parameter in plain)


def written(head: str, named: Mapping[str, object]) -> str:
    """The call as text that parses to itself."""
    inside = ", ".join(f"{key}={literal(value)}" for key, value in named.items())
    return f"{head}({inside})" if inside else head


def literal(value: object) -> str:
    """A value as it is written in a call."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, safe to show."""
    lines = str(error).strip().splitlines()
    return shortened(lines[0] if lines else type(error).__name__, 240)
