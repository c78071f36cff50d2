"""Folders of `torch.distributed.checkpoint`: what it would load, without it; and what must not be believed."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import resource
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.filesystem import SerializationFormat, _StorageInfo
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict import get_state_dict

from paramctl import formats, source, values
from paramctl.checkpoint import Checkpoint
from paramctl.contents import Window
from paramctl.errors import FileError, ParamctlError
from paramctl.formats.dcp import untiled
from paramctl.optimizer import optimizer_names

pytestmark = pytest.mark.filterwarnings("ignore")

MISLEADING = "\n\nhint: the file is damaged, or was made to mislead"
MISSING = "\n\nhint: a part of the folder may not have been copied"


def opened(folder: Path | str) -> Checkpoint:
    return formats.read(source.resolve(str(folder)))


def save(state: dict[str, Any], folder: Path, **writer: Any) -> Path:
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder, **writer), no_dist=True)
    return folder


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def flat(value: Any, path: str = "") -> dict[str, torch.Tensor]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    found = {path: value} if isinstance(value, torch.Tensor) else {}
    for key, item in items:
        found |= flat(item, f"{path}.{key}" if path else str(key))
    return found


def agrees(folder: Path) -> Checkpoint:
    """The oracle: what torch makes of the folder has the same names, shapes, dtypes and bytes, at once and in parts."""
    dcp_to_torch_save(folder, folder.parent / "whole.pt")
    wanted = flat(torch.load(folder.parent / "whole.pt", weights_only=False))
    found = opened(folder)
    assert set(found.params) == set(wanted)
    for name, tensor in wanted.items():
        param = found.params[name]
        assert (param.shape, f"torch.{param.dtype}") == (tuple(tensor.shape), str(tensor.dtype)), name
        assert values.array(param).tobytes() == raw(tensor), name
        nbytes = param.storage.nbytes
        step = max(13, nbytes // 9)
        with Window() as window:
            parts = [bytes(window.read(param, at, min(at + step, nbytes))) for at in range(0, nbytes, step)]
        assert b"".join(parts) == raw(tensor), name
    return found


# ----------------------------------------------------------------------------- one process

STATES: dict[str, Callable[[], dict[str, Any]]] = {
    "a state dict": lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).state_dict(),
    "nested": lambda: {"model": nn.Linear(2, 2).state_dict(), "ema": {"n": torch.tensor(3)}, "epoch": 3},
    "scalars and empty ones": lambda: {"a": torch.tensor(2.5), "b": torch.empty(0, 3), "c": torch.tensor(True)},
    "dtypes": lambda: {
        str(dtype).removeprefix("torch."): torch.arange(6).to(dtype)
        for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.uint8, torch.int64)
    },
    "fp8 and complex": lambda: {
        "f8": torch.arange(6.0).to(torch.float8_e4m3fn),
        "c": torch.arange(6).to(torch.complex64),
        "cc": torch.arange(6).to(torch.complex128).reshape(2, 3).t(),
    },
    "transposed": lambda: {"t": torch.randn(3, 5).t(), "p": torch.randn(2, 3, 4).permute(1, 2, 0)},
    "channels last": lambda: {"conv": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)},
    "views of more": lambda: {"row": torch.randn(5, 4)[2], "column": torch.randn(5, 4)[:, 1], "x": torch.randn(9)[3:]},
    "expanded": lambda: {"e": torch.randn(3, 1).expand(3, 4)},
    "lists of tensors": lambda: {"l": [torch.ones(2), {"a": torch.zeros(1)}, 5]},
    "strange names": lambda: {"a b": torch.ones(1), "ключ": torch.ones(2), "": torch.ones(3), "x\ny": torch.ones(1)},
    "parameters": lambda: {"w": nn.Parameter(torch.randn(2, 2))},
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_reads_what_torch_reads(tmp_path: Path, state: Callable[[], dict[str, Any]]):
    """Every tensor that torch finds is found, with the same name, shape, dtype and bytes."""
    agrees(save(state(), tmp_path / "d"))


def test_several_files_of_one_process(tmp_path: Path):
    """Files that threads wrote, in a folder of one process."""
    folder = save({f"w{i}": torch.randn(3, i) for i in range(9)}, tmp_path / "d", thread_count=3)
    assert len(list(folder.glob("*.distcp"))) == 3
    agrees(folder)


def test_names_come_in_the_order_of_the_state_dict(tmp_path: Path):
    state = {"embed": torch.ones(2), "blocks": {"10": torch.ones(1), "2": torch.ones(1)}, "head": torch.ones(3)}
    found = opened(save(state, tmp_path / "d"))
    assert list(found.params) == ["embed", "blocks.10", "blocks.2", "head"]


def test_what_is_no_tensor_is_an_extra(tmp_path: Path):
    """Entries that are no tensors have their values, nested as they were; what is unknown has its class."""
    state = {
        "epoch": 3,
        "best": 0.5,
        "lr": [0.1, 0.1, {"a": None, "b": "text"}],
        "m": torch.ones(1),
        "slice": slice(1, 2),
        "mixed": [torch.ones(1), 7],
        "by number": {0: "a", 1: "b"},
    }
    found = opened(save(state, tmp_path / "d"))
    assert found.extras["slice"]["class"].endswith(".slice")
    assert {key: value for key, value in found.extras.items() if key != "slice"} == {
        "epoch": 3,
        "best": 0.5,
        "lr": [0.1, 0.1, {"a": None, "b": "text"}],
        "mixed": {"1": 7},
        "by number": {"0": "a", "1": "b"},
    }
    assert found.metadata["dcp_version"] == "1.0.0"


def test_tensors_in_entries_that_were_not_flattened(tmp_path: Path):
    """Without flattening a nested dict is one entry of bytes: its tensors are found in it."""
    state = {"w": torch.randn(2), "model": {"a": torch.randn(3, 2), "n": 5}, "other": {"b": torch.randn(1), "n": 6}}
    dcp.save(
        state, checkpoint_id=tmp_path / "d", planner=dcp.DefaultSavePlanner(flatten_state_dict=False), no_dist=True
    )
    found = opened(tmp_path / "d")
    wanted = flat(state)
    assert set(found.params) == set(wanted)
    assert all(values.array(found.params[name]).tobytes() == raw(tensor) for name, tensor in wanted.items())
    assert len({param.storage.key for param in found.params.values()}) == 3
    assert found.extras == {"model": {"n": 5}, "other": {"n": 6}}


def test_a_name_that_stands_twice_is_told_twice(tmp_path: Path):
    """A tensor inside an entry of bytes does not hide one of the same name."""
    state = {"model": {"a": torch.ones(2), "n": 5}, "model.a": torch.zeros(2)}
    dcp.save(
        state, checkpoint_id=tmp_path / "d", planner=dcp.DefaultSavePlanner(flatten_state_dict=False), no_dist=True
    )
    found = opened(tmp_path / "d")
    assert sorted(found.params) == ["model.a", "model.a'"]
    assert {values.array(param).tolist()[0] for param in found.params.values()} == {0.0, 1.0}


def test_paths_that_contradict_each_other(tmp_path: Path):
    """An entry whose path leads through another entry, or has steps that are none, keeps its own name."""
    folder = save({"a": {"x": 1}, "b": 2, "c": 3, "d": 4}, tmp_path / "d")
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.planner_data |= {"b": ("a", "x", "y"), "c": ("a", "x"), "d": ("e", 1 << 20000)}
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    assert opened(folder).extras == {"a": {"x": 1}, "b": 2, "c": 3, "d": 4}


def test_safetensors_serialization(tmp_path: Path):
    """Chunks that were written as one safetensors file, whose offsets the metadata does not tell."""
    state = {"a": torch.randn(2, 3), "b": torch.arange(4)}
    found = opened(save(state, tmp_path / "d", serialization_format=SerializationFormat.SAFETENSORS))
    assert {name: values.array(param).tobytes() for name, param in found.params.items()} == {
        name: raw(tensor) for name, tensor in state.items()
    }


def test_optimizer_state_by_name(tmp_path: Path):
    """`get_state_dict` names the state by parameter, and each is told to be of that parameter."""
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    model_state, optim_state = get_state_dict(model, optimizer)
    found = agrees(save({"model": model_state, "optim": optim_state}, tmp_path / "d"))
    assert found.extras["optim"]["param_groups"][0]["params"] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    names = optimizer_names(found)
    assert names == {
        f"optim.state.{name}.{key}": f"model.{name}"
        for name, _ in model.named_parameters()
        for key in ("step", "exp_avg", "exp_avg_sq")
    }


# ----------------------------------------------------------------------------- pieces


def pieces(
    folder: Path,
    tensors: dict[str, tuple[torch.Tensor, list[Any]]],
    edit: Callable[[Metadata], Any] | None = None,
    *,
    turned: bool = False,
    expanded: bool = False,
    files: int = 2,
) -> Path:
    """A folder whose tensors lie in these boxes, each in a file of its own or after others; as torch would write it."""
    folder.mkdir()
    metadata = Metadata({}, {}, {}, version="1.0.0")
    for name, (tensor, boxes) in tensors.items():
        chunks = []
        for i, box in enumerate(boxes):
            starts, sizes = ([pair[k] for pair in box] for k in (0, 1))
            part = tensor[tuple(slice(a, a + n) for a, n in box)].clone() if box else tensor
            part = part.t().contiguous().t() if turned else part[:1, :1].expand(part.shape) if expanded else part
            chunks.append(ChunkStorageMetadata(torch.Size(starts), torch.Size(sizes)))
            file = f"__{i % files}_0.distcp"
            with (folder / file).open("ab") as stream:
                at = stream.tell()
                torch.save(part, stream)
                length = stream.tell() - at
            metadata.storage_data[MetadataIndex(name, starts)] = _StorageInfo(file, at, length)
        properties = TensorProperties.create_from_tensor(tensor)
        metadata.state_dict_metadata[name] = TensorStorageMetadata(properties, tensor.size(), chunks)
        metadata.planner_data[name] = (name,)
    changed = edit(metadata) if edit else None
    (folder / ".metadata").write_bytes(changed if isinstance(changed, bytes) else pickle.dumps(metadata))
    return folder


BOXES = {
    "rows": ((5, 4), [[(0, 3), (0, 4)], [(3, 2), (0, 4)]]),
    "columns": ((5, 4), [[(0, 5), (0, 1)], [(0, 5), (1, 3)]]),
    "a grid": ((4, 6), [[(r, 2), (c, 3)] for r in (0, 2) for c in (0, 3)]),
    "uneven, in no order": ((7, 3), [[(6, 1), (0, 3)], [(0, 3), (0, 3)], [(3, 3), (0, 3)]]),
    "an empty shard": ((2, 3), [[(0, 1), (0, 3)], [(1, 1), (0, 3)], [(2, 0), (0, 3)]]),
    "nested cuts": ((4, 4), [[(0, 2), (0, 4)], [(2, 2), (0, 1)], [(2, 1), (1, 3)], [(3, 1), (1, 3)]]),
    "a pinwheel": ((3, 3), [[(0, 1), (0, 2)], [(0, 2), (2, 1)], [(2, 1), (1, 2)], [(1, 2), (0, 1)], [(1, 1), (1, 1)]]),
    "a scalar": ((), [[]]),
    "three axes": ((2, 4, 3), [[(0, 2), (a, 2), (b, n)] for a in (0, 2) for b, n in ((0, 1), (1, 2))]),
}


@pytest.mark.parametrize("layout", BOXES)
def test_pieces_are_put_together_as_torch_does(tmp_path: Path, layout: str):
    """Chunks along any axes, uneven and empty ones, make the tensor that torch makes of them."""
    shape, boxes = BOXES[layout]
    found = agrees(pieces(tmp_path / "d", {"w": (torch.randn(shape), boxes), "n": (torch.arange(2), [[(0, 2)]])}))
    assert len(found.params["w"].storage.extents) == sum(all(n for _, n in box) for box in boxes)


def test_a_grid_in_transposed_chunks(tmp_path: Path):
    """A chunk that was saved with strides of its own is put in order."""
    folder = pieces(tmp_path / "d", {"w": (torch.randn(4, 6), BOXES["a grid"][1])})
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    index, info = next(iter(metadata.storage_data.items()))
    part = torch.arange(6.0).reshape(3, 2).t()
    with (folder / "other").open("wb") as stream:
        torch.save(part, stream)
    info.relative_path, info.offset, info.length = "other", 0, (folder / "other").stat().st_size
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    assert index.offset == (0, 0)
    found = agrees(folder)
    assert values.array(found.params["w"])[:2, :3].tolist() == part.tolist()


def changed_as_torch(folder: Path, run: Any, tmp_path: Path, name: str, change: str, expected: torch.Tensor) -> None:
    """A change of one tensor: the others are what they were, to torch too, and the rest of each file is as it was."""
    before = agrees(folder)
    done = run("set", folder, f"{name}{change}", "-o", tmp_path / "new")
    assert (done.code, done.err) == (0, "")
    after = agrees(tmp_path / "new")
    assert run("check", tmp_path / "new").code == 0
    assert values.array(after.params[name]).tobytes() == raw(expected)
    others = [other for other in before.params if other != name]
    assert others == [other for other in after.params if other != name]
    for other in others:
        assert values.array(after.params[other]).tobytes() == values.array(before.params[other]).tobytes()
    regions = {(extent.path, extent.offset, extent.nbytes) for extent in before.params[name].storage.extents}
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        old, new = (bytearray((root / file.name).read_bytes()) for root in (folder, tmp_path / "new"))
        for path, offset, nbytes in regions:
            if Path(path).name == file.name:
                old[offset : offset + nbytes] = new[offset : offset + nbytes] = bytes(nbytes)
        assert old == new


@pytest.mark.parametrize("layout", BOXES)
def test_a_change_goes_into_the_pieces(tmp_path: Path, run, layout: str):
    """Every element, or a slice across chunks, is changed where it lies, and the checksums of each chunk are right."""
    shape, boxes = BOXES[layout]
    tensor = torch.randn(shape)
    folder = pieces(tmp_path / "d", {"w": (tensor, boxes), "n": (torch.arange(2), [[(0, 2)]])})
    changed_as_torch(folder, run, tmp_path, "w", " *= 2", tensor * 2)
    if len(shape) > 1:
        (tmp_path / "new").rename(tmp_path / "first")
        expected = tensor.clone()
        expected[1:, ::2] = 0.5
        changed_as_torch(folder, run, tmp_path, "w", "[1:, ::2] = 0.5", expected)


def test_a_change_of_transposed_chunks(tmp_path: Path, run):
    """A chunk with strides of its own keeps them."""
    tensor = torch.randn(4, 6)
    folder = pieces(tmp_path / "d", {"w": (tensor, BOXES["a grid"][1])}, turned=True)
    expected = tensor.clone()
    expected[0, 1:5] = -1
    changed_as_torch(folder, run, tmp_path, "w", "[0, 1:5] = -1", expected)


def test_a_change_of_an_expanded_chunk_is_refused(tmp_path: Path, run):
    """Elements that share bytes cannot be changed one by one, and nothing is written."""
    folder = pieces(tmp_path / "d", {"w": (torch.ones(4, 6), [[(0, 4), (0, 6)]])}, expanded=True)
    done = run("set", folder, "w[0] = 2", "-o", tmp_path / "new")
    assert (done.code, done.err) == (2, "error: w: elements of it share bytes, and are not changed there\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]


def test_a_change_of_a_tensor_of_many_ranks(tmp_path: Path, run):
    """Its files are copied one after another: of each no more than one stays open."""
    tensor = torch.randn(40, 3)
    folder = pieces(tmp_path / "d", {"w": (tensor, [[(i, 1), (0, 3)] for i in range(40)])}, files=40)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len([*Path("/proc/self/fd").iterdir()]) + 60, limits[1]))
    try:
        done = run("set", folder, "w *= 2", "-o", tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (done.code, done.err) == (0, "")
    assert values.array(opened(tmp_path / "new").params["w"]).tobytes() == raw(tensor * 2)


@pytest.mark.parametrize("words", [["-o", "new"], ["--in-place"]], ids=" ".join)
def test_a_change_of_a_tensor_in_an_entry(tmp_path: Path, run, monkeypatch, words):
    """Tensors in a tuple are an entry that `torch.save` wrote as a whole, whose checksums are right again too."""
    monkeypatch.chdir(tmp_path)
    save({"t": (torch.ones(3), {"k": torch.zeros(2)}, 2), "m": torch.ones(3)}, tmp_path / "d")
    assert run("set", "d", "t.0 *= 4", "t.0[1] = 9", "m = 2", *words).code == 0
    folder = Path("new" if words[0] == "-o" else "d")
    for place in dcp.FileSystemReader(folder).read_metadata().storage_data.values():
        data = (folder / place.relative_path).read_bytes()[place.offset : place.offset + place.length]
        assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None
    dcp_to_torch_save(folder, "found.pt")
    found = torch.load("found.pt")
    assert [found["t"][0].tolist(), found["t"][1]["k"].tolist(), found["t"][2]] == [[4, 9, 4], [0, 0], 2]
    assert found["m"].tolist() == [2, 2, 2]


def test_names_of_the_same_chunks_are_tied(tmp_path: Path, run):
    """A change by one name is seen by a change through the other, and told."""

    def share(metadata: Metadata) -> None:
        metadata.state_dict_metadata["v"] = metadata.state_dict_metadata["w"]
        for index, place in list(metadata.storage_data.items()):
            metadata.storage_data[MetadataIndex("v", index.offset)] = place

    tensor = torch.randn(4, 6)
    folder = pieces(tmp_path / "d", {"w": (tensor, BOXES["a grid"][1])}, share)
    done = run("set", folder, "w *= 2", "v[0] = w[1]", "-o", tmp_path / "new", "-f", "json")
    assert [row["tied_with"] for row in done.json["rows"]] == [["v"], ["w"]]
    expected = tensor * 2
    expected[0] = expected[1]
    for param in agrees(tmp_path / "new").params.values():
        assert values.array(param).tobytes() == raw(expected)


def test_changes_of_safetensors_in_place(tmp_path: Path, run):
    """A folder of `SerializationFormat.SAFETENSORS` is changed in its place, in one file alone."""
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).bfloat16()}
    folder = save(state, tmp_path / "d", serialization_format=SerializationFormat.SAFETENSORS)
    inode = folder.stat().st_ino
    assert run("set", folder, "a[1] *= 3", "b = 7", "--in-place").code == 0
    found = opened(folder)
    assert values.array(found.params["a"]).tolist() == [[0, 1, 2], [9, 12, 15]]
    assert values.array(found.params["b"]).astype(float).tolist() == [7] * 3
    assert folder.stat().st_ino == inode


def test_slices_read_their_pieces_only(tmp_path: Path, run):
    """`show` of rows does not open the file of other rows; a table of everything does."""
    tensor = torch.arange(20.0).reshape(5, 4)
    folder = pieces(tmp_path / "d", {"w": (tensor, BOXES["rows"][1])})
    raw_bytes = (folder / "__1_0.distcp").read_bytes()
    (folder / "__1_0.distcp").write_bytes(bytes(len(raw_bytes)))
    assert run("show", folder, "w[1:3]", "-f", "json").rows[0]["value"] == tensor[1:3].tolist()
    result = run("show", folder, "w[3]", "-f", "json")
    hint = "the file is cut short: its directory stands at the end"
    assert result.code == 2
    assert result.err == f"error: {folder}/__1_0.distcp: w: a zip without its directory\n\nhint: {hint}\n"


# ----------------------------------------------------------------------------- two processes

RANKS = """
import os
import sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3, bias=False))

