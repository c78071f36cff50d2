"""Equal content: a copy is always found, transposed or not, and what differs in a bit never is."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lying import WAYS, param, parts_of, raw_of

import paramctl
from paramctl.checkpoint import Extent, Param, Storage, contiguous
from paramctl.contents import Window
from paramctl.dtypes import DTYPES
from paramctl.values import equal, stream
from paramctl.values.equal import Candidate, Pair, is_constant, pairs

quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
DTYPE = st.sampled_from(["uint8", "bfloat16", "float32", "complex64", "complex128"])


@pytest.fixture
def small(monkeypatch):
    """Heads, tiles, pieces and reads of a few elements, so that small tensors take every path."""
    monkeypatch.setattr(equal, "_HEAD_NUMEL", 3)
    monkeypatch.setattr(equal, "_TILE_NBYTES", 48)
    monkeypatch.setattr(equal, "_NEAR_NBYTES", 8)
    monkeypatch.setattr(equal, "_ROUNDS", 1)
    monkeypatch.setattr(stream, "_GATHERED_NBYTES", 40)
    monkeypatch.setattr(stream, "_READ_NBYTES", 32)
    monkeypatch.setattr(stream, "_GAP_NBYTES", 8)


def candidates(*params: Param) -> list[Candidate]:
    return [Candidate(place, param, place) for place, param in enumerate(params)]


def connected(count: int, found: list[Pair]) -> set[frozenset[int]]:
    """What pairs connect, everything that nothing is paired with left out."""
    groups = [{place} for place in range(count)]
    for pair in found:
        whole = groups[pair.first] | groups[pair.other]
        for place in whole:
            groups[place] = whole
    return {frozenset(group) for group in groups if len(group) > 1}


def turned(array: np.ndarray) -> np.ndarray | None:
    """The transpose of a matrix, dimensions of 1 aside."""
    squeezed = array.reshape([size for size in array.shape[:-1] if size != 1] + [array.shape[-1]])
    return squeezed.swapaxes(0, 1) if squeezed.ndim == 3 else None


def meets(a: np.ndarray, b: np.ndarray) -> bool:
    """The oracle: the same bytes in row-major order, or a matrix of the other's shape turned round with its bytes."""
    if a.tobytes() == b.tobytes():
        return True
    one, other = turned(a), turned(b)
    return (
        one is not None
        and other is not None
        and one.shape == other.swapaxes(0, 1).shape
        and one.tobytes() == b.tobytes()
    )


@st.composite
def families(draw: st.DrawFn) -> tuple[str, list[np.ndarray]]:
    """Arrays of one dtype and size of few numbers, many of them alike: copies, reshapes, transposes, and others."""
    dtype = draw(DTYPE)
    parts, width = parts_of(dtype)
    shapes = draw(
        st.sampled_from([[(4, 6), (6, 4), (24,), (2, 12), (6, 1, 4)], [(3, 3), (9,)], [(5, 5)], [(2, 2), (4, 1)]])
    )
    made: list[np.ndarray] = []
    for _ in range(draw(st.integers(2, 6))):
        shape = draw(st.sampled_from(shapes))
        if made and draw(st.booleans()):
            old = draw(st.sampled_from(made))
            other = turned(old) if draw(st.booleans()) else None
            array = (old if other is None else other).reshape((*shape, parts)).copy()
            if draw(st.booleans()) and draw(st.booleans()):
                array.reshape(-1)[draw(st.integers(0, array.size - 1))] ^= 1
        else:
            seed = draw(st.integers(0, 5))
            array = np.random.default_rng(seed).integers(0, 2, (*shape, parts)).astype(f"u{width}")
        made.append(array)
    return dtype, made


@quick
@given(family=families(), data=st.data(), constants=st.booleans())
def test_pairs_connect_what_is_equal_and_nothing_else(family, data, constants, small):
    """However each tensor lies, as comparing all with all would; those of one number only where they are asked for."""
    dtype, arrays = family
    params = [param(array, dtype, data.draw(st.sampled_from(WAYS)), name=str(i)) for i, array in enumerate(arrays)]
    wanted = [i for i, a in enumerate(arrays) if constants or len(np.unique(a.reshape(-1, a.shape[-1]), axis=0)) > 1]
    alike = [Pair(i, j, "copy") for i, j in itertools.combinations(wanted, 2) if meets(arrays[i], arrays[j])]
    found = pairs(candidates(*params), constants=constants)
    assert connected(len(params), found) == connected(len(params), alike)
    for pair in found:
        a, b = arrays[pair.first], arrays[pair.other]
        assert pair.how != "copy" or (a.shape == b.shape and a.tobytes() == b.tobytes())
        assert pair.how != "reshape" or (a.shape != b.shape and a.tobytes() == b.tobytes())
        assert pair.how != "transpose" or (a.tobytes() != b.tobytes() and turned(a).tobytes() == b.tobytes())


