"""`tie` and `untie`: what is made one, what is made several again, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from paramctl import api, formats, sharing, values
from paramctl.source import resolve

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
laws = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
SUFFIXES = (".safetensors", ".pt")


def read(path):
    return formats.read(resolve(str(path)))


def ties(path):
    """The names of the very same elements."""
    groups = sharing.groups(read(path).params.values())
    return [list(group.names) for group in groups if group.relation == "same"]


def contents(path):
    return {name: values.array(param).tolist() for name, param in read(path).params.items()}


def save(path, state):
    if path.suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path, metadata={"author": "me"})


@pytest.mark.parametrize("suffix", SUFFIXES)
@laws
@given(data=st.data())
def test_untie_undoes_tie(suffix, data, tmp_path_factory):
    """Equal tensors tied and untied are what they were; everything else is untouched throughout."""
    folder = tmp_path_factory.mktemp("law")
    names = data.draw(st.lists(st.text("ab.", min_size=1, max_size=4), min_size=3, max_size=6, unique=True))
    state = {name: torch.arange(3.0) for name in names[:-1]} | {names[-1]: torch.zeros(2)}
    chosen = data.draw(st.lists(st.sampled_from(names[:-1]), min_size=2, unique=True))
    paths = [folder / f"{word}{suffix}" for word in ("x", "tied", "untied")]
    save(paths[0], state)
    api.open(str(paths[0])).select(*chosen).tie().write(str(paths[1]))
    assert [sorted(group) for group in ties(paths[1])] == [sorted(chosen)]
    api.open(str(paths[1])).select(*chosen).untie().write(str(paths[2]))
    assert ties(paths[2]) == []
    assert contents(paths[0]) == contents(paths[1]) == contents(paths[2])
    assert read(paths[2]).metadata == read(paths[0]).metadata


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_one_that_is_kept_wins(run, tmp_path, suffix):
    """Tensors that differ are tied only with --keep, whose values all names have then."""
    path = tmp_path / f"m{suffix}"
    save(path, {"embed": torch.ones(2), "head": torch.zeros(2), "other": torch.ones(1)})
    before = path.read_bytes()
    refused = run("tie", path, "embed", "head", "--in-place")
    assert refused.err == "error: embed and head differ\n\nhint: --keep embed says which wins\n"
    assert path.read_bytes() == before
    done = run("tie", path, "embed", "head", "--keep", "head", "--in-place", "-f", "json")
    assert (done.code, done.err) == (0, "")
    assert [(row["name"], row["action"], row["detail"], row["tied_with"]) for row in done.rows] == [
        ("embed", "tie", "to head", ["head"])
    ]
    assert contents(path) == {"embed": [0.0, 0.0], "head": [0.0, 0.0], "other": [1.0]}
    assert ties(path) == [["embed", "head"]]


def test_torch_sees_the_tie(run, tmp_path):
    """In a torch file the tied tensors share one storage, which is there once; untied each has its own."""
    path = tmp_path / "m.pt"
    torch.save({"a": torch.ones(5000), "b": torch.ones(5000)}, path)
    assert run("tie", path, "a", "b", "-o", tmp_path / "t.pt").code == 0
    found = torch.load(tmp_path / "t.pt")
    assert found["a"].untyped_storage().data_ptr() == found["b"].untyped_storage().data_ptr()
    assert (tmp_path / "t.pt").stat().st_size < path.stat().st_size - 19_000
    assert run("untie", tmp_path / "t.pt", "-o", tmp_path / "u.pt").code == 0
    found = torch.load(tmp_path / "u.pt")
    assert found["a"].untyped_storage().data_ptr() != found["b"].untyped_storage().data_ptr()


def test_an_alias_becomes_a_tensor(run, tmp_path):
    """In safetensors the alias is taken out of the metadata, and the tensor is one that everybody reads."""
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata={"b": "a", "c": "a", "author": "me"})
    done = run("untie", path, "c", "--in-place", "-f", "json")
    assert [(row["name"], row["action"], row["detail"]) for row in done.rows] == [("c", "untie", "from a")]
    assert set(load_file(path)) == {"a", "c"}
    assert ties(path) == [["a", "b"]]
    assert read(path).metadata == {"author": "me", "b": "a"}


def test_a_slice_is_cut_out(run, tmp_path):
    """A slice that is untied has its own few bytes, and what it was of stays."""
    whole = torch.arange(10_000.0)
    torch.save({"all": whole, "part": whole[5:7], "turned": whole.reshape(100, 100).t()}, tmp_path / "m.pt")
    assert run("untie", tmp_path / "m.pt", "part", "-o", tmp_path / "u.pt").code == 0
    found = torch.load(tmp_path / "u.pt")
    assert (found["part"].tolist(), found["part"].untyped_storage().nbytes()) == ([5.0, 6.0], 8)
    assert found["turned"].untyped_storage().data_ptr() == found["all"].untyped_storage().data_ptr()


ERRORS = {
    "tie m.safetensors": "no tensors were named\n\nhint: paramctl tie MODEL embed.weight head.weight",
    "tie m.safetensors a": "a alone\n\nhint: name two tensors or more, which become one",
    "tie m.safetensors a big": "a is 2 of float32, and big is 3×1 of float32\n\nhint: tensors of one shape and dtype can be tied",
    "tie m.safetensors a no": "m.safetensors: no parameter and no module no\n\nhint: it has a, big, half …",
    "tie m.safetensors a half --keep a": "a is 2 of float32, and half is 2 of float16\n\nhint: tensors of one shape and dtype can be tied",
    "untie m.safetensors": "none of them is tied\n\nhint: paramctl ties shows what is",
    "untie m.safetensors big": "none of them is tied\n\nhint: paramctl ties shows what is",
    "tie m.npz a z": "m.npz: npz keeps no ties that can be changed\n\nhint: paramctl convert makes a safetensors or torch file of it",
    "tie m.safetensors a z -o m.pt": "m.safetensors: it is safetensors, which m.pt does not say\n\nhint: an edit keeps the format; choose a suffix that fits",
}


@pytest.mark.parametrize("line", ERRORS)
def test_what_cannot_be_tied(line, run, tmp_path, monkeypatch):
    """The whole of stderr is this text, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    state = {
        "a": torch.ones(2),
        "z": torch.ones(2),
        "big": torch.ones(3, 1),
        "half": torch.ones(2, dtype=torch.float16),
    }
    save_file(state, "m.safetensors")
    assert run("convert", "m.safetensors", "m.npz").code == 0
    before = {path: path.read_bytes() for path in Path().iterdir()}
    done = run(*line.split())
    assert (done.code, done.out, done.err) == (2, "", f"error: {ERRORS[line]}\n")
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


