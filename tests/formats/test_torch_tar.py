"""The tar of torch 0.1: what `torch.load` finds in it is found, an edit stays in it, and damage is named."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramctl import formats, source, values
from paramctl.errors import FileError
from property.test_reading import assert_alike, filled, found_by_torch, quick, trees, views

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
TYPES = {
    torch.float32: torch.FloatStorage, torch.float64: torch.DoubleStorage, torch.float16: torch.HalfStorage,
    torch.int64: torch.LongStorage, torch.int32: torch.IntStorage, torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage, torch.uint8: torch.ByteStorage,
}  # fmt: skip
Views = list[tuple[int, int, int, int]]
CUT = "\n\nhint: the download may have been cut short"
MISLEADING = "\n\nhint: the file is damaged, or was made to mislead"


class _Pickler(pickle.Pickler):
    """As torch 0.1: a tensor is its key, which is noted in `tensors`."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, 2)
        self.tensors: dict[int, torch.Tensor] = {}

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return None
        self.tensors[id(value)] = value
        return str(id(value))


def pickled(*values: Any) -> bytes:
    return b"".join(pickle.dumps(value, 2) for value in values)


def tensor_entry(key: int, storage: int, shape: Any, stride: Any, offset: int) -> bytes:
    """`key` in the storage of that key: sizes, strides and offset in elements."""
    numbers = struct.pack(f"<{2 * len(shape) + 1}q", *shape, *stride, offset)
    return pickled((key, storage, None)) + struct.pack("<i4x", len(shape)) + numbers


def storage_entry(key: int, kind: Any, raw: bytes, itemsize: int) -> bytes:
    return pickled((key, "cpu", kind)) + struct.pack("<q", len(raw) // itemsize) + raw


def members(root: Any, storage_views: Views | None = None) -> dict[str, bytes]:
    """torch's members, as `torch.serialization` of 0.1 laid them out."""
    held = io.BytesIO()
    pickler = _Pickler(held)
    pickler.dump(root)
    storages: dict[int, torch.Tensor] = {}
    tensors = []
    for key, tensor in pickler.tensors.items():
        of = tensor.untyped_storage()._cdata
        storages[of] = tensor
        tensors.append(tensor_entry(key, of, tensor.shape, tensor.stride(), tensor.storage_offset()))
    raws = [
        storage_entry(key, TYPES[t.dtype], bytes(t.untyped_storage()), t.element_size()) for key, t in storages.items()
    ]
    return {
        "sys_info": pickled({"protocol_version": 1000, "little_endian": True}),
        "pickle": held.getvalue(),
        "tensors": pickled(len(tensors)) + b"".join(tensors),
        "storages": pickled(len(raws)) + b"".join(raws) + pickled(storage_views or []),
    }


def tar(parts: dict[str, bytes], layout: int = tarfile.PAX_FORMAT) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:", format=layout) as archive:
        for name, raw in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return held.getvalue()


def assert_as_torch_loads(path: Path) -> None:
    expected = found_by_torch(torch.load(path, weights_only=False))
    params = formats.read(source.resolve(str(path))).params
    assert len(params) == len(expected)
    for param, (name, tensor) in zip(params.values(), expected, strict=True):
        if name is not None and [other for other, _ in expected].count(name) == 1:
            assert param.name == name
        assert_alike(param, tensor)
    found = list(params.values())
    there = [i for i, param in enumerate(found) if param.storage.nbytes]
    keys = [found[i].storage.key for i in there]
    theirs = [expected[i][1].untyped_storage()._cdata for i in there]
    assert [keys.index(key) for key in keys] == [theirs.index(key) for key in theirs]


@st.composite
def old_pools(draw: st.DrawFn) -> list[torch.Tensor]:
    pool: list[torch.Tensor] = []
    for _ in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from(list(TYPES)))
        nbytes = draw(st.integers(0, 20)) * torch.empty(0, dtype=dtype).element_size()
        storage = filled(dtype, nbytes, draw(st.integers(0, 99)))
        pool += [draw(views(storage, dtype)).detach() for _ in range(draw(st.integers(1, 3)))]
    return pool


@settings(quick, max_examples=25)
@given(data=st.data(), layout=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]))
def test_every_tensor_that_torch_load_finds(data: st.DataObject, layout: int, tmp_path: Path):
    """What `torch.load` finds in a tar of any tree is found, in its order, as it is, and shared as it is."""
    path = tmp_path / "m.tar"
    path.write_bytes(tar(members(data.draw(old_pools().flatmap(trees))), layout))
    assert_as_torch_loads(path)


def test_a_view_of_a_storage_lies_in_its_root(tmp_path: Path):
    """A storage that is part of another: its tensors have torch's values, and are tied to the root's."""
    x = torch.arange(8.0)
    root = x.untyped_storage()._cdata
    parts = members(OrderedDict(x=x, part=torch.zeros(3)), [(5, root, 2, 6), (6, 5, 1, 4)])
    old = next(name for name in pickle_keys(parts) if name != str(id(x)))
    parts["tensors"] = pickled(2) + tensor_entry(id(x), root, (8,), (1,), 0) + tensor_entry(int(old), 6, (3,), (1,), 1)
    (tmp_path / "m.tar").write_bytes(tar(parts))
    theirs = torch.load(tmp_path / "m.tar", weights_only=False)
    mine = formats.read(source.resolve(str(tmp_path / "m.tar"))).params
    assert values.array(mine["part"]).tolist() == theirs["part"].tolist() == [4, 5, 6]
    assert mine["part"].storage.key == mine["x"].storage.key


