"""A folder as the Hub has it: what its config.json declares is a tie in every format that has ties."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import contents, read, ties
from safetensors.torch import load_file, save_file

from paramctl.formats.targets import TARGETS

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CONFIG = {"tie_word_embeddings": True, "architectures": ["LlamaForCausalLM"], "torch_dtype": "float32"}
TIE = {frozenset({EMBEDDING, HEAD})}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A model whose config ties its head, in two shards."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "hub"
    folder.mkdir()
    tensors = {EMBEDDING: torch.arange(12.0).reshape(4, 3), "model.layers.0.w": torch.ones(5)}
    shards = {name: f"model-0000{i}-of-00002.safetensors" for i, name in enumerate(tensors, 1)}
    for name, shard in shards.items():
        save_file({name: tensors[name]}, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.mark.parametrize("second", [name for name, target in TARGETS.items() if target.ties])
@pytest.mark.parametrize("first", [name for name, target in TARGETS.items() if target.ties])
def test_a_tie_that_is_only_declared_survives(first, second, hub, run):
    """Through two formats the head is still the embedding, which is the one that is kept where one is."""
    outs = [f"{at}{(TARGETS[name].suffixes or ('',))[0]}" for at, name in (("one", first), ("two", second))]
    assert run("convert", hub, outs[0], "--to", first).code == 0
    assert run("convert", outs[0], outs[1], "--to", second).code == 0
    assert ties(read(outs[1])) == ties(read(hub)) == TIE
    assert contents(read(outs[1])) == contents(read(hub))
    files = [Path(outs[1])] if second == "safetensors" else list(Path(outs[1]).glob("*.safetensors"))
    assert all(HEAD not in load_file(file) for file in files)


def test_the_config_goes_along(hub, run):
    """The same bytes stand in the new folder, which needs no index for one file."""
    done = run("convert", hub, "new", "--to", "sharded")
    assert (done.code, done.err) == (0, "")
    assert sorted(path.name for path in Path("new").iterdir()) == ["config.json", "model.safetensors"]
    assert Path("new/config.json").read_bytes() == (hub / "config.json").read_bytes()


def test_a_config_that_would_tie_what_is_not_there_is_left_out(hub, run):
    """Without the head the new folder has none, and it is said why; under other names the config declares nothing."""
    done = run("convert", hub, "new", "--to", "sharded", "--drop", HEAD)
    assert (done.code, done.err) == (
        0,
        "config.json is left out: it declares lm_head.weight, which is not to be there\n",
    )
    assert set(read("new").params) == {EMBEDDING, "model.layers.0.w"}
    assert run("convert", hub, "other", "--to", "sharded", "--rename", "model.=>").err == ""
    assert ties(read("other")) == {frozenset({"embed_tokens.weight", HEAD})}


def test_a_config_of_another_dtype_is_told(hub, run):
    """What is cast is not what the config says; nothing in it is changed."""
    done = run("convert", hub, "new", "--to", "sharded", "--dtype", "bf16")
    assert (done.code, done.err) == (0, "config.json still says float32, and not bfloat16\n")
    assert json.loads(Path("new/config.json").read_text()) == CONFIG


def test_an_embedding_is_kept_before_its_head(tmp_path, run):
    """Where both share a storage in a torch file safetensors has the embedding, of which `transformers` makes the head."""
    weight = torch.ones(4, 3)
    torch.save({EMBEDDING: weight, HEAD: weight}, tmp_path / "m.pt")
    assert run("convert", tmp_path / "m.pt", tmp_path / "m.safetensors").code == 0
    assert list(load_file(tmp_path / "m.safetensors")) == [EMBEDDING]
    assert ties(read(tmp_path / "m.safetensors")) == TIE


def test_what_lies_beside_keeps_its_folders_and_modes(hub, run):
    """A folder that is written anew in its place keeps what is no part of the model, empty folders and modes too."""
    (hub / "sub" / "empty").mkdir(parents=True)
    (hub / "sub" / "notes.txt").write_text("kept")
    (hub / "sub").chmod(0o700)
    assert run("untie", hub, HEAD, "--in-place").code == 0
    assert (hub / "sub" / "notes.txt").read_text() == "kept"
    assert (hub / "sub" / "empty").is_dir()
    assert (hub / "sub").stat().st_mode & 0o777 == 0o700
