"""torch.nn.init under torch.manual_seed is the oracle of `init`: the same bits, in any source, and nothing else changed."""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from paramctl.initializers import COLUMNS, INITIALIZERS, rows

NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3), nn.Linear(3, 3))
"""
SCHEMES = {  # with the numbers of dimensions that they are for
    "uniform(a=-2, b=1)": (lambda t: nn.init.uniform_(t, -2, 1), {1, 2, 3}),
    "normal(std=0.01)": (lambda t: nn.init.normal_(t, std=0.01), {1, 2, 3}),
    "trunc_normal(std=0.02)": (lambda t: nn.init.trunc_normal_(t, std=0.02), {1, 2, 3}),
    "constant(42)": (lambda t: nn.init.constant_(t, 42), {1, 2, 3}),
    "ones": (nn.init.ones_, {1, 2, 3}),
    "zeros": (nn.init.zeros_, {1, 2, 3}),
    "eye": (nn.init.eye_, {2}),
    "dirac(groups=2)": (lambda t: nn.init.dirac_(t, 2), {3}),
    "xavier": (nn.init.xavier_uniform_, {2, 3}),
    "xavier_normal(gain=2)": (lambda t: nn.init.xavier_normal_(t, 2), {2, 3}),
    "he(nonlinearity=relu)": (lambda t: nn.init.kaiming_uniform_(t, nonlinearity="relu"), {2, 3}),
    "kaiming_normal(mode=fan_out)": (lambda t: nn.init.kaiming_normal_(t, mode="fan_out"), {2, 3}),
    "orthogonal": (nn.init.orthogonal_, {2, 3}),
    "sparse(0.5)": (lambda t: nn.init.sparse_(t, 0.5), {2}),
}
SOURCES = ("state dict", "module", "safetensors", "definition", "definition to safetensors")
SEED = 7


def bits(tensors):
    return {
        name: tensor.detach().reshape(-1).view(torch.uint8).tolist() if tensor.numel() else []
        for name, tensor in tensors.items()
    }


@pytest.fixture
def net(tmp_path):
    """The network of NET under the seed, and its file."""
    (tmp_path / "net.py").write_text(NET)
    space = {}
    exec(NET, space)  # noqa: S102
    torch.manual_seed(SEED)
    return space["net"]()


def saved(tmp_path, net, source):
    """What to open, and what to write: a network as one of SOURCES."""
    if source.startswith("definition"):
        return tmp_path / "net.py", tmp_path / ("out.safetensors" if "to" in source else "out.pt")
    if source == "safetensors":
        save_model(net, tmp_path / "m.safetensors")
        return tmp_path / "m.safetensors", tmp_path / "out.safetensors"
    torch.save(net if source == "module" else net.state_dict(), tmp_path / "m.pt")
    return tmp_path / "m.pt", tmp_path / "out.pt"


def loaded(path):
    if path.suffix == ".safetensors":
        return load_file(path)
    found = torch.load(path, weights_only=False)
    return found.state_dict() if isinstance(found, nn.Module) else found


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_seed_gives_torchs_bits(run, tmp_path, net, scheme, source):
    """Weights get what torch's calls in parameter order give; biases, buffers and what has no fans stay."""
    old, new = saved(tmp_path, net, source)
    result = run("init", old, "--scheme", scheme, "--seed", SEED, "-o", new, "-f", "json")
    assert (result.code, result.err) == (0, "")
    fill, fits = SCHEMES[scheme]
    torch.manual_seed(SEED)
    actions = {}
    for name, tensor in net.state_dict().items():
        if name.endswith("weight"):
            actions[name] = "init" if tensor.ndim in fits else "keep"
            if tensor.ndim in fits:
                fill(tensor)
    assert bits(loaded(new)) == bits(net.state_dict())
    assert {row["name"]: row["action"] for row in result.rows} == actions


