"""Gradients: autograd's, and of what is tied each use's; with torch as the oracle, and an untied twin."""

from __future__ import annotations

import copy
import importlib.util
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

import others
from paramctl.backward import Gradient, Use, backward, shares
from paramctl.forward import Definition, Given, Trace, run
from program import MODELS

KEYS = [
    "name", "use", "shape", "dtype", "requires_grad", "value_l2", "grad_l2", "ratio", "share", "zeros", "nan", "inf",
    "tied_with", "mark",
]  # fmt: skip


def gradients(net: nn.Module, *args: torch.Tensor) -> list[Gradient]:
    """Of the sum of what a network makes."""
    model = Definition(net, "net.py")
    with Trace(net) as trace:
        output = run(model, Given(args), trace)
        return backward(model, output.sum(), trace)


def built(name: str, seed: int = 0, call: str = "net", **arguments: object) -> nn.Module:
    """A network of `models/`, as `paramctl … --seed` builds it."""
    spec = importlib.util.spec_from_file_location(f"own_{name}", MODELS / f"{name}.py")
    code = importlib.util.module_from_spec(spec)
    sys.modules[f"own_{name}"] = code
    spec.loader.exec_module(code)
    torch.manual_seed(seed)
    return getattr(code, call)(**arguments)


# ----------------------------------------------------------------------------- what each use contributes

WIDTH = 4


class Recurrent(nn.Module):
    """A cell called for each position: an operation that takes its weights at each."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(WIDTH, WIDTH)

    def forward(self, x):
        hidden, states = None, []
        for at in range(x.shape[1]):
            hidden = self.cell(x[:, at], hidden)
            states.append(hidden)
        return torch.stack(states, 1)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Mirrored(nn.Module):
    """A weight that is used as it is, and then transposed, in one call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, WIDTH))

    def forward(self, x):
        return torch.tanh(x @ self.weight.T) @ self.weight


class Layered(nn.Module):
    """An nn.LSTM, whose forward reads a list of weights and not its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


class Product(torch.autograd.Function):
    """An operation of one's own, which no dispatch sees."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx, grad):
        x, scale = ctx.saved_tensors
        return grad * scale, (grad * x).sum((0, 1))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x):
        return Product.apply(x, self.scale)


KINDS = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "norm": lambda: nn.LayerNorm(WIDTH),
    "recurrent": Recurrent,
    "attending": Attending,
    "mirrored": Mirrored,
    "layered": Layered,
    "scaled": Scaled,
    "nested": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()),
}


class Row(nn.Module):
    """Layers called one after another, with what went in added; not a Sequential, so that nothing says which is which."""

    def __init__(self, layers) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


class Chain(nn.Sequential):
    pass


def pools(draw):
    kinds = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=3))
    order = draw(st.lists(st.integers(0, len(kinds) - 1), min_size=1, max_size=6))
    return kinds, order


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_what_uses_contribute_is_what_untied_layers_get(data):
    """In a network of shared layers, each occurrence contributes what a layer of its own would have got; and the sum
    over the uses is autograd's gradient.
    """
    kinds, order = pools(data.draw)
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    made = data.draw(st.sampled_from([Row, Chain]))
    pool = [KINDS[kind]().double() for kind in kinds]
    tied = made([pool[i] for i in order]) if made is Row else made(*(pool[i] for i in order))
    single = [copy.deepcopy(pool[i]) for i in order]
    untied = made(single) if made is Row else made(*single)
    x = torch.randn(2, 3, WIDTH, dtype=torch.float64)
    untied(x).sum().backward()
    found = {id(gradient.parameter): gradient for gradient in gradients(tied, x)}
    tied(x).sum().backward()
    for place, layer in enumerate(pool):
        occurrences = [single[at] for at, which in enumerate(order) if which == place]
        for name, parameter in layer.named_parameters():
            if not occurrences:
                continue
            gradient = found[id(parameter)]
            torch.testing.assert_close(gradient.whole, parameter.grad, rtol=0, atol=0)
            parts = [use.gradient for use in gradient.uses]
            torch.testing.assert_close(sum(parts), parameter.grad, rtol=1e-6, atol=1e-12)
            assert len({use.label for use in gradient.uses}) == len(gradient.uses)
            each = len(parts) // len(occurrences)
            for at, occurrence in enumerate(occurrences):
                own = occurrence.get_parameter(name).grad
                torch.testing.assert_close(sum(parts[at * each : (at + 1) * each]), own, rtol=1e-6, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=5), st.integers(0, 1000))