def pickle_keys(parts: dict[str, bytes]) -> list[str]:
    return [value for _, value, _ in pickletools.genops(parts["pickle"]) if isinstance(value, str) and value.isdigit()]


def test_a_class_with_its_source_is_its_class(tmp_path: Path):
    """A persistent id of (class, source file, source) stands for the class."""
    x = torch.ones(2)
    parts = members({"x": x})
    key = str(id(x)).encode()
    cls = b"(ccollections\nOrderedDict\nX\x01\0\0\0fNtQ"  # no source: torch.load would compare it
    short = b"X" + struct.pack("<I", len(key)) + key + b"Q"
    parts["pickle"] = b"\x80\x02" + cls + b")R(X\x01\0\0\0x" + short + b"u."
    path = tmp_path / "m.tar"
    path.write_bytes(tar(parts))
    assert list(torch.load(path, weights_only=False)) == ["x"]
    assert_as_torch_loads(path)


def test_an_edit_changes_what_was_named(tmp_path: Path, run):
    """An edited tar loads as before but for that tensor."""
    path = tmp_path / "m.tar"
    path.write_bytes(tar(members({"a": torch.arange(4.0), "b": torch.arange(3)})))
    done = run("set", path, "a[1] = 42", "--in-place")
    assert done.code == 0, done.err
    after = torch.load(path, weights_only=False)
    assert after["a"].tolist() == [0, 42, 2, 3]
    assert after["b"].tolist() == [0, 1, 2]


WHOLE = members({"a": torch.arange(4.0)})
ONE = pickled((1, "cpu", torch.FloatStorage))


def with_part(name: str, raw: bytes | None) -> bytes:
    return tar({key: value for key, value in (WHOLE | {name: raw}).items() if value is not None})


LIES = {
    "no storages": (with_part("storages", None), "a tar as torch 0.1 made it, without its storages"),
    "only sys_info": (
        tar({"sys_info": b""}),
        "a tar as torch 0.1 made it, without its storages and tensors and pickle",
    ),
    "no count": (with_part("storages", pickled("x")), "storages has no count"),
    "a negative count": (with_part("tensors", pickled(-1)), "tensors has no count"),
    "a storage beyond the member": (
        with_part("storages", pickled(1) + ONE + struct.pack("<q", 1 << 40) + bytes(16) + pickled([])),
        "storage 1 should have 4,398,046,511,104 bytes, and 22 are there" + MISLEADING,
    ),
    "a storage of a negative size": (
        with_part("storages", pickled(1) + ONE + struct.pack("<q", -1)),
        "storage 0 of the tar is damaged: -1 elements of a type that is not known",
    ),
    "a storage of no type": (
        with_part("storages", pickled(1, (1, "cpu", None)) + struct.pack("<q", 0)),
        "storage 0 of the tar is damaged: 0 elements of a type that is not known",
    ),
    "a storage that is no entry": (
        with_part("storages", pickled(1, 5) + struct.pack("<q", 0)),
        "storage 0 of the tar is damaged: an entry that is no tuple of 3",
    ),
    "a storage twice": (
        with_part("storages", pickled(2) + (ONE + struct.pack("<q", 0)) * 2),
        "storage 1 stands twice in the tar",
    ),
    "a view beyond its root": (
        with_part("storages", pickled(1) + ONE + struct.pack("<q", 0) + pickled([(2, 1, 0, 1)])),
        "a view of a storage in the tar is damaged: a view of elements 0 + 1 of a storage of 0",
    ),
    "a tensor of two billion dimensions": (
        with_part("tensors", pickled(1, (1, 1, None)) + struct.pack("<i4x", 2**31 - 1)),
        "tensor 0 of the tar has 2,147,483,647 dimensions",
    ),
    "a tensor of negative dimensions": (
        with_part("tensors", pickled(1, (1, 1, None)) + struct.pack("<i4x", -1)),
        "tensor 0 of the tar has -1 dimensions",
    ),
    "a tensor of no storage": (
        with_part("tensors", pickled(1) + tensor_entry(1, 99, (2,), (1,), 0)),
        "tensor 0 of the tar is damaged: a tensor without a storage",
    ),
    "a tensor that is not there": (with_part("tensors", pickled(0)), None),
}


@pytest.mark.parametrize(("data", "said"), LIES.values(), ids=LIES.keys())
def test_what_is_wrong_is_said(data: bytes, said: str | None, read):
    """A damaged tar names the first thing wrong with it, in three lines at most."""
    with pytest.raises(FileError) as caught:
        read(data)
    assert len(str(caught.value).splitlines()) <= 3
    if said is not None:
        assert str(caught.value) == f"error: m: {said}"
    else:
        assert str(caught.value).startswith("error: m: the pickle is damaged")


def test_a_cut_at_every_block_is_an_error(read):
    """A tar that is cut short says what of it is missing."""
    data = tar(WHOLE)
    end = data.rindex(WHOLE["storages"]) + len(WHOLE["storages"])
    for cut in range(512, end, 37):
        with pytest.raises(FileError) as caught:
            read(data[:cut])
        assert len(str(caught.value).splitlines()) <= 3
    with pytest.raises(FileError) as caught:
        read(data[: end - 3])
    nbytes = len(WHOLE["storages"])
    what = f"storages should have {nbytes:,} bytes, and {nbytes - 3:,} are there"
    assert str(caught.value) == f"error: m: {what}{CUT}"


def test_another_tar_is_none_of_torch(read):
    """A tar of something else is not taken for one of torch's."""
    with pytest.raises(FileError) as caught:
        read(tar({"pickle.txt": b"x", "model_weights.ckpt": np.zeros(3).tobytes()}))
    assert "torch 0.1" not in str(caught.value)
