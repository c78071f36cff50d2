"""Header tier: `nan > 0 or absmax > 100`, a condition on rows, parsed and never evaluated as code.

    condition  = condition "or" condition | condition "and" condition | "not" condition | test      loosest first
    test       = value { comparison value }                  `0 < std < 1e-3` is both of its halves
               | value [ "not" ] "in" "(" value { "," value } ")"
               | value ( "~" | "!~" ) text                   a regular expression, searched
               | value "is" [ "not" ] ( "null" | "nan" | "inf" | "finite" )
               | value                                       that is true or false by itself
    comparison = "<" | "<=" | ">" | ">=" | "=" | "==" | "!="
    value      = value ( "+" | "-" ) value | value ( "*" | "/" ) value | "-" value | ( "abs" | "len" ) "(" value ")"
               | "(" condition ")" | column [ "[" integer "]" ] | list | number | text | "true" | "false"
    list       = "[" [ item { "," item } ] "]";  item = number | text
    number     = as Python writes it, or "nan", "inf", "infinity"; behind digits k, M, G, T for 1000, 1000², …,
                 kB, MB, … for the same in bytes, and KiB, MiB, … for 1024, 1024², …
    text       = what stands between two quotes of one kind, as it stands; or a word, where it is no column

A word is a column where there is one of that name, `nan` and `inf` too; `infinity` is always the number. A word that
is none is text where it is compared with a column of text (`dtype == float16`), and after `~`.

What is null (None, or an item that a list has not) compares with nothing: every comparison of it is false, `!=`, `!~`
and `not in` too, and what is reckoned from it is null. So `not tie == x` is true where `tie` is null, and `tie != x`
is false. Null is no NaN: that compares as IEEE 754 has it, false but for `!=`. x / 0 is an infinity, 0 / 0 is NaN.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from paramctl.condition import Among, Apply, Chain, Constant, Item, Node, Scalar, Search, State, Where, Word, words
from paramctl.errors import SelectError, caret


class _Token(NamedTuple):
    kind: str  # "word", "quoted", "sign", "end"
    text: str
    at: int

    @property
    def end(self) -> int:
        return self.at + len(self.text)

    @property
    def key(self) -> str:
        """What the grammar knows it by: a keyword in any case, a sign; "" for any other word and for quoted text."""
        lowered = self.text.lower()
        return self.text if self.kind == "sign" else lowered if self.kind == "word" and lowered in _KEYWORDS else ""


_LONGEST = 20_000  # characters of a condition
_DEEPEST = 20  # parentheses, signs and the like within each other
_LONGEST_NUMBER = 300  # digits that a float64 can take
_TOKEN = re.compile(
    r"(?P<quoted>'[^']*'|\"[^\"]*\")"
    r"|(?P<word>(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][+-]?[0-9]+(?![\w.])|[\w.]+)"
    r"|(?P<sign><=|>=|==|!=|!~|[-+*/<>=~()\[\],])"
)
_BLANK = re.compile(r"\s*")
_NUMBER = re.compile(
    r"(?P<digits>[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?|\.[0-9]+)"
    r"(?:(?P<power>[eE][+-]?[0-9]+)|(?<!\.)(?P<unit>[A-Za-z]+))?"  # 0.b and 0.k are names
)
_INTEGER = re.compile(r"[0-9]{1,9}")
_UNITS: dict[str, int] = {"": 1, "k": 1000, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4} | {
    unit: base ** (1 + "kmgt".index(unit[0]))
    for base, suffix in ((1000, "b"), (1024, "ib"))
    for unit in (f"{letter}{suffix}" for letter in "kmgt")
}
_FOREIGN = {"&&": "and", "&": "and", "||": "or", "|": "or", "!": "not", "<>": "!=", "=~": "~", "===": "=="}
_COMPARISONS = ("<", "<=", ">", ">=", "=", "==", "!=")
_TEST = 3  # the power of what makes a condition of values
_POWERS = {"or": 1, "and": 2, **dict.fromkeys((*_COMPARISONS, "~", "!~", "in", "is", "not"), _TEST)} | {
    "+": 4, "-": 4, "*": 5, "/": 5,
}  # fmt: skip
_HIGHEST = max(_POWERS.values())
_STATES = ("null", "nan", "inf", "finite")
_WORDS: dict[str, Scalar] = {"true": True, "false": False, "infinity": math.inf}
_KEYWORDS = ("or", "and", "not", "in", "is", "null")


def parse_where(text: str) -> Where:
    """The condition that `text` says.

    Raises:
        SelectError: it is none; points at what is wrong. What its columns are is looked up later.
    """
    if len(text) > _LONGEST:
        raise SelectError(f"the condition has {len(text):,} characters, and {_LONGEST:,} are the most")
    return Where(text, _Parser(text).whole())


def columns(where: Where) -> frozenset[str]:
    """The columns that the condition needs; words that may be text instead are among them."""
    return frozenset(words(where.condition))


class _Parser:
    """By precedence: an expression is taken as long as what follows binds more tightly than what stands before it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.depth = 0
        self.tokens = list(self.tokenized())
        self.place = 0

    def wrong(self, what: str, at: int) -> SelectError:
        return SelectError(what, pointer=caret(self.text, at))

    def tokenized(self) -> Iterator[_Token]:
        at = 0
        while (start := _BLANK.match(self.text, at).end()) < len(self.text):  # type: ignore[union-attr]
            foreign = next((sign for sign in _FOREIGN if self.text.startswith(sign, start)), "")
            match = _TOKEN.match(self.text, start)
            if foreign and (match is None or len(foreign) > len(match[0])):
                raise self.wrong(f"{foreign} is written {_FOREIGN[foreign]} here", start)
            if match is None:
                is_quote = self.text[start] in "'\""
                raise self.wrong("the quote is not closed" if is_quote else "this means nothing here", start)
            yield _Token(str(match.lastgroup), match[0], start)
            at = match.end()
        yield _Token("end", "", len(self.text))

    # ------------------------------------------------------------------ tokens

    @property
    def next(self) -> _Token:
        return self.tokens[self.place]

    @property
    def before(self) -> int:
        """Where the last token that was taken ends."""
        return self.tokens[self.place - 1].end

    def take(self) -> _Token:
        self.place += 1
        return self.tokens[self.place - 1]

    def takes(self, key: str) -> bool:
        """Take the next token if it is this one."""
        if self.next.key != key:
            return False
        self.place += 1
        return True

    def close(self, sign: str, opened: int) -> None:
        if self.takes(sign):
            return
        if self.next.kind == "end":
            raise self.wrong(f"{self.text[opened]} is not closed", opened)
        other = "a comma" if sign == "]" else "an operator"
        raise self.wrong(f"{other} or {sign} is missing here", self.next.at)

    # ------------------------------------------------------------------ the grammar

    def whole(self) -> Node:
        node = self.expression(0)
        if self.next.kind == "end":
            return node
        is_closing = self.next.key in (")", "]")
        raise self.wrong("nothing is open here" if is_closing else "an operator is missing here", self.next.at)

    def expression(self, power: int) -> Node:
        """As far as operators bind more tightly than `power`."""
        node = self.operand(power)
        while (found := _POWERS.get(self.next.key, 0)) > power:
            node = self.test(node) if found == _TEST and self.next.key not in _COMPARISONS else self.chain(node, found)
            if found == _TEST and _POWERS.get(self.next.key) == _TEST:
                raise self.wrong("`and` or `or` is missing between two tests", self.next.at)
        return node

    def chain(self, first: Node, power: int) -> Chain:
        operands, operators = [first], []
        while _POWERS.get(self.next.key) == power and (power != _TEST or self.next.key in _COMPARISONS):
            operators.append(self.take().key)
            operands.append(self.expression(power))
        return Chain(first.at, self.before, tuple(operands), tuple("==" if o == "=" else o for o in operators))

    def test(self, operand: Node) -> Node:
        sign = self.take()
        if sign.key in ("~", "!~"):
            pattern = self.pattern()
            return Search(operand.at, self.before, operand, pattern, sign.key == "!~")
        if sign.key == "is":
            negated = self.takes("not")
            state = self.take()
            if state.text.lower() not in _STATES:
                raise self.wrong(f"after `is` stands {', '.join(_STATES[:-1])} or {_STATES[-1]}", state.at)
            return State(operand.at, self.before, operand, state.text.lower(), negated)
        if sign.key == "not" and not self.takes("in"):
            raise self.wrong("`and` or `or` is missing before `not`", sign.at)
        opened = self.next.at
        if not self.takes("("):
            raise self.wrong("after `in` stands a list in parentheses: (a, b)", opened)
        choices = [self.expression(_TEST)]
        while self.takes(","):
            choices.append(self.expression(_TEST))
        self.close(")", opened)
        return Among(operand.at, self.before, operand, tuple(choices), sign.key == "not")

    def pattern(self) -> re.Pattern[str]:
        token = self.take()
        if token.kind not in ("word", "quoted"):
            raise self.wrong("a regular expression is missing here: quote it", token.at)
        source = _unquoted(token)
        at = token.at + (token.kind == "quoted")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "possible nested set"
                return re.compile(source)
        except re.error as error:
            raise self.wrong(f"the regular expression is wrong here: {error.msg}", at + (error.pos or 0)) from None
        except (OverflowError, RecursionError) as error:
            raise self.wrong(f"the regular expression is too large: {error}", at) from None

    def operand(self, power: int) -> Node:
        token = self.take()
        if token.key in ("not", "-", "("):
            return self.nested(token, power)
        if token.key == "[":
            return self.bracketed(token)
        if token.kind == "quoted":
            return Constant(token.at, token.end, _unquoted(token))
        if token.key == "null":
            raise self.wrong("nothing equals null: write `is null` or `is not null`", token.at)
        if token.kind != "word" or token.key:
            raise self.wrong("a value is missing here", token.at)
        word = token.text.lower()
        if word in _WORDS:
            return Constant(token.at, token.end, _WORDS[word])
        if word in ("abs", "len") and self.next.key == "(":
            return self.nested(token, power)
        number = self.number(token)
        if number is not None:
            return Constant(token.at, token.end, number)
        name = Word(token.at, token.end, token.text)
        return self.item(name) if self.next.key == "[" else name

    def nested(self, token: _Token, power: int) -> Node:
        """What holds an operand of its own."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise self.wrong("the condition is nested too deeply", token.at)
        node = self.inner(token, power)
        self.depth -= 1
        return node._replace(at=token.at, end=self.before)

    def inner(self, token: _Token, power: int) -> Node:
        if token.key == "not":
            if power >= _TEST:
                raise self.wrong("`not` stands before a whole test, or in parentheses", token.at)
            return Apply(0, 0, "not", self.expression(_TEST - 1))
        if token.key == "-":
            return Apply(0, 0, "-", self.operand(_HIGHEST))
        opened = token.at if token.key else self.take().at
        node = self.expression(0)
        self.close(")", opened)
        return node if token.key else Apply(0, 0, token.text.lower(), node)

    def item(self, operand: Word) -> Item:
        opened = self.take().at
        negated = self.takes("-")
        index = self.take()
        if not _INTEGER.fullmatch(index.text):
            raise self.wrong("an index is a whole number", index.at)
        self.close("]", opened)
        return Item(operand.at, self.before, operand, -int(index.text) if negated else int(index.text))

    def bracketed(self, opened: _Token) -> Constant:
        values: list[Scalar] = []
        while not self.takes("]"):
            if values and not self.takes(","):
                self.close("]", opened.at)
            values.append(self.listed(opened))
        return Constant(opened.at, self.before, values)

    def listed(self, opened: _Token) -> Scalar:
        """An item of a list."""
        negated = self.takes("-")
        token = self.take()
        if token.kind == "end":
            raise self.wrong("[ is not closed", opened.at)
        number = self.number(token)
        if negated and number is not None:
            return -number
        if negated or token.kind == "sign" or token.key:
            raise self.wrong("a number or a text is missing here", token.at)
        return _unquoted(token) if number is None else number

    def number(self, token: _Token) -> int | float | None:
        """The number that a word is, if it is one.

        Raises:
            SelectError: it is as long as no number is, or its unit has two meanings.
        """
        match = _NUMBER.fullmatch(token.text) if token.kind == "word" else None
        if match is None:
            return None
        if len(token.text) > _LONGEST_NUMBER:
            raise self.wrong("the number has too many digits", token.at)
        digits, unit = match["digits"], match["unit"] or ""
        if unit in ("b", "B"):
            raise self.wrong(f"a B is a byte or a billion: write {digits} or {digits}G", token.at)
        if unit not in _UNITS and (len(unit) == 1 or unit.lower() not in _UNITS):
            return None
        scale = _UNITS.get(unit) or _UNITS[unit.lower()]
        if digits.replace("_", "").isdigit() and not match["power"]:
            return int(digits) * scale
        return float(digits + (match["power"] or "")) * scale


def _unquoted(token: _Token) -> str:
    return token.text[1:-1] if token.kind == "quoted" else token.text
