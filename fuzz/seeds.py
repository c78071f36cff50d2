"""What the fuzz begins with: small files of every format, made by the libraries that write them.

What is mutated is a part of an archive or folder, which is packed anew each time: a change of a pickle's opcode does
not first have to make a zip's directory right again.
"""

from __future__ import annotations

import functools
import io
import json
import struct
import sys
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

ROOT = Path(__file__).parent.parent
WHOLE = ""  # the part that is the file itself

Pack = Literal["file", "zip", "tar", "safetensors", "npy", "folder"]
Parts = dict[str, bytes]


class Reader(NamedTuple):
    """What is fuzzed: how its parts become a file or a folder, and those parts, as real libraries make them."""

    pack: Pack
    bases: Callable[[], list[Parts]]
    words: Callable[[], tuple[bytes, ...]]  # that mutations may write


@functools.cache
def _tests() -> None:
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "formats")]


def _members(data: bytes) -> Parts:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _whole(*files: bytes) -> list[Parts]:
    return [{WHOLE: data} for data in files]


def _folder(make: Callable[[Path], object]) -> Parts:
    with tempfile.TemporaryDirectory() as name:
        make(Path(name))
        return {path.name: path.read_bytes() for path in sorted(Path(name).iterdir())}


# ----------------------------------------------------------------------------- torch


def _objects() -> list[Any]:
    import numpy as np  # noqa: PLC0415 - the fuzzed process has no torch
    import torch  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.LSTM(2, 2))
    optimizer = torch.optim.Adam(net[0].parameters())
    net[0](torch.ones(1, 3)).sum().backward()
    optimizer.step()
    base = torch.arange(12.0).reshape(3, 4)
    tensor = torch.arange(4.0).reshape(2, 2)
    return [
        net.state_dict(),
        {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "args": {"lr": (0.1, None)}},
        net,
        {"a": base, "b": base.t(), "c": base[1:, ::2], "d": base.expand(2, 3, 4), "e": torch.ones(0, 3)},
        {str(d): torch.zeros(2).to(d) for d in (torch.bfloat16, torch.int8, torch.complex64, torch.float8_e4m3fn)},
        {"coo": tensor.to_sparse(), "csr": tensor.to_sparse_csr(), "conj": tensor.to(torch.complex64).conj()},
        {
            "q": torch.quantize_per_tensor(tensor, 0.5, 1, torch.qint8),
            "p": torch.quantize_per_channel(tensor, torch.ones(2), torch.zeros(2), 0, torch.quint8),
            "nested": torch.nested.nested_tensor([torch.ones(2), torch.zeros(1)]),
            "meta": torch.ones(2, device="meta"),
            "parameter": nn.Parameter(tensor),
        },
        {
            "array": np.arange(6, dtype=">i4").reshape(2, 3),
            "fortran": np.asfortranarray(np.ones((2, 3), np.float16)),
            "scalar": np.float32(2),
            "objects": np.array([1, "a", None], dtype=object),
            "texts": np.array(["ab", "c"]),
            "time": np.datetime64("2020-01-01"),
            "record": np.zeros(2, [("a", "<f4"), ("b", "i1", 2)]),
        },
        [OrderedDict(a=1), {1, 2}, frozenset([3]), b"bytes", bytearray(b"b"), 1 << 70, 1.5, 2 + 1j, torch.Size([1])],
    ]


def _saved(value: Any, **how: Any) -> bytes:
    import torch  # noqa: PLC0415

    held = io.BytesIO()
    torch.save(value, held, **how)
    return held.getvalue()


def _zips() -> list[bytes]:
    return [_saved(value) for value in _objects()]


def _pickles() -> list[Parts]:
    found = []
    for protocol in (2, 4):
        for value in _objects():
            parts = _members(_saved(value, pickle_protocol=protocol))
            found.append({name: raw for name, raw in parts.items() if "/data" in name})
    return found


