"""Whether a checkpoint is whole, safe and finite: each fault told, and none where there is none."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import random
import re
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from paramctl import api
from paramctl.checkpoint import Param
from paramctl.contents import Window
from paramctl.dtypes import DTYPES
from paramctl.errors import ParamctlError
from paramctl.formats.pickle_calls import Call
from paramctl.ops import _check_pickle as safety
from paramctl.ops import check as ops_check
from paramctl.ops._check_findings import RULES
from paramctl.render import sarif
from paramctl.values import scan as scans
from tensors import param


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def found(*models: str, fast: bool = False) -> list[tuple[str, str, str | None, str]]:
    """Level, rule, name and detail of each finding."""
    return [row[1:] for row in api.check(*models, fast=fast).rows]


def rules(*models: str, fast: bool = False) -> list[str]:
    return [row[1] for row in found(*models, fast=fast)]


def saved(value: object, name: str = "m.pt", **more: object) -> bytearray:
    torch.save(value, name, **more)
    return bytearray(Path(name).read_bytes())


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1)).state_dict()


# ----------------------------------------------------------------------------- nothing to find


@pytest.mark.parametrize(
    ("write", "detail"),
    [
        (lambda: saved(weights()), "4 tensors, whole, safe and finite; torch.load(weights_only=True) takes it"),
        (lambda: saved({}), "0 tensors, whole, safe and finite; torch.load(weights_only=True) takes it"),
        (lambda: saved({"w": torch.zeros(2, 0), "n": torch.zeros(3, 4).t()}), "2 tensors, whole, safe and finite; torch.load(weights_only=True) takes it"),
        (lambda: save_file(weights(), "m.pt"), "4 tensors, whole, safe and finite"),
        (lambda: save_file({}, "m.pt"), "0 tensors, whole, safe and finite"),
    ],
)  # fmt: skip
def test_a_clean_file_is_one_row(write, detail):
    """What the libraries write is in order, and says so in one row."""
    write()
    assert found("m.pt") == [("ok", "sound", None, detail)]


def test_fast_leaves_values_unread():
    """With fast neither checksums nor values are read, and the row says so."""
    data = saved({"w": torch.full((4,), math.nan)})
    data[data.index(b"data/0") + 100] ^= 1
    Path("m.pt").write_bytes(data)
    assert found("m.pt", fast=True) == [
        ("ok", "sound", None, "1 tensor, whole and safe; values were not read; torch.load(weights_only=True) takes it")
    ]


def test_a_definition_is_checked_too(tmp_path):
    """A definition has values, and they are looked at."""
    (tmp_path / "net.py").write_text(
        "import torch\nnet = torch.nn.Linear(2, 1)\ntorch.nn.init.constant_(net.bias, float('nan'))\n"
    )
    assert found("net.py") == [("error", "nan", "bias", "1 of 1 values is NaN, the first at [0]")]


def test_what_is_not_there_is_no_finding():
    """A file that is not there could not be checked."""
    with pytest.raises(ParamctlError, match=r"^error: no.pt: no such file"):
        api.check("no.pt")


def test_totals():
    """Files, those in order, and findings by level."""
    saved(weights(), "a.pt")
    saved({"w": torch.tensor([math.nan]), "a": argparse.Namespace()}, "b.pt")
    assert dict(api.check("a.pt", "b.pt").totals) == {"files": 2, "sound": 1, "errors": 1, "warnings": 1, "notes": 1}
    assert [row[0] for row in api.check("a.pt", "b.pt").rows] == ["a.pt", "b.pt", "b.pt", "b.pt"]


# ----------------------------------------------------------------------------- whole


def test_what_the_reader_refuses():
    """The reader's own words, without the file's name."""
    Path("m.safetensors").write_bytes(struct.pack("<Q", 5000) + b'{"a":1}')
    assert found("m.safetensors") == [
        ("error", "unreadable", None, "the header says 5,000 bytes, the file has 7 after its length (the download may have been cut short)"),
        ("error", "truncated", None, "at least 4,993 bytes are missing, of the header itself: no tensor can be told"),
    ]  # fmt: skip
    Path("empty.pt").write_bytes(b"")
    assert found("empty.pt") == [("error", "unreadable", None, "the file is empty")]


def test_a_safetensors_file_cut_short():
    """How many bytes are missing, and which tensors are whole."""
    save_file({"a": torch.zeros(10), "b": torch.zeros(20), "c": torch.zeros(5)}, "m.safetensors")
    Path("m.safetensors").write_bytes(Path("m.safetensors").read_bytes()[:-30])
    assert found("m.safetensors")[1:] == [
        ("error", "truncated", None, "30 bytes are missing; 1 of 3 tensors is whole: a"),
        ("error", "lost-tensor", "b", "it ends 10 bytes beyond the end of the file"),
        ("error", "lost-tensor", "c", "it ends 30 bytes beyond the end of the file"),
    ]


def test_a_torch_zip_cut_short():
    """At every length: nothing fails, and the tensors that are called whole have all their bytes there."""
    values = {f"w{i}": torch.arange(40.0) + i for i in range(4)}
    data = bytes(saved(values))
    ends = {name: data.index(value.numpy().tobytes()) + 160 for name, value in values.items()}
    for nbytes in (*range(4, len(data), 97), *(end + by for end in ends.values() for by in (-1, 0, 1))):
        Path("m.pt").write_bytes(data[:nbytes])
        rows = found("m.pt")
        assert (rows[0][0], {row[0] for row in rows}) == ("error", {"error"})
        told = [row[3] for row in rows if row[1] == "truncated"]
        whole = re.findall(r"w\d", "".join(told))
        if "tensors" in "".join(told) and "nothing" not in told[0] and "all" not in told[0]:
            assert whole == [name for name, end in ends.items() if end <= nbytes]


def _gguf(values: dict[str, torch.Tensor]) -> bytes:
    made = gguf.GGUFWriter("m.gguf", "llama")
    for name, value in values.items():
        made.add_tensor(name, value.numpy())
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    return Path("m.gguf").read_bytes()


BEHIND_A_HEADER = {
    "legacy": lambda values: bytes(saved(values, _use_new_zipfile_serialization=False)),
    "gguf": _gguf,
}


@pytest.mark.parametrize("name", BEHIND_A_HEADER)
def test_values_behind_a_header_cut_short(name):
    """At every length: what is missing of the last tensor's bytes, and each tensor is whole or lost as its bytes say."""
    values = {f"w{i}": torch.arange(40.0) + 100 * (i + 1) for i in range(4)}
    data = BEHIND_A_HEADER[name](values)
    begins = [data.index(value.numpy().tobytes()) for value in values.values()]
    ends = {name: begin + 160 for name, begin in zip(values, begins, strict=True)}
    for nbytes in (*range(4, len(data), 61), *(end + by for end in ends.values() for by in (-1, 0, 1)), *begins):
        if nbytes >= max(ends.values()):
            continue  # as whole as it was
        Path("m").write_bytes(data[:nbytes])
        rows = found("m")
        assert rows[0][0] == "error"
        told = [row[3] for row in rows if row[1] == "truncated"]
        assert bool(told) or nbytes < min(begins)
        if told:
            assert told[0].startswith(f"{max(ends.values()) - nbytes:,} bytes are missing; ")
            assert re.findall(r"w\d", told[0]) == [name for name, end in ends.items() if end <= nbytes]
            lost = {row[2]: row[3] for row in rows if row[1] == "lost-tensor"}
            beyond = {name: end - nbytes for name, end in ends.items() if end > nbytes}
            assert lost == {name: f"it ends {by:,} bytes beyond the end of the file" for name, by in beyond.items()}


