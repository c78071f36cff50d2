"""A model in several files, or in a folder, is one model; and an index leads nowhere but to what lies beside it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from paramctl import formats, source, values
from paramctl.checkpoint import Checkpoint

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def opened(path: object) -> Checkpoint:
    return formats.read(source.resolve(str(path)))


def write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt"}) if path.suffix == ".safetensors" else torch.save(tensors, path)


def write_shards(
    folder: Path,
    parts: list[dict[str, torch.Tensor]],
    *,
    stem: str = "model",
    end: str = ".safetensors",
    index: str = "",
) -> dict[str, str]:
    """Shards and their index, named as transformers names them; the weight map."""
    owners: dict[str, str] = {}
    for i, part in enumerate(parts):
        name = f"{stem}-{i + 1:05}-of-{len(parts):05}{end}"
        write(folder / name, part)
        owners |= dict.fromkeys(part, name)
    total = sum(tensor.nbytes for part in parts for tensor in part.values())
    write_index(folder, owners, total, index or f"{stem}{end}.index.json")
    return owners


def write_index(folder: Path, owners: object, total: object = None, name: str = INDEX) -> None:
    metadata = {} if total is None else {"total_size": total}
    (folder / name).write_text(json.dumps({"metadata": metadata, "weight_map": owners}, indent=2) + "\n")


A = {"h.10.w": torch.arange(6.0).reshape(2, 3), "h.2.w": torch.ones(2, dtype=torch.bfloat16)}
B = {"h.1.w": torch.zeros(4), "embed": torch.full((3, 2), 7.0)}


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder m of two shards and an index, in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_shards(Path("m"), [A, B])
    return Path("m")


def same(found: Checkpoint, tensors: dict[str, torch.Tensor]) -> None:
    assert set(found.params) == set(tensors)
    for name, tensor in tensors.items():
        param = found.params[name]
        assert (param.shape, param.dtype.name) == (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        assert values.array(param).astype("float64").tolist() == tensor.double().tolist()


LAYOUTS = {
    "safetensors": {},
    "bin": {"stem": "pytorch_model", "end": ".bin"},
    "diffusers": {"stem": "diffusion_pytorch_model"},
    "a variant as transformers writes it": {"stem": "model.fp16", "index": "model.safetensors.index.fp16.json"},
    "a variant before the suffix": {"stem": "model.fp16", "index": "model.fp16.safetensors.index.json"},
    "a variant as diffusers writes it": {"end": ".fp16.safetensors", "index": "model.safetensors.index.fp16.json"},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("how", ["folder", "index", "no index"])
def test_shards_are_one_model(layout: dict[str, str], how: str, tmp_path: Path):
    """Every layout reads whole, by the folder, by its index, and by the shards' numbers alone."""
    write_shards(tmp_path, [A, B], **layout)
    (index,) = tmp_path.glob("*.json")
    if how == "no index":
        index.unlink()
    found = opened(index if how == "index" else tmp_path)
    same(found, A | B)
    assert found.format == "sharded"
    assert found.extras["index"]["problems"] == []
    assert found.extras["index"]["shards"] == 2
    if layout.get("end", "").endswith("bin"):
        assert list(found.params) == ["h.10.w", "h.2.w", "h.1.w", "embed"]
    else:
        assert list(found.params) == ["embed", "h.1.w", "h.2.w", "h.10.w"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), end=st.sampled_from([".safetensors", ".bin"]))
def test_splitting_changes_nothing(data: st.DataObject, end: str, tmp_path_factory: pytest.TempPathFactory):
    """A state dict that is split at random over shards reads as the unsplit one."""
    folder = tmp_path_factory.mktemp("split")
    names = data.draw(st.lists(st.from_regex(r"[a-c](\.[0-9a-b]{1,2}){0,2}", fullmatch=True), min_size=1, unique=True))
    whole = {name: torch.full((1 + i % 3, i % 4), float(i)) for i, name in enumerate(names)}
    where = data.draw(st.lists(st.integers(0, 3), min_size=len(names), max_size=len(names)))
    parts = [{n: whole[n] for n, at in zip(names, where, strict=True) if at == part} for part in range(4)]
    write_shards(folder / "split", parts, end=end)
    write(folder / f"whole{end}", whole)
    split, one = opened(folder / "split"), opened(folder / f"whole{end}")
    same(split, whole)
    assert {n: p._replace(storage=None) for n, p in split.params.items()} == {
        n: p._replace(storage=None) for n, p in one.params.items()
    }
    assert len({param.storage.key for param in split.params.values()}) == len(names)
    if end == ".safetensors":
        assert list(split.params) == list(one.params)


