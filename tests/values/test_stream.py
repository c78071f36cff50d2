"""The elements of a tensor, piece by piece: those of torch in its order, wherever they lie and however."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as torch_dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from paramctl import formats
from paramctl.checkpoint import Extent, Param, Storage, contiguous
from paramctl.contents import Window
from paramctl.dtypes import DTYPES
from paramctl.errors import ParamctlError
from paramctl.formats import dcp_regions
from paramctl.source import resolve
from paramctl.values import stream
from paramctl.values.lanes import lane
from paramctl.values.stream import distinct, numbers, pieces
from tensors import CODES, of_tensor

HELD = 20_000  # elements of a storage
DTYPE_NAMES = ("uint8", "int16", "float32", "complex64")
PLACES = ("memory", "file", "deflated", "extents", "boxes")


def told(param: Param, *, numel: int = stream.CHUNK_NUMEL) -> np.ndarray:
    """All numbers, flat."""
    with Window() as window:
        parts = [values.copy() for values in numbers(param, lane(param), window, numel=numel)]
    return np.concatenate(parts) if parts else np.empty(0)


@pytest.fixture(scope="module")
def storages(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Storage]:
    """The same random bytes for each dtype, lying in each way."""
    folder = tmp_path_factory.mktemp("storages")
    found = {}
    for dtype in DTYPE_NAMES:
        raw = held(dtype).tobytes()
        (folder / dtype).write_bytes(b"???" + raw)
        made = zlib.compressobj(1, zlib.DEFLATED, -15)
        packed = made.compress(raw) + made.flush()
        (folder / f"{dtype}.z").write_bytes(packed)
        path, size = str(folder / dtype), DTYPES[dtype].block_nbytes
        cuts = [0, 1000, 1001, 7000, HELD]
        parts = [Extent(path, 3 + a * size, (b - a) * size) for a, b in itertools.pairwise(cuts)]
        boxes = [part._replace(box=((a, b - a),)) for part, (a, b) in zip(parts, itertools.pairwise(cuts), strict=True)]
        extents = {
            "file": (Extent(path, 3, len(raw)),), "extents": tuple(parts), "boxes": tuple(reversed(boxes)),
            "deflated": (Extent(f"{path}.z", 0, len(packed), "deflate"),),
        }  # fmt: skip
        found |= {(dtype, place): Storage("0", len(raw), of) for place, of in extents.items()}
        found[dtype, "memory"] = Storage("0", len(raw), data=memoryview(raw))
    return found


def held(dtype: str) -> np.ndarray:
    made = np.random.default_rng(0).integers(0, 250, (HELD, 2))
    return made[:, 0].astype(CODES[dtype]) if dtype != "complex64" else (made @ [1, 1j]).astype(np.complex64)


STRIDES = st.sampled_from([0, 1, 2, 3, 5, 17, 300, 1500, -1, -2, -20, -1400])


@st.composite
def geometries(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Any shape, strides and offset within the storage, negative strides as numpy has them too."""
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    stride = tuple(draw(STRIDES) for _ in shape)
    ends = [(size - 1) * by for size, by in zip(shape, stride, strict=True) if size]
    low, high = -sum(end for end in ends if end < 0), sum(end for end in ends if end > 0)
    if 0 in shape:
        return shape, stride, draw(st.integers(0, HELD))
    if low + high >= HELD:
        shape, low, high = shape[:2], 0, 0
        stride = tuple(map(abs, stride[:2]))
    return shape, stride, low + draw(st.integers(0, HELD - 1 - low - high - 10_000 * (len(shape) < 1)))


def oracle(array: np.ndarray, shape: tuple[int, ...], stride: tuple[int, ...], offset: int) -> np.ndarray:
    """The element at each index, which is where its strides lead."""
    places = np.full(shape, offset)
    for axis, (size, by) in enumerate(zip(shape, stride, strict=True)):
        places += (np.arange(size) * by).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return array[places.reshape(-1)]