def trained(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(4, 5)).sum().backward()
    optimizer.step()
    model_state, optim_state = get_state_dict(model, optimizer)
    return {"model": model_state, "optim": optim_state, "epoch": 3, "note": {"lrs": [0.5, 0.25]}}

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
model = build()
fully_shard(model, mesh=mesh)
dcp.save(trained(model), checkpoint_id=sys.argv[1] + "/fsdp")
model = build()
parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
dcp.save({"model": model.state_dict()}, checkpoint_id=sys.argv[1] + "/tensor-parallel")
shards = {"rows": ((5, 4), 0), "columns": ((3, 7), 1), "middle": ((2, 5, 3), 1), "thin": ((1, 4), 0), "none": ((0, 4), 0)}
state = {name: distribute_tensor(torch.randn(shape), mesh, [Shard(axis)]) for name, (shape, axis) in shards.items()}
state["replicated"] = distribute_tensor(torch.randn(3), mesh, [Replicate()])
state["half"] = distribute_tensor(torch.randn(6, 2).bfloat16(), mesh, [Shard(0)])
state["integers"] = distribute_tensor(torch.arange(7), mesh, [Shard(0)])
state["scalar"], state["plain"] = torch.tensor(2.5), torch.ones(2, 2)
dcp.save(state, checkpoint_id=sys.argv[1] + "/shards")
dist.barrier()
os._exit(0)  # gloo's threads are left to the system: to end them at exit aborts the process now and then
"""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes saved together."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "ranks.py").write_text(RANKS)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", folder / "ranks.py", folder]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr[:2000]
    return folder


def test_fsdp_of_two_ranks(two_ranks: Path):
    """A model and its optimizer that two ranks hold by halves; buffers, step counts and settings beside them."""
    found = agrees(two_ranks / "fsdp")
    assert found.extras["epoch"] == 3
    assert found.extras["note"] == {"lrs": [0.5, 0.25]}
    assert found.extras["optim"]["param_groups"][0]["betas"] == [0.9, 0.999]
    assert [len(found.params[f"model.{name}"].storage.extents) for name in ("0.weight", "1.running_mean")] == [2, 1]
    assert list(found.params)[:3] == ["model.0.weight", "model.0.bias", "model.1.weight"]
    names = optimizer_names(found)
    assert names["optim.state.2.weight.exp_avg"] == "model.2.weight"
    assert len(names) == 15


def test_tensor_parallel_of_two_ranks(two_ranks: Path):
    """Linear layers cut by columns and by rows."""
    found = agrees(two_ranks / "tensor-parallel")
    boxes = [[extent.box for extent in found.params[f"model.{i}.weight"].storage.extents] for i in (0, 2)]
    assert boxes == [[((0, 4), (0, 5)), ((4, 3), (0, 5))], [((0, 3), (0, 4)), ((0, 3), (4, 3))]]


def test_a_training_step_of_two_ranks_is_changed(two_ranks: Path, tmp_path: Path, run):
    """A layer of a model that two ranks hold by halves begins anew; its optimizer, counts and settings stay."""
    before = agrees(two_ranks / "fsdp")
    words = ("init", two_ranks / "fsdp", "model.2.weight", "--scheme", "orthogonal", "--seed", "0")
    assert run(*words, "-o", tmp_path / "new").code == 0
    after = agrees(tmp_path / "new")
    weight = torch.from_numpy(values.array(after.params["model.2.weight"]).copy())
    torch.testing.assert_close(weight @ weight.T, torch.eye(3))
    same = [name for name in before.params if name != "model.2.weight"]
    for name in same:
        assert values.array(after.params[name]).tobytes() == values.array(before.params[name]).tobytes()
    assert after.extras == before.extras


def test_shards_of_two_ranks(two_ranks: Path):
    """Uneven and empty shards along each axis, replicated tensors, scalars."""
    agrees(two_ranks / "shards")


def test_the_commands_take_a_folder(two_ranks: Path, run, process):
    """`ls`, `tree`, `info`, `show`, `ties` work on it, and to list it needs neither torch nor numpy."""
    assert [row["name"] for row in run("ls", two_ranks / "shards", "rows", "-f", "json").rows] == ["rows"]
    assert run("info", two_ranks / "fsdp", "-f", "json").json["extras"]["epoch"] == 3
    for command in ("tree", "show", "ties"):
        assert run(command, two_ranks / "fsdp").code == 0
    code = (
        "import sys; from paramctl import formats, source; formats.read(source.resolve(sys.argv[1]));"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, two_ranks / "fsdp"], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ----------------------------------------------------------------------------- what must not be believed


class _Runs:
    """What a stranger would like to have run: it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("where", ["planner_data", "storage_meta", "version", "state_dict_metadata", "entry"])
