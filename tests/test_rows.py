"""Filtering, sorting and picking: Python's reading of the same expression over dicts is the oracle."""

from __future__ import annotations

import functools
import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paramctl.errors import SelectError, escaped
from paramctl.report import Branch, Column, Report
from paramctl.rows import arranged, columns, parse_where

NAN, INF = math.nan, math.inf
UNITS = {
    "name": "name", "tie": "name", "shape": "shape", "names": "names", "numel": "count", "row": "count", "nan": "count",
    "inf": "count", "nbytes": "bytes", "mean": "number", "std": "number", "absmax": "number",
}  # fmt: skip


def report(keys: str, *rows: tuple) -> Report:
    made = tuple(Column(key, UNITS.get(key, "")) for key in keys.split())
    return Report(made, rows, {"tensors": len(rows)}, "m.pt", "torch-zip")


SMALL = report(
    "name dtype shape numel nbytes mean absmax requires_grad tie module",
    ("h.0.w", "float32", [8, 4], 32, 128, 0.5, 3.0, True, None, None),
    ("h.2.w", "float16", [16, 1024], 16384, 32768, NAN, INF, False, "h.10.w", None),
    ("h.10.w", "bfloat16", [2, 3, 4], 24, 48, -0.5, 0.5, None, None, None),
    ("scale", "float32", [], 1, 4, None, None, True, None, None),
    ("steps", "int64", [0, 5], 0, 0, 1e-4, 100, False, "scale", None),
)
COUNTS = report("name mean nan inf", ("sound", 1.0, 0, 0), ("broken", NAN, 3, 0), ("endless", INF, 0, 2))
TIES = report("names shape", (["0.w", "2.w"], [2, 2]), (["0.b", "2.b", "4.b"], [2]))
ALL = "h.0.w h.2.w h.10.w scale steps"
HUGE = "9" * 300


def kept(text: str, made: Report = SMALL) -> str:
    return " ".join(str(row[0]) for row in arranged(made, parse_where(text)).rows)


def answer(text: str) -> list | str:
    """The rows that a condition keeps, or what the error says."""
    try:
        return list(arranged(SMALL, parse_where(text)).rows)
    except SelectError as error:
        return str(error)


