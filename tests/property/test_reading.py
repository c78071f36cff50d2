"""Law 4 of reading: every tensor that torch or safetensors finds, with the same name, geometry, values and sharing."""

from __future__ import annotations

import argparse
import warnings
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from paramctl import formats, source, values
from paramctl.checkpoint import Checkpoint, Param

DTYPES = [
    getattr(torch, name)
    for name in [
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint64",
        "uint32",
        "uint16",
        "uint8",
        "bool",
        "complex32",
        "complex64",
        "complex128",
    ]
]
NO_GRAD = torch.storage._new_dtypes()  # torch.load itself fails on these where they require a gradient
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


# ----------------------------------------------------------------------------- tensors


def filled(dtype: torch.dtype, nbytes: int, seed: int) -> torch.UntypedStorage:
    """A storage of random bytes: NaN with payloads, subnormals and infinities included; bools are 0 and 1."""
    raw = np.random.default_rng(seed).integers(0, 2 if dtype == torch.bool else 256, nbytes, dtype=np.uint8)
    storage = torch.UntypedStorage(nbytes)
    torch.tensor([], dtype=torch.uint8).set_(storage, 0, (nbytes,)).copy_(torch.from_numpy(raw))
    return storage


@st.composite
def views(draw: st.DrawFn, storage: torch.UntypedStorage, dtype: torch.dtype) -> torch.Tensor:
    """Any tensor over a storage: any shape, stride (0 and gaps included) and offset that fits."""
    numel = storage.nbytes() // torch.empty(0, dtype=dtype).element_size()
    offset = draw(st.integers(0, numel))
    shape, stride, left = [], [], numel - offset - 1
    for _ in range(draw(st.integers(0, 3))):
        by = draw(st.integers(0, 5))
        most = 4 if not by else max(0, min(4, left // by + 1))
        size = draw(st.integers(0, most))
        left -= by * max(size - 1, 0)
        shape.append(size)
        stride.append(by)
    if left < 0:  # no element is there: only an empty tensor fits
        shape, stride = [0, *shape], [1, *stride]
    tensor = torch.tensor([], dtype=dtype).set_(storage, offset, shape, stride)
    may_need_grad = (dtype.is_floating_point or dtype.is_complex) and dtype not in NO_GRAD
    return tensor.requires_grad_() if may_need_grad and draw(st.booleans()) else tensor


@st.composite
def pools(draw: st.DrawFn) -> list[torch.Tensor]:
    """Tensors over one to three storages, some over the same."""
    pool: list[torch.Tensor] = []
    for _ in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from(DTYPES))
        numel = draw(st.integers(0, 40))
        storage = filled(dtype, numel * torch.empty(0, dtype=dtype).element_size(), draw(st.integers(0, 99)))
        for _ in range(draw(st.integers(1, 3))):
            tensor = draw(views(storage, dtype))
            pool.append(torch.nn.Parameter(tensor) if tensor.requires_grad and draw(st.booleans()) else tensor)
    return pool


NAMES = st.one_of(
    st.sampled_from(
        [
            "",
            "0.weight",
            "a b",
            "a.b",
            "a",
            "\\x1b[31m",
            "\x1b[31m",
            "new\nline",
            "tab\t",
            "[bold]",
            "é",
            "名",
            "🔥",
            "a'",
            "\u202e",
        ]
    ),
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=6),
)
KEYS = st.one_of(NAMES, st.integers(-3, 3), st.booleans(), st.tuples(st.integers(0, 2), NAMES), st.none())


