"""Law 4 of reading for whole pickled modules: names, kinds, modules, hyperparameters and ties as torch itself has them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from paramctl import formats, source, values
from paramctl.checkpoint import Checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


class Custom(nn.Module):
    """What people write: buffers of both kinds, a parameter that is none, tensors and modules as plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("dropped", torch.ones(2), persistent=False)
        self.register_buffer("nothing", None)
        self.register_parameter("bias", None)
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.plain = torch.full((4,), 0.5)
        self._hidden = torch.zeros(5)
        self.caches = {"a": [torch.ones(6)]}
        self.width = 7
        self._private = "s"
        self.inner = nn.Linear(3, 2, dtype=torch.bfloat16)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        block = nn.Linear(3, 3)
        self.blocks = nn.ModuleList([block, nn.ReLU(), block])
        self.view = nn.Parameter(self.embed.weight.detach().t())


def buffered() -> nn.Module:
    module = nn.Linear(2, 2)
    module.running = nn.Buffer(torch.ones(3))
    return module


MODULES: dict[str, Any] = {
    "Linear": lambda: nn.Linear(4, 8),
    "Sequential": lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.25), nn.Linear(8, 1)),
    "BatchNorm": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm1d(2, affine=False, track_running_stats=False)),
    "LSTM": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2),
    "GRU": lambda: nn.GRU(3, 4, bias=False),
    "MultiheadAttention": lambda: nn.MultiheadAttention(8, 2, bias=False, kdim=3, vdim=5),
    "Transformer": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2),
    "Conv": lambda: nn.Sequential(nn.Conv2d(2, 4, (3, 1), groups=2), nn.ConvTranspose1d(2, 3, 2), nn.Unfold(3)),
    "ModuleDict of odd names": lambda: nn.ModuleDict(
        {"a b": nn.Linear(1, 2), "\x1b[31m": nn.PReLU(), "0": nn.Identity(), "名\n": nn.LayerNorm(3)}
    ),
    "ParameterList and ParameterDict": lambda: nn.ModuleList(
        [nn.ParameterList([torch.ones(2), torch.zeros(3)]), nn.ParameterDict({"k": torch.ones(1), "j": None})]
    ),
    "Custom": Custom,
    "Tied": Tied,
    "old weight_norm": lambda: nn.utils.weight_norm(nn.Linear(3, 2)),
    "Lazy": lambda: nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1)),
    "Buffer": buffered,
    "frozen": lambda: nn.Linear(2, 2).requires_grad_(False),
    "Embedding": lambda: nn.EmbeddingBag(4, 3, padding_idx=1),
}


def saved(root: Any, folder: Path) -> Checkpoint:
    torch.save(root, folder / "m.pt")
    return formats.read(source.resolve(str(folder / "m.pt")))


def assert_is(mine: Checkpoint, module: nn.Module, at: str = "") -> None:
    prefix = f"{at}." if at else ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parameters = dict(module.named_parameters(remove_duplicate=False))
        buffers = dict(module.named_buffers(remove_duplicate=False))
    parameters = {name: p for name, p in parameters.items() if not isinstance(p, nn.UninitializedParameter)}
    named = {prefix + name: tensor for name, tensor in (parameters | buffers).items()}
    found = [name for name in mine.params if mine.params[name].kind != "tensor"]
    state = [prefix + name for name in module.state_dict() if prefix + name in named]
    assert set(found) == set(named)
    assert [name for name in found if name in state] == state
    for name, tensor in named.items():
        param = mine.params[name]
        assert param.kind == ("parameter" if name.removeprefix(prefix) in parameters else "buffer")
        assert param.requires_grad is tensor.requires_grad
        assert (param.shape, param.stride, f"torch.{param.dtype}") == (tensor.shape, tensor.stride(), str(tensor.dtype))
        assert values.array(param).tolist() == values.array(param).dtype.type(tensor.detach().double().numpy()).tolist()
    for one, tensor in named.items():
        for other, another in named.items():
            same = tensor.untyped_storage().data_ptr() == another.untyped_storage().data_ptr()
            assert (mine.params[one].storage.key == mine.params[other].storage.key) is same
    modules = {(prefix + path).removesuffix("."): child for path, child in module.named_modules(remove_duplicate=False)}
    assert {path: child.type for path, child in mine.modules.items()} == {
        path: type(child).__name__ for path, child in modules.items()
    }
    for path, child in modules.items():
        told = mine.modules[path].hyperparameters
        for key, value in vars(child).items():
            if not key.startswith("_") and key != "training" and type(value) in (int, float, str, bool):
                assert told[key] == value
        assert not {"training", "_private", "_parameters"} & set(told)


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
def test_a_pickled_module_is_named_as_torch_names_it(make: Any, tmp_path: Path):
    """Names are those of the state dict, kinds, modules, hyperparameters and ties those of the module."""
    module = make()
    assert_is(saved(module, tmp_path), module)