CONDITIONS = {
    "numel > 24": "h.0.w h.2.w",
    "numel >= 24": "h.0.w h.2.w h.10.w",
    "24 < numel": "h.0.w h.2.w",
    "numel = 1 or numel == 0": "scale steps",
    "numel != 1": "h.0.w h.2.w h.10.w steps",
    "numel < 100 and numel > 24 or dtype == int64": "h.0.w steps",
    "numel < 100 and (numel > 24 or dtype == int64)": "h.0.w steps",
    "dtype == int64 or numel < 100 and numel > 24": "h.0.w steps",
    "(dtype == int64 or numel < 100) and numel > 24": "h.0.w",
    "NOT numel > 24 AND numel > 0": "h.10.w scale",
    "not (numel > 24 and numel > 0)": "h.10.w scale steps",
    "not not numel > 24": "h.0.w h.2.w",
    "1 < numel < 100": "h.0.w h.10.w",
    "0 <= numel < nbytes <= 128": "h.0.w h.10.w scale",
    # numbers
    "numel > 16k": "h.2.w",
    "numel > 16.384K": "",
    "numel >= 16.384k": "h.2.w",
    "nbytes = 32KiB": "h.2.w",
    "nbytes = 32kib or nbytes = 0.128kB": "h.0.w h.2.w",
    "numel < 1M and nbytes < 1GB and nbytes < 1TiB": ALL,
    "1k = 1000 and 1M = 1k * 1k and 1G = 1k * 1M and 1T = 1M * 1M": ALL,
    "1KiB = 1024 and 1MiB = 1KiB * 1KiB and 1GiB = 1KiB * 1MiB and 1TiB = 1MiB * 1MiB": ALL,
    "1kB = 1k and 1MB = 1M and 1GB = 1G and 1TB = 1T": ALL,
    "1_000 = 1e3 and .5 = 5e-1 and 2. = 2 and 1E+2 = 100": ALL,
    "absmax = 1e2": "steps",
    # text
    "dtype == float16": "h.2.w",
    "dtype == 'float16'": "h.2.w",
    'float16 == dtype or "int64" == dtype': "h.2.w steps",
    "dtype in (float16, 'bfloat16')": "h.2.w h.10.w",
    "dtype not in (float16, 'bfloat16')": "h.0.w scale steps",
    "numel in (1, 3 * 8)": "h.10.w scale",
    "name == h.10.w": "h.10.w",
    "name >= scale": "scale steps",
    "name ~ h": "h.0.w h.2.w h.10.w",
    r"name ~ '^h\.\d\.'": "h.0.w h.2.w",
    "name !~ 'h.*w' and dtype !~ int": "scale",
    "dtype ~ name": "",  # behind ~ stands text, and no column
    "len(name) = 5": "h.0.w h.2.w scale steps",
    "tie == scale": "steps",
    'name != "it\'s"': ALL,
    # lists
    "len(shape) = 2": "h.0.w h.2.w steps",
    "shape[0] = 2": "h.10.w",
    "shape[-1] > 4": "h.2.w steps",
    "shape[2] = 4": "h.10.w",
    "shape[-2] = 8 or shape[-3] = 2": "h.0.w h.10.w",
    "shape[ - 1 ] / shape[0] = 64": "h.2.w",
    "shape == [8, 4] or shape = []": "h.0.w scale",
    "shape in ([8, 4], [0, 5])": "h.0.w steps",
    "shape != [8, -4]": ALL,
    # arithmetic
    "nbytes / numel = 4": "h.0.w scale",
    "nbytes - 2 * numel = 0": "h.2.w h.10.w steps",
    "2 + 3 * 4 = 14 and 2 * 3 + 4 = 10 and (2 + 3) * 4 = 20": ALL,
    "10 - 4 - 3 = 3 and 16 / 4 / 2 = 2 and -2 * -3 = 6 and 1 - -1 = 2": ALL,
    "abs(mean) = 0.5": "h.0.w h.10.w",
    "-mean > 0": "h.10.w",
    "0 < mean < 1e-3": "steps",
    "numel / 0 = inf": "h.0.w h.2.w h.10.w scale",
    "-numel / 0 = -inf": "h.0.w h.2.w h.10.w scale",
    "numel / 0 is nan": "steps",
    f"numel > 0 and {HUGE} * {HUGE} * 0.5 is inf and {HUGE} * {HUGE} is finite": "h.0.w h.2.w h.10.w scale",
    f"-{HUGE} * {HUGE} / 3 = -inf": ALL,
    # null, NaN and infinities
    "mean is null": "scale",
    "mean IS NOT NULL": "h.0.w h.2.w h.10.w steps",
    "mean is nan": "h.2.w",
    "mean is not nan": "h.0.w h.10.w scale steps",
    "absmax is inf": "h.2.w",
    "absmax is finite": "h.0.w h.10.w steps",
    "absmax = inf and absmax = infinity": "h.2.w",
    "mean != 0.5": "h.2.w h.10.w steps",
    "not mean = 0.5": "h.2.w h.10.w scale steps",
    "mean < 1 or mean >= 1": "h.0.w h.10.w steps",
    "mean + 1 < 9 or mean * 0 = 0 or -mean < 9 or abs(mean) >= 0": "h.0.w h.10.w steps",
    "tie != scale": "h.2.w",
    "name != tie": "h.2.w steps",
    "tie not in (scale)": "h.2.w",
    "tie !~ scale": "h.2.w",
    "not tie = scale": "h.0.w h.2.w h.10.w scale",
    "shape[5] = 0 or shape[5] != 0": "",
    "shape[5] is null and len(tie) is null": "h.0.w h.10.w scale",
    # truth
    "requires_grad": "h.0.w scale",
    "not requires_grad": "h.2.w h.10.w steps",
    "requires_grad = false": "h.2.w steps",
    "requires_grad != True": "h.2.w steps",
    "true and not false": ALL,
    # a column that is null everywhere
    "module == Linear or module > 3 or module or module ~ x or abs(module) > 0 or module[0] = 1 or module < mean": "",
    "module is null": ALL,
}


@pytest.mark.parametrize(("text", "names"), CONDITIONS.items(), ids=[text[:80] for text in CONDITIONS])
def test_a_condition_keeps_the_rows_of_which_it_is_true(text, names):
    """Each form of the grammar keeps these rows, in their order."""
    assert kept(text) == names


