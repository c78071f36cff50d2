"""`read(convert(x)) == x`: names, dtypes, shapes, values, ties and metadata, for every pair of formats."""

from __future__ import annotations

import argparse
import json
import shlex
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import IN_ALL, IN_TORCH_TOO, contents, metadata, read, state_dicts, ties
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file, save_model

from paramctl import api
from paramctl.formats import whole
from paramctl.formats.targets import TARGETS
from program import MODELS

laws = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
KEEP_TIES = [name for name, target in TARGETS.items() if target.ties]
NAMES = {name: f"m{target.suffixes[0] if target.suffixes else ''}" for name, target in TARGETS.items()}
PAIRS = [(a, b) for a in TARGETS for b in TARGETS]


@pytest.fixture
def folder(tmp_path_factory):
    """A new folder each time it is asked for."""
    return lambda: tmp_path_factory.mktemp("law")


def converted(source: Path, folder: Path, target: str, **steps: object) -> Path:
    out = folder / f"{source.name}.{NAMES[target]}"
    api.open(str(source)).convert(str(out), to=target, **steps).write(str(out))
    return out


@pytest.mark.parametrize(("first", "second"), PAIRS)
@laws
@given(st.data())
def test_every_format_gives_back_what_it_was_given(first, second, folder, data):
    """From torch through two formats nothing changes: names, dtypes, shapes, values; ties where both formats have them."""
    here = folder()
    dtypes = IN_ALL if "npz" in (first, second) else IN_ALL + IN_TORCH_TOO
    torch.save(data.draw(state_dicts(dtypes)), here / "x.pt")
    before = read(here / "x.pt")
    once = converted(here / "x.pt", here, first)
    twice = converted(once, here, second)
    for path, kept in ((once, first in KEEP_TIES), (twice, {first, second} <= set(KEEP_TIES))):
        after = read(path)
        assert contents(after) == contents(before)
        assert ties(after) == (ties(before) if kept else set())
    assert metadata(read(twice)) == metadata(read(once)) == {}


@pytest.mark.parametrize("target", [name for name, target in TARGETS.items() if target.holds_metadata])
@laws
@given(said=st.dictionaries(st.text(min_size=1, max_size=5), st.text(min_size=1, max_size=5), max_size=4))
def test_metadata_survives(target, folder, said):
    """Text by keys, of any characters, is the same in every format that has a place for it."""
    here = folder()
    said = {k: v for k, v in said.items() if _is_utf8(k + v) and k not in ("w w", "__metadata__") and v != "w w"}
    save_file({"w w": torch.ones(2)}, here / "x.safetensors", metadata=said or None)
    once = converted(here / "x.safetensors", here, target)
    again = converted(once, here, "safetensors")
    with safe_open(again, "pt") as opened:
        assert {k: v for k, v in (opened.metadata() or {}).items() if (k, v) != ("format", "pt")} == {
            k: v for k, v in said.items() if (k, v) != ("format", "pt")
        }


def _is_utf8(text: str) -> bool:
    return text.encode("utf-8", "replace").decode() == text


@pytest.mark.parametrize("target", TARGETS)
@laws
@given(st.data())
def test_renaming_keeps_every_byte(target, folder, data):
    """Under new names everything is as it was, and the old names come back."""
    here = folder()
    torch.save(data.draw(state_dicts(IN_ALL)), here / "x.pt")
    before = contents(read(here / "x.pt"))
    once = converted(
        here / "x.pt", here, target, rename=["=>model.", "re:w=>W"] if any("w" in n for n in before) else ["=>model."]
    )
    new = {f"model.{name}".replace("w", "W"): value for name, value in before.items()}
    assert contents(read(once)) == new


@pytest.mark.parametrize("target", TARGETS)
def test_the_same_command_gives_the_same_bytes(target, tmp_path):
    """Two conversions of one file are the same, bit for bit."""
    torch.save({"a": torch.ones(3), "b": torch.arange(4)}, tmp_path / "x.pt")
    made = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        out = converted(tmp_path / "x.pt", tmp_path / folder, target)
        files = sorted(out.rglob("*")) if out.is_dir() else [out]
        made.append([(file.name, file.read_bytes()) for file in files])
    assert made[0] == made[1]


