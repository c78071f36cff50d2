"""A pickle as a document: what torch saves is written again as it was."""

from __future__ import annotations

import argparse
import pickle
import struct
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tensor_kinds import KINDS
from torch import nn

from paramctl.errors import FileError
from paramctl.formats.pickle_document import Document
from paramctl.formats.pickle_nodes import dump
from paramctl.formats.pickle_parse import parse
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


# ----------------------------------------------------------------------------- what no pickler of torch's writes

FOREIGN = b"cnobody\nbrings\n"
AGAIN: dict[str, tuple[bytes, bytes]] = {  # a pickle, and how it is written
    "a call whose result is dropped": (b"N" + FOREIGN + b")R0.", b"N" + FOREIGN + b")R0."),
    "two calls dropped at once": (b"N(" + FOREIGN + b")R" + FOREIGN + b"K\x01\x85R1.", b"N" + FOREIGN + b")R0" + FOREIGN + b"K\x01\x85R0."),
    "a constant that is dropped": (b"NK\x010.", b"N."),
    "a value used twice": (b"]2\x86.", b"]q\0h\0\x86."),
    "text used twice": (b"X\1\0\0\0a2\x86.", b"X\1\0\0\0aq\0h\0\x86."),
    "INST": (b"(K\x01inobody\nbrings\n.", b"(K\x01inobody\nbrings\n."),
    "OBJ": (b"(" + FOREIGN + b"K\x01o.", b"(" + FOREIGN + b"K\x01o."),
    "NEWOBJ_EX, BUILD and its pair": (
        FOREIGN + b"K\x01\x85}X\1\0\0\0kK\2s\x92N}\x86b.", FOREIGN + b"K\x01\x85}X\1\0\0\0kK\2s\x92N}\x86b.",
    ),
    "a state for a class": (FOREIGN + b"}X\1\0\0\0aK\1sb.", FOREIGN + b"}X\1\0\0\0aK\1sb."),
    "a memo with gaps": (b"]q\x07K\1ah\x07\x86.", b"]q\0K\1ah\0\x86."),
    "a state given by another way": (FOREIGN + b")\x81q\0h\0}b0.", FOREIGN + b")\x81q\0}b."),
    "put twice": (b"]q\x07q\x08K\1a\x85.", b"]q\0K\1a\x85."),
    "text of protocol 0": (b"(I01\nI5\nL7L\nF1.5\nS'a'\nVb\ntp0\n.", b"(I01\nI5\nL7L\nF1.5\nS'a'\nVb\ntq\0."),
    "a list that is filled after it was seen": (b"(]q\0" + FOREIGN + b"h\0\x85Rh\0K\1at.", b"refused"),
    "a call that leaves nothing": (FOREIGN + b")R0N.", b"refused"),
    "a call left behind": (FOREIGN + b")RN.", b"refused"),
}  # fmt: skip


@pytest.mark.parametrize(("pickled", "expected"), AGAIN.values(), ids=AGAIN.keys())
def test_odd_pickles_are_written_so_that_they_do_the_same(pickled: bytes, expected: bytes):
    """What a pickle does, it does again in that order; where it cannot be written so, it is refused."""
    if expected == b"refused":
        with pytest.raises(FileError) as error:
            parse(pickled, "m.pt")
        assert (
            str(error.value) == "error: m.pt: the pickle does things in an order in which they cannot be written again"
        )
        return
    root, protocol, most = parse(pickled, "m.pt")
    assert dump(root, protocol=protocol, most=most) == expected


DAMAGED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "the pickle ends without its STOP, after 0 bytes\n\nhint: the file is cut short or damaged"),
    "nothing on the stack": (b".", "the pickle is damaged at byte 0"),
    "no mark": (b"Nt.", "the pickle is damaged at byte 2"),
    "nothing kept": (b"h\x01.", "the pickle is damaged at byte 2"),
    "too few": (b"N\x86.", "the pickle is damaged at byte 2"),
    "an append to a constant": (b"NNa.", "the pickle is damaged at byte 3"),
    "an odd number of items": (b"}(Nu.", "the pickle is damaged at byte 4"),
    "an extension": (b"\x82\x01.", "the pickle uses an extension code at byte 0"),
    "a call of text": (b"X\1\0\0\0a)R.", "the pickle is damaged: 'str' object is not callable"),
    "a tuple of tuples": (None, "the pickle: its tuples hold themselves so often that they cannot be written again"),
}  # fmt: skip


def multiplying(lists: int) -> bytes:
    """A tuple of lists that each hold it: written anew, the tuple is begun in each list, with all the lists before."""
    made = b"".join(b"]r" + struct.pack("<I", i) for i in range(lists))
    tuple_ = b"j" + struct.pack("<I", lists)
    filled = b"".join(b"j" + struct.pack("<I", i) + tuple_ + b"a0" for i in range(lists))
    return b"(" + made + b"tr" + struct.pack("<I", lists) + filled + b"."


@pytest.mark.parametrize(("pickled", "said"), DAMAGED.values(), ids=DAMAGED.keys())
def test_what_is_damaged_is_said(pickled: bytes | None, said: str):
    """A damaged pickle, and one that would multiply as it is written, are errors of one line."""
    with pytest.raises(FileError) as error:
        Document(multiplying(20_000) if pickled is None else pickled, "m.pt")
    assert str(error.value) == f"error: m.pt: {said}"


def test_a_tuple_whose_lists_hold_it_is_written():
    """So is what holds itself through several of its parts, each begun within the others."""
    value: Any = ([], {}, [], [])
    value[0].append(value)
    value[1]["a"] = value[2].append(value) or value[3]
    value[3].extend([value, value[0]])
    pickled = pickle.dumps(value, 2)
    root, protocol, most = parse(pickled, "m.pt")
    assert dump(root, protocol=protocol, most=most) == pickled


def test_depth_costs_no_stack():
    """A hundred thousand lists within lists are read and written."""
    pickled = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    root, protocol, most = parse(pickled, "m.pt")
    assert dump(root, protocol=protocol, most=most) == pickled


@settings(max_examples=200, deadline=None)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(),
        lambda inner: (
            st.lists(inner)
            | st.lists(inner).map(tuple)
            | st.dictionaries(st.text(), inner)
            | st.frozensets(st.integers())
            | st.sets(st.text())
            | inner.map(lambda item: [item, item])
        ),
    ),
    protocol=st.integers(1, 5),
)
def test_any_value_of_python(value: Any, protocol: int):
    """Any plain value is the same, and of the same types, after it was read and written, by every protocol above 0."""
    root, said, most = parse(pickle.dumps(value, protocol), "m.pt")
    assert said == (protocol if protocol > 1 else 0)
    again = dump(root, protocol=said, most=most)
    assert pickle.dumps(pickle.loads(again), protocol) == pickle.dumps(
        pickle.loads(pickle.dumps(value, protocol)), protocol
    )
