"""Accessing parameters, as the chapter does in Python."""

from __future__ import annotations

import pytest
from chapter_sources import MODELS


def test_a_layer_by_its_position(run, opened):
    """`net[2].state_dict()`: the parameters of a layer with their values."""
    mlp = opened("mlp")
    found = {row["name"]: row["value"] for row in run("show", *mlp.words, "--layer", 2, "-f", "json").rows}
    assert found == {f"2.{name}": tensor.tolist() for name, tensor in mlp.net[2].state_dict().items()}
    by_position = run("show", *mlp.words, "[2]", "-f", "json").rows
    assert {row["name"]: row["value"] for row in by_position} == found


@pytest.mark.parametrize("pattern", ["2.bias", "[2].bias", "[-1].bias", "re:^2.*bias$"])
def test_one_parameter(run, opened, pattern):
    """`type(net[2].bias)`, `net[2].bias`, `net[2].bias.data`: its class, what it is, and its values."""
    mlp = opened("mlp")
    result = run("show", *mlp.words, pattern, "-f", "json")
    (row,) = result.rows
    parameter = mlp.net[2].bias
    assert row == {
        "name": "2.bias",
        "slice": None,
        "class": "Parameter" if mlp.knows_types else "Tensor",
        "dtype": "float32",
        "shape": list(parameter.shape),
        "requires_grad": True if mlp.knows_types else row["requires_grad"],
        "grad": None,
        "value": parameter.data.tolist(),
    }


def test_no_gradient_before_a_backward_pass(run, opened):
    """`net[2].weight.grad == None`."""
    mlp = opened("mlp")
    rows = run("show", *mlp.words, "-f", "json").rows
    assert [row["grad"] for row in rows] == [None] * 4
    assert mlp.net[2].weight.grad is None


def test_a_gradient_after_a_backward_pass(run, tmp_path):
    """A definition that has run a backward pass shows the gradients it left, tied layers' summed."""
    text = (MODELS / "tied.py").read_text() + (
        "\nimport torch\ntorch.manual_seed(1)\nmodel = net()\nmodel(torch.rand(2, 4)).sum().backward()\n"
    )
    (tmp_path / "trained.py").write_text(text)
    rows = run("show", f"{tmp_path}/trained.py:model", "2.weight", "4.weight", "6.bias", "-f", "json").rows
    assert rows[0]["grad"] == rows[1]["grad"] != [[0.0] * 8] * 8
    assert rows[2]["grad"] == [2.0]


def test_all_at_once(run, opened):
    """`net[0].named_parameters()` and `net.named_parameters()`: names and shapes."""
    mlp = opened("mlp")
    for words, prefix, module in ((["--layer", "0"], "0.", mlp.net[0]), ([], "", mlp.net)):
        rows = run("ls", *mlp.words[:1], *words, "-f", "json").rows
        assert {row["name"]: row["shape"] for row in rows} == {
            prefix + name: list(parameter.shape) for name, parameter in module.named_parameters()
        }
    names = run("ls", mlp.path, "--layer", 0, "-f", "names").out.splitlines()
    assert names == (["0.bias", "0.weight"] if mlp.kind == "safetensors" else ["0.weight", "0.bias"])


def test_by_its_name_in_the_state_dict(run, opened):
    """`net.state_dict()['2.bias'].data`."""
    mlp = opened("mlp")
    tsv = run("show", *mlp.words, "2.bias", "--no-header").out.split("\t")
    assert tsv[0] == "2.bias"
    assert float(tsv[-1].strip("[]\n")) == mlp.net.state_dict()["2.bias"].item()


def test_a_slice(run, opened):
    """`net[0].weight.data[0]`, `net[0].weight[1:3, ::2]`."""
    mlp = opened("mlp")
    rows = run("show", *mlp.words, "0.weight[0]", "0.weight[1:3, ::2]", "0.weight[-1, -1]", "-f", "json").rows
    weight = mlp.net[0].weight.data
    assert [row["value"] for row in rows] == [weight[0].tolist(), weight[1:3, ::2].tolist(), weight[-1, -1].item()]


def test_a_parameter_of_nested_blocks(run, opened):
    """`rgnet[0][1][0].bias.data`: positions lead through names with spaces."""
    nested = opened("nested")
    bias = nested.net[0][1][0].bias
    for pattern in ("[0][1][0].bias", "0.block 1.0.bias", "0.*[1].0.bias", "[0][-3][0].bias"):
        rows = run("show", *nested.words, pattern, "-f", "json").rows
        assert [(row["name"], row["value"]) for row in rows] == [("0.block 1.0.bias", bias.tolist())], pattern


def test_the_tree_of_nested_blocks(run, opened):
    """`print(rgnet)`: every block with its layers, whole or folded."""
    nested = opened("nested")
    whole = run("tree", nested.path, "--no-fold").out
    for name, module in nested.net.named_modules():
        last = name.rpartition(".")[2]
        kind = type(module).__name__
        shown = any(
            line.replace("├── ", "").replace("└── ", "").strip(" │").startswith(last) for line in whole.splitlines()
        )
        assert shown or kind == "ReLU", name
    assert whole.count("weight") == len([name for name in nested.net.state_dict() if name.endswith("weight")])
    if nested.knows_types:
        assert whole.count("ReLU") == 8
        assert whole.count("Linear") == 9
    folded = run("tree", nested.path).out
    assert "block [0-3]" in folded
    assert "×4" in folded
    assert folded.count("weight") == 3
    totals = run("tree", nested.path, "-f", "json").json["totals"]
    assert totals["numel"] == totals["unique_numel"] == sum(p.numel() for p in nested.net.parameters())


def test_the_first_exercise(run, opened):
    """FancyMLP: one layer called twice is one weight; its constant is a buffer, and no parameter."""
    fancy = opened("fancy")
    rows = run("ls", fancy.path, "-f", "json").rows
    assert {row["name"]: row["shape"] for row in rows} == {
        "linear.weight": [20, 20], "linear.bias": [20], "mixing": [20, 20],
    }  # fmt: skip
    if fancy.knows_types:
        assert {row["name"]: (row["kind"], row["requires_grad"], row["module"]) for row in rows} == {
            "linear.weight": ("parameter", True, "Linear"),
            "linear.bias": ("parameter", True, "Linear"),
            "mixing": ("buffer", False, "FancyMLP"),
        }
        parameters = run("ls", fancy.path, "--kind", "parameter", "-f", "names").out.split()
        assert sorted(parameters) == sorted(name for name, _ in fancy.net.named_parameters())
    values = run("show", *fancy.words, "-f", "json").rows
    assert {row["name"]: row["value"] for row in values} == {
        name: tensor.tolist() for name, tensor in fancy.net.state_dict().items()
    }
