"""Whom a pickle would call is told without calling anybody, and so is whether torch would take it."""

from __future__ import annotations

import argparse
import datetime as dt
import io
import os
import pickle
import random
import warnings
from collections import Counter, OrderedDict, defaultdict

import pytest
import torch
from file_builders import glob, state, storage, tensor, text, torch_zip
from hypothesis import given
from hypothesis import strategies as st
from test_unpickle_safety import LOADS, SYSTEM, TOUCH, short
from torch import nn

from paramctl.formats import pickle_calls
from paramctl.formats.pickle_calls import ALLOWED, calls

CALLED = "os.system('touch a-file-that-no-pickle-may-make')"


def told(body: bytes) -> list[tuple[str, str]]:
    return [(call.opcode, call.text) for call in calls(b"\x80\x02" + body + b".").calls]


@pytest.mark.parametrize(
    ("body", "want"),
    [
        (SYSTEM + TOUCH + b"\x85R", [("REDUCE", CALLED)]),
        (short("os") + short("system") + b"\x93" + TOUCH + b"\x85R", [("REDUCE", CALLED)]),
        (b"(" + TOUCH + b"ios\nsystem\n", [("INST", CALLED)]),
        (b"(" + SYSTEM + TOUCH + b"o", [("OBJ", CALLED)]),
        (SYSTEM + TOUCH + b"\x85\x81", [("NEWOBJ", CALLED)]),
        (SYSTEM + b")}" + text("a") + b"K\x01s\x92", [("NEWOBJ_EX", "os.system(**{'a': 1})")]),
        (SYSTEM, [("GLOBAL", "os.system")]),
        (short("os") + short("system") + b"\x93", [("STACK_GLOBAL", "os.system")]),
        (b"\x82\x07", [("EXT", "copyreg extension 7")]),
        (b"\x83\x07\0)R", [("REDUCE", "copyreg extension 7()")]),
        (b"\x84\x07\0\0\0", [("EXT", "copyreg extension 7")]),
        (SYSTEM + b"q\x000h\0" + TOUCH + b"\x85R", [("REDUCE", CALLED)]),
        (SYSTEM + b"p7\n0g7\n" + TOUCH + b"\x85R", [("REDUCE", CALLED)]),
        (SYSTEM + b"\x940h\0" + TOUCH + b"\x85R", [("REDUCE", CALLED)]),
        (b"N" + SYSTEM + b"2" + TOUCH + b"\x85R", [("REDUCE", CALLED)]),
        (b"(NN1" + SYSTEM + b"(S'rm -rf /'\ntR", [("REDUCE", "os.system('rm -rf /')")]),
        (SYSTEM + b"(Vrm\\u0020x\ntR", [("REDUCE", "os.system('rm x')")]),
        (SYSTEM + b"(I7\nL8L\nF1.5\nNtR", [("REDUCE", "os.system(7, 8L, 1.5, None)")]),
        (
            SYSTEM + b"(]}\x8f)\x88(NtG?\xf0\0\0\0\0\0\0tR",
            [("REDUCE", "os.system([], {}, {}, (), True, (None,), 1.0)")],
        ),
        (SYSTEM + b"((lp0\n(dp1\n(K\x01\x91tR", [("REDUCE", "os.system([], {}, {1})")]),
        (SYSTEM + b"(" + storage() + b"\x97\x98tR", [("REDUCE", "os.system(<persistent>, <buffer>)")]),
        (glob("__builtin__", "eval") + text("1") + b"\x85R", [("REDUCE", "builtins.eval('1')")]),
        (glob("commands", "getoutput") + text("id") + b"\x85R", [("REDUCE", "subprocess.getoutput('id')")]),
        (
            glob("builtins", "getattr") + glob("os", "path") + text("os") + b"\x86R" + TOUCH + b"\x85R",
            [
                ("REDUCE", "builtins.getattr(os.path, 'os')"),
                ("REDUCE", "builtins.getattr()('touch a-file-that-no-pickle-may-make')"),
                ("GLOBAL", "os.path"),
            ],
        ),
        (
            short("torch") + short("serialization.os.system") + b"\x93" + text("x") + b"\x85R",
            [("REDUCE", "torch:serialization.os.system('x')")],
        ),
        (SYSTEM + text("\x1b[31m\n\u202e\\") + b"\x85R", [("REDUCE", "os.system('\\x1b[31m\\n\\u202e\\\\')")]),
        (glob("o\x1bs", "system"), [("GLOBAL", "o\\x1bs.system")]),
    ],
)
def test_every_opcode_that_reaches_a_global(body, want):
    """Each way to name or call a global is told: with what opcode, and with what arguments, on one line."""
    assert told(body) == want