@pytest.mark.parametrize("place", ["w", "data.pkl"])
def test_a_changed_byte_is_told(place):
    """A checksum that does not fit names the member, of storages and of the pickle."""
    data = saved({"w": torch.arange(100.0)})
    at = data.index(torch.arange(100.0).numpy().tobytes()) + 21 if place == "w" else data.index(b"cpu")
    data[at] ^= 1
    Path("m.pt").write_bytes(data)
    ((level, _rule, name, detail),) = [row for row in found("m.pt") if row[1] == "checksum"]
    assert (level, name) == ("error", "m/data/0" if place == "w" else "m/data.pkl")
    assert re.fullmatch(r"its checksum is [0-9a-f]{8}, and should be [0-9a-f]{8}", detail)


def test_an_archive_without_checksums_is_a_note():
    """torch can leave checksums out; that is said once, and is no fault."""
    torch.serialization.set_crc32_options(False)
    try:
        saved(weights())
    finally:
        torch.serialization.set_crc32_options(True)
    assert [(level, rule) for level, rule, *_ in found("m.pt")] == [("ok", "sound"), ("note", "no-checksums")]


def entries(data: bytes | bytearray) -> dict[str, int]:
    """Where the directory's entry of each member stands."""
    made, at = {}, data.rindex(b"PK\x05\x06")
    at = struct.unpack_from("<I", data, at + 16)[0]
    while data[at : at + 4] == b"PK\x01\x02":
        name, extra, comment = struct.unpack_from("<3H", data, at + 28)
        made[data[at + 46 : at + 46 + name].decode()] = at
        at += 46 + name + extra + comment
    return made