def test_the_storages_of_shards_are_apart(tmp_path: Path):
    """torch counts storages anew in each file: ties within a shard stay, and none is made between shards."""
    tied = torch.ones(2, 3)
    write_shards(tmp_path, [{"a": tied, "b": tied}, {"c": torch.ones(2, 3)}], stem="pytorch_model", end=".bin")
    found = opened(tmp_path).params
    assert found["a"].storage == found["b"].storage
    assert found["a"].storage.key == "pytorch_model-00001-of-00002.bin:0"
    assert found["c"].storage.key == "pytorch_model-00002-of-00002.bin:0"


def test_ls_tells_the_shard(two: Path, run):
    """`file` is the shard's path, as the user would write it."""
    files = {row["name"]: row["file"] for row in run("ls", "m", "-f", "json").rows}
    assert files == {"embed": f"m/{SHARDS[1]}", "h.1.w": f"m/{SHARDS[1]}", **dict.fromkeys(A, f"m/{SHARDS[0]}")}
    for command in ("tree", "info", "ties", "show"):
        assert run(command, "m").code == 0, command


def test_a_lone_file_in_a_folder_is_edited(tmp_path: Path, run):
    """The folder stands for its file, which is what changes."""
    write(tmp_path / "model.safetensors", A)
    assert run("set", tmp_path, "h.10.w[:] = 3", "--in-place").code == 0
    same(opened(tmp_path / "model.safetensors"), A | {"h.10.w": torch.full((2, 3), 3.0)})
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_an_index_that_is_piped_has_no_folder(two: Path, process):
    """Its shards cannot be found."""
    done = process("ls", "-", stdin=(two / INDEX).read_bytes())
    assert (done.returncode, done.stderr.decode()) == (
        2,
        "error: -: an index of shards\n\nhint: name the index itself: its shards lie beside it\n",
    )


# ----------------------------------------------------------------------------- hostile and damaged indexes

OUT = "\n\nhint: the index was made to mislead, or its shards were moved; they should lie beside it\n"
NO_MAP = "the index maps no tensor to a shard: it has no weight_map, or an empty one\n"
INDEXES: dict[str, tuple[str, str]] = {
    "an absolute path": ('{"weight_map": {"a": "/etc/passwd"}}', "the index leads out of its folder, to /etc/passwd" + OUT),
    "up": ('{"weight_map": {"a": "../x.safetensors"}}', "the index leads out of its folder, to ../x.safetensors" + OUT),
    "down and up": ('{"weight_map": {"a": "sub/../../x"}}', "the index leads out of its folder, to sub/../../x" + OUT),
    "through a link": ('{"weight_map": {"a": "away/x"}}', "the index leads out of its folder, to away/x" + OUT),
    "Windows": ('{"weight_map": {"a": "..\\\\x"}}', "the index leads out of its folder, to ..\\\\x" + OUT),
    "a device": ('{"weight_map": {"a": "/dev/zero"}}', "the index leads out of its folder, to /dev/zero" + OUT),
    "no name": ('{"weight_map": {"a": ""}}', "the index names a shard '', which is no file name\n"),
    "the folder": ('{"weight_map": {"a": "."}}', "the index names a shard '.', which is no file name\n"),
    "a NUL": ('{"weight_map": {"a": "x\\u0000"}}', "the index names a shard 'x\\\\x00', which is no file name\n"),
    "a surrogate": ('{"weight_map": {"a": "\\ud800"}}', "the index names a shard '\\\\ud800', which is no file name\n"),
    "a number": ('{"weight_map": {"a": 3}}', "a is in 3, which is no file name\n"),
    "a list": ('{"weight_map": {"a": ["x"]}}', "a is in ['x'], which is no file name\n"),
    "a map that is a list": ('{"weight_map": ["a"]}', NO_MAP),
    "an empty map": ('{"weight_map": {}}', NO_MAP),
    "a list about a map": ('["weight_map"]', NO_MAP),
    "not JSON": (
        '{"weight_map": {"a": }',
        "the index is not JSON: Expecting value: line 1 column 22 (char 21)\n",
    ),
    "a name twice": ('{"weight_map": {"a": "x", "a": "y"}}', "a stands twice in the index\n"),
    "deep": ('{"weight_map": ' + "[" * 100_000, "the index is nested too deeply\n"),
    "escapes": (
        '{"weight_map": {"\\u001b[2J": 1}}', "\\x1b[2J is in 1, which is no file name\n"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "said"), INDEXES.values(), ids=INDEXES)