OTHERS = [
    (COUNTS, "nan > 0", "broken"),
    (COUNTS, "nan + inf > 0", "broken endless"),
    (COUNTS, "mean = infinity or mean is nan", "broken endless"),
    (COUNTS, "mean < infinity and mean > -infinity", "sound"),
    (TIES, "names[0] = 0.b", "['0.b', '2.b', '4.b']"),
    (TIES, "len(names) = 2", "['0.w', '2.w']"),
    (TIES, "names = [0.w, '2.w']", "['0.w', '2.w']"),
    (report("row mixed", (0, 1), (1, "a"), (2, [1]), (3, None), (4, 2.5), (5, True)), "mixed > 1", "4"),
    (report("row mixed", (0, 1), (1, "a"), (2, [1]), (3, None), (4, 2.5), (5, True)), "mixed < mixed[0]", ""),
    (report("row mixed", (0, 1), (1, "a"), (2, [1]), (3, None), (4, 2.5), (5, True)), "mixed", "5"),
    (report("row mixed", (0, 1), (1, "a"), (2, [1]), (3, None), (4, 2.5), (5, True)), "len(mixed) = 1", "1 2"),
]


@pytest.mark.parametrize(("made", "text", "names"), OTHERS, ids=[text for _, text, _ in OTHERS])
def test_a_condition_takes_the_columns_as_they_are(made, text, names):
    """Counts called `nan` and `inf` are columns; lists of names have texts; of mixed values those of the kind count."""
    assert kept(text, made) == names


LISTED = "name, dtype, shape, numel, nbytes, mean, absmax, requires_grad, tie, module"
ERRORS = {
    "": "a value is missing here\n\n^",
    "numel >": "a value is missing here\nnumel >\n       ^",
    "numel > > 3": "a value is missing here\nnumel > > 3\n        ^",
    "numel 3": "an operator is missing here\nnumel 3\n      ^",
    "numel > 3)": "nothing is open here\nnumel > 3)\n         ^",
    "(numel > 3": "( is not closed\n(numel > 3\n^",
    "(numel 3": "an operator or ) is missing here\n(numel 3\n       ^",
    "abs(mean > 1": "( is not closed\nabs(mean > 1\n   ^",
    "shape = [1": "[ is not closed\nshape = [1\n        ^",
    "shape = [1,": "[ is not closed\nshape = [1,\n        ^",
    "shape = [1 2]": "a comma or ] is missing here\nshape = [1 2]\n           ^",
    "shape = [(1)]": "a number or a text is missing here\nshape = [(1)]\n         ^",
    "shape[x] = 1": "an index is a whole number\nshape[x] = 1\n      ^",
    "shape[1.5] = 1": "an index is a whole number\nshape[1.5] = 1\n      ^",
    "shape[0][0] = 1": "an operator is missing here\nshape[0][0] = 1\n        ^",
    "dtype = 'float": "the quote is not closed\ndtype = 'float\n        ^",
    "numel > $x": "this means nothing here\nnumel > $x\n        ^",
    "numel > 1\x1b[2J": "this means nothing here\nnumel > 1\\x1b[2J\n         ^",
    "numel > 1 && nbytes > 1": "&& is written and here\nnumel > 1 && nbytes > 1\n          ^",
    "!(numel > 1)": "! is written not here\n!(numel > 1)\n^",
    "numel <> 1": "<> is written != here\nnumel <> 1\n      ^",
    "tie = null": "nothing equals null: write `is null` or `is not null`\ntie = null\n      ^",
    "tie is 3": "after `is` stands null, nan, inf or finite\ntie is 3\n       ^",
    "tie is": "after `is` stands null, nan, inf or finite\ntie is\n      ^",
    "tie not scale": "`and` or `or` is missing before `not`\ntie not scale\n    ^",
    "tie in scale": "after `in` stands a list in parentheses: (a, b)\ntie in scale\n       ^",
    "tie in ()": "a value is missing here\ntie in ()\n        ^",
    "numel < 3 is null": "`and` or `or` is missing between two tests\nnumel < 3 is null\n          ^",
    "numel = not true": "`not` stands before a whole test, or in parentheses\nnumel = not true\n        ^",
    "name ~ 'a('": (
        "the regular expression is wrong here: missing ), unterminated subpattern\nname ~ 'a('\n         ^"
    ),
    "name ~ (a)": "a regular expression is missing here: quote it\nname ~ (a)\n       ^",
    "numel > 7B": "a B is a byte or a billion: write 7 or 7G\nnumel > 7B\n        ^",
    "mean = nan": "no number is nan by comparison: write `is nan` or `is not nan`\nmean = nan\n       ^",
    # columns, and what they are
    "absmx > 3": f"no column absmx: there are absmax, {LISTED.replace('absmax, ', '')}\nabsmx > 3\n^",
    "3 < numl": f"no column numl: there are numel, {LISTED.replace('numel, ', '')}\n3 < numl\n    ^",
    "numel > 10m": f"no column 10m: there are {LISTED}\nnumel > 10m\n        ^",
    "'a' = zzz": f"no column zzz: there are {LISTED}\n'a' = zzz\n      ^",
    "zzz is null": f"no column zzz: there are {LISTED}\nzzz is null\n^",
    "dtype = mean": "dtype is text, and mean is a number\ndtype = mean\n        ^",
    "numel in (1, 'a')": "numel is a number, and 'a' is text\nnumel in (1, 'a')\n             ^",
    "dtype = 16": "dtype is text, and 16 is a number: quote it to be text\ndtype = 16\n        ^",
    "requires_grad > false": "requires_grad is true or false, and has no order\nrequires_grad > false\n^",
    "shape > [1]": "shape is a list, and has no order\nshape > [1]\n^",
    "numel": "numel is a number, and no condition: compare it\nnumel\n^",
    "numel > 1 and (dtype)": "(dtype) is text, and no condition: compare it\nnumel > 1 and (dtype)\n              ^",
    "not numel": "numel is a number, and no condition: compare it\nnot numel\n    ^",
    "dtype + 1 > 3": "dtype is text, and no number\ndtype + 1 > 3\n^",
    "-dtype > 3": "dtype is text, and no number\n-dtype > 3\n ^",
    "abs(numel > 3) > 1": "numel > 3 is true or false, and no number\nabs(numel > 3) > 1\n    ^",
    "len(numel) > 1": "numel is a number, and no list\nlen(numel) > 1\n    ^",
    "numel[0] = 1": "numel is a number, and no list\nnumel[0] = 1\n^",
    "numel ~ 1": "numel is a number, and no text\nnumel ~ 1\n^",
    "dtype is nan": "dtype is text, and no number\ndtype is nan\n^",
    # what is too much
    "(" * 21 + "true" + ")" * 21: f"the condition is nested too deeply\n{'(' * 21}true{')' * 21}\n{' ' * 20}^",
    "9" * 301 + " > 1": f"the number has too many digits\n{'9' * 76}\n^",
    "a" * 20_001: "the condition has 20,001 characters, and 20,000 are the most",
    "(" * 1_000_000: "the condition has 1,000,000 characters, and 20,000 are the most",
}


