"""The chapter's networks, opened as each kind of source."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from chapter_sources import MODELS, SEED, Opened
from safetensors.torch import save_model


@pytest.fixture(params=["state dict", "safetensors", "module", "definition"])
def opened(request, tmp_path, monkeypatch):
    """`opened("mlp")`: `models/mlp.py` under the seed, as each kind of source in turn."""

    def _opened(name: str) -> Opened:
        spec = importlib.util.spec_from_file_location(f"book_{name}", MODELS / f"{name}.py")
        code = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, f"book_{name}", code)
        spec.loader.exec_module(code)
        torch.manual_seed(SEED)
        net = code.net()
        path, out = tmp_path / f"{name}.pt", tmp_path / "out.pt"
        if request.param == "definition":
            path = MODELS / f"{name}.py"
        elif request.param == "safetensors":
            path, out = path.with_suffix(".safetensors"), out.with_suffix(".safetensors")
            save_model(net, path)
        else:
            torch.save(net if request.param == "module" else net.state_dict(), path)
        return Opened(net, request.param, path, out, request.param in {"module", "definition"})

    return _opened
