"""`paramctl stats`: what it prints, in every form, and what it imports."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from program import ROOT

KEYS = ["name", "dtype", "shape", "numel", "mean", "std", "min", "max", "l2", "zeros", "nan", "inf"]
MORE = {  # each beside the number that numpy gives it
    "l1": lambda x: np.abs(x).sum(),
    "rms": lambda x: math.sqrt(np.square(x).mean()),
    "absmax": lambda x: np.abs(x).max(),
    "skew": lambda x: ((x - x.mean()) ** 3).mean() / x.std() ** 3,
    "kurtosis": lambda x: ((x - x.mean()) ** 4).mean() / x.std() ** 4 - 3,
    "sparsity": lambda x: (np.abs(x) <= 0.5).mean(),
    "zero_rows": lambda x: (x == 0).all(axis=1).sum(),
    "zero_cols": lambda x: (x == 0).all(axis=0).sum(),
    "repeated_rows": lambda x: len(x) - len(np.unique(x, axis=0)),
    "spectral_norm": lambda x: np.linalg.norm(x, 2),
    "stable_rank": lambda x: (np.linalg.norm(x) / np.linalg.norm(x, 2)) ** 2,
    "q0.25": lambda x: np.quantile(x, 0.25),
    "q1": np.max,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    weight = torch.randn(6, 5)
    weight[2] = weight[4] = 0
    weight[:, 3] = 0
    torch.save({"a.weight": weight, "a.bias": torch.tensor([1.0, math.nan, math.inf]), "b.weight": weight}, "m.pt")
    return tmp_path


def rows(run, *argv: str) -> dict[str, dict]:
    done = run("stats", "m.pt", *argv, "-f", "json")
    assert done.code == 0, done.err
    return {row["name"]: row for row in done.rows}


def test_the_usual_columns(folder, run):
    """Under the contract's keys; NaN and Inf are counted, and what is told is of the finite elements."""
    found = rows(run)
    assert [list(row) for row in found.values()] == [KEYS] * 3
    told = {"mean": 1.0, "std": 0.0, "min": 1.0, "max": 1.0, "l2": 1.0, "zeros": 0, "nan": 1, "inf": 1}
    assert found["a.bias"] == {"name": "a.bias", "dtype": "float32", "shape": [3], "numel": 3} | told
    assert found["a.weight"]["zeros"] == 14
    assert found["b.weight"] == found["a.weight"] | {"name": "b.weight"}


@pytest.mark.parametrize("key", MORE)
def test_a_column_on_request(folder, run, key):
    """It is added to the usual ones, and is numpy's number in float64."""
    row = rows(run, "--columns", key, "--threshold", "0.5")["a.weight"]
    assert list(row) == [*KEYS, key]
    values = torch.load("m.pt")["a.weight"].double().numpy()
    assert row[key] == pytest.approx(MORE[key](values), rel=1e-12)


def test_columns_are_picked_where_a_usual_one_is_named(folder, run):
    """In their order; what a condition or an order needs is computed, and not shown."""
    argv = ("--columns", "rms,name", "--where", "absmax > 1 and q0.5 < 1", "--sort", "-kurtosis")
    assert [list(row) for row in rows(run, *argv).values()] == [["rms", "name"]] * 2
    assert list(rows(run, "--where", "nan > 0 or absmax > 100")) == ["a.bias"]


def test_quantiles_and_histograms(folder, run):
    """As columns of their own: a number for each quantile, a count for each bin, numpy's."""
    values = torch.load("m.pt")["a.weight"].numpy()
    row = rows(run, "--quantiles", "0.01,0.5", "--hist", "--bins", "7")["a.weight"]
    assert list(row) == [*KEYS, "q0.01", "q0.5", "hist"]
    assert row["q0.01"] == pytest.approx(np.quantile(values.astype(float), 0.01), rel=1e-12)
    assert row["hist"] == np.histogram(values, 7)[0].tolist()


def test_modules(folder, run):
    """A tied weight counts once in what holds it twice, and so it does in the totals."""
    torch.save({"m.x.w": (w := torch.randn(4, 4)), "m.y.w": w, "m.z": torch.ones(3)}, "m.pt")
    whole = torch.cat([w.flatten(), torch.ones(3)]).double()
    for argv in (("--depth", "1"), ("--by", "module")):
        row = rows(run, *argv)["m"]
        assert (row["numel"], row["tensors"], row["shape"]) == (19, 3, None)
        assert row["std"] == pytest.approx(whole.std(correction=0).item(), rel=1e-12)
    assert list(rows(run, "--by", "module")) == ["m", "m.x", "m.y"]
    totals = run("stats", "m.pt", "-f", "json").json["totals"]
    assert totals["l2"] == pytest.approx(whole.norm().item(), rel=1e-12)
    assert (totals["numel"], totals["unique_numel"]) == (35, 19)