# ----------------------------------------------------------------------------- folders


@pytest.fixture
def folders(tmp_path, monkeypatch, run):
    """One model as three shards and as a DCP folder, and other things beside it."""
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.arange(4.0), "b": torch.arange(4.0), "c": torch.zeros(4)}, "m.pt")
    assert run("convert", "m.pt", "shards", "--shard", "16B").code == 0
    assert run("convert", "m.pt", "dcp", "--to", "dcp").code == 0
    for name in ("shards", "dcp"):
        (tmp_path / name / "tokenizer").mkdir()
        (tmp_path / name / "tokenizer" / "merges.txt").write_text("of ours")
        (tmp_path / name / "latest").symlink_to("nowhere")
    return tmp_path


@pytest.mark.parametrize("name", ["shards", "dcp"])
@pytest.mark.parametrize("words", [("-o", "new"), ("--in-place",)], ids=" ".join)
def test_a_folder_is_tied_and_untied(name, words, folders, run):
    """In a new folder or in its place; there, what is no part of the model stays, links and folders too."""
    out = "new" if "-o" in words else name
    assert run("tie", name, "a", "b", *words).code == 0
    assert ties(out) == [["a", "b"]]
    assert contents(out) == contents("m.pt")
    assert run("untie", out, "--in-place").code == 0
    assert ties(out) == []
    assert contents(out) == contents("m.pt")
    if out == name:
        assert (folders / name / "tokenizer" / "merges.txt").read_text() == "of ours"
        assert (folders / name / "latest").is_symlink()
    assert not [path for path in folders.iterdir() if path.name.startswith(".")]


def test_tensors_stay_in_their_shards(folders, run):
    """A shard of which nothing is left goes, and so it does from the index; the others keep their names and bytes."""
    before = {path.name: path.read_bytes() for path in (folders / "shards").glob("*.safetensors")}
    assert run("tie", "shards", "a", "b", "--in-place").code == 0
    after = {path.name: path.read_bytes() for path in (folders / "shards").glob("*.safetensors")}
    first, second, third = sorted(before)
    assert sorted(after) == [first, third]
    assert after[third] == before[third]
    assert set(json.loads((folders / "shards/model.safetensors.index.json").read_text())["weight_map"].values()) == {
        first,
        third,
    }
    assert second not in after


def test_shards_of_torch_are_not_written(tmp_path, monkeypatch, run):
    """A folder of pytorch_model.bin shards is told apart: an edit keeps the format, and this one is not written."""
    monkeypatch.chdir(tmp_path)
    Path("hub").mkdir()
    for i in (1, 2):
        torch.save({f"w{i}": torch.ones(2)}, f"hub/pytorch_model-0000{i}-of-00002.bin")
    done = run("tie", "hub", "w1", "w2", "-o", "new")
    said = "hub: its shards are torch-zip, which are not written"
    assert (done.code, done.err) == (
        2,
        f"error: {said}\n\nhint: paramctl convert makes a folder of safetensors of it\n",
    )


def test_a_tie_of_the_config_is_untied_with_a_word(tmp_path, monkeypatch, run):
    """The head has its own elements then, and it is said that the config still ties it."""
    monkeypatch.chdir(tmp_path)
    Path("hub").mkdir()
    save_file({"model.embed_tokens.weight": torch.ones(2, 3)}, "hub/model.safetensors")
    Path("hub/config.json").write_text('{"tie_word_embeddings": true}')
    done = run("untie", "hub", "lm_head.weight", "-o", "new.safetensors")
    said = "config.json still ties lm_head.weight, and transformers will: tie_word_embeddings\n"
    assert (done.code, done.err) == (0, said)
    assert set(load_file("new.safetensors")) == {"lm_head.weight", "model.embed_tokens.weight"}
