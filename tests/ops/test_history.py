"""Parameters over checkpoints: rows, modules, marks; and the command."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import paramctl
from paramctl.ops._history_marks import Limits, marks
from paramctl.values.course import Point

KEYS = ["name", "step", "source", "l2", "update", "rel_update", "cos_first", "cos_last", "nan", "inf", "mark"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


@pytest.fixture(params=["pt", "safetensors"])
def trained(request, tmp_path, monkeypatch) -> list[dict[str, torch.Tensor]]:
    """A network of which one layer is frozen and one stops, trained: the states in `run/step-N`, and they themselves."""
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    model = network()
    model[0].weight.requires_grad_(False)
    inputs = torch.randn(32, 6)
    states = []
    for step in range(12):
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        states.append(state)
        if request.param == "pt":
            torch.save(state, f"run/step-{step}.pt")
        else:
            save_file(state, f"run/step-{step}.safetensors")
        if step == 5:
            model[2].weight.requires_grad_(False)
        model.zero_grad(set_to_none=True)
        (model(inputs) - inputs[:, :1]).square().mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.05 * parameter.grad)
    return states


def test_a_training_is_told_as_torch_would(trained, run):
    """A row for each parameter and step, with torch's norms, updates and cosines in float64."""
    result = run("history", "run", "-f", "json")
    assert result.code == 0
    assert [list(row) for row in result.rows] == [KEYS] * (6 * 12)
    for row in result.rows:
        at = row["step"]
        now, first, last = (trained[i][row["name"]].double().flatten() for i in (at, 0, -1))
        assert row["source"] == f"run/step-{at}{Path(row['source']).suffix}"
        assert row["l2"] == pytest.approx(now.norm().item(), rel=1e-6)
        for key, other in (("cos_first", first), ("cos_last", last)):
            assert row[key] == pytest.approx(torch.cosine_similarity(now, other, dim=0, eps=0).item(), abs=1e-9)
        if at == 0:
            assert (row["update"], row["rel_update"]) == (None, None)
            continue
        before = trained[at - 1][row["name"]].double().flatten()
        assert row["update"] == pytest.approx((now - before).norm().item(), rel=1e-6)
        assert row["rel_update"] == pytest.approx(((now - before).norm() / before.norm()).item(), rel=1e-6)


def test_layers_that_rest_are_marked(trained, run):
    """A layer that is frozen from the start, and one since the step at which its training ended, as the totals count."""
    result = run("history", "run", "-f", "json")
    marked = {}
    for row in result.rows:
        if row["mark"]:
            marked.setdefault((row["name"], row["mark"]), []).append(row["step"])
    assert marked == {("0.weight", "frozen"): list(range(1, 12)), ("2.weight", "stopped"): list(range(6, 12))}
    assert result.json["totals"] == {
        "checkpoints": 12, "parameters": 6, "nan": 0, "inf": 0, "grew": 0, "stopped": 1, "frozen": 1,
    }  # fmt: skip


@pytest.mark.parametrize(("options", "groups"), [
    (("--by", "module"), {"0": ["0"], "2": ["2"], "4": ["4"]}),
    (("--depth", "0"), {"": ["0", "2", "4"]}),
    (("--depth", "1"), {"": ["0", "2", "4"], "0": ["0"], "2": ["2"], "4": ["4"]}),
], ids=["by module", "depth 0", "depth 1"])  # fmt: skip
def test_modules_are_all_that_is_below_them(options, groups, trained, run):
    """A module's numbers are those of its tensors laid end to end."""
    rows = run("history", "run", *options, "-f", "json").rows
    assert {row["name"] for row in rows} == set(groups)
    whole = {name: [_joined(state, tops) for state in trained] for name, tops in groups.items()}
    for row in rows:
        now, first = whole[row["name"]][row["step"]], whole[row["name"]][0]
        assert row["l2"] == pytest.approx(now.norm().item(), rel=1e-6)
        assert row["cos_first"] == pytest.approx(torch.cosine_similarity(now, first, dim=0, eps=0).item(), abs=1e-9)
        if row["step"]:
            assert row["update"] == pytest.approx((now - whole[row["name"]][row["step"] - 1]).norm().item(), rel=1e-6)


def _joined(state: dict[str, torch.Tensor], tops: list[str]) -> torch.Tensor:
    return torch.cat([tensor.double().flatten() for name, tensor in state.items() if name.split(".")[0] in tops])


def test_a_tied_tensor_counts_once_in_a_module(tmp_path, monkeypatch):
    """Two names of one tensor have a row each, and a module that holds both has its elements once."""
    monkeypatch.chdir(tmp_path)
    for step in (1, 2):
        shared = torch.full((4,), float(step))
        torch.save({"m.a": shared, "m.b": shared, "m.c": shared.clone()}, f"s{step}.pt")
    run = paramctl.run("s1.pt", "s2.pt")
    assert {row["name"]: row["l2"] for row in run.history().dicts() if row["step"] == 2} == {
        "m.a": 4,
        "m.b": 4,
        "m.c": 4,
    }
    (row,) = (row for row in run.history(by="module").dicts() if row["step"] == 2)
    assert row["l2"] == pytest.approx(math.sqrt(2 * 16))


