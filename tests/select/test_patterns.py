"""What each form of the grammar stands for."""

from __future__ import annotations

import re
import time
from collections import OrderedDict

import pytest

from paramctl import formats
from paramctl.checkpoint import Checkpoint, Module, Param, Storage, contiguous
from paramctl.dtypes import DTYPES
from paramctl.errors import ParamctlError, SelectError, escaped
from paramctl.select import Filters, resolve, select
from paramctl.source import Source
from paramctl.source import resolve as source_of

NESTED = [
    *(f"0.block {block}.{layer}.{kind}" for block in range(4) for layer in (0, 2) for kind in ("weight", "bias")),
    "1.weight",
    "1.bias",
]
LAYERS = [f"layers.{i}.{name}" for i in range(40) for name in ("q.weight", "q.bias", "k.weight")] + ["lm_head.weight"]
ODD = [
    "a b.weight", "a.b.weight", "w[0]", "w", "m*.weight", "mx.weight", "!x", "x", "re:.*", "line\nbreak", "tab\tx.w",
    "back\\slash", "esc\x1b[0m", "bidi\u202e.w", "[0].w", "{a,b}", "...", "a:b", "[bold]t[/bold]", "ü", "-", "0[1]",
]  # fmt: skip


def checkpoint(names, *, shape=(4, 3), modules=(), dtypes=None, kinds=None):
    made = {}
    for i, name in enumerate(names):
        dtype = DTYPES[(dtypes or {}).get(name, "float32")]
        param = Param(name, dtype, shape, contiguous(shape), Storage(str(i), dtype.nbytes(12)))
        made[name] = param._replace(kind=(kinds or {}).get(name, "tensor"))
    paths = {path: Module(path, *rest) for path, *rest in modules}
    return Checkpoint(Source("m.pt", "file"), "torch-zip", made, paths)


def chosen(names, *patterns, **more):
    made = names if isinstance(names, Checkpoint) else checkpoint(names, **more)
    return [param.name for param in select(made, patterns).chosen]


def error_of(names, *patterns, filters=None, **more):
    made = names if isinstance(names, Checkpoint) else checkpoint(names, **more)
    with pytest.raises(ParamctlError) as caught:
        select(made, patterns, filters)
    return str(caught.value)


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_name_that_is_present_wins_over_every_other_reading(name):
    """Whatever a name looks like, it stands for itself: a slice, a wildcard, `!`, `re:`, a position."""
    assert chosen(ODD, name) == [name]


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_name_as_it_is_shown_stands_for_itself(name):
    """A name may be copied from an error or a table, escapes and all."""
    assert chosen(ODD, escaped(name)) == [name]


@pytest.mark.parametrize("name", [name for name in ODD if name != "x"], ids=ascii)
def test_every_name_can_be_excluded(name):
    """`!` takes any name, `!x` and one with escapes included."""
    assert chosen(ODD, "!" + name) == [other for other in ODD if other != name]
    assert chosen(ODD, "!" + escaped(name)) == [other for other in ODD if other != name]


