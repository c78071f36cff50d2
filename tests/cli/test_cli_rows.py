"""`--where`, `--sort`, `--head` and `--columns` through the whole program, in every format."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest
import torch
from cli_files import safetensors
from torch import nn

from paramctl.cli._options import Rows
from paramctl.cli.ls import COLUMNS

NAMES = [f"h.{i}.{name}" for i in range(12) for name in ("attn.weight", "attn.bias", "mlp.weight")] + ["wte.weight"]
SIFTED = ("--where", "numel > 4 and not name ~ mlp", "--sort", "-numel,name", "--head", "14")


def sifted(rows):
    """What SIFTED keeps, by Python: twelve matrices of 20 elements in the order of their layers, and two of 15."""
    found = [row for row in rows if row["numel"] > 4 and "mlp" not in row["name"]]
    layers = sorted((row for row in found if row["numel"] == 20), key=lambda row: int(row["name"].split(".")[1]))
    return layers + sorted((row for row in found if row["numel"] == 15), key=lambda row: row["name"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One model as safetensors, and as a torch file with its names in any order and a tie."""
    made = tmp_path_factory.mktemp("rows")
    shapes = {name: (4,) if name.endswith("bias") else (4, 5) if "attn" in name else (3, 5) for name in NAMES}
    safetensors(made / "m.safetensors", shapes)
    shuffled = random.Random(0).sample(NAMES, len(NAMES))
    tensors = {name: torch.zeros(shapes[name]) for name in shuffled}
    torch.save({**tensors, "lm_head.weight": tensors["wte.weight"]}, made / "m.pt")
    torch.save(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), made / "whole.pt")
    return made


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def test_rows_are_filtered_sorted_and_cut(run):
    """The rows are those that Python chooses from all of them, whole, and the totals are those of the selection."""
    everything = run("ls", "m.pt", "-f", "json").json
    found = run("ls", "m.pt", *SIFTED, "-f", "json").json
    assert found["rows"] == sifted(everything["rows"])
    assert len(found["rows"]) == 14
    assert found["totals"] == {**everything["totals"], "rows": {"shown": 14, "of": len(NAMES) + 1}}


def test_options_come_after_the_selection(run):
    """Patterns choose first, and totals and the count of rows are of what they chose."""
    found = run("ls", "m.pt", "h.1.*", "--where", "numel = 4", "-f", "json").json
    assert [row["name"] for row in found["rows"]] == ["h.1.attn.bias"]
    assert (found["totals"]["tensors"], found["totals"]["rows"]) == (3, {"shown": 1, "of": 3})


def test_every_format_has_the_columns_asked_for(run):
    """JSON, JSONL, TSV, Markdown and tables have these columns, in this order, whether a name is among them or not."""
    words = ("ls", "m.pt", *SIFTED, "--columns", "numel,shape", "--columns", "dtype")
    rows = run(*words, "-f", "json").rows
    assert [list(row) for row in rows] == [["numel", "shape", "dtype"]] * 14
    assert [json.loads(line) for line in run(*words, "-f", "jsonl").out.splitlines()] == rows
    tsv = [[str(row["numel"]), json.dumps(row["shape"], separators=(",", ":")), row["dtype"]] for row in rows]
    assert [line.split("\t") for line in run(*words).out.splitlines()] == [["numel", "shape", "dtype"], *tsv]
    markdown = run(*words, "-f", "markdown").out.splitlines()
    assert markdown[:3] == ["| numel | shape | dtype |", "| ---: | --- | --- |", "| 20 | 4×5 | float32 |"]
    table = run(*words, "-f", "table").out.splitlines()
    assert (table[0].split(), table[1].split(), len(table)) == (
        ["numel", "shape", "dtype"],
        ["20", "4×5", "float32"],
        15,
    )


@pytest.mark.parametrize("names", [("-f", "names"), ("-0",)])
@pytest.mark.parametrize("columns", [(), ("--columns", "numel"), ("--columns", "tie,name"), ("--columns", "storage")])
def test_names_are_names_whatever_the_columns(names, columns, run):
    """Names alone are those of the rows, where --columns leaves them out, and where another column has names too."""
    expected = [row["name"] for row in run("ls", "m.pt", *SIFTED, "-f", "json").rows]
    said = run("ls", "m.pt", *SIFTED, *columns, *names).out
    assert said == "".join(name + ("\0" if names == ("-0",) else "\n") for name in expected)