def test_one_parameter_of_two_layers(which, seed):
    """A parameter that two layers hold gets from each call of either what a parameter of its own would get."""
    torch.manual_seed(seed)
    one, other = nn.Linear(3, 3, bias=False).double(), nn.Linear(3, 3).double()
    other.weight = one.weight
    order = [other if second else one for second in which]
    single = [copy.deepcopy(layer) for layer in order]
    x = torch.randn(2, 3, dtype=torch.float64)
    nn.Sequential(*single)(x).square().sum().backward()

    class Squared(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = one, other

        def forward(self, x):
            for layer in order:
                x = layer(x)
            return x.square()

    gradient = next(g for g in gradients(Squared(), x) if g.parameter is one.weight)
    assert gradient.names == ("one.weight", "other.weight")
    names = [use.label.partition(" ")[0] for use in gradient.uses]
    assert names == ["other.weight" if second else "one.weight" for second in which]
    for use, layer in zip(gradient.uses, single, strict=True):
        torch.testing.assert_close(use.gradient, layer.weight.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sparse", [False, True])
def test_an_embedding_that_is_the_output_too(sparse):
    """Of a matrix of words that is looked up, and multiplied with at the end, both uses are told."""

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(5, 3, sparse=sparse)

        def forward(self, tokens):
            return self.words(tokens) @ self.words.weight.T

    torch.manual_seed(0)
    net = Words().double()
    looked, multiplied = (net.words.weight.detach().clone().requires_grad_() for _ in range(2))
    tokens = torch.tensor([[0, 1, 1], [4, 0, 2]])
    (functional.embedding(tokens, looked) @ multiplied.T).sum().backward()
    (gradient,) = gradients(net, tokens)
    assert [use.label for use in gradient.uses] == ["words.weight", "words.weight (in forward)"]
    for use, own in zip(gradient.uses, (looked, multiplied), strict=True):
        torch.testing.assert_close(use.gradient.to_dense(), own.grad)


def test_calls_are_named_by_where_they_are():
    """A layer in two places of a Sequential is named by each; one that only its caller tells apart, by both."""
    shared = nn.Linear(2, 2)
    inner = nn.Sequential(shared, nn.Tanh(), shared)
    (weight, _) = gradients(nn.Sequential(inner, nn.Tanh(), inner), torch.ones(1, 2))
    assert [use.label for use in weight.uses] == [
        "0.0.weight (call 1)", "0.2.weight (call 2)", "2.0.weight (call 3)", "2.2.weight (call 4)",
    ]  # fmt: skip
    (weight, _) = gradients(Row([shared, shared]), torch.ones(1, 2))
    label = "layers.0.weight = layers.1.weight"
    assert [use.label for use in weight.uses] == [f"{label} (call 1)", f"{label} (call 2)"]


def test_nothing_of_the_model_is_changed():
    """Gradients that were there, parameters, attributes and hooks are as they were, after a pass that fails too."""
    net = built("tied")
    net(torch.ones(1, 4)).sum().backward()
    before = [(p, p.grad, p.detach().clone(), p.grad.clone()) for p in net.parameters()]
    attributes = {name: dict(vars(module)) for name, module in net.named_modules()}
    gradients(net, torch.ones(2, 4))
    with pytest.raises(Exception, match="shapes cannot be multiplied"):
        gradients(net, torch.ones(2, 5))
    for parameter, (old, grad, value, values) in zip(net.parameters(), before, strict=True):
        assert parameter is old
        assert parameter.grad is grad
        assert torch.equal(grad, values)
        assert torch.equal(parameter, value)
    assert {name: dict(vars(module)) for name, module in net.named_modules()} == attributes


EIGHTHS = st.integers(-80, 80).map(lambda number: number / 8)  # whose sums and squares are exact


@given(
    st.lists(st.lists(EIGHTHS, min_size=3, max_size=3), min_size=1, max_size=5),
    st.sampled_from([1.0, 2.0**-600, 2.0**600]),
)
def test_shares_are_projections_and_add_up_to_1(parts, scale):
    """A share is a use's part along the whole, however small or large both are, and the shares add up to 1."""
    plain = torch.tensor(parts, dtype=torch.float64)
    uses = [Use("w", i, None, part * scale) for i, part in enumerate(plain)]
    whole = plain.sum(0)
    found = shares(Gradient(nn.Parameter(torch.zeros(3)), ("w",), uses, whole * scale))
    if not whole.any():
        assert found == ((None,) * len(parts), None)
        return
    np.testing.assert_allclose(found.of_each, (plain @ whole / (whole @ whole)).tolist(), rtol=1e-12, atol=1e-12)
    assert math.fsum(found.of_each) == pytest.approx(1)
    assert found.apart <= 1e-15 * float(plain.abs().sum() / whole.abs().max())


def test_a_sum_that_is_not_the_whole_is_told():
    """`apart` is the greatest difference between the sum of the uses and the whole, over its greatest element."""
    uses = [Use("w", 0, None, torch.tensor([1.0, 2.0])), Use("w", 1, None, torch.tensor([1.0, 1.0]))]
    assert shares(Gradient(nn.Parameter(torch.zeros(2)), ("w",), uses, torch.tensor([2.0, 4.0]))).apart == 0.25


# ----------------------------------------------------------------------------- rows


def test_a_row_is_what_autograd_says(run):
    """Norms, ratio and zeros of each parameter are those of autograd; with a seed, those that torch draws."""
    done = run("grad", MODELS / "tied.py", "--input", "2,4", "--seed", 3, "-f", "json")
    net = built("tied", 3)
    net(torch.randn(2, 4)).sum().backward()
    rows = [row for row in done.rows if row["use"] is None]
    assert [list(row) for row in done.rows] == [KEYS] * len(done.rows)
    assert [row["name"] for row in rows] == [name for name, _ in net.named_parameters()]
    for row, parameter in zip(rows, net.parameters(), strict=True):
        value, grad = (float(t.double().norm()) for t in (parameter.detach(), parameter.grad))
        assert (row["value_l2"], row["grad_l2"]) == pytest.approx((value, grad), rel=1e-12)
        assert row["ratio"] == pytest.approx(grad / value, rel=1e-12)
        assert row["zeros"] == int((parameter.grad == 0).sum())
        assert (row["shape"], row["dtype"], row["requires_grad"]) == (list(parameter.shape), "float32", True)
        assert (row["nan"], row["inf"], row["mark"]) == (0, 0, None)
    totals = done.json["totals"]
    norm = torch.nn.utils.get_total_norm([p.grad for p in net.parameters()])
    assert totals["grad_l2"] == pytest.approx(float(norm), rel=1e-6)
    torch.manual_seed(3)
    assert totals["loss"] == built("tied", 3)(torch.randn(2, 4)).sum().item()
    assert totals["sum_error"] < 1e-6
    assert done.json["metadata"] == {"seed": "3", "input": "2,4", "loss": "sum", "mode": "train"}


def test_uses_follow_their_parameter(run):
    """Below a tied parameter stands a row for each use, whose shares add up to 1; no other has any."""
    done = run("grad", MODELS / "tied.py", "--input", "2,4", "--seed", 0, "-f", "json")
    rows = done.rows
    assert done.err == "the uses of 2.weight and 2.bias add up to their gradients\n"
    told = [(row["name"], row["use"], row["tied_with"]) for row in rows if row["name"].startswith("2.")]
    assert told == [
        ("2.weight", None, ["4.weight"]),
        ("2.weight", "2.weight (call 1)", []),
        ("2.weight", "4.weight (call 2)", []),
        ("2.bias", None, ["4.bias"]),
        ("2.bias", "2.bias (call 1)", []),
        ("2.bias", "4.bias (call 2)", []),
    ]
    for name in ("2.weight", "2.bias"):
        assert sum(row["share"] for row in rows if row["name"] == name and row["use"]) == pytest.approx(1)
    assert {row["use"] for row in rows if row["name"][0] in "06"} == {None}


def test_uses_that_do_not_add_up_are_told(run, tmp_path):
    """A hook of the model's own that changes a gradient on its way shows, as a sum that misses it."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef net():\n    one = nn.Linear(2, 2, bias=False)\n"
        "    one.weight.register_hook(lambda grad: 2 * grad)\n    return nn.Sequential(one, one)\n"
    )
    done = run("grad", tmp_path / "net.py", "--input", "2,2", "--seed", 0, "-f", "json")
    assert done.json["totals"]["sum_error"] == pytest.approx(0.5, rel=1e-6)
    assert done.err == "the uses of 0.weight add up to its gradient, but for 0.5 of the largest element\n"


def test_uses_that_are_not_finite_are_told(run, tmp_path):
    """Of a tied gradient with NaN or infinities no sum is compared; it says so, and the totals count it."""
    torch.save(torch.full((2, 4), torch.inf), tmp_path / "x.pt")
    done = run("grad", MODELS / "tied.py", "2.weight", "--input", tmp_path / "x.pt", "--seed", 0, "-f", "json")
    assert (done.rows[0]["mark"], done.json["totals"]["nan"]) == ("nan", 1)
    assert done.err == "not finite, so that no sum of its uses is compared: 2.weight\n"


def test_a_parameter_is_told_under_the_name_that_was_chosen(run):
    """A pattern that names a tied parameter by its second name gives one row of that name, and its uses."""
    rows = run("grad", MODELS / "tied.py", "4.weight", "--seed", 0, "-f", "json").rows
    assert [(row["name"], row["tied_with"]) for row in rows] == [("4.weight", ["2.weight"]), *[("4.weight", [])] * 2]


def test_rows_are_chosen_and_sorted_as_of_any_report(run):
    """--where, --sort and --columns work on gradients; as names each parameter stands once."""
    words = ("grad", MODELS / "tied.py", "--input", "2,4", "--seed", 0)
    rows = run(*words, "--where", "share < 0", "--columns", "use,share", "-f", "json").rows
    assert [(row["use"], row["share"] < 0) for row in rows] == [("2.bias (call 1)", True)]
    sorted_ = run(*words, "--where", "use is null", "--sort", "-grad_l2", "-f", "json").rows
    assert [row["grad_l2"] for row in sorted_] == sorted((row["grad_l2"] for row in sorted_), reverse=True)
    assert run(*words, "-f", "names").out.split() == [name for name, _ in built("tied").named_parameters()]
    assert run(*words, "--where", "share < 0", "-f", "names").out == "2.bias\n"
    assert run(*words, "--where", "shore < 0").err.startswith("error: no column shore: there are share, ")


OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused, self.frozen = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)
        self.dead, self.sick = nn.Linear(2, 2), nn.Linear(2, 2)
        self.register_buffer("scale", torch.ones(2))

    def forward(self, x):
        dead = torch.relu(self.dead(x) * 0 - 1)
        return self.frozen(self.used(x)) + dead + self.sick(x) * float("nan") * self.scale

net = Net

def chain(a: float = 1.0, b: float = 1.0):
    layers = [nn.Linear(1, 1, bias=False) for _ in range(2)]
    for layer, value in zip(layers, (a, b)):
        nn.init.constant_(layer.weight, value)
    return nn.Sequential(*layers)

def views():
    one, other = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    other.weight = nn.Parameter(one.weight.data)
    return nn.Sequential(one, other)
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def test_none_is_not_zero(run, own):
    """No gradient, a gradient of zeros, one that is NaN, and a frozen parameter are four things."""
    rows = run("grad", own, "*.weight", "--input", "3,2", "--seed", 0, "-f", "json").rows
    told = {row["name"]: (row["mark"], row["grad_l2"] is None, row["zeros"], row["nan"]) for row in rows}
    assert told == {
        "used.weight": (None, False, 0, 0),
        "unused.weight": ("unused", True, None, None),
        "frozen.weight": ("frozen", True, None, None),
        "dead.weight": ("zero", False, 4, 0),
        "sick.weight": ("nan", False, 0, 4),
    }
    totals = run("grad", own, "--input", "3,2", "--seed", 0, "-f", "json").json["totals"]
    assert (totals["unused"], totals["frozen"], totals["zero"], totals["loss"]) == (2, 2, 2, None)


@pytest.mark.parametrize(
    ("a", "b", "mark"),
    [(1, 1, None), (2, 0.0021, None), (2, 0.0019, "vanishing"), (1, 990, None), (1, 1010, "exploding")],
)
def test_layers_vanish_and_explode_by_a_rule(run, own, a, b, mark):
    """With y = b·a·x the first layer's gradient is b·x and the last one's a·x: marked beyond a thousand to one."""
    done = run("grad", f"{own}:chain", "--arg", f"a={a}", "--arg", f"b={b}", "--input", "1,1:1-1", "-f", "json")
    first, last = done.rows
    assert (first["grad_l2"], last["grad_l2"]) == pytest.approx((b, a))
    assert (first["mark"], last["mark"]) == (mark, None)


def test_parameters_that_only_share_a_storage_are_not_tied_to_autograd(run, own):
    """Two parameters over one storage have a gradient each, no uses, and a note."""
    done = run("grad", f"{own}:views", "--input", "2,2", "--seed", 0, "-f", "json")
    assert [(row["name"], row["use"], row["tied_with"]) for row in done.rows] == [
        ("0.weight", None, []),
        ("1.weight", None, []),
    ]
    assert done.err.endswith(
        "0.weight and 1.weight share elements and are 2 parameters, each with a gradient of its own\n"
    )


def test_a_part_of_a_model_is_run_alone(run):
    """--at runs that module, with names as they are there."""
    done = run("grad", MODELS / "nested.py", "--at", "0.block 1", "--input", "3,4", "--seed", 1, "-f", "json")
    net = built("nested", 1)[0].get_submodule("block 1")
    net(torch.randn(3, 4)).sum().backward()
    assert {row["name"]: row["grad_l2"] for row in done.rows} == pytest.approx(
        {name: float(p.grad.double().norm()) for name, p in net.named_parameters()}
    )


def test_train_and_eval(run, tmp_path):
    """Dropout drops as torch does after the same draws, and not with --eval."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(3, 9), nn.Dropout(), nn.Linear(9, 1))\n"
    )
    for words, mode in (([], True), (["--eval"], False)):
        torch.manual_seed(5)
        net = nn.Sequential(nn.Linear(3, 9), nn.Dropout(), nn.Linear(9, 1)).train(mode)
        net(torch.randn(4, 3)).sum().backward()
        rows = run("grad", tmp_path / "net.py", "--input", "4,3", "--seed", 5, *words, "-f", "json").rows
        assert [row["grad_l2"] for row in rows] == pytest.approx([float(p.grad.norm()) for p in net.parameters()])


# ----------------------------------------------------------------------------- what is put in

DRAWN = {
    "3,4": lambda: torch.randn(3, 4),
    "float:3,4": lambda: torch.randn(3, 4),
    "3,4:0-1": lambda: torch.rand(3, 4),
    "3,4:-2-0.5": lambda: torch.empty(3, 4).uniform_(-2, 0.5),
    "x=3,4": lambda: torch.randn(3, 4),
    "int:3,4:-3-5": lambda: torch.randint(-3, 6, (3, 4)),
    "int:3,4": lambda: torch.randint(0, 7, (3, 4)),
    "bool:3,4": lambda: torch.randint(0, 2, (3, 4)).bool(),
}


@pytest.mark.parametrize("text", DRAWN)
def test_an_input_is_what_torch_draws(text, run, tmp_path):
    """Each form gives the very tensor of torch's own function after the seed and the model."""
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\nclass net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.w = nn.Parameter(torch.zeros(3, 4))\n"
        "        self.never = nn.Embedding(7, 1)\n    def forward(self, x):\n        return self.w * x\n"
    )
    done = run("grad", tmp_path / "net.py", "w", "--input", text, "--seed", 2, "-f", "json")
    torch.manual_seed(2)
    nn.Embedding(7, 1)
    expected = DRAWN[text]().float()
    assert done.rows[0]["grad_l2"] == pytest.approx(float(expected.double().norm()), rel=1e-12)
    assert done.rows[0]["zeros"] == int((expected == 0).sum())


