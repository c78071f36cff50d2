"""What the fuzz of the readers has found (see fuzz/README.md), each by its bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from paramctl import assign, initializers, source
from paramctl.checkpoint import Checkpoint, Param, Storage
from paramctl.dtypes import DTYPES
from paramctl.errors import InitError, SelectError
from paramctl.select import select


def held(*names: str) -> Checkpoint:
    """Scalars of these names."""
    params = {name: Param(name, DTYPES["float32"], (), (), Storage(name, 4)) for name in names}
    return Checkpoint(source.Source("m", "file", Path("m")), "made", params)


ASSIGNMENTS = {
    "a module whose name holds a control character": (
        "layers\x1b[2J = 0",
        "error: layers\\x1b[2J is a module, and not a parameter\n\nhint: write layers\\x1b[2J.* to mean all below it",
    ),
    "a module whose name holds half a character": (
        "layers\udc81 = 0",
        "error: layers\\udc81 is a module, and not a parameter\n\nhint: write layers\\udc81.* to mean all below it",
    ),
    "a wildcard that fits nothing was called a module": (
        "*.b\udc81ias = 0",
        "error: m: nothing is selected by *.b\\udc81ias\n\nhint: it has a, layers\\x1b[2J.w, layers\\udc81.w",
    ),
}


@pytest.mark.parametrize(("text", "said"), ASSIGNMENTS.values(), ids=ASSIGNMENTS.keys())
def test_an_assignment_to_what_is_no_parameter(text: str, said: str):
    """The target is told as it may be shown, and is called a module only if it is one."""
    with pytest.raises(SelectError) as caught:
        assign.parse(held("a", "layers\x1b[2J.w", "layers\udc81.w"), text)
    assert str(caught.value) == said


REGULAR_EXPRESSIONS = {
    "an extension of a control character": ("re:(?\x01x)", "unknown extension ?\\x01\nre:(?\\x01x)\n    ^"),
    "an extension of half a character": ("re:(?\udce0x)", "unknown extension ?\\udce0\nre:(?\\udce0x)\n    ^"),
    "a group whose name is a control character": (
        "re:(?P<\x1b>x)",
        "bad character in group name '\\\\x1b'\nre:(?P<\\x1b>x)\n       ^",
    ),
}


@pytest.mark.parametrize(("text", "said"), REGULAR_EXPRESSIONS.values(), ids=REGULAR_EXPRESSIONS.keys())
def test_what_is_wrong_in_a_regular_expression_can_be_shown(text: str, said: str):
    """What Python's compiler says of it holds its characters, which are told as they may be shown."""
    with pytest.raises(SelectError) as caught:
        select(held("a"), [text])
    assert str(caught.value) == f"error: the regular expression is wrong here: {said}"


SCHEMES = {
    "an option of a control character": (
        'kaiming_normal(nonlinearity="relu\x7f")',
        r'nonlinearity is one of .*, not "relu\\x7f"',
    ),
    "a number that is a control character": ('normal(std="\x7f")', r'std is a number, not "\\x7f"'),
}


@pytest.mark.parametrize(("text", "said"), SCHEMES.values(), ids=SCHEMES.keys())
def test_what_is_wrong_in_a_scheme_can_be_shown(text: str, said: str):
    """A value that is refused is told as it may be shown."""
    with pytest.raises(InitError, match=said):
        initializers.parse(text)


def test_a_value_may_be_a_slice_of_a_parameter_whose_name_begins_with_a_digit():
    """`0.weight = 0.bias[0]` was read as a number that is none."""
    one = Param("0.bias", DTYPES["float32"], (3,), (1,), Storage("b", 12))
    model = Checkpoint(source.Source("m", "file", Path("m")), "made", {"0.bias": one})
    value = assign.parse(model, "0.bias = 0.bias[0]").value
    assert (value.param.name, value.slice, value.view.shape) == ("0.bias", "0", ())