def trees(pool: list[torch.Tensor]) -> st.SearchStrategy[Any]:
    leaves = st.one_of(
        st.sampled_from(pool),
        st.sampled_from(pool),
        st.none(),
        st.integers(),
        st.text(max_size=4),
        st.floats(allow_nan=False),
        st.binary(max_size=4),
        st.just(torch.Size([2, 3])),
        st.just(torch.float16),
        st.just(torch.device("cpu")),
    )

    def wider(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        named = st.dictionaries(KEYS, inner, max_size=4)
        return st.one_of(
            named,
            named.map(OrderedDict),
            named.map(lambda found: defaultdict(list, found)),
            named.map(Counter),
            st.lists(inner, max_size=4),
            st.lists(inner, max_size=4).map(tuple),
            st.dictionaries(NAMES, inner, max_size=4).map(lambda found: argparse.Namespace(**found)),
        )

    return st.recursive(leaves, wider, max_leaves=15)


def found_by_torch(value: Any, path: str | None = None) -> list[tuple[str | None, torch.Tensor]]:
    """Every tensor of what `torch.load` gave, in order, by name; None for a key whose text is nobody's business."""
    if isinstance(value, torch.Tensor):
        return [("tensor" if path is None else path, value)]
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, dict):
        pairs = [(key if isinstance(key, str) else str(key), item) for key, item in value.items()]
        odd = [isinstance(key, tuple) for key in value]
    elif isinstance(value, (list, tuple)):
        pairs, odd = [(str(i), item) for i, item in enumerate(value)], [False] * len(value)
    else:
        return []
    found = []
    for (key, item), is_odd in zip(pairs, odd, strict=True):
        inner = found_by_torch(item, key if path is None else f"{path}.{key}")
        found += [(None, tensor) for _, tensor in inner] if is_odd else inner
    return found


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """The elements in order, as bytes; by gathering them from the storage, for torch itself copies no float8 NaN exactly."""
    size = tensor.element_size()
    held = bytes(tensor.untyped_storage())
    at = np.full(tensor.shape, tensor.storage_offset() * size)
    for axis, by in enumerate(tensor.stride()):
        steps = np.arange(tensor.shape[axis]) * by * size
        at = at + steps.reshape([-1 if i == axis else 1 for i in range(tensor.dim())])
    return b"".join(held[start : start + size] for start in at.reshape(-1).tolist())


def assert_alike(param: Param, tensor: torch.Tensor) -> None:
    assert f"torch.{param.dtype.name}" == str(tensor.dtype)
    assert param.shape == tuple(tensor.shape)
    assert param.stride == tuple(tensor.stride())
    assert param.storage_offset == tensor.storage_offset()
    assert param.requires_grad is tensor.requires_grad
    assert param.kind == ("parameter" if isinstance(tensor, torch.nn.Parameter) else "tensor")
    array = values.array(param)
    assert np.ascontiguousarray(array).tobytes() == raw_bytes(tensor)
    if tensor.dtype != torch.complex32:
        with np.errstate(all="ignore"):
            mine = np.array(values.nested(array), np.float64)
        wide = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
        theirs = np.array(wide.tolist(), np.float64)
        np.testing.assert_array_equal(mine.reshape(theirs.shape), theirs)


def assert_same_sharing(params: list[Param], tensors: list[torch.Tensor]) -> None:
    """The same storage there is the same storage here, and different ones are different."""
    there = [i for i, param in enumerate(params) if param.storage.nbytes]
    numbers = [params[i].storage.key for i in there]
    theirs = [tensors[i].untyped_storage()._cdata for i in there]
    assert [numbers.index(key) for key in numbers] == [theirs.index(key) for key in theirs]


def saved(root: Any, folder: Path, protocol: int = 2) -> tuple[Checkpoint, Any]:
    path = folder / "m.pt"
    torch.save(root, path, pickle_protocol=protocol)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return formats.read(source.resolve(str(path))), torch.load(path, weights_only=False)


@quick
@given(data=st.data(), protocol=st.sampled_from([2, 3, 4, 5]))
def test_every_tensor_that_torch_load_finds(data: st.DataObject, protocol: int, tmp_path: Path):
    """What `torch.load` finds in any tree is found, in its order, as it is, and shared as it is."""
    mine, theirs = saved(data.draw(pools().flatmap(trees)), tmp_path, protocol)
    expected = found_by_torch(theirs)
    params = list(mine.params.values())
    assert len(params) == len(expected)
    for param, (_, tensor) in zip(params, expected, strict=True):
        assert_alike(param, tensor)
    assert_same_sharing(params, [tensor for _, tensor in expected])
    wanted = [name for name, _ in expected]
    for name, param in zip(wanted, params, strict=True):
        if name is not None and wanted.count(name) == 1:
            assert param.name == name
        elif name is not None:
            assert param.name.rstrip("'0123456789") == name.rstrip("'0123456789")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 0, 3), (2, 1, 3)], ids=str)
def test_each_dtype_and_shape(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path):
    """Each dtype, at each kind of shape, has torch's geometry and bits."""
    numel = int(np.prod(shape))
    size = torch.empty(0, dtype=dtype).element_size()
    tensor = torch.tensor([], dtype=dtype).set_(filled(dtype, numel * size, 7), 0, shape, torch.empty(shape).stride())
    mine, theirs = saved({"x": tensor}, tmp_path)
    assert_alike(mine.params["x"], theirs["x"])