@pytest.mark.parametrize("suffix", ["npy", "pt", "safetensors"])
def test_an_input_from_a_file(suffix, run, tmp_path):
    """A file's tensor is put in, in the model's dtype; a target's with it."""
    x, y = np.arange(12.0).reshape(3, 4), np.array([[1.0], [2.0], [3.0]])
    for name, array in (("x", x), ("y", y)):
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "npy":
            np.save(path, array)
        elif suffix == "pt":
            torch.save(torch.tensor(array), path)
        else:
            save_file({"data": torch.tensor(array)}, path)
    files = ("--input", tmp_path / f"x.{suffix}", "--target", tmp_path / f"y.{suffix}")
    done = run("grad", MODELS / "mlp.py", *files, "--seed", 0, "-f", "json")
    net = built("mlp")
    functional.mse_loss(net(torch.tensor(x).float()), torch.tensor(y).float()).backward()
    assert done.json["metadata"]["loss"] == "mse"
    assert [row["grad_l2"] for row in done.rows] == pytest.approx([float(p.grad.norm()) for p in net.parameters()])


def test_a_file_of_several_tensors_is_given_by_name(run, tmp_path):
    """Tensors of a file go to the arguments of forward of their names, as NAME= does."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass net(nn.Linear):\n    def __init__(self):\n        super().__init__(4, 4)\n"
        "    def forward(self, x, *, scale):\n        return super().forward(x) * scale\n"
    )
    torch.save({"scale": torch.full((2, 4), 3.0), "x": torch.ones(2, 4)}, tmp_path / "both.pt")
    one = run("grad", tmp_path / "net.py", "--input", tmp_path / "both.pt", "--seed", 0, "-f", "json")
    words = ("--input", "scale=2,4:3-3", "--input", "2,4:1-1")
    other = run("grad", tmp_path / "net.py", *words, "--seed", 0, "-f", "json")
    assert one.rows == other.rows
    assert one.rows[1]["grad_l2"] == 12


def test_without_an_input_the_first_layer_says_it(run):
    """What was taken is told, and giving it makes no difference."""
    for name, text, layer in (
        ("mlp", "2,4", "0 (Linear)"),
        ("gpt", "int:2,8:0-999", "transformer.wte (Embedding)"),
    ):
        chosen = run("grad", MODELS / f"{name}.py", "--seed", 0)
        assert chosen.err.splitlines()[0] == f"--input {text} was taken, as {layer} is the first layer"
        assert run("grad", MODELS / f"{name}.py", "--seed", 0, "--input", text).out == chosen.out


# ----------------------------------------------------------------------------- losses

TARGETS = {
    ("sum",): lambda out: out.sum(),
    ("mean",): lambda out: out.mean(),
    ("mse",): lambda out: functional.mse_loss(out, torch.randn(6, 5)),
    ("mse", "--target", "6,5:2-2"): lambda out: functional.mse_loss(out, torch.full((6, 5), 2.0)),
    ("cross_entropy",): lambda out: functional.cross_entropy(out, torch.randint(0, 5, (6,))),
    ("cross_entropy", "--target", "int:6:3-3"): lambda out: functional.cross_entropy(out, torch.full((6,), 3)),
    ("cross_entropy", "--target", "6,5:0-0"): lambda out: functional.cross_entropy(out, torch.zeros(6, 5)),
    ("OWN:of_output",): lambda out: out.square().sum(),
    ("OWN:of_both", "--target", "6,5:2-2"): lambda out: (out - 2).abs().sum(),
    ("OWN:of_either",): lambda out: out.sum(),
    ("OWN:of_either", "--target", "6,5:2-2"): lambda out: (2 * out).sum(),
    ("torch.nn.functional:l1_loss", "--target", "6,5:2-2"): lambda out: functional.l1_loss(out, out * 0 + 2),
}


@pytest.mark.parametrize("words", TARGETS, ids=" ".join)
def test_a_loss_is_torchs(words, run, tmp_path):
    """Each loss, with a target that is drawn or given, is what torch's own function says."""
    (tmp_path / "own.py").write_text(
        "def of_output(out):\n    return out.square().sum()\n"
        "def of_both(out, target):\n    return (out - target).abs().sum()\n"
        "def of_either(out, target=None):\n    return (out if target is None else target * out).sum()\n"
    )
    loss = words[0].replace("OWN", str(tmp_path / "own.py"))
    model = (MODELS / "mlp.py", "--arg", "outputs=5", "--input", "6,4", "--seed", 4)
    done = run("grad", *model, "--loss", loss, *words[1:], "-f", "json")
    net = built("mlp", 4, outputs=5)
    value = TARGETS[words](net(torch.randn(6, 4)))
    value.backward()
    assert done.json["totals"]["loss"] == pytest.approx(value.item(), rel=1e-6)
    assert [row["grad_l2"] for row in done.rows] == pytest.approx([float(p.grad.norm()) for p in net.parameters()])


