"""What is no tensor goes along with the tensors, into every format that can hold it, nested as it was."""

from __future__ import annotations

import argparse
import collections
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import contents, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.distributed.checkpoint import save
from torch.distributed.checkpoint._nested_dict import flatten_state_dict, unflatten_state_dict
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from paramctl import api
from paramctl.formats import dcp_writer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
laws = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=4)
NUMBERS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.complex_numbers(allow_nan=False)
)
LEAVES = st.one_of(NUMBERS, TEXT, st.binary(max_size=4), st.sampled_from([torch.bfloat16, torch.device("cuda:1")]))
LISTS = st.recursive(LEAVES, lambda some: st.lists(some, max_size=3) | st.tuples(some, some), max_leaves=4)
VALUES = st.one_of(
    LISTS, st.sets(st.integers(), max_size=3), st.binary(max_size=3).map(bytearray), st.just(torch.Size([2, 3]))
)
KEYS = st.sampled_from(["model", "0.weight", "é", "lr", "0", "a b", "\x1b"])


def dicts(keys: Any) -> Any:
    """Dicts and lists of tensors and other values, in a dict that is not empty."""
    leaves = VALUES | st.integers(0, 9).map(lambda n: torch.full((2,), float(n)))
    inner = st.recursive(
        leaves,
        lambda some: st.dictionaries(keys, some, min_size=1, max_size=3) | st.lists(some, max_size=3),
        max_leaves=8,
    )
    return st.dictionaries(KEYS, inner, max_size=4).map(lambda made: {**made, "w": torch.ones(1)})


def same(one: Any, other: Any) -> bool:
    """Whether both are alike to the last leaf, and of the same types; a size may be a tuple."""
    if torch.is_tensor(one):
        return torch.is_tensor(other) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return (
            isinstance(other, tuple if isinstance(one, tuple) else list)
            and len(one) == len(other)
            and all(map(same, one, other))
        )
    return one == other and type(one) is type(other)


def convert(source: Path, out: Path, **steps: Any) -> Any:
    api.open(str(source)).convert(str(out), **steps).write(str(out))
    return out


@pytest.fixture
def folder(tmp_path_factory):
    return lambda: tmp_path_factory.mktemp("law")


@laws
@given(value=dicts(KEYS | st.integers(1, 9)))
def test_an_old_file_becomes_a_new_one(folder, value):
    """A file of before torch 1.6, made a zip, is the same to `torch.load`."""
    here = folder()
    torch.save(value, here / "old.pt", _use_new_zipfile_serialization=False)
    out = convert(here / "old.pt", here / "new.pt")
    assert same(torch.load(out, weights_only=False), value)
    assert contents(read(out)) == contents(read(here / "old.pt"))


@laws
@given(value=dicts(KEYS))
def test_a_folder_is_what_torch_would_make_of_it(folder, value):
    """From a torch file to a DCP folder and back it is as torch's own flattening leaves it, and torch agrees."""
    here = folder()
    torch.save(value, here / "x.pt")
    d = convert(here / "x.pt", here / "d", to="dcp")
    dcp_to_torch_save(d, here / "theirs.pt")
    back = convert(d, here / "ours.pt")
    expected = unflatten_state_dict(*flatten_state_dict(value))
    assert same(torch.load(back, weights_only=True), expected)
    assert same(torch.load(here / "theirs.pt", weights_only=False), expected)
    again = convert(d, here / "e", to="dcp")
    assert read(again).extras == read(d).extras


@pytest.fixture
def legacy(tmp_path, monkeypatch):
    """A file of before torch 1.6: classes, ties, views and a parameter in it."""
    monkeypatch.chdir(tmp_path)
    weight = torch.arange(12.0).reshape(3, 4)
    value = {
        "args": argparse.Namespace(lr=1),
        "w": weight,
        "again": weight,
        "part": weight[1:],
        "p": torch.nn.Parameter(torch.ones(2)),
        "epoch": 2,
    }
    torch.save(value, "x.pt", _use_new_zipfile_serialization=False)
    torch.save(
        torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU()), "m.pt", _use_new_zipfile_serialization=False
    )
    return value


def test_an_old_file_keeps_what_a_new_one_does(legacy, run):
    """Objects, parameters, ties and views of an old file are in the zip that is made of it, under new names too."""
    done = run("convert", "x.pt", "y.pt", "--rename", "again=>head", "--strict")
    assert (done.code, done.err) == (0, "")
    found = torch.load("y.pt", weights_only=False)
    assert (found["args"], found["epoch"], type(found["p"])) == (legacy["args"], 2, torch.nn.Parameter)
    assert all(torch.equal(found[name], legacy[name]) for name in ("w", "part", "p"))
    assert found["head"].data_ptr() == found["w"].data_ptr()
    assert found["part"].untyped_storage().data_ptr() == found["w"].untyped_storage().data_ptr()
    assert run("convert", "x.pt", "z.pt", "--dtype", "bf16", "--contiguous", "--drop", "epoch").code == 0
    small = torch.load("z.pt", weights_only=False)
    assert torch.equal(small["part"], legacy["part"].bfloat16())
    assert small["part"].untyped_storage().nbytes() == 16
    assert "epoch" not in small