def archive(members: dict[str, bytes]) -> bytearray:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as made:
        for name, raw in members.items():
            made.writestr(name, raw)
    return bytearray(held.getvalue())


PLAIN = {"m/data.pkl": b"\x80\x02}.", "m/version": b"3\n", "m/more": b"x" * 50}


@pytest.mark.parametrize(
    ("tamper", "want"),
    [
        (lambda d: d.__setitem__(d.index(b"m/more"), 0x6E), "local-header m/more the directory and its local header disagree: it is of n/more"),
        (lambda d: struct.pack_into("<H", d, d.index(b"m/more") - 22, 8), "local-header m/more the directory and its local header disagree: method 0 and 8"),
        (lambda d: struct.pack_into("<I", d, d.index(b"m/more") - 8, 49), "local-header m/more the directory and its local header disagree: size 50 and 49"),
        (lambda d: struct.pack_into("<I", d, d.index(b"m/more") - 12, 51), "local-header m/more the directory and its local header disagree: stored size 50 and 51"),
        (lambda d: struct.pack_into("<I", d, d.index(b"m/more") - 16, 7), "local-header m/more the directory and its local header disagree: checksum ac628a03 and 00000007"),
        (lambda d: struct.pack_into("<H", d, entries(d)["m/more"] + 8, 1), "encrypted m/more it is encrypted, which torch does not read"),
        (lambda d: struct.pack_into("<H", d, entries(d)["m/more"] + 10, 12), "checksum m/more it is compressed by method 12, and torch reads only stored and deflated members"),
        (lambda d: struct.pack_into("<I", d, entries(d)["m/more"] + 42, 3), "local-header m/more the directory and its local header disagree: there is none at byte 3"),
        (lambda d: struct.pack_into("<I", d, entries(d)["m/more"] + 42, 0), "overlap m/more it begins at byte 0, and m/data.pkl ends at "),
        (lambda d: d.extend(b"hidden"), "unused-bytes None 6 bytes stand behind the directory"),
    ],
)  # fmt: skip
def test_tricks_of_archives(tamper, want):
    """What the directory says is held against each member's own header, and against the others."""
    data = archive(PLAIN)
    tamper(data)
    Path("m.pt").write_bytes(data)
    assert any(f"{rule} {name} {detail}".startswith(want) for _, rule, name, detail in found("m.pt")), found("m.pt")


def test_a_gap_in_an_archive():
    """Bytes between members that belong to none."""
    data = archive(PLAIN)
    directory, at = data.rindex(b"PK\x05\x06"), data.index(b"m/version") - 30
    hidden = data[:at] + b"h" * 10 + data[at:]
    for name, entry in entries(data).items():
        if name != "m/data.pkl":
            (offset,) = struct.unpack_from("<I", data, entry + 42)
            struct.pack_into("<I", hidden, entry + 10 + 42, offset + 10)
    struct.pack_into("<I", hidden, directory + 10 + 16, struct.unpack_from("<I", data, directory + 16)[0] + 10)
    Path("m.pt").write_bytes(hidden)
    assert found("m.pt") == [
        ("warning", "unused-bytes", "m/version", f"the 10 bytes before it, from {at} on, belong to no member")
    ]


def test_a_name_that_stands_twice():
    """Programs differ in which they take; both pickles are looked at."""
    evil = b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R."
    with zipfile.ZipFile("m.pt", "w") as made:
        made.writestr("m/data.pkl", evil)
        with pytest.warns(UserWarning, match="Duplicate"):
            made.writestr("m/data.pkl", b"\x80\x02}.")
    rows = found("m.pt")
    assert ("error", "unreadable", None, "m/data.pkl stands twice in the archive") in rows
    assert (
        "error",
        "duplicate-member",
        "m/data.pkl",
        "it stands 2 times in the archive, and programs differ in which they take",
    ) in rows
    assert ("error", "dangerous-call", "os.system", "REDUCE at byte 21 calls os.system('id')") in rows


