"""Statistics of checkpoints: a row for each tensor or module, and each element once."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from paramctl import api
from paramctl.errors import ParamctlError
from paramctl.ops import _stats_columns as stats_columns
from paramctl.ops import stats as ops_stats
from paramctl.report import Report
from program import ROOT


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def saved(value: object, name: str = "m.pt") -> api.Model:
    torch.save(value, name)
    return api.open(name)


def by_name(report: Report) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in report.dicts()}


def every(*tensors: torch.Tensor) -> np.ndarray:
    """Their elements in float64; of complex ones the magnitudes."""
    return np.concatenate([(t.abs() if t.is_complex() else t).double().reshape(-1).numpy() for t in tensors])


def finite(*tensors: torch.Tensor) -> np.ndarray:
    whole = every(*tensors)
    return whole[np.isfinite(whole)]


def held_against_numpy(row: dict[str, Any], *tensors: torch.Tensor) -> None:
    """The columns that are always there, of some tensors together."""
    values, whole = finite(*tensors), every(*tensors)
    assert row["numel"] == whole.size
    assert (row["zeros"], row["nan"], row["inf"]) == ((values == 0).sum(), np.isnan(whole).sum(), np.isinf(whole).sum())
    if not values.size:
        assert [row[key] for key in ("mean", "std", "min", "max", "l2")] == [None, None, None, None, 0]
        return
    assert (row["min"], row["max"]) == (values.min(), values.max())
    size = np.abs(values).mean()
    assert row["mean"] == pytest.approx(values.mean(), rel=1e-12, abs=1e-14 * size)
    assert row["std"] == pytest.approx(values.std(), rel=1e-12, abs=1e-14 * size)
    assert row["l2"] == pytest.approx(np.sqrt(np.square(values).sum()), rel=1e-12)


def model_of_ties() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    table = torch.randn(20, 6)
    return {
        "embed.weight": table,
        "body.0.weight": torch.randn(6, 6).to(torch.bfloat16),
        "body.0.bias": torch.tensor([1.0, math.nan, math.inf, 0, -0.0, 7]),
        "body.1.scale": torch.full((6,), 0.1),
        "body.1.steps": torch.tensor(1 << 60),
        "body.1.mask": torch.tensor([True, False, True]),
        "body.1.phase": torch.tensor([3 + 4j, 0, -1j]),
        "head.weight": table,
        "head.turned": table.t(),
        "head.flat": table.view(-1),
        "head.none": torch.zeros(0, 3),
    }


# ----------------------------------------------------------------------------- a row for each tensor


def test_rows_are_those_of_numpy():
    """Every name has its row, in the file's order, with its dtype, shape and statistics; tied ones repeat theirs."""
    state = model_of_ties()
    report = saved(state).stats()
    assert [row["name"] for row in report.dicts()] == list(state)
    for name, row in by_name(report).items():
        assert (row["dtype"], row["shape"]) == (str(state[name].dtype)[6:], list(state[name].shape))
        held_against_numpy(row, state[name])
    assert report.notes == ()


def test_a_tied_tensor_is_read_once():
    """By another name, transposed, or in another shape: the bytes are read for the first and for no other."""
    table, other = torch.randn(300, 100), torch.randn(7)
    read: list[int] = []
    saved({"a": table, "b": table, "c": table.t(), "d": table.view(-1, 10), "e": other}).stats(tell=read.append)
    assert sum(read) == 4 * (30_000 + 7)


def test_integers_stay_integers():
    """The least and the greatest of integers are integers, beyond 2**53 too, and so are their quantiles."""
    state = {"n": torch.tensor([(1 << 62) + 1, -5]), "b": torch.tensor([True]), "i": torch.arange(5, dtype=torch.int32)}
    rows = by_name(saved(state).stats(quantiles=(0.0, 0.5, 1.0)))
    assert [rows["n"][key] for key in ("min", "max", "q0", "q1")] == [-5, (1 << 62) + 1] * 2
    assert [type(rows[name][key]) for name in rows for key in ("min", "max", "q1")] == [int] * 9
    assert rows["n"]["mean"] == float((1 << 61) - 2)


def test_sample_divides_by_one_less():
    """`std` as torch's default; of a single element there is none."""
    state = {"w": torch.randn(50, dtype=torch.float64), "one": torch.ones(1)}
    rows = by_name(saved(state).stats(sample=True))
    assert rows["w"]["std"] == pytest.approx(state["w"].std().item(), rel=1e-13)
    assert rows["one"]["std"] is None