def test_an_index_does_not_lead_out_of_its_folder(text: str, said: str, tmp_path: Path, run, monkeypatch):
    """The first thing wrong with an index is told, and nothing outside of its folder is opened."""
    monkeypatch.chdir(tmp_path)
    write(Path("x.safetensors"), A)
    write(Path("elsewhere/x"), A)
    Path("m").mkdir()
    Path("m/away").symlink_to("../elsewhere")
    Path("m", INDEX).write_text(text)
    done = run("ls", "m")
    assert (done.code, done.out, done.err) == (2, "", f"error: m/{INDEX}: {said}")
    if text.startswith("{"):
        assert run("ls", f"m/{INDEX}").err == f"error: m/{INDEX}: {said}"


def test_a_shard_may_be_in_a_folder_below(tmp_path: Path):
    """A name with a separator is good as long as it stays within."""
    write(tmp_path / "sub" / "x.safetensors", A)
    write_index(tmp_path, dict.fromkeys(A, "./sub//x.safetensors"))
    same(opened(tmp_path), A)


def test_an_index_that_names_itself_ends(two: Path, run):
    """An index is no shard."""
    write_index(two, {"a": INDEX})
    done = run("ls", "m")
    assert (done.code, done.err) == (2, f"error: m/{INDEX}: a JSON file, and no checkpoint\n")


@pytest.mark.parametrize("kind", ["folder", "pipe", "index"])
def test_a_shard_that_is_no_file_is_refused(kind: str, two: Path, run):
    """Without waiting for anything."""
    path = two / SHARDS[1]
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_text((two / INDEX).read_text())
    done = run("ls", "m")
    said = "a JSON file, and no checkpoint" if kind == "index" else "not a regular file"
    assert (done.code, done.err) == (2, f"error: m/{SHARDS[1]}: {said}\n")


def test_a_missing_shard_is_named(two: Path, run):
    """With an index and without."""
    (two / SHARDS[1]).unlink()
    hint = "\n\nhint: 1 of 2 shards are missing: the download may be incomplete\n"
    assert run("ls", "m").err == f"error: m: the index names {SHARDS[1]}, which is not there{hint}"
    assert run("ls", f"m/{INDEX}").err == f"error: m/{INDEX}: the index names {SHARDS[1]}, which is not there{hint}"
    (two / SHARDS[1]).symlink_to("../../blobs/abc")
    assert run("ls", "m").err == f"error: m: {SHARDS[1]} is a link to ../../blobs/abc, which is not there{hint}"
    (two / SHARDS[1]).unlink()
    (two / INDEX).unlink()
    assert run("ls", "m").err == f"error: m: {SHARDS[1]} is not there{hint}"


def test_a_damaged_shard_is_named(two: Path, run):
    """The shard's own error, with the shard's path."""
    path = two / SHARDS[1]
    path.write_bytes(path.read_bytes()[:-1])
    start = f"error: m/{SHARDS[1]}: the tensors take 40 bytes, the file has 39 after its header"
    assert run("ls", "m").err.startswith(start)