def test_slices_drag_their_storage():
    """A storage of which parts are seen by nobody is a warning with what is wasted; views that share all are none."""
    whole = torch.zeros(1000)
    saved({"a": whole[5:9], "b": torch.zeros(4, 4), "c": torch.zeros(8)[::2]})
    assert found("m.pt") == [
        ("warning", "oversized-storage", "a", "its storage has 4,000 bytes, of which 16 are used: 3,984 are wasted"),
        ("warning", "oversized-storage", "c", "its storage has 32 bytes, of which 16 are used: 16 are wasted"),
    ]
    saved({"a": whole[:500], "b": whole[500:]})
    assert rules("m.pt") == ["sound"]


def test_storages_that_nobody_looks_at():
    """A storage in the archive that no tensor uses is a note."""
    saved({"w": torch.zeros(2)})
    with zipfile.ZipFile("m.pt", "a") as made:
        made.writestr("m/data/9", bytes(400))
    assert ("note", "unreferenced-storage", "m/data/9", "no tensor looks at its 400 bytes") in found("m.pt")


def test_folders_of_shards():
    """Each shard is looked at, and named; ties are looked for over all of them. A header may begin as a pickle does."""
    table = torch.arange(60.0).reshape(10, 6)
    Path("f").mkdir()
    save_file({"model.embed_tokens.weight": table}, "f/model-00001-of-00002.safetensors")
    save_file({"lm_head.weight": table.clone(), "b": torch.tensor([math.inf])}, "f/model-00002-of-00002.safetensors")
    names = {"model.embed_tokens.weight": 1, "lm_head.weight": 2, "b": 2}
    index = {"weight_map": {name: f"model-0000{n}-of-00002.safetensors" for name, n in names.items()}}
    Path("f/model.safetensors.index.json").write_text(json.dumps(index))
    Path("f/config.json").write_text('{"tie_word_embeddings": true}')
    assert Path("f/model-00002-of-00002.safetensors").read_bytes()[:1] == b"\x80"
    for model in ("f", "f/model.safetensors.index.json"):
        rows = api.check(model).rows
        assert [row[:4] for row in rows] == [
            (model, "error", "inf", "b"),
            (model, "warning", "lost-tie", "model.embed_tokens.weight"),
        ]


A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEXES = {  # what the index says beside what is so; the levels; the detail of the first
    "nothing else": ({}, [], ""),
    "a tensor that is elsewhere": (
        {"a": B}, ["warning"], f"a should be in {B}, and is in {A}",
    ),
    "a tensor that is nowhere, behind many that are elsewhere": (
        {f"a{i}": B for i in range(30)} | {"gone": A}, ["error"] + ["warning"] * 20, f"gone should be in {A}, and is in no shard",
    ),
    "a tensor that is nowhere, whose name reads like another problem": (
        {"total_size says c": B}, ["error"], f"total_size says c should be in {B}, and is in no shard",
    ),
    "a tensor that it leaves out": ({"b": None}, ["warning"], f"b is in {B}, and not in the index"),
    "the name of a declared tie": ({"lm_head.weight": B}, ["warning"], f"lm_head.weight should be in {B}, and is in no shard"),
    "another total": ({"total_size": 1}, ["note"], "total_size says 1 bytes, the tensors take 508"),
}  # fmt: skip


@pytest.mark.parametrize(("said", "levels", "detail"), INDEXES.values(), ids=INDEXES)
def test_shards_are_held_against_their_index(said, levels, detail):
    """A tensor that is in no shard is an error; what a reader of all shards finds all the same is none."""
    Path("f").mkdir()
    first = {"a": torch.ones(1)} | {f"a{i}": torch.ones(1) for i in range(30)}
    second = {"b": torch.ones(60), "model.embed_tokens.weight": torch.ones(6, 6)}
    save_file(first, f"f/{A}")
    save_file(second, f"f/{B}")
    said = dict(said)
    about = {"total_size": said.pop("total_size")} if "total_size" in said else {}
    owners = dict.fromkeys(first, A) | dict.fromkeys(second, B) | said
    index = {"metadata": about, "weight_map": {name: shard for name, shard in owners.items() if shard}}
    Path("f/model.safetensors.index.json").write_text(json.dumps(index))
    Path("f/config.json").write_text('{"tie_word_embeddings": true, "model_type": "llama"}')
    told = [row for row in api.check("f").rows if row[2] == "index"]
    assert [row[1] for row in told] == levels
    assert {row[0] for row in told} <= {"f/model.safetensors.index.json"}
    assert not told or told[0][4] == detail


