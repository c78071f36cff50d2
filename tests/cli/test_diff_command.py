"""`paramctl diff` as a whole program: exit status, what a terminal and a pipe get, sources, streams and signals."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_files import mlp, safetensors
from test_cli_hostile import NAMES, is_harmless

from paramctl import cli

KEYS = [
    "name", "status", "a", "b", "max_abs", "l2", "rel_l2", "cosine", "changed", "max_at", "name_b", "nonfinite",
]  # fmt: skip
TOTALS = [
    "tensors", "numel", "unique_numel", "same", "changed", "dtype", "shape", "added", "removed", "l2", "rel_l2",
    "max_abs", "ties_only_a", "ties_only_b",
]  # fmt: skip


class Screen(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Run a command on a terminal of so many columns: what it shows there."""

    def _terminal(*words: object, columns: int = 100) -> str:
        screen = Screen(io.BytesIO(), encoding="utf-8", newline="")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", screen)
            patch.setattr(sys, "stderr", screen)
            patch.setenv("COLUMNS", str(columns))
            patch.setenv("NO_COLOR", "1")
            assert cli.run([*map(str, words)]) in (0, 1)
            screen.flush()
        return screen.buffer.getvalue().decode()

    return _terminal


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Files to compare: a base, a copy, one in another format, and a training checkpoint with some of everything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("paramctl.source._stdin_has_data", lambda: False)
    from safetensors.torch import save_file

    state = mlp().state_dict()
    torch.save(state, "base.pt")
    torch.save({name: tensor.clone() for name, tensor in state.items()}, "copy.pt")
    save_file(state, "base.safetensors")
    tuned = {f"module.{name}": tensor.clone() for name, tensor in state.items()}
    tuned["module.0.weight"] += 0.5
    tuned["module.0.bias"] = tuned["module.0.bias"].bfloat16()
    tuned["module.2.weight"] = torch.zeros(2, 8)
    del tuned["module.2.bias"]
    torch.save({"model": {**tuned, "module.4.weight": torch.ones(3)}, "epoch": 3}, "tuned.pt")
    return tmp_path


