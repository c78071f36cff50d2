"""Law: `match` says what `load_state_dict(strict=True)` says, name by name, and a mapping that it proposes loads."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from paramctl import formats
from paramctl.dtypes import DTYPES
from paramctl.formats import python_model
from paramctl.ops.match import match
from paramctl.source import Source, resolve

FAULTS = ("missing", "unexpected", "shape", "dtype")
WORDS = st.sampled_from(["weight", "bias", "gamma", "q", "k", "attn", "0", "1", "12", "block 1", "重み", "x\ny"])
SHAPES = st.sampled_from([(), (1,), (2,), (3,), (2, 3), (3, 2), (3, 3), (1, 2, 2)])


class Own(nn.Module):
    """A module with extra state."""

    def get_extra_state(self) -> Any:
        return {"scale": 1}

    def set_extra_state(self, state: Any) -> None:
        self.seen = state


@st.composite
def modules(draw, depth: int = 2) -> nn.Module:
    """Nested modules with parameters, persistent and other buffers, layers of torch's own, None and ties."""
    made = draw(st.sampled_from([nn.Module, nn.Module, nn.Module, Own]))()
    for name in draw(st.lists(WORDS, max_size=3, unique=True)):
        kind = draw(st.sampled_from(["parameter", "buffer", "left out", "none"]))
        tensor = torch.zeros(draw(SHAPES), dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])))
        if kind == "parameter":
            made.register_parameter(name, nn.Parameter(tensor))
        elif kind == "none":
            made.register_parameter(name, None)
        else:
            made.register_buffer(name, tensor, persistent=kind == "buffer")
    for name in draw(st.lists(WORDS, max_size=3, unique=True)) if depth else ():
        if name in made._parameters or name in made._buffers:
            continue
        child = draw(st.sampled_from(["own", "own", "own", "norm", "linear", "none", "again"]))
        if child == "own":
            made.add_module(name, draw(modules(depth - 1)))
        elif child == "norm":
            made.add_module(name, nn.BatchNorm1d(2, track_running_stats=draw(st.booleans())))
        elif child == "linear":
            made.add_module(name, nn.Linear(2, 3))
        elif child == "none":
            made.register_module(name, None)
        elif made._modules:
            made.add_module(name, next(iter(made._modules.values())) or nn.Identity())
    return made


PATHS = st.lists(WORDS, min_size=1, max_size=3).map(".".join)
NAMES = PATHS | PATHS.map(lambda path: f"{path}._extra_state") | st.just("_extra_state")
TENSORS = st.builds(
    lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    SHAPES,
    st.sampled_from([torch.float32, torch.int64, torch.float8_e4m3fn, torch.bool]),
)


@st.composite
def perturbed(draw, state: dict[str, Any]) -> dict[str, Any]:
    """Renamed, dropped, added, reshaped, cast, wrapped; with or without what a state dict says of its modules."""
    made = OrderedDict(state)
    if draw(st.booleans()) and hasattr(state, "_metadata"):
        made._metadata = state._metadata
    for _ in range(draw(st.integers(0, 4))):
        names = list(made)
        how = draw(st.sampled_from(["drop", "rename", "add", "reshape", "no tensor", "prefix"]))
        if how == "add" or not names:
            made[draw(NAMES)] = draw(TENSORS)
            continue
        name = draw(st.sampled_from(names))
        if how == "drop":
            del made[name]
        elif how == "rename":
            made[draw(NAMES)] = made.pop(name)
        elif how == "reshape":
            made[name] = draw(TENSORS)
        elif how == "no tensor":
            made[draw(NAMES)] = draw(st.sampled_from([3, "text", None]))
        else:
            for each in names:
                made[f"module.{each}"] = made.pop(each)
    return made


def said_by_torch(module: nn.Module, state: dict[str, Any]) -> tuple[bool, dict[str, set[str]]]:
    """Whether it loads, and the names that torch has something to say of."""
    module = copy.deepcopy(module)
    keys: list[Any] = []
    module.register_load_state_dict_post_hook(lambda _, found: keys.append(copy.deepcopy(found)))
    error = ""
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as raised:
        error = str(raised)
    shapes = {name for name in state if f"\n\tsize mismatch for {name}: copying" in error}
    strange = {name for name in state if f'While copying the parameter named "{name}", ' in error}
    missing, unexpected = keys[-1]
    return not error, {"missing": set(missing), "unexpected": set(unexpected), "shape": shapes, "dtype": strange}