@pytest.mark.parametrize(("text", "said"), ERRORS.items(), ids=[text[:40] for text in ERRORS])
def test_what_is_no_condition_is_told(text, said):
    """The whole text of each error, which points at its place."""
    assert answer(text) == f"error: {said}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mean < inf", "inf is a column here, and counts: write `is inf`, or infinity for the number"),
        ("mean = -inf", "inf is a column here, and counts: write `is inf`, or infinity for the number"),
        ("nan != mean", "nan is a column here, and counts: write `is nan` or `is not nan`"),
    ],
)
def test_a_statistic_is_not_compared_with_a_count_by_mistake(text, said):
    """Where counts are called `nan` and `inf`, a number beside them is an error that says what to write."""
    with pytest.raises(SelectError) as caught:
        arranged(COUNTS, parse_where(text))
    assert caught.value.what == said


DEEP = [
    "true or true and numel == 1 + 2 * (" * 20 + "numel" + ")" * 20,
    "true or true and not (" * 10 + "true" + ")" * 10,
    " or ".join(["numel > 1"] * 1_500),
    " < ".join(["numel"] * 2_000),
    " + ".join(["1"] * 4_000) + " > numel",
    f"numel in ({', '.join(map(str, range(3_000)))})",
    "numel" + "[0]" * 5_000,
    "not " * 4_000 + "true",
    "- " * 9_000 + "1 > 0",
    "numel is " * 2_000,
    "[" * 20_000,
    "name ~ '" + "(" * 9_000 + ")" * 9_000 + "'",
    "1" * 19_000 + "x",
    "1_" * 9_000,
    "'" * 19_999,
]


@pytest.mark.parametrize("text", DEEP, ids=[text[:30] for text in DEEP])
def test_a_hostile_condition_is_answered_or_refused(text):
    """Neither depth nor length is a RecursionError: it is a condition, or an error of three lines."""
    found = answer(text)
    assert isinstance(found, list) or len(found.split("\n")) <= 3


