"""One report, every format; and what a report without rows, or without names, looks like."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from paramctl.errors import ParamctlError
from paramctl.render import RENDERERS
from paramctl.report import Branch, Report
from render.builders import columns, ls, tensor, terminal, text

TIED = ls(
    tensor("wte.weight", storage="0"),
    tensor("mask", (2, 2), kind="buffer", dtype="bool", nbytes=4, module=None),
    tensor("head.weight", storage="0", tie="wte.weight"),
    branch=Branch(
        "",
        "GPT",
        children=(
            Branch("wte", "Embedding", "8, 4", numel=32, nbytes=128, tensors=1, children=(Branch("weight", row=0),)),
            Branch("act.[0-1]", "ReLU", times=2),
            Branch("mask", row=1),
            Branch("head", "Linear", numel=32, nbytes=2048, tensors=1, children=(Branch("weight", row=2),)),
        ),
    ),
)
STATS = Report(
    columns("name numel mean"),
    (("a", 1234, 0.5), ("b", 2, float("nan")), ("c", 0, None), ("d", 1, float("-inf"))),
)
INFO = Report(
    (),
    (),
    {"tensors": 2, "numel": 2048, "nbytes": 8192, "dtypes": {"float32": {"tensors": 2, "numel": 2048, "nbytes": 8192}}},
    "m.pt",
    "torch zip",
    metadata={"format": "pt"},
    extras={"epoch": 3, "note": "a\nb", "losses": [i / 2 for i in range(20)], "args": {"lr": 0.1}},
)

TREE = """\
m.pt  GPT  3 tensors · 64 elements (96 with ties) · 256 B
├── wte           Embedding(8, 4)  32  128 B
│   └── weight    8×4  float32
├── act.[0-1] ×2  ReLU
├── mask          2×2  bool  buffer
└── head          Linear  32  2.0 KiB
    └── weight    8×4  float32  = wte.weight
"""
TSV = """\
name\tshape\tdtype\tnumel\tnbytes\tkind\trequires_grad\tstride\tstorage\tstorage_offset\ttie\tmodule\tfile
wte.weight\t[8,4]\tfloat32\t32\t128\tparameter\ttrue\t[4,1]\t0\t0\t\tLinear\tm.pt
mask\t[2,2]\tbool\t4\t4\tbuffer\ttrue\t[2,1]\tmask\t0\t\t\tm.pt
head.weight\t[8,4]\tfloat32\t32\t128\tparameter\ttrue\t[4,1]\t0\t0\twte.weight\tLinear\tm.pt
"""


@pytest.mark.parametrize(
    ("style", "want"), [("tree", TREE), ("tsv", TSV), ("names", "wte.weight\nmask\nhead.weight\n")]
)
def test_pipe(style, want):
    """In a pipe a format is plain, complete and exactly this."""
    assert text(TIED, style) == want


def test_tree_in_ascii():
    """A tree for an ASCII encoding holds ASCII alone."""
    tree = text(TIED, "tree", ascii=True)
    assert tree.isascii()
    assert "|-- act.[0-1] x2" in tree
    assert "`-- head" in tree


def test_table_in_pipe():
    """A table in a pipe has every column, aligned, and no totals."""
    lines = text(TIED, "table").splitlines()
    assert len(lines) == 4
    assert lines[0].split() == [column.key for column in TIED.columns]
    assert lines[1].index("8×4") == lines[0].index("shape")
    assert lines[1].rindex(" 32  ") + 1 + len("32") == lines[0].index("numel") + len("numel")


def test_table_on_terminal():
    """On a terminal a column that says nothing is left out, one without room is named, and totals come last."""
    assert terminal(TIED, "table", 66).splitlines() == [
        "name         shape  dtype    numel  nbytes  kind       tie",
        "wte.weight   8×4    float32     32   128 B  parameter  -",
        "mask         2×2    bool         4     4 B  buffer     -",
        "head.weight  8×4    float32     32   128 B  parameter  wte.weight",
        "3 tensors · 64 elements (96 with ties) · 256 B",
        "not shown: storage, requires_grad, module (see --format tsv, or a",
        "  wider screen)",
    ]


def test_strides_are_shown_where_they_say_something():
    """A transposed view, an offset and a shared storage bring their columns back."""
    view = ls(tensor("a", storage="0"), tensor("b", storage="0", stride=[1, 8], storage_offset=4))
    assert terminal(view, "table", 160).splitlines()[0].split() == [
        "name", "shape", "dtype", "numel", "nbytes", "kind", "requires_grad", "stride", "storage", "storage_offset", "module",
    ]  # fmt: skip


def test_columns_asked_for_are_all_shown():
    """What was picked stands on a terminal, where it says nothing and where there is no room for it."""
    made = ls(tensor("0.weight"), tensor("1.weight"))
    keys = [column.key for column in made.columns]
    assert terminal(made._replace(is_picked=True), "table", 200).splitlines()[0].split() == keys
    assert terminal(made, "table", 200).splitlines()[0].split() != keys
    narrow = terminal(made._replace(is_picked=True), "table", 40)
    assert "not shown" not in narrow
    assert "not shown" in terminal(made, "table", 40)


def test_rows_that_were_left_out_are_counted():
    """The line below a table, and the root of a tree, end with how many rows there are of how many."""
    totals = {"tensors": 1500, "rows": {"shown": 1, "of": 1500}}
    made = ls(tensor("w"))._replace(totals=totals)
    assert terminal(made, "table").splitlines()[-1] == "1,500 tensors · 1 of 1,500 rows"
    assert terminal(made, "tree").splitlines()[0] == "m.pt  1,500 tensors · 1 of 1,500 rows"


def test_json():
    """JSON has the design's keys, raw values, and a row a line."""
    out = text(TIED, "json")
    document = json.loads(out)
    assert list(document) == ["source", "format", "rows", "totals"]
    assert document["rows"] == TIED.dicts()
    assert document["totals"] == TIED.totals
    assert len(out.splitlines()) == 5


