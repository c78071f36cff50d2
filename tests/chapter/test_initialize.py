"""Initializing parameters, as the chapter does in Python: the same bits."""

from __future__ import annotations

import sys

import pytest
import torch
from chapter_sources import MODELS, SEED, bits
from torch import nn

sys.path.insert(0, str(MODELS))
import initializers as book

sys.path.remove(str(MODELS))


def written(run, opened, *words):
    result = run("init", opened.path, *words, "--seed", SEED, "-o", opened.out)
    assert (result.code, result.err) == (0, "")
    return opened.state()


def weights(net):
    """In the order of the parameters."""
    return [module for module in net.modules() if isinstance(module, nn.Linear)]


def test_normal_weights_and_zero_biases(run, opened):
    """`init_normal`: N(0, 0.01²) for the weights, 0 for the biases."""
    mlp = opened("mlp")
    found = written(run, mlp, "--scheme", "normal(std=0.01)", "--bias", "zeros")
    torch.manual_seed(SEED)
    mlp.net.apply(book.normal_and_zeros)
    assert bits(found) == bits(mlp.net.state_dict())


def test_a_constant(run, opened):
    """`init_constant`: 1 for the weights, 0 for the biases."""
    mlp = opened("mlp")
    found = written(run, mlp, "--scheme", "constant(1)", "--bias", "zeros")
    assert {name: set(tensor.flatten().tolist()) for name, tensor in found.items()} == {
        "0.weight": {1.0}, "0.bias": {0.0}, "2.weight": {1.0}, "2.bias": {0.0},
    }  # fmt: skip


def test_different_blocks_have_different_initializers(run, opened):
    """Xavier for the first layer and 42 for the third: by two commands, by rules, and by a recipe."""
    mlp = opened("mlp")
    by_rule = bits(written(run, mlp, "--rule", "0=xavier", "--rule", "2=constant(42)"))
    recipe = mlp.out.parent / "recipe.toml"
    recipe.write_text('[[rule]]\nlayer = "0"\nscheme = "xavier"\n[[rule]]\nlayer = "2"\nscheme = "constant(42)"\n')
    by_recipe = bits(written(run, mlp, "--recipe", recipe))
    first = run("init", mlp.path, "--layer", 0, "--scheme", "xavier", "--seed", SEED, "-o", mlp.out)
    then = run("init", mlp.out, "--layer", 2, "--scheme", "constant(42)", "--in-place")
    assert (first.code, then.code) == (0, 0)
    by_layer = bits(mlp.state())
    torch.manual_seed(SEED)
    mlp.net[0].apply(lambda m: nn.init.xavier_uniform_(m.weight))
    mlp.net[2].apply(lambda m: nn.init.constant_(m.weight, 42))
    assert by_rule == by_recipe == by_layer == bits(mlp.net.state_dict())


@pytest.mark.parametrize("function", ["five_to_ten", "my_init"])
def test_an_initializer_of_ones_own(run, opened, function):
    """`my_init`: U(5, 10) and U(-10, -5) with a quarter each, else 0; as a function of a tensor, and of a module."""
    mlp = opened("mlp")
    classes = function == "five_to_ten" or mlp.knows_types
    more = [] if classes else ["--model", MODELS / "mlp.py"]
    found = written(run, mlp, "--scheme", f"{MODELS}/initializers.py:{function}", *more)
    torch.manual_seed(SEED)
    mlp.net.apply(book.my_init)
    assert bits(found) == bits(mlp.net.state_dict())
    sizes = found["0.weight"].abs()
    assert ((sizes == 0) | ((sizes >= 5) & (sizes <= 10))).all()


def test_a_function_of_a_module_needs_classes(run, opened):
    """A state dict knows no classes, and the error says what to give."""
    mlp = opened("mlp")
    result = run("init", mlp.path, "--scheme", f"{MODELS}/initializers.py:my_init")
    if mlp.knows_types:
        assert result.code == 0
        return
    assert result.code == 2
    assert result.err == (
        f"error: {mlp.path}: a state dict knows no classes, and this works on modules\n\n"
        "hint: give the definition of its model with --model: --model net.py:Net\n"
    )


def test_parameters_set_directly(run, opened):
    """`net[0].weight.data[:] += 1` and `net[0].weight.data[0, 0] = 42`."""
    mlp = opened("mlp")
    result = run("set", *mlp.words, "0.weight[:] += 1", "0.weight[0, 0] = 42", "-o", mlp.out)
    assert (result.code, result.err) == (0, "")
    mlp.net[0].weight.data[:] += 1
    mlp.net[0].weight.data[0, 0] = 42
    assert bits(mlp.state()) == bits(mlp.net.state_dict())
    shown = run("show", mlp.out, "0.weight[0]", "-f", "json").rows[0]["value"]
    assert shown == mlp.net[0].weight.data[0].tolist()


def test_the_default(run, opened):
    """`default` is what PyTorch does when a layer is made."""
    mlp = opened("mlp")
    fresh = bits(mlp.net.state_dict())
    run("set", *mlp.words, "* = 9", "-o", mlp.out)
    more = [] if mlp.kind == "module" else ["--model", MODELS / "mlp.py"]
    assert run("init", mlp.out, "--scheme", "default", *more, "--seed", SEED, "--in-place").code == 0
    assert bits(mlp.state()) == fresh


def test_the_initializers_of_the_second_exercise(run):
    """Every initializer of `init --list` that can work on a linear layer does so under its name and each short one."""
    needed = {"constant": "(1)", "sparse": "(0.5)", "gpt2_residual": "(12)"}
    for row in run("init", "--list", "-f", "json").rows:
        for name in [row["name"], *row["aliases"]]:
            result = run("init", MODELS / "mlp.py", "--scheme", name + needed.get(row["name"], ""), "--seed", 0)
            assert result.code == (2 if row["name"] in {"dirac", "delta_orthogonal"} else 0), name
