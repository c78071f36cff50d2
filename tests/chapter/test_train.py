"""What happens to the gradient of shared parameters; and the exercise: train such a network, and watch it learn."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import torch
from chapter_sources import MODELS, bits
from torch import nn
from torch.nn import functional


@pytest.fixture
def tied(monkeypatch):
    """`models/tied.py` as it is built under a seed."""
    monkeypatch.syspath_prepend(str(MODELS))
    monkeypatch.delitem(sys.modules, "tied", raising=False)
    import tied as code

    def _tied(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        return code.net()

    return _tied


def norm(tensor: torch.Tensor) -> float:
    return float(tensor.detach().double().norm())


def test_the_gradients_of_both_places_are_added(run, tied):
    """The shared layer's gradient is the sum of what two layers would get in its places, if they were merely equal."""
    words = ("--input", "2,4:0-1", "--loss", "sum", "--seed", 1, "-f", "json")
    rows = run("grad", MODELS / "tied.py", "2", *words).rows
    net = tied(1)
    x = torch.rand(2, 4)
    equal = copy.deepcopy(net)
    equal[4] = copy.deepcopy(equal[2])
    net(x).sum().backward()
    equal(x).sum().backward()
    for name, (whole, first, second) in {"weight": rows[:3], "bias": rows[3:]}.items():
        assert [whole["use"], first["use"], second["use"]] == [None, f"2.{name} (call 1)", f"4.{name} (call 2)"]
        one, other = getattr(equal[2], name).grad, getattr(equal[4], name).grad
        torch.testing.assert_close(getattr(net[2], name).grad, one + other)
        told = (whole["grad_l2"], first["grad_l2"], second["grad_l2"])
        assert told == pytest.approx((norm(one + other), norm(one), norm(other)), rel=1e-5)
        assert first["share"] + second["share"] == pytest.approx(1)


def test_no_gradient_before_and_zero_after(run, tmp_path):
    """A layer that is not used has None, which is not a gradient of zeros."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)\n"
        "    def forward(self, x):\n        return self.a(x) + 0 * self.b(x)\n"
    )
    rows = run("grad", tmp_path / "net.py", "*.weight", "--input", "2,4", "--seed", 0, "-f", "json").rows
    assert [(row["name"], row["mark"], row["zeros"]) for row in rows] == [
        ("a.weight", None, 0),
        ("b.weight", "zero", 16),
        ("c.weight", "unused", None),
    ]


def test_train_a_network_with_a_shared_layer_and_watch_it(run, tied, tmp_path):
    """At each step the parameters and gradients of every layer are those of the loop that the exercise asks for."""
    steps, saved = 25, tmp_path / "trained.pt"
    words = ("--input", "16,4", "--target", "16,1", "--loss", "mse", "--optimizer", "sgd(lr=0.1)", "--seed", 7)
    done = run("watch", MODELS / "tied.py", *words, "--steps", steps, "--save", saved)
    seen = [json.loads(line) for line in done.out.splitlines()]
    net = tied(7)
    x, y = torch.randn(16, 4), torch.randn(16, 1)
    trainer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for step in range(1, steps + 1):
        trainer.zero_grad()
        loss = functional.mse_loss(net(x), y)
        loss.backward()
        trainer.step()
        losses.append(loss.item())
        told = {row["name"]: row for row in seen if row["step"] == step}
        assert {row["loss"] for row in told.values()} == {loss.item()}
        for name, parameter in net.named_parameters():
            expected = pytest.approx((norm(parameter), norm(parameter.grad)), rel=1e-12)
            assert (told[name]["value_l2"], told[name]["grad_l2"]) == expected
    assert losses[-1] < losses[0]
    states = torch.load(saved)
    assert bits(states) == bits(net.state_dict())
    assert states["2.weight"].data_ptr() == states["4.weight"].data_ptr()
    assert done.err.splitlines()[-1] == "still one tensor each: 2.weight = 4.weight, 2.bias = 4.bias"
    assert len(run("ties", saved, "-f", "json").rows) == 2