def test_nested_checkpoints_and_optimizers():
    """State of an optimizer is told as tensors under its path, and `at` roots the view."""
    net = nn.Linear(4, 3)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, "m.pt")
    rows = by_name(api.open("m.pt").stats())
    held_against_numpy(rows["model.weight"], net.weight.detach())
    moments = optimizer.state_dict()["state"][0]
    told = {name.rpartition(".")[2]: row for name, row in rows.items() if name.startswith("optimizer.state.0.")}
    assert set(told) == set(moments)
    for key, row in told.items():
        held_against_numpy(row, moments[key])
    assert list(by_name(api.open("m.pt", at="model").stats())) == ["weight", "bias"]


def test_only_what_is_chosen():
    """Rows and totals are of the selection, and nothing else is read."""
    state = {"a.weight": torch.ones(1000), "a.bias": torch.zeros(3), "b.weight": torch.full((5,), 2.0)}
    read: list[int] = []
    report = saved(state).select("*.bias", "b").stats(tell=read.append)
    assert list(by_name(report)) == ["a.bias", "b.weight"]
    assert sum(read) == 32
    held_against_numpy({**report.totals}, state["a.bias"], state["b.weight"])


# ----------------------------------------------------------------------------- further columns


def moment(values: np.ndarray, power: int) -> float:
    return float((((values - values.mean()) / values.std()) ** power).mean())


MORE = {
    "l1": lambda v, t: np.abs(v).sum(),
    "rms": lambda v, t: np.sqrt(np.square(v).mean()),
    "absmax": lambda v, t: np.abs(v).max(),
    "skew": lambda v, t: moment(v, 3),
    "kurtosis": lambda v, t: moment(v, 4) - 3,
    "sparsity": lambda v, t: (np.abs(v) <= 0.25).mean(),
    "first_nan": lambda v, t: t.isnan().nonzero()[0].tolist() if t.isnan().any() else None,
    "first_inf": lambda v, t: t.isinf().nonzero()[0].tolist() if t.isinf().any() else None,
    "zero_rows": lambda v, t: int((t == 0).all(1).sum()),
    "zero_cols": lambda v, t: int((t == 0).all(0).sum()),
    "repeated_rows": lambda v, t: len(t) - len({tuple(row) for row in t.tolist()}),
    "spectral_norm": lambda v, t: torch.linalg.matrix_norm(t.double(), 2).item() if t.isfinite().all() else None,
    "condition": lambda v, t: torch.linalg.cond(t.double()).item() if t.isfinite().all() else None,
    "stable_rank": lambda v, t: (
        np.square(v).sum() / torch.linalg.matrix_norm(t.double(), 2).item() ** 2 if t.isfinite().all() else None
    ),
    "effective_rank": None,  # tests/values/test_spectrum.py
    "tensors": lambda v, t: 1,
}


def test_every_column_that_may_be_asked_for():
    """As torch and numpy say of the whole tensor; all columns are known."""
    assert set(MORE) == set(stats_columns.MORE)
    torch.manual_seed(0)
    state = {"w": torch.randn(30, 8, dtype=torch.float64), "bad": torch.randn(5, 4), "zeros": torch.randn(9, 7)}
    state["bad"][2, 1], state["bad"][3, 3] = math.nan, -math.inf
    state["zeros"][[2, 5]] = 0
    state["zeros"][:, 3] = 0
    rows = by_name(saved(state).stats(columns=list(MORE), threshold=0.25))
    for name, tensor in state.items():
        for key, of in MORE.items():
            if of is not None and not (key == "condition" and name == "zeros"):
                want = of(finite(tensor), tensor)
                assert rows[name][key] == (want if want is None else pytest.approx(want, rel=1e-11)), (name, key)
    assert rows["zeros"]["condition"] > 1e15


def test_what_a_vector_has_not():
    """Of what is no matrix, and of what is all equal or empty, a column that makes no sense is empty."""
    state = {
        "v": torch.ones(5),
        "none": torch.zeros(0, 2),
        "zeros": torch.zeros(3, 3),
        "nan": torch.full((2, 2), math.nan),
    }
    rows = by_name(
        saved(state).stats(
            columns=["skew", "rms", "zero_rows", "condition", "spectral_norm", "first_nan", "sparsity"],
            quantiles=[0.5],
            bins=2,
        )
    )
    keys = ("skew", "rms", "zero_rows", "condition", "spectral_norm", "first_nan", "sparsity", "q0.5", "hist")
    assert {name: [row[key] for key in keys] for name, row in rows.items()} == {
        "v": [None, 1.0, None, None, None, None, 0.0, 1.0, [0, 5]],
        "none": [None, None, None, None, None, None, None, None, [0, 0]],
        "zeros": [None, 0.0, 3, None, 0.0, None, 1.0, 0.0, [0, 9]],
        "nan": [None, None, 0, None, None, [0, 0], None, None, [0, 0]],
    }