PATTERNS = [
    (NESTED, ["0"], NESTED[:16]),
    (NESTED, ["0.block 1"], NESTED[4:8]),
    (NESTED, ["0.block 1.0"], NESTED[4:6]),
    (NESTED, ["0.block 1.0.weight"], [NESTED[4]]),
    (NESTED, ["*.bias"], NESTED[1::2]),
    (NESTED, ["*"], NESTED),
    (NESTED, ["1.*", "0.block 0.0.bias"], [NESTED[1], *NESTED[16:]]),
    (NESTED, ["*.block*.2.*"], [name for name in NESTED if ".2." in name]),
    (NESTED, ["0.block [1-2].0"], NESTED[4:6] + NESTED[8:10]),
    (NESTED, ["?.weight"], ["1.weight"]),
    (NESTED, ["!*.bias"], NESTED[::2]),
    (NESTED, ["!0"], NESTED[16:]),
    (NESTED, ["0", "!*.bias", "!0.block 0"], NESTED[4:16:2]),
    (NESTED, ["re:bias$"], NESTED[1::2]),
    (NESTED, [r"re:block (0|3)\.2\.w"], [NESTED[2], NESTED[14]]),
    (NESTED, ["re:."], NESTED),
    (LAYERS, ["layers.{0,1}.*"], LAYERS[:6]),
    (LAYERS, ["layers.{0,1{0,1}}.k*"], [LAYERS[2], LAYERS[32], LAYERS[35]]),
    (LAYERS, ["layers.[0-31].*"], LAYERS[:96]),
    (LAYERS, ["layers.[8-12].q.bias"], LAYERS[25:38:3]),
    (LAYERS, ["layers.[8-12]"], LAYERS[24:39]),
    (LAYERS, ["layers.[89].q.bias"], LAYERS[25:29:3]),
    (LAYERS, ["layers.[!0-8].q.bias"], [LAYERS[28]]),
    (LAYERS, ["layers.[^0-8].q.bias"], [LAYERS[28]]),
    (LAYERS, ["*.{q,k}.weight", "!layers.[1-39].*"], [LAYERS[0], LAYERS[2]]),
    (LAYERS, ["{lm_head,nothing}.weight"], ["lm_head.weight"]),
    (LAYERS, ["layers.1*.k.weight"], [LAYERS[5], *LAYERS[32:62:3]]),
    (["m*.w", "mx.w"], [r"m\*.w"], ["m*.w"]),
    (["m*.w", "mx.w"], [r"m\*.*"], ["m*.w"]),
    (["a\nb.w", "anb.w"], ["a\\nb.*"], ["a\nb.w"]),
    (["a\x1bb.w", "ax1bb.w"], ["a\\x1bb.*"], ["a\x1bb.w"]),
    (["h.0.w", "h.1.w", "h.2.w"], ["h.[01]"], ["h.0.w", "h.1.w"]),
    (["a]b", "axb"], ["a[]x]b"], ["a]b", "axb"]),
    (["a-b", "axb", "a+b"], ["a[+-]b"], ["a-b", "a+b"]),
    (["p.01.w", "p.1.w", "p.12.w"], ["p.[00-12].w"], ["p.01.w", "p.12.w"]),
    (["p.01.w", "p.1.w", "p.12.w"], ["p.[0-12].w"], ["p.1.w", "p.12.w"]),
]


@pytest.mark.parametrize(("names", "patterns", "expected"), PATTERNS, ids=[" ".join(p[1]) for p in PATTERNS])
def test_pattern_stands_for_these(names, patterns, expected):
    """Modules, wildcards, numbers, braces, regular expressions and exclusions, in the order of the file."""
    assert chosen(names, *patterns) == expected


@pytest.mark.parametrize(
    ("patterns", "named", "pattern"),
    [
        (["1.weight"], ["1.weight"], []),
        (["1"], [], []),
        (["1.*"], [], ["1.weight", "1.bias"]),
        (["[1].bias"], ["1.bias"], []),
        (["re:^1"], [], ["1.weight", "1.bias"]),
        (["1.bias[0]"], ["1.bias"], []),
    ],
)
def test_selection_tells_how_each_was_chosen(patterns, named, pattern):
    """By its own name, by a pattern, or with its module."""
    found = select(checkpoint(NESTED), patterns)
    assert (found.named, found.pattern) == (frozenset(named), frozenset(pattern))


# ----------------------------------------------------------------------------- positions

