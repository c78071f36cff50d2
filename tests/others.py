"""Libraries of other people's models: what has to be seen to before they are imported."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys

import pytest
import torch

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
_OPERATORS = ("nms", "qnms")  # those for which torchvision's Python part registers shapes when it is imported


def need(*libraries: str) -> None:
    """Skip the tests of a module where one of these is not installed.

    torchvision is made importable first, for others import it, too: its build on PyPI is for CUDA, and beside a torch
    without it the compiled library does not load, so that the operators are not there to which it gives shapes.
    """
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            hint = "pip install -c constraints.txt -e '.[models]'"
            pytest.skip(f"{library} is not installed: {hint}", allow_module_level=True)
    if importlib.util.find_spec("torchvision") is None or "torchvision" in sys.modules:
        return
    with contextlib.suppress(RuntimeError):
        importlib.import_module("torchvision")
        return
    for name in _OPERATORS:
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    importlib.import_module("torchvision")