SHAPES = st.sampled_from([(7000,), (50, 70), (70, 50), (64, 64), (3, 40, 30), (1, 60, 60), (2, 3000)])


@quick
@given(shape=SHAPES, dtype=DTYPE, ways=st.tuples(st.sampled_from(WAYS), st.sampled_from(WAYS)), data=st.data())
def test_a_copy_is_always_found_and_a_changed_one_never(shape, dtype, ways, data, small):
    """As it is, or transposed if it is a matrix, over many tiles and pieces; not with one bit of one number changed."""
    parts, width = parts_of(dtype)
    array = np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, 1 << 8 * width, (*shape, parts), np.uint64)
    array = array.astype(f"u{width}")
    across = turned(array)
    copy = np.ascontiguousarray(array if across is None or data.draw(st.booleans()) else across)
    one = param(array, dtype, ways[0], name="one")
    (found,) = pairs(candidates(one, param(copy, dtype, ways[1], name="copy")))
    how = "copy" if copy.shape == array.shape and (copy == array).all() else "transpose"
    assert found == (0, 1, "reshape" if copy.tobytes() == array.tobytes() and copy.shape != array.shape else how)
    changed = copy.copy()
    changed.reshape(-1)[data.draw(st.integers(0, changed.size - 1))] ^= 1 << data.draw(st.integers(0, 8 * width - 1))
    assert pairs(candidates(one, param(changed, dtype, ways[1], name="changed"))) == []


# ----------------------------------------------------------------------------- bytes, and not numbers


def floats(numbers: list[float]) -> np.ndarray:
    return np.array(numbers, np.float32).view(np.uint32)[:, None]


@pytest.mark.parametrize(
    ("a", "b", "is_found"),
    [
        ([1.0, 0.0], [1.0, -0.0], False),
        ([1.0, float("nan")], [1.0, float("nan")], True),
        ([1.0, float("nan")], [1.0, -float("nan")], False),
        ([1.0, 2.0], [1.0, 2.0], True),
    ],
)
def test_bytes_are_compared(a, b, is_found):
    """-0.0 is not 0.0, and NaN is equal where its bits are."""
    found = pairs(candidates(param(floats(a), "float32"), param(floats(b), "float32")))
    assert [pair.how for pair in found] == (["copy"] if is_found else [])


def test_dtypes_are_not_compared():
    """The same bytes as another dtype are something else."""
    array = np.arange(6, dtype=np.uint32).reshape(2, 3, 1)
    assert pairs(candidates(param(array, "float32"), param(array, "int32"))) == []


def block(dtype: str, raw: bytes, shape: tuple[int, ...]) -> Param:
    storage = Storage("0", len(raw), data=memoryview(raw))
    return Param("w", DTYPES[dtype], shape, contiguous(shape), storage)


@pytest.mark.parametrize("dtype", [name for name, dtype in DTYPES.items() if dtype.block_numel > 1])
def test_blocks_are_compared_as_bytes(dtype):
    """Also in another shape, and never turned round."""
    numel, nbytes = DTYPES[dtype].block_numel, DTYPES[dtype].block_nbytes
    rows = np.random.default_rng(1).integers(0, 256, (numel, numel, nbytes), np.uint8)[:, :1]
    raw, other = rows.tobytes(), rows[::-1].tobytes()
    square, flat = (numel, numel), (numel * numel,)
    assert pairs(candidates(block(dtype, raw, square), block(dtype, raw, square)))[0].how == "copy"
    assert pairs(candidates(block(dtype, raw, square), block(dtype, raw, flat)))[0].how == "reshape"
    assert pairs(candidates(block(dtype, raw, square), block(dtype, other, square))) == []


def test_those_of_one_owner_are_not_compared():
    """What is shared already costs no reading."""
    tensor = param(np.arange(6, dtype=np.uint32).reshape(2, 3, 1), "float32")
    read: list[int] = []
    assert pairs([Candidate(0, tensor, 0), Candidate(1, tensor, 0)], tell=read.append) == []
    assert read == []


# ----------------------------------------------------------------------------- constants


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["uint8", "bfloat16", "float64", "complex32", "complex128"])
def test_constant_is_every_element_of_one_bit_pattern(dtype, way):
    """A complex number counts with both its parts; one element that differs is enough, wherever it is."""
    parts, width = parts_of(dtype)
    array = np.broadcast_to(np.arange(3, 3 + parts), (30, 50, parts)).astype(f"u{width}")
    with Window() as window:
        assert is_constant(param(array, dtype, way), window)
        for at in (0, 700, 1499):
            other = array.copy()
            other.reshape(-1, parts)[at, -1] ^= 1
            assert not is_constant(param(other, dtype, way), window)