def _zip_files() -> list[Parts]:
    """The raw archives, the smallest of them, plain and deflated and with a comment."""
    found = []
    for data in sorted(_zips(), key=len)[:4]:
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.comment = b"a comment"
            for name, raw in _members(data).items():
                archive.writestr(name, raw)
        found += [data, held.getvalue()]
    return _whole(*found)


def _legacy() -> list[Parts]:
    _tests()
    import test_torch_legacy as old  # noqa: PLC0415

    plain = [_saved(v, _use_new_zipfile_serialization=False, pickle_protocol=p) for v in _objects()[:7] for p in (2, 4)]
    return _whole(*plain, old.stream(old.root(a=old.tensor(old.pid()), b=old.tensor(old.pid()))))


def _tars() -> list[Parts]:
    _tests()
    import test_torch_tar as old  # noqa: PLC0415
    import torch  # noqa: PLC0415

    base = torch.arange(6.0)
    return [old.members({"a": base, "b": base[2:], "c": [base.reshape(2, 3).t(), 3]})]


def _tar_files() -> list[Parts]:
    _tests()
    import test_torch_tar as old  # noqa: PLC0415

    return _whole(*(old.tar(parts, layout) for parts in _tars() for layout in (0, 1, 2)))


def _scripts() -> list[Parts]:
    _tests()
    import test_torchscript as scripts  # noqa: PLC0415

    return [_members(scripts.model(name)) for name in ("scripted", "half", "recurrent", "quantized")]


def _exports() -> list[Parts]:
    _tests()
    import test_torch_export as exports  # noqa: PLC0415

    return [_members(data) for data in (exports.saved(), exports.of_torch_2_8(), exports.of_torch_2_7())]


def _dcp() -> list[Parts]:
    _tests()
    import torch  # noqa: PLC0415
    import torch.distributed.checkpoint as dcp  # noqa: PLC0415

    base = torch.arange(12.0).reshape(3, 4)
    nested = {"a": base.t(), "model": {"w": torch.ones(2)}, "epoch": 3, "l": [torch.ones(1), "x"]}
    return [
        _folder(lambda at, value=value: dcp.save(value, checkpoint_id=at, no_dist=True))
        for value in (nested, {"a": base})
    ]


# ----------------------------------------------------------------------------- others


def _safetensors() -> list[Parts]:
    import numpy as np  # noqa: PLC0415
    from safetensors.numpy import save  # noqa: PLC0415

    one = save({"a": np.ones((2, 3), np.float32), "b.c": np.zeros(4, np.int8)}, {"format": "pt", "x": "y"})
    two = save({f"layers.{i}.w": np.ones(1, np.float16) for i in range(3)})
    tied = save({"a": np.ones(2, np.float32)}, {"b": "a", "tied": '{"c": "a"}'})
    packed = json.dumps({"q": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]}}).encode()
    return _whole(one, two, tied, struct.pack("<Q", len(packed)) + packed + bytes(4))


def _headers() -> list[Parts]:
    """Files of safetensors as header and data: the header's length is right whatever becomes of it."""
    files = [parts[WHOLE] for parts in _safetensors()]
    ends = [8 + int.from_bytes(data[:8], "little") for data in files]
    return [{"header": data[8:end], "data": data[end:]} for data, end in zip(files, ends, strict=True)]


def _array_headers() -> list[Parts]:
    """As `_headers`, of npy; the part's first bytes are its version."""
    found = []
    for data in _arrays():
        begin = 10 if data[6] == 1 else 12
        end = begin + int.from_bytes(data[8:begin], "little")
        found.append({"header": data[6:8] + data[begin:end], "data": data[end:]})
    return found