def test_nothing_of_the_file_is_run(tmp_path: Path, where: str):
    """A foreign function anywhere in the metadata, or in an entry, is not called; the tensors are still found."""
    runs = _Runs(tmp_path / "ran")

    def edit(metadata: Metadata) -> None:
        if where == "state_dict_metadata":
            metadata.state_dict_metadata["w"].properties = (metadata.state_dict_metadata["w"].properties, runs)[0]
            metadata.state_dict_metadata["w"].evil = runs
        elif where != "entry":
            setattr(metadata, where, runs)

    if where == "entry":
        save({"w": torch.ones(2), "x": runs}, tmp_path / "d")
    else:
        pieces(tmp_path / "d", {"w": (torch.ones(2), [[(0, 2)]])}, edit)
    found = opened(tmp_path / "d")
    assert list(found.params) == ["w"]
    assert not (tmp_path / "ran").exists()


def _with(change: Callable[[TensorStorageMetadata, dict[MetadataIndex, _StorageInfo]], Any]) -> Callable[..., Any]:
    def edit(metadata: Metadata) -> Any:
        return change(metadata.state_dict_metadata["w"], metadata.storage_data)

    return edit


def _info(metadata: Metadata, i: int = 0) -> _StorageInfo:
    return list(metadata.storage_data.values())[i]


