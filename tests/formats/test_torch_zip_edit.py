"""A torch zip with an edited pickle: its other members are the same bytes in the same order."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from paramctl.dtypes import DTYPES
from paramctl.errors import ParamctlError
from paramctl.formats import copying, torch_zip_writer
from paramctl.formats.torch_pickle import Layout
from paramctl.formats.torch_zip_writer import Fresh
from torch_files import loaded, read, rewritten

OWN = Layout("own", 8, DTYPES["float32"], 0, (2,), (1,))


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def saved(path: Path, **more: bytes) -> dict[str, torch.Tensor]:
    """Four tensors in a file as torch writes it, and further members."""
    root = {f"t{i}": torch.full((2 * 10**i,), float(i)) for i in range(4)}
    torch.save(root, path)
    with zipfile.ZipFile(path, "a") as archive:
        for name, raw in more.items():
            archive.writestr(f"m/{name}", raw)
    return root


def packed(path: Path, names: list[str], **options: Any) -> None:
    """The members of a file in another order, or otherwise packed."""
    held = members(path)
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name in names:
            archive.writestr(name, held[name])


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_other_members_are_the_same_and_where_they_were(compression: int, tmp_path: Path):
    """Members before and behind the storages stay, with their bytes and their order, and so do storages nobody names."""
    path = tmp_path / "m.pt"
    saved(path, **{"extra/notes.txt": b"hello", "data/orphan": b"12345", "constants/0": b"x"})
    names = list(members(path))
    packed(path, list(dict.fromkeys([names[-3], *names])), compression=compression)
    before = members(path)
    after = members(rewritten(path, lambda document: document.drop(["t1"])))
    expected = [name for name in before if name != "m/data/1"]
    data = [name for name in expected if name.startswith("m/data/")]
    first = expected.index(data[0])
    others = [name for name in expected if name not in data]
    assert list(after) == [*others[:first], *data, *others[first:]]
    assert {name: after[name] for name in expected if name != "m/data.pkl"} == {
        name: before[name] for name in expected if name != "m/data.pkl"
    }


def test_small_and_large_storages_are_copied_with_the_checksum_they_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What stays is neither read into memory nor gone over, where it is large."""
    monkeypatch.setattr(torch_zip_writer, "_SMALL_NBYTES", 100)
    copied: list[int] = []
    copy_range = copying.copy_range
    monkeypatch.setattr(
        copying, "copy_range", lambda *a, nbytes, **k: copied.append(nbytes) or copy_range(*a, nbytes=nbytes, **k)
    )
    path = tmp_path / "m.pt"
    root = saved(path)
    new = rewritten(path, lambda document: document.rename({"t1": "a", "t2": "b"}))
    found = torch.load(new, mmap=True)
    assert all(torch.equal(a, b) for a, b in zip(found.values(), root.values(), strict=True))
    assert [n for n in copied if n >= 800] == [800, 8000]
    members(new)