PROBLEMS: dict[str, tuple[object, object, list[str]]] = {
    "elsewhere": (
        dict.fromkeys(A, SHARDS[0]) | {"h.1.w": SHARDS[1], "embed": SHARDS[0]},
        76,
        [f"embed should be in {SHARDS[0]}, and is in {SHARDS[1]}"],
    ),
    "nowhere": (
        dict.fromkeys(A, SHARDS[0]) | dict.fromkeys(B, SHARDS[1]) | {"gone": SHARDS[1]},
        68,
        [f"gone should be in {SHARDS[1]}, and is in no shard"],
    ),
    "unknown": (
        dict.fromkeys(A, SHARDS[0]) | {"h.1.w": SHARDS[1]},
        68,
        [f"embed is in {SHARDS[1]}, and not in the index"],
    ),
    "total": (
        dict.fromkeys(A, SHARDS[0]) | dict.fromkeys(B, SHARDS[1]),
        1000,
        ["total_size says 1,000 bytes, the tensors take 68"],
    ),
    "a total that is a text": (
        dict.fromkeys(A, SHARDS[0]) | dict.fromkeys(B, SHARDS[1]),
        "many",
        ["total_size says 'many' bytes, the tensors take 68"],
    ),
    "a total that is a float": (dict.fromkeys(A, SHARDS[0]) | dict.fromkeys(B, SHARDS[1]), 68.0, []),
    "no total": (dict.fromkeys(A, SHARDS[0]) | dict.fromkeys(B, SHARDS[1]), None, []),
}


@pytest.mark.parametrize(("owners", "total", "problems"), PROBLEMS.values(), ids=PROBLEMS)
def test_what_does_not_fit_the_index_is_told(owners: object, total: object, problems: list[str], two: Path):
    """The tensors are read all the same, and the index's problems are an extra."""
    write_index(two, owners, total)
    found = opened(two)
    same(found, A | B)
    if total == 76:
        problems = [*problems, "total_size says 76 bytes, the tensors take 68"]
    assert found.extras["index"]["problems"] == problems


def test_a_tensor_in_two_shards_is_the_one_that_the_index_names(two: Path):
    """And it is told; without an index the first counts."""
    write(two / SHARDS[1], B | {"h.2.w": torch.full((2,), 9.0, dtype=torch.bfloat16)})
    write_index(two, dict.fromkeys(A, SHARDS[0]) | dict.fromkeys(B, SHARDS[1]) | {"h.2.w": SHARDS[1]})
    found = opened(two)
    assert values.array(found.params["h.2.w"]).astype("float64").tolist() == [9, 9]
    assert found.extras["index"]["problems"] == [f"h.2.w is in {SHARDS[1]}, and in {SHARDS[0]} too"]
    (two / INDEX).unlink()
    found = opened(two)
    assert values.array(found.params["h.2.w"]).astype("float64").tolist() == [1, 1]
    assert found.extras["index"]["problems"] == [f"h.2.w is in {SHARDS[0]}, and in {SHARDS[1]} too"]


def test_a_shard_that_the_index_does_not_name_is_told(two: Path):
    """One that was left there by an earlier save."""
    write(two / "model-00001-of-00007.safetensors", A)
    assert opened(two).extras["index"]["problems"] == ["model-00001-of-00007.safetensors is not in the index"]


def test_problems_are_cut(two: Path):
    """Twenty are told, and how many more there are."""
    write_index(two, {f"gone.{i}": SHARDS[0] for i in range(30)})
    problems = opened(two).extras["index"]["problems"]
    assert (len(problems), problems[-1]) == (21, "and 13 more")


# ----------------------------------------------------------------------------- folders


def test_a_snapshot_of_the_hub(tmp_path: Path, run, monkeypatch):
    """Links into the blobs are followed; the cache's own folder says which snapshots there are."""
    monkeypatch.chdir(tmp_path)
    cache = Path("models--org--name")
    snapshot = cache / "snapshots" / "abc"
    write_shards(cache / "blobs", [A, B])
    snapshot.mkdir(parents=True)
    (cache / "refs").mkdir()
    for number, path in enumerate(sorted((cache / "blobs").iterdir())):
        path.rename(path.with_name(f"{number:064}"))
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064}")
    same(opened(snapshot), A | B)
    same(opened(snapshot / INDEX), A | B)
    assert run("ls", cache).err == (
        "error: models--org--name: the Hub's cache of a model\n\n"
        "hint: name a snapshot: models--org--name/snapshots/abc\n"
    )
    assert run("ls", snapshot, "embed", "-f", "json").rows[0]["file"] == str(snapshot / SHARDS[1])