def test_bytes_of_tied_names_are_read_once(tmp_path, monkeypatch):
    """Each file's bytes are read once, whatever the number of names that look at them."""
    monkeypatch.chdir(tmp_path)
    shared = torch.randn(50_000)
    for step in (1, 2, 3):
        torch.save({"a": shared, "b": shared, "c": torch.randn(1000)}, f"s{step}.pt")
    taken = [0]

    def tell(nbytes: int) -> None:
        taken[0] += nbytes

    run = paramctl.run("s1.pt", "s2.pt", "s3.pt")
    run.history(tell=tell)
    assert taken[0] == run.nbytes == 3 * 4 * 51_000
    assert run.select("c").nbytes == 3 * 4 * 1000


def test_a_parameter_may_come_go_and_change_its_shape(tmp_path, monkeypatch):
    """What is not there has no row; what comes, comes back or has another shape has no update; the first is its own."""
    monkeypatch.chdir(tmp_path)
    ones = torch.ones(3)
    for step, state in enumerate(
        ({"a": ones}, {"a": 2 * ones, "b": ones}, {"b": 2 * ones}, {"a": ones, "b": torch.ones(4)})
    ):
        torch.save(state, f"s{step}.pt")
    report = paramctl.run(*[f"s{step}.pt" for step in range(4)]).history()
    assert report.notes == ("not in every checkpoint: a, b", "of another shape on the way: b")
    rows = report.dicts()
    told = [
        (row["name"], row["step"], row["update"] and round(row["update"], 6), row["cos_first"], row["cos_last"])
        for row in rows
    ]
    assert told == [
        ("a", 0, None, 1.0, 1.0),
        ("a", 1, round(math.sqrt(3), 6), pytest.approx(1), pytest.approx(1)),
        ("a", 3, None, 1.0, 1.0),
        ("b", 1, None, 1.0, None),
        ("b", 2, round(math.sqrt(3), 6), pytest.approx(1), None),
        ("b", 3, None, None, 1.0),
    ]


# ----------------------------------------------------------------------------- marks


def course(*norms: float | None, updates: list[float | None] | None = None, **more: int) -> list[Point | None]:
    """Points of given norms; each update is relative to the norm before."""
    points: list[Point | None] = []
    for at, norm in enumerate(norms):
        update = None if not at else (updates or [1.0] * len(norms))[at]
        change, before = (None, 0.0) if update is None else (update**2, 1.0)
        points.append(None if norm is None else Point(norm**2, change=change, before=before, **more))
    return points


MOVES = course(1, 1, 1, 1, 1)
MARKED = [  # a course beside others that move by their norm at each step; what it is marked
    ("it moves", course(1, 1, 1, 1, 1), [None] * 5),
    ("frozen", course(1, 1, 1, 1, 1, updates=[None, 0, 0, 0, 0]), [None, *["frozen"] * 4]),
    ("stopped", course(1, 1, 1, 1, 1, updates=[None, 1, 1, 0, 0]), [None, None, None, "stopped", "stopped"]),
    ("it moves again", course(1, 1, 1, 1, 1, updates=[None, 1, 0, 0, 1]), [None] * 5),
    ("hardly moving", course(1, 1, 1, 1, 1, updates=[None, 1, 1, 1, 9e-4]), [None, None, None, None, "stopped"]),
    ("just moving", course(1, 1, 1, 1, 1, updates=[None, 1, 1, 1, 2e-3]), [None] * 5),
    ("sudden", course(1, 1, 11, 11, 11), [None, None, "grew", "grew", None]),
    ("steady", course(1, 2, 3, 4, 5), [None] * 5),
    ("ever faster", course(1, 6, 36, 216, 1296), [None, None, "grew", "grew", "grew"]),
    ("from nothing", course(0, 1, 1, 1, 1), [None] * 5),
    ("NaN", course(1, 1, 1, 1, 1, nan=1), ["nan"] * 5),
    ("infinite", course(1, 1, 1, 1, 1, inf=1), ["inf"] * 5),
    ("not always there", course(1, None, 1, 1, 1, updates=[None, None, None, 0, 0]), [None, None, None, "frozen", "frozen"]),
]  # fmt: skip


@pytest.mark.parametrize(("points", "wanted"), [row[1:] for row in MARKED], ids=[row[0] for row in MARKED])
def test_marks(points, wanted):
    """What rests while others move, and what blew up, at the steps at which it does."""
    courses = {"it": points, "x": MOVES, "y": MOVES, "z": MOVES}
    found = marks(courses, Limits())
    assert found["it"] == wanted
    assert found["x"] == [None] * 5


