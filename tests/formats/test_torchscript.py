"""TorchScript archives: what torch.jit.load finds, paramctl finds, and none of the code in them runs."""

from __future__ import annotations

import functools
import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from file_builders import glob, state, storage, tensor, text
from torch import nn

from paramctl import contents, formats, source
from paramctl.checkpoint import Checkpoint, Param
from paramctl.errors import FileError

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    """Tied weights, a list of modules, a view, buffers of both sorts, and tensors that are attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4, bias=False)])
        self.norm = nn.BatchNorm1d(4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.layers[0].weight
        self.layers[1].weight.requires_grad_(False)
        self.register_buffer("view", torch.arange(8.0)[2:6])
        self.register_buffer("turned", torch.arange(8, dtype=torch.bfloat16).reshape(2, 4).t())
        self.register_buffer("hidden", torch.ones(3), persistent=False)
        self.table = torch.arange(6.0).reshape(2, 3).t()
        self.rows = [torch.zeros(2), torch.ones(2)]
        self.state = torch.zeros(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        x = self.tied(self.norm(x)) + torch.tensor([1.0, 2.0, 3.0, 4.0]) + self.view
        return x + self.turned.sum() + self.table.sum() + self.rows[1].sum() + self.hidden.sum() + self.state.sum()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 2, num_layers=2, bidirectional=True)
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0])


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(x)


def quantized() -> torch.jit.ScriptModule:
    return torch.jit.script(torch.ao.quantization.quantize_dynamic(Plain().eval(), {nn.Linear}))


def script(module: nn.Module) -> torch.jit.ScriptModule:
    return torch.jit.script(module.eval())


MODELS: dict[str, Callable[[], torch.jit.ScriptModule]] = {
    "scripted": lambda: script(Net()),
    "traced": lambda: torch.jit.trace(Net().eval(), torch.zeros(2, 4)),
    "frozen": lambda: torch.jit.freeze(script(Net())),
    "half": lambda: script(Plain().half()),
    "recurrent": lambda: script(Recurrent()),
    "traced and recurrent": lambda: torch.jit.trace(Recurrent().eval(), torch.zeros(5, 1, 3)),
    "quantized": quantized,
    "without parameters": lambda: script(nn.Sequential(nn.ReLU())),
}


def saved(module: torch.jit.ScriptModule, **extra: str) -> bytes:
    held = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(module, held, _extra_files=extra)
    return held.getvalue()


@functools.cache
def model(name: str) -> bytes:
    return saved(MODELS[name]())


def packed(data: bytes, change: Callable[[str, bytes], bytes | None] = lambda _, raw: raw, *, method: int = 8) -> bytes:
    """The archive zipped anew, each member as `change` makes it, without those of which it makes None."""
    held = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(held, "w", method) as new:
        for name in old.namelist():
            raw = change(name, old.read(name))
            if raw is not None:
                new.writestr(name, raw)
    return held.getvalue()


def value(param: Param) -> torch.Tensor:
    raw = contents.read(param, 0, param.storage.nbytes)
    flat = torch.frombuffer(raw, dtype=getattr(torch, param.dtype.name)) if raw else torch.empty(0)
    return flat.as_strided(param.shape, param.stride, param.storage_offset)


def assert_as_torch(found: Checkpoint, loaded: torch.jit.ScriptModule) -> None:
    expected = loaded.state_dict()
    assert [name for name in found.params if name in expected] == list(expected)
    parameters = dict(loaded.named_parameters(remove_duplicate=False))
    by_storage: dict[int, set[str]] = {}
    for name, tensor_ in expected.items():
        param = found.params[name]
        assert param.kind == ("parameter" if name in parameters else "buffer")
        assert param.requires_grad == parameters.get(name, tensor_).requires_grad
        assert f"torch.{param.dtype}" == str(tensor_.dtype)
        assert (param.shape, param.stride) == (tuple(tensor_.shape), tensor_.stride())
        assert param.storage_offset == tensor_.storage_offset()
        assert torch.equal(value(param), tensor_)
        by_storage.setdefault(tensor_.untyped_storage().data_ptr(), set()).add(param.storage.key)
    assert all(len(keys) == 1 for keys in by_storage.values())
    assert len(set().union(*by_storage.values())) == len(by_storage)
    types = {path: module.original_name for path, module in loaded.named_modules(remove_duplicate=False)}
    assert {path: module.type for path, module in found.modules.items()} == types


@pytest.mark.parametrize("zipped", ["as saved", "zipped anew"])
@pytest.mark.parametrize("name", MODELS)
def test_what_torch_loads(name: str, zipped: str, read) -> None:
    """Names and their order, kinds, dtypes, geometry, values, sharing and module types are those of torch.jit.load."""
    data = model(name)
    loaded = torch.jit.load(io.BytesIO(data))
    found = read(data if zipped == "as saved" else packed(data))
    assert found.format == "torchscript"
    assert_as_torch(found, loaded)


def test_tensors_that_are_attributes(read) -> None:
    """A tensor that is a plain attribute is listed as one, by its path; one without elements is not."""
    found = read(model("scripted"))
    more = {name: param.kind for name, param in found.params.items() if param.kind == "tensor"}
    assert more == {"table": "tensor", "rows.0": "tensor", "rows.1": "tensor"}
    assert torch.equal(value(found.params["table"]), Net().table)
    assert torch.equal(value(found.params["rows.1"]), torch.ones(2))
    assert found.modules[""].hyperparameters["state"] == "an empty tensor"


def test_constants(read) -> None:
    """A constant has the name that the code calls it by, and its storage is not the one of that key in data/."""
    found = read(model("traced"))
    constants = {name: value(param).tolist() for name, param in found.params.items() if param.kind == "tensor"}
    assert constants["CONSTANTS.c0"] == [1, 2, 3, 4]
    assert constants["CONSTANTS.c1"] == Net().table.tolist()
    assert found.params["CONSTANTS.c0"].storage.key == "constants/0"
    assert found.params["view"].storage.key == "data/0"


def test_class_names_and_hyperparameters(read) -> None:
    """A mangled class has its own name back, and what is final in its source is a hyperparameter."""
    found = read(model("scripted"))
    second = found.modules["layers.1"]
    assert (second.type, second.qualified) == ("Linear", "torch.nn.modules.linear.Linear")
    assert second.hyperparameters == {"in_features": 4, "out_features": 4, "bias": None}
    assert found.modules[""].qualified.endswith("Net")


def test_packed_weights(read) -> None:
    """The packed weights of a quantized layer are named as in its state dict before it was scripted."""
    found = read(model("quantized"))
    weight = found.params["line._packed_params._packed_params.0"]
    assert (weight.dtype.name, weight.shape) == ("qint8", (4, 4))
    assert found.params["line._packed_params._packed_params.1"].shape == (4,)


def test_what_stands_beside(read) -> None:
    """Extra files, traced inputs and the mobile interpreter's code are told by size."""
    found = read(saved(script(Plain()), **{"notes/a.txt": "hello"}))
    assert found.extras == {"extra_files": {"notes/a.txt": "5 bytes"}}
    assert found.metadata == {"version": "3"}
    assert "traced_inputs.pkl" in read(saved(torch.jit.trace(Plain(), torch.zeros(1, 4)))).extras