@pytest.mark.parametrize(
    ("dtype", "raw", "numel", "expected"),
    [
        ("q4_0", b"\x00\x3c" + b"\x88" * 16, 32, True),  # 1.0 times 0
        ("q4_0", (b"\x00\x3c" + b"\x99" * 16) * 3, 96, True),
        ("q4_0", b"\x00\x3c" + b"\x89" * 16, 32, False),  # one block of two numbers
        ("q4_0", (b"\x00\x3c" + b"\x89" * 16) * 2, 64, False),
        ("q4_0", b"\x00\x3c" + b"\x88" * 16 + b"\x00\x40" + b"\x88" * 16, 64, False),  # the same numbers, other bytes
        ("float4_e2m1fn", b"\x33\x33", 4, True),
        ("float4_e2m1fn", b"\x34\x34", 4, False),
        ("q1_0", b"\x07" * 18, 128, False),  # nobody knows its numbers
        ("q1_0", b"\x07" * 36, 256, True),
    ],
)
def test_blocks_are_constant_where_their_numbers_are(dtype, raw, numel, expected):
    """Blocks of the same bytes, whose numbers are one; where these are not known, one block tells nothing."""
    with Window() as window:
        assert is_constant(block(dtype, raw, (numel,)), window) is expected


# ----------------------------------------------------------------------------- what it costs


def on_disk(path: Path, arrays: list[np.ndarray]) -> list[Param]:
    """float32 tensors in one file."""
    found, at = [], 0
    with path.open("wb") as file:
        for i, array in enumerate(arrays):
            file.write(array.tobytes())
            storage = Storage(str(i), array.nbytes, (Extent(str(path), at, array.nbytes),))
            found.append(Param(f"w{i}", DTYPES["float32"], array.shape, contiguous(array.shape), storage))
            at += array.nbytes
    return found


def test_tensors_that_differ_are_hardly_read(tmp_path):
    """Of a hundred layers of one shape, a few bytes each."""
    rng = np.random.default_rng(0)
    params = on_disk(tmp_path / "m", [rng.standard_normal((80, 80), np.float32) for _ in range(100)])
    read: list[int] = []
    assert pairs(candidates(*params), tell=read.append) == []
    assert sum(read) == 100 * 2 * 4


@pytest.mark.parametrize("count", [30, 60])
def test_what_is_read_does_not_grow_by_the_square(count, tmp_path):
    """Tensors that differ in a middle number only are read a few times each, however many there are."""
    made = []
    for i in range(count):
        array = np.zeros((80, 80), np.float32)
        array[40, 40:44] = [i, 1, 2, i * 7]
        made.append(array)
    read: list[int] = []
    assert pairs(candidates(*on_disk(tmp_path / "m", made)), tell=read.append) == []
    assert sum(read) <= 40 * count * made[0].nbytes


def test_equal_matrices_are_compared_in_little_memory(tmp_path):
    """Two copies of 64 MiB, and a third transposed, take less than 24 MiB."""
    array = np.arange(1 << 24, dtype=np.uint32).view(np.float32).reshape(2048, 8192)
    one, copy, across = on_disk(tmp_path / "m", [array, array, array.T.copy()])
    tracemalloc.start()
    try:
        found = pairs(candidates(one, copy, across))
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()
    assert found == [(0, 1, "copy"), (0, 2, "transpose")]


def test_of_packed_tensors_only_the_beginning_is_read(tmp_path):
    """The last element of what is deflated is not asked for: all before it would have to be inflated."""
    rng = np.random.default_rng(0)
    arrays = {f"w{i}": rng.standard_normal((300, 300)).astype(np.float32) for i in range(5)}
    np.savez_compressed(tmp_path / "m.npz", **arrays)
    read: list[int] = []
    assert paramctl.open(tmp_path / "m.npz").ties(by="content", tell=read.append).rows == ()
    assert sum(read) == 5 * 4
    np.savez_compressed(tmp_path / "m.npz", **arrays, again=arrays["w3"], across=arrays["w4"].T.copy())
    report = paramctl.open(tmp_path / "m.npz").ties(by="content")
    assert [row["names"] for row in report.dicts()] == [["w3", "again"], ["w4", "across"]]


def test_raw_and_lying_agree():
    """The builder of this test's tensors is right: each way of lying has the array's bytes."""
    array = np.arange(24, dtype=np.uint16).reshape(2, 3, 4, 1)
    for way in WAYS:
        with Window() as window:
            tensor = param(array, "float16", way)
            found = b"".join(piece.tobytes() for piece in stream.pieces(tensor, equal.codes(tensor), window))
        assert found == raw_of(array, "float16")