# ---------------------------------------------------------------------- exit status


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("base.pt copy.pt", 0),
        ("base.pt base.safetensors", 0),
        ("base.pt tuned.pt", 1),
        ("base.pt tuned.pt --layout", 1),
        ("base.pt tuned.pt 0.weight", 1),
        ("base.pt tuned.pt 0.weight --layout", 0),
        ("base.pt tuned.pt 0.weight --atol 0.51", 0),
        ("base.pt tuned.pt 0.bias", 1),
        ("base.pt tuned.pt 0.bias --ignore-dtype --rtol 0.01", 0),
        ("base.pt tuned.pt 0.weight --where changed==0", 1),  # what is shown decides nothing
        ("base.pt no.pt", 2),
    ],
)
def test_the_exit_status_is_that_of_diff(line, code, here, run):
    """0 if they do not differ, 1 if they do, 2 if it could not be told."""
    assert run("diff", *line.split()).code == code


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "error: diff takes two models\n\nhint: paramctl diff A B"),
        ("base.pt", "error: diff takes two models\n\nhint: paramctl diff A B"),
        ("base.pt no.pt", "error: no.pt: no such file"),
        ("base.pt '*.bias'", "error: *.bias: no such file\n\nhint: diff takes two models, and patterns come after them"),
        ("- -", "error: A and B are both standard input\n\nhint: one of them can be -"),
        ("base.pt copy.pt 0.wieght", "error: base.pt: no parameter and no module 0.wieght\n\nhint: nearest: 0.weight, 2.weight"),
        ("base.pt copy.pt '0.weight[0]'", "error: 0.weight[0]: diff is about whole tensors\n\nhint: show and set take slices"),
        ("base.pt copy.pt --at model", "error: base.pt: no tensors at 'model'\n\nhint: tensors are at 0, 2"),
        ("base.pt copy.pt --arg a=1", "error: --arg goes with a definition, and base.pt is none"),
        ("base.pt copy.pt --by layer", "error: --by layer: neither tensor nor module"),
        ("base.pt copy.pt --atol -1", "error: a tolerance is 0 or more, and atol is -1"),
        ("base.pt copy.pt --rename 0", "error: not a renaming: OLD=>NEW\n0\n ^"),
        ("base.pt copy.pt --rename '7=>8'", "error: 7=>8 renames nothing\n\nhint: there is 0.weight"),
        ("base.pt copy.pt --layout --rank", "error: the rank of a change is of values, and these are not read"),
        ("base.pt copy.pt -f tree", "error: tree is for tree and ls\n\nhint: choose table, tsv or json with --format"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_said(line, said, here, run):
    """The whole of stderr is this text, stdout has nothing, and the status is 2."""
    done = run("diff", *shlex.split(line))
    assert (done.code, done.out, done.err) == (2, "", said + "\n")


# ---------------------------------------------------------------------- a pipe, and a terminal


def test_data_holds_every_row(here, run):
    """JSON, JSONL and TSV have all rows under the same keys, those that are the same too; and the totals."""
    done = run("diff", "base.pt", "tuned.pt", "-f", "json")
    assert list(done.json) == ["source", "format", "rows", "totals"]
    assert (done.json["source"], done.json["format"]) == ("base.pt, tuned.pt", "torch-zip")
    assert [list(row) for row in done.rows] == [KEYS] * 5
    assert list(done.json["totals"]) == TOTALS
    assert [(row["name"], row["status"]) for row in done.rows] == [
        ("2.bias", "removed"), ("model.module.4.weight", "added"), ("2.weight", "shape"), ("0.bias", "dtype"),
        ("0.weight", "changed"),
    ]  # fmt: skip
    lines = run("diff", "base.pt", "tuned.pt", "-f", "jsonl").out.splitlines()
    assert [json.loads(line) for line in lines] == done.rows
    header, *lines = run("diff", "base.pt", "copy.pt").out.splitlines()
    assert header.split("\t") == KEYS
    assert [line.split("\t")[:2] for line in lines] == [[name, "same"] for name in mlp().state_dict()]
    assert run("diff", "base.pt", "base.safetensors", "-f", "json").json["format"] == "torch-zip, safetensors"


def test_modules_and_ranks_have_their_keys(here, run):
    """A row of a module has the keys of the contract; --rank, or a condition on it, adds a key at the end."""
    assert list(run("diff", "base.pt", "copy.pt", "--depth", "1", "-f", "json").rows[0]) == [*KEYS[:9], "nonfinite"]
    assert list(run("diff", "base.pt", "copy.pt", "--by", "module", "-f", "json").rows[0]) == [*KEYS[:9], "nonfinite"]
    assert list(run("diff", "base.pt", "copy.pt", "--rank", "-f", "json").rows[0]) == [*KEYS, "rank"]
    done = run("diff", "base.pt", "tuned.pt", "--where", "rank > 0", "--columns", "name,rank")
    assert done.out == "name\trank\n0.weight\t1\n"


def told(a: torch.Tensor, b: torch.Tensor) -> list[str]:
    """Numbers of a row in four digits; of a cosine near 1 as many as tell it from that."""
    sizes = (b - a).abs()
    l2, norm = (b - a).norm(), a.norm()
    cosine = float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))
    digits = f"{cosine:.4g}" if cosine < 0.9999 else f"{cosine:.{1 - math.floor(math.log10(1 - cosine))}g}"
    place = [int(i) for i in np.unravel_index(int(sizes.argmax()), sizes.shape)]
    return [f"{sizes.max():.4g}", f"{l2:.4g}", f"{l2 / norm:.4g}", digits, "100%", str(place).replace(" ", "")]


def test_a_terminal_gets_what_differs(here, terminal):
    """The table has no row that is the same, the totals count them, and both sides are in one column."""
    *lines, totals, note = terminal("diff", "base.pt", "tuned.pt", columns=160).splitlines()
    a, b = torch.load("base.pt"), torch.load("tuned.pt")["model"]
    weight, bias = (told(a[name].double(), b[f"module.{name}"].double()) for name in ("0.weight", "0.bias"))
    assert [re.split(r" {2,}", line) for line in lines] == [
        ["name", "status", "a → b", "max_abs", "l2", "rel_l2", "cosine", "changed", "max_at"],
        ["2.bias", "removed", "float32 1", *"-" * 6],
        ["model.module.4.weight", "added", "float32 3", *"-" * 6],
        ["2.weight", "shape", "float32 1×8 → 2×8", *"-" * 6],
        ["0.bias", "dtype", "float32 → bfloat16 8", *bias],
        ["0.weight", "changed", "float32 8×4", *weight],
    ]
    said = (
        "5 tensors · 40 elements · 1 changed · 1 of another dtype · 1 of another shape · 1 added · 1 removed · l2 2.828"
    )
    assert totals.startswith(f"{said} · rel l2 ")
    assert note == "names of B are compared without model. and module."
    assert terminal("diff", "base.pt", "copy.pt") == "4 tensors · 49 elements · 4 same\n"