def _setting(i: int = 0, **fields: Any) -> Callable[[Metadata], None]:
    return lambda metadata: _info(metadata, i).__dict__.update(fields)


def _chunk(i: int, offsets: Any, sizes: Any) -> Callable[[Metadata], None]:
    """Chunk i lies elsewhere, and says so everywhere."""

    def edit(metadata: Metadata) -> None:
        chunk = metadata.state_dict_metadata["w"].chunks[i]
        index, info = list(metadata.storage_data.items())[i]
        del metadata.storage_data[index]
        chunk.offsets, chunk.sizes = offsets, sizes
        metadata.storage_data[MetadataIndex("w", None)] = info
        key = list(metadata.storage_data)[-1]
        object.__setattr__(key, "offset", offsets)

    return edit


def _shape(*shape: int, chunks: list[Any] | None = None) -> Callable[[Metadata], None]:
    def edit(metadata: Metadata) -> None:
        metadata.state_dict_metadata["w"].size = torch.Size(shape)
        if chunks is not None:
            metadata.state_dict_metadata["w"].chunks = chunks

    return edit


def _same_region(metadata: Metadata) -> None:
    infos = list(metadata.storage_data.values())
    infos[1].__dict__.update(infos[0].__dict__)


def _outside(file: str) -> str:
    return f"w: it lies in {file!r}, which is not in the folder" + MISLEADING


