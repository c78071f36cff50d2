"""The bytes of a storage, where they lie in pieces."""

from __future__ import annotations

import contextlib
import itertools
import operator
import os
import random
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramctl import boxes, contents
from paramctl.checkpoint import Extent, Param, Storage, contiguous
from paramctl.dtypes import DTYPES
from paramctl.errors import FileError, ParamctlError

NUMPY = {"uint8": "u1", "float16": "f2", "float32": "f4", "float64": "f8", "complex128": "c16"}


def whole(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """An array whose every byte matters."""
    made = np.dtype(NUMPY[dtype])
    raw = random.Random(0).randbytes(int(np.prod(shape)) * made.itemsize)
    return np.frombuffer(raw, made).reshape(shape)


def in_pieces(folder: Path, array: np.ndarray, cut: list, dtype: str) -> Param:
    """The array as a param of which each box lies in the file somewhere, in no order."""
    extents, held = [], b""
    for box in cut:
        part = array[tuple(slice(start, start + size) for start, size in box)]
        held += b"?" * 3
        extents.append(Extent(str(folder / "pieces"), len(held), part.nbytes, box=tuple(box)))
        held += np.ascontiguousarray(part).tobytes()
    (folder / "pieces").write_bytes(held)
    random.Random(1).shuffle(extents)
    return Param("w", DTYPES[dtype], array.shape, contiguous(array.shape), Storage("w", array.nbytes, tuple(extents)))


def grid(shape: tuple[int, ...], cuts: tuple[tuple[int, ...], ...]) -> list:
    axes = []
    for size, at in zip(shape, cuts, strict=True):
        edges = [0, *sorted(at), size]
        axes.append([(a, b - a) for a, b in itertools.pairwise(edges) if b > a])
    return list(itertools.product(*axes))


def swept(param: Param, nbytes: int, step: int) -> bytes:
    """All bytes through a window, so many at a time."""
    with contents.Window() as window:
        return b"".join(bytes(window.read(param, at, min(at + step, nbytes))) for at in range(0, nbytes, step))


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """How many bytes each read of a file was for."""
    told: list[int] = []
    fill = contents.fill
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            contents, "fill", lambda fd, path, of, at, view: (told.append(len(view)), fill(fd, path, of, at, view))
        )
        yield told


LAYOUTS = {
    "rows": ((5, 4), ((2,), ())),
    "uneven rows": ((7, 3), ((3, 6), ())),
    "columns": ((5, 4), ((), (1,))),
    "one column each": ((6, 4), ((), (1, 2, 3))),
    "a grid": ((5, 7), ((2,), (3, 5))),
    "three axes": ((4, 5, 6), ((1,), (2, 3), (4,))),
    "the middle axis": ((4, 6, 3), ((), (2,), ())),
    "the last of four": ((2, 3, 4, 5), ((), (), (), (2,))),
    "a vector": ((9,), ((4,),)),
    "axes of one": ((1, 6, 1), ((), (3,), ())),
}


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_make_the_tensor(tmp_path: Path, layout: str, dtype: str):
    """Boxes come together as the array that they were cut from, by every layout and size of element."""
    shape, cuts = LAYOUTS[layout]
    array = whole(shape, dtype)
    param = in_pieces(tmp_path, array, grid(shape, cuts), dtype)
    assert contents.read(param, 0, array.nbytes) == array.tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_part_is_that_part_of_the_whole(tmp_path: Path, layout: str):
    """Any range of bytes is the same whether the tensor lies in pieces or not."""
    shape, cuts = LAYOUTS[layout]
    array = whole(shape)
    param = in_pieces(tmp_path, array, grid(shape, cuts), "float32")
    for start, end in itertools.combinations(range(0, array.nbytes + 1, 13), 2):
        assert contents.read(param, start, end) == array.tobytes()[start:end]