def test_folders_of_pieces():
    """The pickles of a DCP folder: its metadata, and those of the entries that are no tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"w": torch.randn(4, 4), "epoch": 3}, checkpoint_id="f", no_dist=True)
        dcp.save({"w": torch.tensor([math.nan]), "h": Harm()}, checkpoint_id="g", no_dist=True)
    assert rules("f") == ["sound"]
    assert [row[:4] for row in api.check("g").rows] == [
        ("g/__0_0.distcp", "error", "dangerous-call", "posix.mkdir"),
        ("g", "error", "nan", "w"),
    ]


@pytest.mark.parametrize(
    ("name", "write", "want"),
    [
        ("a.npz", lambda: np.savez("a.npz", a=np.array([1, math.nan])), ["nan"]),
        ("a.npz", lambda: np.savez_compressed("a.npz", a=np.full(9999, math.inf)), ["inf"]),
        ("a.npy", lambda: np.save("a.npy", np.zeros((3, 4)).T), ["sound"]),
        ("a.npy", lambda: np.save("a.npy", np.array([Harm()], dtype=object), allow_pickle=True), ["dangerous-call"]),
    ],
)
def test_arrays_of_numpy(name, write, want):
    """Arrays are checked as tensors are, packed ones too; an array of objects is a pickle."""
    write()
    assert [rule for rule in rules(name) if rule not in ("known-class", "unreadable")] == want


# ----------------------------------------------------------------------------- safe


class Harm:
    def __reduce__(self):
        return (os.mkdir, ("harm",))


def test_what_a_pickle_would_call():
    """Every foreign global at once, the most dangerous first, and the verdict; nothing is run."""
    saved({"w": torch.zeros(2), "a": argparse.Namespace(lr=1), "h": Harm(), "n": nn.ReLU()})
    rows = found("m.pt")
    assert [(level, rule, name) for level, rule, name, _ in rows] == [
        ("error", "dangerous-call", "posix.mkdir"),
        ("warning", "weights-only", None),
        ("note", "known-class", "argparse.Namespace"),
        ("note", "known-class", "torch.nn.modules.activation.ReLU"),
    ]
    assert re.fullmatch(r"REDUCE at byte \d+ calls posix.mkdir\('harm'\)", rows[0][3])
    assert re.fullmatch(
        r"torch.load\(weights_only=True\) refuses it: the global argparse.Namespace, at byte \d+", rows[1][3]
    )
    assert not Path("harm").exists()


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("os.system", "dangerous-call"), ("builtins.eval", "dangerous-call"), ("builtins.exec", "dangerous-call"),
        ("builtins.compile", "dangerous-call"), ("builtins.__import__", "dangerous-call"),
        ("builtins.getattr", "dangerous-call"), ("subprocess.Popen", "dangerous-call"), ("pickle.loads", "dangerous-call"),
        ("socket.socket", "dangerous-call"), ("shutil.rmtree", "dangerous-call"), ("ctypes.CDLL", "dangerous-call"),
        ("importlib.import_module", "dangerous-call"), ("torch.load", "dangerous-call"), ("numpy.load", "dangerous-call"),
        ("torch:serialization.os.system", "dangerous-call"), ("builtins.getattr()", "dangerous-call"),
        ("torch.hub.load", "dangerous-call"), ("urllib.request.urlopen", "dangerous-call"),
        ("mine.run", "foreign-function"), ("numpy.fromfile", "foreign-function"),
        ("mine.Model", "foreign-class"), ("mine:Outer.Inner", "foreign-class"), ("mine.io.Model", "foreign-class"),
        ("argparse.Namespace", "known-class"), ("numpy.core.multiarray.scalar", "known-class"), ("numpy.float64", "known-class"),
        ("transformers.models.bert.configuration_bert.BertConfig", "known-class"), ("omegaconf.dictconfig.DictConfig", "known-class"),
        ("torch.nn.modules.linear.Linear", "known-class"), ("collections.OrderedDict", "known-class"),
        ("torch.nn.modules.linear.run", "foreign-function"), ("builtins.list", "known-class"),
    ],
)  # fmt: skip
def test_how_dangerous_a_name_is(name, want):
    """By a table: what runs, opens or reaches things; what is not known; what is known to do no harm."""
    assert safety.rule_of(Call(name, "REDUCE", f"{name}()", 0)) == want


@pytest.mark.parametrize(
    "data", [b"\x80\x04cos\nsystem\nX\x02\0\0\0id\x85R.", b"cos\nsystem\n(S'id'\ntR.", b"(S'id'\nios\nsystem\n."]
)
def test_a_pickle_of_nothing_known(data):
    """A file that is only a pickle is no checkpoint; what it would call is told all the same."""
    Path("m.bin").write_bytes(data)
    rows = found("m.bin")
    assert [rule for _, rule, *_ in rows] == ["unreadable", "dangerous-call"]
    assert rows[1][3].endswith("calls os.system('id')")


def test_files_of_before_1_6(monkeypatch):
    """Every one of a legacy file's pickles is looked at, however long they are."""
    saved(weights(), _use_new_zipfile_serialization=False)
    assert not [row for row in found("m.pt") if row[1] in ("dangerous-call", "damaged-pickle", "weights-only")]
    saved({"t": "x" * 3_000_000, "h": Harm()}, _use_new_zipfile_serialization=False)
    assert "dangerous-call" in rules("m.pt")