def test_mobile(tmp_path: Path) -> None:
    """A file of the mobile interpreter, with its sources and without them."""
    path = tmp_path / "m.ptl"
    module = script(Net())
    module._save_for_lite_interpreter(str(path))
    found = formats.read(source.resolve(str(path)))
    assert_as_torch(found, torch.jit.load(path))
    assert found.extras["bytecode.pkl"].startswith("the code for torch's mobile interpreter, ")
    path.write_bytes(packed(path.read_bytes(), lambda name, raw: None if "/code/" in name else raw))
    bare = formats.read(source.resolve(str(path)))
    assert set(bare.params) == set(found.params)
    assert {param.kind for param in bare.params.values()} == {"tensor"}
    assert {path: module.type for path, module in bare.modules.items()} == {
        path: module.type for path, module in found.modules.items()
    }


def test_sources_that_name_no_buffers(read) -> None:
    """As torch.jit.load has it, a tensor of which an older source says nothing is an attribute."""

    def older(name: str, raw: bytes) -> bytes:
        lines = raw.split(b"\n") if name.endswith(".py") else [raw]
        return b"\n".join(line for line in lines if b"__buffers__" not in line)

    data = packed(model("scripted"), older)
    loaded = torch.jit.load(io.BytesIO(data))
    found = read(data)
    assert "view" not in loaded.state_dict()
    assert found.params["view"].kind == "tensor"
    assert found.params["tied.bias"].kind == "parameter"


