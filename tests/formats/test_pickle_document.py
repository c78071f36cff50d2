"""A pickle as a document: what torch saves is written again as it was."""

from __future__ import annotations

import argparse
import pickle
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from test_tensor_kinds import KINDS
from torch import nn

from property.test_reading_modules import MODULES
from torch_files import assert_written_again

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
PYTHONS = types.ModuleType("pickle in Python")
PYTHONS.__dict__.update(Pickler=pickle._Pickler, Unpickler=pickle.Unpickler)  # type: ignore[attr-defined]


class Slots:
    """An object with slots and a dict, arguments to be made with, and a state that is a pair."""

    __slots__ = ("__dict__", "inner")

    def __new__(cls, *_: Any, **__: Any) -> Self:
        return object.__new__(cls)

    def __getnewargs_ex__(self) -> tuple[tuple[int, str], dict[str, int]]:
        return (1, "a"), {"b": 2}


class Reduced(list[Any]):
    """An object with every part that `__reduce__` can give: arguments, state, items of a list and of a dict."""

    def __init__(self, first: Any = None) -> None:
        self.first = first
        self.held: dict[Any, Any] = {}

    def __setitem__(self, key: Any, value: Any) -> None:
        self.held[key] = value

    def __reduce__(self) -> Any:
        return Reduced, (self.first,), {"state": self.first}, iter(self), iter([("k", self.first), ("l", 2)])


def slots() -> Slots:
    made = Slots()
    made.inner, made.other = torch.ones(2), [1]
    return made


def cycle() -> Any:
    root: dict[str, Any] = {"w": torch.ones(2), "list": []}
    inside = (root["list"], {"a": 1})
    root["list"] += [inside, inside, root]
    root["self"], root["tuple"] = root, inside
    return inside


def trained() -> Any:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.LSTM(3, 2))
    optimizer = torch.optim.AdamW(
        [{"params": list(model[:2].parameters()), "lr": 0.5}, {"params": model[2].parameters()}]
    )
    model[1](model[0](torch.randn(4, 2))).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1, layers=[1, 2], name="a"),
        "rng": [np.arange(4), np.float32(0.5), torch.get_rng_state(), np.array(["a", None], object)],
        "sets": {frozenset((1, 2)), "x"},
        "numbers": [
            0,
            255,
            256,
            65535,
            65536,
            -1,
            2**31,
            -(2**70),
            10**300,
            0.1,
            1 + 2j,
            True,
            None,
            b"\0\xff",
            bytearray(b"a"),
        ],
        "whole": (optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 3)),
        "epoch": 7,
    }


def subclassed() -> Any:
    plain = torch.ones(2)
    plain.note = [torch.ones(4)]
    weight = nn.Parameter(torch.ones(2))
    weight.scale = torch.full((1,), 3.0)
    return {
        "plain": plain,
        "weight": weight,
        "frozen": nn.Parameter(torch.ones(1), requires_grad=False),
        "b": nn.Buffer(plain),
    }


OBJECTS: dict[str, Any] = {
    **{f"module {name}": make for name, make in MODULES.items()},
    **{f"tensor {name}": make for name, (make, _) in KINDS.items()},
    "a training checkpoint": trained,
    "tensors with attributes": subclassed,
    "a cycle of tuples": cycle,
    "slots and keywords": slots,
    "all of reduce": lambda: Reduced([torch.ones(1), Reduced(3)]),
    "2500 tensors": lambda: OrderedDict((f"a.{i}", torch.ones(i % 3)) for i in range(2500)),
    "dict of 1000": lambda: dict.fromkeys(range(1000), torch.ones(1)),
    "dict of 1001, list of 2001": lambda: [dict.fromkeys(range(1001)), list(range(2001)), set(range(1001))],
    "one string everywhere": lambda: [{"a": "a"}, ("a", "a"), "a" * 300, "a" * 300],
    "nothing": lambda: None,
    "meta": lambda: torch.ones(3, device="meta"),
}


@pytest.mark.parametrize(
    ("pickler", "protocol"), [(pickle, 2), (pickle, 4), (PYTHONS, 3)], ids=["C 2", "C 4", "Python 3"]
)
@pytest.mark.parametrize("make", OBJECTS.values(), ids=OBJECTS.keys())
def test_what_torch_saves_is_written_again(make: Any, pickler: Any, protocol: int, tmp_path: Path):
    """A file that is read and written is the same file: its bytes below protocol 4, else its opcodes and objects."""
    torch.manual_seed(0)
    assert_written_again(make(), tmp_path / "m.pt", protocol, pickler)
