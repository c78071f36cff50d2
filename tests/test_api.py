"""The Python API: the nouns of the command line, as objects."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import paramctl
from program import MODELS

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.fixture
def states(tmp_path, monkeypatch):
    """The state dict in `model.pt`, in the working directory."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    states = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).state_dict()
    torch.save(states, "model.pt")
    return states


def test_a_model_has_the_names_of_its_state_dict(states):
    """Iterating and len are over the chosen names, in the order of the file."""
    model = paramctl.open("model.pt")
    assert (list(model), len(model)) == (list(states), 4)
    assert list(model) == NAMES


def test_a_path_may_be_a_path(states, tmp_path):
    """Open takes a pathlib.Path as well as text."""
    assert list(paramctl.open(tmp_path / "model.pt")) == NAMES


def test_a_tensor_has_torchs_values(states):
    """numpy() gives torch's very values, with name, shape and dtype beside them."""
    tensor = paramctl.open("model.pt")["0.weight"]
    assert (tensor.name, tensor.shape, tensor.dtype) == ("0.weight", (8, 4), "float32")
    np.testing.assert_array_equal(tensor.numpy(), states["0.weight"].numpy())


def test_what_is_read_is_the_files(states):
    """Changing an array that numpy() gave never changes the file."""
    before = Path("model.pt").read_bytes()
    array = paramctl.open("model.pt")["0.weight"].numpy()
    if array.flags.writeable:
        array[:] = 0
    assert Path("model.pt").read_bytes() == before


def test_a_name_that_is_not_there_is_a_key_error(states):
    """The KeyError names the nearest."""
    with pytest.raises(KeyError, match=r"2\.wieght; nearest: 2\.weight, 0\.weight"):
        paramctl.open("model.pt")["2.wieght"]


def test_a_selection_is_a_model(states):
    """Select narrows by patterns and filters, and a report is of what was chosen."""
    model = paramctl.open("model.pt")
    assert list(model.select("*.bias")) == ["0.bias", "2.bias"]
    assert list(model.select(layer=["0"])) == ["0.weight", "0.bias"]
    assert list(model.select("!*.bias", layer=["0"])) == ["0.weight"]
    assert [row["name"] for row in model.select("2").ls().dicts()] == ["2.weight", "2.bias"]
    assert list(model) == NAMES


def test_nothing_selected_is_an_error(states):
    """It is a ParamctlError, and says what there is."""
    with pytest.raises(paramctl.ParamctlError) as caught:
        list(paramctl.open("model.pt").select("*.gamma"))
    assert str(caught.value) == (
        "error: model.pt: nothing is selected by *.gamma\n\nhint: it has 0.weight, 0.bias, 2.weight …"
    )


@pytest.mark.parametrize("operation", ["ls", "tree", "info", "show", "ties"])
def test_an_operation_is_what_its_command_prints(operation, states, run):
    """Each look gives the rows and totals that the command of its name prints as JSON, as often as it is asked."""
    model = paramctl.open("model.pt")
    printed = run(operation, "model.pt", "-f", "json").json
    for _ in range(2):
        report = getattr(model, operation)()
        assert (report.dicts(), dict(report.totals)) == (printed["rows"], printed["totals"])


def test_digests_and_content_are_as_their_options(states, run):
    """`ls(digest=True)` and `ties(by="content")` give what --digest and --by content print."""
    torch.save(states | {"copy": states["0.weight"].clone(), "ones": torch.ones(2), "more": torch.ones(2)}, "model.pt")
    model = paramctl.open("model.pt")
    assert model.ls(digest=True).dicts() == run("ls", "model.pt", "--digest", "-f", "json").rows
    found = model.ties(by="content", constants=True).dicts()
    assert found == run("ties", "model.pt", "--by", "content", "--constants", "-f", "json").rows
    assert [row["names"] for row in found] == [["0.weight", "copy"], ["ones", "more"]]
    assert [row["names"] for row in model.ties(by="content").dicts()] == [["0.weight", "copy"]]
    assert model.ties().dicts() == []


