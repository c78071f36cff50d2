"""Every kind of tensor that `torch.save` writes is listed; one that is saved as several shows its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from file_builders import glob, state, storage, tensor, text, torch_zip
from torch.testing._internal.two_tensor import TwoTensor

from paramctl import formats, source, values
from paramctl.checkpoint import Checkpoint
from property.test_reading import assert_alike

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
MATRIX = torch.tensor([[0.0, 1, 0, 2], [3, 0, 0, 0], [0, 0, 0, 4], [5, 0, 6, 0]])
SCALES, ZEROS = torch.tensor([0.5, 0.25, 1, 2], dtype=torch.float64), torch.tensor([0, 1, 2, 3])


class Quantized(torch.Tensor):
    """As torchao's: a tensor by its shape, whose numbers are in its attributes."""

    @staticmethod
    def __new__(cls, data: torch.Tensor, scale: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.bfloat16)

    def __init__(self, data: torch.Tensor, scale: torch.Tensor) -> None:
        self.int_data, self.scale = data, scale

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].int_data, args[0].scale)
        raise NotImplementedError(func)


def layered() -> torch.Tensor:
    """A wrapper within a wrapper, as torchao's `tensor_impl`."""
    return Quantized(Quantized(torch.ones(2, 3, dtype=torch.int8), torch.ones(2)), torch.ones(()))


def jagged() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(4, 3)], layout=torch.jagged)


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {  # how to make it: its parts, as torch gives them after loading
    "COO": (MATRIX.to_sparse, {"indices": lambda x: x._indices(), "values": lambda x: x._values()}),
    "coalesced COO": (
        lambda: MATRIX.to_sparse().coalesce(),
        {"indices": lambda x: x.indices(), "values": lambda x: x.values()},
    ),
    "hybrid COO": (
        lambda: MATRIX.reshape(4, 2, 2).to_sparse(1),
        {"indices": lambda x: x._indices(), "values": lambda x: x._values()},
    ),
    **{
        name: (make, {part: lambda x, part=part: getattr(x, part)() for part in (*parts, "values")})
        for name, make, parts in [
            ("CSR", MATRIX.to_sparse_csr, ("crow_indices", "col_indices")),
            ("CSC", MATRIX.to_sparse_csc, ("ccol_indices", "row_indices")),
            ("BSR", lambda: MATRIX.to_sparse_bsr((2, 2)), ("crow_indices", "col_indices")),
            ("BSC", lambda: MATRIX.to_sparse_bsc((2, 2)), ("ccol_indices", "row_indices")),
        ]
    },
    "nested": (
        lambda: torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(4, 3)]),
        {
            "values": lambda x: x.values(),
            "_nested_tensor_size": lambda x: x._nested_tensor_size(),
            "_nested_tensor_strides": lambda x: x._nested_tensor_strides(),
            "_nested_tensor_storage_offsets": lambda x: x._nested_tensor_storage_offsets(),
        },
    ),
    "jagged": (jagged, {"values": lambda x: x.values(), "offsets": lambda x: x.offsets()}),
    "per channel": (
        lambda: torch.quantize_per_channel(MATRIX, SCALES, ZEROS, 0, torch.qint8),
        {"scales": lambda x: x.q_per_channel_scales(), "zero_points": lambda x: x.q_per_channel_zero_points()},
    ),
    "two tensors": (lambda: TwoTensor(MATRIX, MATRIX + 1), {"a": lambda x: x.a, "b": lambda x: x.b}),
    "a torchao-like subclass": (
        lambda: Quantized(torch.ones(2, 3, dtype=torch.int8), torch.ones(2)),
        {"int_data": lambda x: x.int_data, "scale": lambda x: x.scale},
    ),
    "a subclass within a subclass": (
        layered,
        {
            "int_data.int_data": lambda x: x.int_data.int_data,
            "int_data.scale": lambda x: x.int_data.scale,
            "scale": lambda x: x.scale,
        },
    ),
}


def saved(root: Any, path: Path, *, zipped: bool = True) -> tuple[Checkpoint, Any]:
    torch.save(root, path, _use_new_zipfile_serialization=zipped)
    return formats.read(source.resolve(str(path))), torch.load(path, weights_only=False)


def parts_of(found: Checkpoint, name: str) -> dict[str, Any]:
    return {key.removeprefix(name + "."): param for key, param in found.params.items() if key.startswith(name + ".")}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(("make", "parts"), KINDS.values(), ids=KINDS.keys())
def test_a_composite_shows_its_parts(make: Any, parts: dict[str, Any], zipped: bool, tmp_path: Path):
    """Parts are below the tensor's name, by the names of torch's attributes, each as torch loads it."""
    made = make()
    path = tmp_path / "m.pt"
    torch.save({"before": torch.ones(1), "x": made, "y": torch.ones(1)}, path, _use_new_zipfile_serialization=zipped)
    mine = formats.read(source.resolve(str(path)))
    theirs = (
        torch.load(path, weights_only=False)["x"] if zipped else made
    )  # torch.load fails on nested ones of a stream
    found = parts_of(mine, "x")
    assert {name for name in found if not name.startswith("_metadata_cache")} == set(parts)
    for name, part in parts.items():
        assert_alike(found[name], part(theirs))
    assert {"before", "y"} < set(mine.params)
    assert mine.extras["x"]["class"]