def _gguf() -> list[Parts]:
    _tests()
    import gguf  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415
    import test_gguf as built  # noqa: PLC0415

    found = []
    for endian in gguf.GGUFEndian:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "m.gguf")
            writer = gguf.GGUFWriter(path, "llama", endianess=endian)
            writer.add_string("a.text", "two\nlines")
            writer.add_bool("a.truth", val=True)
            writer.add_float64("a.float64", 1e-6)
            writer.add_array("a.texts", ["a", "b"])
            writer.add_array("a.few", [1, 2, 3])
            writer.add_tensor("blk.0.w", np.ones((2, 3), np.float32))
            writer.add_tensor("blk.1.w", np.ones(4, np.int16))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            found.append(path.read_bytes())
    nested = built.key("n", 9, built.array_of(9, 2, built.array_of(4, 1, b"abcd") * 2))
    blocks = [built.file(built.tensor(dims=(256,), code=code), data=bytes(512)) for code in (2, 3, 8, 10, 12, 14, 20)]
    return _whole(*found, *blocks, built.file(nested, built.tensor(), keys=1), built.file(built.tensor(), version=2))


def _arrays() -> list[bytes]:
    import numpy as np  # noqa: PLC0415

    found = []
    for array, version in (
        (np.ones((2, 3), "<f4"), (1, 0)),
        (np.asfortranarray(np.ones((2, 3), ">i8")), (2, 0)),
        (np.zeros(2, [("a", "<f4"), ("é", "i1", 2)]), (3, 0)),
        (np.array(["ab", "c"]), (1, 0)),
        (np.array(2.5, "f2"), (1, 0)),
    ):
        held = io.BytesIO()
        np.lib.format.write_array(held, array, version)
        found.append(held.getvalue())
    return found


def _npz() -> list[Parts]:
    return [{f"a{i}.npy": raw for i, raw in enumerate(_arrays())} | {"note.txt": b"x"}]