def test_other_pickles_of_an_archive():
    """A pickle under any name, and an array of objects, are looked at too; storages are not taken for pickles."""
    evil = b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R."
    saved({"w": torch.tensor([0x0280, 0], dtype=torch.int16)})
    array = io.BytesIO()
    np.save(array, np.array([Harm()], dtype=object), allow_pickle=True)
    with zipfile.ZipFile("m.pt", "a") as made:
        made.writestr("m/extra.bin", evil)
        made.writestr("m/arrays.npy", array.getvalue())
    told = [(name, detail.rpartition(" (")[2]) for _, rule, name, detail in found("m.pt") if rule == "dangerous-call"]
    assert told == [("os.system", "m/extra.bin)"), ("posix.mkdir", "m/arrays.npy)")]


def test_the_tar_of_torch_0_1():
    """Each member of a tar begins with a pickle, and each is looked at."""
    evil = b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R."
    with tarfile.open("m.tar", "w") as made:
        for name, raw in (("sys_info", b"\x80\x02}."), ("pickle", evil)):
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            made.addfile(info, io.BytesIO(raw))
    assert ("error", "dangerous-call", "os.system", "REDUCE at byte 21 calls os.system('id') (pickle)") in found(
        "m.tar"
    )


class Listed(nn.Module):
    """Its TorchScript archive has lists with and without a type, in its constants, its state and its debug files."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv1d(2, 2, 3, padding=1), nn.ReLU())
        self.sizes = [1, 2, 3]
        self.rates = {"a": [0.5], "b": [0.25]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.sizes[0] + self.rates["a"][0]


@pytest.mark.parametrize("make", [torch.jit.script, lambda module: torch.jit.trace(module, torch.ones(1, 2, 5))])
def test_torchscript(make):
    """A TorchScript archive's own names are no foreign ones, and none a danger; weights_only does not take it."""
    torch.jit.save(make(Listed()), "m.pt")
    sound, verdict = found("m.pt")
    assert sound[:2] == ("ok", "sound")
    assert verdict == ("note", "weights-only", None, "torch.load(weights_only=True) refuses TorchScript archives")


# ----------------------------------------------------------------------------- finite


FLOATS = {
    "float16": np.float16, "float32": np.float32, "float64": np.float64, "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2": ml_dtypes.float8_e5m2, "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu, "complex64": np.complex64, "complex128": np.complex128,
}  # fmt: skip


def scanned(of: Param, numel: int = 1 << 16) -> scans.Unbounded:
    with Window() as window:
        return scans.scan(of, window, numel=numel)


def test_every_float_type_is_scanned():
    """All types with NaN or infinity are in the table: of all float and complex types, those that can hold either."""
    finite = {"float4_e2m1fn", "float4_e2m1fn_x2", "float6_e2m3fn", "float6_e3m2fn"}
    known = {name for name, dtype in DTYPES.items() if dtype.kind in ("float", "complex") and dtype.block_numel == 1}
    assert known - finite == set(scans.BITS)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("order", ["little", "big"])