@pytest.mark.parametrize("name", LOADS)
def test_nothing_foreign_is_missed(name):
    """Every pickle that would run something is told of, and none is taken for torch's own."""
    found = calls(b"\x80\x02" + LOADS[name] + b".")
    assert found.calls
    assert found.refused


def test_a_name_that_is_worked_out():
    """A name that is made by a call while the pickle is read is told as such."""
    made = calls(b"\x80\x02" + short("os") + glob("builtins", "str") + text("system") + b"\x85R\x93.")
    assert [(call.opcode, call.name) for call in made.calls][-1] == (
        "STACK_GLOBAL",
        "a name that is worked out as it is read",
    )


# ----------------------------------------------------------------------------- torch's verdict


class Counted(Counter):
    pass


class Foreign:
    def __reduce__(self):
        return (os.system, ("true",))


def saved(value, **more) -> bytes:
    held = io.BytesIO()
    torch.save(value, held, **more)
    return held.getvalue()


def archived(pickled: bytes) -> bytes:
    return torch_zip(pickled, {"data/0": bytes(8), "version": b"3\n"})


def zipped(body: bytes) -> bytes:
    return archived(b"\x80\x02" + body + b".")


def with_attribute() -> torch.Tensor:
    made = torch.zeros(2)
    made.mine = 1
    return made