def test_a_module_in_an_old_file_is_still_a_module(legacy, run):
    """Its class is named without the source code that old files keep beside it, and it computes the same."""
    assert run("convert", "m.pt", "n.pt", "--strict").code == 0
    before, after = (torch.load(name, weights_only=False) for name in ("m.pt", "n.pt"))
    assert torch.equal(after(torch.ones(2)), before(torch.ones(2)))
    assert torch.load("n.pt", weights_only=False, mmap=True)[0].weight.requires_grad


def test_a_folder_of_torchs_becomes_a_file(tmp_path):
    """A DCP folder that torch wrote becomes the file that `dcp_to_torch_save` makes of it."""
    value = training()
    save(value, checkpoint_id=str(tmp_path / "d"), no_dist=True)
    dcp_to_torch_save(tmp_path / "d", tmp_path / "theirs.pt")
    ours = torch.load(convert(tmp_path / "d", tmp_path / "ours.pt"), weights_only=True)
    assert same(ours, torch.load(tmp_path / "theirs.pt"))


def training() -> dict[str, Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "config": {"lr": 0.1, "betas": (0.9, 0.99)},
    }


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A training checkpoint, and that of a DCP folder, whose keys are text."""
    monkeypatch.chdir(tmp_path)
    value = training()
    torch.save(value, "new.pt")
    convert(Path("new.pt"), Path("folder"), to="dcp")
    convert(Path("folder"), Path("text.pt"))
    return value


STEPS: dict[str, Any] = {
    "drop a branch": ["--drop", "optimizer"],
    "drop a value": ["--drop", "epoch", "--drop", "config.lr"],
    "drop a value in a list": ["--drop", "optimizer.param_groups.0.lr"],
    "select": ["-s", "model"],
    "a branch by another name": ["--rename", "optimizer=>opt", "--rename", "model.0=>model.first"],
    "a branch in another": ["--rename", "optimizer.state=>optimizer.states"],
    "from a path on": ["--at", "optimizer"],
    "from a flat path on": ["--at", "model.0"],
    "out of a branch": ["--rename", "model.1.bias=>optimizer.bias"],
}


@pytest.mark.parametrize("words", STEPS.values(), ids=STEPS)
def test_steps_do_to_a_new_file_what_they_do_to_an_edited_one(words, old, run):
    """Dropped, renamed and rooted, what is no tensor is as where the pickle itself is edited."""
    assert run("convert", "text.pt", "edited.pt", *words).code == 0
    done = run("convert", "folder", "made.pt", *words)
    assert (done.code, done.err) == (0, "")
    assert same(torch.load("made.pt", weights_only=True), torch.load("edited.pt", weights_only=True))


def test_several_files_are_merged_with_all_that_is_in_them(old, run):
    """Of what two files have the later one wins, and what only one has is there."""
    torch.save({"model": {"0.bias": torch.zeros(9)}, "epoch": 4, "rng": [1, 2]}, "more.pt")
    done = run("convert", "new.pt", "more.pt", "m.pt", "--merge", "-f", "names")
    lines = [f"{name} of more.pt replaces that of new.pt" for name in ("model.0.bias", "epoch")]
    assert (done.code, done.err.splitlines()) == (0, lines)
    found = torch.load("m.pt", weights_only=True)
    expected = {**old, "epoch": 4, "rng": [1, 2], "model": {**old["model"], "0.bias": torch.zeros(9)}}
    assert same(found, expected)


def test_tensors_of_a_flat_file_go_where_the_others_are(old, run):
    """Weights from safetensors, old names and new, are in the model of the training checkpoint that they are merged with."""
    save_file(
        {"model.0.bias": torch.full((3,), 9.0), "model.9.bias": torch.ones(1), "w": torch.ones(1)}, "m.safetensors"
    )
    for order in (["new.pt", "m.safetensors"], ["m.safetensors", "new.pt"]):
        assert run("convert", *order, "m.pt", "--merge").code == 0
        found = torch.load("m.pt", weights_only=True)
        bias = torch.full((3,), 9.0) if order[0] == "new.pt" else old["model"]["0.bias"]
        model = {**old["model"], "0.bias": bias, "9.bias": torch.ones(1)}
        assert same(found, {**old, "model": model, "w": torch.ones(1)})


def test_what_is_split_is_whole_when_it_is_merged(old, run):
    """Each module's file has what is no tensor below it, `_root` the rest, and all of them make the checkpoint again."""
    assert run("convert", "new.pt", "parts", "--split").err == ""
    parts = sorted(Path("parts").iterdir())
    assert [part.name for part in parts] == ["_root.pt", "model.pt", "optimizer.pt"]
    assert torch.load(parts[0], weights_only=True) == {"epoch": 3, "config": old["config"]}
    assert same(torch.load(parts[2], weights_only=True), {"optimizer": old["optimizer"]})
    assert run("convert", *parts, "again.pt", "--merge").code == 0
    assert same(torch.load("again.pt", weights_only=True), old)