def test_the_other_name_is_shown_where_no_prefix_explains_it(here, terminal):
    """A prefix of either side is said in a note; a name that a rule made is in a column, where there is room."""
    for words in (("base.pt", "tuned.pt"), ("tuned.pt", "base.pt")):
        assert "name_b" not in terminal("diff", *words, columns=160)
    torch.save({"x.w": torch.ones(2)}, "a.pt")
    torch.save({"y.w": torch.zeros(2)}, "b.pt")
    wide, narrow = (terminal("diff", "a.pt", "b.pt", "--rename", "x=>y", columns=columns) for columns in (120, 60))
    assert re.split(r" {2,}", wide.splitlines()[1])[-1] == "y.w"
    assert "not shown: max_at, name_b" in narrow


def test_all_and_conditions_show_what_is_the_same(here, terminal, run):
    """--all has every row on a terminal; so have a condition that says so, and a table in a pipe."""
    for shown in (
        terminal("diff", "base.pt", "copy.pt", "--all"),
        terminal("diff", "base.pt", "copy.pt", "--where", "status == same"),
        run("diff", "base.pt", "copy.pt", "-f", "table").out,
    ):
        assert [line.split()[:2] for line in shown.splitlines()[1:5]] == [[n, "same"] for n in mlp().state_dict()]
    assert "same" not in terminal("diff", "base.pt", "tuned.pt", "--sort", "name", "--columns", "name,status")


def test_bars_are_as_long_as_the_change(here, terminal):
    """--stat has a bar for each module, the longest for the largest relative change, and none without one."""
    torch.save({"a.w": torch.ones(4), "b.w": torch.ones(4), "c.w": torch.ones(4), "d.w": torch.ones(4)}, "a.pt")
    torch.save(
        {
            "a.w": torch.full((4,), 1.5),
            "b.w": torch.full((4,), 2.0),
            "c.w": torch.full((4,), 1.001),
            "d.w": torch.ones(4),
        },
        "b.pt",
    )
    lines = terminal("diff", "a.pt", "b.pt", "--stat").splitlines()
    assert lines[:4] == [
        "name  status   rel_l2",
        f"b     changed       1  {'█' * 20}",
        f"a     changed     0.5  {'█' * 10}",
        "c     changed   0.001  ▏",
    ]
    assert lines[4].startswith("4 tensors · 16 elements · 1 same · 3 changed · l2 2.236")


@pytest.mark.parametrize("columns", [60, 80, 100, 160])
@pytest.mark.parametrize("more", [(), ("--rank",), ("--stat",), ("--depth", "1"), ("--all",)], ids=" ".join)
def test_a_terminal_of_any_width_is_kept(more, columns, here, terminal):
    """No line is wider than the terminal, statuses are never folded, and what has no room is named."""
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(3)]
    torch.save({name: torch.ones(512, 1024) for name in names}, "wide.pt")
    torch.save({names[0]: torch.zeros(512, 1024), names[1]: torch.ones(1024, 512), "x": torch.ones(1)}, "other.pt")
    shown = terminal("diff", "wide.pt", "other.pt", *more, columns=columns)
    assert max(map(len, shown.splitlines())) <= columns
    assert "changed" in shown
    if columns == 60 and more == ("--rank",):
        assert "not shown: max_at, l2, max_abs, a → b" in re.sub(r"\s+", " ", shown)


# ---------------------------------------------------------------------- sources and streams


def test_a_default_model_is_a(here, run, monkeypatch):
    """With one model named, A is the model of the environment; patterns then need -s."""
    monkeypatch.setenv("PARAMCTL_MODEL", "base.pt")
    done = run("diff", "tuned.pt", "-s", "0.weight", "-f", "json")
    assert (done.code, done.json["source"]) == (1, "base.pt, tuned.pt")
    assert [row["name"] for row in done.rows] == ["0.weight"]
    assert run("diff", "base.pt", "copy.pt").code == 0


def test_one_side_may_come_through_a_pipe(here, process):
    """A or B is `-`, or A is what is piped in."""
    data = (here / "base.pt").read_bytes()
    for words in (("-", "copy.pt"), ("copy.pt", "-"), ("copy.pt",)):
        done = process("diff", *words, stdin=data, cwd=here)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.count(b"\tsame\t") == 4


def test_a_path_roots_the_side_that_has_it(here, run):
    """--at is of the nested one of the two, or of both."""
    torch.save({"model": mlp().state_dict(), "epoch": 1}, here / "nested.pt")
    done = run("diff", "nested.pt", "copy.pt", "--at", "model")
    assert (done.code, done.err) == (0, "")
    assert run("diff", "nested.pt", "nested.pt", "--at", "model", "-f", "names").out.split() == list(mlp().state_dict())