def _shards() -> list[Parts]:
    _tests()
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from safetensors.numpy import save  # noqa: PLC0415

    def parts(stem: str, suffix: str, shards: list[bytes]) -> Parts:
        names = [f"{stem}-{i + 1:05}-of-00002.{suffix}" for i in range(2)]
        where = {"model.embed_tokens.weight": names[0], "b": names[1]}
        index = {"metadata": {"total_size": 32}, "weight_map": where}
        config = {"tie_word_embeddings": True, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        texts = {f"{stem}.{suffix}.index.json": index, "config.json": config}
        return {k: json.dumps(v).encode() for k, v in texts.items()} | dict(zip(names, shards, strict=True))

    safe = [save({"model.embed_tokens.weight": np.ones((2, 2), np.float32)}), save({"b": np.ones(4, np.float32)})]
    bins = [_saved({"model.embed_tokens.weight": torch.ones(2, 2)}), _saved({"b": torch.ones(4)})]
    return [parts("model", "safetensors", safe), parts("pytorch_model", "bin", bins)]


def _files() -> list[Parts]:
    """A file of each format that is one."""
    return [
        *_zip_files()[:2],
        *_legacy()[:1],
        *_tar_files()[:1],
        *_safetensors()[:2],
        *_gguf()[:1],
        *_whole(_arrays()[0]),
    ]


_PATTERNS = (
    "0.weight", "layers.0", "*.bias", "layers.{0,1}.*", "re:.*\\.(q|k)_proj\\.", "!*.bias", "[0].weight",
    "0.weight[0, :4]", "*.bias[:]", "layers.[0-31].*", "[!a-c]*", "a\\x1b", "{a,{b,c}}?", "a=b[::2]", "[-1]",
)  # fmt: skip
_ASSIGNMENTS = (
    "0.weight[:] += 1", "0.weight[0,0] = 42", "*.bias = 0", "a=b = nan", "0.bias = [1, 2.5]", "0.weight *= 1e-3",
    "0.weight = 0.weight[0]", "0.bias = 1+2j", "0.bias -= -inf", "0.weight = [[1, 2, 3], [True, False, 3]]",
)  # fmt: skip
_SCHEMES = (
    "xavier", "normal(std=0.01)", "constant(42)", 'kaiming_normal(nonlinearity="relu")', "uniform(-1, b=1)",
    "default", "eye", "sparse(sparsity=0.1)", "trunc_normal(a=-2, b=2)", "zeros", "orthogonal(gain=2)",
)  # fmt: skip


def _texts(texts: tuple[str, ...]) -> list[Parts]:
    return _whole(*(text.encode() for text in texts))


# ----------------------------------------------------------------------------- what mutations may write


def _pickle_words() -> tuple[bytes, ...]:
    _tests()
    import file_builders as built  # noqa: PLC0415

    names = (
        "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v3",
        "torch._utils _rebuild_qtensor", "torch._utils _rebuild_parameter",
        "torch._utils _rebuild_parameter_with_state",
        "torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_nested_tensor",
        "torch._utils _rebuild_meta_tensor_no_storage", "torch._utils _rebuild_device_tensor_from_numpy",
        "torch._utils _rebuild_wrapper_subclass", "torch._tensor _rebuild_from_type_v2", "torch FloatStorage",
        "torch QInt8Storage", "torch.storage UntypedStorage", "torch float32", "torch Size", "torch device",
        "torch per_channel_affine", "torch.serialization _get_layout", "torch.nn.parameter Parameter",
        "collections OrderedDict", "collections defaultdict", "collections Counter", "builtins set",
        "builtins frozenset", "builtins bytearray", "builtins complex", "builtins getattr", "builtins eval",
        "builtins dict", "builtins list", "builtins tuple", "builtins object", "os system", "copyreg _reconstructor",
        "numpy dtype", "numpy ndarray", "numpy._core.multiarray _reconstruct", "numpy._core.multiarray scalar",
        "numpy._core.numeric _frombuffer", "_codecs encode", "functools partial", "a B",
        "torch.distributed.tensor DTensor", "torch.distributed.checkpoint.metadata Metadata",
        "torch.distributed.checkpoint.metadata TensorStorageMetadata", "torch.autograd.variable Variable",
    )  # fmt: skip
    opcodes = (
        b"}", b"]", b")", b"(", b"t", b"R", b"b", b"s", b"u", b"a", b"e", b"N", b"\x88", b"\x81", b"\x92", b"\x8f",
        b"\x90", b"\x91", b"\x93", b"\x85", b"\x86", b"\x87", b"0", b"1", b"2", b"o", b"Q", b"\x94", b"q\x01",
        b"h\x01", b"d", b"l", b"p0\n", b"g0\n", b"I01\n", b"L5L\n", b"F1.5\n", b"S'a'\n", b"Va\n", b"P0\n",
        b"G\x7f\xf8\0\0\0\0\0\0", b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\0", b"J\xff\xff\xff\xff", b"K\x02",
        b"2\x86", b"2\x85R", b"}2s", b"]2a", b")\x81", b")R", b"C\x02ab",
        b"J\xff\xff\xff\x7f", b"K\x00", b"K\x01", b"(K\x02K\x03t", b"(K\x02t", b"(t", b"(N]}t", b"(K\xffl",
        b"X\1\0\0\0a", b"X\0\0\0\0", b"X\3\0\0\0a.b", b"X\3\0\0\0\xed\xa0\x80", b"ca\nB\n)R", b"ca\nB\n)R}b",
        b"}(X\1\0\0\0aK\1u", b"](]2ae", b"G\x7f\xf0\0\0\0\0\0\0", b"C\0", b"\x96\x02\0\0\0\0\0\0\0ab",
    )  # fmt: skip
    keys = (
        "_metadata",
        "_parameters",
        "_modules",
        "_buffers",
        "state",
        "param_groups",
        "params",
        "storage",
        "__class__",
    )
    built_words = (
        *(built.glob(*name.split()) for name in names),
        *map(built.text, keys),
        built.storage(), built.storage("9", 1 << 62), built.tensor(),
        built.tensor((2,), (0,)), built.tensor((0,), (1 << 62,)), built.tensor((1,) * 70),
        built.tensor((2, 0)), built.tensor((1 << 40,), (0,)),
    )  # fmt: skip
    return (*opcodes, *built_words, *_NUMBERS)


_JSON = (
    b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b'"F32"', b'"F4"', b'"BF16"', b'"F8_E4M3"', b'"C64"',
    b"[0,4]", b"[]", b"{}", b"null", b"true", b"-1", b"1e400", b"NaN", b"18446744073709551616", b'"\\ud800"',
    b'"\\u0000"',
    b'"weight_map"', b'"metadata"', b'"../a"', b'"total_size"', b'"tensors"', b'"config"', b'"meta"', b'"as_int"',
    b"[[[[[[[[[[[[[[[[", b'":', b'"a":', b",", b"]", b"}",
)  # fmt: skip
_NUMPY = (
    b"'descr'", b"'fortran_order'", b"'shape'", b"True", b"(2,)", b"()", b"(-1,)", b"'<f4'", b"'|O'", b"'|V4'",
    b"'<U2'",
    b"[('a', '<f4')]", b"[('a', '<f4', (2,))]", b"9999999999999999999", b"((((((((", b"--------", b"{**{}}", b"1j",
)  # fmt: skip
_GRAMMAR = (
    b"[0]", b"[-1]", b"[:", b"::", b",", b"]", b"{", b"}", b"re:", b"!", b"*", b"?", b"\\", b"\\x1b", b"\\u0000",
    b"...",
    b"(?:", b"(a+)+", b"{0,1}", b"[0-31]", b"[!a", b"0.weight", b"=", b"+=", b"/=", b"nan", b"1e999", b"((((((((", b"-",
    b"0b1", b"1_0", b"None", b"True", b"'a'", b"std=", b"(", b")", b"a=", b"**{}", b"*()", b"9" * 40,
)  # fmt: skip

_NUMBERS = (*(struct.pack("<q", n) for n in (-1, 0, 1, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1)), b"\xff" * 4)
_ZIP = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"\x01\0\x10\0", *_NUMBERS)