def test_where_nothing_moves_nothing_is_marked():
    """Equal checkpoints are no layers that stopped: nothing moves."""
    still = course(1, 1, 1, updates=[None, 0, 0])
    assert marks({"a": still, "b": still}, Limits()) == {"a": [None] * 3, "b": [None] * 3}


def test_limits_are_the_users(trained, run):
    """--grew and --still move what is marked."""
    rows = run("history", "run", "--still", "1e9", "-f", "json").rows
    assert {row["mark"] for row in rows if row["step"]} == {"frozen"}
    rows = run("history", "run", "--grew", "1.0", "--still", "0", "-f", "json").rows
    assert {row["mark"] for row in rows} >= {"grew", "frozen"}


# ----------------------------------------------------------------------------- the command


def test_a_pipe_gets_jsonl(trained, run):
    """Without --format a pipe gets a JSON object a line, NaN and all as null."""
    result = run("history", "run")
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert rows == run("history", "run", "-f", "json").rows
    assert run("history", "run", "-f", "tsv").out.splitlines()[0].split("\t") == KEYS


def test_a_terminal_gets_a_row_a_parameter(trained, run):
    """A table has a picture of norms and of updates for each parameter, and its mark."""
    lines = run("history", "run", "-f", "table").out.splitlines()
    assert lines[0].split() == ["name", "l2", "norm", "updates", "rel_update", "cos_first", "nan", "inf", "mark"]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert len(rows) == 6
    assert " ··········· " in rows["0.weight"]
    assert rows["0.weight"].endswith("frozen")
    assert "·······" not in rows["0.bias"]
    assert rows["2.weight"].endswith("stopped since 6")


def test_what_is_told_can_be_chosen(trained, run):
    """--select, --layer and --dtype choose parameters, --where and --columns rows and columns."""
    assert {row["name"] for row in run("history", "run", "-s", "*.bias", "-f", "json").rows} == {
        "0.bias",
        "2.bias",
        "4.bias",
    }
    assert {row["name"] for row in run("history", "run", "-l", "2", "-f", "json").rows} == {"2.weight", "2.bias"}
    result = run("history", "run", "--where", "mark == stopped and step == 6", "--columns", "name,step", "-f", "tsv")
    assert result.out == "name\tstep\n2.weight\t6\n"
    result = run("history", "run", "-s", "nothing")
    assert result.code == 2
    assert result.err.startswith("error: run/step-0.")


def test_nested_checkpoints_are_rooted(tmp_path, monkeypatch, run):
    """--at roots each checkpoint, so that the optimizer's state is left out."""
    monkeypatch.chdir(tmp_path)
    for step in (1, 2):
        torch.save({"model": {"w": torch.ones(2) * step}, "optimizer": {"m": torch.ones(2)}}, f"s{step}.pt")
    assert {row["name"] for row in run("history", "s1.pt", "s2.pt", "-f", "json").rows} == {"model.w", "optimizer.m"}
    assert {row["name"] for row in run("history", "s1.pt", "s2.pt", "--at", "model", "-f", "json").rows} == {"w"}


def test_numbers_that_are_not_known_are_said(tmp_path, monkeypatch):
    """A tensor whose numbers are not known is left out, with a note, and the others are told."""
    monkeypatch.chdir(tmp_path)
    from gguf import GGMLQuantizationType, GGUFWriter

    for step in (1, 2):
        writer = GGUFWriter(f"s{step}.gguf", "llama")
        writer.add_tensor("a", np.ones(4, np.float32) * step)
        writer.add_tensor("b", np.zeros((1, 144), np.uint8), raw_dtype=GGMLQuantizationType.Q4_K)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    report = paramctl.run("s1.gguf", "s2.gguf").history()
    assert {row["name"] for row in report.dicts()} == {"a", "b"}


def test_torch_is_not_imported(trained):
    """A history needs numpy, and no torch."""
    code = (
        "import sys; from paramctl import cli; code = cli.run(['history', 'run']); print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env=dict(os.environ)
    )
    assert done.stdout.splitlines()[-1] == "0 False"


TOO_FEW = "name several, a folder of them, or a pattern in quotes: 'run/step-*.pt'"
ERRORS = [
    (
        ("history",),
        f"error: a history is of two checkpoints or more\n\nhint: {TOO_FEW}\n",
    ),
    (("history", "no.pt", "x.pt"), "error: no.pt: no such file\n"),
    (("history", "run", "--by", "layer"), "error: --by layer: neither tensor nor module\n"),
    (("history", "run", "--where", "x > 1"), f"error: no column x: there are {', '.join(KEYS)}\nx > 1\n^\n"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), ERRORS, ids=[" ".join(words) for words, _ in ERRORS])
def test_what_could_not_be_done_is_said(words, said, trained, run):
    """The whole error, and status 2."""
    result = run(*words)
    assert (result.code, result.out, result.err) == (2, "", said)
