"""Every command in every format: valid, with the keys that were promised, and with totals."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from cli_files import mlp
from torch import nn

from program import MODELS

LS = [
    "name",
    "shape",
    "dtype",
    "numel",
    "nbytes",
    "kind",
    "requires_grad",
    "stride",
    "storage",
    "storage_offset",
    "tie",
    "module",
    "file",
]
PLAN = ["name", "shape", "dtype", "action", "detail", "tied_with"]
KEYS = {
    "ls": LS,
    "tree": LS,
    "show": ["name", "slice", "class", "dtype", "shape", "requires_grad", "grad", "value"],
    "ties": ["names", "relation", "shape", "dtype", "nbytes", "saved_nbytes", "storage", "source"],
    "init": PLAN,
    "set": PLAN,
    "convert": PLAN,
}
TOTALS = {
    "tensors": int,
    "numel": int,
    "unique_numel": int,
    "nbytes": int,
    "unique_nbytes": int,
    "storage_nbytes": int,
    "dtypes": dict,
    "modules": int,
}
COMMANDS = {
    "tree": (),
    "ls": (),
    "info": (),
    "show": (),
    "ties": (),
    "init": ("--scheme", "normal", "--seed", "0"),
    "set": ("0.weight[0] = 1", "*.bias += 1"),
    "convert": ("--to", "npz", "--dtype", "fp16"),
}
SOURCES = ["model.pt", "whole.pt", "nested.pt", "tied.safetensors", "models/tied.py"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from safetensors.torch import save_model

    made = tmp_path_factory.mktemp("formats")
    shutil.copytree(MODELS, made / "models", ignore=shutil.ignore_patterns("__pycache__"))
    model = mlp()
    torch.save(model.state_dict(), made / "model.pt")
    torch.save(model, made / "whole.pt")
    torch.save({"0": model.state_dict(), "epoch": 3, "lr": float("nan")}, made / "nested.pt")
    shared = nn.Linear(8, 8)
    save_model(nn.Sequential(nn.Linear(4, 8), shared, shared), made / "tied.safetensors")
    return made


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def words(command: str, source: str) -> list[str]:
    """The command on the source, so that it works on it."""
    rest = COMMANDS[command]
    if command == "set" and source == "nested.pt":
        rest = ("0.0.weight[0] = 1", "*.bias += 1")
    seed = ("--seed", "0") if command in {"show", "set", "convert"} else ()
    return [command, source, *rest, *seed]


def strict(text: str):
    """JSON as its specification has it: no NaN, no infinities."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("command", COMMANDS)
def test_json_has_the_keys_and_the_totals(command, source, run):
    """JSON of every command has source, format, rows with their keys in order, and the same totals."""
    document = strict(run(*words(command, source), "-f", "json").out)
    assert document["source"] == source
    assert (
        document["format"]
        == {"p": "torch-zip", "t": "safetensors", "m": "python"}[
            "m" if source.endswith(".py") else "t" if source.endswith("safetensors") else "p"
        ]
    )
    assert {key: type(value) for key, value in document["totals"].items()} == TOTALS
    more = {"metadata", "extras"} if command == "info" else set()
    assert document.keys() == {"source", "format", "rows", "totals"} | more
    assert all(list(row) == KEYS[command] for row in document["rows"])
    assert bool(document["rows"]) == (command != "info" and (command != "ties" or "tied" in source))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"info"}))
def test_formats_hold_the_same_rows(command, source, run):
    """JSONL is the rows of JSON; TSV and Markdown have as many lines, under the same keys; names are the names."""
    rows = strict(run(*words(command, source), "-f", "json").out)["rows"]
    assert [strict(line) for line in run(*words(command, source), "-f", "jsonl").out.splitlines()] == rows
    header, *lines = run(*words(command, source), "-f", "tsv").out.splitlines()
    assert header.split("\t") == KEYS[command]
    assert [line.count("\t") for line in lines] == [len(KEYS[command]) - 1] * len(rows)
    assert run(*words(command, source), "-f", "tsv", "--no-header").out.splitlines() == lines
    header, rule, *lines = run(*words(command, source), "-f", "markdown").out.splitlines()
    assert header == f"| {' | '.join(KEYS[command])} |"
    assert set(rule) <= set("| -:")
    assert len(lines) == len(rows)
    names = [name for row in rows for name in (row["names"] if command == "ties" else [row["name"]])]
    assert run(*words(command, source), "-f", "names").out.splitlines() == names
    assert run(*words(command, source), "-0").out == "".join(f"{name}\0" for name in names)
    if rows:
        assert names[0] in run(*words(command, source), "-f", "table").out