READERS: dict[str, Reader] = {
    "pickle": Reader("zip", _pickles, _pickle_words),
    "torch-zip": Reader("file", _zip_files, lambda: _ZIP),
    "torchscript": Reader("zip", _scripts, _pickle_words),
    "torch-export": Reader("zip", _exports, lambda: _JSON),
    "torch-legacy": Reader("file", _legacy, _pickle_words),
    "torch-tar": Reader("tar", _tars, lambda: _NUMBERS),
    "tar-file": Reader("file", _tar_files, lambda: _NUMBERS),
    "safetensors": Reader("file", _safetensors, lambda: _JSON),
    "gguf": Reader("file", _gguf, lambda: _NUMBERS),
    "safetensors-header": Reader("safetensors", _headers, lambda: _JSON),
    "npy-header": Reader("npy", _array_headers, lambda: _NUMPY),
    "npy": Reader("file", lambda: _whole(*_arrays()), lambda: _NUMPY),
    "npz": Reader("zip", _npz, lambda: _NUMPY),
    "sharded": Reader("folder", _shards, lambda: _JSON),
    "dcp": Reader("folder", _dcp, _pickle_words),
    "check": Reader("zip", lambda: [*_pickles(), *_scripts()], _pickle_words),
    "check-file": Reader("file", _files, lambda: (*_ZIP, *_JSON)),
    "calls": Reader("file", lambda: _whole(*(next(iter(p.values())) for p in _pickles())), _pickle_words),
    "document": Reader("file", lambda: _whole(*(next(iter(p.values())) for p in _pickles())), _pickle_words),
    "select": Reader("file", lambda: _texts(_PATTERNS), lambda: _GRAMMAR),
    "assign": Reader("file", lambda: _texts(_ASSIGNMENTS), lambda: _GRAMMAR),
    "init": Reader("file", lambda: _texts(_SCHEMES), lambda: _GRAMMAR),
}