def begun(state: dict[str, Any]) -> list[str]:
    """The names that others begin with."""
    return [name for name in state if any(other.startswith(f"{name}.") for other in state)]


def definition(module: nn.Module):
    return python_model.described(copy.deepcopy(module), Source("net.py", "definition"))


def opened(state: Any, folder: Path):
    path = folder / "m.pt"
    torch.save(state, path)
    return formats.read(resolve(str(path)))


@pytest.mark.filterwarnings("ignore")
@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=200
)
@given(data=st.data())
def test_match_agrees_with_load_state_dict(data, tmp_path):
    """Over generated modules and perturbed state dicts: the same answer, and the same missing, unexpected and mismatched."""
    module = data.draw(modules())
    state = data.draw(perturbed(module.state_dict()))
    assume(not any(isinstance(state[name], dict) for name in begun(state)))  # read like a dict that holds the tensor
    report = match(opened(state, tmp_path), definition(module))
    fits, named = said_by_torch(module, state)
    rows = report.dicts()
    found = {status: {row["name"] for row in rows if row["status"] == status} for status in FAULTS}
    assert found == named
    assert report.totals["fits"] == fits


CASTS = [name for name in DTYPES if isinstance(getattr(torch, name, None), torch.dtype)]


@pytest.mark.parametrize("given_as", CASTS)
def test_a_dtype_is_cast_where_torch_copies_it(given_as, tmp_path):
    """Of every two dtypes of torch: `cast` where copy_ does it, and a fault where it refuses; itself is always ok."""
    try:
        held = torch.empty(4, dtype=getattr(torch, given_as))
    except (RuntimeError, TypeError):
        pytest.skip("torch makes no such tensor")
    for wanted_as in CASTS:
        source, kind = Source("m", "file"), DTYPES[given_as]
        side = python_model.described(nn.Module(), source)
        a, b = (_one(name) for name in (given_as, wanted_as))
        status = match(_of(side, a), _of(side, b)).dicts()[0]["status"]
        if given_as == wanted_as:
            assert status == "ok"
            continue
        assert (status == "cast") == _copies(held, wanted_as), (given_as, wanted_as, kind)
        assert match(_of(side, a), _of(side, b), strict_dtype=True).dicts()[0]["status"] == "dtype"


def _one(dtype: str):
    from paramctl.checkpoint import Param, Storage

    return Param("w", DTYPES[dtype], (4,), (1,), Storage("0", DTYPES[dtype].nbytes(4)), kind="parameter")


def _of(side, param):
    from dataclasses import replace

    return replace(side, params={"w": param}, live=None, format="safetensors")