@pytest.mark.parametrize("source", SOURCES)
def test_several_schemes_draw_in_parameter_order(run, tmp_path, net, source):
    """However the rules are ordered, values are drawn in the order of the parameters, and a later rule wins."""
    old, new = saved(tmp_path, net, source)
    rules = ["*=ones", "4=uniform(-1, 1)", "0=xavier_normal", "re:^[34].bias=normal(std=0.5)", "1.bias=constant(3)"]
    words = [word for rule in rules for word in ("--rule", rule)]
    assert run("init", old, *words, "--scheme", "zeros", "--seed", SEED, "-o", new).code == 0
    fills = {
        "0.weight": nn.init.xavier_normal_,
        "1.weight": nn.init.ones_,
        "1.bias": lambda t: nn.init.constant_(t, 3),
        "3.weight": nn.init.ones_,
        "3.bias": lambda t: nn.init.normal_(t, std=0.5),
        "4.weight": lambda t: nn.init.uniform_(t, -1, 1),
        "4.bias": lambda t: nn.init.normal_(t, std=0.5),
    }
    torch.manual_seed(SEED)
    for name in sorted(fills) if source == "safetensors" else fills:
        fills[name](net.state_dict()[name])
    assert bits(loaded(new)) == bits(net.state_dict())


def test_safetensors_draws_in_natural_order(run, tmp_path):
    """The header's order says nothing: layer 2 is drawn before layer 10."""
    state = {f"{i}.weight": torch.zeros(3, 3) for i in range(12)}
    save_file(state, tmp_path / "m.safetensors")
    run("init", tmp_path / "m.safetensors", "--scheme", "normal", "--seed", SEED, "--in-place")
    torch.manual_seed(SEED)
    for tensor in state.values():
        nn.init.normal_(tensor)
    assert bits(load_file(tmp_path / "m.safetensors")) == bits(state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_every_float_is_drawn_as_torch_draws_it(run, tmp_path, dtype):
    """A draw in the file's own type is torch's in that type; of float8, float32's rounded."""
    path = tmp_path / "m.pt"
    torch.save({"weight": torch.zeros(5, 4).to(dtype)}, path)
    run("init", path, "--scheme", "xavier", "--seed", SEED, "--in-place")
    torch.manual_seed(SEED)
    expected = nn.init.xavier_uniform_(torch.zeros(5, 4, dtype=dtype if dtype.itemsize > 1 else torch.float32)).to(
        dtype
    )
    assert bits(torch.load(path)) == bits({"weight": expected})


# ----------------------------------------------------------------------------- ties and views


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_a_tie_is_drawn_once(run, tmp_path, names):
    """One tensor under two names costs one draw, and both names show it."""
    shared, after = torch.zeros(3, 3), torch.zeros(2, 2)
    state = {f"{names[0]}.weight": shared, f"{names[1]}.weight": shared, "c.weight": after}
    torch.save(state, tmp_path / "m.pt")
    result = run("init", tmp_path / "m.pt", "--scheme", "normal", "--seed", SEED, "--in-place", "-f", "json")
    assert [(row["name"], row["tied_with"]) for row in result.rows] == [
        (f"{names[0]}.weight", [f"{names[1]}.weight"]),
        ("c.weight", []),
    ]
    torch.manual_seed(SEED)
    nn.init.normal_(shared)
    nn.init.normal_(after)
    found = torch.load(tmp_path / "m.pt")
    assert bits(found) == bits(state)
    assert found["a.weight"].data_ptr() == found["b.weight"].data_ptr()


def test_two_schemes_for_one_tensor_are_an_error(run, tmp_path):
    """Rules that disagree on a tie name both names, both schemes and both rules."""
    shared = torch.zeros(3, 3)
    torch.save({"a.weight": shared, "b.weight": shared.t()}, tmp_path / "m.pt")
    result = run("init", tmp_path / "m.pt", "--rule", "a=zeros", "--rule", "b=ones", "--in-place")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "error: a.weight and b.weight are one tensor, and two schemes are for it: zeros and ones\n\n"
        "hint: --rule a=zeros and --rule b=ones disagree\n"
    )
    agree = run("init", tmp_path / "m.pt", "--rule", "a=const(1)", "--rule", "b=constant(val=1)", "--in-place")
    assert agree.code == 0, "two spellings of one scheme agree"


