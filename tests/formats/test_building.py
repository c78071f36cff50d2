"""Definitions that look at values while they build: without the memory of their parameters, and as they really are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from paramctl import api, modules, sharing, source
from paramctl.checkpoint import Checkpoint
from paramctl.formats.python_model import described

LOOKS = "rates = [x.item() for x in torch.linspace(0, 1, 3)]"
PARTS = {  # what is built after the code has looked at values; how many of its parameters have them all the same
    "layers": ("self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.LSTM(8, 3), nn.Conv2d(1, 2, 3))", 0),
    "a tie": ("self.a, self.b = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False); self.b.weight = self.a.weight", 0),
    "two parameters of one tensor": ("w = torch.ones(4, 3); self.a, self.b = nn.Parameter(w), nn.Parameter(w)", 0),
    "parts of one tensor": ("w = torch.ones(4, 3); self.a, self.b = nn.Parameter(w[1:]), nn.Parameter(w.t())", 0),
    "a view of a parameter": ("self.a = nn.Parameter(torch.ones(4, 3)); self.b = nn.Parameter(self.a.detach().t())", 0),
    "one after another": ("self.a = nn.ParameterList([nn.Parameter(torch.ones(4)) for _ in range(9)])", 0),
    "frozen": ("self.a = nn.Parameter(torch.ones(4), requires_grad=False)", 0),
    "another dtype": ("self.a = nn.Parameter(torch.ones(4, 2, dtype=torch.bfloat16))", 0),
    "no elements": ("self.a = nn.Parameter(torch.ones(0, 2)); self.b = nn.Parameter(torch.tensor(3.0))", 0),
    "values copied": ("self.a = nn.Linear(2, 2); self.a.weight.data.copy_(torch.eye(2)); self.a.bias.data.zero_()", 0),
    "a buffer": ("self.a = nn.Linear(2, 2); self.register_buffer('rates', torch.tensor(rates))", 0),
    "a class of its own": ("self.a = Own(torch.ones(4))", 1),
    "values read": ("self.a = nn.Linear(2, 2); self.is_odd = self.a.weight.isnan().any().item()", 2),
}


def definition(folder: Path, part: str) -> str:
    """The file of a model that looks at values, and then builds a part."""
    text = "import torch\nfrom torch import nn\nclass Own(nn.Parameter):\n    pass\nclass Net(nn.Module):\n"
    text += "    def __init__(self):\n        super().__init__()\n"
    (folder / "net.py").write_text(f"{text}        {LOOKS}\n        {part}\nnet = Net\n")
    return str(folder / "net.py")


def told(checkpoint: Checkpoint) -> list[object]:
    """All that is known of the parameters without their values."""
    params = checkpoint.params.values()
    facts = [(p.name, p.dtype, p.shape, p.stride, p.storage_offset, p.kind, p.requires_grad, p.cls) for p in params]
    ties = [(group.names, group.relation) for group in sharing.groups(params)]
    return [facts, ties, [p.storage.nbytes for p in params], list(checkpoint.modules.values())]


@pytest.mark.parametrize("kind", PARTS)
def test_it_is_described_as_it_really_is(kind: str, tmp_path: Path):
    """Names, shapes, strides, storages, ties and hyperparameters are those of the model that is built with values."""
    part, with_values = PARTS[kind]
    path = definition(tmp_path, part)
    found = api.open(path).checkpoint
    really = described(modules.build(source.resolve(path), device="cpu"), source.resolve(path))
    assert told(found) == told(really)
    assert sum(not parameter.is_meta for parameter in found.live.parameters()) == with_values


def test_nothing_is_left_of_it(tmp_path: Path):
    """After it modules have values again, whether it could be built or not."""
    api.open(definition(tmp_path, PARTS["layers"][0]))
    with pytest.raises(api.ParamctlError, match="KeyError"):
        api.open(definition(tmp_path, "raise KeyError(1)"))
    assert not nn.Linear(2, 2).weight.is_meta


@pytest.mark.parametrize("where", ["net.py:net", "steps_of_it:Net"])
def test_what_it_imports_keeps_its_values(where: str, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A tensor at the top of a module that a definition imports has values, when the model is built again with them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "steps_of_it.py").write_text(
        "import torch\nSTEPS = torch.arange(3.0)\n"
        "class Net(torch.nn.Linear):\n"
        "    def __init__(self):\n"
        "        super().__init__(2, int(STEPS[2].item()))\n"
        "        self.register_buffer('steps', STEPS)\n"
    )
    (tmp_path / "net.py").write_text("from steps_of_it import Net as net\n")
    try:
        assert run("ls", where, "-f", "names").out.split() == ["weight", "bias", "steps"]
        assert run("show", where, "steps", "-f", "json").rows[0]["value"] == [0, 1, 2]
        assert sys.modules["steps_of_it"].STEPS.tolist() == torch.arange(3.0).tolist()
    finally:
        sys.modules.pop("steps_of_it", None)