def test_json_lines():
    """JSONL is the rows of the JSON."""
    assert [json.loads(line) for line in text(TIED, "jsonl").splitlines()] == TIED.dicts()


def test_not_a_number():
    """NaN and infinities are null in JSON, empty in TSV, and words on a screen."""
    assert [row["mean"] for row in json.loads(text(STATS, "json"))["rows"]] == [0.5, None, None, None]
    assert [line.split("\t")[2] for line in text(STATS, "tsv").splitlines()] == ["mean", "0.5", "", "", ""]
    assert [line.split()[-1] for line in text(STATS, "table").splitlines()] == ["mean", "0.5", "nan", "-", "-inf"]


def test_nested_not_a_number():
    """A NaN deep in a list or in an extra is null too."""
    report = Report(
        columns("name value"), (("a", [[1.0, float("nan")]]),), {"x": float("inf")}, extras={"y": [float("nan")]}
    )
    assert json.loads(text(report, "json")) == {
        "source": "", "format": "", "rows": [{"name": "a", "value": [[1.0, None]]}], "totals": {"x": None}, "extras": {"y": [None]},
    }  # fmt: skip


def test_true_is_not_one():
    """Values that Python holds equal stay what they are."""
    report = Report(
        columns("name detail"), (("a", True), ("b", 1), ("c", 1.0), ("d", 0), ("e", False), ("f", -0.0), ("g", 0.0))
    )
    assert text(report, "tsv", header=False).split() == [
        "a",
        "true",
        "b",
        "1",
        "c",
        "1.0",
        "d",
        "0",
        "e",
        "false",
        "f",
        "-0.0",
        "g",
        "0.0",
    ]
    assert [json.dumps(row["detail"]) for row in json.loads(text(report, "json"))["rows"]] == [
        "true",
        "1",
        "1.0",
        "0",
        "false",
        "-0.0",
        "0.0",
    ]


def test_markdown():
    """Markdown aligns numbers to the right and shows no mark-up of a name."""
    assert text(
        Report(columns("name shape numel"), (("a|b`_c_d*[x](y)", [8, 4], 1234), ("-", [], None))), "markdown"
    ) == (
        "| name | shape | numel |\n| --- | --- | ---: |\n"
        "| a\\|b\\`\\_c_d\\*\\[x\\](y) | 8×4 | 1,234 |\n| - | scalar |  |\n"
    )