@settings(max_examples=300, deadline=None)
@given(
    geometries(), st.sampled_from(DTYPE_NAMES), st.sampled_from(PLACES), st.integers(1, 60), st.integers(1, 2000),
    st.integers(1, 4),
)  # fmt: skip
def test_any_geometry_from_anywhere(storages, geometry, dtype, place, numel, gathered, gap):
    """In row-major order, whatever the strides, where the bytes lie, and how much is read at a time."""
    shape, stride, offset = geometry
    param = Param("w", DTYPES[dtype], shape, stride, storages[dtype, place], offset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_GATHERED_NBYTES", gathered)
        patch.setattr(stream, "_READ_NBYTES", gathered)
        patch.setattr(stream, "_GAP_NBYTES", gap)
        mine = told(param, numel=numel)
    theirs = oracle(held(dtype), shape, stride, offset) if 0 not in shape else np.empty(0)
    assert mine.tolist() == (theirs.view(np.float32) if dtype == "complex64" else theirs).tolist()


BASE = torch.arange(120.0)
VIEWS = {
    "dense": BASE.view(4, 5, 6),
    "scalar": BASE[7],
    "one": BASE[7:8],
    "empty": BASE[3:3],
    "transposed": BASE.view(10, 12).t(),
    "permuted": BASE.view(4, 5, 6).permute(2, 0, 1),
    "channels last": BASE.view(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "steps": BASE[5::7],
    "steps of both": BASE.view(10, 12)[1::3, ::5],
    "expanded": BASE[:4].view(4, 1).expand(4, 9),
    "expanded in front": BASE[3].expand(5, 2),
    "windows": BASE.unfold(0, 10, 3),
    "diagonal": BASE.view(10, 12).diagonal(1),
    "axes of one": BASE.view(1, 12, 1, 10)[:, 3:5],
    "as it is put": BASE.as_strided((3, 2, 4), (2, 50, 3), 11),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("numel", [1, 7, 1 << 16])
def test_views_of_torch(name: str, numel: int):
    """The numbers are those of torch's `flatten`."""
    assert told(of_tensor(VIEWS[name]), numel=numel).tolist() == VIEWS[name].flatten().tolist()


def test_pieces_are_as_long_as_they_are_asked_for():
    """All but the last are, of what lies in order as of what does not; a complex element counts once or twice."""
    for view in (BASE, BASE.view(10, 12).t(), BASE.to(torch.complex64)):
        param = of_tensor(view)
        with Window() as window:
            sizes = [len(piece) for piece in pieces(param, lane(param), window, numel=50)]
        assert set(sizes[:-1]) <= {50, 100}
        assert sum(sizes) == 120 * lane(param).per_element


# ----------------------------------------------------------------------------- each element once


@pytest.mark.parametrize("name", VIEWS)
def test_once_and_times_are_the_view(name: str):
    """What lies in memory, each element so many times, is what the view shows."""
    once, times = distinct(of_tensor(VIEWS[name]))
    shown = VIEWS[name].flatten().tolist()
    assert sorted(told(once).tolist() * times) == sorted(shown)
    if name not in ("windows", "as it is put"):  # axes that overlap, and axes that are interlaced
        lying = np.frombuffer(once.storage.data, np.float32).tolist()
        assert told(once).tolist() == [number for number in lying if number in shown]  # all are different


@settings(max_examples=200, deadline=None)
@given(geometries())
def test_once_is_of_the_same_elements(storages, geometry):
    """For any geometry, in no order; no stride is 0 or negative, and an empty tensor stays so."""
    shape, stride, offset = geometry
    param = Param("w", DTYPES["int16"], shape, stride, storages["int16", "memory"], offset)
    once, times = distinct(param)
    assert once.numel * times == param.numel
    assert sorted(told(once).tolist() * times) == sorted(told(param).tolist())
    assert (0 in once.shape) == (0 in shape)
    if param.numel:
        assert all(by > 0 for by in once.stride)
        assert once.span == param.span


def test_a_terabyte_of_one_element_is_one_element():
    """What is expanded is told by how often it is shown."""
    param = of_tensor(torch.ones(1))._replace(shape=(1 << 20, 1 << 20), stride=(0, 0))
    once, times = distinct(param)
    assert (told(once).tolist(), times) == ([1.0], 1 << 40)


@pytest.mark.parametrize(
    ("shape", "stride", "said"),
    [
        ((1 << 15, 1 << 15), (1, 1), "1,073,741,824 elements are 65,535"),
        ((1 << 30,), (0,), "1,073,741,824 elements are 1"),
        ((1 << 10,) * 5, (1,) * 5, "1,125,899,906,842,624 elements are 5,116"),
    ],
)
def test_a_few_bytes_shown_very_often_are_refused(shape: tuple[int, ...], stride: tuple[int, ...], said: str):
    """A small file is not read for days: windows that overlap a thousandfold are an error, before anything is read."""
    param = of_tensor(torch.zeros(70_000))._replace(shape=shape, stride=stride)
    with pytest.raises(ParamctlError, match=f"^error: w: its {said} that overlap$"):
        told(param)


def test_blocks_that_lie_by_strides_are_refused():
    """The elements of packed types cannot be taken one by one; transposed as a whole they can, where order is free."""
    raw = bytes(range(18)) * 4
    param = Param("w", DTYPES["q4_0"], (32, 4), (1, 32), Storage("0", len(raw), data=memoryview(raw)))
    with pytest.raises(ParamctlError, match=r"^error: w: blocks of q4_0 that lie by strides$"):
        told(param)
    once, times = distinct(param)
    assert (once.shape, once.stride, times) == ((4, 32), (32, 1), 1)
    assert told(once).size == 128


# ----------------------------------------------------------------------------- from files


def test_a_file_that_shrinks_is_an_error(tmp_path: Path):
    """What was read before stands, and what is not there any more is no zeros."""
    path = tmp_path / "w"
    path.write_bytes(np.arange(100, dtype=np.float32).tobytes())
    param = Param("w", DTYPES["float32"], (100,), (1,), Storage("0", 400, (Extent(str(path), 0, 400),)))
    seen: list[float] = []

    def read() -> None:
        with Window() as window:
            for values in numbers(param, lane(param), window, numel=30):
                seen.extend(values.tolist())
                os.truncate(path, 300)

    with pytest.raises(ParamctlError, match=r"/w: it ends before the bytes of w$"):
        read()
    assert seen == list(range(60))


STATE = {
    "a": torch.randn(300, 40, generator=torch.Generator().manual_seed(0)),
    "b": torch.arange(900, dtype=torch.int64).view(30, 30),
    "c": torch.randn(1000, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16),
    "d": torch.tensor(2.5),
}


def deflated(raw: bytes) -> bytes:
    """A zip with its members compressed."""
    held = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    return held.getvalue()


def write_torch(path: Path, state: dict[str, torch.Tensor], *, packed: bool = False, legacy: bool = False) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    if packed:
        path.write_bytes(deflated(path.read_bytes()))


def write_script(path: Path, state: dict[str, torch.Tensor]) -> None:
    module = torch.nn.Module()
    for name, tensor in state.items():
        module.register_buffer(name, tensor)
    torch.jit.save(torch.jit.script(module), path)
    path.write_bytes(deflated(path.read_bytes()))


def write_npz(path: Path, state: dict[str, torch.Tensor]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **{name: tensor.float().numpy() for name, tensor in state.items()})


def write_shards(path: Path, state: dict[str, torch.Tensor]) -> None:
    path.mkdir()
    owners = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(state)}
    for shard in set(owners.values()):
        save_file({name: state[name] for name in state if owners[name] == shard}, path / shard)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": owners}))


def write_dcp(path: Path, state: dict[str, torch.Tensor]) -> None:
    torch_dcp.save(dict(state), checkpoint_id=path, no_dist=True)


WRITERS = {
    "torch": write_torch,
    "legacy": lambda path, state: write_torch(path, state, legacy=True),
    "torch deflated": lambda path, state: write_torch(path, state, packed=True),
    "script deflated": write_script,
    "npz deflated": write_npz,
    "sharded": write_shards,
    "dcp": write_dcp,
    "dcp transposed": lambda path, state: write_dcp(path, {n: t.t() if t.ndim == 2 else t for n, t in state.items()}),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("numel", [97, 1 << 16])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_every_format(tmp_path: Path, name: str, numel: int):
    """Through one window all tensors of a file or a folder have torch's elements."""
    WRITERS[name](tmp_path / "m", STATE)
    params = formats.read(resolve(str(tmp_path / "m"))).params
    assert set(params) == set(STATE)
    with Window() as window:
        for key, tensor in STATE.items():
            turned = tensor.t() if "transposed" in name and tensor.ndim == 2 else tensor
            read = numbers(params[key], lane(params[key]), window, numel=numel)
            assert np.concatenate([values.copy() for values in read]).tolist() == turned.flatten().tolist()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_chunk_of_dcp_is_looked_up_once(tmp_path: Path, monkeypatch):
    """However many pieces are read of it."""
    write_dcp(tmp_path / "m", STATE)
    params = formats.read(resolve(str(tmp_path / "m"))).params
    looked: list[str] = []
    located = dcp_regions.located
    monkeypatch.setattr(
        dcp_regions, "located", lambda param, extent: (looked.append(param.name), located(param, extent))[1]
    )
    assert told(params["a"], numel=10).tolist() == STATE["a"].flatten().tolist()
    assert looked == ["a"]


def test_memory_is_that_of_a_piece(tmp_path: Path):
    """Of a large tensor that lies in order no more is held than what is asked for at a time."""
    path = tmp_path / "w"
    path.touch()
    os.truncate(path, 1 << 26)
    shape = (1 << 12, 1 << 12)
    param = Param(
        "w", DTYPES["float32"], shape, contiguous(shape), Storage("0", 1 << 26, (Extent(str(path), 0, 1 << 26),))
    )
    with Window() as window:
        total = sum(values.size for values in numbers(param, lane(param), window, numel=1 << 14))
        assert len(window._buffer) == 1 << 16
    assert total == math.prod(shape)