@pytest.mark.parametrize("at", ["model", "a b"])
def test_a_module_within_a_checkpoint(at: str, tmp_path: Path):
    """A module below a key is named below that key."""
    module = Tied()
    mine = saved({"epoch": 3, at: module}, tmp_path)
    assert_is(mine, module, at)
    assert mine.extras == {"epoch": 3}


def test_plain_tensors_of_a_module_are_found(tmp_path: Path):
    """What `torch.load` gives as an attribute, and `state_dict()` leaves out, is found, hidden or not."""
    mine = saved(Custom(), tmp_path)
    plain = {name: param.shape for name, param in mine.params.items() if param.kind == "tensor"}
    assert plain == {"plain": (4,), "_hidden": (5,), "caches.a.0": (6,)}
    told = {key: value for key, value in mine.modules[""].hyperparameters.items() if value is not None}
    assert told == {"width": 7}
    assert mine.modules["inner"].hyperparameters["in_features"] == 3


@st.composite
def trees(draw: st.DrawFn) -> nn.Module:
    pool = [nn.Linear(1, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.PReLU()]
    children = st.recursive(
        st.sampled_from(pool),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3).map(lambda found: nn.Sequential(*found)),
            st.dictionaries(
                st.text(alphabet=st.characters(exclude_characters=".", exclude_categories=["Cs"]), min_size=1, max_size=3)
                .filter(lambda name: not hasattr(nn.ModuleDict, name)),
                inner,
                max_size=3,
            ).map(nn.ModuleDict),
        ),
        max_leaves=8,
    )  # fmt: skip
    return draw(children)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(module=trees())
def test_any_tree_of_modules(module: nn.Module, tmp_path: Path):
    """Any nesting of containers, one module in several places included, is the tree that torch has."""
    assert_is(saved(module, tmp_path), module)


def test_a_reference_to_what_has_a_name_is_no_tensor_of_its_own(tmp_path: Path):
    """A list of weights or of children that are registered, and a module's way to its parent, add no names."""
    module = nn.Sequential(nn.Linear(1, 2), nn.LSTM(2, 3))
    module.weights = [module[0].weight, torch.ones(4)]
    module.again = [module[0], nn.Linear(5, 1)]
    module[0].__dict__["parent"] = module
    mine = saved(module, tmp_path)
    assert [name for name in mine.params if name not in module.state_dict()] == [
        "weights.1", "again.1.weight", "again.1.bias",
    ]  # fmt: skip
    assert set(mine.modules) == {"", "0", "1", "again.1"}


def test_a_state_dict_knows_its_modules_by_path(tmp_path: Path):
    """The metadata of a state dict gives the module tree without classes."""
    module = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 3)))
    mine = saved({"model": module.state_dict()}, tmp_path)
    assert set(mine.modules) == {f"model{path}" for path in ("", ".0", ".1", ".2", ".2.0")}
    assert not mine.knows_types
    assert mine.extras == {}
