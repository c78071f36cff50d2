"""Header tier: what a parsed condition is of a row. `where` has its grammar, and the law of null."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from paramctl.condition import Among, Apply, Chain, Constant, Item, Node, Search, State, Where, Word
from paramctl.errors import SelectError, caret, nearest, shortened
from paramctl.report import Column, Report

Row = tuple[Any, ...]
Kind = Literal["number", "text", "truth", "list", ""]  # "": known of no row, or not the same of all


class Term(NamedTuple):
    """What a node is of a row: `of(row)`, which is of one kind, or null."""

    kind: Kind
    of: Callable[[Row], Any]


_UNITS: dict[str, Kind] = {
    "name": "text", "digest": "text", "names": "list", "shape": "list", "histogram": "list", "count": "number",
    "bytes": "number", "number": "number",
}  # fmt: skip
_KINDS: dict[type, Kind] = {str: "text", bool: "truth", int: "number", float: "number", list: "list"}
_SAID = {"number": "a number", "text": "text", "truth": "true or false", "list": "a list"}
_WANTED = {"number": "no number", "text": "no text", "truth": "no condition: compare it", "list": "no list"}
_ITEMS: dict[str, Kind] = {"shape": "number", "histogram": "number", "names": "text"}
_ORDER = ("<", "<=", ">", ">=")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_STATES: dict[str, Callable[[float], bool]] = {  # an integer may be greater than any float64, and is asked too
    "nan": lambda value: value != value,  # noqa: PLR0124
    "inf": lambda value: abs(value) == math.inf,
    "finite": lambda value: abs(value) < math.inf,
}
_FUNCTIONS: dict[str, tuple[Callable[[Any], Any], tuple[Kind, ...]]] = {
    "-": (operator.neg, ("number",)), "abs": (abs, ("number",)), "len": (len, ("list", "text")),
}  # fmt: skip
_CONSTANTS = {"nan": math.nan, "inf": math.inf}  # unless there are columns of that name


def test(where: Where, report: Report) -> Callable[[Row], Any]:
    """What is true of the rows of the report of which the condition is.

    Raises:
        SelectError: a column that is not there, or kinds that do not go together; points at it.
    """
    return _Binder(where.text, report).known(where.condition, "truth").of


def there_are(word: str, columns: Sequence[Column]) -> str:
    """The columns that there are, those first that are most like `word`."""
    keys = [column.key for column in columns]
    return f"there are {', '.join(dict.fromkeys([*nearest(word, keys), *keys]))}"


class _Binder:
    """Looks up the columns of a condition, once for all rows."""

    def __init__(self, text: str, report: Report) -> None:
        self.text = text
        self.report = report
        self.places = {column.key: place for place, column in enumerate(report.columns)}

    def wrong(self, what: str, at: int) -> SelectError:
        return SelectError(what, pointer=caret(self.text, at))

    def said(self, node: Node) -> str:
        return shortened(self.text[node.at : node.end], 40)

    def unit(self, node: Node) -> str:
        """The unit of a column; "" for any other node."""
        place = self.places.get(node.text) if isinstance(node, Word) else None
        return "" if place is None else self.report.columns[place].unit

    def known(self, node: Node, *kinds: Kind) -> Term:
        """The node, which has to be of one of these kinds; where its kind is not known, what is of none is null."""
        term = self.term(node)
        if term.kind and term.kind not in kinds:
            raise self.wrong(f"{self.said(node)} is {_SAID[term.kind]}, and {_WANTED[kinds[0]]}", node.at)
        return term if term.kind else _only(term, kinds)

    def term(self, node: Node) -> Term:
        match node:
            case Word():
                return self.word(node)
            case Constant(value=value):
                return Term(_KINDS[type(value)], lambda _: value)
            case Item():
                return self.item(node)
            case Apply():
                return self.applied(node)
            case Chain():
                return self.chain(node)
            case Among():
                return self.among(node)
            case Search(pattern=pattern, negated=negated):
                return _tested(self.known(node.operand, "text"), lambda value: (not pattern.search(value)) is negated)
            case State():
                return self.state(node)

    # ------------------------------------------------------------------ values

    def word(self, node: Word) -> Term:
        place = self.places.get(node.text)
        if place is not None:
            return Term(_UNITS.get(self.unit(node)) or self.kind(place), operator.itemgetter(place))
        constant = _CONSTANTS.get(node.text.lower())
        if constant is None:
            said = shortened(node.text, 40)
            raise self.wrong(f"no column {said}: {there_are(node.text, self.report.columns)}", node.at)
        return Term("number", lambda _: constant)

    def kind(self, place: int) -> Kind:
        """Of a column, by its values."""
        kinds = {_KINDS.get(made, "") for made in {type(row[place]) for row in self.report.rows} - {type(None)}}
        return kinds.pop() if len(kinds) == 1 else ""

    def item(self, node: Item) -> Term:
        of, index = self.known(node.operand, "list").of, node.place

        def one(row: Row) -> Any:
            value = of(row)
            return value[index] if value is not None and -len(value) <= index < len(value) else None

        return Term(_ITEMS.get(self.unit(node.operand), ""), one)

    def applied(self, node: Apply) -> Term:
        if node.function == "not":
            condition = self.known(node.operand, "truth").of
            return Term("truth", lambda row: not condition(row))
        function, kinds = _FUNCTIONS[node.function]
        of = self.known(node.operand, *kinds).of
        return Term("number", lambda row: None if (value := of(row)) is None else function(value))

    def reckoned(self, node: Chain) -> Term:
        first, *rest = (self.known(operand, "number").of for operand in node.operands)
        steps = list(zip(node.operators, rest, strict=True))

        def of(row: Row) -> Any:
            total = first(row)
            for sign, step in steps:
                value = step(row)
                if total is None or value is None:
                    return None
                total = _reckon(sign, total, value)
            return total

        return Term("number", of)

    # ------------------------------------------------------------------ tests

    def chain(self, node: Chain) -> Term:
        if node.operators[0] in _RECKON:
            return self.reckoned(node)
        if node.operators[0] in ("and", "or"):
            return _joined(node.operators[0], [self.known(operand, "truth").of for operand in node.operands])
        terms = self.compared(node.operands)
        pairs = zip(node.operators, pairwise(node.operands), pairwise(terms), strict=True)
        return _joined("and", [self.comparison(sign, nodes, pair) for sign, nodes, pair in pairs])

    def among(self, node: Among) -> Term:
        sign, join = ("!=", "and") if node.negated else ("==", "or")
        pairs = [(node.operand, choice) for choice in node.choices]
        return _joined(join, [self.comparison(sign, pair, self.compared(pair)) for pair in pairs])

    def state(self, node: State) -> Term:
        if node.state != "null":
            term = _tested(self.known(node.operand, "number"), _STATES[node.state])
        else:
            of = self.term(node.operand).of
            term = Term("truth", lambda row: of(row) is None)
        return Term("truth", lambda row: not term.of(row)) if node.negated else term

    def compared(self, nodes: Sequence[Node]) -> list[Term]:
        """Both sides of comparisons; a word that is no column is text where a column of text stands beside it."""
        terms = [None if self.is_bare(node) else self.term(node) for node in nodes]

        def is_text(place: int) -> bool:
            term = terms[place] if 0 <= place < len(nodes) else None
            return term is not None and term.kind in ("text", "") and not isinstance(nodes[place], Constant)

        return [
            term or (_text(node) if is_text(place - 1) or is_text(place + 1) else self.term(node))
            for place, (node, term) in enumerate(zip(nodes, terms, strict=True))
        ]

    def is_bare(self, node: Node) -> bool:
        return isinstance(node, Word) and node.text not in self.places and node.text.lower() not in _CONSTANTS

    def comparison(self, sign: str, nodes: Sequence[Node], terms: Sequence[Term]) -> Callable[[Row], Any]:
        left, right = terms
        self.refuse_constants(*nodes)
        self.refuse_constants(*nodes[::-1])
        if left.kind and right.kind and left.kind != right.kind:
            one, other = (f"{self.said(node)} is {_SAID[term.kind]}" for node, term in zip(nodes, terms, strict=True))
            more = ": quote it to be text" if left.kind == "text" and isinstance(nodes[1], Constant) else ""
            raise self.wrong(f"{one}, and {other}{more}", nodes[1].at)
        kind = left.kind or right.kind
        if sign in _ORDER and kind in ("truth", "list"):
            raise self.wrong(f"{self.said(nodes[0])} is {_SAID[kind]}, and has no order", nodes[0].at)
        a, b = (term.of if term.kind or not kind else _only(term, (kind,)).of for term in terms)
        compare = _COMPARE[sign] if kind else _tolerant(_COMPARE[sign])
        return lambda row: (one := a(row)) is not None and (other := b(row)) is not None and compare(one, other)

    def refuse_constants(self, node: Node, other: Node) -> None:
        """Refuse NaN, which equals nothing, and a statistic beside the counts that are called `nan` and `inf`."""
        word = node.operand if isinstance(node, Apply) and node.function == "-" else node
        if not isinstance(word, Word) or word.text.lower() not in _CONSTANTS:
            return
        if word.text not in self.places and word.text.lower() == "nan":
            raise self.wrong("no number is nan by comparison: write `is nan` or `is not nan`", word.at)
        if word.text in self.places and self.unit(other) == "number":
            instead = "`is inf`, or infinity for the number" if word.text == "inf" else "`is nan` or `is not nan`"
            raise self.wrong(f"{word.text} is a column here, and counts: write {instead}", word.at)


def _text(node: Node) -> Term:
    text = node.text if isinstance(node, Word) else ""
    return Term("text", lambda _: text)


def _only(term: Term, kinds: Sequence[Kind]) -> Term:
    """What a term is of these kinds, of which the first is said to be its kind; else null."""
    of, types = term.of, tuple(made for made, kind in _KINDS.items() if kind in kinds)
    return Term(kinds[0], lambda row: value if type(value := of(row)) in types else None)


def _tested(term: Term, check: Callable[[Any], bool]) -> Term:
    of = term.of
    return Term("truth", lambda row: (value := of(row)) is not None and check(value))


def _joined(word: str, tests: list[Callable[[Row], Any]]) -> Term:
    """All of the tests, or any."""
    if len(tests) == 1:
        return Term("truth", tests[0])
    is_or = word == "or"

    def of(row: Row) -> bool:
        for test in tests:  # in half the time of any()
            if bool(test(row)) is is_or:
                return is_or
        return not is_or

    return Term("truth", of)


def _tolerant(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """What has no order is in none."""

    def compared(one: Any, other: Any) -> bool:
        try:
            return compare(one, other)
        except TypeError:
            return False

    return compared


def _reckon(sign: str, a: Any, b: Any) -> int | float:
    """Integers are exact, and what is too great for a float64 is an infinity."""
    try:
        return _RECKON[sign](a, b)
    except OverflowError:
        return _RECKON[sign](_real(a), _real(b))


def _real(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, 1 if value > 0 else -1)


def _quotient(a: float, b: float) -> float:
    """As IEEE 754 has it; Python refuses to divide by 0."""
    if b != 0:
        return a / b
    return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1, b)  # noqa: PLR0124


_RECKON: dict[str, Callable[[Any, Any], int | float]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": _quotient,
}  # fmt: skip