# ----------------------------------------------------------------------------- read by others


@pytest.fixture
def tied(tmp_path):
    """A state dict in which two names are one tensor, with a slice and a transpose of another."""
    torch.manual_seed(0)
    weight, other = torch.randn(8, 4), torch.randn(6, 6)
    state = {"head.weight": weight, "embed.weight": weight, "all": other, "part": other[2:4], "turned": other.t()}
    torch.save(state, tmp_path / "tied.pt")
    return tmp_path / "tied.pt", state


def test_safetensors_reads_what_was_written(run, tied, tmp_path):
    """`load_file` gives the tensors, and the aliases are those that `load_model` understands."""
    path, state = tied
    assert run("convert", path, tmp_path / "m.safetensors").code == 0
    found = load_file(tmp_path / "m.safetensors")
    assert set(found) == set(state) - {"head.weight"}
    assert all(torch.equal(found[name], state[name]) for name in found)

    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Linear(4, 8, bias=False)
            self.head = torch.nn.Linear(4, 8, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    save_model(model, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert run("convert", tmp_path / "model.pt", tmp_path / "ours.safetensors").code == 0
    assert parts(tmp_path / "ours.safetensors") == parts(tmp_path / "theirs.safetensors")
    assert load_model(Tied(), tmp_path / "ours.safetensors") == (set(), [])


def parts(path: Path) -> tuple[dict, bytes]:
    """Header and data of a safetensors file: the library writes its metadata in any order."""
    raw = path.read_bytes()
    nbytes = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + nbytes]), raw[8 + nbytes :]


def test_numpy_reads_what_was_written(run, tmp_path):
    """`numpy.load` gives the arrays, without pickle."""
    state = {"a": torch.randn(2, 3), "b.c": torch.arange(4), "s": torch.tensor(True), "e": torch.zeros(0, 3)}
    torch.save(state, tmp_path / "x.pt")
    assert run("convert", tmp_path / "x.pt", tmp_path / "x.npz").code == 0
    with np.load(tmp_path / "x.npz", allow_pickle=False) as found:
        assert list(found) == list(state)
        for name, tensor in state.items():
            np.testing.assert_array_equal(found[name], tensor.numpy())
            assert found[name].dtype == tensor.numpy().dtype


def test_shards_are_the_hubs(run, tmp_path):
    """Greedy, in order, a large tensor by itself; the index maps every tensor to a shard that has it, and sums up."""
    state = {f"h.{i}.w": torch.full((n,), float(i)) for i, n in enumerate([5, 5, 30, 5, 5, 11])}
    torch.save(state, tmp_path / "x.pt")
    assert run("convert", tmp_path / "x.pt", tmp_path / "hub", "--shard", "80B").code == 0
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / "hub" / "model.safetensors.index.json").read_text())
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == [*shards, "model.safetensors.index.json"]
    held = [set(load_file(tmp_path / "hub" / shard)) for shard in shards]
    assert held == [{"h.2.w"}, {"h.0.w", "h.1.w", "h.3.w", "h.4.w"}, {"h.5.w"}]
    assert index["metadata"] == {"total_size": 4 * 61}
    assert index["weight_map"] == {name: shard for shard, some in zip(shards, held, strict=True) for name in some}
    assert contents(read(tmp_path / "hub")) == contents(read(tmp_path / "x.pt"))


def test_one_shard_is_a_lone_file(run, tmp_path):
    """What fits one shard is model.safetensors, without an index."""
    torch.save({"w": torch.ones(4)}, tmp_path / "x.pt")
    assert run("convert", tmp_path / "x.pt", tmp_path / "hub", "--shard", "5GB").code == 0
    assert [path.name for path in (tmp_path / "hub").iterdir()] == ["model.safetensors"]


