"""Training, watched: bit for bit the loop that one would write by hand, and rows that say what it did."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

import paramctl
from paramctl.training import OPTIMIZERS
from program import MODELS

KEYS = ["step", "loss", "name", "value_l2", "grad_l2", "update_l2", "ratio", "nonfinite", "tied_with"]
OWN = """
from torch import nn

class Shared(nn.Module):
    \"\"\"One layer called twice, a batch norm, dropout, a layer that is frozen, and one that is not used.\"\"\"

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3)
        self.shared, self.last, self.never = nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(2, 2)
        self.first.bias.requires_grad_(False)

    def forward(self, x):
        x = self.drop(self.norm(self.first(x)))
        return self.last(self.shared(self.shared(x).tanh()).tanh())

net = Shared
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def module(path):
    """A Python file, imported."""
    spec = importlib.util.spec_from_file_location(f"by_hand_{path.stem}", path)
    code = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = code
    spec.loader.exec_module(code)
    return code


def by_hand(path, *, seed, steps, optimizer, inputs, loss, fresh=False, train=True):
    """The loop in the book: the network that it trains, and what it sees at each step."""
    torch.manual_seed(seed)
    net = module(path).net().train(train)
    seen = []
    x, y = inputs()
    descent = optimizer(net.parameters())
    for step in range(steps):
        if fresh and step:
            x, y = inputs()
        before = [p.detach().clone() for p in net.parameters()]
        descent.zero_grad()
        value = loss(net(x), y)
        value.backward()
        descent.step()
        norms = [None if p.grad is None else p.grad.double().norm().item() for p in net.parameters()]
        moves = [(p.detach() - old).double().norm().item() for p, old in zip(net.parameters(), before, strict=True)]
        lengths = [p.detach().double().norm().item() for p in net.parameters()]
        seen.append((value.item(), norms, moves, lengths))
    return net, seen


def bits(states):
    """Bytes by name."""
    return {name: tensor.reshape(-1).contiguous().view(torch.uint8).tolist() for name, tensor in states.items()}


def mse_data():
    return torch.randn(6, 4), torch.randn(6, 3)


def class_data():
    return torch.rand(6, 4), torch.randint(0, 3, (6,))


MSE = ("--input", "6,4", "--target", "6,3")
CLASSES = ("--input", "6,4:0-1", "--target", "int:6:0-2")
RUNS = {
    "sgd(lr=0.1)": (MSE, mse_data, functional.mse_loss, lambda p: torch.optim.SGD(p, lr=0.1)),
    "sgd(lr=0.05, momentum=0.9, nesterov=True)": (
        CLASSES,
        class_data,
        functional.cross_entropy,
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    ),
    "adam(lr=1e-2, betas=(0.8, 0.9))": (
        MSE,
        mse_data,
        functional.mse_loss,
        lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.8, 0.9)),
    ),
    "AdamW": (CLASSES, class_data, functional.cross_entropy, torch.optim.AdamW),
    "rmsprop(lr=0.01)": (MSE, mse_data, functional.mse_loss, lambda p: torch.optim.RMSprop(p, lr=0.01)),
}


@pytest.mark.parametrize(
    ("long", "short"),
    [
        ("sgd(lr=0.02)", ["--lr", "0.02"]),
        ("adam(lr=0.02)", ["--optimizer", "adam", "--lr", "2e-2"]),
        ("sgd(momentum=0.9, lr=0.02)", ["--optimizer", "sgd(momentum=0.9)", "--lr", "0.02"]),
    ],
)
def test_a_learning_rate_has_an_option_of_its_own(long, short, run):
    """--lr X gives the very rows of --optimizer 'NAME(lr=X)'."""
    words = (MODELS / "tied.py", "--steps", 4, "--seed", 3)
    one, other = run("watch", *words, "--optimizer", long), run("watch", *words, *short)
    assert (one.code, one.out) == (0, other.out)
    assert one.out != run("watch", *words).out


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("text", RUNS)
def test_it_is_the_loop_by_hand_bit_for_bit(text, fresh, run, own, tmp_path):
    """With a seed, parameters, buffers and losses are those of the loop by hand, to the last bit; rows are its norms."""
    words, data, loss, optimizer = RUNS[text]
    more = ["--fresh"] if fresh else []
    saved = tmp_path / "out.pt"
    done = run("watch", own, *words, *more, "--optimizer", text, "--steps", 7, "--seed", 11, "--save", saved)
    assert done.code == 0, done.err
    net, seen = by_hand(own, seed=11, steps=7, optimizer=optimizer, inputs=data, loss=loss, fresh=fresh)
    assert bits(torch.load(saved)) == bits(net.state_dict())
    rows = [json.loads(line) for line in done.out.splitlines()]
    names = [name for name, _ in net.named_parameters()]
    assert [(row["step"], row["name"]) for row in rows] == list(itertools.product(range(1, 8), names))
    assert [list(row) for row in rows] == [KEYS] * len(rows)
    for step, (value, norms, moves, lengths) in enumerate(seen):
        told = rows[step * len(names) : (step + 1) * len(names)]
        assert {row["loss"] for row in told} == {value}
        assert [row["grad_l2"] is None for row in told] == [norm is None for norm in norms]
        assert [row["grad_l2"] or 0 for row in told] == pytest.approx([norm or 0 for norm in norms], rel=1e-12)
        assert [row["update_l2"] for row in told] == pytest.approx(moves, rel=1e-12)
        assert [row["value_l2"] for row in told] == pytest.approx(lengths, rel=1e-12)
        assert [row["ratio"] for row in told] == pytest.approx(
            [move / length for move, length in zip(moves, lengths, strict=True)], rel=1e-12
        )