def test_a_lone_checkpoint_in_a_folder(tmp_path: Path, run, monkeypatch):
    """Is opened as if it had been named, whatever its name; what lies beside it is told."""
    monkeypatch.chdir(tmp_path)
    write(Path("m/model.safetensors"), A)
    for name in ("adapter_model.safetensors", "optimizer.pt", "rng_state_0.pth", "training_args.bin"):
        write(Path("m") / name, B)
    Path("m/tokenizer.json").write_text("{}")
    found = opened("m")
    same(found, A)
    assert (found.format, found.source.name) == ("safetensors", "m/model.safetensors")
    assert found.extras["beside"] == {
        "adapter_model.safetensors": "an adapter: it is read when it is named",
        "optimizer.pt": "a trainer's state, or arrays: it is read when it is named",
        "rng_state_0.pth": "a trainer's state, or arrays: it is read when it is named",
        "training_args.bin": "a trainer's state, or arrays: it is read when it is named",
    }
    assert run("info", "m").code == 0
    write(Path("odd/checkpoint_42"), B)
    Path("odd/README.md").write_text("# A model\n")
    same(opened("odd"), B)
    write(Path("lora/adapter_model.safetensors"), B)
    Path("lora/adapter_config.json").write_text("{}")
    same(opened("lora"), B)


def test_a_bin_of_something_else_is_no_second_model(tmp_path: Path):
    """What is called .bin is a model by its beginning."""
    write(tmp_path / "pytorch_model.bin", A)
    (tmp_path / "vocabulary.bin").write_bytes(b"\x01\x02\x03")
    same(opened(tmp_path), A)


def test_safetensors_are_preferred(tmp_path: Path):
    """Of one model in two formats safetensors is read, and the other is told."""
    write(tmp_path / "one" / "model.safetensors", A)
    write(tmp_path / "one" / "pytorch_model.bin", B)
    found = opened(tmp_path / "one")
    same(found, A)
    why = "the same model in another file: model.safetensors is read"
    assert found.extras["beside"] == {"pytorch_model.bin": why}
    write_shards(tmp_path / "two", [A, B])
    write_shards(tmp_path / "two", [B, A], stem="pytorch_model", end=".bin")
    assert opened(tmp_path / "two").extras["index"]["format"] == "safetensors"


def test_an_index_of_files_that_were_left_out_does_not_count(tmp_path: Path):
    """A snapshot of the .bin files alone has the index of safetensors too."""
    write_shards(tmp_path, [A, B])
    write_shards(tmp_path, [A, B], stem="pytorch_model", end=".bin")
    for shard in SHARDS:
        (tmp_path / shard).unlink()
    found = opened(tmp_path)
    same(found, A | B)
    assert found.extras["index"]["file"] == "pytorch_model.bin.index.json"


def test_several_models_are_asked_about(tmp_path: Path, run, monkeypatch):
    """At most five are listed."""
    monkeypatch.chdir(tmp_path)
    for name in ("model.safetensors", "model.fp16.safetensors"):
        write(Path("m") / name, A)
    assert run("ls", "m").err == (
        "error: m: a folder of 2 models: which one?\n\nhint: name one: m/model.fp16.safetensors, m/model.safetensors\n"
    )
    for epoch in range(11):
        write(Path("e") / f"epoch{epoch}.pt", A)
    assert run("ls", "e").err == (
        "error: e: a folder of 11 models: which one?\n\n"
        "hint: name one: e/epoch0.pt, e/epoch1.pt, e/epoch2.pt, e/epoch3.pt, e/epoch4.pt and 6 more\n"
    )
    same(opened("e/epoch3.pt"), A)


@pytest.mark.parametrize("name", ["model.safetensors", "weights.bin"])
def test_a_link_that_leads_nowhere_is_told(name: str, tmp_path: Path, run, monkeypatch):
    """A snapshot whose blob was removed."""
    monkeypatch.chdir(tmp_path)
    Path("m").mkdir()
    Path("m", name).symlink_to("../../blobs/abc")
    assert run("ls", "m").err == (
        f"error: m/{name}: a link to ../../blobs/abc, which is not there\n\n"
        "hint: the Hub's cache is not whole: download the model again\n"
    )


# ----------------------------------------------------------------------------- ties of the config