def test_torch_loads_what_was_written(run, tied, tmp_path):
    """From a torch file by way of safetensors the tensors are equal and tied; straight to torch the views are views too."""
    path, state = tied
    assert run("convert", path, tmp_path / "m.safetensors").code == 0
    assert run("convert", tmp_path / "m.safetensors", tmp_path / "back.pt").code == 0
    found = torch.load(tmp_path / "back.pt", weights_only=True)
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert found["head.weight"].data_ptr() == found["embed.weight"].data_ptr()
    assert run("convert", path, tmp_path / "again.pt").code == 0
    again = torch.load(tmp_path / "again.pt", weights_only=True, mmap=True)
    assert list(again) == list(state)
    assert again["part"].untyped_storage().data_ptr() == again["all"].untyped_storage().data_ptr()
    assert again["turned"].stride() == state["turned"].stride()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_dcp_loads_what_was_written(run, tied, tmp_path):
    """`torch.distributed.checkpoint` loads the folder into a state dict, and turns it into a torch file."""
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    path, state = tied
    state |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(5), "half": torch.ones(3, dtype=torch.bfloat16)}
    state["layout"] = torch.ones(2)  # a word of the metadata too
    torch.save(state, path)
    assert run("convert", path, tmp_path / "d", "--to", "dcp").code == 0
    into = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    dcp.load(into, checkpoint_id=str(tmp_path / "d"), no_dist=True)
    assert all(torch.equal(into[name], state[name]) for name in state)
    dcp_to_torch_save(tmp_path / "d", tmp_path / "back.pt")
    assert run("convert", tmp_path / "d", tmp_path / "e", "--to", "dcp").code == 0
    found = torch.load(tmp_path / "back.pt")
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert contents(read(tmp_path / "e")) == contents(read(path))
    size = sum(file.stat().st_size for file in (tmp_path / "d").iterdir())
    assert size < 9 * 2200, "what is tied is there once"


# ----------------------------------------------------------------------------- parts and several


def test_what_is_split_is_merged_again(run, tmp_path):
    """A file for each module at the top; all of them merged are what was split."""
    state = {"a.w": torch.ones(2), "b.w": torch.zeros(3), "b.c.w": torch.arange(4), "lone": torch.ones(1)}
    torch.save(state, tmp_path / "x.pt")
    assert run("convert", tmp_path / "x.pt", tmp_path / "parts", "--split").code == 0
    parts = sorted((tmp_path / "parts").iterdir())
    assert [part.name for part in parts] == ["_root.pt", "a.pt", "b.pt"]
    assert set(torch.load(parts[2])) == {"b.w", "b.c.w"}
    assert run("convert", *parts, tmp_path / "y.pt", "--merge").code == 0
    assert contents(read(tmp_path / "y.pt")) == contents(read(tmp_path / "x.pt"))


def test_of_several_models_the_last_wins_and_that_is_said(run, tmp_path):
    """Merged, a name that two have is that of the later one; the storages of one do not mix with those of the other."""
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    shared = torch.arange(4.0)
    torch.save({"a": torch.zeros(2), "b": torch.zeros(3)}, one)
    torch.save({"b": shared, "c": shared}, two)
    done = run("convert", one, two, tmp_path / "m.safetensors", "--merge", "-f", "names")
    assert (done.code, done.out) == (0, "a\nb\nc\n")
    assert done.err == f"b of {two} replaces that of {one}\n"
    found = read(tmp_path / "m.safetensors")
    assert ties(found) == {frozenset({"b", "c"})}
    assert {name: param.shape for name, param in found.params.items()} == {"a": (2,), "b": (4,), "c": (4,)}


def test_steps_follow_each_other(run, tmp_path):
    """--at, --select, --drop, --rename, --dtype and --metadata in one command, each seen in the plan and in the file."""
    model = {"module.w": torch.randn(4), "module.b": torch.ones(2), "module.n": torch.arange(3), "old": torch.ones(1)}
    torch.save({"model": model, "optimizer": {"state": torch.ones(4)}, "epoch": 3}, tmp_path / "x.pt")
    words = [
        "--at",
        "model",
        "-s",
        "module",
        "--drop",
        "*.b",
        "--rename",
        "module.=>",
        "--dtype",
        "bf16",
        "--metadata",
        "by=me",
    ]
    done = run("convert", tmp_path / "x.pt", tmp_path / "y.safetensors", *words, "-f", "json")
    assert (done.code, done.err) == (0, "")
    assert [(row["name"], row["dtype"], row["action"], row["detail"]) for row in done.rows] == [
        ("w", "bfloat16", "cast", "float32 → bfloat16, from module.w"),
        ("n", "int64", "rename", "from module.n"),
        ("old", "float32", "drop", "not selected"),
        ("module.b", "float32", "drop", "--drop *.b"),
    ]
    found = load_file(tmp_path / "y.safetensors")
    assert torch.equal(found["w"], model["module.w"].to(torch.bfloat16))
    assert torch.equal(found["n"], model["module.n"])
    assert metadata(read(tmp_path / "y.safetensors")) == {"by": "me"}