def test_eval_and_a_custom_loss(run, own, tmp_path):
    """--eval and a loss of one's own are the same loop with that mode and that loss."""
    (tmp_path / "loss.py").write_text("def huge(out, target):\n    return (out - target).abs().mean() * 9\n")
    words = ("--eval", "--loss", f"{tmp_path / 'loss.py'}:huge", "--steps", 4, "--seed", 2)
    assert run("watch", own, *MSE, *words, "--save", tmp_path / "out.pt").code == 0
    net, _ = by_hand(
        own,
        seed=2,
        steps=4,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        inputs=mse_data,
        loss=lambda out, target: (out - target).abs().mean() * 9,
        train=False,
    )
    assert bits(torch.load(tmp_path / "out.pt")) == bits(net.state_dict())


def test_an_optimizer_that_runs_the_model_itself(run, own, tmp_path):
    """LBFGS gets a closure, as torch wants it."""
    words = ("--optimizer", "lbfgs(lr=0.1, max_iter=4)", "--steps", 3, "--seed", 2, "--eval")
    assert run("watch", own, *MSE, *words, "--save", tmp_path / "out.pt").code == 0
    torch.manual_seed(2)
    net = module(own).net().eval()
    x, y = mse_data()
    descent = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=4)

    def closure():
        descent.zero_grad()
        loss = functional.mse_loss(net(x), y)
        loss.backward()
        return loss

    for _ in range(3):
        descent.step(closure)
    assert bits(torch.load(tmp_path / "out.pt")) == bits(net.state_dict())


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"sparseadam", "muon"}))
def test_every_optimizer_of_torch(name, run):
    """Each optimizer of torch.optim trains by its name alone."""
    done = run("watch", MODELS / "mlp.py", "--input", "4,4", "--optimizer", name, "--steps", 2, "--seed", 0)
    assert (done.code, len(done.out.splitlines())) == (0, 8)


def test_a_target_that_is_not_given_is_drawn_after_the_first_pass(run, own, tmp_path):
    """Without --target the draw comes after the first forward pass, dropout's draws before it."""
    assert run("watch", own, "--input", "6,4", "--steps", 3, "--seed", 5, "--save", tmp_path / "out.pt").code == 0
    torch.manual_seed(5)
    net, target = module(own).net(), None
    x = torch.randn(6, 4)
    descent = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        descent.zero_grad()
        out = net(x)
        target = torch.randn(6, 3) if target is None else target
        functional.mse_loss(out, target).backward()
        descent.step()
    assert bits(torch.load(tmp_path / "out.pt")) == bits(net.state_dict())


def test_every_kth_step_is_told_and_all_are_made(run):
    """--every tells of the first, each K-th and the last step, and changes nothing of what is learned."""
    words = ("watch", MODELS / "tied.py", "--input", "2,4", "--seed", 0, "--steps", 10)
    every, all_ = (run(*words, "--every", k, "-f", "json").rows for k in (4, 1))
    assert [row["step"] for row in every if row["name"] == "0.bias"] == [1, 4, 8, 10]
    assert every == [row for row in all_ if row["step"] in {1, 4, 8, 10}]


def test_only_what_is_chosen_is_told_and_all_is_trained(run):
    """Patterns choose rows, under the first chosen name of a tie; the values are those of the whole training."""
    words = ("watch", MODELS / "tied.py", "--input", "2,4", "--seed", 0, "--steps", 3, "-f", "json")
    some, all_ = run(*words, "4.weight", "6").rows, run(*words).rows
    assert [(row["name"], row["tied_with"]) for row in some[:2]] == [("4.weight", ["2.weight"]), ("6.weight", [])]
    assert [row["value_l2"] for row in some] == [
        r["value_l2"] for r in all_ if r["name"] in {"2.weight", "6.weight", "6.bias"}
    ]