def _copies(held: torch.Tensor, dtype: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.empty(4, dtype=getattr(torch, dtype)).copy_(held)
        except (RuntimeError, TypeError, NotImplementedError):
            return False
    return True


# ----------------------------------------------------------------------------- a proposed mapping


PARTS = st.sampled_from(["q_proj", "k_proj", "fc", "norm", "attn", "mlp", "embed"])


@st.composite
def models(draw) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model with repeated layers."""
    layer = draw(
        st.dictionaries(PARTS, st.sampled_from([(4, 4), (8, 4), (4, 8), (4,), (6, 4)]), min_size=1, max_size=4)
    )
    top = draw(
        st.dictionaries(st.sampled_from(["wte", "ln_f", "head"]), st.sampled_from([(9, 4), (4,), (5, 4)]), max_size=3)
    )
    names = {f"h.{i}.{part}.weight": shape for i in range(draw(st.integers(2, 4))) for part, shape in layer.items()}
    return names | {f"{part}.weight": shape for part, shape in top.items()}


def prefixed(prefix: str):
    return lambda name: prefix + name


def reworded(old: str, new: str):
    return lambda name: ".".join(new if part == old else part for part in name.split("."))


def counted_from(first: int):
    return lambda name: ".".join(str(int(part) + first) if part.isdigit() else part for part in name.split("."))


RENAMINGS = st.one_of(
    st.sampled_from(["module.", "_orig_mod.", "model.", "module._orig_mod.", "net."]).map(prefixed),
    st.sampled_from([("weight", "gamma"), ("q_proj", "query"), ("h", "layers"), ("mlp", "ffn")]).map(
        lambda two: reworded(*two)
    ),
    st.sampled_from([1, 2]).map(counted_from),
)


class Named(nn.Module):
    """Parameters under dotted names."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            *path, last = name.split(".")
            module: nn.Module = self
            for step in path:
                if step not in module._modules:
                    module.add_module(step, nn.Module())
                module = module._modules[step]
            module.register_parameter(last, nn.Parameter(torch.randn(shape)))


def converted(state: dict[str, Any], mending: dict[str, Any]) -> dict[str, Any]:
    """What `convert --at AT --rename …` makes of a state dict."""
    from renames import renamed

    for step in filter(None, mending["at"].split(".")):
        state = state[step]
    return {renamed(name, mending["rules"]): tensor for name, tensor in state.items()}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(shapes=models(), renaming=RENAMINGS, second=st.none() | RENAMINGS)
def test_what_is_found_again_loads(shapes, renaming, second, tmp_path):
    """A state dict renamed by one rule or two is mapped back, and what the rules make of it is what torch takes."""
    module = Named(shapes)
    state = {(second or str)(renaming(name)): tensor for name, tensor in module.state_dict().items()}
    report = match(opened(state, tmp_path), definition(module))
    if report.totals["fits"]:
        return
    mending = report.totals["mending"]
    if second is None:
        assert mending is not None
    if mending is None or mending["then"] is None or not mending["then"]["fits"]:
        assert second is not None
        return
    taken = copy.deepcopy(module)
    made = converted(state, mending)
    taken.load_state_dict(made, strict=True)
    if second is None and not _is_told_by_shapes_alone(report):
        assert all(torch.equal(tensor, made[name]) for name, tensor in module.state_dict().items())


def _is_told_by_shapes_alone(report) -> bool:
    return any(step["kind"] == "name" for step in report.totals["mending"]["steps"])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(shapes=models(), renaming=RENAMINGS, container=st.sampled_from(["state_dict", "model", "ema", "net"]))
def test_a_container_is_found(shapes, renaming, container, tmp_path):
    """Weights below a key, beside an optimizer and an epoch, are found there, renamed or not."""
    module = Named(shapes)
    state = {renaming(name): tensor for name, tensor in module.state_dict().items()}
    whole = {container: state, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "epoch": 3}
    mending = match(opened(whole, tmp_path), definition(module)).totals["mending"]
    assert mending["at"] == container
    Named(shapes).load_state_dict(converted(whole, mending), strict=True)


def test_bytes_of_a_pickle_say_how_modules_were_saved(tmp_path):
    """A state dict without `num_batches_tracked` loads if it says nothing of its version, and not if it says 2."""
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    full = module.state_dict()
    kept = OrderedDict((name, tensor) for name, tensor in full.items() if "num_batches" not in name)
    assert match(opened(dict(kept), tmp_path), definition(module)).totals["fits"]
    module.load_state_dict(kept)
    kept._metadata = full._metadata
    report = match(opened(kept, tmp_path), definition(module))
    assert [row["name"] for row in report.dicts() if row["status"] == "missing"] == ["1.num_batches_tracked"]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\)"):
        module.load_state_dict(kept)


def test_a_file_of_safetensors_is_what_load_file_makes_of_it(tmp_path):
    """An alias that only the metadata has is missing, as load_state_dict(load_file(…)) says."""
    from safetensors.torch import load_file, save_model

    module = Named({"a.weight": (2, 2), "b.weight": (2, 2)})
    module.b.weight = module.a.weight
    save_model(module, str(tmp_path / "m.safetensors"))
    report = match(formats.read(resolve(str(tmp_path / "m.safetensors"))), definition(module))
    fits, named = said_by_torch(module, load_file(tmp_path / "m.safetensors"))
    assert report.totals["fits"] == fits is False
    (row,) = (row for row in report.dicts() if row["status"] == "missing")
    assert {row["name"]} == named["missing"]
    assert row["candidate"] in load_file(tmp_path / "m.safetensors")


def test_a_whole_module_is_matched_by_its_state_dict(tmp_path):
    """A pickled module gives what its state_dict() gives."""
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    torch.save(module, tmp_path / "whole.pt")
    report = match(formats.read(resolve(str(tmp_path / "whole.pt"))), definition(module))
    assert (report.totals["fits"], report.totals["ok"]) == (True, len(module.state_dict()))