META, ONE = "d/.metadata: ", "d/__0_0.distcp: "
LIES: dict[str, tuple[Callable[[Metadata], Any], str]] = {
    "a path above": (_setting(relative_path="../x"), META + _outside("../x")),
    "a path that climbs": (_setting(relative_path="a/../../x"), META + _outside("a/../../x")),
    "an absolute path": (_setting(relative_path="/etc/passwd"), META + _outside("/etc/passwd")),
    "a path of Windows": (_setting(relative_path="..\\x"), META + _outside("..\\x").replace("\\\\", "\\" * 4)),
    "an empty path": (_setting(relative_path=""), META + _outside("")),
    "a path that is a number": (
        _setting(relative_path=3),
        META + _outside("3").replace("'3'", "something of type int"),
    ),
    "a path that is absent": (
        _setting(1, relative_path="__9_0.distcp"),
        "d: __9_0.distcp cannot be read, where w lies: no such file or directory" + MISSING,
    ),
    "a path that is a folder": (_setting(relative_path="."), "d/.: not a regular file"),
    "a region beyond the file": (
        _setting(length=1 << 50),
        ONE + "w has 1,125,899,906,842,624 bytes at 0, the file has {size:,}" + MISSING,
    ),
    "an offset beyond the file": (
        _setting(offset=1 << 62),
        ONE + "w has {size:,} bytes at 4,611,686,018,427,387,904, the file has {size:,}" + MISSING,
    ),
    "an offset beyond counting": (
        _setting(offset=1 << 20000),
        META + "w: its region is no range of bytes" + MISLEADING,
    ),
    "a negative offset": (_setting(offset=-1), META + "w: its region is no range of bytes" + MISLEADING),
    "an offset that is a float": (_setting(offset=0.0), META + "w: its region is no range of bytes" + MISLEADING),
    "a region that is too small": (
        _setting(length=7),
        META + "w: its chunk at (0, 0) takes 16 bytes, its region has 7" + MISLEADING,
    ),
    "chunks in the same bytes": (
        _same_region,
        META + "w: two of its chunks lie in the same bytes at 0 of __0_0.distcp" + MISLEADING,
    ),
    "chunks that overlap": (
        _chunk(1, (1, 0), (2, 2)),
        META + "w: its chunks at (0, 0) and (1, 0) overlap" + MISLEADING,
    ),
    "chunks that leave a hole": (
        _chunk(1, (2, 0), (1, 2)),
        META + "w: its chunks hold 6 of 8 elements" + MISLEADING,
    ),
    "a chunk beyond the tensor": (
        _chunk(1, (3, 0), (2, 2)),
        META + "w: its chunk at (3, 0) is 2×2, the tensor 4×2" + MISLEADING,
    ),
    "a chunk of other axes": (_chunk(1, (2,), (2,)), META + "w: a chunk without 2 offsets and sizes"),
    "a negative chunk": (_chunk(1, (2, 0), (-2, 2)), META + "w: a chunk without 2 offsets and sizes"),
    "no chunks": (_shape(4, 2, chunks=[]), META + "w: its chunks hold 0 of 8 elements" + MISLEADING),
    "a tensor of terabytes": (
        _shape(1 << 40, 2),
        META + "w: its chunks hold 8 of 2,199,023,255,552 elements" + MISLEADING,
    ),
    "more elements than can be": (
        _with(lambda w, _: setattr(w, "size", (1 << 62, 4))),
        META + "w: more elements than a tensor can have",
    ),
    "a size that is negative": (
        _with(lambda w, _: setattr(w, "size", (-1, 4))),
        META + "w: it has no dtype, size or chunks",
    ),
    "a chunk of which nothing is said": (
        lambda metadata: metadata.storage_data.popitem(),
        META + "w: it is not said where its chunk at (2, 0) lies",
    ),
    "an entry that is bytes, of which nothing is said": (
        lambda metadata: metadata.state_dict_metadata.update(epoch=BytesStorageMetadata()),
        META + "epoch: it is not said where it lies",
    ),
    "an entry of something else": (
        lambda metadata: metadata.state_dict_metadata.update(w=3),
        META + "w is neither a tensor nor bytes",
    ),
    "a name that is a number": (
        lambda metadata: metadata.state_dict_metadata.update({3: BytesStorageMetadata()}),
        META + "an entry's name is of type int",
    ),
    "no regions": (
        lambda metadata: setattr(metadata, "storage_data", None),
        META + "it does not say where the tensors lie",
    ),
    "an index of something else": (
        lambda metadata: metadata.storage_data.update({"w": None}),
        META + "an index that names no entry",
    ),
    "a pickle of something else": (
        lambda _: pickle.dumps({"state_dict_metadata": {}}),
        META + "no metadata of torch.distributed.checkpoint",
    ),
    "an empty file": (
        lambda _: b"",
        META + "the pickle is cut short or damaged",
    ),
}