def test_counts_are_numpy_s(name, order):
    """NaN, infinity and the first of each are those that numpy and ml_dtypes find, for random bits, in small pieces."""
    dtype = np.dtype(FLOATS[name])
    raw = np.random.default_rng(0).integers(0, 256, 600 * dtype.itemsize, dtype=np.uint8)
    raw[: 40 * dtype.itemsize] = 0
    values = np.frombuffer(raw.tobytes(), dtype)
    if values.dtype.kind in {"f", "c"}:  # random bits of wide types are hardly ever NaN
        values = values.copy()
        values[[50, 70, 300]] = [math.nan, math.inf, -math.inf]
    data = (
        values.astype(dtype.newbyteorder(">")).tobytes()
        if order == "big" and values.dtype.kind in "fc"
        else values.tobytes()
    )
    if order == "big" and values.dtype.kind not in "fc":
        data = values.view(f"u{dtype.itemsize}").astype(f">u{dtype.itemsize}").tobytes()
    told = scanned(param(data, name, (20, 30), byteorder=order), 64)
    grid = values.reshape(20, 30)
    nan = np.isnan(grid)
    inf = np.isinf(grid) & ~nan
    first = [tuple(map(int, np.argwhere(mask)[0])) if mask.any() else None for mask in (nan, inf)]
    assert told == (nan.sum(), inf.sum(), *first)


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q8_0", "q2_k", "q3_k", "q4_k", "q6_k", "iq4_xs", "mxfp4"])
def test_blocks_are_scanned_as_the_gguf_library_reads_them(name):
    """A scale that is infinite or NaN is told of every element that it makes so."""
    dtype = DTYPES[name]
    raw = np.random.default_rng(1).integers(0, 256, (6 * 512 // dtype.block_numel, dtype.block_nbytes), np.uint8)
    raw[0] = 0
    with np.errstate(all="ignore"):
        raw[-1] = 255  # a scale that is NaN, in most types
        theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name.upper()]).reshape(6, 512)
    told = scanned(param(raw.tobytes(), name, (6, 512)))
    nan, inf = np.isnan(theirs), np.isinf(theirs)
    first = [tuple(map(int, np.argwhere(mask)[0])) if mask.any() else None for mask in (nan, inf)]
    assert told == (nan.sum(), inf.sum(), *first)
    assert told.nan or told.inf


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [
        ((12, 10), (10, 1), 0), ((10, 12), (1, 10), 0), ((3, 4, 10), (40, 10, 1), 0), ((10, 3, 4), (1, 40, 10), 0),
        ((4, 3), (30, 2), 7), ((3, 4), (2, 30), 7), ((5,), (20,), 3), ((), (), 34), ((1, 1), (9, 9), 34),
        ((2, 120), (0, 1), 0), ((120, 2), (1, 0), 0), ((6, 2, 5), (20, 0, 1), 34 % 20),
    ],
)  # fmt: skip
@pytest.mark.parametrize("numel", [1, 7, 1 << 20])
def test_every_geometry_is_scanned(shape, stride, offset, numel):
    """Transposed, sliced, expanded: counts and first indices are those of the same view in torch."""
    flat = torch.arange(120.0)
    flat[[7, 34, 39, 99]] = math.nan
    flat[[9, 35, 47, 23]] = math.inf
    view = flat.as_strided(shape, stride, offset)
    told = scanned(param(flat.numpy().tobytes(), "float32", shape, stride, offset), numel)
    first = [tuple(map(int, mask.nonzero()[0])) if mask.any() else None for mask in (view.isnan(), view.isinf())]
    assert told == (int(view.isnan().sum()), int(view.isinf().sum()), *first)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 30), st.randoms())
