"""A folder is edited as a file is: what was named is changed, and everything else in it is the same bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import paramctl
from paramctl.formats import edit_folder, whole

SHARDS = {"a": ("emb.weight", "0.weight"), "b": ("1.weight", "1.bias"), "c": ("head.weight",)}
SUFFIXES = {"safetensors": "safetensors", "torch": "bin", "legacy": "bin"}

OTHER = """error: {hub}: it is sharded, which new.safetensors does not say

hint: an edit keeps the format; choose a suffix that fits
"""


def tensors() -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    return {name: torch.randn(4, 3, generator=made) for names in SHARDS.values() for name in names}


@pytest.fixture(params=SUFFIXES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> Path:
    """Three shards, of which two tensors of one share a storage where the format can, and what lies beside a model."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "hub"
    (folder / "sub").mkdir(parents=True)
    held = tensors()
    stem = "model" if kind == "safetensors" else "pytorch_model"
    owners = {}
    for i, names in enumerate(SHARDS.values(), 1):
        file = f"{stem}-0000{i}-of-00003.{SUFFIXES[kind]}"
        part = {name: held[name] for name in names}
        owners |= dict.fromkeys(part, file)
        if kind == "safetensors":
            save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file, _use_new_zipfile_serialization=kind == "torch")
    index = {"metadata": {"total_size": sum(4 * tensor.numel() for tensor in held.values())}, "weight_map": owners}
    (folder / f"{stem}.{SUFFIXES[kind]}.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "none"}')
    (folder / "sub" / "notes.txt").write_text("kept")
    return folder


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """By the library that wrote it."""
    held: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*-of-*")):
        held |= load_file(file) if file.suffix == ".safetensors" else torch.load(file)
    return held


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def number(shard: str) -> str:
    return shard.rpartition("-of-")[0][-5:]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_new_folder_has_all_of_the_old_one(hub, run):
    """Two shards are changed in what was named; the third, the index and all else are the same bytes, and copies."""
    done = run("set", hub, "0.weight[1] = 5", "head.weight *= 2", "-o", "new")
    assert (done.code, done.err) == (0, "")
    expected = tensors()
    expected["0.weight"][1] = 5
    expected["head.weight"] *= 2
    assert same(loaded(Path("new")), expected)
    old, new = files(hub), files(Path("new"))
    assert old.keys() == new.keys()
    assert [number(name) for name in sorted(old) if old[name] != new[name]] == ["00001", "00003"]
    assert all((hub / name).stat().st_nlink == 1 for name in old)
    assert same(loaded(hub), tensors())
    assert run("check", "new").code == 0


def test_one_shard_is_replaced_alone(hub, run):
    """In its place a change of one file leaves the folder and all other files where they are."""
    inodes = {path: path.stat().st_ino for path in (hub, *hub.rglob("*"))}
    assert run("set", hub, "1.bias = 3", "1.weight = 4", "--in-place").code == 0
    moved = [path.name for path, inode in inodes.items() if path.stat().st_ino != inode]
    assert [number(name) for name in moved] == ["00002"]
    expected = tensors()
    expected["1.bias"][:], expected["1.weight"][:] = 3, 4
    assert same(loaded(hub), expected)


def test_several_shards_are_replaced_at_once(hub, run):
    """In its place the folder is exchanged for one in which the other files are the same, and not copies."""
    kept = [path for path in hub.rglob("*") if path.is_file() and "00001" not in path.name and "00003" not in path.name]
    inodes = {path: path.stat().st_ino for path in kept}
    hub.chmod(0o750)
    for path in hub.glob("*-of-*"):
        path.chmod(0o640)
    assert run("set", hub, "emb.weight = 1", "head.weight = emb.weight", "--in-place").code == 0
    expected = tensors()
    expected["emb.weight"][:], expected["head.weight"][:] = 1, 1
    assert same(loaded(hub), expected)
    assert {path: path.stat().st_ino for path in kept} == inodes
    assert {path.stat().st_mode & 0o777 for path in hub.glob("*-of-*")} == {0o640}
    assert (hub.stat().st_mode & 0o777, [path.name for path in hub.parent.iterdir()]) == (0o750, ["hub"])


@pytest.mark.parametrize("words", [["--in-place"], ["-o", "new"]], ids=" ".join)
@pytest.mark.parametrize("assignments", [["1.bias = 3"], ["1.bias = 3", "head.weight = 2"]], ids=len)
def test_a_link_becomes_a_file_and_what_it_leads_to_stays(hub, run, tmp_path, words, assignments):
    """As in the Hub's cache, where all files are links: what they lead to is not changed."""
    (tmp_path / "blobs").mkdir()
    for path in [path for path in hub.iterdir() if path.is_file()]:
        path.rename(tmp_path / "blobs" / path.name)
        path.symlink_to(Path("..") / "blobs" / path.name)
    (hub / "linked").symlink_to("../blobs", target_is_directory=True)
    (hub / "nowhere").symlink_to("../none")
    before = files(tmp_path / "blobs")
    assert run("set", hub, *assignments, *words).code == 0
    assert files(tmp_path / "blobs") == before
    out = Path("new" if words[0] == "-o" else hub)
    found = loaded(out)
    assert found["1.bias"].unique().tolist() == [3]
    assert torch.equal(found["0.weight"], tensors()["0.weight"])
    assert (out / "linked" / "config.json").read_bytes() == before["config.json"]
    assert (out / "nowhere").readlink() == Path("../none")


def test_who_is_in_the_folder_is_told(hub, kind, process):
    """A shell in a folder that was exchanged is in the old one still; of one shard it is not so."""
    done = process("set", ".", "1.bias = 3", "--in-place", cwd=hub)
    assert (done.returncode, done.stderr) == (0, b"")
    done = process("set", ".", "1.bias = 4", "head.weight = 4", "--in-place", cwd=hub)
    said = "the folder that you are in was replaced as a whole; `cd .` leads to the new one\n"
    assert (done.returncode, done.stderr.decode()) == (0, said)
    assert loaded(hub)["1.bias"].unique().tolist() == [4]


def test_the_index_may_be_named(hub, run):
    """The index stands for its folder."""
    index = next(hub.glob("*.index.json"))
    assert run("set", index, "1.bias = 3", "-o", "new").code == 0
    assert run("set", index, "1.bias = 3", "head.weight = 3", "--in-place").code == 0
    assert loaded(Path("new"))["1.bias"].unique().tolist() == [3]
    assert loaded(hub)["head.weight"].unique().tolist() == [3]
    assert (hub / "sub" / "notes.txt").read_text() == "kept"


def test_draws_are_those_of_a_file(hub, kind, run):
    """What is drawn for a tensor is the same in a folder as in a file that holds the same."""
    one, two = (f"{name}.{'safetensors' if kind == 'safetensors' else 'pt'}" for name in ("one", "two"))
    words = ("--scheme", "xavier_normal", "--seed", "7")
    assert run("convert", hub, one).code == 0
    assert run("init", hub, *words, "-o", "new").code == 0
    assert run("init", one, *words, "-o", two).code == 0
    assert same(loaded(Path("new")), load_file(two) if kind == "safetensors" else torch.load(two))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "-"], "error: a folder cannot be written to standard output\n\nhint: name one\n"),
        (
            ["-o", "full"],
            "error: full: a folder that is not empty\n\nhint: name a new one; convert --force replaces it as a whole\n",
        ),
        (
            ["-o", "new.safetensors"],
            OTHER,
        ),
        (["-o", "no/new"], "error: no/new: cannot be written: there is no folder {cwd}/no\n"),
        (["-o", "full/file"], "error: full/file: a file, and not a folder\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_where_a_folder_cannot_be_written(hub, run, words, said):
    """It is said, and nothing is there that was not before."""
    Path("full").mkdir()
    Path("full/file").write_text("kept")
    before = files(hub.parent)
    done = run("set", hub, "1.bias = 3", *words)
    assert (done.code, done.err) == (2, said.format(hub=hub, cwd=hub.parent))
    assert files(hub.parent) == before


def test_a_change_that_cannot_be_leaves_nothing(hub, run):
    """A value that a later shard cannot hold: the first is as it was."""
    before = files(hub)
    for words in (["-o", "new"], ["--in-place"]):
        done = run("set", hub, "emb.weight = 1", "head.weight = 1e300", *words)
        assert (done.code, done.err) == (2, "error: head.weight: 1e+300 overflows float32\n")
        assert (files(hub), [path.name for path in hub.parent.iterdir()]) == (before, ["hub"])


def test_a_new_folder_within_the_old_one(hub, run):
    """What is made is no part of what is copied."""
    before = files(hub)
    assert run("set", hub, "1.bias = 3", "-o", hub / "sub" / "new").code == 0
    made = files(hub / "sub" / "new")
    assert made.keys() == before.keys()
    assert {name: data for name, data in files(hub).items() if not name.startswith("sub/new/")} == before


def test_what_is_no_file_cannot_be_copied(hub, run):
    """A pipe in the folder is told; in its place it is kept."""
    os.mkfifo(hub / "pipe")
    done = run("set", hub, "1.bias = 3", "-o", "new")
    assert (done.code, done.err) == (2, f"error: {hub}/pipe: no file and no folder, and cannot be copied\n")
    assert run("set", hub, "1.bias = 3", "head.weight = 3", "--in-place").code == 0
    assert (hub / "pipe").is_fifo()


@pytest.mark.parametrize("assignments", [["1.bias = 3"], ["1.bias = 3", "head.weight = 2"]], ids=len)
@pytest.mark.parametrize("target", ["new", "hub"])
def test_what_is_told_is_what_is_copied(hub, target, assignments):
    """How many bytes are told is known before: all of a new folder, and in its place the files that change."""
    edit = paramctl.open(str(hub)).set(*assignments)
    told: list[int] = []
    expected = edit.nbytes(target)
    edit.write(target, tell=told.append)
    changed = [path for path in hub.glob("*-of-*") if number(path.name) in ("00002", "00003")[: len(assignments)]]
    copied = changed if target == "hub" else [path for path in hub.rglob("*") if path.is_file()]
    assert sum(told) == expected == sum(min(path.stat().st_size, 512 * path.stat().st_blocks) for path in copied)


BOTH_WAYS = pytest.mark.parametrize("words", [["--in-place"], ["-o", "new"]], ids=" ".join)
TWO = ("1.bias = 3", "head.weight = 2")  # in two shards: the folder is made anew


@BOTH_WAYS
def test_folders_and_modes_are_kept(hub, run, words):
    """Empty folders are there again, and nobody may read or run more or less than before."""
    (hub / "sub" / "empty" / "deep").mkdir(parents=True)
    modes = {hub: 0o750, hub / "sub": 0o700, hub / "sub" / "empty": 0o711, hub / "sub" / "notes.txt": 0o754}
    modes |= dict.fromkeys(hub.glob("*-of-*"), 0o600)
    for path, mode in modes.items():
        path.chmod(mode)
    expected = {str(path.relative_to(hub)): path.stat().st_mode for path in (hub, *hub.rglob("*"))}
    assert run("set", hub, *TWO, *words).code == 0
    out = Path("new" if words[0] == "-o" else hub)
    assert {str(path.relative_to(out)): path.stat().st_mode for path in (out, *out.rglob("*"))} == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owners_are_kept_in_place(hub, run):
    """Who edits another's folder leaves it theirs."""
    for path in (hub, *hub.rglob("*")):
        os.chown(path, 1234, 1234)
    assert run("set", hub, *TWO, "--in-place").code == 0
    assert {path.stat().st_uid for path in (hub, *hub.rglob("*"))} == {1234}


@BOTH_WAYS
def test_links_within_the_folder_stay(hub, run, words):
    """Shards that an index names through a linked folder are changed where they lie, and the others are there too."""
    (hub / "real").mkdir()
    for path in hub.glob("*-of-*"):
        path.rename(hub / "real" / path.name)
    (hub / "linked").symlink_to("real")
    (hub / "absolute").symlink_to(hub / "real")
    (hub / "config").symlink_to("config.json")
    index = next(hub.glob("*.index.json"))
    said = json.loads(index.read_text())
    said["weight_map"] = {name: f"linked/{shard}" for name, shard in said["weight_map"].items()}
    index.write_text(json.dumps(said))
    names = {str(path.relative_to(hub)) for path in hub.rglob("*")}
    assert run("set", hub, *TWO, *words).code == 0
    out = Path("new" if words[0] == "-o" else hub)
    assert {str(path.relative_to(out)) for path in out.rglob("*")} == names
    expected = tensors()
    expected["1.bias"][:], expected["head.weight"][:] = 3, 2
    for folder in ("real", "linked", "absolute"):
        assert same(loaded(out / folder), expected)
    assert (out / "linked").readlink() == Path("real")
    assert (out / "config").readlink() == Path("config.json")


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("what", ["made", "replaced", "removed", "changed"])
def test_what_another_process_does_meanwhile_is_not_lost(hub, run, monkeypatch, what, exchanges):
    """A file that comes, goes or is changed while the folder is made anew is told, and all is as the other left it."""
    shards = sorted(hub.glob("*-of-*"))
    path = {"made": hub / "more", "changed": shards[1]}.get(what, shards[0])
    left = {}

    def meanwhile(*told):
        if left:  # of a folder below
            return sync(*told)
        if what in ("replaced", "removed"):
            path.unlink()
        if what != "removed":
            path.write_text("theirs")
        left.update(files(hub))
        return sync(*told)

    sync = whole._sync_below
    monkeypatch.setattr(whole, "_sync_below", meanwhile)  # the last that is done before the folders change places
    if not exchanges:
        monkeypatch.setattr(whole, "_changed_places", lambda *_: False)
    done = run("set", hub, *TWO, "--in-place")
    said = f"error: {path}: another process has changed it meanwhile\n\nhint: try again\n"
    assert (done.code, done.err) == (2, said)
    assert (files(hub), [path.name for path in hub.parent.iterdir()]) == (left, ["hub"])


def test_a_log_may_be_written_meanwhile(hub, run, monkeypatch):
    """What is linked and not copied holds what is written to it while the folder is made anew."""
    log = (hub / "log.txt").open("w")
    alike = edit_folder.beside.alike
    monkeypatch.setattr(edit_folder.beside, "alike", lambda *told: (log.write("a step"), log.flush(), alike(*told)))
    assert run("set", hub, *TWO, "--in-place").code == 0
    log.close()
    assert (hub / "log.txt").read_text() == "a step"


def test_what_a_killed_writer_left_in_the_folder_is_not_taken_along(hub, run):
    """It is no part of the new folder."""
    (hub / ".model.0123abcd.paramctl").write_text("half")
    assert run("set", hub, *TWO, "-o", "new").code == 0
    assert not list(Path("new").glob(".*"))


def test_its_own_index_in_other_words_is_the_folder(hub, run):
    """OUT may be the index, however it is written."""
    index = next(hub.glob("*.index.json"))
    assert run("set", index, *TWO, "-o", hub / "sub" / ".." / index.name).code == 0
    assert loaded(hub)["1.bias"].unique().tolist() == [3]


def test_a_folder_is_edited_in_place_whatever_it_is_called(hub, run):
    """The name of a folder says nothing of its format."""
    hub = hub.rename(hub.with_name("model.npz"))
    assert run("set", hub, *TWO, "--in-place").code == 0
    assert loaded(hub)["1.bias"].unique().tolist() == [3]