@pytest.mark.parametrize("name", ["größe", "a b", "a, b", "it's", "a]"])
def test_names_that_are_no_identifiers(name: str, read) -> None:
    """A parameter's name may hold what Python's identifiers may not."""
    module = nn.Module()
    module.register_parameter(name, nn.Parameter(torch.ones(2)))
    data = saved(torch.jit.script(module))
    assert list(torch.jit.load(io.BytesIO(data)).state_dict()) == [name]
    assert {name: param.kind for name, param in read(data).params.items()} == {name: "parameter"}


def test_an_edit(run, tmp_path: Path) -> None:
    """An edited archive is one that torch loads, with its ties; a deflated one is refused."""
    whole, deflated = tmp_path / "a.pt", tmp_path / "b.pt"
    whole.write_bytes(model("traced"))
    deflated.write_bytes(packed(whole.read_bytes()))
    assert run("set", whole, "tied.weight[:] = 3", "CONSTANTS.c0[:] = 7", "--in-place").code == 0
    loaded = torch.jit.load(whole)
    assert torch.equal(loaded.layers.state_dict()["0.weight"], torch.full((4, 4), 3.0))
    assert torch.equal(loaded.code_with_constants[1].const_mapping["c0"], torch.full((4,), 7.0))
    before = deflated.read_bytes()
    refused = run("set", deflated, "tied.weight[:] = 3", "--in-place")
    assert refused.code == 2
    assert (
        refused.err
        == f"error: {deflated}: tied.weight: its bytes are compressed inside the archive, and cannot be changed there\n"
    )
    assert deflated.read_bytes() == before


# ----------------------------------------------------------------------------- made to mislead


