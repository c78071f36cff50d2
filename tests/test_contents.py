"""The bytes of a storage, where they lie in pieces."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramctl import contents
from paramctl.checkpoint import Extent, Param, Storage, contiguous
from paramctl.dtypes import DTYPES
from paramctl.errors import ParamctlError

NUMPY = {"uint8": "u1", "float16": "f2", "float32": "f4", "float64": "f8", "complex128": "c16"}


def whole(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """An array whose every byte matters."""
    made = np.dtype(NUMPY[dtype])
    raw = random.Random(0).randbytes(int(np.prod(shape)) * made.itemsize)
    return np.frombuffer(raw, made).reshape(shape)


def in_pieces(folder: Path, array: np.ndarray, boxes: list, dtype: str) -> Param:
    """The array as a param of which each box lies in the file somewhere, in no order."""
    extents, held = [], b""
    for box in boxes:
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


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_grid_is_put_together(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    """However axes are cut, and whatever range is asked for, the bytes are those of the array."""
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    cuts = tuple(tuple(data.draw(st.sets(st.integers(0, size)))) for size in shape)
    dtype = data.draw(st.sampled_from(sorted(NUMPY)))
    array = whole(shape, dtype)
    param = in_pieces(tmp_path_factory.mktemp("p", numbered=True), array, grid(shape, cuts), dtype)
    start = data.draw(st.integers(0, array.nbytes))
    end = data.draw(st.integers(start, array.nbytes))
    assert contents.read(param, 0, array.nbytes) == array.tobytes()
    assert contents.read(param, start, end) == array.tobytes()[start:end]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.randoms(), st.sampled_from(sorted(NUMPY)))
def test_strides_are_undone(shape: list[int], rng: random.Random, dtype: str):
    """A piece that lies transposed, as channels-last, is put in row-major order."""
    order = rng.sample(range(len(shape)), len(shape))
    array = whole(tuple(shape), dtype).transpose(order)
    raw = bytearray(whole(tuple(shape), dtype).tobytes())
    stride = tuple(by // array.itemsize for by in array.strides)
    assert contents._in_order(raw, array.shape, stride, array.itemsize) == np.ascontiguousarray(array).tobytes()


def test_an_expanded_piece_is_repeated():
    """A stride of 0 gives one element again and again."""
    assert contents._in_order(bytearray(b"abcd"), (3, 2), (0, 1), 2) == b"abcd" * 3
    assert contents._in_order(bytearray(b"ab"), (2, 2), (0, 0), 2) == b"ab" * 4


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