def test_a_plan_changes_nothing_until_it_is_written(states):
    """Rehearse says what write does; the file that it is from stays as it was."""
    before = Path("model.pt").read_bytes()
    edit = paramctl.open("model.pt").select("0").init(scheme="xavier_uniform", bias="zeros", seed=0)
    rehearsed = edit.rehearse()
    assert Path("model.pt").read_bytes() == before
    written = edit.write("new.pt")
    assert Path("model.pt").read_bytes() == before
    assert rehearsed.dicts() == written.dicts()
    torch.manual_seed(0)
    expected = nn.init.xavier_uniform_(torch.empty(8, 4))
    new = torch.load("new.pt")
    assert torch.equal(new["0.weight"], expected)
    assert torch.equal(new["0.bias"], torch.zeros(8))
    assert torch.equal(new["2.weight"], states["2.weight"])


def test_an_assignment_is_written(states):
    """Set takes what the command takes, and may write over the file it read."""
    paramctl.open("model.pt").set("2.bias = 1", "0.weight[0, 0] = 42").write("model.pt")
    new = torch.load("model.pt")
    assert (new["2.bias"].item(), new["0.weight"][0, 0].item()) == (1, 42)
    assert torch.equal(new["2.weight"], states["2.weight"])


def test_a_part_of_a_checkpoint_is_a_model(states):
    """at= roots the view, with names as in the state dict, and a write is still of the whole file."""
    torch.save({"model": states, "epoch": 3}, "nested.pt")
    model = paramctl.open("nested.pt", at="model")
    assert list(model) == NAMES
    model.set("2.bias = 1").write("new.pt")
    new = torch.load("new.pt")
    assert (new["epoch"], new["model"]["2.bias"].item()) == (3, 1)


def test_a_definition_is_built_with_its_arguments(tmp_path, monkeypatch):
    """arguments= go to its callable, and seed= makes its values repeatable: torch's own."""
    shutil.copy(MODELS / "mlp.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    model = paramctl.open("mlp.py", arguments=["hidden=3"], values=True, seed=1)
    torch.manual_seed(1)
    expected = nn.Linear(4, 3).weight
    np.testing.assert_array_equal(model["0.weight"].numpy(), expected.detach().numpy())


def test_ties_are_told(tmp_path, monkeypatch):
    """ties() gives a group a row."""
    shutil.copy(MODELS / "tied.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert [row["names"] for row in paramctl.open("tied.py").ties().dicts()] == [
        ["2.weight", "4.weight"],
        ["2.bias", "4.bias"],
    ]


def test_gradients_and_training_are_as_their_commands(run):
    """`grad` and `watch` of a definition give the rows that the commands of their names print, as often as asked."""
    model = paramctl.open(MODELS / "tied.py")
    words = (MODELS / "tied.py", "2", "--input", "2,4", "--target", "2,1", "--loss", "mse", "--seed", 3, "-f", "json")
    given = {"input": ["2,4"], "target": "2,1", "loss": "mse", "seed": 3}
    printed = run("grad", *words).json
    for _ in range(2):
        report = model.select("2").grad(**given)
        assert (report.dicts(), dict(report.totals)) == (printed["rows"], printed["totals"])
    watched = model.select("2").watch(**given, steps=4, optimizer="adam(lr=0.1)", every=3)
    made = watched.report(list(watched)).dicts()
    assert made == run("watch", *words, "--steps", 4, "--optimizer", "adam(lr=0.1)", "--every", 3).rows
    assert [row["step"] for row in made] == [1, 1, 3, 3, 4, 4]


def test_an_error_is_a_paramctl_error(states):
    """A file that is not there, a scheme that is none and a value that does not fit are all ParamctlError."""
    model = paramctl.open("model.pt")
    for act in (
        lambda: paramctl.open("no.pt"),
        lambda: model.init(scheme="xaver"),
        lambda: model.set("0.bias = [1, 2]").rehearse(),
        lambda: model.set("0.bias"),
    ):
        with pytest.raises(paramctl.ParamctlError):
            act()


def test_importing_is_cheap():
    """`import paramctl` and opening a file import neither torch nor numpy."""
    code = "import sys, paramctl; paramctl.open; print(sorted({'torch', 'numpy', 'typer', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ast.literal_eval(done.stdout) == []


def test_what_is_public_is_there():
    """Each name in __all__ can be had, and no other."""
    assert all(hasattr(paramctl, name) for name in paramctl.__all__)
    assert not hasattr(paramctl, "close")