def drawn(data: st.DataObject, folders: pytest.TempPathFactory) -> tuple[np.ndarray, Param, int, int]:
    """An array, the same as a tensor that lies in a grid of pieces, and a range of its bytes."""
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    cuts = tuple(tuple(data.draw(st.sets(st.integers(0, size)))) for size in shape)
    dtype = data.draw(st.sampled_from(sorted(NUMPY)))
    array = whole(shape, dtype)
    param = in_pieces(folders.mktemp("p", numbered=True), array, grid(shape, cuts), dtype)
    start = data.draw(st.integers(0, array.nbytes))
    return array, param, start, data.draw(st.integers(start, array.nbytes))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_grid_is_put_together(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    """However axes are cut, and whatever range is asked for, the bytes are those of the array."""
    array, param, start, end = drawn(data, tmp_path_factory)
    assert contents.read(param, 0, array.nbytes) == array.tobytes()
    assert contents.read(param, start, end) == array.tobytes()[start:end]
    step = data.draw(st.integers(1, array.nbytes + 1))
    with counted() as told:
        assert swept(param, array.nbytes, step) == array.tobytes()
    assert sum(told) == array.nbytes


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_is_put_is_what_is_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    """Any range that is written is read again, and all else is as it was, however axes are cut."""
    array, param, start, end = drawn(data, tmp_path_factory)
    expected = bytearray(array.tobytes())
    piece = bytearray(data.draw(st.binary(min_size=end - start, max_size=end - start)))

    def put(extent: Extent, offset: int, put_there: bytearray) -> None:
        with Path(extent.path).open("r+b") as file:
            file.seek(offset)
            file.write(put_there)

    boxes.Boxes(param, contents.read_range).write(start, piece, put)
    expected[start:end] = piece
    assert contents.read(param, 0, len(expected)) == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.randoms(), st.sampled_from(sorted(NUMPY)))
