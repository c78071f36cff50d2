"""Numbers of a tensor against torch's own text of them."""

from __future__ import annotations

import math

import pytest

from paramctl.render import Screen
from paramctl.render._cells import course_text
from paramctl.render._numbers import pieces
from render.builders import terminal, text, values

torch = pytest.importorskip("torch")
_tensor_str = pytest.importorskip("torch._tensor_str")


def _seeded(*shape: int) -> object:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


_NAN, _INF = float("nan"), float("inf")
TENSORS = {
    "float32": _seeded(8, 4),
    "one": torch.tensor(3.14159),
    "whole": torch.tensor([1.0, -2.0, 30.0]),
    "zeros": torch.zeros(2, 3),
    "large": _seeded(3, 4) * 1e5,
    "huge": torch.tensor([1e9, 2.0]),
    "small": torch.tensor([1e-5, 1.0]),
    "denormal": torch.tensor([1e-45, 0.0]),
    "not finite": torch.tensor([_NAN, 1.0, _INF, -_INF]),
    "not finite, not whole": torch.tensor([_NAN, 1.5, -_INF]),
    "only nan": torch.tensor([_NAN]),
    "infinities and range": torch.tensor([_INF, 1e-6, 12.0]),
    "float64": _seeded(5).double() / 3,
    "bfloat16": _seeded(2, 3).bfloat16(),
    "float16": _seeded(2, 3).half(),
    "float8": _seeded(2, 3).to(torch.float8_e4m3fn),
    "int64": torch.arange(12).reshape(3, 4) - 5,
    "uint8": torch.tensor([0, 255], dtype=torch.uint8),
    "bool": torch.tensor([[True, False]]),
    "complex": torch.tensor([1 + 2j, 3 - 4.5j]),
    "complex with zeros": torch.tensor([complex(-0.0, -0.0), complex(0, _NAN)]),
    "complex one": torch.tensor(1 + 2j),
    "wrapped": _seeded(40),
    "wrapped complex": torch.complex(_seeded(40), _seeded(40).flip(0)),
    "three dimensions": _seeded(2, 3, 4),
    "four dimensions": _seeded(2, 1, 2, 2),
    "1000 are whole": _seeded(1000),
    "1001 are summarised": _seeded(1001),
    "summarised": _seeded(20, 60),
    "summarised, thin": _seeded(600, 2),
    "summarised, deep": _seeded(8, 8, 8, 8),
    "summarised integers": torch.arange(2000),
    "summarised bool": torch.ones(50, 50, dtype=torch.bool),
    "empty": torch.zeros(0),
    "empty rows": torch.zeros(2, 0),
    "empty complex": torch.zeros(0, dtype=torch.complex64),
    "no rows": torch.zeros(0, 3),
}


def _raw(tensor):
    """The values as a report holds them: complex numbers as pairs."""
    return torch.view_as_real(tensor).tolist() if tensor.is_complex() else tensor.tolist()


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("width", [40, 80, 10_000])
def test_as_torch(name, width):
    """The numbers stand as torch prints them at the same width; it does not count brackets that close."""
    tensor = TENSORS[name]
    try:
        torch.set_printoptions(linewidth=width - max(tensor.dim() - 1, 0))
        want = _tensor_str._tensor_str(tensor, 0)
    finally:
        torch.set_printoptions(profile="default")
    assert "".join(pieces(_raw(tensor), is_complex=tensor.is_complex(), line_width=width)) == want


@pytest.mark.parametrize("name", [name for name in TENSORS if "summarised" in name])
def test_full(name):
    """With `full` every number is there, as torch prints them without a threshold."""
    tensor = TENSORS[name]
    try:
        torch.set_printoptions(profile="full", linewidth=80 - (tensor.dim() - 1))
        want = _tensor_str._tensor_str(tensor, 0)
    finally:
        torch.set_printoptions(profile="default")
    assert terminal(values(_raw(tensor)), "table", 80, full=True).split("\n", 1)[1] == want + "\n"


def test_heading():
    """A line says what the parameter is made of, and its numbers are below."""
    report = values([0.5, -1.25], name="0.weight", slice="[0, :2]")
    assert text(report, "table") == (
        "0.weight[0, :2]  Parameter  float32  8×4  requires_grad=True  grad=None\n[ 0.5000, -1.2500]\n"
    )


def test_heading_on_narrow_terminal():
    """A heading that does not fit goes on in the next line."""
    report = values([0.5, -1.25], name="0.weight", slice="[0, :2]")
    assert terminal(report, "table", 40) == (
        "0.weight[0, :2]  Parameter  float32  8×4\n  requires_grad=True  grad=None\n[ 0.5000, -1.2500]\n"
    )


def test_gradient():
    """A gradient stands below its parameter."""
    assert text(values([1.0], grad=[0.5]), "table").splitlines()[1:] == ["[1.]", "grad", "[0.5000]"]


def test_blocks():
    """Between two tensors stands a blank line, and a tensor without values says so."""
    report = values(3.0)
    two = type(report)(report.columns, report.rows + values(None).rows)
    assert text(two, "table").splitlines()[1:] == [
        "3.",
        "",
        "w  Parameter  float32  8×4  requires_grad=True  grad=None",
        "no values here",
    ]


COURSES = [  # a row of numbers, its picture, and that in ASCII
    ([1.0, 2.0, 3.0, 4.0], "▂▄▆█", ":=*%"),
    ([0.0, 1.0, 8.0], "·▁█", "_.%"),
    ([5.0, 5.0], "▁▁", ".."),
    ([100.0, 101.0, 104.0], "▁▂█", ".:%"),
    ([None, 2.0, None, 1.0], " █ ▄", " % ="),
    ([1.0, math.inf, math.nan, 2.0], "▄!!█", "=!!%"),
    ([0.0, 0.0], "··", "__"),
    ([1.0, None], "▁", "."),
    ([None], "-", "-"),
    ([], "-", "-"),
]


@pytest.mark.parametrize(("numbers", "picture", "plain"), COURSES)
def test_a_course_is_a_bar_for_each_number(numbers, picture, plain):
    """The greatest is a full bar, the least the lowest where it is not near 0; 0 is a dot, what is not known a blank."""
    assert course_text(numbers, Screen()) == picture
    assert course_text(numbers, Screen(ascii=True)) == plain


@pytest.mark.parametrize("width", [20, 60, 100, 160])
@pytest.mark.parametrize("count", [3, 40, 1000])
def test_a_course_fits_a_terminal(width, count):
    """It takes a seventh of the columns at most, and the greatest of what shares a bar is seen."""
    numbers = [1.0] * count
    numbers[count // 2] = 50.0
    picture = course_text(numbers, Screen(is_terminal=True, width=width))
    assert len(picture) == min(count, max(width // 7, 6))
    assert picture.count("█") == 1
    assert len(course_text(numbers, Screen(width=width))) == count
