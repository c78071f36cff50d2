"""Digests: what anyone recomputes with hashlib, and the same in every format."""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from lying import WAYS, param, parts_of, raw_of
from safetensors.torch import save_file

import paramctl
from formats.file_builders import entry, safetensors
from paramctl.checkpoint import Extent, Param, Storage, contiguous
from paramctl.dtypes import DTYPES
from paramctl.errors import FileError
from paramctl.values.digest import digests
from program import ROOT

ELEMENTS = [name for name, dtype in DTYPES.items() if dtype.block_numel == 1]
BLOCKS = [name for name, dtype in DTYPES.items() if dtype.block_numel > 1]


def expected(dtype: str, shape: tuple[int, ...], raw: bytes) -> str:
    """The definition, in one line."""
    return hashlib.sha256(f"{dtype} {','.join(map(str, shape))}\n".encode() + raw).hexdigest()


def random(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    parts, width = parts_of(dtype)
    return np.random.default_rng(0).integers(0, 1 << 8 * width, (*shape, parts), np.uint64).astype(f"u{width}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ELEMENTS)
def test_a_digest_is_of_dtype_shape_and_elements(dtype, way):
    """In whatever order, byte order or place the elements lie, of every dtype, and any number of axes."""
    arrays = [random(dtype, shape) for shape in ((), (0,), (5,), (3, 4), (2, 3, 4), (3, 0), (1, 1))]
    made, notes = digests(param(array, dtype, way) for array in arrays)
    assert made == [expected(dtype, array.shape[:-1], raw_of(array, dtype)) for array in arrays]
    assert notes == []


@pytest.mark.parametrize("dtype", BLOCKS)
def test_blocks_are_digested_as_they_lie(dtype):
    """Of types whose elements share bytes, in a file of the other byte order too."""
    count, nbytes = DTYPES[dtype].block_numel, DTYPES[dtype].block_nbytes
    raw = np.random.default_rng(0).bytes(6 * nbytes)
    for order in ("little", "big"):
        storage = Storage("0", len(raw), data=memoryview(raw), byteorder=order)
        tensor = Param("w", DTYPES[dtype], (2, 3 * count), (3 * count, 1), storage)
        assert digests([tensor])[0] == [expected(dtype, (2, 3 * count), raw)]


def test_an_expanded_tensor_is_digested_by_its_elements():
    """A row that is told three times has the digest of the three."""
    row = param(random("int16", (1, 4)), "int16")
    raw = raw_of(random("int16", (1, 4)), "int16")
    assert digests([row._replace(shape=(3, 4), stride=(0, 1))])[0] == [expected("int16", (3, 4), 3 * raw)]


# ----------------------------------------------------------------------------- formats

STATE = {
    "a": torch.linspace(-3, 3, 12).reshape(3, 4),
    "b": torch.arange(5, dtype=torch.int16),
    "deep.c": torch.tensor([[1.5, float("nan")], [-0.0, 2.0**-140]]),
    "one": torch.tensor(7, dtype=torch.int32),
    "half": torch.linspace(0, 1, 6).to(torch.float16).reshape(1, 6),
}


def torch_zip(path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, path)


def torch_legacy(path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def transposed(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Every tensor lies the other way round in its storage."""
    turned = {k: v.permute(tuple(reversed(range(v.ndim)))).contiguous() for k, v in state.items()}
    torch.save({k: v.permute(tuple(reversed(range(v.ndim)))) for k, v in turned.items()}, path)


def other_byte_order(path: Path, state: dict[str, torch.Tensor]) -> None:
    """As torch writes where the machine is big-endian."""
    swapped = {k: torch.from_numpy(np.asarray(v.numpy().byteswap())) for k, v in state.items()}
    torch.save(swapped, path.with_suffix(".little"))
    with zipfile.ZipFile(path.with_suffix(".little")) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, b"big" if info.filename.endswith("byteorder") else old.read(info))


def one_safetensors(path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, path)


def sharded(path: Path, state: dict[str, torch.Tensor]) -> None:
    path.mkdir()
    names = list(state)
    for i, part in enumerate((names[:2], names[2:]), 1):
        save_file({name: state[name] for name in part}, path / f"model-0000{i}-of-00002.safetensors")


def npz(path: Path, state: dict[str, torch.Tensor]) -> None:
    np.savez(path.with_suffix(".npz"), **{name: np.array(tensor.numpy(), order="F") for name, tensor in state.items()})
    path.with_suffix(".npz").rename(path)


def packed_npz(path: Path, state: dict[str, torch.Tensor]) -> None:
    arrays = {
        name: np.asarray(tensor.numpy()).astype(tensor.numpy().dtype.newbyteorder(">"))
        for name, tensor in state.items()
    }
    np.savez_compressed(path.with_suffix(".npz"), **arrays)
    path.with_suffix(".npz").rename(path)


def distributed(path: Path, state: dict[str, torch.Tensor]) -> None:
    dcp.save(dict(state), storage_writer=dcp.FileSystemWriter(path), no_dist=True)


def gguf_file(path: Path, state: dict[str, torch.Tensor], order: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE) -> None:
    writer = gguf.GGUFWriter(path, "llama", endianess=order)
    for name, tensor in state.items():
        writer.add_tensor(name, tensor.numpy().copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def big_gguf(path: Path, state: dict[str, torch.Tensor]) -> None:
    gguf_file(path, state, gguf.GGUFEndian.BIG)


WRITERS = [
    torch_zip, torch_legacy, transposed, other_byte_order, one_safetensors, sharded, npz, packed_npz, distributed,
    gguf_file, big_gguf,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_digest_is_the_same_in_every_format(write, run, tmp_path):
    """Two files are compared by their hashes alone: it is that of numpy's bytes of torch's tensor."""
    state = STATE if write not in (gguf_file, big_gguf) else {k: v for k, v in STATE.items() if v.ndim}
    write(tmp_path / "m", state)
    result = run("ls", tmp_path / "m", "--digest", "-f", "json")
    assert (result.code, result.err) == (0, "")
    found = {row["name"]: row["digest"] for row in result.rows}
    assert found == {
        name: expected(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), tensor.numpy().tobytes())
        for name, tensor in state.items()
    }
    assert result.json["format"] not in ("", None)


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.bool, torch.uint16],
    ids=str,
)
def test_a_dtype_that_numpy_has_not_is_digested_as_torch_has_it(dtype, tmp_path):
    """In a torch file and in safetensors, it is of torch's bytes."""
    tensor = torch.arange(24).remainder(2).to(dtype).reshape(4, 6)
    raw = tensor.view(torch.uint8).numpy().tobytes()
    torch.save({"w": tensor}, tmp_path / "m.pt")
    save_file({"w": tensor}, tmp_path / "m.safetensors")
    for name in ("m.pt", "m.safetensors"):
        (row,) = paramctl.open(tmp_path / name).ls(digest=True).dicts()
        assert row["digest"] == expected(str(dtype).removeprefix("torch."), (4, 6), raw)


def test_four_bits_are_digested_as_they_lie(tmp_path):
    """Two elements of a byte are that byte."""
    (tmp_path / "m").write_bytes(safetensors({"w": entry("F4", (2, 4), (0, 4))}, b"\x12\x34\x56\x78"))
    (row,) = paramctl.open(tmp_path / "m").ls(digest=True).dicts()
    assert row["digest"] == expected(row["dtype"], tuple(row["shape"]), b"\x12\x34\x56\x78")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.complex64, torch.bool], ids=str)
def test_the_documented_definition_gives_the_digests(dtype, tmp_path):
    """The function that docs/commands.md prints, run as it stands there on the arrays that paramctl gives."""
    (code,) = re.findall(r"## Digests\n.*?```python\n(.*?)```", (ROOT / "docs/commands.md").read_text(), re.DOTALL)
    defined: dict[str, Any] = {"hashlib": hashlib}
    exec(code, defined)  # noqa: S102
    state = {"w": torch.arange(12).remainder(5).to(dtype).reshape(3, 4), "s": torch.tensor(1).to(dtype)}
    torch.save(state | {"t": state["w"].t()}, tmp_path / "m.pt")
    model = paramctl.open(tmp_path / "m.pt")
    for row in model.ls(digest=True).dicts():
        assert row["digest"] == defined["digest"](row["dtype"], model[row["name"]].numpy())


# ----------------------------------------------------------------------------- what it costs, and how it ends


def sparse(path: Path, nbytes: int, count: int = 1) -> list[Param]:
    """Tensors of zeros that take no room on the disk."""
    with path.open("wb") as file:
        file.truncate(count * nbytes)
    storages = [Storage(str(i), nbytes, (Extent(str(path), i * nbytes, nbytes),)) for i in range(count)]
    return [
        Param(f"w{i}", DTYPES["uint8"], (nbytes,), contiguous((nbytes,)), storage) for i, storage in enumerate(storages)
    ]


def test_each_byte_is_read_once_and_little_of_them_held(tmp_path):
    """Of some hundred MiB in a few tensors, each byte is told once, and memory stays at a few MiB."""
    import tracemalloc

    params = sparse(tmp_path / "m", 50 << 20, 5)
    read: list[int] = []
    tracemalloc.start()
    try:
        made, _ = digests(params, read.append)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert sum(read) == 250 << 20
    assert set(made) == {expected("uint8", (50 << 20,), bytes(50 << 20))}


def test_tied_names_are_read_once(tmp_path, monkeypatch):
    """And have one digest; a view of the same storage has its own."""
    monkeypatch.chdir(tmp_path)
    weight = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": weight, "b": weight, "c": weight.t(), "d": weight.clone()}, "m.pt")
    read: list[int] = []
    found = {row["name"]: row["digest"] for row in paramctl.open("m.pt").ls(digest=True, tell=read.append).dicts()}
    assert sum(read) == 3 * 48
    assert found["a"] == found["b"] == found["d"] != found["c"]
    assert found["c"] == expected("float32", (4, 3), weight.t().contiguous().numpy().tobytes())


def test_a_file_that_is_gone_is_an_error(tmp_path):
    """Whichever thread meets it."""
    params = sparse(tmp_path / "m", 1000, 3)
    (tmp_path / "m").unlink()
    with pytest.raises(FileError, match=r"^error: .*/m: no such file or directory$"):
        digests(params)


def test_an_interrupt_ends_it_at_once(tmp_path):
    """Ctrl-C while a tensor of a terabyte is digested ends both threads, without a word."""
    nbytes = 1 << 40
    header = safetensors({f"w{i}": entry("U8", (nbytes,), (i * nbytes, (i + 1) * nbytes)) for i in range(2)})
    with (tmp_path / "m.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + 2 * nbytes)
    words = [sys.executable, "-m", "paramctl", "ls", "--digest", str(tmp_path / "m.safetensors")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        try:
            threads = Path(f"/proc/{running.pid}/task")
            while running.poll() is None and len(list(threads.iterdir())) < 3:  # until it is at work
                time.sleep(0.05)
            running.send_signal(signal.SIGINT)
            out, err = running.communicate(timeout=30)
        finally:
            running.kill()
    assert (running.returncode, out, err) == (130, b"", b"")
