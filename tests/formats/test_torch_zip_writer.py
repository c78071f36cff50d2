"""The torch zip that is written without torch: torch's own bytes, and edits that leave what was not named."""

from __future__ import annotations

import io
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.serialization import skip_data

from paramctl import source
from paramctl.errors import ParamctlError
from paramctl.formats import copying, small_archives, torch_zip_writer
from paramctl.formats.torch_zip_writer import Archive, Fresh, kept, write
from paramctl.source import Reader
from torch_files import read, saved, written

ID = "archive/.data/serialization_id"


def state(tensors: int = 3) -> OrderedDict[str, torch.Tensor]:
    made = OrderedDict((f"layer.{i}.weight", torch.full((3, i % 70), float(i))) for i in range(tensors))
    made["tied"] = made["layer.1.weight"][1:]
    made["eight"] = torch.ones(5).to(torch.float8_e4m3fn)
    return made


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


# ----------------------------------------------------------------------------- new archives


@pytest.mark.parametrize("tensors", [3, 999, 2500])
def test_the_bytes_are_those_of_torch_save(tensors: int, tmp_path: Path):
    """A state dict is written byte for byte as torch writes it, but for the digits that torch hashes."""
    theirs = tmp_path / "archive.pt"
    mine = written(saved(state(tensors), theirs), tmp_path / "mine.pt")
    expected, found = theirs.read_bytes(), mine.read_bytes()
    digits = members(theirs)[ID]
    assert len(digits) == len(members(mine)[ID]) == 40
    at = expected.rindex(digits)
    assert found[:at] == expected[:at]
    behind, crc = at + 40, struct.pack("<I", torch_zip_writer.zlib.crc32(digits))
    mine_crc = struct.pack("<I", torch_zip_writer.zlib.crc32(members(mine)[ID]))
    assert found[behind:].replace(mine_crc, crc) == expected[behind:]


