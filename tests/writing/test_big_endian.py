"""A torch file of a big-endian machine becomes every other, and stays big-endian where it is edited."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import contents, read, ties

from paramctl.formats.targets import TARGETS

_BASE = torch.arange(12.0).reshape(3, 4)
STATE = {
    "w": _BASE,
    "again": _BASE,
    "part": _BASE[1:],
    "turned": _BASE.t(),
    "i": torch.arange(5),
    "c": torch.tensor([1 + 2j, 3 - 1j]),
    "b": torch.tensor([True, False]),
    "d": torch.tensor([0.1, 1e5], dtype=torch.float64),
}


@pytest.fixture
def big(tmp_path, monkeypatch) -> Path:
    """What torch writes on such a machine: the same archive, its elements turned around, and a word that says so."""
    monkeypatch.chdir(tmp_path)
    torch.save(STATE, "little.pt")
    sizes = {
        param.storage.key: STATE[name].numpy().real.dtype.itemsize for name, param in read("little.pt").params.items()
    }
    with zipfile.ZipFile("little.pt") as old, zipfile.ZipFile("big.pt", "w") as new:
        for name in old.namelist():
            raw, folder, key = old.read(name), *name.rsplit("/", 2)[-2:]
            if folder == "data" and key in sizes:
                raw = np.frombuffer(raw, f"u{sizes[key]}").byteswap().tobytes()
            new.writestr(name, b"big" if key == "byteorder" else raw)
    assert same(torch.load("big.pt"), STATE)
    return tmp_path / "big.pt"


def same(found: dict[str, Any], state: dict[str, Any]) -> bool:
    return found.keys() == state.keys() and all(
        torch.equal(found[name], state[name]) and found[name].dtype == state[name].dtype for name in state
    )


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "torch-zip"])
def test_every_format_has_its_values(target, big, run):
    """Of another format it is little-endian, and every element is that of the file of a little-endian machine."""
    out = f"out{(TARGETS[target].suffixes or ('',))[0]}"
    assert run("convert", big, out, "--to", target).code == 0
    assert contents(read(out)) == contents(read("little.pt"))
    assert ties(read(out)) == (ties(read(big)) if TARGETS[target].ties else set())


EDITS: dict[str, tuple[list[str], dict[str, torch.Tensor]]] = {
    "as it is": (["convert", "big.pt", "out.pt"], STATE),
    "another name": (
        ["convert", "big.pt", "out.pt", "--rename", "w=>v"],
        {("v" if name == "w" else name): tensor for name, tensor in STATE.items()},
    ),
    "another dtype": (
        ["convert", "big.pt", "out.pt", "--dtype", "bf16"],
        {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in STATE.items()},
    ),
    "compact": (["convert", "big.pt", "out.pt", "--contiguous"], STATE),
    "untied": (["untie", "big.pt", "-o", "out.pt"], STATE),
    "tied": (["tie", "big.pt", "w", "again", "-o", "out.pt"], STATE),
}


@pytest.mark.parametrize(("words", "expected"), EDITS.values(), ids=EDITS)
def test_an_edited_file_stays_big_endian(words, expected, big, run):
    """`torch.load` reads the edited file to the values that were planned, and the archive still says big."""
    done = run(*words)
    assert (done.code, done.err) == (0, "")
    assert same(torch.load("out.pt", weights_only=True), expected)
    with zipfile.ZipFile("out.pt") as archive:
        assert archive.read(next(name for name in archive.namelist() if name.endswith("byteorder"))) == b"big"
        assert archive.testzip() is None