FILES = {
    "a state dict": lambda: saved(nn.Linear(2, 2).state_dict()),
    "before 1.6": lambda: saved(nn.Linear(2, 2).state_dict(), _use_new_zipfile_serialization=False),
    "before 1.6, foreign": lambda: saved({"a": argparse.Namespace()}, _use_new_zipfile_serialization=False),
    "an optimizer": lambda: saved(torch.optim.Adam(nn.Linear(2, 2).parameters()).state_dict()),
    "a parameter": lambda: saved(nn.Parameter(torch.zeros(2))),
    "with an attribute": lambda: saved(with_attribute()),
    "parameter with state": lambda: saved(nn.Parameter(with_attribute())),
    "sparse": lambda: saved(torch.eye(2).to_sparse()),
    "quantized": lambda: saved(torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)),
    "meta": lambda: saved(torch.zeros(2, device="meta")),
    "complex, sizes, devices, dtypes": lambda: saved([1 + 2j, torch.Size([1]), torch.device("cpu"), torch.bfloat16]),
    "plain values": lambda: saved({"a": [1, 2.5, "x", None, True, (1,), b"raw", bytearray(b"x"), 1 << 70, -1, 300]}),
    "a set": lambda: saved({1, 2}),
    "ordered": lambda: saved(OrderedDict(a=1)),
    "counted": lambda: saved(Counter("ab")),
    "a counter of one's own": lambda: saved(Counted("ab")),
    "a defaultdict": lambda: saved(defaultdict(list)),
    "a namespace": lambda: saved(argparse.Namespace(a=1)),
    "a date": lambda: saved(dt.date(2026, 1, 1)),
    "numpy": lambda: saved(torch.zeros(2).numpy()),
    "a numpy scalar": lambda: saved(torch.zeros(2).numpy()[0]),
    "a module": lambda: saved(nn.Linear(2, 2)),
    "a call": lambda: saved(Foreign()),
    "protocol 3": lambda: saved({"a": torch.zeros(2)}, pickle_protocol=3),
    "protocol 4": lambda: saved({"a": torch.zeros(2)}, pickle_protocol=4),
    "fp8": lambda: saved(torch.zeros(2).to(torch.float8_e4m3fn)),
    "uint16": lambda: saved(torch.zeros(2, dtype=torch.uint16)),
    "hand-made tensor": lambda: archived(state(("w", tensor()))),
    "an append to a dict": lambda: zipped(b"}Na"),
    "an append to what a call made": lambda: zipped(glob("collections", "OrderedDict") + b")RNa"),
    "items of a list": lambda: zipped(b"]K\x01K\x02s"),
    "items of a counter": lambda: zipped(glob("collections", "Counter") + b")RK\x01K\x02s"),
    "items of a size": lambda: zipped(glob("torch", "Size") + b"]\x85RK\x01K\x02s"),
    "a state for a dict": lambda: zipped(b"}}b"),
    "a state for an ordered dict": lambda: zipped(glob("collections", "OrderedDict") + b")R}b"),
    "a call of a dtype": lambda: zipped(glob("torch", "float32") + b")R"),
    "a call of a list": lambda: zipped(b"])R"),
    "a persistent id of its own": lambda: zipped(text("mine") + b"\x85Q"),
    "posix": lambda: zipped(glob("posix", "system")),
    "a name of python 2": lambda: zipped(glob("__builtin__", "set") + b"]\x85R"),
    "an opcode of protocol 0": lambda: zipped(b"(lI1\na"),
    "a joined name": lambda: zipped(glob("torch._utils._rebuild_tensor_v2", "x")),
    "no stop": lambda: archived(b"\x80\x02}"),
    "a memo that is empty": lambda: zipped(b"h\x05"),
    "nothing on the stack": lambda: zipped(b""),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_the_verdict_is_torch_s(name):
    """`refused` is empty exactly where torch.load(weights_only=True) takes the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = FILES[name]()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(io.BytesIO(data), weights_only=True)
        taken = True
    except (pickle.UnpicklingError, RuntimeError, IndexError, EOFError, TypeError, KeyError):
        taken = False
    if data.startswith(b"PK"):
        with io.BytesIO(data) as held:
            pickled = torch.PyTorchFileReader(held).get_record("data.pkl")
        found = [calls(pickled)]
    else:
        found = []
        for _ in range(5):
            found.append(calls(data, found[-1].end if found else 0))
    assert (not any(one.refused for one in found)) == taken, [one.refused for one in found]


def test_the_allow_list_is_torch_s():
    """The names written down are those that this torch allows, and those it allows once more of it is imported."""
    from torch import _weights_only_unpickler as theirs

    extra = {
        "torch.nested._internal.nested_tensor.NestedTensor",
        "torch.nested._internal.nested_tensor._rebuild_njt",
        "torch.distributed._mesh_layout._FlatLayout",
        "torch.distributed._mesh_layout._MeshLayout",
    }
    assert set(theirs._get_allowed_globals()) == ALLOWED - extra


def test_what_is_looked_at_fast_is_the_same(monkeypatch):
    """A long pickle of torch's own opcodes and names is taken at sight; with one foreign name it is walked."""
    monkeypatch.setattr(pickle_calls, "_LONG", 0)
    weights = {f"layers.{i}.weight": torch.zeros(2) for i in range(50)} | {"epoch": 3, "lr": 0.1, "big": 1 << 70}
    for value, named in ((weights, []), (weights | {"x": argparse.Namespace()}, ["argparse.Namespace"])):
        data = torch.PyTorchFileReader(io.BytesIO(saved(value))).get_record("data.pkl")
        found = calls(data)
        assert [call.name for call in found.calls] == named
        assert (found.end, bool(found.refused)) == (len(data), bool(named))


# ----------------------------------------------------------------------------- hostile


@pytest.mark.parametrize(
    ("data", "damage"),
    [
        (b"\x80\x02", "it ends without its STOP"),
        (b"\x80\x02X\xff\xff\xff\x7fa", "2,147,483,647 bytes at 7, and the pickle ends at 8"),
        (b"\x80\x02B\xff\xff\xff\xff", "4,294,967,295 bytes at 7, and the pickle ends at 7"),
        (b"\x80\x02T\xff\xff\xff\xffa", "-1 bytes at 7, and the pickle ends at 8"),
        (b"\x80\x02cos\nsystem", "it ends inside a line, at byte 5"),
        (b"\x80\x02t.", "no mark, at byte 2"),
        (b"\x80\x02R.", "it ends or takes what is not there, at byte 2"),
        (b"\x80\x02\xff.", "no opcode 0xff, at byte 2"),
        (b"\x80\x02h\x09.", "nothing was kept as 9, at byte 2"),
        (b"\x80\x02Np-1\n.", "a memo index that is none"),
        (b"\x80\x02" + b"N0" * 60 + b".", "it has more than 100 opcodes"),
        (b"", "it ends without its STOP"),
    ],
)
def test_damage_is_told(data, damage):
    """What a real unpickler would stop at stops the walk, with a word that says where."""
    assert calls(data, most=100).damage == damage