PIECES = [
    "numel",
    "mean",
    "name",
    "shape",
    "dtype",
    "nan",
    "inf",
    "null",
    "true",
    "not",
    "and",
    "or",
    "in",
    "is",
    "~",
    "!~",
    "<",
    "<=",
    "=",
    "!=",
    "(",
    ")",
    "[",
    "]",
    ",",
    "+",
    "-",
    "*",
    "/",
    "abs",
    "len",
    "1",
    "2k",
    ".5",
    "'a'",
    '"',
    "x",
]


@settings(deadline=None, max_examples=500)
@given(st.lists(st.sampled_from(PIECES), max_size=9).map(" ".join) | st.text(max_size=12))
def test_any_text_is_a_condition_or_an_error(text):
    """Whatever stands there, it filters, or the error has three lines at most and its caret lies within the text."""
    found = answer(text)
    if isinstance(found, list):
        assert all(row in SMALL.rows for row in found)
        return
    _, written, pointer = found.split("\n")
    assert (written, pointer.strip(" ")) == (escaped(text), "^")
    assert len(pointer) <= len(written) + 1


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("nan > 0 or absmax > 100", {"nan", "absmax"}),
        ("not (abs(a) + -b * shape[0] / len(c) < 1 <= d) and 'e' = f", {"a", "b", "shape", "c", "d", "f"}),
        ("dtype in (float16, 'e') and name ~ g and tie is null", {"dtype", "float16", "name", "tie"}),
        ("1 < 2", set()),
    ],
)
def test_the_columns_that_a_condition_needs(text, needed):
    """Every column is named, and words that may be text; quoted text and what stands behind ~ is not."""
    assert columns(parse_where(text)) == needed


# ----------------------------------------------------------------------------- Python's reading


class Null:
    """What compares with nothing, and what every sum with it is."""

    def no(self, _=None):
        return False

    def itself(self, _=None):
        return self

    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = __bool__ = no
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __neg__ = __abs__ = itself
    __hash__ = None


class Items(list):
    """A list that has null where it has nothing."""

    def __getitem__(self, place):
        return super().__getitem__(place) if -len(self) <= place < len(self) else Null()


def by_python(text: str, rows: list[dict[str, object]]) -> list[bool]:
    """Whether Python finds the text true of each row."""
    code = compile(text, "a condition", "eval")
    known = {"__builtins__": {}, "abs": abs, "len": len, "true": True, "inf": INF}
    nulled = [{k: Null() if v is None else Items(v) if isinstance(v, list) else v for k, v in r.items()} for r in rows]
    return [bool(eval(code, known, row)) for row in nulled]  # noqa: S307


NUMBERS = [None, NAN, INF, -INF, 0, 1, -1, 2, 0.5, -0.5, 1e-3, 3]
KEYS = "row name tie shape numel mean std requires_grad"
FIELDS = (
    ["a", "b", "h.2", "h.10"], [None, "a", "b"], [[], [0], [1], [1, 2], [3, 0, 2]], [0, 1, 2, 3, 4], NUMBERS, NUMBERS,
    [None, True, False],
)  # fmt: skip
EVERY = report(  # each pair of numbers once, and the rest in turns
    KEYS,
    *(
        (row, *(field[row % len(field)] for field in FIELDS[:4]), mean, std, FIELDS[6][row % 3])
        for row, (mean, std) in enumerate(itertools.product(NUMBERS, NUMBERS))
    ),
)
ROWS = st.lists(st.tuples(*map(st.sampled_from, FIELDS)), max_size=8).map(
    lambda rows: report(KEYS, *((place, *row) for place, row in enumerate(rows)))
)
VALUES = ["numel", "mean", "std", "shape[0]", "shape[-1]", "len(shape)", "1", "2.5", "1e-3", ".5", "inf"]
TRUTHS = [
    "tie in ('a', 'c')", "name in ('b', 'h.2')", "numel in (1, 2, 3)", "shape in ([], [1, 2])", "tie < name",
    "tie == name", "tie != 'a'", "'a' <= name", "requires_grad", "requires_grad == true", "requires_grad != true",
    "shape == [1]", "true",
]  # fmt: skip


