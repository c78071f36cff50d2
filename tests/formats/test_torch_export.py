"""The .pt2 archives of torch.export: what torch.export.load finds, paramctl finds."""

from __future__ import annotations

import functools
import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._export.serde.serialize import serialize
from torch.export import ExportedProgram, export, load, save
from torch.export.pt2_archive._package import package_pt2
from torch.testing._internal.two_tensor import TwoTensor

from paramctl import contents
from paramctl.checkpoint import Param
from paramctl.errors import FileError

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    """Tied weights, a view, buffers of both sorts, and constants."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4, bias=False)])
        self.norm = nn.BatchNorm1d(4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.layers[0].weight
        self.layers[1].weight.requires_grad_(False)
        self.register_buffer("view", torch.arange(8.0)[2:6])
        self.register_buffer("turned", torch.arange(12, dtype=torch.bfloat16).reshape(3, 4).t())
        self.register_buffer("hidden", torch.ones(3), persistent=False)
        self.table = torch.arange(4, dtype=torch.float16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        x = self.tied(self.norm(x)) + torch.tensor([1.0, 2.0, 3.0, 4.0]) + self.view + self.table
        return x + self.turned.sum() + self.hidden.sum()


@functools.cache
def program() -> ExportedProgram:
    return export(Net().eval(), (torch.zeros(2, 4),))


@functools.cache
def saved() -> bytes:
    held = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        save(program(), held, extra_files={"notes.txt": "hello"})
    return held.getvalue()


def packed(
    data: bytes,
    change: Callable[[str, bytes], bytes | None] = lambda _, raw: raw,
    *,
    method: int = 0,
    **more: bytes,
) -> bytes:
    """The archive zipped anew, each member as `change` makes it, without those of which it makes None."""
    held = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(held, "w", method) as new:
        root = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            raw = change(name.partition("/")[2], old.read(name))
            if raw is not None:
                new.writestr(name, raw)
        for name, raw in more.items():
            new.writestr(f"{root}/{name}", raw)
    return held.getvalue()


def of_torch_2_8() -> bytes:
    """Weights and constants are a file of torch.save each."""
    artifact = serialize(program())

    def without(name: str, raw: bytes) -> bytes | None:
        return None if name.startswith(("data/weights/", "data/constants/")) else raw

    files = {"data/weights/model.pt": artifact.state_dict, "data/constants/model.pt": artifact.constants}
    return packed(saved(), without, **files)


def of_torch_2_7(method: int = 0) -> bytes:
    artifact = serialize(program())
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", method) as new:
        new.writestr("serialized_exported_program.json", artifact.exported_program)
        new.writestr("serialized_state_dict.pt", artifact.state_dict)
        new.writestr("serialized_constants.pt", artifact.constants)
        new.writestr("serialized_example_inputs.pt", artifact.example_inputs)
        new.writestr("version", "8.20")
        new.writestr("extra_files/notes.txt", "hello")
    return held.getvalue()


LAYOUTS: dict[str, Callable[[], bytes]] = {
    "as saved": saved,
    "deflated": lambda: packed(saved(), method=8),
    "of torch 2.8": of_torch_2_8,
    "of torch 2.7": of_torch_2_7,
}


def value(param: Param) -> torch.Tensor:
    flat = torch.frombuffer(contents.read(param, 0, param.storage.nbytes), dtype=getattr(torch, param.dtype.name))
    return flat.as_strided(param.shape, param.stride, param.storage_offset)


def assert_as_torch(params: dict[str, Param], loaded: ExportedProgram) -> None:
    signature = loaded.graph_signature
    expected = loaded.state_dict | loaded.constants
    assert set(params) == set(expected)
    by_storage: dict[int, set[str]] = {}
    for name, tensor in expected.items():
        param = params[name]
        kind = "parameter" if name in signature.parameters else "buffer" if name in signature.buffers else "tensor"
        assert (param.kind, param.requires_grad) == (kind, tensor.requires_grad)
        assert f"torch.{param.dtype}" == str(tensor.dtype)
        assert (param.shape, param.stride) == (tuple(tensor.shape), tensor.stride())
        assert param.storage_offset == tensor.storage_offset()
        assert torch.equal(value(param), tensor)
        by_storage.setdefault(tensor.untyped_storage().data_ptr(), set()).add(param.storage.key)
    assert all(len(keys) == 1 for keys in by_storage.values())
    assert len(set().union(*by_storage.values())) == len(by_storage)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_torch_loads(layout: str, read) -> None:
    """Names, kinds, dtypes, geometry, values and sharing are those of torch.export.load, in each of the layouts."""
    data = LAYOUTS[layout]()
    found = read(data)
    assert found.format == "torch-export"
    assert_as_torch(dict(found.params), load(io.BytesIO(data)))
    assert found.params["tied.weight"].storage == found.params["layers.0.weight"].storage
    assert found.extras == {"extra_files": {"notes.txt": "5 bytes"}}
    assert found.metadata["torch_version"] == torch.__version__
    types = {path: module.type for path, module in found.modules.items()}
    assert types == {"": "Net", "layers.0": "Linear", "layers.1": "Linear", "norm": "BatchNorm1d", "tied": "Linear"}
    assert found.modules["norm"].qualified == "torch.nn.modules.batchnorm.BatchNorm1d"


def test_several_programs(read) -> None:
    """Each has its name before those of its tensors."""
    held = io.BytesIO()
    package_pt2(held, exported_programs={"encoder": program(), "decoder": program()})
    found = read(held.getvalue())
    assert found.extras == {"models": ["decoder", "encoder"]}
    names = [*program().state_dict, *program().constants]
    assert set(found.params) == {f"{model}.{name}" for model in ("encoder", "decoder") for name in names}
    assert found.modules["encoder.layers.0"].type == "Linear"
    assert found.params["encoder.tied.weight"].storage != found.params["decoder.tied.weight"].storage


def test_tensors_of_a_subclass(read) -> None:
    """They are files of torch.save in the archive, and show their parts."""
    module = nn.Linear(2, 2, bias=False)
    module.weight = nn.Parameter(TwoTensor(torch.ones(2, 2), torch.zeros(2, 2)))
    held = io.BytesIO()
    save(export(module, (torch.ones(1, 2),)), held)
    found = read(held.getvalue())
    assert {name: param.kind for name, param in found.params.items()} == {
        "weight.a": "parameter",
        "weight.b": "parameter",
    }
    assert torch.equal(value(found.params["weight.a"]), torch.ones(2, 2))


@pytest.mark.parametrize("layout", ["as saved", "of torch 2.8", "of torch 2.7"])
def test_an_edit(layout: str, run, tmp_path: Path) -> None:
    """An edited archive is one that torch loads, and every checksum in it is right."""
    path = tmp_path / "m.pt2"
    path.write_bytes(LAYOUTS[layout]())
    assert run("set", path, "tied.weight[:] = 3", "hidden[:] = 7", "--in-place").code == 0
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for name in archive.namelist():
            if name.endswith(".pt"):
                assert zipfile.ZipFile(io.BytesIO(archive.read(name))).testzip() is None
    loaded = load(path)
    assert torch.equal(loaded.state_dict["layers.0.weight"], torch.full((4, 4), 3.0))
    assert torch.equal(loaded.constants["hidden"], torch.full((3,), 7.0))


def test_values_that_were_not_exported(read) -> None:
    """A member without bytes is a tensor without values."""
    data = packed(saved(), lambda name, raw: b"" if name == "data/weights/weight_1" else raw)
    found = read(data)
    assert found.params["layers.0.bias"].storage.is_meta
    assert found.params["layers.0.bias"].shape == (4,)


def test_what_is_no_tensor(read) -> None:
    """An object among the constants is told by its size."""

    def with_object(name: str, raw: bytes) -> bytes:
        if not name.endswith("constants_config.json"):
            return raw
        config = json.loads(raw)
        config["config"]["custom"] = {
            "path_name": "tensor_0",
            "is_param": False,
            "use_pickle": True,
            "tensor_meta": None,
        }
        config["config"]["table"]["tensor_meta"]["layout"] = 1
        return json.dumps(config).encode()

    found = read(packed(saved(), with_object))
    assert found.extras["custom"] == "an object of 16 bytes, which is not read"
    assert found.extras["table"] == "a tensor of layout 1, which is not read"


# ----------------------------------------------------------------------------- made to mislead


def lying(name: str = "layers.0.bias", /, **meta: Any) -> bytes:
    """The archive with other words about a weight."""

    def lie(member: str, raw: bytes) -> bytes:
        if not member.endswith("weights_config.json"):
            return raw
        config = json.loads(raw)
        payload = config["config"][name]
        payload["tensor_meta"] |= {key: value for key, value in meta.items() if key in payload["tensor_meta"]}
        payload |= {key: value for key, value in meta.items() if key in payload}
        return json.dumps(config).encode()

    return packed(saved(), lie)


def replaced(end: str, by: bytes | None, *, method: int = 0) -> bytes:
    return packed(saved(), lambda name, raw: by if name.endswith(end) else raw, method=method)


MISLEADING = "\n\nhint: the file is damaged, or was made to mislead"
LIES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a member that is not there": (
        lambda: lying(path_name="weight_99"),
        "layers.0.bias: its member weight_99 is not there",
    ),
    "a member outside": (lambda: lying(path_name="../../x"), "layers.0.bias: its member ../../x is not there"),
    "no member": (lambda: lying(path_name=None), "layers.0.bias: its member None is not there"),
    "a size below zero": (
        lambda: lying(sizes=[{"as_int": -1}]),
        "layers.0.bias: {'as_int': -1} is no size or stride",
    ),
    "a size that is an expression": (
        lambda: lying(sizes=[{"as_expr": "s0"}]),
        "layers.0.bias: {'as_expr': 's0'} is no size or stride",
    ),
    "a size that is true": (
        lambda: lying(sizes=[{"as_int": True}]),
        "layers.0.bias: {'as_int': True} is no size or stride",
    ),
    "no sizes": (lambda: lying(sizes=3), "layers.0.bias: sizes or strides that are none"),
    "sizes without strides": (lambda: lying(strides=[]), "layers.0.bias: 1 sizes and 0 strides of no tensor"),
    "more elements than can be": (
        lambda: lying(sizes=[{"as_int": 1 << 62}] * 2, strides=[{"as_int": 0}] * 2),
        "layers.0.bias: 2 sizes and 2 strides of no tensor",
    ),
    "a tensor of terabytes": (
        lambda: lying(sizes=[{"as_int": 1 << 40}]),
        "layers.0.bias reaches to byte 4,398,046,511,104 of a storage of 16" + MISLEADING,
    ),
    "an offset beyond": (
        lambda: lying(storage_offset={"as_int": 1}),
        "layers.0.bias reaches to byte 20 of a storage of 16" + MISLEADING,
    ),
    "a dtype that is none": (lambda: lying(dtype=99), "layers.0.bias: 99 is no dtype that is known"),
    "a file that is none": (
        lambda: lying(use_pickle=True),
        "data/weights/weight_1 is no file of torch.save since 1.6",
    ),
    "no config": (
        lambda: replaced("weights_config.json", None),
        "data/weights/model_weights_config.json is not there",
    ),
    "a config that is no JSON": (
        lambda: replaced("weights_config.json", b"{"),
        (
            "data/weights/model_weights_config.json is no JSON: "
            "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
        ),
    ),
    "a config that is a list": (
        lambda: replaced("weights_config.json", b"[]"),
        "data/weights/model_weights_config.json is no JSON object",
    ),
    "a config of nothing": (
        lambda: replaced("weights_config.json", b"{}"),
        "data/weights/model_weights_config.json has no config",
    ),
    "a config that inflates": (
        lambda: replaced("weights_config.json", b" " * (1 << 24), method=8),
        "data/weights/model_weights_config.json says 16,777,216 bytes, in 16,311",
    ),
    "no program": (
        lambda: replaced("models/model.json", None),
        "a pt2 archive that holds no program, and no parameters by name",
    ),
    "compiled code": (
        lambda: packed(
            saved(), lambda n, raw: None if n == "models/model.json" else raw, **{"data/aotinductor/model/a.so": b""}
        ),
        "a pt2 archive that holds compiled code of AOTInductor, and no parameters by name",
    ),
    "an old one that was deflated": (
        lambda: of_torch_2_7(8),
        "serialized_state_dict.pt is compressed inside the archive\n\nhint: unzip it, and name it itself",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_is_refused(lie: str, read) -> None:
    """An archive that lies says what of."""
    make, expected = LIES[lie]
    data = make()
    root = zipfile.ZipFile(io.BytesIO(data)).namelist()[0].partition("/")[0]
    with pytest.raises(FileError) as caught:
        read(data)
    assert str(caught.value).replace(f"{root}/", "") == f"error: m: {expected}"


@pytest.mark.parametrize(
    "program_text",
    [
        b"",
        b"{",
        b'"signature": {"input_specs": ' + b"[" * 100_000,
        b'"signature": {"input_specs": [1, {"buffer": 2}, {"buffer": {}}]}',
        b'"nn_module_stack": "a,b"',
        b'"nn_module_stack": "\\ud800,,x.Y;k,a\x1b,Z"',
        b'"nn_module_stack": "' + b"\\" * 99_999,
    ],
)
def test_a_program_that_is_none(program_text: bytes, read) -> None:
    """Of a program that cannot be read, the tensors are."""
    found = read(replaced("models/model.json", program_text))
    assert set(found.params) == {*program().state_dict, *program().constants}