@pytest.mark.parametrize("style", ["tsv", "table"])
def test_no_header(style):
    """Without a header the first line is the first row."""
    assert text(STATS, style, header=False).startswith("a")


@pytest.mark.parametrize("style", RENDERERS)
def test_no_rows(style):
    """No rows is no error in any format."""
    report = Report(columns("name shape"), (), {"tensors": 0}, branch=Branch(""))
    assert terminal(report, style).count("\n") <= 3
    assert not text(report, style).startswith("\n")


def test_scalars_have_a_shape():
    """A tensor without dimensions has a shape, and a table of nothing else shows it."""
    assert terminal(ls(tensor("a", ())), "table").splitlines()[1].split()[:3] == ["a", "scalar", "float32"]


def test_ties_give_every_name():
    """Names of a report of groups are all the names of all the groups."""
    assert text(Report(columns("names dtype"), ((["a", "b"], "x"), (["c"], "x"))), "names") == "a\nb\nc\n"


@pytest.mark.parametrize(
    ("report", "style", "want"),
    [
        (STATS, "tree", "error: tree is for tree and ls\n\nhint: choose table, tsv or json with --format"),
        (INFO, "names", "error: no names to write here\n\nhint: choose json, tsv or table with --format"),
        (
            STATS,
            "yaml",
            "error: no format 'yaml'\n\nhint: one of tree, table, tsv, json, jsonl, markdown, names, sarif",
        ),
    ],
)
def test_errors(report, style, want):
    """A format that does not fit says so, before anything is written."""
    with pytest.raises(ParamctlError) as caught:
        text(report, style)
    assert str(caught.value) == want


def test_info_on_terminal():
    """Without columns, a fact a line: totals dressed, a dtype a line, long values summarised."""
    assert terminal(INFO, "table", 60).splitlines() == [
        "source           m.pt",
        "format           torch zip",
        "tensors          2",
        "numel            2,048",
        "nbytes           8.0 KiB",
        "dtypes.float32   2 tensors · 2,048 elements · 8.0 KiB",
        "metadata.format  pt",
        "extras.epoch     3",
        "extras.note      a\\nb",
        "extras.losses    [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, …",
        "                   12 more]",
        "extras.args      {lr: 0.1}",
    ]


def test_info_in_pipe():
    """TSV of facts has dotted keys and raw, whole values."""
    lines = dict(line.split("\t") for line in text(INFO, "tsv").splitlines())
    assert lines["key"] == "value"
    assert lines["totals.dtypes.float32.nbytes"] == "8192"
    assert lines["extras.note"] == "a\\nb"
    assert lines["extras.args.lr"] == "0.1"
    assert json.loads(lines["extras.losses"]) == [i / 2 for i in range(20)]
    assert "\n".join(text(INFO, "table").splitlines()).endswith('extras.args      {"lr":0.1}')


def test_info_as_json():
    """The document of facts has metadata and extras, and JSONL holds it on one line."""
    document = json.loads(text(INFO, "json"))
    assert document["metadata"] == {"format": "pt"}
    assert document["extras"]["epoch"] == 3
    assert json.loads(text(INFO, "jsonl")) == {key: value for key, value in document.items() if key != "rows"}


def test_extras_that_hold_themselves():
    """An extra that is circular, deep, or no JSON at all is drawn and ends."""
    loop: list[object] = []
    loop.append(loop)
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    report = Report(
        (), (), {}, "m.pt", "f", extras={"loop": loop, "deep": deep, "set": {1}, "bytes": b"\xff", "keys": {(1, 2): 3}}
    )
    for style in ("json", "jsonl", "tsv", "table", "markdown"):
        assert text(report, style)
        assert terminal(report, style)
    assert json.loads(text(report, "json"))["extras"]["loop"] == ["…"]


def test_nothing_heavy_is_imported():
    """Drawing in a pipe, and on a terminal, imports neither rich nor numpy nor torch."""
    code = (
        "import sys; sys.path.insert(0, 'tests'); from render.builders import *; r = ls(tensor('a'));"
        "[text(r, s) + terminal(r, s, color=True) for s in 'tree table tsv json jsonl markdown names'.split()];"
        "print([m for m in ('rich', 'numpy', 'torch', 'typer', 'pydantic') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