def test_quantiles_and_bins():
    """As numpy's on the finite elements; a quantile asked for twice is one column."""
    torch.manual_seed(0)
    state = {"w": torch.randn(400), "h": torch.randn(300).half(), "n": torch.randint(-9, 9, (77,))}
    state["w"][3] = math.nan
    report = saved(state).stats(quantiles=(0.01, 0.5, 0.5, 1 / 3), bins=7)
    assert [column.key for column in report.columns][-4:] == ["q0.01", "q0.5", "q0.333333333333", "hist"]
    for name, row in by_name(report).items():
        values = finite(state[name])
        assert [row["q0.01"], row["q0.5"], row["q0.333333333333"]] == pytest.approx(
            np.quantile(values, (0.01, 0.5, 1 / 3)).tolist()
        )
        assert row["hist"] == np.histogram(values, 7)[0].tolist()


# ----------------------------------------------------------------------------- a row for each module


def once(state: dict[str, torch.Tensor], names: Sequence[str]) -> list[torch.Tensor]:
    """Of the tensors of some names those that show other elements than the ones before."""
    found: dict[Any, torch.Tensor] = {}
    for name in names:
        tensor = state[name]
        found.setdefault((tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.numel()), tensor)
    return list(found.values())


@pytest.mark.parametrize("depth", [None, 0, 1, 2, 5])
def test_a_module_is_all_below_it(depth: int | None):
    """Its row is that of its tensors' concatenation, a shared element counted once; parents stand first."""
    state = model_of_ties()
    state["body.1.deep.er.x"] = torch.randn(9)
    report = saved(state).stats(by="module", depth=depth, quantiles=[0.25], bins=5, columns=["kurtosis", "l1"])
    paths = {name.rpartition(".")[0] for name in state}
    if depth is not None:
        every = {".".join(name.split(".")[:level]) for name in state for level in range(name.count(".") + 1)}
        paths = {path for path in every if not path or path.count(".") < depth}
    rows = by_name(report)
    assert set(rows) == paths
    assert all(list(rows).index(a) < list(rows).index(b) for a in rows for b in rows if b.startswith(a + "."))
    for path, row in rows.items():
        names = [name for name in state if not path or name.startswith(path + ".")]
        tensors = once(state, names)
        held_against_numpy(row, *tensors)
        assert (row["shape"], row["tensors"]) == (None, len(names))
        kinds = {str(tensor.dtype)[6:] for tensor in tensors}
        assert row["dtype"] == (kinds.pop() if len(kinds) == 1 else None)
        values = finite(*tensors)
        assert row["q0.25"] == pytest.approx(np.quantile(values, 0.25), rel=1e-12)
        assert row["hist"] == np.histogram(values, 5)[0].tolist()
        assert row["l1"] == pytest.approx(np.abs(values).sum(), rel=1e-12)
        assert row["kurtosis"] == (pytest.approx(moment(values, 4) - 3, rel=1e-9) if len(set(values)) > 1 else None)


STEPS = st.lists(st.sampled_from(["a", "b", "0"]), min_size=1, max_size=4).map(".".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=8, unique=True), st.randoms())
def test_modules_and_totals_of_any_tree(names: list[str], rng: random.Random):
    """However tensors are named and tied: a branch's numbers are those of its unique elements, and so are the totals."""
    names = [f"{name}.w{i}" for i, name in enumerate(names)]  # no tensor is a module too
    state: dict[str, torch.Tensor] = {}
    for name in names:
        tied = rng.choice(list(state.values())) if state and rng.random() < 0.4 else None
        made = torch.randn(rng.randrange(1, 5), 3, dtype=rng.choice([torch.float32, torch.bfloat16, torch.float64]))
        state[name] = made if tied is None else tied.t() if tied.ndim == 2 and rng.random() < 0.5 else tied
    report = saved(state).stats(depth=9)
    for path, row in by_name(report).items():
        held_against_numpy(row, *once(state, [name for name in names if not path or name.startswith(path + ".")]))
    held_against_numpy({**report.totals, "numel": report.totals["unique_numel"]}, *once(state, names))