def test_strides_are_undone(shape: list[int], rng: random.Random, dtype: str):
    """A piece that lies transposed, as channels-last, is put in row-major order."""
    order = rng.sample(range(len(shape)), len(shape))
    array = whole(tuple(shape), dtype).transpose(order)
    raw = bytearray(whole(tuple(shape), dtype).tobytes())
    stride = tuple(by // array.itemsize for by in array.strides)
    ordered = boxes._turned(raw, None, array.shape, stride, array.itemsize)
    assert ordered == np.ascontiguousarray(array).tobytes()
    assert boxes._turned(ordered, bytearray(len(raw)), array.shape, stride, array.itemsize) == raw


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9)), max_size=4))
def test_elements_that_share_bytes_are_known(axes: list[tuple[int, int]]):
    """Where no two may share, none do; and of those in any order of the axes it is known that they do not."""
    sizes, stride = tuple(size for size, _ in axes), tuple(by for _, by in axes)
    places = [sum(map(operator.mul, at, stride)) for at in itertools.product(*map(range, sizes))]
    assert boxes._may_share(sizes, stride) or len(set(places)) == len(places)
    array = np.zeros(sizes or (1,)).transpose()
    assert not boxes._may_share(array.shape, tuple(by // array.itemsize for by in array.strides))


def test_an_expanded_piece_is_repeated():
    """A stride of 0 gives one element again and again."""
    assert boxes._turned(bytearray(b"abcd"), None, (3, 2), (0, 1), 2) == b"abcd" * 3
    assert boxes._turned(bytearray(b"ab"), None, (2, 2), (0, 0), 2) == b"ab" * 4


def test_only_the_piece_that_is_wanted_is_opened(tmp_path: Path):
    """A range that lies in one piece does not open the file of another, which may not be there."""
    array = whole((4, 3))
    param = in_pieces(tmp_path, array, [((0, 2), (0, 3))], "float32")
    missing = Extent(str(tmp_path / "nowhere"), 0, 24, box=((2, 2), (0, 3)))
    param = param._replace(storage=param.storage._replace(extents=(*param.storage.extents, missing)))
    assert contents.read(param, 4, 20) == array.tobytes()[4:20]
    with pytest.raises(ParamctlError, match="nowhere: no such file or directory"):
        contents.read(param, 4, 28)


def test_a_piece_that_is_too_short_is_named(tmp_path: Path):
    array = whole((4, 3))
    param = in_pieces(tmp_path, array, [((0, 4), (0, 3))], "float32")
    short = param.storage.extents[0]._replace(nbytes=40)
    with pytest.raises(ParamctlError) as caught:
        contents.read(param._replace(storage=param.storage._replace(extents=(short,))), 0, 48)
    assert str(caught.value) == "error: w: a piece of it is 40 bytes, too few"


def test_pieces_without_boxes_follow_each_other(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"0123")
    (tmp_path / "b").write_bytes(b"4567")
    extents = (Extent(str(tmp_path / "a"), 1, 3), Extent(str(tmp_path / "b"), 0, 2))
    param = Param("w", DTYPES["uint8"], (5,), (1,), Storage("w", 5, extents))
    assert contents.read(param, 0, 5) == b"12345"
    assert contents.read(param, 1, 4) == b"234"


# ----------------------------------------------------------------------------- one buffer, used again


def deflated(folder: Path, raw: bytes, skip: int = 0, *, nbytes: int = -1, cut: int = 0, name: str = "packed") -> Param:
    """A storage that is the deflated bytes of a file from the fifth on."""
    made = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = made.compress(b"h" * skip + raw) + made.flush()
    packed = packed[: len(packed) - cut]
    (folder / name).write_bytes(b"????" + packed)
    extent = Extent(str(folder / name), 4, len(packed), "deflate", skip)
    return Param("w", DTYPES["uint8"], (len(raw),), (1,), Storage("w", len(raw) if nbytes < 0 else nbytes, (extent,)))


NUMBERS = np.random.default_rng(0).integers(0, 5, 20_000, np.uint8).tobytes()


@pytest.mark.parametrize("skip", [0, 3, 128])
@pytest.mark.parametrize("step", [1000, 7777, 20_000])
@pytest.mark.parametrize("taken", [1, 100, 1 << 18])
def test_a_deflated_storage_is_inflated_as_it_goes(tmp_path: Path, monkeypatch, skip: int, step: int, taken: int):
    """From its first byte to its last, in parts of any length, each packed byte read once."""
    monkeypatch.setattr(contents, "_PACKED_NBYTES", taken)
    param = deflated(tmp_path, NUMBERS, skip)
    with counted() as told:
        assert swept(param, len(NUMBERS), step) == NUMBERS
    assert sum(told) <= param.storage.extents[0].nbytes
    assert max(told) <= taken


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20_000), st.integers(0, 20_000)), max_size=12))
def test_parts_in_any_order(tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, int, int]]):
    """Forwards, backwards, and from one storage to another, a part is that part."""
    folder = tmp_path_factory.mktemp("p", numbered=True)
    held = (NUMBERS, NUMBERS[::-1])
    params = [deflated(folder, raw, 5, name=str(i)) for i, raw in enumerate(held)]
    with contents.Window() as window:
        for which, a, b in parts:
            start, end = sorted((a, b))
            assert window.read(params[which], start, end) == held[which][start:end]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"nbytes": 20_001}, "w: its bytes inflate to fewer than 20,001"),
        ({"cut": 50}, "w: its bytes inflate to fewer than 20,000"),
        ({"nbytes": 1 << 40}, r"w: its 7,\d\d\d bytes would inflate to 1,099,511,627,776"),
    ],
)
def test_deflated_bytes_that_are_not_there(tmp_path: Path, more: dict, said: str):
    """What inflates to less than is said is an error, and again when it is asked for again."""
    param = deflated(tmp_path, NUMBERS, **more)
    with contents.Window() as window:
        for _ in range(2):
            with pytest.raises(ParamctlError, match=f"^error: {said}$"):
                window.read(param, 0, param.storage.nbytes if param.storage.nbytes < 1 << 30 else 10)