@pytest.mark.parametrize("style", ["jsonl", "tsv", "json", "markdown", "table", "names"])
def test_formats_hold_the_same_rows(style, run):
    """JSON is the rows of JSONL with totals; TSV and Markdown are as many lines; a table is the last step."""
    words = ("watch", MODELS / "tied.py", "--input", "2,4", "--seed", 0, "--steps", 3)
    rows = [json.loads(line) for line in run(*words).out.splitlines()]
    done = run(*words, "-f", style)
    lines = done.out.splitlines()
    if style == "json":
        assert done.rows == rows
        assert done.json["totals"] | {"steps": 3, "ties": 2, "loss": rows[-1]["loss"]} == done.json["totals"]
        said = {"seed": "0", "input": "2,4", "target": "drawn", "loss": "mse", "mode": "train"}
        assert done.json["metadata"] == said | {"optimizer": "sgd(lr=0.1)"}
    elif style == "jsonl":
        assert [json.loads(line) for line in lines] == rows
    elif style == "table":
        assert lines[0] == "step 3 of 3  mse  sgd(lr=0.1)"
        assert [line.split()[0] for line in lines[-6:]] == [row["name"] for row in rows[-6:]]
    elif style == "names":
        assert lines == [row["name"] for row in rows[-6:]]
    else:
        assert lines[0].strip("| ").replace(" | ", "\t").split("\t") == KEYS
        assert len(lines) == len(rows) + {"tsv": 1, "markdown": 2}[style]


def test_ties_stay_ties_and_it_says_so(run):
    """At the end the ties are named; and where code breaks one while it trains, that is said."""
    done = run("watch", MODELS / "tied.py", "--input", "2,4", "--steps", 2, "--seed", 0)
    assert done.err == "still one tensor each: 2.weight = 4.weight, 2.bias = 4.bias\n"


