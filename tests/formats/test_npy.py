"""npy and npz: what numpy wrote is what is read, nothing is unpickled, and a file that lies is refused."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from paramctl import formats, source, values
from paramctl.checkpoint import Checkpoint
from paramctl.errors import FileError

CUT = "\n\nhint: the download may have been cut short"
TENSORS = ["f2", "f4", "f8", "c8", "c16", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"]


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    made = io.BytesIO()
    np.lib.format.write_array(made, array, version, allow_pickle=True)
    return made.getvalue()


def headed(text: str | bytes, data: bytes = b"", *, version: int = 1, nbytes: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    length = struct.pack("<H" if version == 1 else "<I", len(raw) if nbytes is None else nbytes)
    return b"\x93NUMPY" + bytes([version, 0]) + length + raw + data


def said(descr: object = "<f4", fortran: object = False, shape: object = (2,)) -> str:
    return f"{{'descr': {descr!r}, 'fortran_order': {fortran!r}, 'shape': {shape!r}, }}\n"


def zipped(method: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", method) as archive:
        for name, raw in members.items():
            archive.writestr(name, raw)
    return held.getvalue()


def opened(path: Path) -> Checkpoint:
    return formats.read(source.resolve(str(path)))


def agrees(found: Checkpoint, name: str, array: np.ndarray) -> None:
    """Dtype, shape, strides and every bit are those of the array that numpy reads."""
    param = found.params[name]
    assert (str(param.dtype), param.shape) == (array.dtype.newbyteorder("=").name, array.shape)
    mine = values.array(param)
    np.testing.assert_array_equal(mine, array)
    assert mine.tobytes() == array.tobytes()
    if array.size and array.ndim:
        assert param.stride == tuple(by // array.itemsize for by in array.strides)


# ----------------------------------------------------------------------------- numpy's own

arrays = hnp.arrays(
    dtype=st.builds(lambda order, code: np.dtype(order + code), st.sampled_from("<>"), st.sampled_from(TENSORS)),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(array=arrays, order=st.sampled_from("CF"), version=st.sampled_from([(1, 0), (2, 0), (3, 0)]))
def test_an_array_is_itself(tmp_path: Path, array: np.ndarray, order: str, version: tuple[int, int]):
    """Any array of numbers, of either order of axes and of bytes, is read as numpy reads it."""
    path = tmp_path / "m"
    path.write_bytes(npy(np.asarray(array, order=order), version))
    found = opened(path)
    assert (found.format, list(found.params), found.extras) == ("npy", ["tensor"], {})
    agrees(found, "tensor", np.load(path))


@quick
@given(held=st.dictionaries(st.text("ab./é", min_size=1, max_size=5), arrays, min_size=1, max_size=4), data=st.data())
def test_an_archive_is_its_arrays(tmp_path: Path, held: dict[str, np.ndarray], data: st.DataObject):
    """Stored or deflated, an archive has the arrays that numpy finds in it, under their names."""
    path = tmp_path / "m"
    with path.open("wb") as file:
        data.draw(st.sampled_from([np.savez, np.savez_compressed]))(file, **held)
    found = opened(path)
    with np.load(path) as theirs:
        assert (found.format, list(found.params), found.extras) == ("npz", theirs.files, {})
        for name in theirs.files:
            agrees(found, name, theirs[name])


def test_a_header_longer_than_a_window(tmp_path: Path):
    """A deflated member whose header takes more than is read of it at first."""
    array = np.arange(6.0).reshape((1,) * 28 + (6,) + (1,) * 3)
    text = said("<f8", shape=array.shape) + " " * 3000
    path = tmp_path / "m"
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path.write_bytes(zipped(method, **{"w.npy": headed(text, array.tobytes())}))
        assert opened(path).params["w"].shape == array.shape
        np.testing.assert_array_equal(values.array(opened(path).params["w"]), array)


def test_arrays_end_to_end(tmp_path: Path):
    """Several arrays in one file, as equinox writes them, are called by their position; what follows is told."""
    path = tmp_path / "m"
    held = [np.arange(3.0), np.float32(7), np.array(["text"]), np.ones((2, 2), np.int8)]
    path.write_bytes(b"".join(npy(np.asarray(array)) for array in held) + b"tail")
    found = opened(path)
    assert list(found.params) == ["0", "1", "3"]
    assert found.extras == {"2": "an array of text (<U4), 1, which is not read", "trailing_nbytes": 4}
    agrees(found, "0", held[0])
    agrees(found, "3", held[3])


@pytest.mark.parametrize(("dtype", "name"), [(ml_dtypes.bfloat16, "bits16"), (ml_dtypes.float8_e4m3fn, "bits8")])
def test_what_ml_dtypes_leave(read, dtype: type, name: str):
    """Of bfloat16 and float8 an npy file keeps the bits alone, and they are shown."""
    array = np.array([1, -2], dtype)
    param = read(npy(array)).params["tensor"]
    assert param.dtype.name == name
    assert values.array(param).tobytes() == array.tobytes()


# ----------------------------------------------------------------------------- what is no tensor


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __reduce__(self):
        return (open, ("fired", "w"))


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Objects are told and not made, in a file and in an archive."""
    monkeypatch.chdir(tmp_path)
    array = np.array([Bomb()], object)
    Path("m").write_bytes(npy(array))
    assert dict(opened(Path("m")).extras) == {"tensor": "an array of objects (|O), 1, which is not read"}
    with Path("m").open("wb") as file:
        np.savez(file, bomb=array, w=np.ones(2))
    found = opened(Path("m"))
    assert list(found.params) == ["w"]
    assert found.extras == {"bomb": "an array of objects (|O), 1, which is not read"}
    assert not Path("fired").exists()