def test_parts_of_one_storage_are_their_own(run, tmp_path):
    """Slices that lie apart in one storage may get two schemes, and each is drawn."""
    whole = torch.zeros(6, 3)
    state = {"all": whole, "q.weight": whole[:2], "k.weight": whole[2:4], "v.weight": whole[4:]}
    torch.save(state, tmp_path / "m.pt")
    words = ["--rule", "q=normal", "--rule", "k=xavier", "--seed", SEED, "--in-place"]
    assert run("init", tmp_path / "m.pt", *words).code == 0
    torch.manual_seed(SEED)
    nn.init.normal_(state["q.weight"])
    nn.init.xavier_uniform_(state["k.weight"])
    assert bits(torch.load(tmp_path / "m.pt")) == bits(state)


def test_views_keep_the_rest(run, tmp_path):
    """A view with gaps gets torch's values, and what lies between them stays."""
    base = torch.arange(60.0).view(10, 6)
    state = {"base": base, "weight": base[1::3, ::2], "turned.weight": torch.arange(12.0).view(3, 4).t()}
    torch.save(state, tmp_path / "m.pt")
    run("init", tmp_path / "m.pt", "--scheme", "xavier", "--seed", SEED, "--in-place")
    torch.manual_seed(SEED)
    nn.init.xavier_uniform_(state["weight"])
    nn.init.xavier_uniform_(state["turned.weight"])
    assert bits(torch.load(tmp_path / "m.pt")) == bits(state)


@pytest.mark.parametrize("source", ["state dict", "module"])
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_an_rnns_flat_weights(run, tmp_path, source):
    """Weights that lie in one flat storage are initialized where they lie; the biases between them stay."""
    rnn = nn.GRU(3, 5, num_layers=2)
    flat = torch.randn(sum(p.numel() for p in rnn.parameters()))
    at = 0
    for parameter in rnn.parameters():
        parameter.data = flat[at : at + parameter.numel()].view(parameter.shape)
        at += parameter.numel()
    old, new = saved(tmp_path, rnn, source)
    run("init", old, "--scheme", "orthogonal", "--seed", SEED, "-o", new)
    torch.manual_seed(SEED)
    for name, parameter in rnn.named_parameters():
        if "weight" in name:
            nn.init.orthogonal_(parameter)
    found = loaded(new)
    assert bits(found) == bits(rnn.state_dict())
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == 1


# ----------------------------------------------------------------------------- what is swept, named, kept


def test_a_sweep_passes_over_what_a_scheme_cannot_do(run, tmp_path, net):
    """Without fans a tensor is kept and the plan says why; with `--bias` the biases have a scheme of their own."""
    old, _ = saved(tmp_path, net, "state dict")
    found = run("init", old, "--scheme", "xavier", "--bias", "zeros", "-f", "json").rows
    assert [(row["name"], row["action"]) for row in found] == [
        ("0.weight", "init"), ("0.bias", "init"), ("1.weight", "keep"), ("1.bias", "init"),
        ("3.weight", "init"), ("3.bias", "init"), ("4.weight", "init"), ("4.bias", "init"),
    ]  # fmt: skip
    assert found[2]["detail"] == "xavier_uniform needs two dimensions or more for its fans; this has 1"
    assert found[0]["detail"].startswith("xavier_uniform: mean ")


def test_optimizer_state_is_no_weight(run, tmp_path):
    """A sweep over a training checkpoint leaves moments, counters, masks and means alone."""
    state = {
        "model": {"0.weight": torch.zeros(2, 2), "1.running_mean": torch.zeros(2), "mask": torch.ones(2, 2).bool()},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2, 2), "step": torch.tensor(3.0)}}},
    }
    torch.save(state, tmp_path / "m.pt")
    found = run("init", tmp_path / "m.pt", "--scheme", "ones", "-f", "json").rows
    assert [row["name"] for row in found] == ["model.0.weight"]
    named = run("init", tmp_path / "m.pt", "optimizer.state.0.exp_avg", "--scheme", "ones", "-f", "json").rows
    assert [row["name"] for row in named] == ["optimizer.state.0.exp_avg"], "a name is meant as it is said"