@pytest.mark.parametrize("source", SOURCES)
def test_info_is_facts_in_every_format(source, run):
    """Info has no rows: TSV and Markdown are keys and values, JSONL is one object with what JSON has."""
    document = strict(run("info", source, "-f", "json").out)
    (line,) = run("info", source, "-f", "jsonl").out.splitlines()
    assert strict(line) == {key: value for key, value in document.items() if key != "rows"}
    facts = dict(line.split("\t") for line in run("info", source, "-f", "tsv").out.splitlines())
    assert facts["key"] == "value"
    assert facts["totals.numel"] == str(document["totals"]["numel"])
    assert run("info", source, "-f", "markdown").out.startswith("| key | value |\n| --- | --- |\n| source | ")
    assert f"{document['totals']['numel']:,}" in run("info", source, "-f", "table").out


@pytest.mark.parametrize("source", SOURCES)
def test_the_tree_names_every_parameter(source, run):
    """The plain tree, unfolded, has each parameter's last name as often as there are such parameters."""
    rows = run("ls", source, "-f", "json").rows
    lines = run("tree", source, "--no-fold").out.splitlines()
    assert lines[0].startswith(source)
    leaves = [line.lstrip("│├└─ ").split()[0] for line in lines[1:]]
    assert leaves.count("weight") == sum(row["name"].endswith("weight") for row in rows)
    assert leaves.count("bias") == sum(row["name"].endswith("bias") for row in rows)


def test_totals_count_a_tied_element_once(run):
    """Numel counts every name; unique_numel each element once; and every command of a model says the same."""
    for command in ("tree", "ls", "info", "show", "ties"):
        totals = strict(run(command, "models/tied.py", "-f", "json").out)["totals"]
        assert (totals["tensors"], totals["numel"], totals["unique_numel"]) == (8, 193, 121)
        assert (totals["nbytes"], totals["unique_nbytes"], totals["storage_nbytes"]) == (772, 484, 484)
        assert totals["dtypes"] == {"float32": {"tensors": 8, "numel": 193, "nbytes": 772}}


def test_totals_are_of_what_is_selected(run):
    """A selection's totals count the selection."""
    totals = strict(run("ls", "model.pt", "*.bias", "-f", "json").out)["totals"]
    assert (totals["tensors"], totals["numel"], totals["nbytes"]) == (2, 9, 36)


def test_extras_that_json_cannot_say_are_null(run):
    """An extra that is NaN is null in JSON."""
    assert strict(run("info", "nested.pt", "-f", "json").out)["extras"] == {"epoch": 3, "lr": None}


def test_values_that_json_cannot_say_are_null(run, tmp_path):
    """NaN and infinities among values are null in JSON, and told as themselves in a table."""
    torch.save({"w": torch.tensor([float("nan"), float("inf"), 1.0])}, tmp_path / "m.pt")
    assert strict(run("show", tmp_path / "m.pt", "-f", "json").out)["rows"][0]["value"] == [None, None, 1.0]
    assert "[nan, inf, 1.]" in run("show", tmp_path / "m.pt", "-f", "table").out


def test_the_list_of_initializers_has_every_format(run):
    """Init --list is a report as any other."""
    rows = strict(run("init", "--list", "-f", "json").out)["rows"]
    assert [list(row) for row in rows] == [["name", "aliases", "arguments", "law"]] * len(rows)
    for style in ("table", "tsv", "jsonl", "markdown", "names"):
        assert "xavier_uniform" in run("init", "--list", "-f", style).out
