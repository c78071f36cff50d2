"""Match as a command: what is told, what is written, and how it ends."""

from __future__ import annotations

import json
import shlex
import shutil
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

import paramctl
from paramctl import api
from program import MODELS
from renames import renamed

KEYS = ["name", "status", "a", "b", "candidate", "detail"]
COUNTS = ("ok", "cast", "tie", "untied", "missing", "unexpected", "shape", "dtype")


@pytest.fixture
def state(tmp_path, monkeypatch):
    """The state dict of models/mlp.py, in `mlp.pt` of the working directory, beside the models."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(MODELS, tmp_path / "models", ignore=shutil.ignore_patterns("__pycache__"))
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).state_dict()
    torch.save(made, "mlp.pt")
    return made


def counts(totals) -> dict[str, int]:
    return {key: totals[key] for key in COUNTS if totals[key]}


def test_what_fits_ends_with_0(state, run):
    """Each name is a row, with both sides raw; the totals count, and a note says so."""
    result = run("match", "mlp.pt", "models/mlp.py", "-f", "json")
    assert (result.code, result.err) == (0, "mlp.pt fits models/mlp.py\n")
    assert [list(row) for row in result.rows] == [KEYS] * 4
    side = "float32 [8,4]"
    assert result.rows[0] == {
        "name": "0.weight",
        "status": "ok",
        "a": side,
        "b": side,
        "candidate": None,
        "detail": None,
    }
    totals = result.json["totals"]
    assert (totals["fits"], counts(totals), totals["mending"]) == (True, {"ok": 4}, None)
    assert result.json["source"] == "mlp.pt"


SAID = [  # what is done to the state dict; the counts; what stderr says
    (
        "a prefix",
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        {"missing": 4, "unexpected": 4},
        """m.pt does not fit models/mlp.py: 4 missing, 4 unexpected
names begin with module. (DataParallel and DistributedDataParallel), and the model's do not; all 4 shapes agree
  paramctl convert m.pt OUT.pt --rename 'module.=>'
then it fits
""",
    ),
    (
        "Lightning",
        lambda state: {"state_dict": {f"model.{n}": t for n, t in state.items()}, "epoch": 3, "ema": dict(state)},
        {"missing": 4, "unexpected": 9},
        """m.pt does not fit models/mlp.py: 4 missing, 9 unexpected
the model's tensors are below state_dict (ema too)
names begin with model., and the model's do not; all 4 shapes agree
  paramctl convert m.pt OUT.pt --at state_dict --rename 'model.=>'
then it fits
""",
    ),
    (
        "the model's arguments beside its state dict",
        lambda state: {"model": {"state_dict": dict(state), "args": {"width": 4}}, "trainer": {"epoch": 3}},
        {"missing": 4, "unexpected": 5},
        """m.pt does not fit models/mlp.py: 4 missing, 5 unexpected
the model's tensors are below model.state_dict
  paramctl convert m.pt OUT.pt --at model.state_dict
then it fits
""",
    ),
    (
        "a word with a quote in it",
        lambda state: {name.replace("weight", "it's"): tensor for name, tensor in state.items()},
        {"ok": 2, "missing": 2, "unexpected": 2},
        r"""m.pt does not fit models/mlp.py: 2 missing, 2 unexpected
*.weight is called *.it's, the only one of its shape; both shapes agree
  paramctl convert m.pt OUT.pt --rename '*.it'"'"'s=>*.weight'
then it fits
""",
    ),
    (
        "transposed",
        lambda state: {name: tensor.T.contiguous() if tensor.ndim == 2 else tensor for name, tensor in state.items()},
        {"ok": 2, "shape": 2},
        """m.pt does not fit models/mlp.py: 2 of another shape
2 transposed, as GPT-2's Conv1D or a Keras kernel: 0.weight, 2.weight
  no renaming mends that; in Python: state[name] = state[name].T
""",
    ),
    (
        "another model",
        lambda state: {"conv.kernel": torch.zeros(3, 3, 2)},
        {"missing": 4, "unexpected": 1},
        "m.pt does not fit models/mlp.py: 4 missing, 1 unexpected\n",
    ),
    (
        "names that a terminal does not show",
        lambda state: {f"a\x1b[2J.{name}": tensor for name, tensor in state.items()},
        {"missing": 4, "unexpected": 4},
        r"""m.pt does not fit models/mlp.py: 4 missing, 4 unexpected
