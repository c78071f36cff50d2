"""Streams: the elements of a tensor in row-major order, however they lie, and a file is read by few calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paramctl import contents
from paramctl.checkpoint import Extent, Param, Storage, reach
from paramctl.contents import Window
from paramctl.dtypes import DTYPES
from paramctl.errors import ParamctlError
from paramctl.values import stream
from paramctl.values.lanes import codes

NBYTES = 1 << 14
RAW = np.random.default_rng(0).integers(0, 256, NBYTES, np.uint8)
DTYPE = st.sampled_from(["float32", "bfloat16", "uint8", "complex64", "complex128"])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    made = tmp_path_factory.mktemp("stream") / "bytes"
    RAW.tofile(made)
    return str(made)


@st.composite
def views(draw: st.DrawFn, path: str) -> Param:
    """Any shape and strides, zero and negative ones included, over one storage."""
    dtype = DTYPES[draw(DTYPE)]
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    stride = tuple(draw(st.sampled_from([0, 1, 2, 7, 30, 100, -3, -20])) for _ in shape)
    low, high = reach(shape, stride)
    room = NBYTES // dtype.block_nbytes
    if high - low > room:
        shape, stride, low, high = shape[:1], (1,), 0, shape[0]
    order = draw(st.sampled_from(["little", "big"]))
    storage = Storage("0", NBYTES, (Extent(path, 0, NBYTES),), byteorder=order)
    return Param("w", dtype, shape, stride, storage, draw(st.integers(-low, room - high)))


def elements(param: Param) -> np.ndarray:
    """What numpy makes of it: the numbers of the elements, as unsigned integers."""
    lane = codes(param)
    parts, width = (lane.per_element if lane.is_complex else 1), lane.stored.itemsize
    stored = lane.stored.newbyteorder(">" if param.storage.byteorder == "big" else "<")
    steps = [by * width * parts for by in param.stride]
    return np.ndarray((*param.shape, parts), stored, RAW, param.storage_offset * width * parts, [*steps, width]).ravel()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_pieces_are_the_elements_in_row_major_order(data, path, monkeypatch):
    """Whatever is read at once, held at once and given at once."""
    with monkeypatch.context() as patch:
        patch.setattr(stream, "_GATHERED_NBYTES", data.draw(st.sampled_from([16, 1000, 1 << 24])))
        patch.setattr(stream, "_READ_NBYTES", data.draw(st.sampled_from([16, 500, 1 << 23])))
        patch.setattr(stream, "_GAP_NBYTES", data.draw(st.sampled_from([0, 16, 500, 1 << 14])))
        patch.setattr(stream, "_STRIP", data.draw(st.sampled_from([1, 2, 16])))
        param = data.draw(views(path))
        numel = data.draw(st.sampled_from([1, 7, 1 << 16]))
        with Window() as window:
            found = [piece.copy() for piece in stream.pieces(param, codes(param), window, numel=numel)]
    np.testing.assert_array_equal(np.concatenate(found), elements(param))


@pytest.mark.parametrize(
    ("shape", "stride", "most"),
    [
        ((64, 128), (1, 64), 1),  # turned round: all lies together
        ((128, 8), (64, 1), 1),  # a few columns: what lies between is read along
        ((2, 8), (4096, 1), 2),  # far apart
    ],
)
def test_what_lies_together_is_read_together(shape, stride, most, path, monkeypatch):
    """A matrix that is turned round is not read element by element, and what lies far between is not read."""
    calls = []
    monkeypatch.setattr(
        contents.os, "preadv", lambda fd, into, at, real=contents.os.preadv: calls.append(at) or real(fd, into, at)
    )
    storage = Storage("0", NBYTES, (Extent(path, 0, NBYTES),))
    param = Param("w", DTYPES["uint8"], shape, stride, storage)
    monkeypatch.setattr(stream, "_GAP_NBYTES", 1000)
    read: list[int] = []
    with Window(read.append) as window:
        (found,) = stream.pieces(param, codes(param), window)
    np.testing.assert_array_equal(found, elements(param))
    low, high = reach(shape, stride)
    assert len(calls) == len(read) == most
    assert sum(read) == (high - low if most == 1 else param.numel)


UNREADABLE = Storage("0", 64, why_unreadable="its bytes are encrypted inside the archive")


@pytest.mark.parametrize(
    ("shape", "stride", "offset", "dtype", "storage", "what"),
    [
        ((4,), (1,), 0, "float32", UNREADABLE, "its bytes are encrypted inside the archive"),
        ((4,), (1,), 0, "float32", Storage("0", 16), "it has a shape, and no values"),
        ((4,), (1,), 1, "quint4x2", Storage("0", 8, data=memoryview(bytes(8))), "it begins within a block of quint4x2"),
        ((32, 2), (1, 32), 0, "q4_0", Storage("0", 36, data=memoryview(bytes(36))), "blocks of q4_0 that lie by strides"),
        (
            (1 << 30, 1 << 30), (0, 0), 0, "uint8", Storage("0", 1, data=memoryview(bytes(1))),
            "its 1,152,921,504,606,846,976 elements are 1 that overlap",
        ),
    ],
)  # fmt: skip
def test_what_has_no_bytes_in_order_is_refused(shape, stride, offset, dtype, storage, what):
    """Before anything is read, by name; an empty tensor needs no bytes."""
    param = Param("w", DTYPES[dtype], shape, stride, storage, offset)
    with pytest.raises(ParamctlError) as caught:
        stream.hold(param)
    assert str(caught.value) == f"error: w: {what}"
    stream.hold(param._replace(shape=(0,), stride=(1,)))


def test_memory_is_bounded_where_a_matrix_is_turned_round(tmp_path: Path):
    """A transposed matrix of 128 MiB costs less than 40 of them."""
    import tracemalloc

    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 27)
    param = Param(
        "w", DTYPES["float32"], (4096, 8192), (1, 4096), Storage("0", 1 << 27, (Extent(str(path), 0, 1 << 27),))
    )
    tracemalloc.start()
    try:
        with Window() as window:
            assert sum(len(piece) for piece in stream.pieces(param, codes(param), window)) == 1 << 25
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()