def test_classes_are_along_dimension_1_or_last(run, tmp_path):
    """Cross entropy has a class for each pixel of an image, and for each token of a text."""
    (tmp_path / "conv.py").write_text("from torch import nn\ndef net():\n    return nn.Conv2d(3, 4, 1)\n")
    done = run("grad", tmp_path / "conv.py", "--loss", "cross_entropy", "--seed", 0, "--input", "2,3,4,4", "-f", "json")
    torch.manual_seed(0)
    out = nn.Conv2d(3, 4, 1)(torch.randn(2, 3, 4, 4))
    expected = functional.cross_entropy(out, torch.randint(0, 4, (2, 4, 4)))
    assert done.json["totals"]["loss"] == pytest.approx(float(expected.detach()), rel=1e-6)
    words = ("--loss", "cross_entropy", "--seed", 0, "--input", "int:2,8", "-f", "json")
    done = run("grad", MODELS / "gpt.py", *words)
    net = built("gpt", call="model")
    out = net(torch.randint(0, 1000, (2, 8)))
    expected = functional.cross_entropy(out.flatten(0, 1), torch.randint(0, 1000, (16,)))
    assert done.json["totals"]["loss"] == pytest.approx(float(expected.detach()), rel=1e-6)


@pytest.mark.parametrize("form", ["(out,)", "[None, out]", "{'n': 1, 'logits': out}", "Answer(out)"])
def test_what_forward_returns_may_be_wrapped(form, run, tmp_path):
    """The first tensor of floats is taken out of tuples, lists, mappings and dataclasses."""
    (tmp_path / "net.py").write_text(
        "from dataclasses import dataclass\nfrom torch import nn\n@dataclass\nclass Answer:\n    out: object\n"
        "class net(nn.Linear):\n    def __init__(self):\n        super().__init__(4, 4)\n"
        f"    def forward(self, x):\n        out = super().forward(x)\n        return {form}\n"
    )
    done = run("grad", tmp_path / "net.py", "--input", "5,4", "--seed", 0, "-f", "json")
    assert done.rows[1]["grad_l2"] == 10