WORDS = {
    "text": (np.array([["ab"]]), "an array of text (<U2), 1×1, which is not read"),
    "bytes": (np.array(b"ab"), "an array of bytes (|S2), a scalar, which is not read"),
    "opaque": (np.zeros(2, "V5"), "an array of bytes (|V5), 2, which is not read"),
    "dates": (np.zeros(2, "M8[ns]"), "an array of dates (<M8[ns]), 2, which is not read"),
    "durations": (np.zeros(2, ">m8[25s]"), "an array of durations (>m8[25s]), 2, which is not read"),
    "long floats": (np.zeros(2, np.longdouble), "an array of floats (<f16), 2, which is not read"),
    "records": (
        np.zeros(3, [("a", "<f4"), ("b", "<i4", (2,))]),
        "an array of records (a, b), 3, which is not read",
    ),
    "many records": (
        np.zeros(3, [(f"f{index}", "<f4") for index in range(9)]),
        "an array of records (f0, f1, f2, f3, f4, f5, f6, f7, …), 3, which is not read",
    ),
    "a record of an escape": (np.zeros(1, [("\x1b", "<f4")]), "an array of records (\\x1b), 1, which is not read"),
}


@pytest.mark.parametrize(("array", "word"), WORDS.values(), ids=WORDS.keys())
def test_what_is_no_tensor_is_told(read, array: np.ndarray, word: str):
    """An array of something else is an extra in one line, in a file and in an archive."""
    found = read(npy(array))
    assert (found.params, found.extras) == ({}, {"tensor": word})
    assert read(zipped(**{"x.npy": npy(array)})).extras == {"x": word}


def test_members_that_are_no_arrays(read):
    """A member of another kind is an extra."""
    found = read(zipped(**{"w.npy": npy(np.ones(1)), "note.txt": b"hello", "folder/": b""}))
    assert (list(found.params), found.extras) == (["w"], {"note.txt": "a member of 5 bytes that is no array"})


def test_headers_by_hand(read):
    """Headers that numpy reads and does not write: other spaces, Python 2's long numbers, no comma at the end."""
    texts = [
        "{'descr':'<f4','fortran_order':False,'shape':(2L,)}",
        "  {'shape': (2,), 'descr': '<f4', 'fortran_order': False}  \n",
    ]
    for text in texts:
        assert read(headed(text, bytes(8))).params["tensor"].shape == (2,)


# ----------------------------------------------------------------------------- what is refused