def test_totals_are_of_every_element_once():
    """Beside what every command tells; a row of a tied name is not counted again."""
    state = model_of_ties()
    totals = saved(state).stats().totals
    whole = once(state, list(state))
    held_against_numpy({**totals, "numel": totals["unique_numel"]}, *whole)
    assert totals["tensors"] == len(state)
    assert totals["unique_numel"] == sum(tensor.numel() for tensor in whole)


def test_a_name_of_a_million_dots_is_in_few_modules():
    """Modules within modules are told to a depth, not by the square of it."""
    save_file({"a" + ".a" * 200_000: torch.ones(2), "b.w": torch.zeros(2)}, "m.safetensors")
    assert list(by_name(api.open("m.safetensors").stats(by="module"))) == ["b"]
    assert len(api.open("m.safetensors").stats(depth=3).rows) == 5


# ----------------------------------------------------------------------------- what cannot be told


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"columns": ["kurtosi"]}, "error: no column kurtosi\n\nhint: one of kurtosis"),
        ({"columns": ["l1", "\x1b"]}, f"error: no column \\x1b\n\nhint: one of {', '.join(stats_columns.MORE)}"),
        ({"columns": ["zero_rows"], "by": "module"}, "error: zero_rows is of a tensor, and not of a module\n\nhint: leave out --by and --depth"),
        ({"columns": ["condition"], "depth": 1}, "error: condition is of a tensor, and not of a module\n\nhint: leave out --by and --depth"),
        ({"quantiles": [0.5, 1.5]}, "error: a quantile of 1.5: not from 0 to 1"),
        ({"quantiles": [-0.1]}, "error: a quantile of -0.1: not from 0 to 1"),
        ({"quantiles": [math.nan]}, "error: a quantile of nan: not from 0 to 1"),
        ({"threshold": math.nan}, "error: a threshold of nan: not 0 or more"),
        ({"bins": -3}, "error: -3 bins: not 1 or more"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_an_error(more: dict[str, Any], said: str):
    """Before anything is read."""
    read: list[int] = []
    with pytest.raises(ParamctlError) as caught:
        saved({"w": torch.ones(2)}).stats(**more, tell=read.append)
    assert (str(caught.value), read) == (said, [])


def test_numbers_that_are_not_known(run):
    """A tensor without bytes has a row without numbers and a note; what is together with it has none either."""
    state = {
        "a.w": torch.ones(3),
        "a.x": torch.empty(4, 2, device="meta"),
        "b.w": torch.ones(2),
        "b.y": torch.empty(0, device="meta"),
    }
    report = saved(state).stats(columns=["l1", "zero_rows"], quantiles=[0.5], bins=3)
    told = {"numel": 8, "name": "a.x", "dtype": "float32", "shape": [4, 2]}
    assert by_name(report)["a.x"] == {column.key: told.get(column.key) for column in report.columns}
    assert report.notes == ("a.x: it has a shape, and no values",)
    assert report.totals["mean"] is None
    rows = by_name(saved(state).stats(by="module"))
    assert (rows["a"]["mean"], rows["a"]["numel"], rows["b"]["mean"]) == (None, 11, 1.0)
    result = run("stats", "m.pt", "-f", "json")
    assert (result.code, result.rows[1]["mean"], result.rows[0]["mean"]) == (0, None, 1.0)
    assert "a.x: it has a shape, and no values" in result.err


def test_columns_that_cannot_be_had():
    """Where rows or singular values cannot be told, they are empty with a note, and everything else is there."""
    state = {"w": torch.ones(1, 1).expand(1 << 13, 1 << 12), "x": torch.eye(3)}
    report = saved(state).stats(columns=["zero_rows", "spectral_norm"])
    rows = by_name(report)
    assert [rows["w"][key] for key in ("numel", "mean", "std", "zero_rows", "spectral_norm")] == [
        1 << 25,
        1,
        0,
        None,
        None,
    ]
    assert [rows["x"][key] for key in ("zero_rows", "spectral_norm")] == [0, 1]
    assert report.notes == ("w: its 33,554,432 elements are 1 that overlap",) * 2


def test_many_notes_are_cut():
    """A model without values is not told of name by name."""
    report = saved({f"w{i}": torch.empty(2, device="meta") for i in range(50)}).stats()
    assert (len(report.notes), report.notes[-1]) == (11, "and 40 more of this kind")


@pytest.mark.parametrize("more", [{}, {"columns": ["zero_rows"]}, {"quantiles": [0.5]}])
def test_a_file_that_has_become_shorter_is_an_error(more: dict[str, Any]):
    """It is not told as a tensor without numbers."""
    save_file({"a": torch.ones(2), "w": torch.ones(50_000)}, "m.safetensors")
    model = api.open("m.safetensors")
    os.truncate("m.safetensors", 100_000)
    with pytest.raises(ParamctlError) as caught:
        model.stats(**more)
    assert str(caught.value) == "error: m.safetensors: it ends before the bytes of w"


def test_slices_are_refused():
    """Statistics are of whole tensors."""
    with pytest.raises(ParamctlError, match=r"^error: w\[0\]: stats is about whole tensors\n"):
        saved({"w": torch.ones(3)}).select("w[0]").stats()


def test_a_definition_has_its_values():
    """It is built with them; with a seed they are those of torch."""
    Path("net.py").write_text("import torch\ndef build():\n    return torch.nn.Linear(30, 20)\n")
    model = api.open("net.py", values=True, seed=7)
    torch.manual_seed(7)
    net = nn.Linear(30, 20)
    rows = by_name(model.stats())
    held_against_numpy(rows["weight"], net.weight.detach())
    assert rows["bias"]["max"] == net.bias.max().item()
    assert by_name(api.open("net.py").stats())["weight"]["std"] == pytest.approx(net.weight.std().item(), rel=0.1)


def test_json_has_null_for_what_is_no_number(run):
    """NaN and infinities are counted, and never printed as numbers; an infinite ratio is null."""
    saved(
        {
            "w": torch.tensor([[1.0, math.nan], [math.inf, 0]]),
            "z": torch.diag(torch.tensor([1.0, 0.0])),
            "h": torch.full((1000,), 1.7e308, dtype=torch.float64),
        }
    )
    result = run("stats", "m.pt", "-f", "json", "--spectral")
    rows = {row["name"]: row for row in json.loads(result.out, parse_constant=pytest.fail)["rows"]}
    assert (rows["w"]["nan"], rows["w"]["inf"], rows["w"]["condition"]) == (1, 1, None)
    assert rows["z"]["condition"] is None
    assert (rows["h"]["l2"], rows["h"]["mean"], rows["h"]["spectral_norm"]) == (None, pytest.approx(1.7e308), None)


# ----------------------------------------------------------------------------- memory


MEASURE = """
import resource, sys
from paramctl import api
model = api.open("small.safetensors")
model.stats(quantiles=[0.5], columns=["kurtosis", "zero_rows"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
row = api.open("large.safetensors").stats(**eval(sys.argv[1])).dicts()[0]
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(row["numel"], row["zeros"], (after - before) // (1 if sys.platform != "darwin" else 1024))
"""


@pytest.mark.parametrize("more", ["{}", "{'quantiles': [0.5], 'columns': ['kurtosis', 'zero_rows', 'sparsity']}"])
def test_memory_does_not_grow_with_the_file(more: str):
    """Of half a gigabyte of zeros no more than some MiB are held at a time."""
    nbytes = 1 << 29 if more == "{}" else 1 << 27
    save_file({"w": torch.ones(4)}, "small.safetensors")
    header = json.dumps({"w": {"dtype": "F32", "shape": [nbytes >> 12, 1 << 10], "data_offsets": [0, nbytes]}}).encode()
    Path("large.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate("large.safetensors", 8 + len(header) + nbytes)
    told = subprocess.run(
        [sys.executable, "-c", MEASURE, more],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )
    numel, zeros, kib = map(int, told.stdout.split())
    assert numel == zeros == nbytes >> 2
    assert kib < 32 << 10


def test_numbers_of_tensors_are_asked_for_once(monkeypatch):
    """A tensor that is in many modules is read once for all of them."""
    asked: list[str] = []
    summarize = ops_stats.summarize
    monkeypatch.setattr(
        ops_stats, "summarize", lambda param, *more: (asked.append(param.name), summarize(param, *more))[1]
    )
    saved({"a.b.c.w": torch.ones(3), "a.b.x": torch.ones(2), "y": torch.ones(1)}).stats(depth=5)
    assert sorted(asked) == ["a.b.c.w", "a.b.x", "y"]