def test_floats_are_cast_and_nothing_else(run, tmp_path):
    """Masks, counters and complex numbers stay as they are, bit for bit."""
    state = {"m": torch.ones(2, dtype=torch.bool), "n": torch.arange(3), "c": torch.ones(2, dtype=torch.complex64)}
    torch.save(
        state | {"f": torch.ones(2, dtype=torch.float64), "h": torch.ones(2, dtype=torch.float16)}, tmp_path / "x.pt"
    )
    assert run("convert", tmp_path / "x.pt", tmp_path / "y.pt", "--dtype", "fp32").code == 0
    found = torch.load(tmp_path / "y.pt")
    assert all(torch.equal(found[name], state[name]) and found[name].dtype == state[name].dtype for name in state)
    assert {found["f"].dtype, found["h"].dtype} == {torch.float32}


def test_views_are_cast_together(run, tied, tmp_path):
    """Cast in a torch file, a slice is still a slice of the tensor that it was of."""
    path, state = tied
    assert run("convert", path, tmp_path / "y.pt", "--dtype", "bf16").code == 0
    found = torch.load(tmp_path / "y.pt")
    assert all(torch.equal(found[name], state[name].to(torch.bfloat16)) for name in state)
    assert found["part"].untyped_storage().data_ptr() == found["all"].untyped_storage().data_ptr()


def test_a_slice_need_not_drag_its_storage(run, tmp_path):
    """With --contiguous a slice of a large tensor is as small as it looks, and ties stay."""
    part = torch.zeros(10_000)[:4]
    torch.save({"part": part, "again": part}, tmp_path / "x.pt")
    assert run("convert", tmp_path / "x.pt", tmp_path / "all.pt").code == 0
    done = run("convert", tmp_path / "x.pt", tmp_path / "y.pt", "--contiguous", "-f", "json")
    assert [row["detail"] for row in done.rows] == ["cut out of 40,000 bytes"] * 2
    assert (tmp_path / "all.pt").stat().st_size > 40_000
    assert (tmp_path / "y.pt").stat().st_size < 4_000
    found = torch.load(tmp_path / "y.pt")
    assert found["part"].data_ptr() == found["again"].data_ptr()
    assert found["part"].untyped_storage().nbytes() == 16