def test_default_is_a_fresh_build(run, tmp_path, net):
    """`default` under a seed is what building the network under it gives, buffers too; of files with and without classes."""
    fresh = bits(net.state_dict())
    for tensor in net.state_dict().values():
        tensor.fill_(9)
    for source in ("module", "state dict", "safetensors"):
        old, new = saved(tmp_path, net, source)
        more = [] if source == "module" else ["--model", tmp_path / "net.py"]
        result = run("init", old, "--scheme", "default", *more, "--seed", SEED, "-o", new)
        assert (result.code, result.err) == (0, "")
        assert bits(loaded(new)) == fresh, source


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Embedding(5, 3, padding_idx=0),
        lambda: nn.LSTM(3, 4),
        lambda: nn.LayerNorm(4),
        lambda: nn.Conv2d(4, 8, 3, groups=2),
        lambda: nn.Bilinear(2, 3, 4),
        lambda: nn.Linear(4, 3, bias=False),
        lambda: nn.MultiheadAttention(4, 2),
    ],
    ids=["Embedding", "LSTM", "LayerNorm", "Conv2d", "Bilinear", "Linear without bias", "MultiheadAttention"],
)  # fmt: skip
def test_default_of_a_pickled_layer(run, tmp_path, layer):
    """A pickled layer resets itself as its class does, from the hyperparameters in the pickle."""
    made = layer()
    torch.save(made, tmp_path / "m.pt")
    result = run("init", tmp_path / "m.pt", "--scheme", "default", "--seed", SEED, "--in-place")
    assert (result.code, result.err) == (0, "")
    torch.manual_seed(SEED)
    reset = getattr(made, "reset_parameters", None) or made._reset_parameters
    reset()
    found = torch.load(tmp_path / "m.pt", weights_only=False)
    assert bits(found.state_dict()) == bits(made.state_dict())


# ----------------------------------------------------------------------------- functions of one's own

