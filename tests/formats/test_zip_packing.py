"""Checkpoints of torch.save whose zip was packed anew: they are listed, their values are read, and no edit harms them."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

from paramctl import contents, formats, source
from paramctl.checkpoint import Param
from paramctl.errors import ParamctlError

STATE = {
    "a": torch.arange(1000.0).reshape(10, 100),
    "part": torch.arange(2000, dtype=torch.int16)[500:1500:2],
    "bits": torch.tensor([True, False]),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "empty": torch.zeros(0, 3),
    "half": torch.ones(7, dtype=torch.bfloat16),
}


def saved() -> bytes:
    held = io.BytesIO()
    torch.save(STATE | {"tied": STATE["a"]}, held)
    return held.getvalue()


def packed(method: int, *, level: int | None = None) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved())) as old, zipfile.ZipFile(held, "w", method, compresslevel=level) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return held.getvalue()


def value(param: Param) -> torch.Tensor:
    dtype = getattr(torch, param.dtype.name)
    start, end = param.span
    raw = contents.read(param, start, end)
    flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return flat.as_strided(param.shape, param.stride)


@pytest.mark.parametrize("level", [1, 9])
def test_deflated_members(level: int, read) -> None:
    """Names, geometry, sharing and values are those of the file as torch wrote it."""
    plain = read(saved())
    found = read(packed(zipfile.ZIP_DEFLATED, level=level))
    assert found.format == "torch-zip"
    assert found.params["a"].storage.extents[0].packing == "deflate"
    assert list(found.params) == list(plain.params)
    for name, param in found.params.items():
        expected = plain.params[name]
        assert param._replace(storage=expected.storage) == expected
        assert (param.storage.key, param.storage.nbytes) == (expected.storage.key, expected.storage.nbytes)
        assert torch.equal(value(param), (STATE | {"tied": STATE["a"]})[name])
    assert found.params["tied"].storage is found.params["a"].storage


@pytest.mark.skipif(not shutil.which("zip"), reason="needs zip")
def test_a_folder_that_was_zipped(tmp_path: Path) -> None:
    """As somebody zips what they had unzipped, with entries for the folders."""
    (tmp_path / "whole.pt").write_bytes(saved())
    with zipfile.ZipFile(tmp_path / "whole.pt") as archive:
        archive.extractall(tmp_path)
    subprocess.run(["zip", "-9qr", "again.pt", "archive"], cwd=tmp_path, check=True)
    found = formats.read(source.resolve(str(tmp_path / "again.pt")))
    assert {name: value(found.params[name]).tolist() for name in STATE} == {k: t.tolist() for k, t in STATE.items()}


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_commands(method: int, run, tmp_path: Path) -> None:
    """What is shown is as of the plain file."""
    plain, other = tmp_path / "plain.pt", tmp_path / "other.pt"
    plain.write_bytes(saved())
    other.write_bytes(packed(method))
    for words in (["show", "part[:3]", "a[9]", "half"], ["ties"]):
        command, *what = words
        expected = run(command, plain, *what, "-f", "json").json
        assert run(command, other, *what, "-f", "json").json | {"source": str(plain)} == expected


def test_an_edit_is_refused(run, tmp_path: Path) -> None:
    """What is deflated cannot be changed in its place; the file stays, and no other appears."""
    path = tmp_path / "m.pt"
    path.write_bytes(packed(zipfile.ZIP_DEFLATED))
    for words in (["--in-place"], ["-o", tmp_path / "out.pt"], []):
        result = run("set", path, "a[0, :] = 1", *words)
        assert result.code == 2
        assert result.out == ""
        assert (
            result.err
            == f"error: {path}: a: its bytes are compressed inside the archive, and cannot be changed there\n"
        )
    assert path.read_bytes() == packed(zipfile.ZIP_DEFLATED)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.pt"]


def flags(data: bytes, name: str, field: int, word: int) -> bytes:
    """With a 16-bit field of a member's directory entry changed."""
    at = data.rindex(name.encode()) - 46 + field
    return data[:at] + struct.pack("<H", word) + data[at + 2 :]


PLAIN = packed(zipfile.ZIP_DEFLATED)
UNREADABLE: dict[str, tuple[bytes, str]] = {
    "encrypted": (flags(PLAIN, "archive/data/0", 8, 1), "a: its bytes are encrypted inside the archive"),
    "another method": (
        flags(PLAIN, "archive/data/0", 10, 14),
        "a: its bytes are compressed inside the archive, by method 14",
    ),
}


@pytest.mark.parametrize("why", UNREADABLE)
def test_values_that_cannot_be_had(why: str, read) -> None:
    """They are listed, and the values say why not."""
    data, expected = UNREADABLE[why]
    found = read(data)
    assert list(found.params) == [*STATE, "tied"]
    with pytest.raises(ParamctlError) as caught:
        value(found.params["a"])
    assert str(caught.value) == f"error: {expected}"
    assert torch.equal(value(found.params["part"]), STATE["part"])


def test_bytes_that_inflate_to_less(read) -> None:
    """The size that the directory says is not believed."""
    held = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved())) as old, zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name)[:-400] if name == "archive/data/0" else old.read(name))
    data = held.getvalue()
    at = data.rindex(b"archive/data/0") - 46 + 24
    found = read(data[:at] + struct.pack("<I", 4000) + data[at + 4 :])
    with pytest.raises(ParamctlError) as caught:
        value(found.params["a"])
    assert str(caught.value) == "error: a: its bytes inflate to 3,600, not 4,000"