def test_sorted_names_are_in_the_order_of_a_safetensors_file(run):
    """`--sort name` puts layers as 0, 1, 2, 10, as they are listed where the file's own order says nothing."""
    expected = run("ls", "m.safetensors", "-f", "names").out
    assert run("ls", "m.pt", "!lm_head.weight", "--sort", "name", "-f", "names").out == expected
    assert run("ls", "m.safetensors", "--sort", "-name", "-f", "names").out.split() == expected.split()[::-1]


@pytest.mark.parametrize(("file", "options"), [("m.pt", SIFTED), ("whole.pt", ("--where", "name ~ '^0'"))])
def test_a_tree_is_of_the_rows_that_are_left(file, options, run):
    """`-f tree` draws what it would of those names alone, and says how many they are."""
    names = run("ls", file, *options, "-f", "names").out.split()
    drawn = run("ls", file, *options, "-f", "tree").out
    assert drawn == run("ls", file, *names, "-f", "tree").out
    assert f" {len(names)} tensors · " in drawn.splitlines()[0]


def test_a_tree_of_no_rows_is_its_root(run):
    """Where no row is left nothing hangs below the file."""
    assert run("ls", "m.pt", "--where", "numel < 0", "-f", "tree").out == "m.pt  0 tensors · 0 elements · 0 B\n"


@pytest.mark.parametrize("words", [("--where", "numel < 0"), ("--head", "0")])
def test_no_row_is_an_answer(words, run):
    """Where no row is left there is a header and no row, and the status is 0."""
    done = run("ls", "m.pt", *words, "--columns", "name,numel")
    assert (done.code, done.out, done.err) == (0, "name\tnumel\n", "")


def test_what_a_file_knows_is_true_or_false(run):
    """A column of truths is a condition by itself, and one of classes is text."""
    assert (
        run("ls", "whole.pt", "--where", "requires_grad and module = Linear", "-f", "names").out == "0.weight\n0.bias\n"
    )
    assert (
        run("ls", "whole.pt", "--where", "kind = buffer", "--sort=-name", "--head=1", "-f", "names").out
        == "1.running_var\n"
    )


def test_a_digest_is_made_where_an_option_names_it(run):
    """The column is there with --digest, and where a condition, the order or --columns needs it."""
    digests = {row["name"]: row["digest"] for row in run("ls", "m.pt", "--digest", "-f", "json").rows}
    for words in (("--columns", "name,digest"), ("--sort", "digest"), ("--where", "digest != 'no'")):
        assert {row["name"]: row["digest"] for row in run("ls", "m.pt", *words, "-f", "json").rows} == digests
    some = digests["wte.weight"]
    names = run("ls", "m.pt", "--where", f"digest == '{some}'", "-f", "names").out.split()
    assert sorted(names) == sorted(name for name, digest in digests.items() if digest == some)
    assert "digest" not in run("ls", "m.pt", "--head", "1", "-f", "json").rows[0]


def test_columns_that_options_name_are_needed():
    """A command that computes columns is told which: those of the condition, of the order, and those to show."""
    assert Rows().needed == frozenset()
    assert Rows(where="kurtosis > 3 or name ~ x", sort=["-std,mean"], columns=["l1"]).needed == {
        "kurtosis", "name", "std", "mean", "l1",
    }  # fmt: skip


def test_a_listing_without_these_options_does_not_pay_for_them(folder):
    """Neither the grammar nor the sorting is imported by a plain `ls`; both are where an option needs them."""
    code = (
        "import sys; from paramctl import cli; cli.run(sys.argv[1:]); sys.stdout.flush(); "
        "print(*sorted({'paramctl.where', 'paramctl.rows'} & sys.modules.keys()), file=sys.stderr)"
    )
    for more, imported in (((), ""), (("--head", "1"), "paramctl.rows paramctl.where")):
        words = [sys.executable, "-c", code, "ls", "m.safetensors", *more]
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=folder, timeout=60)
        assert done.stderr.strip() == imported


def test_the_options_are_checked_against_the_columns_of_ls(run):
    """A column that is not there is told before the file is opened."""
    listed = ", ".join(column.key for column in COLUMNS)
    done = run("ls", "no-such-file.pt", "--where", "zzz > 1")
    assert (done.code, done.out, done.err) == (2, "", f"error: no column zzz: there are {listed}\nzzz > 1\n^\n")