@st.composite
def values(draw, depth=2):
    """Arithmetic that Python has too, with and without parentheses; it divides by what is not 0."""
    kind = draw(st.sampled_from(["-", "abs", "()", "/", "+", "- ", "*"])) if depth and draw(st.booleans()) else ""
    if not kind:
        return draw(st.sampled_from(VALUES))
    one = draw(values(depth=depth - 1))
    if kind in ("abs", "()"):
        return f"{kind.strip('()')}({one})"
    return f"-{one}" if kind == "-" else f"{one} {kind} {'2' if kind == '/' else draw(values(depth=depth - 1))}"


@st.composite
def conditions(draw, depth=3):
    """Conditions that Python reads alike, null apart: `not in` is none of them, which of null it finds true."""
    kind = draw(st.sampled_from(["<", "< <", "truth", *["not", "and", "or", "()"] * bool(depth)]))
    if kind == "truth":
        return draw(st.sampled_from(TRUTHS))
    if "<" in kind:
        signs = [draw(st.sampled_from(["<", "<=", ">", ">=", "==", "!="])) for _ in kind.split()]
        return draw(values()) + "".join(f" {sign} {draw(values())}" for sign in signs)
    one = draw(conditions(depth=depth - 1))
    if kind in ("and", "or"):
        return f"{one} {kind} {draw(conditions(depth=depth - 1))}"
    return f"not {one}" if kind == "not" else f"({one})"


@settings(deadline=None, max_examples=300)
@given(conditions())
def test_a_condition_means_what_python_reads(text):
    """Precedence, chains, NaN, infinities and null: a row is kept where Python's reading of the same text is true."""
    expected = tuple(itertools.compress(EVERY.rows, by_python(text, EVERY.dicts())))
    assert arranged(EVERY, parse_where(text)).rows == expected


@settings(deadline=None)
@given(conditions() | st.sampled_from(["tie not in ('a')", "tie !~ a", "mean is not nan", "std is null"]))
def test_a_condition_and_its_negation_are_all(text):
    """Each row is in where(x) or in where(not x), and in one of them only."""
    yes, no = (arranged(EVERY, parse_where(t)).rows for t in (text, f"not ({text})"))
    assert tuple(sorted(yes + no)) == EVERY.rows


@settings(deadline=None)
@example(NAN, 0)
@example(-1.5, -0.0)
@given(st.floats() | st.integers(-(2**70), 2**70), st.floats() | st.integers(-3, 3))
def test_a_quotient_is_that_of_float64(a, b):
    """a / b is numpy's in float64, by 0 and by NaN too."""
    with np.errstate(all="ignore"):
        expected = float(np.float64(a) / np.float64(b))
    found = arranged(report("mean std", (a, b)), parse_where("mean / std is nan")).rows
    assert bool(found) == math.isnan(expected)
    equal = parse_where(f"mean / std = {expected!r}".replace("inf", "infinity").replace("nan", "0"))
    assert bool(arranged(report("mean std", (a, b)), equal).rows) == (not math.isnan(expected))


# ----------------------------------------------------------------------------- order, limits, columns


def natural(name: str) -> list[list[object]]:
    return [[int(p) if p.isdigit() else p for p in re.split(r"(\d+)", step)] for step in name.split(".")]


def compared(keys: list[str], one: dict, other: dict) -> int:
    """By the keys, one after another: what is null or NaN is last."""
    for key in keys:
        column, sign = key.removeprefix("-"), -1 if key.startswith("-") else 1
        a, b = one[column], other[column]
        if (untold := [v is None or v != v for v in (a, b)]) != [False, False]:  # noqa: PLR0124
            if untold[0] != untold[1]:
                return 1 if untold[0] else -1
            continue
        a, b = (natural(v) if isinstance(v, str) else v for v in (a, b))
        if a != b:
            return sign * (-1 if a < b else 1)
    return 0


STEPS = st.from_regex(r"\A[a-c]{0,2}(0|[1-9][0-9]{0,2})?[a-c]?\Z")
NAMES = st.lists(st.lists(STEPS, min_size=1, max_size=3).map(".".join), max_size=8)
SORTS = st.lists(
    st.sampled_from(KEYS.split()[1:]).flatmap(lambda key: st.sampled_from([key, "-" + key])), min_size=1, max_size=3
)


