"""GGUF: what gguf's own writer wrote is what is read, and a file that lies is refused."""

from __future__ import annotations

import struct
import tempfile
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_bytes import array_of, file, key, tensor, text
from paramctl import formats, source, values
from paramctl.dtypes import DTYPES
from paramctl.errors import FileError
from paramctl.formats import gguf as gguf_format

CUT = "\n\nhint: the download may have been cut short"
PLAIN = ["float32", "float16", "float64", "int8", "int16", "int32", "int64"]


# ----------------------------------------------------------------------------- the writer's own


def written(path: Path, *, big: bool = False, alignment: int | None = None) -> dict[str, np.ndarray]:
    """A file of gguf's writer with every plain dtype, and what is in it."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for index, dtype in enumerate(PLAIN):
        shape = (index + 1, 3, 2)[: 1 + index % 3]
        arrays[f"blk.{index}.{dtype}"] = (rng.standard_normal(shape) * 50).astype(dtype)
    endian = gguf.GGUFEndian.BIG if big else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, "llama", endianess=endian)
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_string("a.text", 'two\nlines, "quoted", é')
    writer.add_bool("a.truth", True)
    writer.add_uint8("a.uint8", 255)
    writer.add_int8("a.int8", -128)
    writer.add_uint16("a.uint16", 65535)
    writer.add_int16("a.int16", -32768)
    writer.add_uint32("a.uint32", 2**32 - 1)
    writer.add_int32("a.int32", -(2**31))
    writer.add_uint64("a.uint64", 2**64 - 1)
    writer.add_int64("a.int64", -(2**63))
    writer.add_float32("a.float32", 1e-6)
    writer.add_float64("a.float64", 1e-6)
    writer.add_array("a.few", [1, 2, 3])
    writer.add_array("a.texts", ["a", "b"])
    writer.add_array("a.many", [0.5] * 1000)
    writer.add_array("a.vocabulary", [f"token{index}" * (index % 90) for index in range(20_000)])
    for name, array in arrays.items():
        writer.add_tensor(name, array.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return arrays


@pytest.mark.parametrize("window", [1 << 19, 64])
@pytest.mark.parametrize("alignment", [None, 64, 1024])
@pytest.mark.parametrize("big", [False, True])
def test_what_was_written_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, big: bool, alignment: int | None, window: int
):
    """Names, dtypes, shapes and values of each plain dtype are those that were written, in either byte order."""
    monkeypatch.setattr(gguf_format, "_WINDOW_NBYTES", window)
    arrays = written(tmp_path / "m", big=big, alignment=alignment)
    found = formats.read(source.resolve(str(tmp_path / "m")))
    assert (found.format, list(found.params)) == ("gguf", list(arrays))
    for name, array in arrays.items():
        param = found.params[name]
        assert (str(param.dtype), param.shape) == (str(array.dtype), array.shape)
        assert param.storage.extents[0].offset % (alignment or 32) == 0
        np.testing.assert_array_equal(values.array(param), array)
    assert found.extras["byteorder"] == ("big" if big else "little")
    assert found.extras["alignment"] == (alignment or 32)
    metadata = {name.removeprefix("a."): value for name, value in found.metadata.items() if name.startswith("a.")}
    tokens = ", ".join(f'"{f"token{index}" * index}"' for index in range(8))
    assert metadata == {
        "text": 'two\nlines, "quoted", é', "truth": "true", "uint8": "255", "int8": "-128", "uint16": "65535",
        "int16": "-32768", "uint32": "4294967295", "int32": "-2147483648", "uint64": "18446744073709551615",
        "int64": "-9223372036854775808", "float32": "1e-06", "float64": "1e-06", "few": "[1, 2, 3]",
        "texts": '["a", "b"]', "many": "[0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, …] (1,000 float32s)",
        "vocabulary": f"[{tokens}, …] (20,000 strings)",
    }  # fmt: skip


# Of Q8_1 gguf says 40 bytes, as before its two floats became halves; ggml-common.h asserts 36.
SIZES = {kind: size for kind, size in gguf.GGML_QUANT_SIZES.items() if kind.name != "Q8_1"}


@pytest.mark.parametrize("kind", SIZES, ids=lambda kind: kind.name)
def test_blocks_have_their_sizes(kind: gguf.GGMLQuantizationType):
    """Every type of gguf is a dtype, with as many bytes for as many elements."""
    dtype = DTYPES[gguf_format.CODES[kind.value]]
    assert (dtype.block_numel, dtype.block_nbytes) == SIZES[kind]
    if dtype.block_numel > 1:
        assert (dtype.name, dtype.kind) == (kind.name.lower(), "quantized")


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q5_1", "BF16"])
def test_quantized_tensors_are_read(tmp_path: Path, kind: str):
    """A tensor that gguf quantized has the shape and the numbers that gguf reads in it."""
    quant = gguf.GGMLQuantizationType[kind]
    numbers = np.random.default_rng(1).standard_normal((3, 4, 64)).astype(np.float32)
    packed = gguf.quants.quantize(numbers, quant)
    writer = gguf.GGUFWriter(tmp_path / "m", "llama")
    writer.add_tensor("w", packed, raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    param = formats.read(source.resolve(str(tmp_path / "m"))).params["w"]
    assert (param.shape, param.stride, param.nbytes) == ((3, 4, 64), (256, 64, 1), packed.nbytes)
    mine = values.array(param).astype(np.float32)
    np.testing.assert_array_equal(mine, gguf.quants.dequantize(packed, quant).reshape(3, 4, 64))


def test_version_2(read):
    """Version 2 is read as version 3 is."""
    found = read(file(tensor(dims=(3, 2)), version=2))
    assert (found.params["w"].shape, found.extras["version"]) == ((2, 3), 2)


def test_a_scalar_and_an_empty_tensor(read):
    """No dimensions are a scalar; a dimension of none takes no bytes."""
    found = read(file(tensor("a", ()), tensor("b", (0, 4), 12, 32), data=bytes(4)))
    assert {name: (param.shape, param.nbytes) for name, param in found.params.items()} == {
        "a": ((), 4),
        "b": ((4, 0), 0),
    }


def test_one_hundred_and_twenty_three_tensors(read):
    """The count that looks as the first byte of a safetensors header is a count."""
    parts = [tensor(f"w{index}", (8,), 0, 32 * index) for index in range(123)]
    data = file(*parts, data=bytes(32 * 123))
    assert data[8:9] == b"{"
    assert len(read(data).params) == 123


def test_a_vocabulary_without_tensors(run, tmp_path: Path):
    """A file of metadata alone has its facts, and no tensors to list."""
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(file(key("k", 8, text("v")), keys=1, data=b""))
    shown = run("info", path, "-f", "json").json
    assert (shown["metadata"], shown["totals"]["tensors"]) == ({"k": "v"}, 0)
    for command in ("ls", "tree"):
        done = run(command, path)
        assert (done.code, done.out, done.err) == (
            2,
            "",
            f"error: {path}: no tensors in it\n\nhint: info shows what it holds\n",
        )


def test_long_text_is_cut(read):
    """A text of megabytes is told by its beginning and its length; one of an array likewise."""
    parts = [key("k", 8, text("x" * (1 << 21))), key("a", 9, array_of(8, 1, text("y" * 5000)))]
    found = read(file(*parts, keys=2))
    assert found.metadata == {"k": "x" * 1000 + "… (2,097,152 bytes)", "a": f'["{"y" * 1000}… (5,000 bytes)"]'}


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.tuples(st.sampled_from([0, 1, 7, 63, 64, 65, 300]), st.integers(1, 700)), max_size=5),
    order=st.sampled_from("<>"),
    window=st.sampled_from([64, 4096, 1 << 19]),
)
def test_strings_that_are_skipped_end_where_they_do(kinds, order, window):
    """Short and long ones in any row, whatever the window and byte order: what comes behind them is found."""
    sizes = [size for size, times in kinds for _ in range(times)]
    strings = b"".join(struct.pack(order + "Q", size) + b"\x01" * size for size in sizes)
    with tempfile.NamedTemporaryFile() as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_format, "_WINDOW_NBYTES", window)
        file.write(strings + b"behind")
        file.flush()
        with source.Reader(source.resolve(file.name)) as reader:
            cursor = gguf_format._Cursor(reader)
            cursor.order = order
            cursor.skip_strings(len(sizes))
            assert cursor.take(6) == b"behind"


def test_a_length_that_lies_is_found_among_short_strings(read):
    """Where one of thousands of strings says more bytes than there are, the file is refused."""
    strings = text("a") * 3000 + struct.pack("<Q", 1 << 60) + text("a") * 3000
    with pytest.raises(FileError, match=r"metadata 'k' ends at 1,152,921,504,606,\d\d\d,\d\d\d, the file has "):
        read(file(key("k", 9, array_of(8, 6001, strings)), tensor(), keys=1))


def test_arrays_in_arrays(read):
    """An array of arrays is told by its number, and stepped over."""
    inner = array_of(4, 2, bytes(8)) + array_of(8, 1, text("t")) + array_of(9, 1, array_of(7, 1, b"\x01"))
    found = read(file(key("k", 9, array_of(9, 3, inner)), key("l", 4, bytes(4)), keys=2))
    assert found.metadata == {"k": "[3 arrays]", "l": "0"}


@pytest.mark.parametrize(("value", "said"), [(3.4028234663852886e38, "3.4028235e+38"), (float("nan"), "nan"),
                                             (float("-inf"), "-inf"), (0.1, "0.1"), (1.0, "1.0")])  # fmt: skip
def test_a_float32_has_its_shortest_digits(read, value: float, said: str):
    """A float32 is written with the digits that tell it from its neighbours."""
    assert read(file(key("k", 6, struct.pack("<f", value)), keys=1)).metadata["k"] == said


def test_text_that_is_not_utf_8(run, tmp_path: Path):
    """Names and texts of any bytes are shown escaped, as text and as JSON."""
    path = tmp_path / "m.gguf"
    path.write_bytes(file(key("k", 8, text(b"\xff\x1b")), tensor("w\u202e"), keys=1))
    for words in (["info"], ["ls"], ["info", "-f", "json"], ["ls", "-f", "json"]):
        done = run(*words, path)
        assert (done.code, done.err) == (0, "")
        assert "\x1b" not in done.out


# ----------------------------------------------------------------------------- what is refused

LIES: dict[str, tuple[bytes, str]] = {
    "the magic alone": (b"GGUF", f"the header ends at 8, the file has 4{CUT}: 4 bytes are missing"),
    "half a header": (file()[:20], f"the header ends at 24, the file has 20{CUT}: 4 bytes are missing"),
    "version 1": (
        file(version=1),
        "GGUF of version 1; versions 2 and 3 are read\n\nhint: a newer llama.cpp converts the model again",
    ),
    "version 4": (file(version=4), "GGUF of version 4; versions 2 and 3 are read"),
    "2^60 tensors": (
        file(tensor(), tensors=1 << 60),
        "the header says 1,152,921,504,606,846,976 tensors and 0 metadata keys, and 104 bytes follow it" + CUT,
    ),
    "2^64 - 1 keys": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, (1 << 64) - 1) + bytes(8),
        "the header says 0 tensors and 18,446,744,073,709,551,615 metadata keys, and 8 bytes follow it" + CUT,
    ),
    "a key of 2^60 bytes": (
        file(struct.pack("<Q", 1 << 60) + bytes(9), keys=1),
        "metadata key 1 of 1 has a name of 1,152,921,504,606,846,976 bytes, and 65,535 is the most there may be",
    ),
    "a key beyond the file": (
        file(struct.pack("<Q", 65535) + bytes(9), keys=1),
        f"metadata key 1 of 1 ends at 65,567, the file has 128{CUT}: 65,439 bytes are missing",
    ),
    "a key twice": (file(key("k", 0, b"\0"), key("k", 0, b"\0"), keys=2), "metadata 'k' stands twice"),
    "a text of 2^60 bytes": (
        file(key("k", 8, struct.pack("<Q", 1 << 60)), keys=1),
        "metadata 'k' ends at 1,152,921,504,606,847,021, the file has 128",
    ),
    "a text beyond the file": (
        file(key("k", 8, struct.pack("<Q", 200)), keys=1),
        f"metadata 'k' ends at 245, the file has 128{CUT}: 117 bytes are missing",
    ),
    "a type that is none": (file(key("k", 13, b""), keys=1), "metadata 'k' is of type 13, which is not known"),
    "a truth of 2": (file(key("k", 7, b"\x02"), keys=1), "metadata 'k' is a truth value of 2"),
    "an array of 2^60 numbers": (
        file(key("k", 9, array_of(0, 1 << 60)), keys=1),
        "metadata 'k' says 1,152,921,504,606,846,976 uint8s, and 79 bytes follow" + CUT,
    ),
    "an array of 2^61 texts": (
        file(key("k", 9, array_of(8, 1 << 61)), keys=1),
        "metadata 'k' says 2,305,843,009,213,693,952 strings, and 79 bytes follow" + CUT,
    ),
    "an array of a type that is none": (
        file(key("k", 9, array_of(99, 1)), keys=1),
        "metadata 'k' is an array of type 99, which is not known",
    ),
    "a text in an array beyond the file": (
        file(key("k", 9, array_of(8, 9, text("") * 8 + struct.pack("<Q", 1 << 63))), keys=1),
        "metadata 'k' ends at 9,223,372,036,854,775,929, the file has 192",
    ),
    "texts in an array that run out": (
        file(key("k", 9, array_of(8, 20, text("") * 15 + text("x" * 60))), keys=1, data=b""),
        f"metadata 'k' ends at 261, the file has 256{CUT}: 5 bytes are missing",
    ),
    "arrays of 2^60 arrays": (
        file(key("k", 9, array_of(9, 1, array_of(9, 1 << 60))), keys=1),
        "metadata 'k' says 1,152,921,504,606,846,976 arrays, and 67 bytes follow" + CUT,
    ),
    "arrays in arrays without end": (
        file(key("k", 9, array_of(9, 1) * 1000), keys=1),
        "metadata 'k' has arrays in arrays, more than 16 deep",
    ),
    "an alignment of 0": (
        file(key("general.alignment", 4, bytes(4)), keys=1),
        "metadata 'general.alignment' is 0, and no power of two",
    ),
    "an alignment of 3": (
        file(key("general.alignment", 4, b"\x03\0\0\0"), keys=1),
        "metadata 'general.alignment' is 3, and no power of two",
    ),
    "an alignment below 0": (
        file(key("general.alignment", 11, b"\xff" * 8), keys=1),
        "metadata 'general.alignment' is -1, and no power of two",
    ),
    "an alignment that is a text": (
        file(key("general.alignment", 8, text("32")), keys=1),
        "metadata 'general.alignment' is no whole number",
    ),
    "an alignment of 2^63": (
        file(key("general.alignment", 10, struct.pack("<Q", 1 << 63)), tensor(), keys=1),
        "'w' ends at 9,223,372,036,854,775,816, the file has 160",
    ),
    "a name of 2^60 bytes": (
        file(struct.pack("<Q", 1 << 60) + bytes(16)),
        "tensor 1 of 1 has a name of 1,152,921,504,606,846,976 bytes, and 65,535 is the most there may be",
    ),
    "a name twice": (file(tensor(), tensor()), "'w' stands twice"),
    "a name of escapes": (file(tensor("\x1b[2J\n", code=99)), "'\\x1b[2J\\n' is of type 99, which is not known"),
    "2^32 - 1 dimensions": (
        file(text("w") + b"\xff" * 4 + bytes(16)),
        "'w' says 4,294,967,295 dimensions, and 64 is the most there may be",
    ),
    "dimensions beyond the file": (
        file(text("w") + struct.pack("<I", 64) + bytes(16), data=b""),
        f"'w' ends at 561, the file has 64{CUT}: 497 bytes are missing",
    ),
    "a type that was never used": (file(tensor(code=4)), "'w' is of type 4, which is not known"),
    "a row of half a block": (
        file(tensor(dims=(16, 2), code=2)),
        "'w' has rows of 16 elements of q4_0, which come in blocks of 32",
    ),
    "a scalar of a block": (
        file(tensor(dims=(), code=2)),
        "'w' has rows of 1 elements of q4_0, which come in blocks of 32",
    ),
    "more elements than an int64 counts": (
        file(tensor(dims=(1 << 40, 1 << 40, 0))),
        "'w' has more elements than a tensor can have",
    ),
    "a terabyte in a hundred bytes": (
        file(tensor(dims=(1 << 38,))),
        f"'w' ends at 1,099,511,627,840, the file has 128{CUT}: 1,099,511,627,712 bytes are missing",
    ),
    "an offset of 2^64 - 32": (
        file(tensor(offset=(1 << 64) - 32)),
        "'w' ends at 18,446,744,073,709,551,656, the file has 128",
    ),
    "an offset that is not aligned": (
        file(tensor(offset=8)),
        "'w' begins at byte 8 of the tensors, which is no multiple of 32",
    ),
    "an overlap": (
        file(tensor("a", (16,)), tensor("b", (8,), 0, 32)),
        "'b' begins at 128, 'a' before it ends at 160: an overlap",
    ),
    "the same bytes twice": (
        file(tensor("a", (8,)), tensor("b", (8,))),
        "'b' begins at 96, 'a' before it ends at 128: an overlap",
    ),
}


@pytest.mark.parametrize(("data", "said"), LIES.values(), ids=LIES.keys())
def test_what_is_wrong_is_said(data: bytes, said: str, read):
    """A file that lies is refused in at most three lines, before memory is asked for."""
    read(file(tensor()))
    tracemalloc.start()
    with pytest.raises(FileError) as caught:
        read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value) == f"error: m: {said}"
    assert peak < 2 << 20


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, read):
    """No proper beginning of a file reads as a whole one."""
    whole = file(key("k", 9, array_of(8, 12, text("ab") * 12)), tensor("a", (3,)), tensor("b", (4, 4), 0, 32), keys=1,
                 data=bytes(96))  # fmt: skip
    read(whole)
    for end in range(len(whole)):
        with pytest.raises(FileError) as caught:
            read(whole[:end])
        assert len(str(caught.value).splitlines()) <= 3


def test_any_byte_changed_is_read_or_refused(read):
    """One byte of another value is no reason for anything but an answer or a FileError."""
    whole = file(key("k", 9, array_of(8, 12, text("ab") * 12)), key("n", 9, array_of(9, 1, array_of(5, 2, bytes(8)))),
                 key("general.alignment", 4, b"\x20\0\0\0"), tensor("a", (3,)), tensor("b", (32, 1), 8, 32), keys=3,
                 data=bytes(128))  # fmt: skip
    read(whole)
    for at in range(4, len(whole) - 128):
        for value in (1, 0xFF):
            changed = bytearray(whole)
            changed[at] ^= value
            try:
                read(bytes(changed))
            except FileError as error:
                assert len(str(error).splitlines()) <= 3  # noqa: PT017