names begin with a\x1b[2J., and the model's do not; all 4 shapes agree
  paramctl convert m.pt OUT.pt --rename 're:\Aa\U0000001b\[2J\.=>'
then it fits
""",
    ),
]


@pytest.mark.parametrize(("change", "counted", "said"), [row[1:] for row in SAID], ids=[row[0] for row in SAID])
def test_what_does_not_fit_ends_with_1_and_says_what_would(change, counted, said, state, run):
    """The answer is no: the counts, the evidence and the command to run, on stderr."""
    torch.save(change(state), "m.pt")
    result = run("match", "m.pt", "models/mlp.py", "-f", "json")
    assert (result.code, counts(result.json["totals"])) == (1, counted)
    assert result.err == said


def test_another_dtype_is_told_and_is_a_fault_on_request(state, run):
    """Torch copies another dtype: that is told, and does not fail unless --strict-dtype."""
    torch.save({name: tensor.half() for name, tensor in state.items()}, "half.pt")
    loose = run("match", "half.pt", "models/mlp.py", "-f", "json")
    assert (loose.code, {row["status"] for row in loose.rows}) == (0, {"cast"})
    assert loose.rows[0]["detail"] == "copied as float32"
    strict = run("match", "half.pt", "models/mlp.py", "--strict-dtype", "-f", "json")
    assert (strict.code, {row["status"] for row in strict.rows}) == (1, {"dtype"})
    assert strict.err.startswith("half.pt does not fit models/mlp.py: 4 of another dtype\n")


# ----------------------------------------------------------------------------- ties


def test_a_tie_that_the_file_lacks_is_told(state, run):
    """Tied in the model, two tensors in the file: it loads, and the last to be copied wins."""
    torch.save({name: tensor.clone() for name, tensor in _tied().state_dict().items()}, "m.pt")
    result = run("match", "m.pt", "models/tied.py", "-f", "json")
    assert (result.code, counts(result.json["totals"])) == (0, {"ok": 6, "tie": 2})
    (row, _) = (row for row in result.rows if row["status"] == "tie")
    assert (row["name"], row["detail"]) == (
        "4.weight",
        "tied to 2.weight in the model, and two tensors here: the last to be copied wins",
    )


def _tied() -> nn.Module:
    shared = nn.Linear(8, 8)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(8, 1))


def test_a_tie_that_the_model_lacks_is_told(state, run):
    """Tied in the file, two tensors in the model: each is copied, and they are two from then on."""
    torch.save(_tied().state_dict(), "tied.pt")
    Path("own.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8),"
        " nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))\n"
    )
    result = run("match", "tied.pt", "own.py", "-f", "json")
    assert (result.code, counts(result.json["totals"])) == (0, {"ok": 6, "untied": 2})
    assert {row["detail"] for row in result.rows if row["status"] == "untied"} == {
        "tied to 2.weight here, and a tensor of its own in the model",
        "tied to 2.bias here, and a tensor of its own in the model",
    }
    assert run("match", "tied.pt", "models/tied.py").code == 0


def test_a_tied_name_that_is_missing_has_its_tie_for_a_candidate(state, run):
    """A file that keeps one name of a tie: the other is missing, and what it is tied to is named."""
    kept = {name: tensor for name, tensor in _tied().state_dict().items() if not name.startswith("4.")}
    torch.save(kept, "m.pt")
    result = run("match", "m.pt", "models/tied.py", "-f", "json")
    missing = {row["name"]: (row["candidate"], row["detail"]) for row in result.rows if row["status"] == "missing"}
    assert missing == {
        "4.weight": ("2.weight", "tied to 2.weight in the model"),
        "4.bias": ("2.bias", "tied to 2.bias in the model"),
    }
    assert result.err.splitlines()[-2:] == [
        "tied in the model, and only the other name is in the file: 4.weight, 4.bias",
        "  in Python: state[name] = state[other]; or strict=False, as what is tied is filled by the other name",
    ]


def test_the_nearest_may_have_a_name_that_is_wanted(state, run):
    """A tensor that stands where another shape is wanted is the candidate for a missing one of its own shape."""
    rows = {row["name"]: row for row in run("match", "mlp.pt", "models/tied.py", "-f", "json").rows}
    assert {name: row["candidate"] for name, row in rows.items() if row["status"] == "missing"} == {
        "4.weight": "2.weight",
        "4.bias": "2.bias",
        "6.weight": "2.weight",
        "6.bias": "2.bias",
    }
    assert (rows["2.weight"]["a"], rows["2.weight"]["b"]) == ("float32 [1,8]", "float32 [8,8]")


# ----------------------------------------------------------------------------- the model's own code

OWN = '''
import torch
from torch import nn


class Old(nn.Module):
    """Its parameter was called `gain` once."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def _load_from_state_dict(self, state, prefix, *rest):
        if prefix + "gain" in state:
            state[prefix + "scale"] = state.pop(prefix + "gain")
        super()._load_from_state_dict(state, prefix, *rest)


class Stubborn(Old):
    def _load_from_state_dict(self, state, prefix, *rest):
        rest[-1].append("I take nothing")


class Raising(Old):
    def _load_from_state_dict(self, state, prefix, *rest):
        raise KeyError("nothing for me")


class Many(nn.Module):
    def __init__(self, cls):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.old = {"Old": Old, "Stubborn": Stubborn, "Raising": Raising}[cls]()


def net(cls="Old"):
    return Many(cls)
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A definition whose modules have a say in how they are loaded, and a state dict of before."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    state = {f"norm.{n}": t for n, t in nn.BatchNorm1d(3).state_dict().items() if n != "num_batches_tracked"}
    torch.save(state | {"old.gain": torch.ones(3)}, "old.pt")


def test_a_model_that_renames_as_it_loads_is_asked(own, run):
    """What the model's own code sees to is ok, and said to be so."""
    result = run("match", "old.pt", "own.py", "-f", "json")
    assert result.code == 0
    assert {row["name"] for row in result.rows if row["detail"] == "the model's own code sees to it"} == {
        "norm.num_batches_tracked",
        "old.scale",
        "old.gain",
    }


def test_what_the_models_own_code_says_is_said(own, run):
    """An error of its own is told, and the answer is no."""
    result = run("match", "old.pt", "own.py", "--arg", "cls=Stubborn", "-f", "json")
    assert (result.code, result.json["totals"]["fits"]) == (1, False)
    assert result.err.splitlines()[0] == "I take nothing"


def test_own_code_that_raises_is_told_and_names_are_compared_without_it(own, run):
    """What it raises is told with the line of the user's own file."""
    result = run("match", "old.pt", "own.py", "--arg", "cls=Raising", "-f", "json")
    assert result.code == 1
    line = 1 + OWN.splitlines().index('        raise KeyError("nothing for me")')
    where = f'own.py, line {line}, `raise KeyError("nothing for me")`'
    said = f"the model's own way to load could not be asked: own.py: {where}: KeyError: 'nothing for me'"
    assert result.err.splitlines()[0] == said
    assert {row["name"] for row in result.rows if row["status"] == "missing"} >= {"old.scale"}


def test_extra_state_is_wanted_and_found(tmp_path, monkeypatch, run):
    """A module's extra state is a name of its own: ok where the file has it, missing where not."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Linear):\n    def get_extra_state(self):\n        return {'step': 1}\n\n"
        "    def set_extra_state(self, state):\n        self.step = state['step']\n\n\ndef net():\n    return Net(2, 2)\n"
    )
    state = nn.Linear(2, 2).state_dict()
    torch.save(dict(state), "without.pt")
    torch.save(state | {"_extra_state": {"step": 1, "mean": torch.zeros(2)}}, "with.pt")
    assert run("match", "with.pt", "own.py").code == 0
    rows = run("match", "without.pt", "own.py", "-f", "json").rows
    assert [(row["name"], row["status"]) for row in rows if row["status"] != "ok"] == [("_extra_state", "missing")]


# ----------------------------------------------------------------------------- what is written


def test_the_renaming_is_written(state, run):
    """--emit-rename writes the rules with their evidence; applied, they make names that load."""
    torch.save({f"net.{name.replace('weight', 'w')}": tensor for name, tensor in state.items()}, "m.pt")
    result = run("match", "m.pt", "models/mlp.py", "--emit-rename", "names.txt", "-f", "json")
    lines = Path("names.txt").read_text().splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    assert rules == result.json["totals"]["mending"]["rules"]
    assert [line[2:] for line in lines if line.startswith("#")] == [
        step["evidence"] for step in result.json["totals"]["mending"]["steps"]
    ]
    made = {renamed(name, rules): tensor for name, tensor in torch.load("m.pt").items()}
    nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).load_state_dict(made)


def test_without_a_renaming_nothing_is_written(state, run):
    """Where it fits, or nothing was found, no file appears, and that is said."""
    result = run("match", "mlp.pt", "models/mlp.py", "--emit-rename", "names.txt")
    assert result.err == "names.txt is not written: there is nothing to rename\nmlp.pt fits models/mlp.py\n"
    assert not Path("names.txt").exists()


def test_a_file_that_cannot_be_written_is_an_error(state, run):
    """The whole error, and the status of what could not be done."""
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, "m.pt")
    result = run("match", "m.pt", "models/mlp.py", "--emit-rename", "no/names.txt")
    assert result.code == 2
    assert result.err.startswith("error: no/names.txt: cannot be written: there is no folder ")


MENDED = [change for name, change, _, said in SAID if "convert" in said] + [
    lambda state: {f"a.{number}.{name}": tensor for number, (name, tensor) in enumerate(state.items())},
]


@pytest.mark.parametrize("change", MENDED)
def test_the_command_that_is_said_mends_it(change, state, run):
    """Run as printed, it writes a file that torch loads into the model."""
    torch.save(change(state), "m.pt")
    said = run("match", "m.pt", "models/mlp.py").err.splitlines()
    assert said[-1] == "then it fits"
    for line in said[-2].strip().split("; "):
        program, *words = shlex.split(line)
        assert program == "paramctl"
        assert run(*words).code == (1 if words[0] == "match" else 0)
    nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).load_state_dict(torch.load("OUT.pt"))
    assert run("match", "OUT.pt", "models/mlp.py").code == 0


# ----------------------------------------------------------------------------- a terminal


def save_layers(path: str, *names: str, more: dict[str, torch.Tensor]) -> None:
    torch.save({f"h.{i}.{name}": torch.zeros(2, 2) for i in range(12) for name in names} | more, path)


B = "float32 [2,2]"


def test_a_terminal_has_what_does_not_fit(state):
    """Rows that are ok are left out, layers that are alike are one row, and a pair of names is told once."""
    save_layers("a.pt", "q.weight", "k.weight", more={"ln.weight": torch.zeros(2)})
    save_layers("b.pt", "inside.wq", "k.weight", more={})
    report = api.shown(paramctl.match("b.pt", "a.pt"), "match")
    assert [column.key for column in report.columns] == ["name", "tensors", *KEYS[1:]]
    assert report.rows == (
        ("h.[0-11].q.weight", 12, "missing", None, B, "h.[0-11].inside.wq", "the only one of its shape"),
        ("ln.weight", None, "missing", None, "float32 [2]", None, None),
    )
    assert (report.totals["missing"], report.totals["unexpected"], report.totals["ok"]) == (13, 12, 12)
    assert "shape" not in report.totals


def test_a_terminal_leaves_out_what_a_rule_says(state):
    """Names that a prefix or a word alone makes right are told by the notes; what is wrong beyond that has its row."""
    save_layers("a.pt", "q.weight", "k.weight", more={"fc.weight": torch.zeros(3, 2), "ln.weight": torch.zeros(2)})
    save_layers("b.pt", "query.weight", "k.weight", more={"fc.weight": torch.zeros(2, 3)})
    torch.save({f"module.{name}": tensor for name, tensor in torch.load("b.pt").items()}, "b.pt")
    report = api.shown(paramctl.match("b.pt", "a.pt"), "match")
    assert [(row[0], row[2], row[5], row[6]) for row in report.rows] == [
        ("fc.weight", "missing", "module.fc.weight", "module.=>, transposed"),
        ("ln.weight", "missing", None, None),
    ]
    assert report.totals["missing"] == 26


def test_rows_are_chosen_as_everywhere(state, run):
    """--where and --columns are of all rows."""
    torch.save({name: tensor for name, tensor in state.items() if name != "2.bias"}, "m.pt")
    result = run("match", "m.pt", "models/mlp.py", "--where", "status == missing", "--columns", "name", "--no-header")
    assert (result.code, result.out) == (1, "2.bias\n")


# ----------------------------------------------------------------------------- two checkpoints, and what is refused


def test_checkpoints_are_matched_with_each_other(state, run):
    """A file stands for a model: in any two formats, and by its names, as far as it knows."""
    from safetensors.torch import save_file

    save_file({f"module.{name}": tensor for name, tensor in state.items()}, "m.safetensors")
    result = run("match", "m.safetensors", "mlp.pt", "-f", "json")
    assert (result.code, result.json["totals"]["mending"]["rules"]) == (1, ["module.=>"])
    assert run("match", "mlp.pt", "mlp.pt").code == 0


def test_a_part_of_a_checkpoint_is_matched(state, run):
    """--at roots the checkpoint."""
    torch.save({"net": state, "epoch": 1}, "nested.pt")
    assert run("match", "nested.pt", "models/mlp.py").code == 1
    assert run("match", "nested.pt", "models/mlp.py", "--at", "net").code == 0


def test_the_command_goes_on_from_where_it_was_rooted(state, run):
    """--at, and what was found below it, are one path in the command; arguments of the definition are in it, too."""
    torch.save({"net": {"ema": {f"x{i}y.{n}": t for i, (n, t) in enumerate(state.items())}, "step": 1}}, "m.pt")
    result = run("match", "m.pt", "models/mlp.py", "--at", "net", "--arg", "hidden=8", "-f", "json")
    assert result.json["totals"]["mending"]["at"] == "net.ema"
    match, convert = (shlex.split(line)[1:] for line in result.err.splitlines()[-2].split("; "))
    assert match[3:7] == ["--at", "net.ema", "--arg", "hidden=8"]
    assert (run(*match).code, run(*convert).code) == (1, 0)
    assert run("match", "OUT.pt", "models/mlp.py").code == 0


def test_a_model_of_any_size_is_matched_by_its_header(tmp_path, monkeypatch, run):
    """A definition of a trillion parameters, and a file of two terabytes that is not there, are matched."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Linear(1000000, 1000000, bias=False)\n"
    )
    nbytes = 2 * 10**12
    header = json.dumps({"weight": {"dtype": "BF16", "shape": [10**6, 10**6], "data_offsets": [0, nbytes]}}).encode()
    with Path("m.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + nbytes)
    result = run("match", "m.safetensors", "net.py", "-f", "json")
    assert (result.code, [row["status"] for row in result.rows]) == (0, ["cast"])


ERRORS = [
    (("match", "mlp.pt"), "error: match is about two models\n\nhint: paramctl match mlp.pt net.py\n"),
    (("match", "no.pt", "models/mlp.py"), "error: no.pt: no such file\n"),
    (("match", "mlp.pt", "no.py"), "error: no.py: no such file\n"),
    (("match", "mlp.pt", "models/mlp.py", "--at", "x"), "error: mlp.pt: no tensors at 'x'\n\nhint: tensors are at 0, 2\n"),
    (
        ("match", "models/mlp.py", "mlp.pt", "--at", "0"),
        "error: models/mlp.py: --at goes with a checkpoint, and this is a definition\n",
    ),
    (
        ("match", "mlp.pt", "mlp.pt", "--arg", "hidden=3"),
        "error: --arg goes with a definition, and mlp.pt is none\n",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), ERRORS, ids=[" ".join(words) for words, _ in ERRORS])
def test_what_could_not_be_done_ends_with_2(words, said, state, run):
    """The whole error."""
    result = run(*words)
    assert (result.code, result.out, result.err) == (2, "", said)


def test_the_default_model_is_the_definition(state, run, monkeypatch):
    """With one word, $PARAMCTL_MODEL is the model that would take it."""
    monkeypatch.setenv("PARAMCTL_MODEL", "models/mlp.py")
    code = "import os; from paramctl import cli; raise SystemExit(cli.run(['match', 'mlp.pt']))"
    import subprocess
    import sys

    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=60).returncode == 0


def test_the_api_gives_the_report(state):
    """`paramctl.match` is what the command prints, for text and paths."""
    report = paramctl.match("mlp.pt", "models/mlp.py", arguments=["hidden=3"])
    assert not report.totals["fits"]
    assert counts(report.totals) == {"ok": 1, "shape": 3}
    with pytest.raises(paramctl.ParamctlError):
        paramctl.match("no.pt", "models/mlp.py")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("wrap", "rule"),
    [(nn.DataParallel, "module.=>"), (torch.compile, "_orig_mod.=>"), (lambda m: torch.compile(nn.DataParallel(m)), "_orig_mod.module.=>")],
    ids=["DataParallel", "torch.compile", "both"],
)  # fmt: skip
def test_a_wrapper_of_torch_is_taken_off(wrap, rule, state, run):
    """What DataParallel and torch.compile put before the names is found."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    torch.save(wrap(model).state_dict(), "m.pt")
    mending = run("match", "m.pt", "models/mlp.py", "-f", "json").json["totals"]["mending"]
    assert (mending["rules"], mending["then"]["fits"]) == ([rule], True)
