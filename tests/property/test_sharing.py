"""What is counted once is what a byte array says when every byte that is seen is marked."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from paramctl import sharing
from paramctl.checkpoint import Checkpoint, Param, Storage
from paramctl.dtypes import DTYPES
from paramctl.source import Source

NBYTES = 96
DTYPE = st.sampled_from(["float32", "float32", "int32", "int16", "uint8", "float64"]).map(DTYPES.__getitem__)


@st.composite
def views(draw, most=6):
    """Tensors over two small storages, in any shape, stride, offset and dtype that stays within."""
    made = []
    for index in range(draw(st.integers(1, most))):
        dtype = draw(DTYPE)
        room = NBYTES // dtype.block_nbytes
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        stride, left = [], room - 1
        for size in shape:
            by = draw(st.integers(0, left // (size - 1) if size > 1 else left))
            stride.append(by)
            left -= max(size - 1, 0) * by
        storage = Storage(draw(st.sampled_from("ssst")), NBYTES)
        made.append(Param(f"p{index}", dtype, shape, tuple(stride), storage, draw(st.integers(0, left))))
    again = draw(st.lists(st.sampled_from(made), max_size=2))
    return made + [param._replace(name=f"again{i}") for i, param in enumerate(again)]


def seen(param) -> set[tuple[str, int]]:
    """The bytes of a tensor, one by one."""
    width, found = param.dtype.block_nbytes, set()
    for index in itertools.product(*map(range, param.shape)):
        at = param.storage_offset + sum(i * by for i, by in zip(index, param.stride, strict=True))
        found |= {(param.storage.key, byte) for byte in range(at * width, (at + 1) * width)}
    return found


def checkpoint(params) -> Checkpoint:
    return Checkpoint(Source("m.pt", "file"), "torch-zip", {param.name: param for param in params})


@settings(deadline=None)
@given(views())
def test_unique_counts_are_of_bytes_marked_one_by_one(params):
    """`unique_nbytes` is the bytes that are seen; an element counts where none of its bytes was counted before."""
    totals = sharing.totals(checkpoint(params), params)
    marked: set[tuple[str, int]] = set()
    numel = 0
    for param in params:
        fresh = seen(param) - marked
        numel += len(fresh) // param.dtype.block_nbytes
        marked |= fresh
    assert totals["unique_nbytes"] == len(marked)
    assert totals["unique_numel"] == numel
    assert totals["tensors"] == len(params)
    assert totals["numel"] == sum(param.numel for param in params)
    assert totals["nbytes"] == sum(param.nbytes for param in params)
    assert totals["storage_nbytes"] == NBYTES * len({param.storage.key for param in params})
    assert {key: value["nbytes"] for key, value in totals["dtypes"].items()} == {
        name: sum(param.nbytes for param in params if param.dtype.name == name)
        for name in {param.dtype.name for param in params}
    }


@settings(deadline=None)
@given(views())
def test_runs_are_the_bytes_and_nothing_between(params):
    """Sorted, apart, and the same bytes as one by one."""
    for param in params:
        runs = sharing.runs(param)
        assert {(param.storage.key, byte) for start, end in runs for byte in range(start, end)} == seen(param)
        assert all(a[1] < b[0] for a, b in itertools.pairwise(runs))


@settings(deadline=None)
@given(views())
def test_meet_is_of_sets(params):
    """Apart, within, or overlapping, as the sets of bytes are."""
    for a, b in itertools.combinations([param for param in params if param.storage.key == "s"], 2):
        mine, other = seen(a), seen(b)
        expected = "apart" if mine.isdisjoint(other) else "within" if mine <= other or other <= mine else "overlap"
        assert sharing.meet(a, b) == expected
        assert sharing.meet(b, a) == expected


@settings(deadline=None)
@given(views())
def test_groups_hold_every_name_that_shares_a_storage(params):
    """Names of the same elements together; one of each, with its relation, in a group of views; what that saves."""
    groups = sharing.groups(params)
    filled = [param for param in params if param.numel]
    alone = {param.name for param in filled if sum(other.storage.key == param.storage.key for other in filled) == 1}
    assert {name for group in groups for name in group.names} == {param.name for param in filled} - alone
    by_name = {param.name: param for param in params}
    for group in groups:
        members = [by_name[name] for name in group.names]
        union = set().union(*map(seen, members))
        assert group.first is members[0]
        kept = members[0].nbytes if group.relation == "same" else len(union)
        assert group.saved_nbytes == max(sum(param.nbytes for param in members) - kept, 0)
        sets = [seen(param) for param in members]
        crossing = any(a & b and not (a <= b or b <= a) for a, b in itertools.combinations(sets, 2))
        assert group.relation == ("overlap" if crossing else group.relation)
        assert crossing == (group.relation == "overlap")
        if group.relation == "same":
            assert len({(param.shape, param.dtype, param.storage_offset) for param in members}) == 1
            assert all(one == sets[0] for one in sets)


@settings(deadline=None)
@given(views())
def test_tie_is_to_an_earlier_name_that_has_elements_of_it(params):
    """A name has a tie exactly where an earlier name has a byte of it; one of the same elements is named before others."""
    ties = sharing.first_names(params)
    by_name = {param.name: param for param in params}
    order = [param.name for param in params]
    for place, param in enumerate(params):
        earlier = [by_name[name] for name in order[:place]]
        meeting = [other.name for other in earlier if seen(other) & seen(param)]
        if not meeting:
            assert param.name not in ties
            continue
        tie = ties[param.name]
        assert tie in meeting
        if tie != meeting[0]:
            assert seen(by_name[tie]) == seen(param)
        assert order.index(tie) < place