EMBEDDING = {"model.embed_tokens.weight": torch.ones(5, 2), "model.layers.0.w": torch.ones(2)}
CONFIGS: dict[str, tuple[dict[str, object], dict[str, torch.Tensor], str]] = {
    "tied": ({"tie_word_embeddings": True}, {}, "lm_head.weight"),
    "of a class with a head": (
        {"tie_word_embeddings": True, "architectures": ["LlamaForCausalLM"]}, {}, "lm_head.weight"
    ),
    "in its text part": ({"text_config": {"tie_word_embeddings": True}}, {}, "lm_head.weight"),
    "untied": ({"tie_word_embeddings": False}, {}, ""),
    "not said": ({}, {}, ""),
    "untied, whatever its text part says": (
        {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, {}, ""
    ),
    "said otherwise": ({"tie_word_embeddings": "true"}, {}, ""),
    "a class without a head": ({"tie_word_embeddings": True, "architectures": ["LlamaModel"]}, {}, ""),
    "a head that is there": ({"tie_word_embeddings": True}, {"lm_head.weight": torch.ones(5, 2)}, ""),
    "a quantized head": ({"tie_word_embeddings": True}, {"lm_head.qweight": torch.ones(5, 2)}, ""),
    "two embeddings": ({"tie_word_embeddings": True}, {"transformer.wte.weight": torch.ones(5, 2)}, ""),
}  # fmt: skip


@pytest.mark.parametrize(("config", "more", "alias"), CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("shards", [1, 2])
def test_the_config_declares_ties(config: object, more: dict, alias: str, shards: int, tmp_path: Path):
    """A tied head that the file leaves out is a name of the embedding's storage, declared by the config."""
    if shards == 1:
        write(tmp_path / "model.safetensors", EMBEDDING | more)
    else:
        write_shards(tmp_path, [EMBEDDING, more | {"z": torch.ones(1)}])
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = opened(tmp_path)
    declared = {name: param for name, param in found.params.items() if param.declared}
    assert set(declared) == ({alias} if alias else set())
    for param in declared.values():
        assert param.declared == "config"
        assert param.storage == found.params["model.embed_tokens.weight"].storage
    if shards == 2:
        assert found.extras["index"]["problems"] == []
    else:
        assert not any(param.declared for param in opened(tmp_path / "model.safetensors").params.values())


def test_ties_says_that_the_config_ties(tmp_path: Path, run):
    """The group's source is the config, and what is shared counts once."""
    write(tmp_path / "model.safetensors", EMBEDDING)
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true}')
    done = run("ties", tmp_path, "-f", "json")
    (row,) = done.rows
    assert (row["names"], row["source"]) == (["lm_head.weight", "model.embed_tokens.weight"], "config")
    assert (done.json["totals"]["numel"], done.json["totals"]["unique_numel"]) == (22, 12)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[1]", b"[" * 100_000])
def test_a_broken_config_keeps_no_tensor_from_being_read(text: bytes, tmp_path: Path):
    """It is told in the extras, where it is no JSON."""
    write(tmp_path / "model.safetensors", EMBEDDING)
    (tmp_path / "config.json").write_bytes(text)
    found = opened(tmp_path)
    same(found, EMBEDDING)
    assert ("config" in found.extras) == (text != b"[1]")


def test_many_shards_are_read_in_time(tmp_path: Path, monkeypatch):
    """200 shards of 100 tensors: each header is read once."""
    import struct

    owners: dict[str, str] = {}
    for shard in range(200):
        name = f"model-{shard + 1:05}-of-00200.safetensors"
        header = {
            f"layers.{shard}.{i}.weight": {"dtype": "F16", "shape": [2], "data_offsets": [4 * i, 4 * i + 4]}
            for i in range(100)
        }
        owners |= dict.fromkeys(header, name)
        raw = json.dumps(header).encode()
        (tmp_path / name).write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(400))
    write_index(tmp_path, owners, 80_000)
    opens: list[str] = []
    init = source.Reader.__init__
    monkeypatch.setattr(source.Reader, "__init__", lambda self, of: (opens.append(of.name), init(self, of))[1])
    start = time.process_time()
    found = opened(tmp_path)
    assert time.process_time() - start < 3
    assert (len(found.params), found.extras["index"]["problems"]) == (20_000, [])
    assert len(opens) == len(set(opens)) == 201