@settings(deadline=None)
@given(ROWS, SORTS, st.booleans())
def test_sorting_is_by_each_key_in_turn_and_stable(made, keys, is_joined):
    """It is Python's stable sort by a comparison of the keys; the keys may be given at once or one by one."""
    expected = sorted(made.dicts(), key=functools.cmp_to_key(functools.partial(compared, keys)))
    found = arranged(made, sort=[",".join(keys)] if is_joined else keys)
    assert [row["row"] for row in found.dicts()] == [row["row"] for row in expected]
    assert found.totals == made.totals


@settings(deadline=None)
@given(NAMES)
def test_names_are_in_natural_order(names):
    """Step by step, and numbers by what they are worth: layers.2 before layers.10, a before a.b before a0."""
    found = arranged(report("name", *((name,) for name in names)), sort=["name"])
    assert [row[0] for row in found.rows] == sorted(names, key=natural)


@pytest.mark.parametrize(
    ("values", "ordered"),
    [
        (
            ["b", 2, None, [1], "a10", 1.5, "a2", NAN, [0, 5], True, {}],
            [True, 1.5, 2, "a2", "a10", "b", [0, 5], [1], {}],
        ),
        ([["b.10"], ["b.2", "c"], ["b.2"], [], None], [[], ["b.2"], ["b.2", "c"], ["b.10"]]),
        ([[[1, None], 2], [[1, 0], 2], [[], 3]], [[[], 3], [[1, 0], 2], [[1, None], 2]]),
    ],
)
def test_values_of_any_kind_have_an_order(values, ordered):
    """Numbers, then text, then lists item by item; null and NaN last, in either direction."""
    made = report("value", *((value,) for value in values))
    rest = [value for value in values if value is None or value != value]  # noqa: PLR0124
    for sort, expected in (("value", ordered), ("-value", ordered[::-1])):
        assert [row[0] for row in arranged(made, sort=[sort]).rows] == [*expected, *rest]


@settings(deadline=None)
@given(ROWS, st.integers(0, 9), st.integers(0, 9))
def test_head_is_a_prefix_and_tail_a_suffix_of_it(made, head, tail):
    """`head` keeps the first, `tail` the last of those; where something is left out the totals say how much."""
    assert arranged(made, head=head).rows == made.rows[:head]
    assert arranged(made, tail=tail).rows == made.rows[len(made.rows) - min(tail, len(made.rows)) :]
    both = arranged(made, head=head, tail=tail)
    assert both.rows == arranged(arranged(made, head=head), tail=tail).rows
    cut = {"rows": {"shown": len(both.rows), "of": len(made.rows)}} if len(both.rows) < len(made.rows) else {}
    assert both.totals == {**made.totals, **cut}


@settings(deadline=None)
@given(ROWS, st.lists(st.sampled_from(KEYS.split()), min_size=1))
def test_columns_are_picked_in_the_order_asked_for(made, keys):
    """Rows keep those columns alone, each once; whether they come before sorting and filtering does not matter."""
    picked = arranged(made, columns=keys)
    assert [column.key for column in picked.columns] == list(dict.fromkeys(keys))
    assert picked.dicts() == [{key: row[key] for key in keys} for row in made.dicts()]
    assert (picked.is_picked, arranged(made).is_picked) == (True, False)
    where = parse_where("numel > 1")
    sifted = arranged(made, where, sort=["-mean"], head=2)
    assert arranged(made, where, sort=["-mean"], head=2, columns=[",".join(keys)]).dicts() == [
        {key: row[key] for key in keys} for row in sifted.dicts()
    ]


def test_a_report_that_is_not_rearranged_is_the_same():
    """Without an option rows, columns and totals are what they were; a tree, whose rows have moved, is gone."""
    made = SMALL._replace(branch=Branch("m.pt"), notes=("a note",))
    assert arranged(made) == made._replace(branch=None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sort": ["-absmx"]}, "--sort absmx: no such column\n\nhint: there are absmax, name, dtype, mean"),
        ({"sort": ["mean,"]}, "--sort '': no such column\n\nhint: there are name, dtype, mean, absmax"),
        ({"columns": ["a\x1b"]}, "--columns a\\x1b: no such column\n\nhint: there are name, dtype, mean, absmax"),
    ],
)
def test_a_column_that_is_not_there_is_an_error(options, said):
    """It is named, with those that there are, the nearest first; rows or none."""
    some = arranged(SMALL, columns=["name,dtype,mean,absmax"])
    for made in (some, some._replace(rows=())):
        with pytest.raises(SelectError) as caught:
            arranged(made, **options)
        assert str(caught.value) == f"error: {said}"