def _two_rows(edit: Callable[[Metadata], Any] | None = None) -> Path:
    return pieces(Path("d"), {"w": (torch.arange(8.0).reshape(4, 2), [[(0, 2), (0, 2)], [(2, 2), (0, 2)]])}, edit)


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str):
    """What the metadata says is held against the files, and the first thing wrong is named; nothing is asked for."""
    monkeypatch.chdir(tmp_path)
    edit, wanted = LIES[lie]
    _two_rows(edit)
    tracemalloc.start()
    with pytest.raises(FileError) as caught:
        opened("d")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = Path("d/__0_0.distcp").stat().st_size
    if lie == "an empty file":
        assert str(caught.value).startswith("error: d/.metadata: ")
    else:
        assert str(caught.value) == "error: " + wanted.format(size=size)
    assert peak < 4 << 20


def test_metadata_cut_anywhere_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folder = _two_rows()
    whole = (folder / ".metadata").read_bytes()
    for end in range(0, len(whole), 3):
        (folder / ".metadata").write_bytes(whole[:end])
        with pytest.raises(FileError, match=r"^error: d/\.metadata: "):
            opened("d")


def test_flipped_bytes_never_surprise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Metadata with a bit changed is read, or refused with an error of ours."""
    monkeypatch.chdir(tmp_path)
    folder = _two_rows()
    whole = bytearray((folder / ".metadata").read_bytes())
    for at in range(0, len(whole), 2):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        (folder / ".metadata").write_bytes(changed)
        with contextlib.suppress(ParamctlError):
            for param in opened("d").params.values():
                values.span_bytes(param)


def test_files_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file of chunks that was not copied whole, or not at all, is named with what lies in it."""
    monkeypatch.chdir(tmp_path)
    folder = _two_rows()
    data = (folder / "__1_0.distcp").read_bytes()
    (folder / "__1_0.distcp").write_bytes(data[:-1])
    with pytest.raises(FileError) as caught:
        opened("d")
    assert str(caught.value) == (
        f"error: d/__1_0.distcp: w has {len(data):,} bytes at 0, the file has {len(data) - 1:,}{MISSING}"
    )
    (folder / "__1_0.distcp").unlink()
    with pytest.raises(FileError) as caught:
        opened("d")
    assert str(caught.value) == (
        f"error: d: __1_0.distcp cannot be read, where w lies: no such file or directory{MISSING}"
    )
    (folder / ".metadata").unlink()
    with pytest.raises(FileError) as caught:
        opened("d")
    assert str(caught.value) == (
        "error: d: it has no .metadata\n\nhint: the save was not finished, or not all was copied"
    )