MISSING = f"{CUT}: {{}} bytes are missing"
LIES: dict[str, tuple[bytes, str]] = {
    "the magic alone": (b"\x93NUMPY", "the header of the array is cut off after 6 bytes" + CUT),
    "version 4": (headed(said(), bytes(8), version=4), "the array is of npy version 4.0; 1.0 to 3.0 are read"),
    "a header beyond the file": (
        headed(said(), nbytes=60000),
        "the header of the array ends at 60,010, the file has 68" + CUT,
    ),
    "a header beyond belief": (
        headed(said(), nbytes=1 << 30, version=2),
        "the header of the array says 1,073,741,824 bytes, and 65,536 is the most that is read",
    ),
    "elements beyond the file": (
        headed(said(), bytes(7)),
        "the array ends at 76, the file has 75" + MISSING.format(1),
    ),
    "the second array beyond the file": (
        headed(said(), bytes(8)) + headed(said(), bytes(4)),
        "array 1 ends at 152, the file has 148" + MISSING.format(4),
    ),
    "a terabyte in a hundred bytes": (
        headed(said(shape=(1 << 38,))),
        "the array ends at 1,099,511,627,855, the file has 79" + MISSING.format("1,099,511,627,776"),
    ),
    "more elements than an int64 counts": (
        headed(said(shape=(1 << 40, 1 << 40, 0))),
        "the array has more elements than a tensor can have",
    ),
    "dimensions without end": (
        headed(said(shape=(1,) * 1000)),
        "the array has 1,000 dimensions, and 64 is the most there may be",
    ),
    "a negative size": (headed(said(shape=(-2,)), bytes(8)), "the array: (-2,) is no shape"),
    "a size that is true": (headed(said(shape=(True,)), bytes(8)), "the array: (True,) is no shape"),
    "a shape that is a list": (headed(said(shape=[2]), bytes(8)), "the array: [2] is no shape"),
    "an order that is a number": (
        headed(said(fortran=0), bytes(8)),
        "the array: its fortran_order is neither True nor False",
    ),
    "a key too many": (
        headed("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 1}", bytes(8)),
        "the header of the array does not say descr, fortran_order and shape, and nothing else",
    ),
    "a dtype that is none": (headed(said("<q9"), bytes(8)), "the array: '<q9' is no dtype"),
    "a dtype of words": (headed(said("float32"), bytes(8)), "the array: 'float32' is no dtype"),
    "a dtype that is a number": (headed(said(3), bytes(8)), "the array: 3 is no dtype"),
    "not a literal": (headed("{'descr': open('x')}"), "the header of the array is not a Python literal"),
    "an escape that is none": (headed("{'\\d': 1, 2}"), "the header of the array is not a Python literal"),
    "nested without end": (headed("(" * 60000), "the header of the array is not a Python literal"),
    "signs without end": (headed("-" * 60000 + "1"), "the header of the array is not a Python literal"),
    "sums without end": (headed("1" + "+1" * 30000), "the header of the array is not a Python literal"),
    "digits without end": (headed("9" * 60000), "the header of the array is not a Python literal"),
    "not text": (headed(b"{'descr': '\xff'}", version=3), "the header of the array is not a Python literal"),
    "a member of nothing": (
        zipped(**{"w.npy": b""}),
        "'w.npy' does not begin as a numpy array does",
    ),
    "a member of something else": (
        zipped(**{"w.npy": b"hello, hello, hello"}),
        "'w.npy' does not begin as a numpy array does",
    ),
    "a member whose header is cut off": (
        zipped(**{"w.npy": headed(said(), nbytes=5000)}),
        "'w.npy': its header takes 5,010 bytes, and it has 68",
    ),
    "a deflated member whose header is cut off": (
        zipped(zipfile.ZIP_DEFLATED, **{"w.npy": headed(said(), nbytes=5000)}),
        "'w.npy': its header takes 5,010 bytes, and it has 68",
    ),
    "a member of fewer elements": (
        zipped(**{"w.npy": headed(said(), bytes(7))}),
        "'w.npy': its shape takes 8 bytes, and 7 follow its header",
    ),
    "a terabyte in a deflated member": (
        zipped(zipfile.ZIP_DEFLATED, **{"w.npy": headed(said(shape=(1 << 38,)), bytes(100))}),
        "'w.npy': its shape takes 1,099,511,627,776 bytes, and 100 follow its header",
    ),
    "a member of another compression": (
        zipped(zipfile.ZIP_BZIP2, **{"w.npy": npy(np.ones(2))}),
        "'w.npy' is compressed by method 12",
    ),
}


@pytest.mark.parametrize(("data", "what"), LIES.values(), ids=LIES.keys())
def test_what_is_wrong_is_said(data: bytes, what: str, read):
    """A file that lies is refused in at most three lines, before memory is asked for."""
    read(npy(np.ones(1)))
    read(zipped(**{"w.npy": npy(np.ones(1))}))
    tracemalloc.start()
    with pytest.raises(FileError) as caught:
        read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value) == f"error: m: {what}"
    assert peak < 40 << 20


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_a_file_cut_short_anywhere_is_refused(kind: str, method: int, read):
    """No proper beginning of a file reads as a whole one."""
    whole = npy(np.arange(4, dtype=np.int8).reshape(2, 2).T)
    data = whole if kind == "npy" else zipped(method, **{"a.npy": whole})
    read(data)
    for end in range(len(data)):
        with pytest.raises(FileError) as caught:
            read(data[:end])
        assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_any_byte_changed_is_read_or_refused(method: int, read):
    """One byte of another value is no reason for anything but an answer or a FileError."""
    whole = npy(np.arange(3.0))
    for data in (whole, zipped(method, **{"a.npy": whole})):
        for at in range(0, len(data), 2):
            changed = bytearray(data)
            changed[at] ^= 0x41 if at % 4 else 0xFF
            try:
                read(bytes(changed))
            except FileError as error:
                assert len(str(error).splitlines()) <= 3  # noqa: PT017


def test_every_command_works(run, tmp_path: Path):
    """The commands that look work on a file and on an archive, stored and deflated."""
    np.save(tmp_path / "a.npy", np.arange(6.0).reshape(2, 3))
    np.savez(tmp_path / "b.npz", w=np.ones(2), text=np.array("t"))
    np.savez_compressed(tmp_path / "c.npz", w=np.ones(2))
    for path in sorted(tmp_path.iterdir()):
        for command in ("tree", "ls", "info", "show", "ties"):
            done = run(command, path)
            assert (done.code, done.err) == (0, "")
    assert run("show", tmp_path / "a.npy", "tensor[1]", "-f", "json").rows[0]["value"] == [3, 4, 5]
    assert run("show", tmp_path / "c.npz", "-f", "json").rows[0]["value"] == [1, 1]
    assert run("info", tmp_path / "b.npz", "-f", "json").json["extras"] == {
        "text": "an array of text (<U1), a scalar, which is not read"
    }