def test_the_first_of_any_view(shape, numel, rng):
    """Permuted, flipped, stepped and expanded: the first index is that of the view as numpy shows it."""
    array = np.zeros(shape, np.float32)
    for value in (math.nan, math.inf):
        array.reshape(-1)[[rng.randrange(array.size) for _ in range(rng.randrange(3))]] = value
    view = array.transpose(rng.sample(range(len(shape)), len(shape)))
    view = view[tuple(slice(None, None, rng.choice([1, 1, 2, -1, -2])) for _ in shape)]
    view = np.broadcast_to(view[..., None], (*view.shape, rng.choice([1, 3])))
    offset = (view.__array_interface__["data"][0] - array.__array_interface__["data"][0]) // 4
    told = scanned(param(array.tobytes(), "float32", view.shape, tuple(by // 4 for by in view.strides), offset), numel)
    for mask, count, first in ((np.isnan(view), told.nan, told.first_nan), (np.isinf(view), told.inf, told.first_inf)):
        assert count == mask.sum()
        assert first == (tuple(np.argwhere(mask)[0].tolist()) if mask.any() else None)


def test_a_terabyte_of_one_element_is_one_element():
    """What is expanded, or a window upon the same row, is read once."""
    raw = np.array([math.nan], np.float32).tobytes()
    assert scanned(param(raw, "float32", (1 << 20, 1 << 20), (0, 0))) == (1 << 40, 0, (0, 0), None)
    assert scanned(param(raw * 3, "float32", (3, *[1 << 20] * 4), (1, *[0] * 4))) == (3 << 80, 0, (0,) * 5, None)
    row = np.zeros(2000, np.float32)
    row[3] = math.inf
    assert scanned(param(row.tobytes(), "float32", (1000, 1001), (1, 1))) == (0, 1, None, None)
    assert scanned(param(row.tobytes(), "float32", (2, 3), (1, 1), 2)) == (0, 1, None, None)


def test_tied_names_are_told_once():
    """Names of the very same elements are one finding."""
    tied = torch.tensor([[1.0, math.nan, math.inf, -math.inf]])
    saved({"a": tied, "b": tied, "mask": torch.zeros(3, dtype=torch.bool), "n": torch.arange(3)})
    assert found("m.pt") == [
        ("error", "nan", "a", "1 of 4 values is NaN, the first at [0, 1]; and b, which is tied to it"),
        ("error", "inf", "a", "2 of 4 values are infinite, the first at [0, 2]; and b, which is tied to it"),
    ]


# ----------------------------------------------------------------------------- ties


@pytest.mark.parametrize(
    ("config", "same", "want"),
    [
        ({"tie_word_embeddings": True}, True, ["lost-tie"]),
        ({"text_config": {"tie_word_embeddings": True}}, True, ["lost-tie"]),
        ({"tie_word_embeddings": True}, False, ["sound"]),
        ({"tie_word_embeddings": False}, True, ["sound"]),
        (["no object"], True, ["sound"]),
        (None, True, ["sound"]),
    ],
)
def test_ties_that_were_lost(config, same, want):
    """Where the config ties the embeddings, the same bytes standing twice are a warning; other equal tensors are none."""
    table = torch.arange(60.0).reshape(10, 6)
    head = table.clone() if same else table + 1
    save_file({"model.embed_tokens.weight": table, "lm_head.weight": head, "a.weight": table.clone()}, "m.safetensors")
    if config is not None:
        Path("config.json").write_text(json.dumps(config))
    assert rules("m.safetensors") == want
    if want == ["lost-tie"]:
        ((level, _, name, detail),) = found("m.safetensors")
        assert (level, name) == ("warning", "model.embed_tokens.weight")
        assert (
            detail
            == "config.json ties embeddings, and lm_head.weight and model.embed_tokens.weight stand there as the same 240 bytes each"
        )


def test_damage_is_always_answered():
    """Cut anywhere, with bits and lengths changed, a file gets findings: never a crash, and in no long time."""
    rng = random.Random(0)
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), "s.pt")
    save_file(weights(), "t.pt")
    wholes = [bytes(saved(weights())), bytes(saved(weights(), _use_new_zipfile_serialization=False))]
    wholes += [bytes(saved({"h": Harm(), "w": torch.zeros(3)})), Path("s.pt").read_bytes(), Path("t.pt").read_bytes()]
    for _ in range(300):
        data = bytearray(rng.choice(wholes))
        if rng.random() < 0.3:
            data = data[: rng.randrange(len(data))]
        for _ in range(rng.randrange(4) if data else 0):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if len(data) > 4 and rng.random() < 0.3:
            at = rng.randrange(len(data) - 4)
            data[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"])
        Path("m.pt").write_bytes(data)
        assert found("m.pt")
    assert not Path("harm").exists()


def test_every_rule_is_described():
    """Each rule that a finding may have has its sentence in SARIF, and no other."""
    assert set(RULES) == set(sarif.RULES)
    assert len(ops_check.COLUMNS) == 5