POSITIONS = [
    ("[0][1][0].bias", ["0.block 1.0.bias"]),
    ("[1]", ["1.weight", "1.bias"]),
    ("[-1].weight", ["1.weight"]),
    ("[0][-1][2].weight", ["0.block 3.2.weight"]),
    ("[ 0 ][ 0 ][ 0 ]", ["0.block 0.0.weight", "0.block 0.0.bias"]),
    ("[0][1].*", NESTED[4:8]),
    ("[0].re:2\\.w", NESTED[2:16:4]),
    ("[0].block 1", NESTED[4:8]),
    ("![0]", NESTED[16:]),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The nested network as a definition, a state dict, a pickled module and plain safetensors."""
    import torch
    from safetensors.torch import save_file
    from torch import nn

    def block():
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU())

    net = nn.Sequential(nn.Sequential(OrderedDict((f"block {i}", block()) for i in range(4))), nn.Linear(3, 1))
    folder = tmp_path_factory.mktemp("nested")
    torch.save(net.state_dict(), folder / "state.pt")
    torch.save(net, folder / "module.pt")
    save_file(net.state_dict(), folder / "plain.safetensors")
    paths = {kind: str(folder / name) for kind, name in [("state", "state.pt"), ("module", "module.pt")]}
    paths |= {"safetensors": str(folder / "plain.safetensors"), "definition": "models/nested.py"}
    return {kind: formats.read(source_of(path)) for kind, path in paths.items()}


KINDS = ["state", "module", "safetensors", "definition"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("pattern", "expected"), POSITIONS, ids=[p for p, _ in POSITIONS])
def test_position_is_as_indexing_the_model(files, kind, pattern, expected):
    """`[0][1][0].bias` is the bias of `net[0][1][0]`, in every kind of file, with ReLUs between that hold nothing."""
    assert sorted(chosen(files[kind], pattern)) == sorted(expected)


@pytest.mark.parametrize(
    ("kind", "last"),
    [
        ("state", "is a module without parameters"),
        ("module", "is a ReLU without parameters"),
        ("definition", "is a ReLU without parameters"),
        ("safetensors", "has children 0, 2, and no [1]"),
    ],
)
def test_position_of_a_child_without_parameters_chooses_no_neighbour(files, kind, last):
    """`[0][0][1]` is the ReLU, and never the layer after it; a file that knows of no ReLU has no child 1."""
    assert last in error_of(files[kind], "[0][0][1]").splitlines()[0]


def test_last_position_is_the_last_child_that_the_file_knows(files):
    """`net[0][0][-1]` is a ReLU; of safetensors it is the last layer that holds something."""
    assert "without parameters" in error_of(files["state"], "[0][0][-1]")
    assert chosen(files["safetensors"], "[0][0][-1].weight") == ["0.block 0.2.weight"]


def test_position_in_a_list_of_parameters_is_the_parameter():
    """A ParameterList is indexed as it would be in Python, and what follows is a slice."""
    made = checkpoint(["list.0", "list.1"])
    assert chosen(made, "[0][1]") == ["list.1"]
    pick = select(made, ["[0][1][0, :2]"]).picks[0]
    assert (pick.param.name, pick.slice, pick.view.shape) == ("list.1", "0, :2", (2,))


def test_position_takes_a_slice_after_the_name():
    """`[0][1][0].bias[0]` is one element."""
    pick = select(checkpoint(NESTED), ["[0][1][0].bias[0, 1:]"]).picks[0]
    assert (pick.param.name, pick.slice, pick.view.shape, pick.view.storage_offset) == (
        "0.block 1.0.bias",
        "0, 1:",
        (2,),
        1,
    )


# ----------------------------------------------------------------------------- slices

SLICES = [
    ("1.weight[0, :2]", [("1.weight", "0, :2", (2,))]),
    ("1.weight[...]", [("1.weight", "...", (4, 3))]),
    ("1.weight[..., -1]", [("1.weight", "..., -1", (4,))]),
    ("1.*[::2]", [("1.weight", "::2", (2, 3)), ("1.bias", "::2", (2, 3))]),
    ("{1,0.block 0.0}.bias[:]", [("0.block 0.0.bias", ":", (4, 3)), ("1.bias", ":", (4, 3))]),
    ("1.weight[ 1 , ::-1 ]", [("1.weight", "1 , ::-1", (3,))]),
    ("1.weight[5:2]", [("1.weight", "5:2", (0, 3))]),
]


@pytest.mark.parametrize(("pattern", "expected"), SLICES, ids=[p for p, _ in SLICES])
def test_slice_goes_after_a_name_or_wildcard(pattern, expected):
    """What is picked, as it was written, and the shape of it."""
    picks = select(checkpoint(NESTED), [pattern]).picks
    assert [(pick.param.name, pick.slice, pick.view.shape) for pick in picks] == expected


def test_one_parameter_may_be_picked_in_several_slices():
    """Each as it was written, once."""
    picks = select(checkpoint(NESTED), ["1.bias[0]", "1.bias[0]", "1.bias[1:]", "1.bias"]).picks
    assert [pick.slice for pick in picks] == ["0", "1:", ""]


def test_bracket_of_digits_is_a_set_where_nothing_stands_before_it():
    """`h.[01]` is a wildcard over modules, `h.0[01]` is an index that is padded."""
    made = checkpoint(["h.0.w", "h.1.w", "h.2.w"])
    assert chosen(made, "h.[01]") == ["h.0.w", "h.1.w"]
    assert chosen(made, "h.[0-1]") == ["h.0.w", "h.1.w"]


# ----------------------------------------------------------------------------- filters

LINEAR = "torch.nn.modules.linear.Linear"
TYPED = [("", "Net"), ("0", "Sequential"), ("0.block 0", "Sequential"), ("1", "Linear", {}, LINEAR)]
MIXED = {"dtypes": {"1.bias": "float16", "1.weight": "bfloat16"}, "kinds": {"1.bias": "buffer"}}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(layers=("0.block 1",)), NESTED[4:8]),
        (Filters(layers=("0.block 1", "1")), NESTED[4:8] + NESTED[16:]),
        (Filters(layers=("[0][1][0]",)), NESTED[4:6]),
        (Filters(layers=("0.block [1-2]",)), NESTED[4:12]),
        (Filters(types=("Linear",)), NESTED[16:]),
        (Filters(types=("torch.nn.modules.linear.Linear",)), NESTED[16:]),
        (Filters(types=("Sequential",)), NESTED[:16]),
        (Filters(types=("Net",)), NESTED),
        (Filters(types=("Linear",), dtypes=("float16",)), ["1.bias"]),
        (Filters(dtypes=("float16", "bfloat16")), NESTED[16:]),
        (Filters(kinds=("buffer",)), ["1.bias"]),
        (Filters(kinds=("tensor", "buffer"), layers=("1",)), NESTED[16:]),
    ],
    ids=str,
)
def test_filter_keeps_these(filters, expected):
    """Of one filter any choice may hold, and of several filters all must."""
    made = checkpoint(NESTED, modules=TYPED, **MIXED)
    assert [param.name for param in select(made, (), filters).chosen] == expected


# ----------------------------------------------------------------------------- errors, whole

HAS = "it has 0.block 0.0.weight, 0.block 0.0.bias, 0.block 0.2.weight …"
NEAREST = "nearest: 1.weight, 0.block 1.2.weight, 0.block 1.0.weight"
ERRORS = [
    (["1.wieght"], f"error: m.pt: no parameter and no module 1.wieght\n\nhint: {NEAREST}"),
    (["1.weight.x[0]"], f"error: m.pt: no parameter and no module 1.weight.x\n\nhint: {NEAREST}"),
    (["zzzzzz"], f"error: m.pt: no parameter and no module zzzzzz\n\nhint: {HAS}"),
    ([""], f"error: an empty pattern chooses nothing\n\nhint: {HAS}"),
    (["!"], f"error: an empty pattern chooses nothing\n\nhint: {HAS}"),
    (["zz*"], f"error: m.pt: nothing is selected by zz*\n\nhint: {HAS}"),
    (["re:zz"], f"error: m.pt: nothing is selected by re:zz\n\nhint: {HAS}"),
    (["1", "!1"], f"error: m.pt: nothing is selected by 1 !1\n\nhint: {HAS}"),
    (["1.weight[0"], "error: the bracket is not closed\n1.weight[0\n        ^"),
    (["1.weight[]"], "error: the slice is empty\n1.weight[]\n         ^"),
    (["1.weight[0, a]"], "error: an index is a whole number\n1.weight[0, a]\n            ^"),
    (["1.weight[0,, 1]"], "error: this is neither an index nor a slice\n1.weight[0,, 1]\n           ^"),
    (["1.weight[0, 1:2:3:4]"], "error: this is neither an index nor a slice\n1.weight[0, 1:2:3:4]\n            ^"),
    (["1.weight[:, ::0]"], "error: a step cannot be 0\n1.weight[:, ::0]\n            ^"),
    (["1.weight[..., ...]"], "error: a slice has one ... at most\n1.weight[..., ...]\n         ^"),
    (["1.weight[4]"], "error: 1.weight[4]: 4 is out of range, axis 0 has 4"),
    (["1.weight[0, -4]"], "error: 1.weight[0, -4]: -4 is out of range, axis 1 has 3"),
    (["1.weight[0, 0, 0]"], "error: 1.weight[0, 0, 0]: 3 indices, and it has 2 dimensions"),
    (["!1.weight[0]"], "error: !1.weight[0]: a slice is of what is chosen, and not of this"),
    (["re:a(b"], "error: the regular expression is wrong here: missing ), unterminated subpattern\nre:a(b\n    ^"),
    (["{0,1.weight"], "error: the brace is not closed\n{0,1.weight\n^"),
    (["1.{a,{b}"], "error: the brace is not closed\n1.{a,{b}\n  ^"),
    (["1.[z-a]x"], "error: this is no range of characters\n1.[z-a]x\n  ^"),
    (["1.[9-2]x"], "error: this is no range of numbers\n1.[9-2]x\n  ^"),
    (["a\x1b[9-2]x"], "error: this is no range of numbers\na\\x1b[9-2]x\n     ^"),
    (["[2]"], "error: the model has children 0, 1, and no [2]\n[2]\n ^"),
    (["[0][9]"], "error: 0 has 4 children, and no [9]\n[0][9]\n    ^"),
    (["[0][-5]"], "error: 0 has 4 children, and no [-5]\n[0][-5]\n    ^"),
    (["[1][0]"], "error: 1 has no children, and no [0]\n[1][0]\n    ^"),
    (["[0]{a}"], "error: this is neither a position nor a name below one\n[0]{a}\n   ^"),
]


@pytest.mark.parametrize(("patterns", "text"), ERRORS, ids=[ascii(" ".join(p)) for p, _ in ERRORS])
def test_error_says_what_and_where(patterns, text):
    """The whole text: the nearest names, or a caret under the column; three lines at most."""
    assert error_of(NESTED, *patterns) == text
    assert len(text.splitlines()) <= 3


KNOWN = "its types are Linear, Net, Sequential"
FILTER_ERRORS = [
    (Filters(types=("Lineer",)), "error: m.pt: no module of type Lineer\n\nhint: Linear?"),
    (Filters(types=("zzzz",)), f"error: m.pt: no module of type zzzz\n\nhint: {KNOWN}"),
    (Filters(dtypes=("flot32",)), "error: --dtype flot32: no such dtype\n\nhint: float32 or float6_e3m2fn or float64?"),
    (Filters(kinds=("x",)), "error: --kind x: no such kind\n\nhint: parameter, buffer or tensor"),
    (Filters(layers=("1.bias[0]",)), "error: --layer 1.bias[0]: a slice is of what is chosen, and not of this"),
    (Filters(layers=("9",)), f"error: m.pt: no parameter and no module 9\n\nhint: {HAS}"),
    (Filters(dtypes=("int8",)), f"error: m.pt: nothing is selected by --dtype int8\n\nhint: {HAS}"),
]


@pytest.mark.parametrize(("filters", "text"), FILTER_ERRORS, ids=[text for _, text in FILTER_ERRORS])
def test_filter_error_says_what_would_work(filters, text):
    """The nearest type or dtype, or what there is."""
    assert error_of(NESTED, filters=filters, modules=TYPED) == text


def test_type_of_a_file_without_classes_is_an_error():
    """A state dict knows no types, and says which files do."""
    text = "error: m.pt: --type, and this torch-zip file knows no classes\n\n"
    text += "hint: whole pickled modules and Python definitions do; --layer and patterns work on any file"
    assert error_of(NESTED, filters=Filters(types=("Linear",))) == text


def test_empty_checkpoint_is_an_error():
    """Nothing found is no success."""
    assert error_of([]) == "error: m.pt: no tensors in it"


def test_error_through_the_command_line_is_whole(run, tmp_path):
    """Exit status 2, nothing on stdout, no traceback."""
    import torch

    torch.save({"0.weight": torch.zeros(2)}, tmp_path / "m.pt")
    result = run("ls", tmp_path / "m.pt", "0.wieght")
    text = f"error: {tmp_path}/m.pt: no parameter and no module 0.wieght\n\nhint: nearest: 0.weight\n"
    assert (result.code, result.out, result.err) == (2, "", text)


# ----------------------------------------------------------------------------- nothing hangs

LONG = "a" * 100_000
HOSTILE = [
    "*a*a*a*a*a*a*a*a*b",
    "*" * 5_000 + "b",
    "*a" * 500 + "b",
    "{a,aa}" * 6 + "*b",
    "*{a,aa}*{a,aa}*{a,aa}*b",
    "*[0-31]*[0-31]*[0-31]b",
    "[!b]" * 1_000 + "*b",
    "[a-z]*[a-z]*[a-z]*[a-z]b",
    LONG[:20_000] + "b*",
    "[" * 50_000 + "]",
    "[99999999999999999999999999]",
    "[0]" * 20_000,
    "[0-99999999999999999]*b",
    "zz" + LONG,
    "1.weight[" + "0," * 20_000 + "0]",
]
REFUSED = ["{" * 50_000, "{a,b}" * 50, "[9" * 3_000 + "-1]", "[0-" + "9" * 5_000 + "]x", "{a,{b,{c," * 30 + "}" * 90]


@pytest.mark.parametrize("pattern", HOSTILE + REFUSED, ids=lambda p: f"{p[:24]}…{len(p)}")
def test_hostile_pattern_is_answered_at_once(pattern):
    """No pattern and no name makes it hang: long names, many stars, nested braces, endless numbers."""
    made = checkpoint([LONG, "x." + LONG, "1." * 50_000, *NESTED])
    began = time.process_time()
    assert len(error_of(made, pattern).splitlines()) <= 3
    assert time.process_time() - began < 4  # a second, on a machine that is not busy


@pytest.mark.parametrize("pattern", REFUSED, ids=lambda p: f"{p[:24]}…{len(p)}")
def test_pattern_that_stands_for_too_much_is_refused(pattern):
    """With an error that points at it, and not with a long wait."""
    assert "^" in error_of(NESTED, pattern)


def test_ninety_thousand_names_are_searched_in_the_time_of_one_pass():
    """A slice on a wildcard that takes all of them, and an unknown name, are no slower by their number squared."""
    made = checkpoint([f"layers.{i}.experts.{j}.weight" for i in range(60) for j in range(500)])
    began = time.process_time()
    assert len(select(made, ["*.weight[:]"]).picks) == 30_000
    assert len(select(made, ["layers.[0-59].experts.{1,2}", "*"]).chosen) == 30_000
    error_of(made, "layers.3.experts.7.wieght")
    assert time.process_time() - began < 6


def test_unreadable_name_is_never_said_whole():
    """A name of 100,000 characters is shortened in the error, and escapes are spelled out."""
    text = error_of(["\x1b" * 100_000], "zz")
    assert len(text) < 500
    assert re.search(r"[\x00-\x09\x0b-\x1f]", text) is None


def test_errors_are_of_the_kind_that_the_command_line_shows():
    """A malformed pattern is a SelectError."""
    with pytest.raises(SelectError):
        resolve(checkpoint(NESTED), "[")