def test_a_tie_that_is_broken_is_told(run, tmp_path):
    """A forward that gives one of two names a parameter of its own is found out."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)\n"
        "        self.b.weight = self.a.weight\n    def forward(self, x):\n"
        "        self.b.weight = nn.Parameter(self.a.weight.detach().clone())\n        return self.b(self.a(x))\n"
    )
    done = run("watch", tmp_path / "net.py", "--input", "2,2", "--steps", 2, "--seed", 0)
    assert (done.code, done.err) == (0, "no longer tied: a.weight = b.weight\n")


# ----------------------------------------------------------------------------- checkpoints


def test_checkpoints_are_written_on_the_way(run, tmp_path):
    """Each K steps, and at the end, the state dict as it then is: that of the loop by hand at that step."""
    words = ("--target", "6,1", "--steps", 5, "--seed", 1, "--save", tmp_path / "c-{step}.pt", "--save-every", 2)
    done = run("watch", MODELS / "tied.py", "--input", "6,4", *words)
    assert done.err.splitlines()[0] == "written: " + ", ".join(str(tmp_path / f"c-{step}.pt") for step in (2, 4, 5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c-2.pt", "c-4.pt", "c-5.pt"]
    for steps in (2, 4, 5):
        net, _ = by_hand(
            MODELS / "tied.py",
            seed=1,
            steps=steps,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
            inputs=lambda: (torch.randn(6, 4), torch.randn(6, 1)),
            loss=functional.mse_loss,
        )
        saved = torch.load(tmp_path / f"c-{steps}.pt")
        assert bits(saved) == bits(net.state_dict())
        assert saved["2.weight"].data_ptr() == saved["4.weight"].data_ptr()


def test_a_training_checkpoint_goes_on_where_it_was(run, tmp_path):
    """--save-optimizer writes model, optimizer and step; torch goes on from it as if nothing had been between."""
    words = ("--input", "6,4", "--target", "6,1", "--optimizer", "adam(lr=0.01)", "--seed", 1)
    path = tmp_path / "c.pt"
    assert run("watch", MODELS / "mlp.py", *words, "--steps", 3, "--save", path, "--save-optimizer").code == 0
    saved = torch.load(path)
    assert list(saved) == ["model", "optimizer", "step", "loss"]
    assert saved["step"] == 3
    torch.manual_seed(1)
    net = module(MODELS / "mlp.py").net()
    x, y = torch.randn(6, 4), torch.randn(6, 1)
    net.load_state_dict(saved["model"])
    descent = torch.optim.Adam(net.parameters(), lr=0.5)
    descent.load_state_dict(saved["optimizer"])
    for _ in range(2):
        descent.zero_grad()
        functional.mse_loss(net(x), y).backward()
        descent.step()
    assert run("watch", MODELS / "mlp.py", *words, "--steps", 5, "--save", tmp_path / "five.pt").code == 0
    assert bits(torch.load(tmp_path / "five.pt")) == bits(net.state_dict())


def test_training_begins_at_the_weights(run, tmp_path):
    """--weights is where it begins, from a file that watch wrote too: the first loss is what grad says of them."""
    words = ("--input", "6,4:1-1", "--target", "6,1:0-0", "--seed", 1)
    run("watch", MODELS / "tied.py", *words, "--steps", 9, "--save", tmp_path / "c.pt", "--save-optimizer")
    more = (*words, "--weights", tmp_path / "c.pt", "-f", "json")
    watched = run("watch", MODELS / "tied.py", *more, "--steps", 1)
    grad = run("grad", MODELS / "tied.py", *more)
    assert watched.rows[0]["loss"] == grad.json["totals"]["loss"]
    assert [row["grad_l2"] for row in watched.rows] == [row["grad_l2"] for row in grad.rows if row["use"] is None]


def test_safetensors_are_written_by_their_name(run, tmp_path):
    """A FILE that ends so is written as safetensors, with the ties that it declares."""
    path = tmp_path / "c.safetensors"
    assert run("watch", MODELS / "tied.py", "--steps", 2, "--seed", 0, "--save", path).code == 0
    rows = run("ties", path, "-f", "json").rows
    assert sorted(row["names"] for row in rows) == [["2.bias", "4.bias"], ["2.weight", "4.weight"]]


# ----------------------------------------------------------------------------- divergence and errors


def test_a_run_that_diverges_stops_and_says_so(run, tmp_path):
    """At the step whose loss is no number it ends with 1; the last rows say where, and nothing is written."""
    words = ("--optimizer", "sgd(lr=1e25)", "--steps", 50, "--seed", 0, "--save", tmp_path / "c.pt")
    done = run("watch", MODELS / "tied.py", "--input", "2,4", *words)
    rows = [json.loads(line) for line in done.out.splitlines()]
    last = rows[-1]["step"]
    assert done.code == 1
    assert rows[-1]["loss"] is None
    assert {row["loss"] is None for row in rows if row["step"] < last} == {False}
    before, after = ([row["value_l2"] for row in rows if row["step"] == step] for step in (last - 1, last))
    assert before == after
    assert done.err.splitlines()[-1].startswith(f"diverged at step {last} of 50: the loss is ")
    assert done.err.splitlines()[-1].endswith("; a smaller learning rate may do")
    assert not (tmp_path / "c.pt").exists()


def test_a_gradient_that_is_no_number_ends_it_too(run, tmp_path):
    """A loss that is finite with a gradient that is not: the row counts its elements, and the parameter is named."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass net(nn.Linear):\n    def __init__(self):\n        super().__init__(3, 2)\n"
        "    def forward(self, x):\n        return (super().forward(x) * 0).abs().sqrt()\n"
    )
    done = run("watch", tmp_path / "net.py", "--input", "2,3", "--loss", "sum", "--steps", 9, "--seed", 0, "-f", "json")
    assert done.code == 1
    assert [(row["step"], row["name"], row["nonfinite"]) for row in done.rows] == [(1, "weight", 12), (1, "bias", 4)]
    assert done.err == "diverged at step 1 of 9: weight is not finite; a smaller learning rate may do\n"


def test_a_loss_that_is_no_number_from_the_start_is_not_the_learning_rates(run, tmp_path):
    """At the first step nothing was updated yet: what is put in, or the weights, are to blame."""
    torch.save(torch.full((2, 4), torch.nan), tmp_path / "x.pt")
    done = run("watch", MODELS / "mlp.py", "--input", tmp_path / "x.pt", "--steps", 9, "--seed", 0)
    assert done.code == 1
    assert done.err == (
        "diverged at step 1 of 9: the loss is nan before any update: see what is put in, and the weights\n"
    )


