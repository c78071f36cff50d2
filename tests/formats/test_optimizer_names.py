"""Whose an optimizer's state is: told where the checkpoint tells, and else not."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from paramctl.optimizer import optimizer_names


def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    return optimizer


def saved(value: Any) -> bytes:
    held = io.BytesIO()
    torch.save(value, held)
    return held.getvalue()


def expected(path: str, optimizer: torch.optim.Optimizer, model: nn.Module, prefix: str = "model.") -> dict[str, str]:
    """The oracle: the optimizer's own references to the parameters."""
    names = {id(param): name for name, param in model.named_parameters()}
    order = [param for group in optimizer.param_groups for param in group["params"]]
    return {
        f"{path}.state.{i}.{key}": prefix + names[id(param)]
        for i, param in enumerate(order)
        for key, value in optimizer.state[param].items()
        if isinstance(value, torch.Tensor)
    }


def tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 6, bias=False))
    model[2].weight = model[0].weight
    return model


MODELS = {
    "a perceptron": lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)),
    "buffers among the parameters": lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)),
    "tied weights": tied,
    "a scalar parameter": lambda: nn.Sequential(nn.PReLU(), nn.Linear(3, 1)),
}
OPTIMIZERS = {
    "Adam": torch.optim.Adam,
    "AdamW, amsgrad": lambda params: torch.optim.AdamW(params, amsgrad=True),
    "SGD with momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "Adagrad": torch.optim.Adagrad,
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_state_is_of_the_parameter_that_the_optimizer_holds(read, build, make):
    """With one group, the i-th state is of the i-th parameter, buffers and ties left out."""
    model = build()
    optimizer = trained(model, make(model.parameters()))
    found = read(saved({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}))
    assert optimizer_names(found) == expected("optimizer", optimizer, model)
    assert optimizer_names(found)


def test_a_pickled_module_knows_its_buffers(read):
    """Kinds that the file tells are believed before names are."""
    model = nn.Linear(2, 2)
    model.register_buffer("shift", torch.zeros(2))
    optimizer = trained(model, torch.optim.Adam(model.parameters()))
    found = read(saved({"net": model, "optimizer": optimizer.state_dict()}))
    assert optimizer_names(found) == expected("optimizer", optimizer, model, "net.")


def test_decay_groups_without_a_common_shape(read):
    """Weights in one group and biases in another are told apart by their shapes."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 8))
    groups = [
        {"params": [p for p in model.parameters() if p.ndim == 2]},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = trained(model, torch.optim.AdamW(groups))
    found = read(saved({"model": model.state_dict(), "optimizer": optimizer.state_dict()}))
    assert optimizer_names(found) == expected("optimizer", optimizer, model)


def test_lightning_keeps_a_list_of_optimizers(read):
    """`optimizer_states` is a list beside `state_dict`."""
    model = nn.Linear(3, 2)
    optimizer = trained(model, torch.optim.Adam(model.parameters()))
    found = read(saved({"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()], "epoch": 1}))
    assert optimizer_names(found) == expected("optimizer_states.0", optimizer, model, "state_dict.")


def test_names_that_the_optimizer_keeps(read):
    """`param_names` are believed whatever the groups' order, and where no model is beside."""
    model = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4))
    named = dict(model.named_parameters())
    order = [[(n, named[n]) for n in ("1.bias", "0.weight")], [(n, named[n]) for n in ("1.weight", "0.bias")]]
    optimizer = trained(model, torch.optim.Adam([{"params": part} for part in order]))
    beside = read(saved({"model": model.state_dict(), "optimizer": optimizer.state_dict()}))
    assert optimizer_names(beside) == expected("optimizer", optimizer, model)
    alone = read(saved(optimizer.state_dict()))
    wanted = expected("", optimizer, model, "")
    assert optimizer_names(alone) == {name[1:]: owner for name, owner in wanted.items()}


def test_state_by_name(read):
    """State that is by name, as DCP and FSDP have it, is of the parameter of that name."""
    model = nn.Sequential(nn.Linear(4, 3))
    state = {name: {"exp_avg": torch.zeros_like(p), "step": torch.tensor(1.0)} for name, p in model.named_parameters()}
    groups = [{"lr": 0.1, "params": list(state)}]
    found = read(saved({"app": {"model": model.state_dict(), "optim": {"state": state, "param_groups": groups}}}))
    assert optimizer_names(found) == {
        f"app.optim.state.{name}.{key}": f"app.model.{name}" for name in state for key in ("exp_avg", "step")
    }


def _checkpoint(model: nn.Module, optimizer: torch.optim.Optimizer, **more: Any) -> dict[str, Any]:
    return {"model": model.state_dict(), "optimizer": trained(model, optimizer).state_dict()} | more


def _without_a_model() -> Any:
    model = nn.Linear(2, 2)
    return trained(model, torch.optim.Adam(model.parameters())).state_dict()


def _some_parameters_only() -> Any:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    return _checkpoint(model, torch.optim.Adam(model[1].parameters()))


def _another_order() -> Any:
    model = nn.Linear(2, 3)
    return _checkpoint(model, torch.optim.Adam([model.bias, model.weight]))


def _groups_that_share_a_shape() -> Any:
    model = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4))
    weights = [part.weight for part in model]
    return _checkpoint(model, torch.optim.Adam([{"params": weights}, {"params": [part.bias for part in model]}]))


def _two_models() -> Any:
    model = nn.Linear(2, 3)
    return _checkpoint(model, torch.optim.Adam(model.parameters()), ema=nn.Linear(2, 3).state_dict())


def _factored() -> Any:
    model = nn.Linear(2, 3)
    return _checkpoint(model, torch.optim.Adafactor(model.parameters()))


def _no_state() -> Any:
    model = nn.Linear(2, 3)
    return _checkpoint(model, torch.optim.SGD(model.parameters(), lr=0.1))


def _no_optimizer() -> Any:
    return {"model": nn.Linear(2, 3).state_dict()}


def _groups_that_lie() -> Any:
    state = {0: {"exp_avg": torch.zeros(3)}, 5: {"exp_avg": torch.zeros(3)}}
    return {"model": {"w": torch.zeros(3)}, "optimizer": {"state": state, "param_groups": [{"params": [0]}]}}


def _groups_of_something_else() -> Any:
    state = {0: {"exp_avg": torch.zeros(3)}}
    return {"model": {"w": torch.zeros(3)}, "optimizer": {"state": state, "param_groups": [{"params": "x"}, 3]}}


UNTOLD = (
    _without_a_model,
    _some_parameters_only,
    _another_order,
    _groups_that_share_a_shape,
    _two_models,
    _factored,
    _no_state,
    _no_optimizer,
    _groups_that_lie,
    _groups_of_something_else,
)


@pytest.mark.parametrize("make", UNTOLD, ids=lambda make: make.__name__.strip("_"))
def test_nothing_is_guessed(read, make):
    """Where counts or shapes do not decide whose a state is, no name is told."""
    assert optimizer_names(read(saved(make()))) == {}