def test_names_may_be_renamed(here, run):
    """Rules of the command line and of a file go over the names of A, one after another."""
    torch.save({f"net.{name}": tensor for name, tensor in mlp().state_dict().items()}, here / "net.pt")
    (here / "rules").write_text("# to the names of net.pt\nfirst=>net\n")
    done = run("diff", "base.pt", "net.pt", "--exact-names", "--rename", "=>first.", "--rename-file", "rules")
    assert (done.code, done.err) == (0, "")
    assert run("diff", "base.pt", "net.pt", "--exact-names").code == 1


def test_a_definition_takes_its_arguments(here, run):
    """--arg goes to the definition of the two, whose layout is compared, and with --seed its values."""
    code = "from torch import nn\n\n\ndef net(hidden=8):\n    return nn.Sequential(nn.Linear(4, hidden))\n"
    (here / "net.py").write_text(code)
    torch.manual_seed(1)
    torch.save(torch.nn.Sequential(torch.nn.Linear(4, 5)).state_dict(), here / "five.pt")
    done = run("diff", "net.py", "five.pt", "--arg", "hidden=5")
    assert done.code == 0
    assert done.err == "values are not compared: net.py is a definition; --seed N builds it with values\n"
    assert run("diff", "net.py", "five.pt").code == 1
    assert run("diff", "five.pt", "net.py", "--arg", "hidden=5", "--seed", "1").code == 0
    assert run("diff", "five.pt", "net.py", "--arg", "hidden=5", "--seed", "2").code == 1


def test_names_of_strangers_are_harmless(tmp_path, run):
    """Whatever names hold, ties and prefixes included, nothing of it reaches a terminal raw."""
    safetensors(tmp_path / "a.safetensors", {f"module.{name}": (2, 3) for name in NAMES.values()})
    shared = torch.zeros(2, 3)
    torch.save(dict.fromkeys(NAMES.values(), shared), tmp_path / "b.pt")
    for style in ("table", "tsv", "json", "markdown", "names", "jsonl"):
        for more in ((), ("--stat",), ("--rename", "\x1b=>x")):
            done = run("diff", tmp_path / "a.safetensors", tmp_path / "b.pt", "-f", style, *more)
            assert done.code in (1, 2)
            assert is_harmless(done.out)
            assert is_harmless(done.err)


def test_a_layout_needs_no_numpy(here):
    """--layout imports neither numpy nor torch; with values it imports no torch."""
    look = (
        "import sys\nfrom paramctl import cli\ncode = cli.run(sys.argv[1:])\n"
        "print(code, *sorted({'numpy', 'torch'} & sys.modules.keys()), file=sys.stderr)"
    )
    for more, imported in ((("--layout",), "1\n"), ((), "1 numpy\n")):
        words = [sys.executable, "-c", look, "diff", "base.pt", "tuned.pt", *more]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=here, timeout=60)
        assert done.stderr.splitlines(keepends=True)[-1] == imported


def test_a_closed_pipe_ends_it(tmp_path, here):
    """`| head` ends it with 141 and no word."""
    for name in ("a", "b"):
        safetensors(tmp_path / f"{name}.safetensors", {f"layers.{i}.weight": (1,) for i in range(20_000)})
    line = f"set -o pipefail; {shlex.quote(sys.executable)} -m paramctl diff a.safetensors b.safetensors | head -n 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=False, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stderr) == (141, b"")
    assert done.stdout == b"\t".join(key.encode() for key in KEYS) + b"\n"


def read_by(pid: int) -> int:
    """How many bytes a process has read."""
    return int(Path(f"/proc/{pid}/io").read_text().split()[1])


def test_an_interrupt_ends_it(tmp_path):
    """Ctrl-C while values are read ends it with 130, at once and without a word."""
    for name in ("a", "b"):
        path = safetensors(tmp_path / f"{name}.safetensors", {"w": ()})
        header = path.read_bytes()[:-4].replace(b'"shape": []', b'"shape": [8000000000]')
        header = header.replace(b"[0, 4]", b"[0, 32000000000]")[8:]
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        os.truncate(path, 8 + len(header) + 32_000_000_000)  # of zeros that take no place on the disk
    words = [sys.executable, "-m", "paramctl", "diff", "a.safetensors", "b.safetensors"]
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
    while running.poll() is None and read_by(running.pid) < 100_000_000:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert (running.returncode, out, err) == (130, b"", b"")