SGD = "lr=0.001, momentum=0, dampening=0, weight_decay=0, nesterov=False, maximize=False, foreach=None, differentiable=False, fused=None"
ERRORS = {
    "--optimizer sgdd": "--optimizer sgdd: torch.optim has none of that name\n\nhint: sgd or asgd?",
    "--optimizer 3": "--optimizer '3': write NAME or NAME(lr=0.1)\n\nhint: " + ", ".join(OPTIMIZERS),
    "--optimizer sgd(": "'(' was never closed\nsgd(\n   ^",
    "--optimizer sgd(lr=open)": f"--optimizer sgd: '<' not supported between instances of 'str' and 'float'\n\nhint: it takes {SGD}",
    "--optimizer sgd(rate=1)": f"--optimizer sgd: no argument 'rate'\n\nhint: it takes {SGD}",
    "--optimizer sgd(lr=-1)": f"--optimizer sgd: Invalid learning rate: -1\n\nhint: it takes {SGD}",
    "--optimizer sparseadam": (
        "--optimizer sparseadam: RuntimeError: SparseAdam does not support dense gradients, "
        "please consider Adam instead"
    ),
    "--save-every 3": "--save-every and --save-optimizer go with --save FILE\n\nhint: --save 'ckpt-{step}.pt'",
    "--save -": "--save -: standard output is for the rows\n\nhint: name a file: --save 'ckpt-{step}.pt'",
    "--save no/c.pt": "no/c.pt: cannot be written: there is no folder no",
    "--save .": ".: a folder, and not a file",
    "--save c-{steps}.pt": "--save c-{steps}.pt: {steps} stands for nothing\n\nhint: c-{step}.pt",
    "--save /proc/c.pt": "/proc/c.pt: cannot be written: no such file or directory",
    "--optimizer adam(lr=1) --lr 0.1": (
        "--lr 0.1, and --optimizer adam(lr=1) has lr=1\n\nhint: give it in one of them"
    ),
    "-f tree": "--format tree: steps are no tree\n\nhint: table, jsonl, tsv, json or markdown",
    "--input 2,5": (
        "MODEL: in 0 (Linear): RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x5 and 4x8)"
        "\n\nhint: --input 2,4"
    ),
    "--fresh --input x.npy --target y.npy": "--fresh, and nothing here is random\n\nhint: the same files are read for each step",
    "--kind buffer": "MODEL: nothing is selected by --kind buffer\n\nhint: it has 0.weight, 0.bias, 2.weight …",
}  # fmt: skip


@pytest.mark.parametrize("line", ERRORS)
def test_what_cannot_be_trained_is_said_in_three_lines(line, run, tmp_path, monkeypatch):
    """The whole of stderr; nothing is printed, and nothing is trained."""
    import numpy as np

    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((2, 4)))
    np.save("y.npy", np.zeros((2, 1)))
    done = run("watch", MODELS / "mlp.py", *line.split(), "--seed", 0)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: {ERRORS[line].replace('MODEL', str(MODELS / 'mlp.py'))}\n"


def test_an_error_at_a_later_step_keeps_what_was_told(run, tmp_path):
    """Rows of the steps before stay, and the error names the line."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass net(nn.Linear):\n    def __init__(self):\n        super().__init__(3, 2)\n"
        "        self.calls = 0\n    def forward(self, x):\n        self.calls += 1\n"
        "        assert self.calls < 3, 'enough'\n        return super().forward(x)\n"
    )
    done = run("watch", tmp_path / "net.py", "--input", "2,3", "--steps", 9, "--seed", 0)
    assert done.code == 2
    assert [json.loads(line)["step"] for line in done.out.splitlines()] == [1, 1, 2, 2]
    where = "net.py, line 8, `assert self.calls < 3, 'enough'`"
    assert done.err == f"error: {tmp_path / 'net.py'}: {where}: AssertionError: enough\n"
    table = run("watch", tmp_path / "net.py", "--input", "2,3", "--steps", 9, "--seed", 0, "-f", "table")
    assert (table.code, table.out.splitlines()[0], table.err) == (2, "step 2 of 9  mse  sgd(lr=0.1)", done.err)


def test_the_api_gives_steps_as_they_are_made():
    """`watch` of a model is iterated over; the module is trained as far as it was."""
    watched = paramctl.open(MODELS / "tied.py").watch(input=["2,4"], steps=100, seed=0)
    steps = list(itertools.islice(watched, 3))
    assert [step.number for step in steps] == [1, 2, 3]
    assert watched.report(steps).dicts()[0]["step"] == 1
    assert watched.finish() == ["still one tensor each: 2.weight = 4.weight, 2.bias = 4.bias"]
    shared = watched.plan.model.module
    assert shared[2] is shared[4]
    assert float(shared[2].weight.detach().double().norm()) == pytest.approx(steps[-1].rows[2].value_l2, rel=1e-12)
    assert isinstance(shared, nn.Sequential)