def test_blocks_become_numbers(run, tmp_path):
    """A tensor of ggml's blocks is refused as it is, and with --dtype it is the numbers that it stands for."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    path = tmp_path / "x.gguf"
    blocks = quants.quantize(np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32), GGMLQuantizationType.Q8_0)
    writer = GGUFWriter(str(path), "test")
    writer.add_tensor("w", blocks, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused = run("convert", path, tmp_path / "y.safetensors")
    assert refused.code == 2
    assert "w is q8_0, which safetensors cannot hold" in refused.err
    assert run("convert", path, tmp_path / "y.safetensors", "--dtype", "fp32").code == 0
    np.testing.assert_array_equal(
        load_file(tmp_path / "y.safetensors")["w"], quants.dequantize(blocks, GGMLQuantizationType.Q8_0)
    )


# ----------------------------------------------------------------------------- what is told, and what is refused


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with a training checkpoint, and a file that is tied."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("paramctl.source._stdin_has_data", lambda: False)
    weight = torch.full((2, 2), 1e5)
    torch.save({"model": {"a.w": weight, "b.w": weight}, "epoch": 3, "lr": 0.1}, "train.pt")
    torch.save({"0.weight": torch.ones(2, 2), "0.bias": torch.ones(2)}, "model.pt")
    torch.save({"w": torch.ones(2, dtype=torch.bfloat16), "c": torch.ones(2, dtype=torch.complex128)}, "odd.pt")
    save_file({"w": torch.ones(2)}, "m.safetensors", metadata={"author": "me"})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("{}")
    return tmp_path


ERRORS = {
    "convert model.pt out": "out: of which format?\n\nhint: .safetensors, .pt, .pth, .bin, .ckpt, .npz, or --to safetensors or torch-zip or npz or dcp or sharded",
    "convert model.pt out.onnx": "out.onnx: .onnx is no format that is written\n\nhint: .safetensors, .pt, .pth, .bin, .ckpt, .npz, or --to safetensors or torch-zip or npz or dcp or sharded",
    "convert model.pt out.pt --to npz": "out.pt: --to npz, and its suffix says torch-zip",
    "convert model.pt --to gguf": "--to gguf: no format that is written\n\nhint: safetensors, torch-zip, npz, dcp, sharded",
    "convert model.pt model.pt": "model.pt: it is what is read\n\nhint: --in-place writes over a file",
    "convert model.pt ./model.pt --dtype bf16": "./model.pt: it is what is read\n\nhint: --in-place writes over a file",
    "convert model.pt m.safetensors o.pt": "model.pt and m.safetensors are two models to read\n\nhint: --merge makes one of them, of which the last wins",
    "convert model.pt o.pt --merge": "--merge takes two models or more, and an OUT\n\nhint: paramctl convert A B OUT --merge",
    "convert model.pt o.pt --drop '*'": "0 tensors would be left\n\nhint: nothing is written without any",
    "convert model.pt o.pt --drop 1": "model.pt: no parameter and no module 1\n\nhint: it has 0.weight, 0.bias",
    "convert model.pt o.pt --rename 're:weight|bias=>x'": "0.weight and 0.bias would both be called 0.x\n\nhint: --drop one of them",
    "convert model.pt o.pt --rename '0.weight=>'": "the new name of 0.weight is empty",
    "convert model.pt o.pt --rename '1.=>'": "1.=> renames nothing\n\nhint: there is 0.weight",
    "convert model.pt o.pt --dtype int8": "--dtype int8: tensors are cast between floats\n\nhint: float64, float32, float16, bfloat16, float8_e4m3fn",
    "convert model.pt o.pt --dtype bf61": "--dtype bf61: no such dtype\n\nhint: bf16 or f64 or f16?",
    "convert model.pt o.pt --metadata author": "--metadata author: not of the form KEY=TEXT",
    "convert model.pt o.pt --shard 5GB": "o.pt: --to sharded, and its suffix says torch-zip",
    "convert model.pt o --shard 5GB --to npz": "--shard makes a folder of safetensors, and OUT is npz\n\nhint: name a folder",
    "convert model.pt o --shard big": "--shard big: no size\n\nhint: 5GB, 500MB, 2GiB",
    "convert model.pt - --to dcp": "a folder cannot be written to standard output\n\nhint: name one",
    "convert full --in-place --dtype bf16": "full: --in-place, and it is no file\n\nhint: name an OUT",
    "convert model.pt m.safetensors --in-place": "--in-place takes one model, and here are 2",
    "convert model.pt o --split --to dcp": "--split makes files, and dcp is a folder\n\nhint: --to safetensors",
    "convert odd.pt o.npz": "w is bfloat16, which npz cannot hold\n\nhint: --dtype float32 writes their numbers; --drop leaves them out",
    "convert odd.pt o.safetensors": "c is complex128, which safetensors cannot hold\n\nhint: --drop leaves them out",
    "convert model.pt full --to dcp": "full: a folder that is not empty\n\nhint: name a new one; convert --force replaces it as a whole",
    "convert model.pt m.safetensors/x.pt": "m.safetensors/x.pt: cannot be written: not a directory",
    "convert model.pt full/none/x.pt": None,
    "convert train.pt o.pt --dtype fp16 --strict": None,
}  # fmt: skip


@pytest.mark.parametrize("line", ERRORS)
def test_what_cannot_be_done_is_said(line, here, run):
    """The whole of stderr is this text, the status is 2, and nothing was written."""
    before = sorted(here.rglob("*"))
    done = run(*shlex.split(line))
    assert (done.code, done.out) == (2, "")
    if ERRORS[line] is not None:
        assert done.err == f"error: {ERRORS[line]}\n"
    assert len(done.err[done.err.index("error: ") :].splitlines()) <= 3
    assert sorted(here.rglob("*")) == before


def test_what_a_format_cannot_hold_is_told(here, run):
    """It is on stderr before anything is written; with --strict it is an error, and nothing is written."""
    done = run("convert", "train.pt", "o.npz", "-f", "names")
    assert (done.code, done.out) == (0, "model.a.w\nmodel.b.w\n")
    assert done.err == (
        "npz has no place for what is no tensor: epoch, lr\n"
        "npz has no place for ties: model.a.w and model.b.w become tensors of their own\n"
    )
    done = run("convert", "train.pt", "p.npz", "--strict")
    assert done.code == 2
    assert done.err == (
        "error: npz has no place for what is no tensor: epoch, lr\n\nhint: without --strict it is left out\n"
    )
    assert not (here / "p.npz").exists()
    assert run("convert", "m.safetensors", "o.npz").err == "npz has no place for metadata: author\n"


def test_overflow_is_told(here, run):
    """Numbers beyond the type are counted; --strict and --max-error refuse, and a dry run tells the error."""
    done = run("convert", "train.pt", "o.safetensors", "--dtype", "fp16", "--at", "model")
    assert (done.code, done.err) == (0, "4 numbers overflow, in a.w\n")
    done = run("convert", "train.pt", "p.safetensors", "--dtype", "fp16", "--at", "model", "--strict")
    assert done.err == "error: a.w: 4 of its numbers overflow\n\nhint: a wider --dtype holds them\n"
    done = run("convert", "train.pt", "p.safetensors", "--dtype", "fp16", "--at", "model", "--max-error", "1")
    assert done.err == "error: a.w: 4 of its numbers overflow\n\nhint: a wider --dtype holds them\n"
    torch.save({"w": torch.tensor([1.0, 1.001])}, "w.pt")
    done = run("convert", "w.pt", "p.pt", "--dtype", "bf16", "--max-error", "1e-4")
    assert done.err == (
        "error: w: its relative error would be 0.000707, and 0.0001 is the most there may be\n\n"
        "hint: a wider --dtype, or a greater --max-error\n"
    )
    done = run("convert", "w.pt", "--dtype", "bf16", "-f", "json")
    assert done.rows[0]["detail"] == "float32 → bfloat16: relative error 0.00071"
    assert done.err == "nothing was written; a second path is written to\n"
    assert not (here / "p.pt").exists()


def test_a_dry_run_writes_nothing(here, run):
    """The plan is that of the conversion, and nothing is there."""
    before = sorted(here.rglob("*"))
    plan = run("convert", "train.pt", "o.safetensors", "--dry-run", "-f", "json")
    assert plan.err.endswith("nothing was written: --dry-run\n")
    assert sorted(here.rglob("*")) == before
    assert run("convert", "train.pt", "o.safetensors", "-f", "json").rows == plan.rows


def test_a_folder_is_replaced_whole(here, run):
    """With --force what was in the folder is gone, and what is new is there; without, nothing changes."""
    assert run("convert", "model.pt", "full", "--to", "sharded", "--force").code == 0
    assert [path.name for path in (here / "full").iterdir()] == ["model.safetensors"]
    assert not [path for path in here.iterdir() if "paramctl" in path.name]


def test_a_second_writer_is_kept_apart(here, run):
    """While one writes, another is refused; what a killed one left is taken away."""
    with whole.replacing("o.pt") as file:
        file.write(b"unfinished")
        done = run("convert", "model.pt", "o.pt")
        assert (done.code, done.err) == (
            2,
            "error: o.pt: another process is writing it\n\nhint: wait until it has ended\n",
        )
        litter = next(path for path in here.iterdir() if path.name.endswith(".paramctl"))
        file.write(b"")
    litter.write_bytes(b"left by a process that was killed")
    assert run("convert", "model.pt", "o.pt").code == 0
    assert not litter.exists()
    folder = litter.with_name(whole._beside(here / "d").name)
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"half")
    assert run("convert", "model.pt", "d", "--to", "sharded").code == 0
    assert not folder.exists()


@pytest.mark.parametrize(("numel", "more"), [(4, ()), (1 << 18, ()), (1 << 18, ("--dtype", "bf16"))])
def test_a_written_file_that_is_not_the_plan_is_refused(numel, more, here, run, monkeypatch):
    """Where what is read again differs, copied or cast, the old file stays; --no-verify does not look."""
    from paramctl.formats import safetensors_writer

    torch.save({"0.bias": torch.zeros(3), "0.weight": torch.ones(numel)}, "large.pt")
    (here / "o.safetensors").write_bytes(b"old")
    real = safetensors_writer.write

    def wrong(made, file, pourer):
        real(made, file, pourer)
        file.seek(-1, 2)
        file.write(b"\x01")
        file.flush()

    monkeypatch.setattr(safetensors_writer, "write", wrong)
    done = run("convert", "large.pt", "o.safetensors", *more)
    said = "o.safetensors: what was written is not what was planned: 0.weight has other values"
    assert (done.code, done.err) == (2, f"error: {said}\n")
    assert (here / "o.safetensors").read_bytes() == b"old"
    assert run("convert", "large.pt", "o.safetensors", "--no-verify", *more).code == 0


def test_in_place(here, run):
    """--in-place writes over the file, in its own format, and keeps its mode."""
    Path("m.safetensors").chmod(0o640)
    assert run("convert", "m.safetensors", "--in-place", "--rename", "w=>v", "--dtype", "fp16").code == 0
    found = read("m.safetensors")
    assert {name: param.dtype.name for name, param in found.params.items()} == {"v": "float16"}
    assert found.metadata == {"author": "me"}
    assert Path("m.safetensors").stat().st_mode & 0o777 == 0o640


def test_standard_output(here, process):
    """- is standard output, and what comes out is the file."""
    done = process("convert", here / "model.pt", "-", "--to", "safetensors")
    assert (done.returncode, done.stderr) == (0, b"")
    (here / "o.safetensors").write_bytes(done.stdout)
    assert contents(read("o.safetensors")) == contents(read("model.pt"))


def test_a_definition_is_written_as_its_state_dict(here, run):
    """A model's definition is converted as it is built, ties included."""
    assert run("convert", MODELS / "tied.py", "t.safetensors").code == 0
    assert ties(read("t.safetensors")) == {frozenset({"2.weight", "4.weight"}), frozenset({"2.bias", "4.bias"})}