OWN = """
import torch
from torch import nn

def halves(tensor: torch.Tensor, scale=1.0):
    tensor.uniform_(0, 0.5 * scale)

def linear(module: nn.Module):
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight)
        if module.bias is not None:
            module.bias.data.fill_(2)

def grows(module: nn.Linear):
    if isinstance(module, nn.Linear):
        module.weight = nn.Parameter(torch.zeros(99))

def fails(tensor: torch.Tensor):
    raise ValueError("no luck")
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


@pytest.mark.parametrize("source", SOURCES)
def test_a_function_of_a_tensor(run, tmp_path, net, own, source):
    """A custom function of a tensor fills the weights in order, in any source."""
    old, new = saved(tmp_path, net, source)
    assert run("init", old, "--scheme", f"{own}:halves(scale=3)", "--seed", SEED, "-o", new).code == 0
    torch.manual_seed(SEED)
    for name, tensor in net.state_dict().items():
        if name.endswith("weight"):
            tensor.uniform_(0, 1.5)
    assert bits(loaded(new)) == bits(net.state_dict())


@pytest.mark.parametrize("source", SOURCES)
def test_a_function_of_a_module(run, tmp_path, net, own, source):
    """A custom function of a module acts as `Module.apply` would; a state dict takes its classes from `--model`."""
    old, new = saved(tmp_path, net, source)
    more = ["--model", tmp_path / "net.py"] if source in {"state dict", "safetensors"} else []
    assert run("init", old, "--scheme", f"{own}:linear", *more, "--seed", SEED, "-o", new).code == 0
    sys.path.insert(0, str(tmp_path))
    try:
        import own as theirs
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("own", None)
    torch.manual_seed(SEED)
    net.apply(theirs.linear)
    assert bits(loaded(new)) == bits(net.state_dict())


@pytest.mark.parametrize("source", ["module", "definition"])
@pytest.mark.parametrize("layer", ["2", "4"])
def test_a_function_of_a_module_under_two_paths(run, tmp_path, own, source, layer):
    """A layer used twice is visited once, and by either of its paths."""
    text = "from torch import nn\ndef net():\n    s = nn.Linear(4, 4)\n"
    text += "    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), s, nn.ReLU(), s, nn.Linear(4, 4))\n"
    (tmp_path / "net.py").write_text(text)
    space = {}
    exec(text, space)  # noqa: S102
    torch.manual_seed(SEED)
    net = space["net"]()
    old, new = saved(tmp_path, net, source)
    for words, module in ((["--layer", layer], net[2]), ([], net)):
        result = run("init", old, "--scheme", f"{own}:linear", *words, "--seed", SEED, "-o", new)
        assert (result.code, result.err) == (0, "")
        torch.manual_seed(SEED)
        module.apply(lambda m: (m.weight.data.normal_(), m.bias.data.fill_(2)) if isinstance(m, nn.Linear) else None)
        assert bits(loaded(new)) == bits(net.state_dict())
        old = new if source == "module" else old


def test_a_module_function_touches_what_was_chosen(run, tmp_path, net, own):
    """Of a module that a function changes, only what was selected is written."""
    old, new = saved(tmp_path, net, "module")
    assert run("init", old, "3.bias", "--scheme", f"{own}:linear", "-o", new).code == 0
    net[3].bias.data.fill_(2)
    assert bits(loaded(new)) == bits(net.state_dict())


# ----------------------------------------------------------------------------- recipes, plans, lists


def test_a_recipe(run, tmp_path, net):
    """A recipe has rules in order and a seed; `--rule` comes after it, and `--seed` wins."""
    old, new = saved(tmp_path, net, "module")
    (tmp_path / "r.toml").write_text(
        f'seed = {SEED}\n[[rule]]\nscheme = "zeros"\n'
        '[[rule]]\nscheme = "normal(std=0.02)"\ntype = ["Linear", "Conv1d"]\nselect = "*.weight"\n'
        '[[rule]]\nscheme = "ones"\nlayer = "4"\nselect = ["*.weight", "*.bias"]\n'
    )
    assert run("init", old, "--recipe", tmp_path / "r.toml", "--rule", "4.bias=constant(5)", "-o", new).code == 0
    torch.manual_seed(SEED)
    nn.init.normal_(net[0].weight, std=0.02)
    net[1].weight.data.zero_()
    nn.init.normal_(net[3].weight, std=0.02)
    net[4].weight.data.fill_(1)
    net[4].bias.data.fill_(5)
    assert bits(loaded(new)) == bits(net.state_dict())
    other = run("init", old, "--recipe", tmp_path / "r.toml", "--seed", 8, "-o", tmp_path / "other.pt")
    assert other.code == 0
    assert bits(loaded(tmp_path / "other.pt"))["0.weight"] != bits(loaded(new))["0.weight"]


def test_without_a_seed_one_is_drawn_and_said(run, tmp_path, net):
    """The seed that was drawn is told, and repeats the result."""
    old, new = saved(tmp_path, net, "state dict")
    result = run("init", old, "--scheme", "normal", "-o", new)
    seed = result.err.split()[1]
    assert result.err == f"seed {seed} was drawn; --seed repeats it\n"
    run("init", old, "--scheme", "normal", "--seed", seed, "-o", tmp_path / "again.pt")
    assert new.read_bytes() == (tmp_path / "again.pt").read_bytes()


def test_the_plan_says_what_is_done(run, tmp_path, net):
    """Without `-o` nothing is written, and the rows are those of the writing."""
    old, new = saved(tmp_path, net, "module")
    before = old.read_bytes()
    dry = run("init", old, "--scheme", "xavier", "--seed", SEED, "-f", "json")
    assert (dry.code, dry.err) == (0, "nothing was written; -o OUT or --in-place writes\n")
    assert old.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt", "net.py"]
    assert run("init", old, "--scheme", "xavier", "--seed", SEED, "-o", new, "-f", "json").rows == dry.rows


def test_the_list(run):
    """`init --list` needs no model, and has a row for each scheme with its arguments and law."""
    result = run("init", "--list", "-f", "json")
    assert (result.code, result.err) == (0, "")
    assert [list(row) for row in result.rows] == [[column.key for column in COLUMNS]] * len(rows())
    assert [row["name"] for row in result.rows] == [*INITIALIZERS, "default"]
    tsv = run("init", "--list").out.splitlines()
    assert tsv[0] == "name\taliases\targuments\tlaw"
    assert 'normal\t["gaussian"]\tmean=0.0, std=1.0\tN(mean, std²)' in tsv


# ----------------------------------------------------------------------------- errors

ERRORS = [
    ([], "no scheme was given\n\nhint: --scheme NAME, --bias NAME, --rule 'SELECT=NAME' or --recipe FILE"),
    (["--scheme", "xavir"], "no scheme 'xavir'\n\nhint: did you mean xavier, xavier_normal, xavier_uniform? `paramctl init --list` lists them all"),
    (["--scheme", "normal(sdt=1)"], "normal: no argument 'sdt'\n\nhint: it takes mean=0.0, std=1.0"),
    (["--scheme", "normal(std=0.01"], "'(' was never closed\nnormal(std=0.01\n      ^"),
    (["1.weight", "--scheme", "xavier"], "1.weight: xavier_uniform needs two dimensions or more for its fans; this has 1"),
    (["--rule", "1.weight=xavier"], "1.weight: xavier_uniform needs two dimensions or more for its fans; this has 1"),
    (["--layer", "1", "--scheme", "xavier"], "nothing to initialize: 1.weight: xavier_uniform needs two dimensions or more for its fans; this has 1"),
    (["0.bias", "--scheme", "zeros"], "0.bias is a bias, and --scheme acts on weights\n\nhint: --bias 'zeros'"),
    (["0.weight", "--bias", "zeros"], "no biases among the 1 selected, for --bias zeros"),
    (["--dtype", "int64", "--scheme", "zeros"], "no weights among the 1 selected\n\nhint: name a tensor to initialize it whatever it is"),
    (["1.num_batches_tracked", "--scheme", "normal"], "1.num_batches_tracked: normal needs a floating-point type; this is int64"),
    (["--rule", "normal"], "--rule: not of the form SELECT=SCHEME\nnormal\n^"),
    (["--rule", "0.weight="], "--rule: not of the form SELECT=SCHEME\n0.weight=\n        ^"),
    (["--rule", "9=zeros"], "M.PT: no parameter and no module 9\n\nhint: it has 0.weight, 0.bias, 1.weight …"),
    (["--rule", "0.*=zeros", "--layer", "3"], "--rule 0.*=zeros: it selects nothing to initialize"),
    (["--scheme", "OWN:linear"], "M.PT: a state dict knows no classes, and this works on modules\n\nhint: give the definition of its model with --model: --model net.py:Net"),
    (["--scheme", "default"], "M.PT: a state dict knows no classes, and this works on modules\n\nhint: give the definition of its model with --model: --model net.py:Net"),
    (["--scheme", "OWN:linear", "--model", "M.PT"], "--model M.PT: a torch-zip file, and no definition\n\nhint: net.py, net.py:build or package.module:name"),
    (["--scheme", "OWN:linear", "--model", "models/mlp.py"], "0.weight is [8, 4, 3], and [8, 4] in models/mlp.py\n\nhint: a definition's arguments: net.py:net, --arg"),
    (["--scheme", "OWN:linear", "--model", "models/gpt.py"], "0.weight is not in models/gpt.py\n\nhint: --model defines another model than this file holds; --at may name the part of it"),
    (["--scheme", "OWN:grows", "--model", "NET"], "3.weight: OWN:grows took it away, or changed its shape"),
    (["--scheme", "OWN:fails"], 'OWN: own.py, line 19, `raise ValueError("no luck")`: ValueError: no luck'),
    (["--scheme", "OWN:halfs"], "OWN: there is no halfs in it\n\nhint: halves?"),
    (["--scheme", "nowhere.py:f"], "nowhere.py: no such file"),
    (["--scheme", "zeros", "--seed", str(2**64)], f"--seed {2**64}: torch's seeds have 64 bits"),
    (["--scheme", "zeros", "-o", "x.pt", "--in-place"], "-o and --in-place are two places to write to\n\nhint: give one of them"),
    (["--scheme", "zeros", "-o", "x.safetensors"], "M.PT: it is torch-zip, which x.safetensors does not say\n\nhint: an edit keeps the format; choose a suffix that fits"),
    (["--recipe", "nowhere.toml"], "nowhere.toml: no such file or directory"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), ERRORS, ids=[" ".join(words)[:40] for words, _ in ERRORS])
def test_what_an_error_says(run, tmp_path, net, own, words, message):
    """What cannot be initialized is told in three lines, and leaves the file as it was."""
    old, _ = saved(tmp_path, net, "state dict")
    before, there = old.read_bytes(), sorted(path.name for path in tmp_path.iterdir())
    places = {"M.PT": str(old), "OWN": str(own), "NET": str(tmp_path / "net.py")}
    for place, path in places.items():
        words = [word.replace(place, path) for word in words]
        message = message.replace(place, path)
    written = "-o" in words or "--in-place" in words
    for more in ([], [] if written else ["--in-place"]):
        result = run("init", old, *words, *more)
        assert (result.code, result.out, result.err) == (2, "", f"error: {message}\n")
    assert len([line for line in result.err.splitlines() if line]) <= 3
    assert old.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == there


def test_arguments_may_stand_beside_the_scheme(run, tmp_path, net):
    """Arguments in a table of their own are those that stand in the scheme's parentheses."""
    old, _ = saved(tmp_path, net, "state dict")
    rule = "seed = 0\n[[rule]]\nselect = '*.weight'\n"
    plans = []
    for said in (
        "scheme = 'kaiming_normal(mode=\"fan_out\", a=0.5)'",
        "scheme = 'kaiming_normal'\narguments = {mode = 'fan_out', a = 0.5}",
    ):
        (tmp_path / "r.toml").write_text(rule + said)
        plans.append(run("init", old, "--recipe", tmp_path / "r.toml", "-f", "json").rows)
    assert plans[0] == plans[1] != []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "not TOML: Expected '=' after a key in a key/value pair (at end of document)"),
        ("seed = 1", "there is no [[rule]] in it"),
        ("sed = 1", "unknown key sed\n\nhint: a recipe has seed and [[rule]]"),
        ('seed = "1"\n[[rule]]\nscheme = "zeros"', "seed is no whole number"),
        ("[[rule]]\nselect = 'a'", "rule 1 has no scheme"),
        ("[[rule]]\nscheme = 'zeros'\nselct = 'a'", "rule 1: unknown key selct\n\nhint: it has scheme, arguments, select, layer, type"),
        ("[[rule]]\nscheme = 'zeros'\nselect = 3", "rule 1: select is text, or a list of texts"),
        ("rule = [3]", "rule 1 is no table"),
        ("[[rule]]\nscheme = 'normal'\narguments = 3", "rule 1: arguments is no table\n\nhint: arguments = {std = 0.02}"),
        (
            "[[rule]]\nscheme = 'normal(std=1)'\narguments = {std = 0.02}",
            "rule 1 has arguments in its scheme, and beside it\n\nhint: give them once",
        ),
        (
            "[[rule]]\nscheme = 'zeros'\n[[rule]]\nscheme = 'normal'\narguments = {sd = 1}",
            "rule 2: normal: no argument 'sd'\n\nhint: it takes mean=0.0, std=1.0",
        ),
    ],
)  # fmt: skip
def test_what_a_recipes_error_says(run, tmp_path, net, text, message):
    """A recipe that is malformed names its file and rule."""
    old, _ = saved(tmp_path, net, "state dict")
    (tmp_path / "r.toml").write_text(text)
    result = run("init", old, "--recipe", tmp_path / "r.toml")
    assert (result.code, result.err) == (2, f"error: {tmp_path}/r.toml: {message}\n")


