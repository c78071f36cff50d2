"""Files that the tests of the command line open, made without torch, and some with."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import torch
from torch import nn

NBYTES = {"F32": 4, "I64": 8}


def mlp() -> nn.Sequential:
    """The network of models/mlp.py, always with the same values."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def safetensors(path: Path, tensors: dict[str, tuple[int, ...]], **metadata: str) -> Path:
    """A file of float32 zeros, written by hand: `tensors` gives each name its shape."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, shape in tensors.items():
        nbytes = 4
        for size in shape:
            nbytes *= size
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))
    return path


def folder_of_faults(folder: Path) -> None:
    """Good files, and files that cannot be opened, each named after what is wrong with it."""
    model = mlp()
    torch.save(model.state_dict(), folder / "model.pt")
    torch.save({"model": model.state_dict(), "epoch": 3}, folder / "nested.pt")
    torch.save({"epoch": 3, "done": True}, folder / "no-tensors.pt")
    torch.save(model.state_dict(), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), folder / "script.pt")
    whole = (folder / "model.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[:900])
    (folder / "empty.pt").write_bytes(b"")
    (folder / "page.pt").write_bytes(b"<!DOCTYPE html><title>404</title>")
    (folder / "pointer.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    (folder / "model.pt.gz").write_bytes(gzip.compress(whole))
    (folder / "junk.bin").write_bytes(bytes(range(1, 200)))
    (folder / "cut.safetensors").write_bytes(struct.pack("<Q", 5000) + b'{"a":1}')
    (folder / "folder").mkdir()
    (folder / "folder" / "a.pt").write_bytes(whole)
    (folder / "no-scheme.toml").write_text('[[rule]]\nselect = "0"\n')
    (folder / "raises.py").write_text('raise ValueError("no weights here")\n')
    (folder / "no-net.py").write_text("from torch import nn\n\n\nclass Mine(nn.Module):\n    pass\n")