@pytest.mark.parametrize(("make", "parts"), KINDS.values(), ids=KINDS.keys())
def test_a_composite_among_parameters_shows_its_parts(make: Any, parts: dict[str, Any], tmp_path: Path):
    """A Parameter of a composite, and one that a pickled module holds, shows the same parts."""
    made = make()
    try:
        held = torch.nn.Parameter(made, requires_grad=False)
    except (RuntimeError, NotImplementedError):
        pytest.skip("torch makes no Parameter of it")
    module = torch.nn.Module()
    module.inner = torch.nn.Module()
    module.inner.register_parameter("x", held)
    for root in ({"x": held}, module):
        mine, _ = saved(root, tmp_path / "m.pt")
        found = parts_of(mine, "x" if isinstance(root, dict) else "inner.x")
        assert {name for name in found if not name.startswith("_metadata_cache")} == set(parts)


def test_what_is_no_tensor_of_a_composite_is_an_extra(tmp_path: Path):
    """Shape, layout, axis and scale stay beside the parts."""
    root = {
        "coo": MATRIX.to_sparse(),
        "channel": torch.quantize_per_channel(MATRIX, SCALES, ZEROS, 0, torch.qint8),
        "tensor": torch.quantize_per_tensor(MATRIX, 0.5, 10, torch.quint8),
        "two": TwoTensor(MATRIX, MATRIX),
    }
    mine, _ = saved(root, tmp_path / "m.pt")
    coo = {"class": "torch.Tensor", "layout": "torch.sparse_coo", "size": [4, 4], "is_coalesced": True}
    assert mine.extras["coo"] == coo
    assert mine.extras["channel"] == {"class": "torch.per_channel_affine", "axis": 0}
    assert mine.extras["tensor"] == {"class": "torch.per_tensor_affine", "scale": 0.5, "zero_point": 10}
    two = mine.extras["two"]
    assert (two["class"], two["size"], two["dtype"]) == (
        "torch.testing._internal.two_tensor.TwoTensor", [4, 4], "torch.float32",
    )  # fmt: skip
    assert mine.params["two.a"].storage.key == mine.params["two.b"].storage.key


QUANTIZED = {
    "qint8": lambda: torch.quantize_per_tensor(MATRIX, 0.5, 1, torch.qint8),
    "quint8": lambda: torch.quantize_per_tensor(MATRIX, 0.5, 1, torch.quint8),
    "qint32": lambda: torch.quantize_per_tensor(MATRIX, 0.5, 1, torch.qint32),
    "per channel": lambda: torch.quantize_per_channel(MATRIX, SCALES, ZEROS, 0, torch.quint8),
    "a view": lambda: torch.quantize_per_tensor(MATRIX, 0.5, 1, torch.qint8)[1:, 2:],
}


@pytest.mark.parametrize("make", QUANTIZED.values(), ids=QUANTIZED.keys())
def test_a_quantized_tensor_is_its_integers(make: Any, tmp_path: Path):
    """Its own dtype, shape and strides, and the values of its `int_repr`."""
    mine, theirs = saved({"x": make()}, tmp_path / "m.pt")
    param, x = mine.params["x"], theirs["x"]
    assert f"torch.{param.dtype.name}" == str(x.dtype)
    assert (param.shape, param.stride, param.storage_offset) == (tuple(x.shape), x.stride(), x.storage_offset())
    assert values.array(param).tolist() == x.int_repr().tolist()


@pytest.mark.parametrize(("dtype", "per_byte"), [(torch.quint4x2, 2), (torch.quint2x4, 4)])
def test_a_quantized_tensor_of_parts_of_bytes(dtype: torch.dtype, per_byte: int, tmp_path: Path):
    """Its storage is as many bytes as torch's, and its elements take a part of one each."""
    x = torch.quantize_per_channel(MATRIX, SCALES.float(), ZEROS.float(), 0, dtype)
    mine, theirs = saved({"x": x}, tmp_path / "m.pt")
    assert mine.params["x"].nbytes == 16 // per_byte
    assert mine.params["x"].storage.nbytes == theirs["x"].untyped_storage().nbytes() == 16 // per_byte
    assert values.array(mine.params["x.scales"]).tolist() == SCALES.tolist()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_buffer_is_a_buffer(zipped: bool, tmp_path: Path):
    """A torch.nn.Buffer by itself is of kind buffer."""
    mine, theirs = saved({"x": torch.nn.Buffer(torch.ones(2))}, tmp_path / "m.pt", zipped=zipped)
    assert isinstance(theirs["x"], torch.nn.Buffer)
    assert (mine.params["x"].kind, mine.params["x"].cls) == ("buffer", "Buffer")
    assert values.array(mine.params["x"]).tolist() == [1, 1]