VIEWS = {
    "transpose": lambda x: x.t(),
    "slice with steps": lambda x: x[1::2, ::3],
    "expanded": lambda x: x[:, :1].expand(6, 9),
    "diagonal": lambda x: x.diagonal(),
    "unfolded": lambda x: x.reshape(-1).unfold(0, 8, 3),
    "0-d": lambda x: x[3, 4],
    "empty": lambda x: x[6:],
    "permuted": lambda x: x.reshape(2, 3, 8).permute(2, 0, 1),
    "last row": lambda x: x[-1],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_views_share_their_storage(view: Any, tmp_path: Path):
    """A view has torch's strides and offset, and the storage of what it views."""
    base = torch.arange(48.0).reshape(6, 8)
    base = base if view is not VIEWS["expanded"] else base[:, :1].contiguous()
    mine, theirs = saved([base, view(base)], tmp_path)
    for param, tensor in zip(mine.params.values(), theirs, strict=True):
        assert_alike(param, tensor)
    assert mine.params["0"].storage.key == mine.params["1"].storage.key


def test_a_quantized_tensor_is_the_integers_that_are_stored(tmp_path: Path):
    """A tensor of `quantize_per_tensor` has its own dtype, and values of its `int_repr`."""
    tensor = torch.quantize_per_tensor(torch.arange(6.0).reshape(2, 3), 0.5, 10, torch.quint8)
    mine, theirs = saved({"q": tensor}, tmp_path)
    param = mine.params["q"]
    assert (param.dtype.name, param.shape, param.stride) == ("quint8", (2, 3), (3, 1))
    assert values.array(param).tolist() == theirs["q"].int_repr().tolist()


@pytest.mark.parametrize("how", ["conj", "neg", "both"])
def test_a_lazy_conjugate_is_never_shown_as_what_is_stored(how: str, tmp_path: Path):
    """torch stores `x.conj()` as x and a bit: its values are refused rather than shown wrong, and its tie stays."""
    x = torch.randn(3, dtype=torch.complex64)
    lazy = {"conj": x.conj(), "neg": torch._neg_view(x), "both": torch._neg_view(x.conj())}[how]
    mine, theirs = saved({"x": x, "lazy": lazy}, tmp_path)
    assert theirs["lazy"].is_conj() or theirs["lazy"].is_neg()
    assert mine.params["lazy"].storage.key == mine.params["x"].storage.key
    assert values.nested(values.array(mine.params["x"])) == torch.view_as_real(x).tolist()
    with pytest.raises(values.ParamctlError, match="when read"):
        values.array(mine.params["lazy"])


def test_a_tensor_keeps_what_was_set_on_it(tmp_path: Path):
    """A tensor among the attributes of a tensor or a Parameter is found below its name."""
    weight = torch.nn.Parameter(torch.ones(2))
    weight.scale = torch.full((1,), 3.0)
    plain = torch.zeros(2)
    plain.note = [torch.ones(4)]
    mine, theirs = saved({"w": weight, "p": plain}, tmp_path)
    assert theirs["w"].scale.item() == 3
    assert {name: param.shape for name, param in mine.params.items()} == {
        "w": (2,), "w.scale": (1,), "p": (2,), "p.note.0": (4,),
    }  # fmt: skip
    assert [param.kind for param in mine.params.values()] == ["parameter", "tensor", "tensor", "tensor"]


def test_a_whole_optimizer_names_its_state_by_position(tmp_path: Path):
    """A pickled optimizer keeps its state by Parameter; it is named as its `state_dict()` names it."""
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    mine, _ = saved(optimizer, tmp_path)
    assert [name for name in mine.params if name.startswith("state.")] == [
        f"state.{i}.{key}" for i in (0, 1) for key in ("step", "exp_avg", "exp_avg_sq")
    ]
    assert mine.params["param_groups.0.params.1"].shape == (3,)


def test_arrays_of_numpy_are_tensors_of_their_own(tmp_path: Path):
    """Arrays of any order are found with numpy's values, and equal ones are not tied; scalars are numbers."""
    root = {
        "c": np.arange(6.0).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        "big": np.arange(3, dtype=">f4"),
        "one": np.array([1], np.uint8),
        "another": np.array([1], np.uint8),
        "objects": np.array([torch.ones(5), None], dtype=object),
        "scalar": np.float32(0.5),
    }
    mine, _ = saved(root, tmp_path)
    for name in ("c", "f", "big", "one", "another"):
        np.testing.assert_array_equal(values.array(mine.params[name]), root[name])
    assert mine.params["f"].stride == (1, 2)
    assert mine.params["objects.0"].shape == (5,)
    assert mine.params["one"].storage.key != mine.params["another"].storage.key
    assert mine.extras == {"objects": [None], "scalar": 0.5}


def test_nesting_has_no_depth_that_hides_a_tensor(tmp_path: Path):
    """A tensor below a thousand lists is found, where torch can save it; what is no tensor ends in an ellipsis."""
    import sys

    root: Any = torch.ones(3)
    for _ in range(500):
        root = [root, 1]
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        torch.save(root, tmp_path / "m.pt")
    finally:
        sys.setrecursionlimit(limit)
    mine = formats.read(source.resolve(str(tmp_path / "m.pt")))
    assert [name.count("0") for name in mine.params] == [500]
    assert "…" in str(mine.extras)


def test_lone_surrogates_in_names(tmp_path: Path):
    """A name that is no Unicode is exact, where torch can save it."""
    mine, theirs = saved({"\udc80": torch.ones(1)}, tmp_path)
    assert list(mine.params) == list(theirs)


def test_a_cycle_ends(tmp_path: Path):
    """A container that holds itself gives each tensor once."""
    root: dict[str, Any] = {"w": torch.ones(2)}
    root["self"] = root
    root["list"] = [root, torch.ones(3)]
    mine, _ = saved(root, tmp_path)
    assert list(mine.params) == ["w", "list.1"]


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != torch.bool], ids=str)
def test_a_file_of_the_other_byte_order(dtype: torch.dtype, tmp_path: Path):
    """A file whose `byteorder` is big has the values that torch.load gives it, or should: it forgets its newest dtypes."""
    import zipfile

    tensor = torch.tensor([], dtype=dtype).set_(filled(dtype, 4 * torch.empty(0, dtype=dtype).element_size(), 3))
    torch.save({"x": tensor}, tmp_path / "little.pt")
    with zipfile.ZipFile(tmp_path / "little.pt") as old, zipfile.ZipFile(tmp_path / "big.pt", "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, b"big" if info.filename.endswith("byteorder") else old.read(info))
    param = formats.read(source.resolve(str(tmp_path / "big.pt"))).params["x"]
    mine = values.array(param)
    native = mine.astype(mine.dtype.newbyteorder("="))
    width = tensor.element_size() // (2 if dtype.is_complex else 1)
    swapped = np.frombuffer(raw_bytes(tensor), np.uint8).reshape(-1, width)[:, ::-1].tobytes()
    assert native.tobytes() == swapped
    if dtype not in NO_GRAD:
        assert swapped == raw_bytes(torch.load(tmp_path / "big.pt")["x"])


# ----------------------------------------------------------------------------- safetensors


SAFE = [d for d in DTYPES if d not in (torch.complex32, torch.complex128, torch.float8_e8m0fnu)]


@quick
@given(
    found=st.dictionaries(
        NAMES.filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(SAFE), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 99)),
        max_size=5,
    ),
    metadata=st.none()
    | st.dictionaries(st.text(max_size=5), st.text(max_size=9).map("no alias: {}".format), max_size=3),
)
def test_every_tensor_of_a_safetensors_file(found: Any, metadata: Any, tmp_path: Path):
    """What `load_file` finds is found: names, dtypes, shapes and bits; metadata is kept as it is."""
    tensors = {}
    for name, (dtype, shape, seed) in found.items():
        nbytes = int(np.prod(shape)) * torch.empty(0, dtype=dtype).element_size()
        tensors[name] = torch.tensor([], dtype=dtype).set_(
            filled(dtype, nbytes, seed), 0, shape, torch.empty(shape).stride()
        )
    metadata = metadata if tensors else metadata or None  # the library writes broken JSON for neither
    save_file(tensors, tmp_path / "m.safetensors", metadata=metadata)
    mine = formats.read(source.resolve(str(tmp_path / "m.safetensors")))
    theirs = load_file(tmp_path / "m.safetensors")
    assert set(mine.params) == set(theirs)
    assert mine.metadata == (metadata or {})
    for name, tensor in theirs.items():
        param = mine.params[name]
        assert (f"torch.{param.dtype.name}", param.shape, param.stride) == (
            str(tensor.dtype), tuple(tensor.shape), tuple(tensor.stride()),
        )  # fmt: skip
        assert values.array(param).tobytes() == raw_bytes(tensors[name])
    assert len({param.storage.key for param in mine.params.values()}) == len(tensors)