# ----------------------------------------------------------------------------- torch to torch


@pytest.fixture
def training(tmp_path, monkeypatch):
    """A training checkpoint: a model, its optimizer, and what is no tensor."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    found = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
    }
    torch.save(found, "train.pt")
    torch.save(model, "whole.pt")
    return found


def test_the_rest_of_a_training_checkpoint_stays(run, training):
    """Renamed and cast, the model is as told, and everything else, classes included, is as it was."""
    done = run("convert", "train.pt", "o.pt", "--rename", "model.0=>model.first", "-f", "json")
    assert (done.code, done.err) == (0, "")
    found = torch.load("o.pt", weights_only=False)
    assert list(found) == list(training)
    assert (found["epoch"], found["args"]) == (3, training["args"])
    assert str(found["optimizer"]) == str(training["optimizer"])
    assert found["model"]["1.num_batches_tracked"] == 1
    assert torch.equal(found["model"]["first.weight"], training["model"]["0.weight"])
    assert found["model"]._metadata.keys() == {"", "first", "1", "2"}


def test_the_optimizer_is_stripped(run, training):
    """--drop optimizer takes all of it out, what is no tensor included, and the file is that much smaller."""
    assert run("convert", "train.pt", "o.pt", "--drop", "optimizer").code == 0
    found = torch.load("o.pt", weights_only=False)
    assert list(found) == ["model", "epoch", "args"]
    assert Path("o.pt").stat().st_size < Path("train.pt").stat().st_size / 1.5
    assert run("convert", "o.pt", "--in-place", "--at", "model").code == 0
    found = torch.load("o.pt", weights_only=True)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in training["model"].items()
    }


def test_what_is_no_tensor_can_be_dropped(run, training):
    """--drop takes a path of what is no tensor, too; dropped so it is not told as lost."""
    assert run("convert", "train.pt", "o.pt", "--drop", "epoch", "--drop", "args").code == 0
    assert list(torch.load("o.pt", weights_only=True)) == ["model", "optimizer"]
    words = ["--drop", "optimizer", "--drop", "epoch", "--drop", "args", "--strict"]
    done = run("convert", "train.pt", "o.safetensors", *words)
    assert (done.code, done.err) == (0, "")
    assert set(load_file("o.safetensors")) == {f"model.{name}" for name in training["model"]}


def test_tensors_without_values_stay(run, tmp_path):
    """A tensor of the meta device is still one, though nobody can read it."""
    state = {"w": torch.ones(2), "m": torch.empty(3, device="meta")}
    torch.save(state, tmp_path / "x.pt")
    assert run("convert", tmp_path / "x.pt", tmp_path / "y.pt", "--rename", "w=>v").code == 0
    found = torch.load(tmp_path / "y.pt")
    assert (found["v"].tolist(), found["m"].device.type, found["m"].shape) == ([1, 1], "meta", (3,))
    done = run("convert", tmp_path / "x.pt", tmp_path / "y.safetensors")
    assert (done.code, done.err) == (2, "error: m: it has a shape, and no values\n")


@pytest.mark.parametrize("words", [("--dtype", "bf16"), ("--drop", "0.bias"), ("--contiguous",)], ids=" ".join)
def test_a_pickled_module_is_still_a_module(run, training, words):
    """Cast or with a tensor less, a whole pickled module loads as one, with its classes and its buffers."""
    assert run("convert", "whole.pt", "o.pt", *words).code == 0
    model = torch.load("o.pt", weights_only=False)
    assert [type(child).__name__ for child in model] == ["Linear", "BatchNorm1d", "Linear"]
    cast = torch.bfloat16 if "bf16" in words else torch.float32
    assert model[0].weight.dtype == cast
    assert model[1].num_batches_tracked.dtype == torch.int64
    assert torch.equal(model[0].weight, training["model"]["0.weight"].to(cast))
    assert isinstance(model[0].weight, torch.nn.Parameter)


def test_nothing_to_do_is_a_copy(run, training):
    """A torch file converted to a torch file is the same bytes, an old one's too."""
    Path("odd.pt").write_bytes(Path("train.pt").read_bytes())
    with zipfile.ZipFile("odd.pt", "a") as archive:
        archive.writestr("train/notes", "of ours")
    for name in ("train.pt", "odd.pt"):
        assert run("convert", name, "o.pt").code == 0
        assert Path("o.pt").read_bytes() == Path(name).read_bytes()
    assert run("convert", "odd.pt", "o.pt", "--rename", "model.0=>model.first").code == 0
    with zipfile.ZipFile("o.pt") as archive:
        assert archive.read("train/notes") == b"of ours"
        assert archive.testzip() is None