# ----------------------------------------------------------------------------- weights


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(9)
    made = built("tied", 9)
    states = made.state_dict()
    torch.save(states, tmp_path / "all.pt")
    torch.save({"model": states, "optimizer": {"state": {}}, "step": 3}, tmp_path / "nested.pt")
    torch.save({name: t for name, t in states.items() if not name.startswith("2")}, tmp_path / "once.pt")
    save_file({name: t.contiguous() for name, t in states.items() if name[0] != "4"}, tmp_path / "one.safetensors")
    return made


@pytest.mark.parametrize("file", ["all.pt", "nested.pt", "once.pt", "one.safetensors"])
def test_weights_are_taken_from_a_checkpoint(file, weights, run, tmp_path):
    """Values are the file's, wherever in it they are; a tied parameter needs to be there under one name."""
    done = run("grad", MODELS / "tied.py", "--weights", tmp_path / file, "--input", "2,4:1-1", "-f", "json")
    weights(torch.ones(2, 4)).sum().backward()
    rows = [row for row in done.rows if row["use"] is None]
    assert [row["grad_l2"] for row in rows] == pytest.approx([float(p.grad.norm()) for p in weights.parameters()])
    assert ("the weights at model" in done.err) == (file == "nested.pt")


def test_weights_that_do_not_fit_are_refused_or_taken_in_part(weights, run, tmp_path):
    """Strictly every name and shape has to fit; with --no-strict what fits is taken, and the rest is told."""
    path = tmp_path / "all.pt"
    said = (
        "4.weight, 4.bias, 6.weight and 1 more are not the model's; 2.weight is [8, 8], the model's [1, 8], and 1 more"
    )
    done = run("grad", MODELS / "mlp.py", "--weights", path, "--seed", 0)
    assert (done.code, done.out) == (2, "")
    assert (
        done.err
        == f"error: {path}: it does not fit: {said}\n\nhint: --no-strict takes what fits; paramctl match says what would mend it\n"
    )
    done = run("grad", MODELS / "mlp.py", "--weights", path, "--no-strict", "--input", "2,4", "--seed", 0, "-f", "json")
    assert done.err == f"{path}: {said}\n"
    assert done.rows[0]["value_l2"] == pytest.approx(weights[0].weight.norm().item())
    assert done.rows[2]["value_l2"] == pytest.approx(built("mlp")[2].weight.norm().item())