def test_a_pipe_in_the_place_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing waits for a pipe."""
    monkeypatch.chdir(tmp_path)
    folder = _two_rows()
    (folder / "__1_0.distcp").unlink()
    os.mkfifo(folder / "__1_0.distcp")
    with pytest.raises(FileError, match=r"^error: d/__1_0\.distcp: not a regular file$"):
        opened("d")


def saved(value: Any, path: Path) -> bytes:
    torch.save(value, path)
    return path.read_bytes()


REGIONS: dict[str, tuple[Any, str]] = {
    "another shape": (torch.ones(4), "its chunk should be 2×2 of float32, and is 4 of float32"),
    "another dtype": (torch.ones(2, 2).double(), "its chunk should be 2×2 of float32, and is 2×2 of float64"),
    "no tensor": ({"w": 1}, "its region holds no tensor"),
    "an array": (np.ones((2, 2), "f4"), "its region holds no tensor"),
}


@pytest.mark.parametrize("region", REGIONS)
def test_a_region_of_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, region: str):
    """A region is held against its chunk when its values are read."""
    monkeypatch.chdir(tmp_path)
    value, wanted = REGIONS[region]
    data = saved(value, tmp_path / "value")

    def edit(metadata: Metadata) -> None:
        _info(metadata).__dict__.update(relative_path="other", offset=0, length=len(data))

    folder = _two_rows(edit)
    (folder / "other").write_bytes(data)
    param = opened("d").params["w"]
    with pytest.raises(FileError) as caught:
        values.array(param)
    assert str(caught.value) == f"error: d/other: w: {wanted}"


def test_compressed_chunks_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Chunks that went through a transform are listed, and that they cannot be read is said."""
    monkeypatch.chdir(tmp_path)
    _two_rows(_setting(length=9, transform_descriptors=["stream.zstd/1"]))
    param = opened("d").params["w"]
    with pytest.raises(ParamctlError) as caught:
        values.array(param)
    assert str(caught.value) == "error: w: its bytes are compressed"