@pytest.mark.parametrize("target", ["net.py", "x.py", "x.gguf", "x.npz"])
def test_a_definition_is_not_written_over_code(run, tmp_path, net, target):
    """A definition's values go into a checkpoint: never over its code, nor into a format that the suffix belies."""
    result = run("init", tmp_path / "net.py", "--scheme", "zeros", "-o", tmp_path / target)
    suffix = target[target.index(".") :]
    assert result.err == (
        f"error: {tmp_path}/{target}: {suffix} is no format that is written\n\nhint: -o OUT.pt or OUT.safetensors\n"
    )
    assert (tmp_path / "net.py").read_text() == NET


def test_what_the_state_dict_leaves_out(run, tmp_path):
    """A tensor that would not be written is not assigned to as if it were; a sweep passes over it."""
    text = "import torch\nfrom torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    text += "        self.weight = nn.Parameter(torch.zeros(2))\n"
    text += "        self.register_buffer('mask', torch.zeros(2), persistent=False)\nnet = Net()\n"
    (tmp_path / "net.py").write_text(text)
    words = ("set", tmp_path / "net.py", "mask = 1")
    assert run(*words).code == 0
    result = run(*words, "-o", tmp_path / "m.pt")
    assert result.err == "error: mask: the state dict leaves it out, so it would not be written\n"
    assert run("init", tmp_path / "net.py", "--scheme", "ones", "--seed", 0, "-o", tmp_path / "m.pt").code == 0
    assert torch.load(tmp_path / "m.pt")["weight"].tolist() == [1, 1]
