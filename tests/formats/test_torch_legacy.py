"""torch's stream of before 1.6: what `torch.load` finds in it is found, edits stay in it, and damage is named."""

from __future__ import annotations

import argparse
import contextlib
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from file_builders import glob, text, whole
from hypothesis import given, settings
from hypothesis import strategies as st

from paramctl import formats, source, values
from paramctl.checkpoint import Checkpoint
from paramctl.errors import FileError
from paramctl.formats.torch_legacy import MAGIC
from paramctl.source import Reader
from property.test_reading import (
    DTYPES,
    NO_GRAD,
    VIEWS,
    assert_alike,
    assert_same_sharing,
    filled,
    found_by_torch,
    quick,
    raw_bytes,
    trees,
    views,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
OLD_DTYPES = [dtype for dtype in DTYPES if dtype not in NO_GRAD]  # torch.load does not take the others from a stream
FLOATS = struct.pack("<6f", 0, 1, 2, 3, 4, 5)
CUT = "\n\nhint: the download may have been cut short"
DAMAGED = "\n\nhint: the file is cut short or damaged"
MISLEADING = "\n\nhint: the file is damaged, or was made to mislead"


def save(root: Any, path: Path, protocol: int = 2) -> Path:
    torch.save(root, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    return path


def read_file(path: Path) -> Checkpoint:
    return formats.read(source.resolve(str(path)))


def assert_as_torch_loads(path: Path, **how: Any) -> Checkpoint:
    mine = read_file(path)
    expected = found_by_torch(torch.load(path, weights_only=False, **how))
    params = list(mine.params.values())
    assert [param.name for param in params] == [name for name, _ in expected]
    for param, (_, tensor) in zip(params, expected, strict=True):
        assert_alike(param, tensor)
    assert_same_sharing(params, [tensor for _, tensor in expected])
    return mine


# ----------------------------------------------------------------------------- files built by hand


def pid(key: str = "0", numel: int = 6, *, view: bytes = b"N", location: str = "cpu") -> bytes:
    kind = glob("torch", "FloatStorage")
    return b"(" + text("storage") + kind + text(key) + text(location) + whole(numel) + view + b"tQ"


def tensor(of: bytes, offset: int = 0, shape: int = 6) -> bytes:
    """The opcodes that make a float32 tensor as torch did before 0.4."""
    return (
        glob("torch._utils", "_rebuild_tensor") + b"(" + of + whole(offset)
        + whole(shape) + b"\x85" + whole(1) + b"\x85tR"
    )  # fmt: skip


def root(**pairs: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in pairs.items()) + b"u."


def stream(
    pickled: bytes,
    storages: dict[str, bytes] | None = None,
    *,
    magic: Any = MAGIC,
    protocol: Any = 1001,
    machine: Any = (("little_endian", True),),
    keys: Any = None,
    numel: bytes | None = None,
) -> bytes:
    held = {"0": FLOATS} if storages is None else storages
    first = b"".join(pickle.dumps(value, 2) for value in (magic, protocol, dict(machine)))
    behind = b"".join((struct.pack("<q", len(raw) // 4) if numel is None else numel) + raw for raw in held.values())
    return first + pickled + pickle.dumps(list(held) if keys is None else keys, 2) + behind


PLAIN = stream(root(w=tensor(pid())))


# ----------------------------------------------------------------------------- against torch.load


@st.composite
def old_pools(draw: st.DrawFn) -> list[torch.Tensor]:
    pool: list[torch.Tensor] = []
    for _ in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from(OLD_DTYPES))
        nbytes = draw(st.integers(0, 40)) * torch.empty(0, dtype=dtype).element_size()
        storage = filled(dtype, nbytes, draw(st.integers(0, 99)))
        pool += [draw(views(storage, dtype)) for _ in range(draw(st.integers(1, 3)))]
    return pool


@settings(quick, max_examples=25)
@given(data=st.data(), protocol=st.sampled_from([2, 3, 4, 5]))
def test_every_tensor_that_torch_load_finds(data: st.DataObject, protocol: int, tmp_path: Path):
    """What `torch.load` finds in any tree is found, in its order, as it is, and shared as it is."""
    path = save(data.draw(old_pools().flatmap(trees)), tmp_path / "m.pt", protocol)
    expected = [tensor for _, tensor in found_by_torch(torch.load(path, weights_only=False))]
    params = list(read_file(path).params.values())
    assert len(params) == len(expected)
    for param, theirs in zip(params, expected, strict=True):
        assert_alike(param, theirs)
    assert_same_sharing(params, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_dtype(dtype: torch.dtype, tmp_path: Path):
    """Each dtype has torch's bits, those included that torch writes to a stream and does not load from it."""
    size = torch.empty(0, dtype=dtype).element_size()
    x = torch.tensor([], dtype=dtype).set_(filled(dtype, 6 * size, 3), 0, (2, 3))
    param = read_file(save({"x": x}, tmp_path / "m.pt")).params["x"]
    assert f"torch.{param.dtype.name}" == str(dtype)
    assert values.array(param).tobytes() == raw_bytes(x)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_views_share_their_storage(view: Any, tmp_path: Path):
    """A view has torch's strides and offset, and the storage of what it views."""
    base = torch.arange(48.0).reshape(6, 8)
    base = base if view is not VIEWS["expanded"] else base[:, :1].contiguous()
    assert_as_torch_loads(save([base, view(base)], tmp_path / "m.pt"))


def test_a_whole_module_is_named_by_its_state_dict(tmp_path: Path):
    """A module is pickled with the source of its classes, and is named, and typed, all the same."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    path = save(model, tmp_path / "m.pt")
    assert b"class Linear(Module)" in path.read_bytes()
    mine = read_file(path)
    assert set(mine.params) == set(model.state_dict())
    for name, theirs in model.state_dict().items():
        assert values.array(mine.params[name]).tolist() == theirs.tolist()
    assert {path: module.type for path, module in mine.modules.items()} == {
        "": "Sequential", "0": "Linear", "1": "BatchNorm1d",
    }  # fmt: skip
    assert mine.params["0.weight"].kind == "parameter"
    assert mine.params["1.running_mean"].kind == "buffer"


@pytest.mark.parametrize("location", ["cuda:0", "cuda:7", "mps", "xla:0"])
def test_the_device_of_a_storage_does_not_matter(location: str, tmp_path: Path):
    """A storage that was saved on another device is read like any."""
    (tmp_path / "m.pt").write_bytes(stream(root(w=tensor(pid(location=location)))))
    assert_as_torch_loads(tmp_path / "m.pt", map_location="cpu")


def test_elements_are_little_endian_whoever_wrote_them(tmp_path: Path):
    """torch turns elements around as it writes; a stream that says it is of a big-endian machine is read like any."""
    (tmp_path / "m.pt").write_bytes(stream(root(w=tensor(pid())), machine=[("little_endian", False)]))
    mine = assert_as_torch_loads(tmp_path / "m.pt")
    assert values.array(mine.params["w"]).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_number_of_elements_may_be_big_endian(read):
    """Old torch on a big-endian machine left the number of elements as it was there."""
    big = {"machine": [("little_endian", False)], "numel": struct.pack(">q", 6)}
    assert values.array(read(stream(root(w=tensor(pid())), **big)).params["w"]).tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(FileError, match="has 6 elements in the pickle, and 432,345,564,227,567,616 at byte"):
        read(stream(root(w=tensor(pid())), numel=struct.pack(">q", 6)))


def test_a_view_of_a_storage_lies_in_its_root(tmp_path: Path):
    """Before 0.4 a storage could be a part of another: its tensors have torch's values, and are tied to the root's."""
    view = b"(" + text("7") + whole(2) + whole(3) + b"t"
    pickled = root(w=tensor(pid()), v=tensor(pid(view=view), 1, 2), all=tensor(pid(view=view), 0, 3))
    (tmp_path / "m.pt").write_bytes(stream(pickled))
    theirs = torch.load(tmp_path / "m.pt")
    mine = read_file(tmp_path / "m.pt").params
    for name, param in mine.items():
        assert values.array(param).tolist() == theirs[name].tolist()
        assert 4 * param.storage_offset == theirs[name].data_ptr() - theirs["w"].data_ptr()
    assert len({param.storage.key for param in mine.values()}) == 1


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("made_by", [b"\x85\x81", b"\x85R"], ids=["NEWOBJ", "REDUCE"])
def test_a_parameter_of_before_0_4(requires_grad: bool, made_by: bytes, tmp_path: Path):
    """A Parameter is its class called with a tensor, and the state (requires_grad, volatile, hooks)."""
    state = b"(" + (b"\x88" if requires_grad else b"\x89") + b"\x89" + glob("collections", "OrderedDict") + b")Rtb"
    made = glob("torch.nn.parameter", "Parameter") + tensor(pid()) + made_by + state
    (tmp_path / "m.pt").write_bytes(stream(root(w=made)))
    mine = assert_as_torch_loads(tmp_path / "m.pt")
    assert mine.params["w"].requires_grad is requires_grad


def test_an_object_without_tensors_is_shown(tmp_path: Path, run):
    """What is no tensor is an extra, and a command that wants tensors says in a line that there are none."""
    path = save({"epochs": 3, "lr": 0.5}, tmp_path / "training_args.bin")
    assert read_file(path).extras == {"epochs": 3, "lr": 0.5}
    done = run("ls", path)
    assert (done.code, done.err) == (2, f"error: {path}: no tensors in it\n\nhint: info shows what it holds\n")
    save(argparse.Namespace(epochs=3), path)
    said = "no tensors in it, but one argparse.Namespace\n\nhint: info shows what it holds\n"
    assert run("ls", path).err == f"error: {path}: {said}"


# ----------------------------------------------------------------------------- at no more cost than its tensors


def test_no_storage_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Listing reads the pickles, and of each storage its number of elements."""
    path = save([torch.zeros(1 << 20) for _ in range(8)], tmp_path / "m.pt")
    taken: list[int] = []
    plain = Reader.read

    def counted(self: Reader, offset: int, nbytes: int) -> bytes:
        taken.append(nbytes)
        return plain(self, offset, nbytes)

    monkeypatch.setattr(Reader, "read", counted)
    assert len(read_file(path).params) == 8
    assert path.stat().st_size > 32 << 20
    assert sum(taken) < 200_000


def test_a_pickle_beyond_the_first_window(tmp_path: Path):
    """A pickle of any length is read whole."""
    path = save({f"{i}": torch.tensor(float(i)) for i in range(3000)} | {"text": "x" * 300_000}, tmp_path / "m.pt")
    mine = read_file(path)
    assert len(mine.params) == 3000
    assert values.array(mine.params["2999"]).item() == 2999


# ----------------------------------------------------------------------------- editing


EDITS = {
    "set": (["set", "model.a.weight[0, 1] = 42"], "a.weight", lambda old: torch.where(AT_0_1, 42.0, old)),
    "init": (["init", "model.b.weight", "--scheme", "constant(7)"], "b.weight", lambda old: torch.full_like(old, 7)),
}
AT_0_1 = torch.zeros(2, 3, dtype=torch.bool).index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(True))


@pytest.mark.parametrize(("argv", "name", "edited"), EDITS.values(), ids=EDITS.keys())
@pytest.mark.parametrize("where", ["--in-place", "-o"])
def test_an_edit_changes_what_was_named(argv: list[str], name: str, edited: Any, where: str, tmp_path: Path, run):
    """An edited stream loads as before but for that tensor, and no byte outside of its storage is another."""
    model = torch.nn.Sequential(OrderedDict(a=torch.nn.Linear(3, 2), b=torch.nn.Linear(2, 2)))
    path = save({"model": model.state_dict(), "epoch": 3}, tmp_path / "m.pt")
    before, raw = torch.load(path), path.read_bytes()
    (extent,) = read_file(path).params[f"model.{name}"].storage.extents
    out = tmp_path / "out.pt" if where == "-o" else path
    done = run(argv[0], path, *argv[1:], where, *([out] if where == "-o" else []))
    assert done.code == 0, done.err
    after = torch.load(out)
    assert after["epoch"] == 3
    assert list(after["model"]) == list(before["model"])
    for other, theirs in after["model"].items():
        old = before["model"][other]
        assert torch.equal(theirs, edited(old) if other == name else old)
    now, end = out.read_bytes(), extent.offset + extent.nbytes
    assert (now[: extent.offset], now[end:]) == (raw[: extent.offset], raw[end:])


# ----------------------------------------------------------------------------- damage

STORAGES_AT = len(PLAIN) - len(FLOATS) - 8
TWO = stream(root(w=tensor(pid()), v=tensor(pid("1"))), {"0": FLOATS, "1": FLOATS})
LIES: dict[str, tuple[bytes, str]] = {
    "another magic number": (
        stream(b"", magic=[MAGIC]),
        "it begins as a torch file of before 1.6, and has another magic number",
    ),
    "another protocol": (stream(b"", protocol=1002), "a torch file of before 1.6 of protocol 1002; 1001 is known"),
    "no protocol": (stream(b"", protocol="x"), "a torch file of before 1.6 of protocol none; 1001 is known"),
    "no list of storages": (stream(root(), keys=3), "no list of storages stands behind the pickle"),
    "a list of no keys": (stream(root(), keys=[None]), "no list of storages stands behind the pickle"),
    "a storage twice": (stream(root(w=tensor(pid())), keys=["0", "0"]), "storage 0 stands twice behind the pickle"),
    "a storage that nobody names": (
        stream(root(), keys=["7"]),
        "storage 7 stands behind the pickle, which does not name it",
    ),
    "a storage that is not there": (
        stream(root(w=tensor(pid("5"))), {}),
        "w: its storage 5 is not among the 0 behind the pickle",
    ),
    "another number of elements": (
        stream(root(w=tensor(pid())), numel=struct.pack("<q", 7)),
        f"storage 0 has 6 elements in the pickle, and 7 at byte {STORAGES_AT:,}" + MISLEADING,
    ),
    "a negative number of elements": (
        stream(root(w=tensor(pid())), numel=struct.pack("<q", -1)),
        f"storage 0 has 6 elements in the pickle, and -1 at byte {STORAGES_AT:,}" + MISLEADING,
    ),
    "a terabyte in the pickle": (
        stream(root(w=tensor(pid(numel=1 << 38))), numel=struct.pack("<q", 1 << 38)),
        "w: its storage 0 should have 1,099,511,627,776 bytes, and 24 are there; "
        "the file is 1,099,511,627,752 bytes too short" + CUT,
    ),
    "a tensor beyond its storage": (
        stream(root(w=tensor(pid(), 1))),
        "w reaches to byte 28 of a storage of 24" + MISLEADING,
    ),
    "a tensor beyond its view": (
        stream(root(w=tensor(pid(view=b"(" + text("7") + whole(2) + whole(3) + b"t"), 2, 2))),
        "the pickle is damaged: a tensor beyond its 3 elements of storage 0",
    ),
    "a view beyond its root": (
        stream(root(w=tensor(pid(view=b"(" + text("7") + whole(4) + whole(3) + b"t"), 0, 1))),
        "the pickle is damaged: a view of elements 4 + 3 of a storage of 6",
    ),
    "cut in the last storage": (
        TWO[:-5],
        "v: its storage 1 should have 24 bytes, and 19 are there; the file is 5 bytes too short" + CUT,
    ),
    "cut in the first storage": (
        TWO[: -32 - 10],
        "w: its storage 0 should have 24 bytes, and 14 are there; the file is 42 bytes too short" + CUT,
    ),
    "cut in a number of elements": (
        TWO[:-30],
        "v: its storage 1 should have 24 bytes, and 0 are there; the file is 30 bytes too short" + CUT,
    ),
    "cut in a storage of no tensor": (
        stream(root(w=tensor(pid()), v=pid("1")), {"0": FLOATS, "1": FLOATS})[:-1],
        "storage 1 should have 24 bytes, and 23 are there; the file is 1 bytes too short" + CUT,
    ),
    "a pickle that wants more than the file": (
        stream(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40)),
        "the pickle ends without its STOP, after 58 bytes" + DAMAGED,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "said"), LIES.values(), ids=LIES.keys())
def test_what_is_wrong_is_said(data: bytes, said: str, read):
    """A damaged stream names the first thing wrong with it, in three lines at most."""
    with pytest.raises(FileError) as caught:
        read(data)
    assert str(caught.value) == f"error: m: {said}"
    assert len(str(caught.value).splitlines()) <= 3


def test_a_cut_at_every_byte_is_an_error(read):
    """However much is missing, it is said; in the storages, to the byte."""
    storages_at = len(TWO) - 2 * (8 + len(FLOATS))
    for end in range(24, len(TWO)):
        with pytest.raises(FileError) as caught:
            read(TWO[:end])
        assert len(str(caught.value).splitlines()) <= 3
        if end > storages_at:
            assert f"the file is {len(TWO) - end} bytes too short" in str(caught.value)


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_byte_that_is_another_ends_in_a_checkpoint_or_an_error(flip: int, read):
    """A flipped byte in the pickles never ends in anything but a checkpoint or a FileError."""
    for at in range(24, len(TWO) - 64):
        with contextlib.suppress(FileError):
            read(TWO[:at] + bytes([TWO[at] ^ flip]) + TWO[at + 1 :])


def test_more_behind_the_last_storage_is_no_fault(read):
    """As torch.load, which can be asked for several objects of one file, only the first is looked at."""
    assert list(read(PLAIN + PLAIN).params) == ["w"]
