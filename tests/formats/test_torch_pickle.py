"""A pickle of a state dict that is written without torch: torch's own bytes, and the same tensors."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from paramctl.checkpoint import Param, Storage, contiguous
from paramctl.dtypes import DTYPES
from paramctl.errors import ParamctlError
from paramctl.formats import torch_pickle
from torch_files import saved, written

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf")
HELD = sorted(name for name, dtype in DTYPES.items() if torch_pickle.holds(dtype))


def param(name: str, dtype: str = "float32", shape: tuple[int, ...] = (2,), key: str = "k", nbytes: int = 8) -> Param:
    data = memoryview(bytes(nbytes))
    return Param(name, DTYPES[dtype], shape, contiguous(shape), Storage(key, nbytes, (), data))


def test_every_dtype_that_torch_saves_is_held():
    """What can be held is what torch has a storage class for, or stores beside its storage, but no quantized one."""
    classed = torch.storage._dtype_to_storage_type_map()
    theirs = {str(dtype)[6:]: name for dtype, name in classed.items() if not str(dtype).startswith("torch.q")}
    assert theirs == torch_pickle.STORAGE_CLASSES
    assert {str(dtype)[6:] for dtype in torch.storage._new_dtypes()} == torch_pickle.BY_DTYPE
    assert set(HELD) == {*torch_pickle.STORAGE_CLASSES, *torch_pickle.BY_DTYPE}


@pytest.mark.parametrize("dtype", HELD)
def test_a_dtype_has_the_bytes_that_torch_saves(dtype: str, tmp_path: Path):
    """A tensor of each dtype, and a view of it, are pickled as torch pickles them, and loaded with weights_only."""
    storage = torch.UntypedStorage(32)
    whole = torch.tensor([], dtype=getattr(torch, dtype)).set_(storage, 0, (2,), (1,))
    view = torch.tensor([], dtype=getattr(torch, dtype)).set_(storage, 1, (1, 1), (5, 3))
    found = saved(OrderedDict(whole=whole, view=view), tmp_path / "a.pt")
    written(found, tmp_path / "b.pt")
    assert pickle_of(tmp_path / "b.pt") == pickle_of(tmp_path / "a.pt")
    loaded = torch.load(tmp_path / "b.pt", weights_only=True)
    assert [(t.dtype, t.shape, t.stride(), t.storage_offset()) for t in loaded.values()] == [
        (t.dtype, t.shape, t.stride(), t.storage_offset()) for t in (whole, view)
    ]


def pickle_of(path: Path) -> bytes:
    return torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")


def test_a_storage_of_two_dtypes_is_one_of_bytes(tmp_path: Path):
    """One storage that is looked at as several dtypes stays one, and each tensor has its own dtype."""
    checkpoint = saved({"a": torch.arange(4.0)}, tmp_path / "a.pt")
    storage = checkpoint.params["a"].storage
    params = {
        name: Param(name, DTYPES[dtype], shape, contiguous(shape), storage)
        for name, dtype, shape in (("f", "float32", (4,)), ("i", "int64", (2,)), ("b", "uint8", (16,)))
    }
    found = torch.load(written(checkpoint.__class__(checkpoint.source, "", params), tmp_path / "b.pt"))
    assert found["f"].tolist() == [0, 1, 2, 3]
    assert torch.equal(found["i"], torch.arange(4.0).view(torch.int64))
    assert torch.equal(found["b"], torch.arange(4.0).view(torch.uint8))
    assert len({tensor.untyped_storage()._cdata for tensor in found.values()}) == 1


def test_a_storage_of_no_whole_number_of_elements(tmp_path: Path):
    """Bytes left over at the end of a storage are kept."""
    made = torch_pickle.state_dict_pickle([param("a", nbytes=11)])
    assert b"UntypedStorage" in made.pickled
    assert [storage.nbytes for _, storage in made.storages] == [11]


NESTED: dict[str, tuple[Any, Any, Any]] = {  # paths, extras, what torch loads but for the tensors
    "flat with an extra": ({}, {("epoch",): 3}, {"a.b": 0, "c": 1, "epoch": 3}),
    "two roots": (
        {"a.b": ("model", "a.b"), "c": ("optimizer", "state", 0, "c")},
        {("optimizer", "lr"): 0.5, ("none",): None},
        {"model": {"a.b": 0}, "optimizer": {"state": [{"c": 1}], "lr": 0.5}, "none": None},
    ),
    "positions that are no list": ({"a.b": ("s", 3), "c": ("s", 7)}, {}, {"s": {3: 0, 7: 1}}),
    "a list and an extra in it": (
        {"a.b": ("s", 0), "c": ("s", 2)},
        {("s", 1): "x", ("t",): (1, (True, 2**70)), ("e",): {}},
        {"s": [0, "x", 1], "t": (1, (True, 2**70)), "e": {}},
    ),
    "text and numbers": (
        {},
        {
            ("s",): "\ud800\x00é",
            ("i",): [-1, 0, 255, 256, 65535, 65536, -(2**31), 2**31, -(2**63), 10**400],
            ("b",): b"\x00\xff.",
        },
        {
            "a.b": 0,
            "c": 1,
            "s": "\ud800\x00é",
            "i": [-1, 0, 255, 256, 65535, 65536, -(2**31), 2**31, -(2**63), 10**400],
            "b": b"\x00\xff.",
        },
    ),
}


@pytest.mark.parametrize(("paths", "extras", "expected"), NESTED.values(), ids=NESTED.keys())
def test_nested_tensors_and_extras(paths: Any, extras: Any, expected: Any, tmp_path: Path):
    """Tensors stand at their paths, and what is no tensor beside them, as torch.load(weights_only=True) gives them."""
    tensors = [torch.zeros(1), torch.ones(1)]
    checkpoint = saved({"a.b": tensors[0], "c": tensors[1]}, tmp_path / "a.pt")
    found = torch.load(written(checkpoint, tmp_path / "b.pt", paths=paths, extras=extras), weights_only=True)
    assert numbered(found) == expected
    assert type(found) is dict


def numbered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: numbered(item) for key, item in value.items()}
    return (
        type(value)(map(numbered, value))
        if type(value) in (list, tuple)
        else int(value)
        if torch.is_tensor(value)
        else value
    )


REFUSED: dict[str, tuple[list[Param], Any, str]] = {
    "quantized": ([param("a", "q4_k", (256,))], {}, "a: torch has no plain tensor of q4_k"),
    "one place twice": ([param("a")], {"extras": {("a",): 1}}, "a would stand where another value does"),
    "below a tensor": (
        [param("a"), param("b")],
        {"paths": {"b": ("a", "c")}},
        "a.c would stand where another value does",
    ),
    "an object": ([], {"extras": {("a",): object()}}, "a value of object cannot be written into a pickle"),
}


@pytest.mark.parametrize(("params", "options", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_written_is_refused(params: list[Param], options: Any, said: str):
    """What a pickle of torch's cannot hold is an error that names it."""
    with pytest.raises(ParamctlError) as error:
        torch_pickle.state_dict_pickle(params, **options)
    assert str(error.value) == f"error: {said}"


def test_a_lone_tensor_is_pickled_as_torch_does(tmp_path: Path):
    """A tensor alone is byte for byte what `torch.save(tensor)` writes."""
    found = saved(torch.arange(6.0).reshape(2, 3).t(), tmp_path / "a.pt")
    assert torch_pickle.tensor_pickle(found.params["tensor"]).pickled == pickle_of(tmp_path / "a.pt")