def test_the_sample_deviation(folder, run):
    """With n - 1; of one element there is none, and JSON says null."""
    torch.save({"w": torch.arange(4.0), "one": torch.ones(1), "none": torch.ones(0)}, "m.pt")
    found = rows(run, "--sample")
    assert found["w"]["std"] == pytest.approx(torch.arange(4.0).double().std().item(), rel=1e-15)
    assert found["one"]["std"] is None
    assert [found["none"][key] for key in KEYS[3:]] == [0, None, None, None, None, 0.0, 0, 0, 0]


REFUSED = {
    "--columns l3": "error: --columns l3: no such column\n\nhint: there are l2, ",
    "--quantiles 0.1,x": "error: --quantiles 0.1,x: not numbers with commas between\n\nhint: --quantiles 0.01,0.5,0.99",
    "--quantiles 1.5": "error: a quantile of 1.5: not from 0 to 1",
    "--by layer": "error: --by layer: neither tensor nor module",
    "--by module --columns condition": (
        "error: condition is of a tensor, and not of a module\n\nhint: leave out --by and --depth"
    ),
    "a.weight[0]": "error: a.weight[0]: stats is about whole tensors\n\nhint: show and set take slices",
    "no.such": "error: m.pt: no parameter and no module no.such\n\nhint: ",
}


@pytest.mark.parametrize("argv", REFUSED)
def test_what_is_refused(folder, run, argv):
    """In at most three lines that say what would work; and nothing is printed."""
    done = run("stats", "m.pt", *argv.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(REFUSED[argv])
    assert len(done.err.splitlines()) <= 3


def test_bars_on_a_terminal(folder, run):
    """A histogram is drawn as bars, in a C locale of other characters, and what is not zero is seen."""
    torch.save({"w": torch.tensor([0.0] * 800 + [1.0] * 400 + [2.0])}, "m.pt")
    line = run("stats", "m.pt", "--hist", "--bins", "3", "-f", "table").out.splitlines()[1]
    assert line.endswith("  █▄▁")


def test_a_definition_is_built_with_values(run):
    """Under a seed the same numbers, and those of torch."""
    row = run("stats", ROOT / "models" / "mlp.py", "0.weight", "--seed", "0", "-f", "json").rows[0]
    torch.manual_seed(0)
    assert row["mean"] == pytest.approx(nn.Linear(4, 8).weight.double().mean().item(), rel=1e-12)


def test_torch_is_not_imported(folder):
    """Nor anything else of its tier, for a file."""
    code = "import sys\nfrom paramctl import cli\ncli.run(sys.argv[1:])\nprint('torch' in sys.modules, file=sys.stderr)"
    argv = ("stats", "m.pt", "--hist", "-q", "0.5", "--spectral", "--columns", "l1,zero_rows")
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    assert done.stderr == "False\n"


@pytest.fixture
def endless(folder):
    """A file of a hundred gigabytes, which takes minutes: a small tensor, and a large one."""
    with Path("sparse.safetensors").open("wb") as file:
        header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        header += b'"b":{"dtype":"F32","shape":[26843545600],"data_offsets":[8,107374182408]}}'
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(16 + len(header) + (100 << 30))


@pytest.mark.parametrize(
    ("options", "lines"),
    [("", 1), ("", 2), ("-f jsonl --head 9", 1), ("-f names --where 'zeros > 1'", 1), ("-f json", 0)],
)
def test_piped_into_head_it_stops_at_once(endless, options, lines):
    """A row is printed when it is known; where nobody reads on, the rest is not computed: status 141, and no word."""
    command = (
        f"{sys.executable} -m paramctl stats sparse.safetensors {options} | head -n {lines}; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (141, "")
    assert len(done.stdout.splitlines()) == lines


def test_the_first_rows_are_enough_for_themselves(endless, run):
    """What --head leaves out is not read, unless the rows are to be sorted."""
    done = run("stats", "sparse.safetensors", "--head", "1", "--columns", "name,zeros", "-f", "tsv")
    assert (done.code, done.out) == (0, "name\tzeros\na\t2\n")


def test_interrupted_it_stops_at_once(endless):
    """Ctrl-C in the middle of a hundred gigabytes: status 130, and not a word."""
    running = subprocess.Popen(
        [sys.executable, "-m", "paramctl", "stats", "sparse.safetensors"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - one call
    )  # fmt: skip
    with running:
        assert running.stdout
        assert [running.stdout.readline()[:2] for _ in range(2)] == [b"na", b"a\t"]
        deadline = time.monotonic() + 60
        while not has_open(running.pid, "sparse.safetensors") and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    assert (running.returncode, out, err) == (130, b"", b"")


def has_open(pid: int, name: str) -> bool:
    links = Path(f"/proc/{pid}/fd").iterdir()
    return any(os.path.realpath(link).endswith(name) for link in links)
