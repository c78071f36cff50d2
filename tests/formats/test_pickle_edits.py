"""Edits of a pickle: what was named changes, what was not stays, and what cannot be done is refused."""

from __future__ import annotations

import argparse
import copy
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from graphs import assert_same_graph
from paramctl.dtypes import DTYPES
from paramctl.errors import ParamctlError
from paramctl.formats.pickle_metadata import moved
from paramctl.formats.torch_pickle import Layout
from paramctl.formats.torch_zip_writer import Fresh
from torch_files import loaded, read, rewritten

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def t(value: float) -> torch.Tensor:
    return torch.full((2,), float(value))


class Renamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("kept", t(1))
        self.register_buffer("left", t(2), persistent=False)
        self.plain = t(3)


def checkpoint() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU())
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(lr=1),
    }


def copied() -> dict[str, Any]:
    """A state dict and a shallow copy of it, which has the same `_metadata`."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).state_dict()
    return {"model": model, "ema": copy.copy(model)}


def unshared(root: Any) -> Any:
    root["ema"]._metadata = copy.copy(root["ema"]._metadata)
    return root


def shared() -> dict[str, Any]:
    inner = {"w": t(1), "b": t(2)}
    return {"a": inner, "b": inner, "c": t(3)}


def one_tensor() -> dict[str, Any]:
    tensor = t(1)
    parameter = nn.Parameter(t(2))
    return {"a": tensor, "b": tensor, "p": parameter, "q": {"r": parameter}, "view": tensor[1:]}


def in_a_tuple() -> dict[str, Any]:
    tensor = t(1)
    return {"p": (tensor, 1), "a": tensor}


def without(*path: Any) -> Any:
    """The change of an object that takes out what is at a path."""

    def change(root: Any) -> Any:
        node = root
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]
        return root

    return change


def both(*changes: Any) -> Any:
    def change(root: Any) -> Any:
        for one in changes:
            root = one(root)
        return root

    return change


def keys(*pairs: tuple[str, str], at: str = "") -> Any:
    """The change of a dict that gives keys new names, in place."""

    def change(root: Any) -> Any:
        node = root[at] if at else root
        items = [(dict(pairs).get(key, key), item) for key, item in node.items()]
        node.clear()
        node.update(items)
        return root

    return change


def versions(at: str, **names: Any) -> Any:
    def change(root: Any) -> Any:
        held = root[at]._metadata if at else root._metadata
        new = [(names[key], value) if key in names else (key, value) for key, value in held.items()]
        held.clear()
        held.update((key, value) for key, value in new if key is not None)
        return root

    return change


# ----------------------------------------------------------------------------- what changes


def renamed_buffer(module: Any) -> Any:
    keys(("left", "there"))(module._buffers)
    module._non_persistent_buffers_set = {"there"}
    return module


def without_two(module: Any) -> Any:
    del module.fc._parameters["bias"], module.plain
    return module


CHANGES: dict[str, tuple[Any, Any, Any]] = {  # an object, an edit of its document, the same change of the object
    "drop a tensor": (checkpoint, lambda d: d.drop(["model.0.weight"]), without("model", "0.weight")),
    "drop a branch": (checkpoint, lambda d: d.drop(["optimizer"]), without("optimizer")),
    "drop a part of a branch": (checkpoint, lambda d: d.drop(["optimizer.state.1"]), without("optimizer", "state", 1)),
    "drop what is no tensor": (
        checkpoint, lambda d: d.drop(["epoch", "args.lr"]),
        both(without("epoch"), lambda root: vars(root["args"]).clear() or root),
    ),
    "drop a branch and a name in it": (checkpoint, lambda d: d.drop(["optimizer.state", "optimizer.state.0.exp_avg"]), without("optimizer", "state")),
    "drop a module's parameters, and its version": (
        checkpoint, lambda d: d.drop([name for name in d.tensors if name.startswith("model.1.")]),
        both(
            lambda root: [root["model"].pop(key) for key in list(root["model"]) if key.startswith("1.")] and root,
            lambda root: root["model"]._metadata.pop("1") and root,
        ),
    ),
    "drop the last of a list": (lambda: {"l": [t(1), 5, t(2)]}, lambda d: d.drop(["l.2"]), without("l", 2)),
    "drop the first of a list": (lambda: {"l": [t(1), 5, t(2)]}, lambda d: d.drop(["l.0"]), without("l", 0)),
    "drop of a key that was set twice": (lambda: {1: t(1), "1": t(2), "2": t(3)}, lambda d: d.drop(["1'"]), without("1")),
    "drop of two keys that read the same": (lambda: {1: [t(1)], "1": [t(2)], "2": t(3)}, lambda d: d.drop(["1"]), both(without(1), without("1"))),
    "drop a Counter's": (lambda: Counter(a=t(1), b=t(2)), lambda d: d.drop(["a"]), without("a")),
    "drop all of a tuple": (lambda: {"a": t(0), "p": (t(1), t(2))}, lambda d: d.drop(["p.0", "p.1"]), without("p")),
    "drop all parts of a sparse tensor": (
        lambda: {"a": t(0), "s": torch.eye(2).to_sparse()}, lambda d: d.drop(["s.indices", "s.values"]), without("s"),
    ),
    "drop a quantized tensor": (
        lambda: {"a": t(0), "q": torch.quantize_per_channel(torch.ones(2, 2), torch.ones(2), torch.zeros(2), 0, torch.qint8)},
        lambda d: d.drop(["q"]), without("q"),
    ),
    "drop both names of one item": (shared, lambda d: d.drop(["a.w", "b.w"]), without("a", "w")),
    "drop one of two branches that are one": (shared, lambda d: d.drop(["a"]), without("a")),
    "drop one of two names of a tensor": (one_tensor, lambda d: d.drop(["a", "q.r"]), both(without("a"), without("q"))),
    "drop a module's parameter": (Renamed, lambda d: d.drop(["fc.bias", "plain"]), without_two),
    "keep a branch": (
        checkpoint, lambda d: d.keep([name for name in d.tensors if name.startswith("model.")]), without("optimizer"),
    ),
    "keep what is deep": (
        checkpoint, lambda d: d.keep(["optimizer.state.1.step"]),
        both(
            without("model"), without("optimizer", "state", 0), without("optimizer", "state", 1, "exp_avg"),
            without("optimizer", "state", 1, "exp_avg_sq"), without("optimizer", "state", 2), without("optimizer", "state", 3),
        ),
    ),
    "keep a quantized tensor whole": (
        lambda: {"a": t(0), "q": torch.quantize_per_channel(torch.ones(2, 2), torch.ones(2), torch.zeros(2), 0, torch.qint8)},
        lambda d: d.keep(["q"]), without("a"),
    ),
    "rename a key": (checkpoint, lambda d: d.rename({"model.0.weight": "model.0.kernel"}), keys(("0.weight", "0.kernel"), at="model")),
    "rename a module, and its version": (
        checkpoint, lambda d: d.rename({f"model.1.{k}": f"model.bn.{k}" for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}),
        both(
            keys(*((f"1.{k}", f"bn.{k}") for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")), at="model"),
            versions("model", **{"1": "bn"}),
        ),
    ),
    "rename a module of a copy": (
        copied, lambda d: d.rename({"ema.0.weight": "ema.fc.weight", "ema.0.bias": "ema.fc.bias"}),
        both(unshared, keys(("0.weight", "fc.weight"), ("0.bias", "fc.bias"), at="ema"), versions("ema", **{"0": "fc"})),
    ),
    "drop a module of a copy": (
        copied, lambda d: d.drop(["ema.0.weight", "ema.0.bias"]), without("ema"),
    ),
    "drop one of a copy": (copied, lambda d: d.drop(["ema.0.weight"]), without("ema", "0.weight")),
    "rename a branch": (checkpoint, lambda d: d.rename({n: "ema" + n[5:] for n in d.tensors if n.startswith("model.")}), keys(("model", "ema"))),
    "rename a branch by a number": (
        checkpoint, lambda d: d.rename({n: n.replace("state.3", "state.9") for n in d.tensors if ".3." in n}),
        lambda root: root["optimizer"]["state"].update({9: root["optimizer"]["state"].pop(3)}) or root,
    ),
    "swap two branches": (
        lambda: {"a": {"w": t(1)}, "b": {"w": t(2)}}, lambda d: d.rename({"a.w": "b.w", "b.w": "a.w"}),
        lambda root: {"a": {"w": root["b"]["w"]}, "b": {"w": root["a"]["w"]}},
    ),
    "move to another dict": (
        lambda: {"a": {"w": t(1), "v": t(0)}, "b": {"x": t(2)}}, lambda d: d.rename({"a.w": "b.w"}),
        lambda root: root["b"].update(w=root["a"].pop("w")) or root,
    ),
    "move to an empty dict": (
        lambda: {"a": {"w": t(1), "v": t(0)}, "b": OrderedDict()}, lambda d: d.rename({"a.w": "b.w"}),
        lambda root: root["b"].update(w=root["a"].pop("w")) or root,
    ),
    "move to the root": (
        lambda: {"a": {"w": t(1), "v": t(0)}, "b": 3}, lambda d: d.rename({"a.w": "c.w"}),
        lambda root: root.update({"c.w": root["a"].pop("w")}) or root,
    ),
    "rename an attribute": (
        lambda: argparse.Namespace(a=t(1), b=2), lambda d: d.rename({"a": "c"}), lambda root: keys(("a", "c"))(vars(root)) and root,
    ),
    "drop a tensor that an empty dict is called like": (
        lambda: {".": {}, "": {"": t(1)}}, lambda d: d.drop(["."]), lambda root: root.pop("") and root,
    ),
    "rename a parameter of a module": (
        Renamed, lambda d: d.rename({"fc.weight": "fc.kernel"}), lambda m: keys(("weight", "kernel"))(m.fc._parameters) and m,
    ),
    "rename a buffer of a module": (Renamed, lambda d: d.rename({"left": "there"}), renamed_buffer),
    "rename what two names share": (shared, lambda d: d.rename({"a.w": "a.x", "b.w": "b.x"}), keys(("w", "x"), at="a")),
    "the root at a branch": (checkpoint, lambda d: d.at("model"), lambda root: root["model"]),
    "the root at a list": (lambda: {"a": [t(1), 2], "b": t(3)}, lambda d: d.at("a"), lambda root: root["a"]),
    "the root at a child": (lambda: {"m": Renamed()}, lambda d: d.at("m.fc"), lambda root: root["m"].fc),
    "the root at keys of a flat dict": (
        checkpoint, lambda d: d.at("model.1"),
        lambda root: both(
            lambda sd: [sd.pop(key) for key in list(sd) if not key.startswith("1.")] and sd,
            lambda sd: keys(*((key, key[2:]) for key in sd))(sd),
            versions("", **{"": None, "0": None, "1": "", "2": None}),
        )(root["model"]),
    ),
    "nothing": (checkpoint, lambda d: (d.drop([]), d.rename({}), d.rename({"model.0.weight": "model.0.weight"}), d.replace({})), lambda root: root),
}  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(("make", "edit", "change"), CHANGES.values(), ids=CHANGES.keys())
def test_an_edit_is_the_change_of_the_object(
    make: Any, edit: Any, change: Any, protocol: int, tmp_path: Path, monkeypatch: Any
):
    """What an edited file loads as is what the same change makes of the object, to the last reference."""
    torch.save(make(), tmp_path / "m.pt", pickle_protocol=protocol)
    new = rewritten(tmp_path / "m.pt", edit)
    monkeypatch.setenv(
        "TORCH_SERIALIZATION_DEBUG", "1"
    )  # torch then holds the offsets that it works out to the real ones
    assert_same_graph(loaded(new), change(loaded(tmp_path / "m.pt")))


# ----------------------------------------------------------------------------- what is refused

MODULE_HINT = "\n\nhint: in a module, only the last part of a name can be another"
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "no such name": (shared, lambda d: d.drop(["a.v"]), "m.pt: nothing is called a.v\n\nhint: did you mean a.w, a.b, a?"),
    "one of two names of an item": (
        shared, lambda d: d.drop(["a.w"]),
        "m.pt: a.w and b.w are one item of one container\n\nhint: drop both, or neither",
    ),
    "rename of one of two names of an item": (
        shared, lambda d: d.rename({"a.w": "a.x"}), "m.pt: a.w and b.w are one item of one container, and go different ways",
    ),
    "one of a tuple": (
        lambda: {"p": (t(1), t(2))}, lambda d: d.drop(["p.1"]),
        "m.pt: p.1 is a part of p, and cannot be dropped alone\n\nhint: p.0 is another part of it, and stays",
    ),
    "a tensor of a tuple that holds more": (
        lambda: {"p": (t(1), 5)}, lambda d: d.drop(["p.0"]),
        "m.pt: p.0 is a part of p, and cannot be dropped alone\n\nhint: p.1 is another part of it, and stays",
    ),
    "a part of a sparse tensor": (
        lambda: {"s": torch.eye(2).to_sparse()}, lambda d: d.drop(["s.values"]),
        "m.pt: s.values is a part of s, and cannot be dropped alone\n\nhint: s.indices is another part of it, and stays",
    ),
    "all": (lambda: t(1), lambda d: d.drop(["tensor"]), "m.pt: tensor is all that the file holds, and cannot be dropped alone"),
    "a name that is taken": (
        lambda: {"a": t(1), "b": t(2)}, lambda d: d.rename({"a": "b"}), "m.pt: a would take the place of another: b is there",
    ),
    "two of one name": (
        lambda: {"a": t(1), "b": t(2)}, lambda d: d.rename({"a": "c", "b": "c"}), "m.pt: b would take the place of another: c is there",
    ),
    "a name of what is no tensor": (
        lambda: {"a": t(1), "b": 2}, lambda d: d.rename({"a": "b"}), "m.pt: a would take the place of another: b is there",
    ),
    "a position in a list": (
        lambda: {"l": [t(1)]}, lambda d: d.rename({"l.0": "l.x"}), "m.pt: l.0 has its place in l, and no key there that could be another",
    ),
    "another module": (
        Renamed, lambda d: d.rename({"fc.weight": "fd.weight"}),
        f"m.pt: fc.weight is in a pickled module, and cannot become fd.weight{MODULE_HINT}",
    ),
    "a deeper module": (
        Renamed, lambda d: d.rename({"fc.weight": "fc.a.weight"}),
        f"m.pt: fc.weight is in a pickled module, and cannot become fc.a.weight{MODULE_HINT}",
    ),
    "no dict to go to": (
        lambda: [{"a": t(1)}], lambda d: d.rename({"0.a": "x.a"}), "m.pt: there is no dict that x.a could go into",
    ),
    "nothing at": (checkpoint, lambda d: d.at("nodel"), "m.pt: no tensors at 'nodel'\n\nhint: tensors are at model, model.1, model.0"),
    "a tensor at": (lambda: {"a": t(1)}, lambda d: d.at("a"), "m.pt: no tensors at 'a'"),
    "what is no tensor at": (checkpoint, lambda d: d.at("epoch"), "m.pt: no tensors at 'epoch'\n\nhint: tensors are at model, model.0, model.1, optimizer, optimizer.state"),
    "an addition that is there": (lambda: {"a": t(1)}, lambda d: d.add("a", own()), "m.pt: a is there already"),
    "an addition to no dict": (lambda: [t(1)], lambda d: d.add("a", own()), "m.pt: there is no dict that a could go into"),
    "values of what is no tensor": (checkpoint, lambda d: d.replace({"epoch": own()}), "m.pt: epoch is no tensor"),
    "values of nothing": (lambda: {"a": t(1)}, lambda d: d.replace({"b": own()}), "m.pt: nothing is called b"),
    "values of a numpy array": (
        lambda: {"a": np.ones(2)}, lambda d: d.replace({"a": own()}),
        "m.pt: a is a numpy array, whose values are in the pickle, and cannot be given others",
    ),
    "values on the meta device": (
        lambda: {"a": torch.ones(2, device="meta")}, lambda d: d.replace({"a": own()}), "m.pt: a has no values, and cannot be given others",
    ),
    "a quantized tensor of another dtype": (
        lambda: {"q": torch.quantize_per_tensor(t(1), 1.0, 0, torch.qint8)}, lambda d: d.replace({"q": own()}),
        "m.pt: q is qint8, and cannot become float32",
    ),
    "a dtype that torch has not": (
        lambda: {"a": t(1)}, lambda d: d.replace({"a": own("q4_k")}), "m.pt: a is float32, and cannot become q4_k",
    ),
    "a storage of two dtypes": (
        lambda: {"a": t(1), "b": t(2)}, lambda d: d.replace({"a": own("int32")._replace(key="1")}),
        "m.pt: a: its storage 1 would be of two dtypes\n\nhint: give it a storage of its own",
    ),
    "one name of an item of two": (
        shared, lambda d: d.replace({"a.w": own()}), "m.pt: a.w and b.w are one item of one container",
    ),
    "one name of a tensor in a tuple": (
        in_a_tuple, lambda d: d.replace({"p.0": own()}),
        "m.pt: p.0 is a tensor with other names, and cannot be parted from them where it is",
    ),
}  # fmt: skip


def own(dtype: str = "float32", key: str = "own") -> Layout:
    return Layout(key, 2 * DTYPES[dtype].block_nbytes, DTYPES[dtype], 0, (2,), (1,))


@pytest.mark.parametrize(("make", "edit", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_change_more_is_refused(make: Any, edit: Any, said: str, tmp_path: Path, monkeypatch: Any):
    """An edit that cannot be done, or not without changing what was not named, says what stands against it."""
    monkeypatch.chdir(tmp_path)
    torch.save(make(), "m.pt")
    with pytest.raises(ParamctlError) as error:
        rewritten(Path("m.pt"), edit)
    assert str(error.value) == f"error: {said}"


# ----------------------------------------------------------------------------- tensors of other storages


def cast(name: str, dtype: str) -> Any:
    return lambda document: document.replace({name: own(dtype)})


def retyped(value: Any, dtype: torch.dtype) -> Any:
    """A parameter or tensor with zeros of another dtype, and all else that it has."""
    with torch.no_grad():
        data = torch.zeros(2, dtype=dtype)
    made = nn.Parameter(data, value.requires_grad) if isinstance(value, nn.Parameter) else data
    made.__dict__.update(value.__dict__)
    return made


def tensors() -> dict[str, Any]:
    noted = nn.Parameter(t(1))
    noted.scale = t(9)
    plain = t(2)
    plain.note = "x"
    return {
        "p": nn.Parameter(t(0)),
        "f": nn.Parameter(t(0), requires_grad=False),
        "noted": noted,
        "plain": plain,
        "rest": t(3),
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "float8_e4m3fn"])
@pytest.mark.parametrize("name", ["p", "f", "noted", "plain"])
def test_a_cast_keeps_all_else_that_a_tensor_is(name: str, dtype: str, tmp_path: Path):
    """A tensor of another dtype keeps its class, gradient and attributes, and the others are as they were."""
    torch.save(tensors(), tmp_path / "m.pt")
    fresh = {"own": Fresh("own", own(dtype).nbytes, [bytes(own(dtype).nbytes)])}
    new = rewritten(tmp_path / "m.pt", cast(name, dtype), fresh)
    expected = loaded(tmp_path / "m.pt")
    expected[name] = retyped(expected[name], getattr(torch, dtype))
    assert_same_graph(loaded(new), expected)
    assert len(torch._C.PyTorchFileReader(str(new)).get_all_records()) == len(
        torch._C.PyTorchFileReader(str(tmp_path / "m.pt")).get_all_records()
    )


def test_a_plain_tensor_that_needs_a_gradient_loads_as_float8(tmp_path: Path):
    """torch.load fails on these if they require a gradient, so they no longer do."""
    torch.save({"a": t(1).requires_grad_()}, tmp_path / "m.pt")
    fresh = {"own": Fresh("own", 2, [bytes(2)])}
    found = loaded(rewritten(tmp_path / "m.pt", cast("a", "float8_e5m2"), fresh))
    assert (found["a"].dtype, found["a"].requires_grad) == (torch.float8_e5m2, False)


def test_back_to_a_dtype_with_a_storage_class(tmp_path: Path):
    """A tensor whose dtype stood beside its storage is written as torch writes its new one."""
    torch.save({"a": t(1).to(torch.float8_e5m2)}, tmp_path / "m.pt")
    new = rewritten(tmp_path / "m.pt", cast("a", "float32"), {"own": Fresh("own", 8, [bytes(8)])})
    torch.save({"a": torch.zeros(2)}, tmp_path / "expected.pt")
    assert_same_graph(loaded(new), loaded(tmp_path / "expected.pt"))


def test_both_names_of_a_tensor_stay_one_and_one_alone_becomes_another(tmp_path: Path):
    """A tensor that is replaced under all its names stays one object; under one of them, the others keep it."""
    torch.save(one_tensor(), tmp_path / "m.pt")
    fresh = {"own": Fresh("own", 8, [bytes(8)])}
    together = loaded(
        rewritten(tmp_path / "m.pt", lambda d: d.replace(dict.fromkeys(("a", "b", "p", "q.r"), own())), fresh)
    )
    assert together["a"] is together["b"]
    assert together["p"] is together["q"]["r"]
    assert together["view"].tolist() == [1]
    apart = loaded(rewritten(tmp_path / "m.pt", lambda d: d.replace(dict.fromkeys(("a", "q.r"), own())), fresh))
    before = loaded(tmp_path / "m.pt")
    assert_same_graph({k: apart[k] for k in ("b", "p", "view")}, {k: before[k] for k in ("b", "p", "view")})
    assert (apart["a"].tolist(), apart["q"]["r"].tolist()) == ([0, 0], [0, 0])
    assert type(apart["q"]["r"]) is nn.Parameter
    assert apart["a"].untyped_storage()._cdata == apart["q"]["r"].untyped_storage()._cdata


def test_a_module_is_tied_and_cast_and_still_a_module(tmp_path: Path):
    """Parameters of a pickled module are cast and tied in it, in the list that an LSTM keeps of them, too."""
    module = nn.LSTM(2, 2)
    torch.save(module, tmp_path / "m.pt")
    layout = Layout("own", 32, DTYPES["bfloat16"], 0, (8, 2), (2, 1))
    names = ("weight_ih_l0", "weight_hh_l0")
    new = loaded(
        rewritten(
            tmp_path / "m.pt", lambda d: d.replace(dict.fromkeys(names, layout)), {"own": Fresh("own", 32, [bytes(32)])}
        )
    )
    assert type(new) is nn.LSTM
    assert new.weight_ih_l0.untyped_storage()._cdata == new.weight_hh_l0.untyped_storage()._cdata
    assert new.weight_ih_l0 is new._flat_weights[0]
    assert (new.weight_ih_l0.dtype, new.bias_ih_l0.dtype) == (torch.bfloat16, torch.float32)
    assert new.weight_ih_l0.requires_grad


def test_parts_of_a_sparse_tensor_are_cast(tmp_path: Path):
    """The values of a sparse tensor are a tensor like others."""
    torch.save({"s": torch.eye(2).to_sparse()}, tmp_path / "m.pt")
    new = loaded(rewritten(tmp_path / "m.pt", cast("s.values", "float16"), {"own": Fresh("own", 4, [bytes(4)])}))
    assert (new["s"].dtype, new["s"].to_dense().tolist()) == (torch.float16, [[0, 0], [0, 0]])


def test_added_tensors_stand_last(tmp_path: Path):
    """A tensor is added to the dict that its name leads to, and loads with weights_only."""
    torch.save(checkpoint() | {"args": None}, tmp_path / "m.pt")

    def edit(document: Any) -> None:
        document.add("model.head.weight", own())
        document.add("other", own("bfloat16", "b"))

    fresh = {"own": Fresh("own", 8, [bytes(8)]), "b": Fresh("b", 4, [bytes(4)])}
    found = torch.load(rewritten(tmp_path / "m.pt", edit, fresh), weights_only=True)
    assert list(found)[-1] == "other"
    assert list(found["model"])[-1] == "head.weight"
    assert found["model"]["head.weight"].tolist() == [0, 0]
    expected = loaded(tmp_path / "m.pt")
    found["model"].pop("head.weight")
    found.pop("other")
    assert_same_graph(found, expected)


# ----------------------------------------------------------------------------- versions of modules

MODULES = ["", "module", "module.a", "module.a.act", "module.b"]
KEYS = ["module.a.w", "module.a.b", "module.b.w"]
MOVES: dict[str, tuple[dict[str, str | None], dict[str, str | None]]] = {
    "nothing": ({}, {}),
    "a prefix goes": (
        {key: key[7:] for key in KEYS},
        {"": None, "module": "", "module.a": "a", "module.a.act": "a.act", "module.b": "b"},
    ),
    "a prefix comes": (
        {key: f"x.{key}" for key in KEYS},
        {"": "x", "module": "x.module", "module.a": "x.module.a", "module.a.act": "x.module.a.act", "module.b": "x.module.b"},
    ),
    "a module": (
        {"module.a.w": "module.c.w", "module.a.b": "module.c.b"}, {"module.a": "module.c", "module.a.act": "module.c.act"},
    ),
    "one of its keys": ({"module.a.w": "module.a.v"}, {}),
    "its keys go two ways": ({"module.a.w": "module.c.w"}, {}),
    "its keys go into one name": ({"module.b.w": "module.b_w"}, {"module.b": None}),
    "all its keys are dropped": (dict.fromkeys(KEYS[:2]), {"module.a": None, "module.a.act": None}),
    "one of its keys is dropped": ({"module.a.w": None}, {}),
    "two modules change places": (
        {"module.a.w": "module.b.w", "module.a.b": "module.b.b", "module.b.w": "module.a.w"},
        {"module.a": "module.b", "module.a.act": "module.b.act", "module.b": "module.a"},
    ),
    "two modules become one": (
        {"module.b.w": "module.a.v"}, {"module.b": None},
    ),
    "everything is dropped": (dict.fromkeys(KEYS), {"module": None, "module.a": None, "module.a.act": None, "module.b": None}),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), MOVES.values(), ids=MOVES.keys())
def test_versions_go_where_their_modules_go(changes: Any, expected: Any):
    """A module's path follows its keys, and that of a module without keys the nearest around it."""
    assert moved(MODULES, KEYS, changes) == {path: path for path in MODULES} | expected


# ----------------------------------------------------------------------------- names


def test_names_are_those_of_the_reader(tmp_path: Path):
    """A document has the reader's names, in its order, each with what the reader says of it."""
    for name, (make, _, _) in CHANGES.items():
        torch.save(make(), tmp_path / "m.pt")
        found = read(tmp_path / "m.pt").params
        seen: list[Any] = []
        rewritten(tmp_path / "m.pt", lambda document, seen=seen: seen.append(document.tensors))
        notes = seen[0]
        assert list(notes) == list(found), name
        assert [(n.shape, n.stride, n.offset, n.dtype, n.kind) for n in notes.values()] == [
            (p.shape, p.stride, p.storage_offset, p.dtype, p.kind) for p in found.values()
        ]


def test_new_keys_are_nobodys(tmp_path: Path):
    """Keys for new storages are the numbers behind those that there are, each once."""
    torch.save([t(i) for i in range(11)], tmp_path / "m.pt")
    seen: list[str] = []
    rewritten(tmp_path / "m.pt", lambda document: seen.extend(document.new_key() for _ in range(3)))
    assert seen == ["11", "12", "13"]