@pytest.mark.parametrize("dropped", [["t0"], ["t0", "t1", "t2"]])
def test_the_first_storage_is_called_0(dropped: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """torch.load counts on that where it maps to the meta device; the others keep their keys."""
    path = tmp_path / "m.pt"
    root = saved(path)
    new = rewritten(path, lambda document: document.drop(dropped))
    monkeypatch.setenv("TORCH_SERIALIZATION_DEBUG", "1")
    assert {name: tensor.shape for name, tensor in torch.load(new, map_location="meta").items()} == {
        name: tensor.shape for name, tensor in root.items() if name not in dropped
    }
    assert all(torch.equal(tensor, root[name]) for name, tensor in torch.load(new).items())
    keys = [name[7:] for name in members(new) if name.startswith("m/data/")]
    assert keys == ["0", *(str(i) for i in range(len(dropped) + 1, 4))]


def test_storages_of_an_older_torch_keep_their_keys_and_their_order(tmp_path: Path):
    """Where no `.format_version` says that storages lie as the pickle names them, their order stays."""
    path = tmp_path / "m.pt"
    root = saved(path)
    names = [name for name in members(path) if "." not in name.rpartition("/")[2] or name.endswith("pkl")]
    packed(path, [name for name in names if "data/" not in name[2:]] + [f"m/data/{i}" for i in (2, 0, 3, 1)])
    new = rewritten(path, lambda document: document.drop(["t0"]))
    assert [name for name in members(new) if "data/" in name[2:]] == ["m/data/2", "m/data/3", "m/data/1"]
    assert all(torch.equal(tensor, root[name]) for name, tensor in torch.load(new).items())


def test_a_new_storage_that_comes_first_changes_places_with_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A new storage that is named first gets the key 0, and the one that had it gets its."""
    path = tmp_path / "m.pt"
    saved(path)
    t1 = read(path).params["t1"]
    layout = Layout("1", 80, t1.dtype, 0, (20,), (1,))
    new = rewritten(
        path, lambda document: document.replace({"t0": layout, "t1": OWN}), {"own": Fresh("own", 8, [bytes(8)])}
    )
    monkeypatch.setenv("TORCH_SERIALIZATION_DEBUG", "1")
    found = torch.load(new)
    assert (found["t0"].tolist(), found["t1"].tolist()) == ([1.0] * 20, [0, 0])
    assert [name for name in members(new) if "data/" in name[2:]][:2] == ["m/data/0", "m/data/own"]


def test_changed_bytes_of_a_storage(tmp_path: Path):
    """A storage can have other bytes under the key that it has."""
    path = tmp_path / "m.pt"
    saved(path)
    found = loaded(rewritten(path, fresh={"1": Fresh("1", 80, (bytes(40), bytes(40)))}))
    assert (found["t1"].tolist(), found["t2"][0].item()) == ([0] * 20, 2)


METADATA: dict[str, tuple[Any, Any, dict[str, str]]] = {  # what there was, what is given, what there is
    "left": ({"a": "1"}, None, {"a": "1"}),
    "new": (None, {"b": "2"}, {"b": "2"}),
    "another": ({"a": "1"}, {"b": "2"}, {"b": "2"}),
    "none": ({"a": "1"}, {}, {}),
    "none still": (None, {}, {}),
}


@pytest.mark.parametrize(("there", "given", "expected"), METADATA.values(), ids=METADATA.keys())
def test_metadata_is_left_or_given(there: Any, given: Any, expected: dict[str, str], tmp_path: Path):
    """Text by name is left as it was, or is what was given; and nothing else is another member for it."""
    path = tmp_path / "m.pt"
    saved(path)
    plain = list(members(path))
    if there:
        rewritten(path, metadata=there).rename(path)
    new = rewritten(path, metadata=given)
    assert read(new).metadata == expected
    assert [name for name in members(new) if not name.endswith("metadata.json")] == plain
    assert torch.load(new).keys() == torch.load(path).keys()


def test_a_file_of_the_other_byte_order_stays_one(tmp_path: Path):
    """Storages that stay are read in the order that the archive says, as before."""
    path = tmp_path / "m.pt"
    torch.save({"a": torch.arange(3.0), "b": torch.ones(1)}, path)
    held = members(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in held.items():
            archive.writestr(name, b"big" if name.endswith("byteorder") else raw)
    new = rewritten(path, lambda document: document.drop(["b"]))
    assert torch.equal(torch.load(new)["a"], torch.load(path)["a"])
    assert members(new)["m/byteorder"] == b"big"


def test_an_edit_is_a_function_of_its_file(tmp_path: Path):
    """The same edit of the same file gives the same bytes."""
    path = tmp_path / "m.pt"
    saved(path)

    def once() -> bytes:
        return rewritten(path, lambda document: document.drop(["t2"]), metadata={"a": "b"}).read_bytes()

    assert once() == once()


def test_a_storage_that_is_not_as_long_as_was_said(tmp_path: Path):
    """Too few bytes for a storage are an error that names it."""
    path = tmp_path / "m.pt"
    saved(path)
    with pytest.raises(ParamctlError) as error:
        rewritten(path, lambda document: document.replace({"t1": OWN}), {"own": Fresh("own", 8, [b"1"])})
    assert str(error.value) == "error: m/data/own: 1 bytes were to be had, and not 8"


def test_an_archive_within_a_stream(tmp_path: Path):
    """An archive is written where the stream stands, and is whole from there on."""
    path = tmp_path / "m.pt"
    saved(path)
    file = io.BytesIO(b"before")
    file.seek(6)
    torch_zip_writer.write(torch_zip_writer.Archive(file), b"\x80\x02N.", [Fresh("0", 3, [b"abc"])])
    assert zipfile.ZipFile(io.BytesIO(file.getvalue()[6:])).read("archive/data/0") == b"abc"


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_new_storage_takes_nobodys_place(run, tmp_path: Path):
    """Keys of storages that are no tensor's, and of members that nobody names, are not given to new ones."""
    path = tmp_path / "m.pt"
    bare = torch.arange(4.0).untyped_storage()
    torch.save({"a": torch.ones(2), "bare": bare, "b": torch.ones(3)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("m/data/7", b"orphan")
    before = members(path)
    assert run("convert", path, tmp_path / "new.pt", "--dtype", "fp64").code == 0
    found = loaded(tmp_path / "new.pt")
    assert bytes(found["bare"].untyped()) == bytes(bare)
    assert (found["a"].tolist(), found["b"].dtype) == ([1, 1], torch.float64)
    after = members(tmp_path / "new.pt")
    assert after["m/data/7"] == before["m/data/7"]
    assert sorted(name for name in after if name.startswith("m/data/")) == [f"m/data/{key}" for key in (0, 1, 7, 9)]
