"""Names come from strangers: harmless on every screen, and exact for every program."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramctl.errors import unescaped
from paramctl.render import RENDERERS
from paramctl.render._cells import cells
from paramctl.report import Branch, Report
from render.builders import HOSTILE, columns, ls, tensor, terminal, text, values

_UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # all but the line's end

everything = pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)


def hostile(name: str) -> Report:
    """The name in every place that a name or a stranger's text can have."""
    tree = Branch("", name, name, children=(Branch(name, name, name, 2, children=(Branch(name, row=0),)),))
    rows = (tensor(name, tie=name, module=name, storage=name), tensor("plain", storage=name))
    report = ls(*rows, branch=tree)
    return report._replace(source=name, format=name, metadata={name: name}, extras={name: [name, {name: name}]})


@everything
@pytest.mark.parametrize("style", RENDERERS)
def test_harmless(style, name):
    """No control, escape, bidirectional or half character comes through, on any screen."""
    for report in (hostile(name), hostile(name)._replace(columns=(), rows=())):
        if style in {"names", "tree"} and not report.columns:
            continue
        separator = "\t" if style == "tsv" else ""
        for out in (text(report, style), terminal(report, style, 100)):
            assert not _UNSAFE.search(out.replace(separator, "") if separator else out)


@everything
def test_harmless_values(name):
    """The heading of a block of values is as safe as a table."""
    report = values([1.0], name=name, slice=name, dtype=name, **{"class": name})
    assert not _UNSAFE.search(text(report, "table") + terminal(report, "table"))


@everything
def test_one_row_a_line(name):
    """A name cannot make a second row."""
    report = hostile(name)
    for style, extra in (("tsv", 1), ("table", 1), ("jsonl", 0), ("names", 0), ("markdown", 2)):
        assert len(text(report, style).splitlines()) == 2 + extra
    assert len(text(report, "tree").splitlines()) == 3


@everything
def test_exact(name):
    """TSV, JSON, JSONL and names give the name back."""
    report = hostile(name)
    assert unescaped(text(report, "tsv", header=False).splitlines()[0].split("\t")[0]) == name
    document = json.loads(text(report, "json"))
    assert document["rows"] == report.dicts()
    assert (document["source"], document["metadata"]) == (name, {name: name})
    assert json.loads(text(report, "jsonl").splitlines()[0])["name"] == name
    assert unescaped(text(report, "names").splitlines()[0]) == name
    assert text(report, "names", nul=True).startswith(f"{name}\0plain\0")


def test_long_name_is_whole_on_terminal():
    """A name of 100,000 characters is folded, and none of it is lost."""
    out = terminal(ls(tensor(HOSTILE["long"])), "table", 80)
    lines = out.splitlines()[1:-2]
    assert max(map(len, lines)) <= 80
    assert "".join(line[: lines[0].index(" ")].strip() for line in lines) == HOSTILE["long"]


def test_empty_name_can_be_seen():
    """An empty name is two quotes on a screen."""
    assert terminal(ls(tensor("")), "table").splitlines()[1].startswith('""  ')
    assert '── ""  ' in terminal(ls(tensor("")), "tree")


def test_a_dash_is_a_name():
    """A tensor called `-` is not taken for a missing value."""
    assert text(Report(columns("name"), (("-",),)), "markdown").splitlines()[2] == "| - |"


def test_wide_characters_are_aligned():
    """A character of two columns counts as two."""
    lines = text(ls(tensor("重み.偏り"), tensor("ascii.name")), "table").splitlines()
    assert lines[1].index("8×4") + 4 == lines[2].index("8×4")


_TEXT = st.text(st.characters(codec=None), max_size=12)  # lone surrogates too
_VALUE = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT
    | st.lists(st.integers(0, 9) | _TEXT)
)


def _read(cell: str, like: object) -> object:
    """A cell of TSV as the kind of value that it was made from."""
    if like is None:
        return cell or None
    if isinstance(like, str):
        return unescaped(cell)
    return json.loads(cell)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(_TEXT, _VALUE, _VALUE), max_size=5))
def test_round_trip(rows):
    """What TSV, JSON and JSONL say is what the report holds, whatever it holds."""
    report = Report(columns("name a b"), tuple(rows))
    document = json.loads(text(report, "json"))
    assert repr(document["rows"]) == repr(report.dicts())
    lines = text(report, "jsonl").splitlines()
    assert repr([json.loads(line) for line in lines]) == repr(report.dicts())
    found = [line.split("\t") for line in text(report, "tsv", header=False).split("\n")[:-1]]
    read = [
        tuple(_read(cell, like) for cell, like in zip(line, row, strict=True))
        for line, row in zip(found, rows, strict=True)
    ]
    assert repr(read) == repr(rows)


@settings(max_examples=100, deadline=None)
@given(st.lists(_TEXT, min_size=1, max_size=4), st.integers(40, 200))
def test_no_line_too_long(names, width):
    """Whatever the names, no line of a table or tree of them is wider than the terminal."""
    report = ls(*(tensor(name) for name in names))
    for style in ("table", "tree"):
        assert all(cells(line) <= width for line in terminal(report, style, width).splitlines())
