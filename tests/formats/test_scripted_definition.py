"""Definitions that torch.jit compiled: each command treats them as the module that they were made of, or says no."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from paramctl import formats, source

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")

DEFINITION = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.b = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))

def plain(): return Net()
def scripted(): return torch.jit.script(Net())
def traced(): return torch.jit.trace(Net().eval(), torch.zeros(2, 3))
def inside(): return nn.Sequential(torch.jit.script(Net()), nn.Linear(4, 2))
"""
COMMANDS = (
    "tree",
    "ls",
    "ls --type Linear",
    "info",
    "show --seed 0",
    "stats --seed 0",
    "ties",
    "check --seed 0",
    "diff net.pt --seed 0",
    "init --type Linear --scheme xavier --seed 0 -o out.pt",
    "set a.weight[:]=1 --seed 0 -o out.pt",
    "convert out.pt --seed 0",
    "tie a.bias b.0.bias",
    "untie a.bias",
    "match net.pt",
)


@pytest.fixture(autouse=True)
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The definition, as a module, in the working directory; and a checkpoint that fits."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(DEFINITION)
    spec = importlib.util.spec_from_file_location("paramctl_user_net", tmp_path / "net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.save(module.plain().state_dict(), "net.pt")
    return module


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize("definition", ["scripted", "traced"])
def test_it_is_as_the_module_that_it_was_made_of(run, words: str, definition: str):
    """Every command that looks, plans or writes does with it what it does with the plain module."""
    command, *rest = words.split()
    done = [run(command, f"net.py:{name}", *rest) for name in (definition, "plain")]
    texts = [(one.out + one.err).replace(f"net.py:{definition}", "net.py:plain") for one in done]
    if command == "tree":  # torch.jit keeps no hyperparameters that the code does not ask for
        texts[1] = re.sub(r"\(\w+=.*\)", "", texts[1])
    assert texts[0] == texts[1]
    assert done[0].code == done[1].code


@pytest.mark.parametrize("definition", ["scripted", "traced"])
def test_its_classes_are_those_that_its_file_tells(run, net: ModuleType, definition: str):
    """The types of a live module are those that paramctl reads in the archive that torch makes of it."""
    torch.jit.save(getattr(net, definition)(), "net.jit")
    live, saved = (formats.read(source.resolve(name)) for name in (f"net.py:{definition}", "net.jit"))
    assert {path: module.qualified for path, module in live.modules.items()} == {
        path: module.qualified for path, module in saved.modules.items()
    }


def test_the_part_that_is_not_compiled_can_be_run(run):
    """Of a model that holds a compiled part the rest has gradients, and the part says why it has none."""
    done = run("grad", "net.py:inside", "--at", "1", "--input", "2,4", "--seed", "0")
    assert (done.code, done.err) == (0, "")
    told = run("grad", "net.py:inside", "--at", "0", "--input", "2,3", "--seed", "0")
    assert told.code == 2
    assert told.err == (
        "error: net.py:inside: compiled by torch.jit, and cannot be looked into while it runs\n\n"
        "hint: name the module that was not scripted or traced\n"
    )
