"""Laws of choosing: nothing is lost, nothing is chosen twice, and a slice is what numpy's would be."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from paramctl.checkpoint import Checkpoint, Param, Storage, contiguous
from paramctl.dtypes import DTYPES
from paramctl.errors import ParamctlError, SelectError, escaped
from paramctl.select import Filters, select
from paramctl.slices import parse_slice, sliced
from paramctl.source import Source
from paramctl.wildcard import matching

TEXTS = st.text("ab.01*?[]{},!-\\ :", max_size=8)


def checkpoint(names):
    params = {
        name: Param(name, DTYPES["float32"], (2,), (1,), Storage(str(i), 8))
        for i, name in enumerate(dict.fromkeys(names))
    }
    return Checkpoint(Source("m.pt", "file"), "torch-zip", params)


@settings(deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=8), st.lists(TEXTS, max_size=3), st.lists(TEXTS, max_size=1))
def test_chosen_and_rest_are_all_in_order(names, patterns, layers):
    """`chosen ∪ rest == all`, disjoint, each in the order of the file; or an error of three lines at most."""
    made = checkpoint(names)
    try:
        found = select(made, patterns, Filters(layers=tuple(layers)))
    except ParamctlError as error:
        said = str(error)
    else:
        said = ""
    if said:
        assert len(said.splitlines()) <= 3
        return
    names = [param.name for param in found.chosen]
    rest = {param.name for param in found.rest}
    assert names
    assert rest.isdisjoint(names)
    assert rest | set(names) == set(made.params)
    assert names == [name for name in made.params if name not in rest]
    assert [param.name for param in found.rest] == [name for name in made.params if name in rest]
    assert list(dict.fromkeys(pick.param.name for pick in found.picks)) == names
    assert found.named | found.pattern <= set(names)


@settings(deadline=None)
@given(st.lists(st.text(max_size=6).filter(bool), min_size=1, max_size=6))
def test_every_name_chooses_itself(names):
    """A name that is present wins, as it is and as it is shown."""
    made = checkpoint(names)
    for name in made.params:
        assert [param.name for param in select(made, [name]).chosen] == [name]
        shown = [param.name for param in select(made, [escaped(name)]).chosen]
        assert shown == [name] or shown == [escaped(name)]


# ----------------------------------------------------------------------------- wildcards


def reference(pattern: str, name: str) -> bool:
    """Braces spelled out one by one, then every way that a star may go."""
    opened = pattern.find("{")
    if opened >= 0:
        depth, options, start = 0, [], opened + 1
        for at in range(opened, len(pattern)):
            depth += {"{": 1, "}": -1}.get(pattern[at], 0)
            if (pattern[at] == "," and depth == 1) or depth == 0:
                options.append(pattern[start:at])
                start = at + 1
            if depth == 0:
                break
        return any(reference(pattern[:opened] + option + pattern[start:], name) for option in options)
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(reference(pattern[1:], name[i:]) for i in range(len(name) + 1))
    if numbers := re.match(r"\[(\d+)-(\d+)\]", pattern):
        digits = re.match(r"\d*", name)[0]
        ends = [i for i in range(1, len(digits) + 1) if str(int(digits[:i])) == digits[:i]]
        fitting = [i for i in ends if int(numbers[1]) <= int(digits[:i]) <= int(numbers[2])]
        return any(reference(pattern[numbers.end() :], name[i:]) for i in fitting)
    if characters := re.match(r"\[(!?)([^\]]+)\]", pattern):
        fits = bool(name) and (name[0] in characters[2]) != bool(characters[1])
        return fits and reference(pattern[characters.end() :], name[1:])
    return bool(name) and pattern[0] in ("?", name[0]) and reference(pattern[1:], name[1:])


PIECES = st.sampled_from([*"ab01.*?", "**", "[ab]", "[!a.]", "[0-9]", "[0-11]", "[9-101]", "[10-31]"])
SEQUENCES = st.lists(PIECES, max_size=4).map("".join)
BRACES = st.lists(SEQUENCES, min_size=1, max_size=3).map(lambda options: "{" + ",".join(options) + "}")
NESTED = st.tuples(SEQUENCES, BRACES, SEQUENCES).map("".join)
PATTERNS = st.lists(st.one_of(SEQUENCES, BRACES, NESTED.map("{{x,{}}}".format)), max_size=3).map("".join)


@settings(deadline=None)
@given(PATTERNS, st.lists(st.text("ab01.x\n", max_size=9), max_size=6))
def test_wildcard_is_as_the_reference_reads_it(pattern, names):
    """Stars, sets, numbers and braces, against a matcher that tries every way; or there are too many, and it says so."""
    try:
        found = matching(pattern, names)
    except SelectError as error:
        assume("stand for more than" not in error.what)
        raise
    assert found == [name for name in names if reference(pattern, name)]


@settings(deadline=None)
@given(st.integers(0, 1200), st.integers(0, 1200), st.integers(0, 1300))
def test_range_of_numbers_holds_those_between(a, b, number):
    """`[a-b]` is every number from a to b, and no other."""
    low, high = sorted((a, b))
    assert matching(f"x[{low}-{high}]", [f"x{number}"]) == ([f"x{number}"] if low <= number <= high else [])


@settings(deadline=None)
@given(st.text(max_size=8), st.lists(st.text(max_size=8), max_size=3))
def test_escaped_text_fits_itself_alone(text, others):
    """With a backslash before each special character, a text is what it was."""
    pattern = re.sub(r"([*?\[{\\])", r"\\\1", text)
    names = [text, *others]
    assert matching(pattern, names) == [name for name in names if name == text]


# ----------------------------------------------------------------------------- slices

SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
BOUND = st.one_of(st.none(), st.integers(-6, 6))


@st.composite
def views(draw):
    """A view of a storage of 400 elements, with steps that no `torch.save` would give too."""
    shape = draw(SHAPES)
    stride = draw(st.one_of(st.just(contiguous(shape)), st.tuples(*[st.integers(0, 9)] * len(shape))))
    reach = sum(max(size - 1, 0) * by for size, by in zip(shape, stride, strict=True))
    return shape, stride, draw(st.integers(0, max(399 - reach, 0)))


@st.composite
def items(draw, dims):
    made = [
        draw(st.one_of(st.integers(-4, 3), st.builds(slice, BOUND, BOUND, BOUND.filter(lambda step: step != 0))))
        for _ in range(draw(st.integers(0, dims)))
    ]
    if draw(st.booleans()) or not made:
        made.insert(draw(st.integers(0, len(made))), ...)
    return tuple(made)


def written(item) -> str:
    if item is ...:
        return "..."
    if isinstance(item, int):
        return str(item)
    text = ":".join("" if part is None else str(part) for part in (item.start, item.stop, item.step))
    return text if item.step is not None else text.removesuffix(":")


@settings(deadline=None)
@given(st.data(), views())
def test_slice_is_what_numpy_gives(data, view):
    """Shape, values and so the strides and the offset; negative steps, `...` and empty slices included."""
    shape, stride, offset = view
    chosen = data.draw(items(len(shape)))
    text = ", ".join(map(written, chosen))
    assert parse_slice(f"w[{text}]", 1) == chosen
    storage = np.arange(400, dtype=np.int32)
    source = np.lib.stride_tricks.as_strided(storage[offset:], shape, [4 * by for by in stride])
    param = Param("w", DTYPES["int32"], shape, stride, Storage("s", 1600), offset)
    try:
        expected = source[chosen]
    except IndexError:
        with pytest.raises(SelectError, match="out of range"):
            sliced(param, chosen, text)
        return
    got = sliced(param, chosen, text)
    assert got.shape == np.shape(expected)
    indices = itertools.product(*map(range, got.shape))
    places = [got.storage_offset + sum(i * by for i, by in zip(index, got.stride, strict=True)) for index in indices]
    assert places == np.ravel(expected).tolist()
    assert got.storage is param.storage


@settings(deadline=None)
@given(st.text("0123456789:-., +a", max_size=12))
def test_any_text_in_brackets_is_a_slice_as_python_reads_it_or_an_error(text):
    """What is taken is what Python would make of it."""

    class Probe:
        def __getitem__(self, given):
            return given if isinstance(given, tuple) else (given,)

    try:
        found = parse_slice(f"w[{text}]", 1)
    except SelectError:
        return
    digits = re.sub(r"(?<!\d)0+(?=\d)", "", text)  # Python refuses 01
    assert found == eval(f"probe[{digits}]", {"probe": Probe()})  # noqa: S307 - digits, colons and dots