# ----------------------------------------------------------------------------- other people's models


NAMED = ("GPT2Config", "GPT2LMHeadModel", "T5Config", "T5ForConditionalGeneration")  # of thousands


@pytest.mark.parametrize(
    ("made", "tied", "uses"),
    [
        (
            (
                "GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=16, "
                "bos_token_id=0, eos_token_id=0))"
            ),
            "transformer.wte.weight",
            ["transformer.wte.weight", "lm_head.weight"],
        ),
        (
            (
                "T5ForConditionalGeneration(T5Config(num_layers=1, num_heads=2, d_model=8, d_kv=4, d_ff=16, vocab_size=20, "
                "decoder_start_token_id=0))"
            ),
            "shared.weight",
            ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"],
        ),
    ],
    ids=["gpt2", "t5"],
)
def test_models_of_transformers(made, tied, uses, run, tmp_path):
    """A model of another library tells what each place of its word matrix contributes, and the sum is its gradient."""
    others.need("transformers")
    (tmp_path / "theirs.py").write_text(f"from transformers import {', '.join(NAMED)}\nnet = lambda: {made}\n")
    words = ("--input", "input_ids=int:2,5", "--input", "labels=int:2,5", "--eval", "--seed", 0)
    done = run("grad", tmp_path / "theirs.py", tied, *words, "-f", "json")
    assert [row["use"] for row in done.rows] == [None, *uses]
    assert sum(row["share"] for row in done.rows[1:]) == pytest.approx(1)
    assert done.json["totals"]["sum_error"] < 1e-5