def test_what_runs_before_the_damage_is_told():
    """A call stands even where the pickle breaks off behind it: it would have been made."""
    found = calls(b"\x80\x02" + SYSTEM + TOUCH + b"\x85R\xff")
    assert [call.text for call in found.calls] == [CALLED]


def test_sharing_depth_and_cycles_are_bounded():
    """Containers that hold each other a billion times over, deep ones and cycles cost what their bytes cost."""
    doubled = b"]" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    cycle = b"]q\0h\0a"
    deep = b"]" * 1 + b"\x85" * 50_000
    for body in (doubled, cycle, deep):
        (call,) = calls(b"\x80\x02" + SYSTEM + body + b"\x85R.").calls
        assert len(call.text) < 1000
    (call,) = calls(b"\x80\x02" + SYSTEM + text("x" * 5_000_000) + b"\x85R.").calls
    assert len(call.text) < 1000


def test_many_names_and_calls_are_bounded(monkeypatch):
    """Of one name a few calls are told, and counted all; of names beyond number the pickle is damaged."""
    found = calls(b"\x80\x02" + (SYSTEM + TOUCH + b"\x85R0") * 1000 + b"N.")
    assert (len(found.calls), found.counts) == (5, {"os.system": 1000})
    monkeypatch.setattr(pickle_calls, "MOST_NAMES", 10)
    assert (
        calls(b"\x80\x02" + b"".join(b"cx\nY%d\n0" % i for i in range(20)) + b"N.").damage
        == "it names more than 10 globals"
    )
    many = b"".join(b"cx\nY%d\n)R0" % i for i in range(9)) * 2
    assert calls(b"\x80\x02" + many + b"N.").damage == "it calls more than 10 globals"


def test_what_a_call_has_made_is_called_by_a_short_name():
    """A call of a call of a call is `x.Y()`, however many there are: names do not grow by the pickle's length."""
    found = calls(b"\x80\x02cx\nY\n" + b")R" * 1000 + b".")
    assert found.counts == {"x.Y": 2, "x.Y()": 998}


def test_what_waits_is_bounded(monkeypatch):
    """Values that pile up on the stack, or marks, end the walk; those that are taken up do not."""
    monkeypatch.setattr(pickle_calls, "MOST_WAITING", 100)
    monkeypatch.setattr(pickle_calls, "_STRIDE", 16)
    damage = "more than 100 values wait on its stack"
    assert calls(b"\x80\x02" + b"]" * 200 + b".").damage == damage
    assert calls(b"\x80\x02" + b"(" * 200 + b".").damage == damage
    assert calls(b"\x80\x02]" + b"Na" * 1000 + b".").damage == ""


@given(st.binary(max_size=200))
def test_any_bytes_are_walked(data):
    """No bytes make the walk fail, and it ends within them."""
    found = calls(b"\x80\x02" + data)
    assert 0 <= found.end <= len(data) + 2 or found.damage
    assert all(call.text.isprintable() for call in found.calls)


def test_a_flipped_bit_hides_nothing_that_would_run():
    """Of damaged pickles, each that the real unpickler would ask for a foreign name is told to have one."""

    class Asked(pickle.Unpickler):
        def find_class(self, module, name):
            raise LookupError(module, name)

        def persistent_load(self, pid):
            return pid

    rng = random.Random(0)
    whole = pickle.dumps({"a": Foreign(), "b": [1, "x" * 20, {2: 3.5}]}, 2)
    for _ in range(500):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            Asked(io.BytesIO(data)).load()
        except LookupError as error:
            if type(error) is LookupError:
                assert calls(bytes(data)).calls
        except Exception:  # noqa: BLE001, S110 - damaged in some other way
            pass