def test_bytes_that_do_not_inflate(tmp_path: Path, monkeypatch):
    """Damage is told, and what was read before it is not told as what comes after."""
    param = deflated(tmp_path, NUMBERS)
    whole = (tmp_path / "packed").read_bytes()
    monkeypatch.setattr(contents, "_PACKED_NBYTES", 1000)
    with contents.Window() as window:
        assert window.read(param, 0, 1000) == NUMBERS[:1000]
        (tmp_path / "packed").write_bytes(whole[:3000] + random.Random(0).randbytes(len(whole) - 3000))
        with pytest.raises(ParamctlError, match=r"^error: w: its bytes do not inflate: Error -3 "):
            window.read(param, 1000, len(NUMBERS))
        (tmp_path / "packed").write_bytes(whole)
        assert window.read(param, 1000, len(NUMBERS)) == NUMBERS[1000:]


def stored(path: Path, raw: bytes) -> Param:
    path.write_bytes(raw)
    return Param(
        "w", DTYPES["uint8"], (len(raw),), (1,), Storage(path.name, len(raw), (Extent(str(path), 0, len(raw)),))
    )


def test_a_buffer_that_is_used_again(tmp_path: Path):
    """A part is good until the next call, and takes no memory of its own."""
    param = stored(tmp_path / "a", NUMBERS)
    with contents.Window() as window:
        first = window.read(param, 0, 100)
        assert first == NUMBERS[:100]
        second = window.read(param, 100, 150)
        assert (first[:50], second) == (second, NUMBERS[100:150])


def test_files_are_few_and_closed(tmp_path: Path):
    """No more files are open than there may be, and none once the window is closed."""

    def opened() -> int:
        links = (os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
        return sum(link.startswith(str(tmp_path)) for link in links)

    params = [stored(tmp_path / str(i), bytes([i]) * 10) for i in range(10)]
    packed = deflated(tmp_path, NUMBERS)
    with contents.Window(files=3) as window:
        for _ in range(2):
            for i, param in enumerate(params):
                assert window.read(param, 2, 5) == bytes([i]) * 3
                assert opened() <= 3
                assert window.read(packed, 100 * i, 100 * i + 100) == NUMBERS[100 * i :][:100]
        assert opened() == 3
    assert opened() == 0


def test_a_file_that_shrinks_is_an_error(tmp_path: Path):
    """Bytes that were there and are not are missed when they are read, not guessed."""
    param = stored(tmp_path / "a", NUMBERS)
    with contents.Window() as window:
        assert window.read(param, 0, 100) == NUMBERS[:100]
        os.truncate(tmp_path / "a", 150)
        assert window.read(param, 100, 150) == NUMBERS[100:150]
        with pytest.raises(FileError, match=r"/a: it ends before the bytes of w$"):
            window.read(param, 100, 151)


def test_a_file_that_is_gone_is_an_error(tmp_path: Path):
    """Its path and the reason."""
    param = stored(tmp_path / "a", NUMBERS)
    (tmp_path / "a").unlink()
    with (
        contents.Window() as window,
        pytest.raises(FileError, match=f"^error: {re.escape(str(tmp_path))}/a: no such file"),
    ):
        window.read(param, 0, 1)


def test_what_is_read_is_told(tmp_path: Path):
    """For a line of progress: of memory as of files."""
    param = stored(tmp_path / "a", NUMBERS)
    held = param._replace(storage=Storage("m", len(NUMBERS), data=memoryview(NUMBERS)))
    told: list[int] = []
    with contents.Window(told.append) as window:
        for of in (param, held):
            assert window.read(of, 5, 25) == NUMBERS[5:25]
    assert told == [20, 20]


def test_no_bytes_are_said_to_be_none():
    """A definition's tensor has none, nor has one whose bytes cannot be had; an empty one needs none."""
    meta = Param("w", DTYPES["uint8"], (4,), (1,), Storage("w", 4))
    lazy = meta._replace(storage=Storage("w", 4, why_unreadable="its bytes are compressed"))
    with contents.Window() as window:
        for param, why in ((meta, "it has a shape, and no values"), (lazy, "its bytes are compressed")):
            with pytest.raises(ParamctlError, match=f"^error: w: {why}$"):
                window.read(param, 0, 4)
            assert window.read(param, 2, 2) == b""