def archive(pickled: bytes, constants: bytes = b"\x80\x02).", **members: bytes) -> bytes:
    """An archive of these pickles; `code__torch__` is `code/__torch__.py`."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("m/data.pkl", pickled)
        new.writestr("m/constants.pkl", constants)
        for name, raw in ({"data/0": bytes(8), "constants/0": bytes(8)} | members).items():
            new.writestr(f"m/{name}", raw)
    return held.getvalue()


def module(*pairs: tuple[str, bytes], cls: str = "Net") -> bytes:
    """A whole pickle of a module."""
    attributes = b"".join(text(key) + raw for key, raw in pairs)
    return b"\x80\x02" + glob("__torch__", cls) + b")\x81}(" + attributes + b"ub."


CODE = "code/__torch__.py"
MISLEADING = "\n\nhint: the file is damaged, or was made to mislead"
MANY = b"class Net(Module):\n  __parameters__ = [" + b"".join(b'"%d", ' % i for i in range(1_000_001)) + b"]\n"
LIES: dict[str, tuple[bytes, str]] = {
    "no storage": (archive(module(("w", tensor(of=storage("9"))))), "w: its storage data/9 is not there"),
    "a short storage": (
        archive(module(("w", tensor(of=storage(numel=3))))),
        "w: its storage should have 12 bytes, and has 8",
    ),
    "a constant's storage is not the module's": (
        archive(module(), b"\x80\x02" + tensor(of=storage("1")) + b"\x85.", **{"data/1": bytes(8)}),
        "CONSTANTS.c0: its storage constants/1 is not there",
    ),
    "beyond the storage": (
        archive(module(("w", tensor((3,))))),
        "w reaches to byte 12 of a storage of 8" + MISLEADING,
    ),
    "constants that end": (
        archive(module(), b"\x80\x02("),
        "the pickle ends without its STOP, after 3 bytes\n\nhint: the file is cut short or damaged",
    ),
    "sources without end": (
        archive(module(), **{CODE: b"#" * ((1 << 25) + 1)}),
        "its sources take more than 33,554,432 bytes, with m/code/__torch__.py",
    ),
    "names without end": (archive(module(), **{CODE: MANY}), "its sources declare more than 1,000,000 names"),
    "a state of many": (
        archive(
            b"\x80\x02}(" + b"".join(text(f"{i}") + b"N" for i in range(300)) + b"uq\x000("
            + (glob("__torch__", "N") + b")\x81h\x00b") * 300 + b"t."
        ),
        "the pickle is damaged: it copies the same values again and again",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_what_is_refused(lie: str, read) -> None:
    """An archive that lies says what of."""
    data, expected = LIES[lie]
    with pytest.raises(FileError) as caught:
        read(data)
    assert str(caught.value) == f"error: m: {expected}"


@pytest.mark.parametrize("beside", ["code/model.py", "tensors/0", "attributes.pkl"])
def test_archives_of_before_torch_1_4(beside: str, read) -> None:
    """They are known for what they are."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as new:
        new.writestr("m/model.json", "{}")
        new.writestr(f"m/{beside}", b"")
    with pytest.raises(FileError) as caught:
        read(held.getvalue())
    assert str(caught.value) == (
        "error: m: a TorchScript archive of before torch 1.4 (m/model.json), which is not read"
        "\n\nhint: torch.jit.load it and torch.jit.save it again with a newer torch"
    )


SOURCES = {
    "a call in the list": b"class Net(Module):\n  __parameters__ = [open('trace', 'w'), ]\n",
    "a call as a value": b"class Net(Module):\n  x : Final[int] = open('trace', 'w')\n",
    "code at the top": b"open('trace', 'w')\nclass Net(Module):\n  __parameters__ = []\n",
    "brackets": b"class Net(Module):\n  x : Final[int] = " + b"(" * 190 + b"\n",
    "a long value": b"class Net(Module):\n  x : Final[int] = " + b"[" * 9000 + b"\n",
    "no UTF-8": b'class Net(Module):\n  __parameters__ = ["\xff", ]\n  x : Final[str] = "\xff"\n',
    "an endless name": b'class Net(Module):\n  __parameters__ = ["' + b'\\"' * 100_000 + b"]\n",
    "an empty file": b"",
    "another class": b'class Other(Module):\n  __parameters__ = ["w", ]\n',
}


@pytest.mark.parametrize("name", SOURCES)
def test_sources_are_text(name: str, read) -> None:
    """Nothing of a source is run, and none makes the listing fail."""
    found = read(archive(module(("training", b"\x89"), ("w", tensor())), **{CODE: SOURCES[name]}))
    assert {name: param.kind for name, param in found.params.items()} == {"w": "tensor"}
    assert not Path("trace").exists()


def test_a_module_that_holds_itself(read) -> None:
    """A cycle ends."""
    looped = (
        b"\x80\x02" + glob("__torch__", "Net") + b")\x81q\x00}(" + text("training") + b"\x89" + text("me") + b"h\x00ub."
    )
    assert read(archive(looped, **{CODE: b"class Net(Module):\n"})).params == {}


def test_a_constant_that_takes_a_name(read) -> None:
    """Two tensors of one name are both listed."""
    data = archive(module(("CONSTANTS.c0", tensor())), b"\x80\x02" + tensor() + b"\x85.")
    assert list(read(data).params) == ["CONSTANTS.c0", "CONSTANTS.c0'"]


def test_a_dict_is_no_module(read) -> None:
    """An archive of `torch::pickle_save` with constants is read for its tensors."""
    assert list(read(archive(state(("w", tensor())))).params) == ["w"]