def test_numbers_that_are_keys_become_text_in_a_folder(old, run):
    """DCP has only text for keys, as torch's own planner: that is said, and refused with --strict."""
    said = "dcp has no place for keys that are no text, and become text: optimizer.state.0, optimizer.state.1, "
    done = run("convert", "new.pt", "d", "--to", "dcp", "-f", "names")
    assert (done.code, done.err) == (0, f"{said}optimizer.state.2 and 1 more\n")
    assert run("convert", "new.pt", "e", "--to", "dcp", "--strict").code == 2
    assert not Path("e").exists()


def test_what_is_at_the_root_need_be_no_dict(tmp_path, monkeypatch, run):
    """A tensor alone, a list, and a tuple in which tensors are: names are those that the file had."""
    monkeypatch.chdir(tmp_path)
    roots = {
        "tensor": (torch.ones(3), {"tensor": torch.ones(3)}),
        "list": ([torch.ones(2), {"a": torch.zeros(1)}, 3], {"0": torch.ones(2), "1": {"a": torch.zeros(1)}, "2": 3}),
    }
    for name, (value, expected) in roots.items():
        torch.save(value, f"{name}.pt")
        assert run("convert", f"{name}.pt", name, "--to", "dcp", "--strict").code == 0
        assert run("convert", name, "back.pt").code == 0
        assert same(torch.load("back.pt"), expected)
    torch.save({"t": (torch.ones(2), 5)}, "tuple.pt")
    done = run("convert", "tuple.pt", "tuple", "--to", "dcp", "-f", "names")
    assert done.err == "dcp has no place for tuples with tensors, and makes lists of them: t\n"
    torch.save({"w": torch.ones(1)}, "w.pt")
    assert run("convert", "tuple.pt", "w.pt", "both.pt", "--merge").code == 0
    assert same(torch.load("both.pt"), {"t": (torch.ones(2), 5), "w": torch.ones(1)})


def test_an_object_is_told_and_left_out(tmp_path, monkeypatch, run):
    """What is of a class of its own is not put where loading it would run that class's code; --strict refuses it."""
    monkeypatch.chdir(tmp_path)
    value = {"w": torch.ones(2), "args": argparse.Namespace(lr=1), "kept": collections.Counter("aab"), "n": [1]}
    torch.save(value, "x.pt")
    done = run("convert", "x.pt", "d", "--to", "dcp", "-f", "names")
    assert (done.code, done.err) == (0, "dcp has no place for objects of classes of their own: args\n")
    dcp_to_torch_save("d", "back.pt")
    assert same(torch.load("back.pt"), {"w": torch.ones(2), "kept": {"a": 2, "b": 1}, "n": [1]})
    done = run("convert", "x.pt", "e", "--to", "dcp", "--strict")
    assert done.err == (
        "error: dcp has no place for objects of classes of their own: args\n\nhint: without --strict it is left out\n"
    )
    assert run("convert", "x.pt", "e", "--to", "dcp", "--strict", "--drop", "args").code == 0


def test_a_value_that_was_not_written_is_noticed(tmp_path, monkeypatch, run):
    """What is no tensor is read again, too, before the file takes its place; one NaN is as good as another."""
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(2), "epoch": 3, "loss": float("nan")}, "x.pt")
    assert run("convert", "x.pt", "d", "--to", "dcp").code == 0
    real = dcp_writer._write_value
    monkeypatch.setattr(dcp_writer, "_write_value", lambda value, file: real(4 if value == 3 else value, file))
    done = run("convert", "x.pt", "e", "--to", "dcp")
    said = "e: what was written is not what was planned: epoch is missing or another value"
    assert (done.code, done.err, Path("e").exists()) == (2, f"error: {said}\n", False)


def test_two_things_do_not_stand_in_one_place(tmp_path, monkeypatch, run):
    """A tensor renamed to what is no tensor is refused, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(2), "epoch": 3}, "x.pt")
    done = run("convert", "x.pt", "d", "--to", "dcp", "--rename", "w=>epoch")
    assert done.err == (
        "error: epoch would stand where what is no tensor does\n\n"
        "hint: --drop leaves it out; --rename gives the tensor another name\n"
    )
    assert not Path("d").exists()
    assert run("convert", "x.pt", "d", "--to", "dcp", "--rename", "w=>epoch", "--drop", "epoch").code == 0