def test_what_is_not_initialized_has_no_shape(tmp_path: Path):
    """A lazy module's parameters are told, and are no tensors."""
    module = torch.nn.Sequential(torch.nn.LazyLinear(3), torch.nn.Linear(3, 1))
    mine, _ = saved(module, tmp_path / "m.pt")
    assert list(mine.params) == ["1.weight", "1.bias"]
    assert mine.modules["0"].hyperparameters["weight"] == "UninitializedParameter"
    mine, _ = saved({"x": torch.nn.UninitializedParameter()}, tmp_path / "m.pt")
    assert mine.extras == {"x": {"class": "torch.nn.parameter.UninitializedParameter"}}


@pytest.mark.parametrize("make", [torch.float32, torch.float8_e4m3fn, torch.complex64, torch.bool], ids=str)
def test_a_meta_tensor_has_a_shape_and_no_bytes(make: torch.dtype, tmp_path: Path):
    """A tensor of the meta device has torch's dtype, shape and strides."""
    mine, theirs = saved({"x": torch.empty(3, 4, dtype=make, device="meta").t()}, tmp_path / "m.pt")
    param, x = mine.params["x"], theirs["x"]
    assert f"torch.{param.dtype.name}" == str(x.dtype)
    assert (param.shape, param.stride, param.storage.is_meta) == (tuple(x.shape), x.stride(), True)


BITS = ["float4_e2m1fn_x2", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"]


@pytest.mark.parametrize("name", BITS)
def test_a_dtype_of_bits(name: str, tmp_path: Path):
    """Dtypes that torch itself only carries are listed with its geometry."""
    dtype = getattr(torch, name)
    raw = torch.arange(8, dtype=torch.uint8)
    x = torch.tensor([], dtype=dtype).set_(raw.untyped_storage(), 0, (8 // dtype.itemsize,), (1,))
    mine, theirs = saved({"x": x}, tmp_path / "m.pt")
    param = mine.params["x"]
    assert f"torch.{param.dtype.name}" == str(theirs["x"].dtype)
    assert (param.shape, param.nbytes, param.storage.nbytes) == (tuple(x.shape), 8, 8)


SUB_BYTE = [f"{kind}{bits}" for kind in ("uint", "int") for bits in range(1, 8)]


@pytest.mark.parametrize("name", SUB_BYTE)
def test_an_integer_of_fewer_bits_than_a_byte(name: str, tmp_path: Path):
    """torch gives such an integer a whole byte, and so is it listed."""
    v3 = glob("torch._utils", "_rebuild_tensor_v3") + b"(" + storage(kind=glob("torch", "UntypedStorage"), numel=8)
    raw = torch_zip(state(("x", v3 + b"K\0K\x08\x85K\x01\x85\x89" + b"}" + glob("torch", name) + b"tR")))
    (tmp_path / "m.pt").write_bytes(raw)
    param = formats.read(source.resolve(str(tmp_path / "m.pt"))).params["x"]
    assert (param.dtype.name, param.shape, param.nbytes) == (name, (8,), 8)
    assert getattr(torch, name).itemsize == 1


UNKNOWN = {
    "a dtype": glob("torch._utils", "_rebuild_tensor_v3")
    + b"("
    + storage()
    + b"K\0K\x02\x85K\x01\x85\x89N"
    + glob("torch", "float3")
    + b"tR",
    "a storage": tensor(of=storage(kind=glob("torch", "Float3Storage"))),
    "a rebuild function": glob("torch._utils", "_rebuild_tensor_v9") + b"(" + storage() + b"tR",
    "a layout": glob("torch._utils", "_rebuild_sparse_tensor")
    + b"("
    + glob("torch.serialization", "_get_layout")
    + text("torch.sparse_fancy")
    + b"\x85RN\x85tR",
    "a wrapper of nothing": glob("torch._utils", "_rebuild_wrapper_subclass") + b")R",
}


@pytest.mark.parametrize("made", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_what_is_not_known_is_a_stand_in(made: bytes, read):
    """A tensor of a kind that is not known is an extra with its class, and hides no other."""
    mine = read(torch_zip(state(("a", tensor()), ("x", made), ("b", tensor()))))
    assert list(mine.params) == ["a", "b"]
    assert mine.extras["x"]["class"].startswith("torch.")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_dtensor_shows_its_local_part(zipped: bool, tmp_path: Path):
    """A DTensor is what this rank has of it, below its name, with its mesh and placements beside it."""
    distributed = pytest.importorskip("torch.distributed.tensor")
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        x = distributed.distribute_tensor(torch.arange(6.0).reshape(2, 3), mesh, [distributed.Shard(0)])
        torch.save({"x": x, "y": torch.ones(1)}, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    finally:
        torch.distributed.destroy_process_group()
    mine = formats.read(source.resolve(str(tmp_path / "m.pt")))
    assert list(mine.params) == ["x._local_tensor", "y"]
    assert values.array(mine.params["x._local_tensor"]).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert mine.extras["x"]["class"] == "torch.distributed.tensor.DTensor"
    assert mine.extras["x"]["size"] == [2, 3]
