"""What was not selected is the same bytes as before: in the container, in the values, and in what they share."""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import pickle
import stat
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")


def network():
    torch.manual_seed(1)
    shared = nn.Linear(4, 4)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), shared, nn.ReLU(), shared, nn.LSTM(4, 3))


def state_dict():
    return network().state_dict()


def training_checkpoint():
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    net[:5](torch.randn(3, 4)).sum().backward()
    optimizer.step()
    return {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(lr=1e-3, name="run"),
        "best": np.float64(0.5),
        "history": collections.deque([1.0, 2.0], maxlen=5),
        "rng": torch.get_rng_state(),
    }


def module():
    return network()


FILES = {"state dict": (state_dict, ""), "training checkpoint": (training_checkpoint, "model."), "module": (module, "")}


@pytest.fixture(params=FILES)
def saved(request, tmp_path):
    """A torch file of each kind, and where its network is in it."""
    build, at = FILES[request.param]
    torch.save(build(), tmp_path / "m.pt")
    return tmp_path / "m.pt", at


def members(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None, "every checksum is right"
        return {info.filename: (archive.read(info), info.header_offset, info.date_time) for info in archive.infolist()}


def tensors(value, at=""):
    """Every tensor by its path, as torch loads it."""
    if isinstance(value, torch.Tensor):
        return {at: value}
    if isinstance(value, nn.Module):
        value = value.state_dict()
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {
        name: tensor for key, item in items for name, tensor in tensors(item, f"{at}.{key}" if at else f"{key}").items()
    }


def loaded(path):
    return tensors(torch.load(path, weights_only=False))


def digest(tensor):
    return hashlib.sha256(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def sharing(found):
    """Which names have one storage."""
    groups = {}
    for name, tensor in found.items():
        groups.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    return sorted(groups.values())


CHANGES = {  # what is run, and which names it changes
    "init a layer": (["init", "--layer", "@0", "--scheme", "xavier", "--seed", "0"], {"0.weight"}),
    "init a tie": (["init", "@4.weight", "--scheme", "normal", "--seed", "0"], {"2.weight", "4.weight"}),
    "init a flat weight": (["init", "@5.weight_hh_l0", "--scheme", "orthogonal", "--seed", "0"], {"5.weight_hh_l0"}),
    "set a scalar": (["set", "@1.num_batches_tracked = 7"], {"1.num_batches_tracked"}),
    "set a slice": (["set", "@0.weight[1, ::2] = 3"], {"0.weight"}),
    "set several": (["set", "@0.bias = 1", "@2.bias += 1"], {"0.bias", "2.bias", "4.bias"}),
}  # fmt: skip
NOTHING = {  # what changes no value
    "set to itself": ["set", "@0.weight = @0.weight"],
    "set an empty slice": ["set", "@0.weight[0:0] = 3"],
    "times one": ["set", "@0.weight *= 1"],
    "a function that leaves it alone": ["init", "@0.bias", "--scheme", "OWN:nothing"],
}


def command(path, at, words, *more):
    return [words[0], path, *(word.replace("@", at) for word in words[1:]), *more]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_of_what_was_named(run, saved, change):
    """Every other tensor, member and object of the file is as it was, and tensors share what they shared."""
    path, at = saved
    words, names = CHANGES[change]
    before, zipped = loaded(path), members(path)
    result = run(*command(path, at, words, "--in-place", "-f", "json"))
    assert (result.code, result.err) == (0, "")
    after, rezipped = loaded(path), members(path)
    changed = {name for name in before if digest(before[name]) != digest(after[name])}
    assert changed == {at + name for name in names}
    assert sharing(before) == sharing(after)
    assert list(before) == list(after)
    different = {name for name in zipped if zipped[name] != rezipped[name]}
    assert list(zipped) == list(rezipped)
    assert len(different) == len({before[name].untyped_storage().data_ptr() for name in changed})
    assert all("/data/" in name for name in different)


@pytest.mark.parametrize("change", NOTHING)
def test_a_change_of_nothing_is_no_change(run, saved, tmp_path, change):
    """Where values stay, so does every byte of the file."""
    path, at = saved
    (tmp_path / "own.py").write_text("def nothing(tensor): pass\n")
    words = [word.replace("OWN", str(tmp_path / "own.py")) for word in NOTHING[change]]
    words = ["init", words[1].replace("bias", "weight"), *words[2:]] if words[0] == "init" else words
    before = path.read_bytes()
    for target in ("--in-place", "-o"):
        result = run(*command(path, at, words, target, *([path] if target == "-o" else [])))
        assert result.code == 0, result.err
        assert path.read_bytes() == before


def test_objects_beside_the_tensors(run, tmp_path):
    """A training checkpoint loads with equal optimizer, arguments, epoch, numbers and random state."""
    torch.save(training_checkpoint(), tmp_path / "m.pt")
    before = torch.load(tmp_path / "m.pt", weights_only=False)
    assert run("init", tmp_path / "m.pt", "--at", "model", "--scheme", "zeros", "--in-place").code == 0
    after = torch.load(tmp_path / "m.pt", weights_only=False)
    assert after["args"] == before["args"]
    assert type(after["best"]) is np.float64
    assert (after["epoch"], after["best"], after["history"]) == (3, 0.5, before["history"])
    assert torch.equal(after["rng"], before["rng"])
    assert after["optimizer"]["param_groups"] == before["optimizer"]["param_groups"]
    assert after["model"]._metadata == before["model"]._metadata
    assert after["model"]["0.weight"].abs().sum() == 0
    net = network()
    net.load_state_dict(after["model"])
    torch.optim.AdamW(net.parameters()).load_state_dict(after["optimizer"])


def test_a_pickled_module_stays_a_module(run, tmp_path):
    """It loads as the class it was, with its ties, and computes with the new values."""
    torch.save(network(), tmp_path / "m.pt")
    run("init", tmp_path / "m.pt", "--layer", 2, "--scheme", "eye", "--bias", "zeros", "--in-place")
    found = torch.load(tmp_path / "m.pt", weights_only=False)
    assert type(found) is nn.Sequential
    assert found[2] is found[4]
    assert all(parameter.requires_grad for parameter in found.parameters())
    batch = torch.rand(2, 4)
    assert torch.equal(found[2:5](batch), batch)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_a_zip_that_another_program_packed(run, tmp_path, compression):
    """A torch zip packed again, with data descriptors and comments, is edited; compressed bytes are refused."""
    torch.save({"weight": torch.zeros(3, 3), "other": torch.ones(2)}, tmp_path / "m.pt")
    with (
        zipfile.ZipFile(tmp_path / "m.pt") as old,
        open(tmp_path / "packed.pt", "wb") as raw,  # noqa: PTH123
        zipfile.ZipFile(Unseekable(raw), "w", compression) as new,
    ):
        new.comment = b"packed again"
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    result = run("init", tmp_path / "packed.pt", "--scheme", "ones", "--in-place")
    if compression == zipfile.ZIP_DEFLATED:
        assert result.err == (
            f"error: {tmp_path}/packed.pt: weight: its bytes are compressed inside the archive, and cannot be changed there\n"
        )
        return
    assert (result.code, len(members(tmp_path / "packed.pt"))) == (0, len(members(tmp_path / "m.pt")))
    with zipfile.ZipFile(tmp_path / "packed.pt") as archive:
        assert archive.comment == b"packed again"
        data = [archive.read(name) for name in archive.namelist() if "/data/" in name]
    assert data == [struct.pack("<9f", *[1] * 9), struct.pack("<2f", 1, 1)]


class Unseekable:
    """A stream: `zipfile` then writes sizes and checksums after each member."""

    def __init__(self, raw):
        self.raw = raw

    def write(self, data):
        return self.raw.write(data)

    def flush(self):
        self.raw.flush()


def test_safetensors_keep_header_and_neighbours(run, tmp_path):
    """The header is the same bytes, order and metadata included, and so is every tensor that was not named."""
    state = {f"layers.{i}.weight": torch.randn(3, 4) for i in range(3)} | {
        "ids": torch.arange(5),
        "half": torch.randn(4).to(torch.bfloat16),
        "layers.0.bias": torch.randn(3),
        "empty": torch.zeros(0, 3),
    }
    path = tmp_path / "m.safetensors"
    save_file(state, path, metadata={"format": "pt", "layers.9.weight": "layers.1.weight"})
    raw = path.read_bytes()
    (nbytes,) = struct.unpack("<Q", raw[:8])
    run("init", path, "layers.9.weight", "--scheme", "xavier", "--seed", 0, "-o", tmp_path / "new.safetensors")
    new = (tmp_path / "new.safetensors").read_bytes()
    assert path.read_bytes() == raw
    assert new[: 8 + nbytes] == raw[: 8 + nbytes]
    start, end = (8 + nbytes + at for at in json.loads(raw[8 : 8 + nbytes])["layers.1.weight"]["data_offsets"])
    assert (new[:start], new[end:]) == (raw[:start], raw[end:])
    torch.manual_seed(0)
    expected = nn.init.xavier_uniform_(torch.empty(3, 4))
    assert torch.equal(load_file(tmp_path / "new.safetensors")["layers.1.weight"], expected)


def test_big_endian_storages(run, tmp_path):
    """A file of the other byte order is set in that order; drawing refuses it by name."""
    torch.save({"weight": torch.arange(4.0)}, tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt") as old, zipfile.ZipFile(tmp_path / "big.pt", "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith("byteorder"):
                data = b"big"
            if "/data/" in info.filename:
                data = struct.pack(">4f", *struct.unpack("<4f", data))
            new.writestr(info.filename, data)
    assert run("set", tmp_path / "big.pt", "weight[1:] += 0.5", "--in-place").code == 0
    with zipfile.ZipFile(tmp_path / "big.pt") as archive:
        assert struct.unpack(">4f", archive.read("m/data/0")) == (0, 1.5, 2.5, 3.5)
    result = run("init", tmp_path / "big.pt", "--scheme", "ones", "--in-place")
    assert result.err == "error: weight: its bytes are big-endian; --scheme works on little-endian files\n"


def test_mode_and_link_are_kept(run, tmp_path):
    """A file in place keeps its mode, and a link stays a link to the file that was changed."""
    torch.save({"weight": torch.zeros(2)}, tmp_path / "real.pt")
    (tmp_path / "real.pt").chmod(0o640)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link.pt").symlink_to("../real.pt")
    assert run("set", tmp_path / "folder" / "link.pt", "weight = 1", "--in-place").code == 0
    assert (tmp_path / "folder" / "link.pt").is_symlink()
    assert stat.S_IMODE((tmp_path / "real.pt").stat().st_mode) == 0o640
    assert torch.load(tmp_path / "real.pt")["weight"].tolist() == [1, 1]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["link.pt"]


def test_a_new_file_has_the_usual_mode(run, tmp_path):
    """A file that was not there has the mode that the umask leaves."""
    torch.save({"weight": torch.zeros(2)}, tmp_path / "m.pt")
    before = os.umask(0o027)
    try:
        run("set", tmp_path / "m.pt", "weight = 1", "-o", tmp_path / "new.pt")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new.pt").stat().st_mode) == 0o640


def test_an_owner_is_kept(run, tmp_path):
    """Where the system allows it, a file that is edited stays its owner's."""
    torch.save({"weight": torch.zeros(2)}, tmp_path / "m.pt")
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(tmp_path / "m.pt", 1234, 1234)
    run("set", tmp_path / "m.pt", "weight = 1", "--in-place")
    status = (tmp_path / "m.pt").stat()
    assert (status.st_uid, status.st_gid) == (1234, 1234)


def test_the_same_seed_gives_the_same_bytes(run, tmp_path):
    """Twice the same command is twice the same file, of every kind of source and format."""
    torch.save(network(), tmp_path / "m.pt")
    for source, suffix in ((tmp_path / "m.pt", "pt"), ("models/tied.py", "pt"), ("models/tied.py", "safetensors")):
        for out in ("a", "b"):
            words = ("init", source, "--scheme", "normal", "--seed", 3, "-o", tmp_path / f"{out}.{suffix}")
            assert run(*words).code == 0
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_a_definition_written_as_safetensors(run, tmp_path):
    """Ties are declared as `save_model` declares them, so that `load_model` puts the model together again."""
    from safetensors.torch import load_model

    run("init", "models/tied.py", "--scheme", "xavier", "--seed", 0, "-o", tmp_path / "m.safetensors")
    torch.manual_seed(0)
    shared = nn.Linear(8, 8)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(8, 1))
    load_model(net, tmp_path / "m.safetensors")
    rows = run("show", tmp_path / "m.safetensors", "4.weight", "-f", "json").rows
    assert rows[0]["value"] == net[4].weight.tolist()


def test_pickles_are_never_run(run, tmp_path):
    """An edit of a file whose pickle would run a command does not run it, and keeps it."""

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/ran",))

    torch.save({"weight": torch.zeros(2), "evil": Evil()}, tmp_path / "m.pt", pickle_module=pickle)
    before = members(tmp_path / "m.pt")
    assert run("set", tmp_path / "m.pt", "weight = 1", "--in-place").code == 0
    assert not (tmp_path / "ran").exists()
    after = members(tmp_path / "m.pt")
    assert [name for name in before if before[name] != after[name]] == [name for name in before if "/data/" in name]


def test_holes_stay_holes(run, tmp_path):
    """A sparse file takes no more room when a value in it was changed, and the rest of it still reads as zeros."""
    path, numel = tmp_path / "m.safetensors", 1 << 24
    header = json.dumps({"w": {"dtype": "F32", "shape": [numel], "data_offsets": [0, 4 * numel]}}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 4 * numel)
    done = run("set", path, f"w[{numel // 2}] = 7", "-o", tmp_path / "o.safetensors")
    assert (done.code, done.err) == (0, "")
    found = load_file(tmp_path / "o.safetensors")["w"]
    assert (found[numel // 2], found.count_nonzero(), len(found)) == (7, 1, numel)
    assert 512 * (tmp_path / "o.safetensors").stat().st_blocks < 1 << 20


def test_an_npz_is_edited_in_place(run, tmp_path):
    """Arrays of every order are changed where they lie, as numpy reads them with their checksums; others stay bytes."""
    held = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "c": np.arange(3, dtype=">i4"),
        "word": np.array("text"),
    }
    np.savez(tmp_path / "m.npz", **held)
    before = members(tmp_path / "m.npz")
    done = run("set", tmp_path / "m.npz", "a[1] = 5", "b[:, 1] *= 2", "c += 1", "--in-place")
    assert (done.code, done.err) == (0, "")
    after = members(tmp_path / "m.npz")
    assert [name for name in before if before[name] != after[name]] == ["a.npy", "b.npy", "c.npy"]
    held["a"][1], held["b"][:, 1] = 5, held["b"][:, 1] * 2
    held["c"] += 1
    with np.load(tmp_path / "m.npz") as found:
        assert all(np.array_equal(found[name], held[name]) for name in held)


def test_what_is_deflated_is_not_edited(run, tmp_path):
    """Bytes that are compressed cannot be changed where they lie; it is said, and nothing is written."""
    np.savez_compressed(tmp_path / "m.npz", a=np.arange(12.0))
    before = (tmp_path / "m.npz").read_bytes()
    done = run("set", tmp_path / "m.npz", "a[1] = 5", "--in-place")
    why = "its bytes are compressed inside the archive, and cannot be changed there"
    assert (done.code, done.err) == (2, f"error: {tmp_path}/m.npz: a: {why}\n")
    assert ((tmp_path / "m.npz").read_bytes(), [path.name for path in tmp_path.iterdir()]) == (before, ["m.npz"])


def test_no_edit_is_called_npz_but_of_one(run, tmp_path):
    """An edit keeps the format, and of what other files are called npz says another: of an exported program, too."""
    exported = torch.export.export(nn.Linear(2, 1), (torch.zeros(1, 2),))
    torch.export.save(exported, tmp_path / "m.pt2")
    np.savez(tmp_path / "m.npz", weight=np.ones(2))
    done = run("set", tmp_path / "m.pt2", "weight = 1", "-o", tmp_path / "new.npz")
    assert (done.code, done.err.splitlines()[0]) == (
        2,
        f"error: {tmp_path}/m.pt2: it is torch-export, which new.npz does not say",
    )
    assert run("set", tmp_path / "m.npz", "weight = 1", "-o", tmp_path / "new.npz").code == 0