# ----------------------------------------------------------------------------- errors

DEFINITIONS = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 3)

    def forward(self, x, mask):
        return self.lin(x) * mask

class ByName(Two):
    def forward(self, x, *, mask):
        return self.lin(x) * mask

class Nothing(Two):
    def forward(self):
        return self.lin(torch.ones(4))

class Raises(Two):
    def forward(self, x):
        y = self.lin(x)
        raise KeyError("no such thing")

class Inner(Two):
    def forward(self, x):
        return self.lin(x.flatten())

class Says(Two):
    def forward(self, x):
        return f"{self.lin(x)}"

class Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("not this way")

class Fails(Two):
    def forward(self, x):
        return Backwards.apply(self.lin(x))

class NoGrad(Two):
    @torch.no_grad()
    def forward(self, x):
        return self.lin(x)

def conv(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
def words(): return nn.Embedding(9, 2)
def rnn(): return nn.GRU(3, 4, batch_first=True)
def many(): return nn.ModuleList([nn.Linear(2, 2)])
def buffers(): return nn.BatchNorm1d(3)
def needs(width): return nn.Linear(width, width)
def none(): return None
def scripted(): return torch.jit.script(nn.Linear(2, 2))
def fails(output): return output.nothing
def vector(output): return output.sum(0)
def picture(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
NUMBER = 3
"""

SHAPES = "hint: a shape as 2,4 or 2,4:0-1 or int:2,16:0-999, or a file as x.npy"
NEEDS = "hint: give --input once for each, in that order, or by name as --input mask=SHAPE"
ERRORS = {
    "Two": f"net.py:Two: Two.forward(x, mask) needs x and mask, and no input was given\n\n{NEEDS}",
    "Two --input 2,4": f"net.py:Two: Two.forward(x, mask) needs mask, and one input was given\n\n{NEEDS}",
    "Two --input 2 --input 2 --input 2": "net.py:Two: Two.forward(x, mask) takes 2 at most, and 3 were given",
    "ByName --input 2,4 --input 2,4": (
        "net.py:ByName: ByName.forward(x, mask) needs mask, and 2 inputs were given\n\nhint: --input mask=SHAPE"
    ),
    "ByName --input 2,4 --input 2,4 --input mask=2": (
        "net.py:ByName: ByName.forward(x, mask) takes 1 at most, and 2 were given\n\nhint: by name: --input mask=SHAPE"
    ),
    "Nothing --input 2,4": (
        "net.py:Nothing: Nothing.forward() takes none, and one was given\n\nhint: leave --input out"
    ),
    "Two --input x=2 --input m=2": "net.py:Two: Two.forward(x, mask) has no m\n\nhint: it takes x, mask",
    "Raises": (
        'net.py:Raises: net.py, line 24, `raise KeyError("no such thing")`: '
        "KeyError: 'no such thing'\n\n"
        "hint: --input 2,4 was taken, as lin (Linear) is the first layer; --input names another"
    ),
    "Raises --input 2,4": (
        'net.py:Raises: net.py, line 24, `raise KeyError("no such thing")`: '
        "KeyError: 'no such thing'"
    ),
    "Inner --input 2,4": (
        "net.py:Inner: net.py, line 28, `return self.lin(x.flatten())`: in lin (Linear): RuntimeError: mat1 and mat2 shapes cannot be multiplied "
        "(1x8 and 4x3)"
        "\n\nhint: lin (Linear) got 8, and takes 4"
    ),
    "conv --input 2,1,8,8": (
        "net.py:conv: in 0 (Conv2d): RuntimeError: Given groups=1, weight of size [4, 3, 3, 3], expected "
        "input[2, 1, 8, 8] to have 3 channels, but got 1 channels instead\n\nhint: --input 2,3,8,8"
    ),
    "words --input int:2,3:9-9": (
        "net.py:words: IndexError: index out of range in self\n\nhint: --input int:2,3:0-8"
    ),
    "rnn --input 2,8,5": (
        "net.py:rnn: RuntimeError: input.size(-1) must be equal to input_size. Expected 3, got 5"
        "\n\nhint: --input 2,8,3"
    ),
    "Says": (
        "forward returned a str, and no tensor of floats\n\n"
        "hint: --loss file.py:function makes a loss of whatever it returns"
    ),
    "Fails": 'net.py:Fails: net.py, line 41, `raise RuntimeError("not this way")`: in the backward pass: RuntimeError: not this way',
    "NoGrad": (
        "the loss depends on no parameter that requires a gradient\n\n"
        "hint: they may all be frozen, or forward may run under torch.no_grad()"
    ),
    "many": (
        "net.py:many: ModuleList has no forward, and cannot be run\n\n"
        "hint: name a module that has one, or a part of this with --at PATH"
    ),
    "picture": (
        "net.py:picture: in 2 (Linear): RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x3600 and 16x2)\n\n"
        "hint: --input 2,3,32,32 was taken, as 0 (Conv2d) is the first layer; --input names another"
    ),
    "picture --input 2,3,8,8": (
        "net.py:picture: in 2 (Linear): RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x144 and 16x2)\n\n"
        "hint: 2 (Linear) got 2×144, and takes 2×16"
    ),
    "buffers --input 1,3": (
        "net.py:buffers: ValueError: Expected more than 1 value per channel when training, got input size "
        "torch.Size([1, 3])\n\nhint: a batch of more than one, or --eval"
    ),
    "needs --arg widht=2": (
        "net.py:needs: TypeError: needs() got an unexpected keyword argument 'widht'\n\nhint: --arg width=…?"
    ),
    "needs --arg n=2": (
        "net.py:needs: TypeError: needs() got an unexpected keyword argument 'n'\n\nhint: it takes width"
    ),
    "needs --arg width=2 --arg n=2": (
        "net.py:needs: TypeError: needs() got an unexpected keyword argument 'n'\n\nhint: it takes width"
    ),
    "needs": (
        "net.py:needs: TypeError: needs() missing 1 required positional argument: 'width'\n\n"
        "hint: give its arguments as --arg name=value"
    ),
    "scripted": (
        "net.py:scripted: compiled by torch.jit, and cannot be looked into while it runs\n\n"
        "hint: name the module that was not scripted or traced"
    ),
    "none": "net.py:none: it made a NoneType, and not a torch.nn.Module",
    "NUMBER": "net.py:NUMBER: int is no module and makes none",
    "buffers --kind buffer": "running_mean: a buffer, and gradients are of parameters",
    "buffers --input 2x": f"--input '2x': no shape and no file\n\n{SHAPES}",
    "buffers --input 2x3": "--input '2x3': no shape and no file\n\nhint: 2,3",
    "buffers --input x=[2,3]": "--input 'x=[2,3]': no shape and no file\n\nhint: x=2,3",
    "buffers --input no.csv": f"no.csv: no such file\n\n{SHAPES}",
    "buffers --input empty.pt": "empty.pt: no tensors in it",
    "buffers --input no.npy": "no.npy: no such file",
    "buffers --input int:2,3": "--input int:2,3: integers need a range\n\nhint: int:2,3:0-9",
    "buffers --input 2,3:5-1": "--input: a range goes up, and its ends have 64 bits\n2,3:5-1\n    ^",
    "buffers --input int:2,3:0-1.5": "--input: the ends of int are whole numbers\nint:2,3:0-1.5\n        ^",
    "buffers --input net.py": (
        "net.py: a definition, where a file of tensors is wanted\n\nhint: x.npy, x.pt or x.safetensors"
    ),
    "buffers --target y=2": "--target y=2: a target has no name\n\nhint: 2",
    "buffers --target int:2": "--target int:2: integers need a range\n\nhint: int:2:0-9",
    "buffers --target 2,3 --loss sum": "--loss sum takes no target\n\nhint: mse and cross_entropy do",
    "buffers --loss mea": "--loss mea: no such loss\n\nhint: mean?",
    "buffers --loss net.py:tosch": "net.py: there is no tosch in it",
    "buffers --loss net.py:fail": "net.py: there is no fail in it\n\nhint: fails or Fails?",
    "buffers --loss net.py:NUMBER": "--loss net.py:NUMBER: no function of an output, or of an output and a target",
    "buffers --loss net.py:fails": (
        "net.py: net.py, line 60, `def fails(output): return output.nothing`: AttributeError: 'Tensor' object has no attribute 'nothing'"
    ),
    "buffers --loss net.py:vector": "--loss net.py:vector: it is 3, and not one number",
    "buffers --input 2,3 --target 2,1": (
        "--loss mse: output and target are not of one shape\n\n"
        "hint: the output is 2×3 float32, the target 2×1 float32"
    ),
    "buffers --input 2,3 --target int:2:7-7": (
        "--loss cross_entropy: Target 7 is out of bounds\n\nhint: the output is 2×3 float32, the target 2 int64"
    ),
    "buffers --weights net.py": "net.py: a definition, where --weights wants a checkpoint",
    "buffers --weights no.pt": "no.pt: no such file",
}  # fmt: skip


@pytest.mark.parametrize("line", ERRORS)
def test_what_cannot_be_run_is_said_in_three_lines(line, run, tmp_path, monkeypatch):
    """The whole of stderr: the user's own line and the exception, and what to pass."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(DEFINITIONS)
    torch.save({}, "empty.pt")
    name, *words = line.split()
    done = run("grad", f"net.py:{name}", *words, "--seed", 0)
    assert (done.code, done.out, done.err) == (2, "", f"error: {ERRORS[line]}\n")
    assert len(done.err.splitlines()) <= 3


def test_a_file_has_nothing_to_run(run, tmp_path):
    """A checkpoint alone is refused, with what to name."""
    torch.save(built("mlp").state_dict(), tmp_path / "m.pt")
    for command in ("grad", "watch"):
        done = run(command, tmp_path / "m.pt")
        path = tmp_path / "m.pt"
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(f"error: {path}: a torch-zip file, which has no code to run\n\nhint: name the def")


def test_a_drawn_seed_is_told_and_repeats_all(run):
    """Without --seed one is drawn; with it the values, the input and so the gradients are the same."""
    drawn = run("grad", MODELS / "mlp.py", "--input", "2,4")
    note = drawn.err.splitlines()[-1]
    assert note.startswith("seed ")
    assert note.endswith(" was drawn; --seed repeats it")
    assert run("grad", MODELS / "mlp.py", "--input", "2,4", "--seed", note.split()[1]).out == drawn.out