@pytest.mark.parametrize("options", [{}, {"mmap": True}, {"weights_only": False}, {"map_location": "meta"}], ids=str)
def test_torch_loads_it(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """torch.load finds every storage, where it reads offsets and where it works them out."""
    monkeypatch.setenv("TORCH_SERIALIZATION_DEBUG", "1")
    expected = state(70)
    found = torch.load(written(saved(expected, tmp_path / "a.pt"), tmp_path / "b.pt"), **options)
    assert list(found) == list(expected)
    for name, tensor in found.items():
        assert (tensor.shape, tensor.dtype) == (expected[name].shape, expected[name].dtype)
        if not tensor.is_meta:
            assert torch.equal(tensor.float(), expected[name].float())
    if "map_location" not in options:
        assert found["tied"].untyped_storage()._cdata == found["layer.1.weight"].untyped_storage()._cdata


def test_beyond_4_gib_the_headers_are_those_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Sizes and offsets beyond 32 bits stand where torch puts them, for storages of 5 GiB that are holes."""
    theirs = tmp_path / "archive.pt"
    names = {"a": 5 << 30, "none": 0, "b": 3, "c": 5 << 30}
    with skip_data():
        torch.save({name: torch.empty(numel, dtype=torch.uint8) for name, numel in names.items()}, theirs)
    monkeypatch.setattr(copying, "copy_range", lambda *_, nbytes, **__: nbytes)
    with Reader(source.resolve(str(theirs))) as reader, (tmp_path / "mine.pt").open("w+b") as file:
        stay = kept(reader, "archive/data/")
        pickled = members_of(theirs, "archive/data.pkl")
        write(Archive(file), pickled, stay.values())
        nbytes = file.tell()
        assert nbytes == reader.nbytes
        with zipfile.ZipFile(theirs) as archive:
            offsets = [(info.filename, info.header_offset, info.file_size) for info in archive.infolist()]
            end = archive.start_dir
        with zipfile.ZipFile(file) as archive:
            assert [(info.filename, info.header_offset, info.file_size) for info in archive.infolist()] == offsets
        for name, at, size in offsets:
            for begin in (at, at + 64 + size):
                file.seek(begin)
                if name != ID:
                    assert file.read(128) == reader.read(begin, 128), (name, begin)
        file.seek(end)
        digits = zipfile.ZipFile(theirs).getinfo(ID).CRC, zipfile.ZipFile(file).getinfo(ID).CRC
        file.seek(end)
        old, new = (struct.pack("<I", crc) for crc in digits)
        assert file.read().replace(new, old) == reader.read(end, nbytes - end)


def members_of(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


@pytest.mark.parametrize("limit", [0, 100, 1300, 2000])
def test_wide_fields_are_read_by_everybody(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Archives whose fields are wide from a small size on are read by torch, zipfile and paramctl."""
    monkeypatch.setattr(torch_zip_writer, "_LIMIT", limit)
    expected = state()
    path = written(saved(expected, tmp_path / "archive.pt"), tmp_path / "b.pt")
    assert list(members(path)) == list(members(tmp_path / "archive.pt"))
    for found in (torch.load(path), torch.load(path, mmap=True)):
        assert all(torch.equal(found[name].float(), tensor.float()) for name, tensor in expected.items())
    assert list(read(path).params) == list(expected)


def test_more_members_than_16_bits_can_count(tmp_path: Path):
    """Beyond 65,535 members torch, zipfile and paramctl go by the wide directory."""
    path = tmp_path / "m.pt"
    with path.open("wb") as file:
        write(Archive(file), b"\x80\x02]K\x01a.", (Fresh(str(i), 0, ()) for i in range(66_000)))
    assert torch.load(path) == [1]
    assert len(members(path)) == 66_006
    assert read(path).extras == {"value": [1]}


# ----------------------------------------------------------------------------- what is not there


@pytest.mark.parametrize("given", [3, 5])
def test_a_storage_is_as_long_as_was_said(given: int):
    """Chunks that are more or fewer bytes than were announced are an error, and no archive."""
    with pytest.raises(ParamctlError) as error:
        write(Archive(io.BytesIO()), b".", [Fresh("0", 4, (bytes(given),))])
    assert str(error.value) == f"error: archive/data/0: {given} bytes were to be had, and not 4"


def test_chunks_are_whatever_has_bytes():
    """Chunks can be arrays of any dtype and shape, empty ones too."""
    chunks = [np.arange(6, dtype=np.int16).reshape(2, 3), np.empty((0, 3)), b"", bytearray(b"ab"), memoryview(b"c")]
    file = io.BytesIO()
    write(Archive(file), b".", [Fresh("0", 15, chunks)])
    found = zipfile.ZipFile(file).read("archive/data/0")
    assert found == np.arange(6, dtype=np.int16).tobytes() + b"abc"


def test_the_same_gives_the_same_bytes_and_other_values_another_id():
    """An archive is a function of what is in it; its id is one of its contents."""

    def made(value: bytes) -> bytes:
        file = io.BytesIO()
        write(Archive(file), b"\x80\x02N.", [Fresh("0", 4, (value[:1], value[1:]))], metadata={"a": "b"})
        return file.getvalue()

    def id_of(archive: bytes) -> bytes:
        return zipfile.ZipFile(io.BytesIO(archive)).read(ID)

    assert made(b"abcd") == made(b"abcd")
    assert id_of(made(b"abcd"))[:20] == id_of(made(b"abce"))[:20]
    assert id_of(made(b"abcd"))[20:] != id_of(made(b"abce"))[20:]


# ----------------------------------------------------------------------------- metadata


def test_metadata_comes_back_and_torch_passes_over_it(tmp_path: Path):
    """Text by name is read back as it was given, whatever it holds, and torch.load gives the tensors alone."""
    metadata = {"format": "pt", "": "empty", "é\n": '{"a": "\x1b"}', "\ud800": "lone"}
    expected = saved(state(), tmp_path / "a.pt")
    path = written(expected, tmp_path / "b.pt", metadata=metadata)
    assert read(path).metadata == metadata
    assert list(torch.load(path)) == list(expected.params)
    assert expected.metadata == {}


@pytest.mark.parametrize("said", [b"[1]", b"{", b"", b"[" * 100_000, b'{"a": 1}', b"\xff"], ids=range(6))
def test_somebody_elses_metadata_is_none(said: bytes, tmp_path: Path):
    """A member of that name that is no text by name is nobody's metadata, and no error."""
    path = written(saved(state(), tmp_path / "archive.pt"), tmp_path / "b.pt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/.data/metadata.json", said)
    assert read(path).metadata == {}


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 1000])
def test_a_small_archive_is_made_from_its_like(nbytes: int):
    """What is made of a pattern, again and again, is byte for byte what is made anew."""
    pickled = b"N." + b"x" * nbytes
    pattern = small_archives.SmallArchive(pickled, nbytes)
    for start in (0, 1, 200):
        data = bytes((start + i) % 256 for i in range(nbytes))
        one, other = io.BytesIO(b"..."), io.BytesIO(b"...")
        one.seek(3)
        other.seek(3)
        assert pattern.write(one, data) == len(one.getvalue()) - 3
        torch_zip_writer.write(torch_zip_writer.Archive(other), pickled, [torch_zip_writer.Fresh("0", nbytes, [data])])
        assert one.getvalue() == other.getvalue()
    with pytest.raises(ParamctlError, match="bytes were to be had"):
        pattern.write(io.BytesIO(), bytes(nbytes + 1))
