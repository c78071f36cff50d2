"""Law 1 of reading: no code from a file runs. What would have run is a stand-in, and the tensors beside it are listed."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from file_builders import glob, storage, tensor, text, torch_zip

from paramctl import formats, source

TRACE = "a-file-that-no-pickle-may-make"


def short(value: str) -> bytes:
    """SHORT_BINUNICODE."""
    return b"\x8c" + struct.pack("<B", len(value)) + value.encode()


TOUCH = text(f"touch {TRACE}")
SYSTEM = glob("os", "system")
EXEC = glob("builtins", "exec")
CODE = text(f"open({TRACE!r}, 'w')")
LOADS = {
    "REDUCE": SYSTEM + TOUCH + b"\x85R",
    "REDUCE of exec": EXEC + CODE + b"\x85R",
    "REDUCE of eval in a tuple": b"(" + glob("builtins", "eval") + CODE + b"\x85Rt",
    "STACK_GLOBAL": short("os") + short("system") + b"\x93" + TOUCH + b"\x85R",
    "STACK_GLOBAL of a dotted name": short("torch") + short("serialization.os.system") + b"\x93" + TOUCH + b"\x85R",
    "INST": b"(" + TOUCH + b"ios\nsystem\n",
    "OBJ": b"(" + SYSTEM + TOUCH + b"o",
    "NEWOBJ": glob("subprocess", "Popen") + text("touch") + text(TRACE) + b"\x86\x85\x81",
    "NEWOBJ_EX": glob("subprocess", "Popen") + b")}" + text("args") + text("touch") + text(TRACE) + b"\x86s\x92",
    "BUILD": glob("torch.nn.modules.linear", "Linear") + b")\x81}" + text("__class__") + SYSTEM + TOUCH + b"\x85Rsb",
    "BUILD of a class": glob("a", "B") + b"}" + text("__reduce__") + SYSTEM + b"sb",
    "getattr": glob("builtins", "getattr") + glob("os", "path") + text("os") + b"\x86R" + TOUCH + b"\x85R",
    "__import__": glob("builtins", "__import__") + text("os") + b"\x85R",
    "apply": glob("functools", "partial") + SYSTEM + TOUCH + b"\x86R)R",
    "torch.load": glob("torch.serialization", "load") + TOUCH + b"\x85R",
    "torch's own helpers": glob("torch._utils", "_rebuild_wrapper_subclass") + b"(" + SYSTEM + TOUCH + b"tR",
    "_rebuild_from_type_v2": glob("torch._tensor", "_rebuild_from_type_v2")
    + b"("
    + SYSTEM
    + glob("a", "B")
    + TOUCH
    + b"\x85}tR",
    "_reconstructor": glob("copyreg", "_reconstructor") + SYSTEM + glob("builtins", "object") + b"N\x87R",
    "numpy's dtype of objects": glob("numpy", "dtype") + SYSTEM + TOUCH + b"\x85R\x85R",
    "defaultdict's factory": glob("collections", "defaultdict") + SYSTEM + b"\x85R" + text("k") + b"Ns",
    "a pickle in a pickle": glob("pickle", "loads")
    + b"C\x20"
    + b"cos\nsystem\n(X\x05\0\0\0touchtR.".ljust(32, b".")
    + b"\x85R",
}


def listed(pickled: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, ...]]:
    monkeypatch.chdir(folder)
    Path("m.pt").write_bytes(torch_zip(pickled))
    found = formats.read(source.resolve("m.pt"))
    return {name: param.shape for name, param in found.params.items()}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS.keys())
def test_nothing_runs_and_the_tensors_beside_it_are_listed(
    load: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A call of whatever kind leaves no trace, and hides no tensor."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it ran")

    for where, name in ((os, "system"), (os, "popen"), (subprocess, "Popen")):
        monkeypatch.setattr(where, name, never)
    before = set(sys.modules)
    pickled = b"\x80\x04}(" + text("a") + tensor() + text("x") + load + text("b") + tensor((1,)) + b"u."
    if load == LOADS["BUILD of a class"]:
        with pytest.raises(formats.FileError, match="the pickle is damaged"):
            listed(pickled, tmp_path, monkeypatch)
    else:
        assert listed(pickled, tmp_path, monkeypatch) == {"a": (2,), "b": (1,)}
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]
    assert {name for name in set(sys.modules) - before if not name.startswith("paramctl")} == set()


def test_a_call_within_a_persistent_id_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A storage's location may be a call: it is none of ours, and the tensor is listed."""
    of = storage(location=SYSTEM + TOUCH + b"\x85R")
    assert listed(b"\x80\x02}" + text("a") + tensor(of=of) + b"s.", tmp_path, monkeypatch) == {"a": (2,)}
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS.keys())
def test_no_pickle_changes_what_the_next_one_means(load: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Reading a hostile file leaves the reading of others as it was."""
    honest = b"\x80\x02}" + text("a") + tensor() + b"s."
    before = listed(honest, tmp_path, monkeypatch)
    with contextlib.suppress(formats.FileError):
        listed(b"\x80\x04" + load + b".", tmp_path, monkeypatch)
    assert listed(honest, tmp_path, monkeypatch) == before == {"a": (2,)}


ATTRIBUTES = {
    "an array that was never filled": glob("numpy._core.multiarray", "_reconstruct") + b")\x81",
    "a dtype that was never made": glob("numpy", "dtype") + b")\x81",
    "a number of a million bits": b"\x8b" + struct.pack("<I", 125_000) + b"\x7f" * 125_000,
    "a key of a million bits": b"}\x8b" + struct.pack("<I", 125_000) + b"\x7f" * 125_000 + b"Ns",
    "a key that is a tensor": b"}" + tensor() + b"Ns",
    "a key that is a class": b"}" + SYSTEM + b"Ns",
    "a key of tuples": b"})\x85\x85\x85Ns",
    "a storage": storage(),
    "a frozenset": b"(K\x01K\x02\x91",
    "a set of lists": b"\x8f(]]\x90",
    "a module without its parts": glob("torch.nn", "Linear")
    + b")\x81}"
    + text("_parameters")
    + b"}s"
    + text("_modules")
    + b"}sb",
    "a module whose parts are numbers": glob("torch.nn", "Linear")
    + b")\x81}"
    + text("_parameters")
    + b"K\x01s"
    + text("_modules")
    + b"}sb",
    "a Parameter whose attributes are a number": glob("torch._utils", "_rebuild_parameter_with_state")
    + b"(N\x88NK\x07tR",
    "keyword arguments": glob("a", "B") + b")}" + text("cls") + b"K\x01s" + text("self") + b"K\x02s\x92",
}


@pytest.mark.parametrize("value", ATTRIBUTES.values(), ids=ATTRIBUTES.keys())
def test_a_value_of_any_kind_is_an_extra(value: bytes, tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch):
    """What is no tensor is shown by every command's JSON, whatever it is."""
    pickled = b"\x80\x04}(" + text("a") + tensor() + text("x") + value + b"u."
    assert listed(pickled, tmp_path, monkeypatch) == {"a": (2,)}
    for command in ("info", "tree", "ls"):
        assert run(command, "m.pt", "-f", "json").code == 0
        assert run(command, "m.pt").code == 0


def test_a_class_without_its_source_is_a_name(tmp_path: Path, process):
    """A module whose class is nowhere to be found is listed; its `__reduce__` and `__setstate__` do not run."""
    trace = tmp_path / "trace"
    defined = tmp_path / "gone.py"
    defined.write_text(
        "import torch, pathlib\n"
        f"pathlib.Path({str(trace)!r}).write_text('imported')\n"
        "class Net(torch.nn.Linear):\n"
        "    def __setstate__(self, state):\n"
        f"        pathlib.Path({str(trace)!r}).write_text('ran')\n"
        "        super().__setstate__(state)\n"
        "class Evil:\n"
        f"    def __reduce__(self): return pathlib.Path.write_text, (pathlib.Path({str(trace)!r}), 'ran')\n"
    )
    script = "import torch, gone; torch.save({'net': gone.Net(2, 3), 'evil': gone.Evil()}, 'm.pt')"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    for _ in range(2):
        trace.unlink(missing_ok=True)
        done = process("tree", "m.pt", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
        assert done.returncode == 0, done.stderr
        assert "Net" in done.stdout.decode()
        assert not trace.exists()
        defined.unlink(missing_ok=True)


def test_what_torch_would_refuse_is_not_loaded_either(tmp_path: Path):
    """torch.load's safe mode refuses what is listed here: the stand-in is told by its class."""

    class Local:
        pass

    Local.__qualname__ = "Local"
    globals()["Local"] = Local
    try:
        torch.save({"w": torch.ones(1), "x": Local()}, tmp_path / "m.pt")
    finally:
        del globals()["Local"]
    found = formats.read(source.resolve(str(tmp_path / "m.pt")))
    assert list(found.params) == ["w"]
    assert found.extras == {"x": {"class": f"{__name__}.Local"}}


@pytest.mark.parametrize("attributes", [b"K\x07", text("ab"), tensor(), storage(), b"](K\x01e", b"(NNt", b"}"])
def test_attributes_of_a_tensor_may_be_anything(attributes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What a pickle sets on a tensor is descended into where it can hold names, and is harmless where not."""
    made = glob("torch._utils", "_rebuild_parameter_with_state") + b"(" + tensor() + b"\x88N" + attributes + b"tR"
    assert listed(b"\x80\x02}" + text("a") + made + b"s.", tmp_path, monkeypatch) == {"a": (2,)}