def test_a_dtype_that_is_not_known_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    _two_rows(lambda metadata: pickle.dumps(metadata).replace(b"float32", b"float33"))
    found = opened("d")
    assert (found.params, found.extras) == ({}, {"w": "a tensor of torch.float33, which is not known"})


def test_links_inside_the_folder_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A snapshot's files may be links, as the Hub's are: a link is the user's, a path in the metadata is not."""
    monkeypatch.chdir(tmp_path)
    folder = _two_rows()
    (folder / "__1_0.distcp").rename("blob")
    (folder / "__1_0.distcp").symlink_to(tmp_path / "blob")
    assert values.array(opened("d").params["w"]).tolist() == torch.arange(8.0).reshape(4, 2).tolist()


TILINGS: dict[str, tuple[tuple[int, ...], list[Any], str]] = {
    "one": ((3,), [((0, 3),)], ""),
    "a scalar": ((), [()], ""),
    "a scalar twice": ((), [(), ()], "its chunks at () and () overlap"),
    "nothing": ((0, 3), [], "" ),
    "halves": ((4,), [((2, 2),), ((0, 2),)], ""),
    "one twice": ((4,), [((0, 4),), ((0, 4),)], "its chunks at (0) and (0) overlap"),
    "an overlap and a hole": ((4,), [((0, 2),), ((1, 2),)], "its chunks at (0) and (1) overlap"),
    "corners": ((2, 2), [((0, 1), (0, 1)), ((1, 1), (1, 1))], "its chunks hold 2 of 4 elements"),
}  # fmt: skip


@pytest.mark.parametrize("case", TILINGS)
def test_boxes_cover_a_tensor_once(case: str):
    shape, boxes, wanted = TILINGS[case]
    assert untiled(shape, boxes) == wanted


def test_many_chunks_are_checked_at_once():
    """A grid of 128 by 128 chunks costs no more than a moment; as many that are no grid are refused as soon."""
    boxes = [((2 * r, 2), (3 * c, 3)) for r in range(128) for c in range(128)]
    wild = [((0, 1 << 20), (c, 1)) for c in range(2000)] + [((r, 1), (2000 + r, 2000 - r)) for r in range(2000)]
    before = time.perf_counter()
    assert not untiled((256, 384), boxes)
    assert untiled((1 << 20, 4000), wild) == "its 4,000 chunks are no grid, and too many to be compared"
    assert time.perf_counter() - before < 5