def test_a_tie_in_a_training_checkpoint(run, training):
    """Tied in place, two tensors are one, and the rest of the checkpoint is there."""
    assert run("tie", "train.pt", "model.1.weight", "model.0.bias", "--keep", "model.0.bias", "--in-place").code == 0
    found = torch.load("train.pt", weights_only=False)
    assert found["model"]["1.weight"].data_ptr() == found["model"]["0.bias"].data_ptr()
    assert torch.equal(found["model"]["1.weight"], training["model"]["0.bias"])
    assert (found["epoch"], str(found["optimizer"])) == (3, str(training["optimizer"]))


def test_many_conflicts_are_counted(run, tmp_path):
    """Ten are told by name, and of the others how many there are."""
    state = {f"w{i:02}": torch.ones(1) for i in range(13)}
    for name in ("a.pt", "b.pt"):
        torch.save(state, tmp_path / name)
    done = run("convert", tmp_path / "a.pt", tmp_path / "b.pt", tmp_path / "c.pt", "--merge")
    lines = done.err.splitlines()
    assert (done.code, len(lines), lines[-1]) == (0, 11, "and 3 more are replaced")


def test_a_value_whose_key_has_a_dot_can_be_dropped(run, tmp_path):
    """A path of what is no tensor leads through keys as they are."""
    torch.save({"w": torch.ones(1), "a.b": {"c": 1, "d": 2}}, tmp_path / "x.pt")
    assert run("convert", tmp_path / "x.pt", tmp_path / "y.pt", "--drop", "a.b.c").code == 0
    assert torch.load(tmp_path / "y.pt")["a.b"] == {"d": 2}
