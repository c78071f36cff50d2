"""torch.nn.init is the oracle of every named initializer, and closed forms of the random ones."""

from __future__ import annotations

import inspect
import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from paramctl.errors import InitError
from paramctl.initializers import COLUMNS, INITIALIZERS, parse, rows

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz)
SHAPES = ((), (7,), (4, 4), (8, 3), (3, 8), (5, 40), (6, 4, 3), (6, 3, 3, 3), (2, 2, 3, 3, 3), (0, 4), (4, 0))
CALLS = {
    "uniform": ({}, {"a": -3.0, "b": 0.5}),
    "normal": ({}, {"mean": 2.0, "std": 0.01}),
    "trunc_normal": ({}, {"std": 0.02, "a": -0.03, "b": 0.01}, {"mean": 3.0, "a": 4.0, "b": 5.0}),
    "constant": ({"val": 42}, {"val": -0.1}),
    "ones": ({},),
    "zeros": ({},),
    "eye": ({},),
    "dirac": ({}, {"groups": 2}),
    "xavier_uniform": ({}, {"gain": 1.7}),
    "xavier_normal": ({}, {"gain": 0.3}),
    "kaiming_uniform": ({}, {"a": math.sqrt(5)}, {"mode": "fan_out", "nonlinearity": "relu"}),
    "kaiming_normal": ({}, {"mode": "fan_out", "nonlinearity": "tanh"}),
    "orthogonal": ({}, {"gain": 1.5}),
    "sparse": ({"sparsity": 0.1}, {"sparsity": 0.5, "std": 2.0}),
}
ORACLES = {name: getattr(nn.init, name + "_") for name in CALLS}


def written(name, arguments):
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).tolist() if tensor.numel() else []


def drawn(fill, tensor):
    """The tensor, and the random number after it."""
    torch.manual_seed(1234)
    fill(tensor)
    return bits(tensor), torch.rand(()).item()


def test_every_initializer_of_torch_is_here():
    """No in-place function of torch.nn.init is missing, and what else there is is known."""
    theirs = {key[:-1] for key in dir(nn.init) if key.endswith("_") and not key.startswith("_")}
    assert set(INITIALIZERS) - set(OURS) == theirs == set(CALLS)


OURS = {  # what torch.nn.init has not: a call, and the standard deviation of its law for 200 of 100 channels of 3×3
    "lecun_uniform": ("", math.sqrt(1 / 900)),
    "lecun_normal": ("", math.sqrt(1 / 900)),
    "trunc_normal_fan_in": ("(scale=2.0)", math.sqrt(2 / 900)),
    "gpt2_residual": ("(layers=12)", 0.02 / math.sqrt(24)),
    "delta_orthogonal": ("(gain=2)", 2 * math.sqrt(1 / 200 / 9)),
}


@pytest.mark.parametrize("name", OURS)
def test_what_torch_has_not_has_its_laws_spread(name):
    """The mean is 0, the standard deviation that of the law, and with one seed the values are the same."""
    arguments, std = OURS[name]
    torch.manual_seed(0)
    tensor = torch.full((200, 100, 3, 3), 9.0)
    parse(name + arguments)(tensor)
    assert float(tensor.std()) == pytest.approx(std, rel=0.01)
    assert float(tensor.mean()) == pytest.approx(0, abs=std / 100)
    assert drawn(parse(name + arguments), torch.empty(4, 3, 3)) == drawn(parse(name + arguments), torch.empty(4, 3, 3))


def test_the_bounds_of_laws_are_kept():
    """LeCun's uniform stays within sqrt(3 / fan_in), and the truncated normal within two of its own deviations."""
    uniform, truncated = torch.empty(100, 50), torch.empty(1000, 50)
    torch.manual_seed(0)
    parse("lecun_uniform")(uniform)
    parse("trunc_normal_fan_in")(truncated)
    assert 0.9 * math.sqrt(3 / 50) < float(uniform.abs().max()) <= math.sqrt(3 / 50)
    most = 2 * math.sqrt(1 / 50) / 0.87962566103423978
    assert 0.9 * most < float(truncated.abs().max()) <= most * (1 + 1e-6)


def test_delta_orthogonal_keeps_the_norm():
    """Off the centre all is 0, at the centre the columns are orthonormal, so that a convolution keeps a signal's norm."""
    torch.manual_seed(0)
    kernel = torch.empty(6, 4, 3, 3, dtype=torch.float64)
    parse("delta_orthogonal")(kernel)
    centre = kernel[:, :, 1, 1].clone()
    torch.testing.assert_close(centre.t() @ centre, torch.eye(4, dtype=torch.float64))
    kernel[:, :, 1, 1] = 0
    assert not kernel.any()
    signal = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    kernel[:, :, 1, 1] = centre
    made = nn.functional.conv2d(signal, kernel, padding=1)
    assert float(made.norm()) == pytest.approx(float(signal.norm()))


REFUSED = {
    ("lecun", (3,)): "needs two dimensions or more for its fans; this has 1",
    ("delta_orthogonal", (3, 4)): "needs three to five dimensions; this has 2",
    ("delta_orthogonal", (2, 4, 3)): "needs as many output channels as input channels; this has 2 and 4",
}


@pytest.mark.parametrize(("name", "shape"), REFUSED, ids=str)
def test_where_they_cannot_work(name, shape):
    """A shape that a law has no meaning for is told."""
    assert parse(name).cannot(shape, "float32") == REFUSED[name, shape]


def test_arguments_that_cannot_work_are_refused():
    """Layers and scale are held against what they can be."""
    for text, said in (
        ("gpt2_residual", "gpt2_residual: needs layers"),
        ("gpt2_residual(layers=0)", "gpt2_residual(layers=0): layers is a whole number from 1, not 0"),
        ("trunc_normal_fan_in(scale=0)", "trunc_normal_fan_in(scale=0): scale is more than 0, not 0"),
    ):
        with pytest.raises(InitError) as told:
            parse(text)
        assert told.value.what == said


def test_arguments_are_torchs():
    """Names and defaults of arguments are torch's, but for the generator."""
    for name, oracle in ORACLES.items():
        theirs = [p for p in inspect.signature(oracle).parameters.values() if p.name not in {"tensor", "generator"}]
        assert list(INITIALIZERS[name].parameters) == theirs


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore:Initializing zero-element", "ignore:mean is more than 2 std")
def test_bit_for_bit_torch(name, dtype):
    """With one seed a scheme gives torch's bits, and leaves the random state where torch does."""
    for arguments in CALLS[name]:
        scheme = parse(written(name, arguments))
        for shape in SHAPES:
            if scheme.cannot(shape, dtype_name(dtype)):
                continue
            ours = drawn(scheme, torch.full(shape, 9, dtype=dtype))
            lifted = name == "orthogonal" and dtype in {torch.float16, torch.bfloat16}
            wide = torch.full(shape, 9, dtype=torch.float32 if lifted else dtype)
            _, after = drawn(lambda t, a=arguments: ORACLES[name](t, **a), wide)
            assert ours == (bits(wide.to(dtype)), after), (arguments, shape)


@pytest.mark.parametrize("name", CALLS)
def test_strided_views_are_filled_as_torch_fills_them(name):
    """A view with gaps gets torch's values for that view, and what lies between stays."""
    scheme = parse(written(name, CALLS[name][0]))
    shape = (4, 5, 3) if name == "dirac" else (4, 5)
    for layout in (lambda b: b[::2, 1::2][:4, :5], lambda b: b[:5, :4].transpose(0, 1)):
        ours, theirs = (torch.full((8, 12, 3)[: len(shape)], 9.0) for _ in range(2))
        assert drawn(lambda base, view=layout: scheme(view(base)), ours) == drawn(
            lambda base, view=layout: ORACLES[name](view(base), **CALLS[name][0]), theirs
        )


def test_orthogonal_in_layouts_torch_cannot_view():
    """A channels-last kernel is orthogonal too, with the values that a contiguous one has."""
    dense, last = torch.empty(4, 3, 3, 3), torch.empty(4, 3, 3, 3).to(memory_format=torch.channels_last)
    assert drawn(parse("orthogonal"), last) == drawn(nn.init.orthogonal_, dense)


@pytest.mark.parametrize("dtype", FLOAT8, ids=dtype_name)
@pytest.mark.parametrize("name", CALLS)
def test_float8_is_float32_rounded(name, dtype):
    """What torch cannot draw in float8 is torch's float32 draw, rounded."""
    scheme = parse(written(name, CALLS[name][0]))
    shape = (6, 4, 3) if name == "dirac" else (6, 4)
    assert scheme.cannot(shape, dtype_name(dtype)) == ""
    wide = torch.empty(shape)
    _, after = drawn(lambda t: ORACLES[name](t, **CALLS[name][0]), wide)
    assert drawn(scheme, torch.empty(shape, dtype=dtype)) == (bits(wide.to(dtype)), after)


@pytest.mark.parametrize("name", CALLS)
def test_cannot_says_what_torch_would(name):
    """`cannot` is silent exactly where the scheme works, for every shape and type of torch."""
    scheme = parse(written(name, CALLS[name][0]))
    for dtype in (*FLOATS, *FLOAT8, torch.complex64, torch.int64, torch.uint8, torch.uint16, torch.bool):
        for shape in ((), (3,), (3, 2), (3, 2, 2), (3, 2, 2, 2), (3, 2, 2, 2, 2), (3, 2, 2, 2, 2, 2)):
            if name == "constant" and dtype == torch.bool:
                continue  # torch would make 42 True
            try:
                scheme.function(torch.zeros(shape, dtype=dtype), **scheme.arguments)
                works = True
            except (ValueError, RuntimeError):
                works = False
            assert works == (scheme.cannot(shape, dtype_name(dtype)) == ""), (shape, dtype)


@pytest.mark.parametrize(
    ("text", "shape", "dtype", "why"),
    [
        ("xavier", (4,), "float32", "needs two dimensions or more for its fans; this has 1"),
        ("he_normal", (), "float32", "needs two dimensions or more for its fans; this has 0"),
        ("orthogonal", (4,), "float32", "needs two dimensions or more; this has 1"),
        ("sparse(0.1)", (4, 4, 4), "float32", "needs two dimensions; this has 3"),
        ("eye", (4,), "float32", "needs two dimensions; this has 1"),
        ("dirac", (4, 4), "float32", "needs three to five dimensions; this has 2"),
        ("dirac(3)", (4, 4, 3), "float32", "needs a first dimension that 3 groups divide; this is 4"),
        ("normal", (4,), "int64", "needs a floating-point type; this is int64"),
        ("uniform", (4,), "bool", "needs a floating-point type; this is bool"),
        ("normal", (4,), "qint8", "needs a floating-point type; this is qint8"),
        ("normal", (4,), "Q4_K", "needs a floating-point type; this is Q4_K"),
        ("trunc_normal", (4,), "complex64", "needs a real floating-point type; this is complex64"),
        ("normal", (4,), "float4_e2m1fn_x2", "torch cannot fill float4_e2m1fn_x2"),
        ("normal", (4,), "float6_e2m3fn", "torch cannot fill float6_e2m3fn"),
        ("zeros", (4,), "quint8", "torch cannot fill quint8"),
        ("normal", (4,), "float8_e8m0fnu", "float8_e8m0fnu cannot hold 0"),
        ("zeros", (4,), "float8_e8m0fnu", "float8_e8m0fnu cannot hold 0"),
        ("constant(3)", (4,), "float8_e8m0fnu", "float8_e8m0fnu cannot hold 3"),
        ("constant(0.5)", (4,), "int64", "int64 cannot hold 0.5"),
        ("constant(-1)", (4,), "uint8", "uint8 cannot hold -1"),
        ("constant(300)", (4,), "uint8", "uint8 cannot hold 300"),
        ("constant(42)", (4,), "bool", "bool cannot hold 42"),
        ("constant(nan)", (4,), "int32", "int32 cannot hold nan"),
        ("constant(1e6)", (4,), "float16", "float16 cannot hold 1000000.0"),
        ("constant(inf)", (4,), "float8_e4m3fn", "float8_e4m3fn cannot hold inf"),
        ("constant(1j)", (4,), "float32", "float32 cannot hold 1j"),
        ("constant(2)", (4,), "float8_e8m0fnu", ""),
        ("constant(0.1)", (4,), "bfloat16", ""),
        ("constant(-inf)", (4,), "float16", ""),
        ("constant(nan)", (4,), "float16", ""),
        ("constant(1j)", (4,), "complex64", ""),
        ("constant(1e300)", (4,), "float64", ""),
        ("constant(7)", (4,), "uint64", ""),
        ("ones", (), "bool", ""),
        ("xavier", (0, 0), "float32", ""),
        ("normal", (4,), "complex32", ""),
    ],
)
def test_why_a_scheme_cannot_work(text, shape, dtype, why):
    """The reason names what is wanted and what is there."""
    assert parse(text).cannot(shape, dtype) == why


def test_an_empty_tensor_is_left_alone():
    """A tensor without elements is no error for any scheme, and draws nothing."""
    for name, (arguments, *_) in CALLS.items():
        torch.manual_seed(0)
        parse(written(name, arguments))(torch.empty(0, 0))
        assert torch.initial_seed() == 0
        assert torch.equal(torch.get_rng_state(), torch.manual_seed(0).get_state()), name


def test_a_parameter_keeps_its_grad():
    """Filling a leaf that requires grad records nothing."""
    for name, (arguments, *_) in CALLS.items():
        parameter = nn.Parameter(torch.zeros((4, 4, 3) if name == "dirac" else (4, 4)))
        parse(written(name, arguments))(parameter)
        assert (parameter.requires_grad, parameter.grad_fn) == (True, None)


GAINS = {"linear": 1, "relu": math.sqrt(2), "tanh": 5 / 3, "leaky_relu": math.sqrt(2 / (1 + 0.01**2))}


@pytest.mark.parametrize(
    ("text", "std", "bound"),
    [
        ("xavier_uniform", math.sqrt(2 / 1800), math.sqrt(6 / 1800)),
        ("xavier_normal(gain=3)", 3 * math.sqrt(2 / 1800), math.inf),
        ("kaiming_uniform", math.sqrt(2 / 1200), math.sqrt(6 / 1200)),
        ("kaiming_uniform(a=2)", math.sqrt(2 / 5 / 1200), math.sqrt(6 / 5 / 1200)),
        ("kaiming_normal(mode=fan_out, nonlinearity=relu)", math.sqrt(2 / 600), math.inf),
        ("kaiming_normal(nonlinearity='tanh')", 5 / 3 / math.sqrt(1200), math.inf),
        ("uniform(-2, 1)", 3 / math.sqrt(12), 2),
        ("normal(std=0.01)", 0.01, math.inf),
        ("trunc_normal", 0.87962566, 2),  # 1 - 2·2·φ(2) / (Φ(2) - Φ(-2)), its root
    ],
)
def test_spread_is_the_laws(text, std, bound):
    """Over 720,000 draws the standard deviation is the closed form's within 5 sigma, and no draw leaves the bounds."""
    torch.manual_seed(7)
    tensor = torch.empty(600, 1200, dtype=torch.float64)
    parse(text)(tensor)
    sigma = std / math.sqrt(2 * tensor.numel())  # of a normal sample's; a uniform one's is less
    assert abs(tensor.std(correction=0).item() - std) < 5 * sigma
    assert tensor.abs().max().item() <= bound


def test_orthogonal_sparse_and_dirac_are_what_they_say():
    """Rows are orthogonal; a fraction of each column is zero; a Dirac kernel passes its input through."""
    rows_ = torch.empty(5, 40, dtype=torch.float64)
    parse("orthogonal(gain=2)")(rows_)
    torch.testing.assert_close(rows_ @ rows_.T, 4 * torch.eye(5, dtype=torch.float64))
    column = torch.empty(10, 6)
    parse("sparse(0.25)")(column)
    assert (column == 0).sum(0).tolist() == [3] * 6
    conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    parse("dirac")(conv.weight)
    image = torch.randn(1, 3, 5, 5)
    assert torch.equal(conv(image), image)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("xavier", "xavier_uniform"),
        ("glorot", "xavier_uniform"),
        ("glorot_uniform", "xavier_uniform"),
        ("glorot_normal", "xavier_normal"),
        ("kaiming", "kaiming_uniform"),
        ("he", "kaiming_uniform"),
        ("he_uniform", "kaiming_uniform"),
        ("he_normal", "kaiming_normal"),
        ("gaussian", "normal"),
        ("identity", "eye"),
        ("trunc", "trunc_normal"),
        ("truncated_normal", "trunc_normal"),
        ("Xavier_Uniform_", "xavier_uniform"),
        ("  normal ( 0 , .01 ) ", "normal(std=0.01)"),
        ("normal(std=1.0)", "normal"),
        ("normal()", "normal"),
        ("constant(42)", "constant(val=42)"),
        ("constant(-inf)", "constant(val=-inf)"),
        ("constant(True)", "constant(val=True)"),
        ("kaiming_normal(nonlinearity=relu)", 'kaiming_normal(nonlinearity="relu")'),
        (
            "kaiming_normal(nonlinearity='relu', mode=\"fan_out\")",
            'kaiming_normal(mode="fan_out", nonlinearity="relu")',
        ),
        ("default", "default"),
        ("default()", "default"),
    ],
)
def test_canonical_text(text, canonical):
    """One scheme has one text, whatever its spelling, and that text parses to itself."""
    assert parse(text).text == canonical
    assert parse(canonical).text == canonical


def test_no_short_name_means_two():
    """Every alias names one initializer."""
    names = [alias for one in INITIALIZERS.values() for alias in (one.name, *one.aliases)]
    assert len(names) == len(set(names))


def test_parsing_draws_nothing():
    """Checking arguments leaves the global random state as it was."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for name, calls in CALLS.items():
        for arguments in calls:
            parse(written(name, arguments))
    assert torch.equal(torch.get_rng_state(), before)


LIST = "`paramctl init --list` lists them all"
TABLE = [
    ("xavir", f"no scheme 'xavir'\n\nhint: did you mean xavier, xavier_normal, xavier_uniform? {LIST}"),
    ("qqq", f"no scheme 'qqq'\n\nhint: {LIST}"),
    ("", f"not a scheme: ''\n\nhint: write NAME, NAME(arg=value) or file.py:function; {LIST}"),
    ("\x1b[1m", f"not a scheme: '\\x1b[1m'\n\nhint: write NAME, NAME(arg=value) or file.py:function; {LIST}"),
    ("init.py", "init.py: names no function\n\nhint: write init.py:FUNCTION"),
    ("nowhere.py:f", "nowhere.py: no such file"),
    ("no_such_module:f", "no_such_module: ModuleNotFoundError: No module named 'no_such_module'"),
    ("math:sine", "math: there is no sine in it\n\nhint: sin or sinh or asin?"),
    ("math:pi", "math: pi is no function"),
    ("normal(sdt=1)", "normal: no argument 'sdt'\n\nhint: it takes mean=0.0, std=1.0"),
    ("normal(generator=1)", "normal: no argument 'generator'\n\nhint: it takes mean=0.0, std=1.0"),
    ("zeros(1)", "zeros: too many positional arguments\n\nhint: it takes no arguments"),
    ("default(1)", "default: too many positional arguments\n\nhint: it takes no arguments"),
    ("constant", "constant: needs val\n\nhint: it takes val"),
    ("sparse(std=1)", "sparse: needs sparsity\n\nhint: it takes sparsity, std=0.01"),
    ("normal(1, mean=2)", "normal: multiple values for argument 'mean'\n\nhint: it takes mean=0.0, std=1.0"),
    ('normal(mean="a")', 'normal: mean is a number, not "a"\n\nhint: it takes mean=0.0, std=1.0'),
    ("constant(None)", "constant: val is a number, not None\n\nhint: it takes val"),
    ("constant((1, 2))", "constant: val is a number, not (1, 2)\n\nhint: it takes val"),
    (
        "normal(std=-1)",
        "normal(std=-1): normal expects std >= 0.0, but found std -1\n\nhint: it takes mean=0.0, std=1.0",
    ),
    (
        "sparse(2)",
        "sparse(sparsity=2): sparsity is a fraction from 0 to 1, not 2\n\nhint: it takes sparsity, std=0.01",
    ),
    ("dirac(0)", "dirac(groups=0): groups is a whole number from 1, not 0\n\nhint: it takes groups=1"),
    (
        "trunc_normal(std=0)",
        (
            "trunc_normal(std=0): mean must be finite, std finite and more than 0, and a at most b\n\n"
            "hint: it takes mean=0.0, std=1.0, a=-2.0, b=2.0"
        ),
    ),
    (
        "trunc_normal(mean=1e30)",  # torch would never return
        (
            "trunc_normal(mean=1e+30): [a, b] is too far from the mean: next to none of N(mean, std²) lies there\n\n"
            "hint: it takes mean=0.0, std=1.0, a=-2.0, b=2.0"
        ),
    ),
    ("kaiming(mode=foo)", 'kaiming_uniform: mode is one of fan_in, fan_out, not "foo"'),
    ("kaiming(mode=3)", "kaiming_uniform: mode is one of fan_in, fan_out, not 3"),
    (
        "kaiming(nonlinearity='foo')",
        (
            "kaiming_uniform: nonlinearity is one of linear, conv1d, conv2d, conv3d, conv_transpose1d, "
            'conv_transpose2d, conv_transpose3d, sigmoid, tanh, relu, leaky_relu, selu, not "foo"'
        ),
    ),
    ("normal(std=0.01", "'(' was never closed\nnormal(std=0.01\n      ^"),
    ("normal(1)(2)", "a scheme ends with its arguments\nnormal(1)(2)\n      ^"),
    (
        "normal(std=f(1))",
        f"not a number, a string, True, False, None or a tuple\nnormal(std=f(1))\n{' ' * 11}^",
    ),
    (
        "normal(é, -x)",
        f"not a number, a string, True, False, None or a tuple\nnormal(é, -x)\n{' ' * 10}^",
    ),
    ("normal(**x)", f"`**` is not taken here\nnormal(**x)\n{' ' * 7}^"),
    ("normal(std=1, std=2)", f"std is given twice\nnormal(std=1, std=2)\n{' ' * 14}^"),
]


@pytest.mark.parametrize(("text", "message"), TABLE, ids=[text for text, _ in TABLE])
def test_what_an_error_says(text, message, tmp_path, monkeypatch):
    """An error says what is wrong, and what would work, in three lines."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InitError) as caught:
        parse(text)
    assert str(caught.value) == f"error: {message}"
    assert len([line for line in str(caught.value).splitlines() if line]) <= 3


@given(st.text(max_size=40) | st.text("normal(xavier)=,.0123'\"\\*:-", max_size=40).map("normal(".__add__))
def test_any_text_is_a_scheme_or_an_error(text):
    """No text makes anything but a scheme or an InitError."""
    try:
        shown = parse(text).text
    except InitError as error:
        shown = str(error)
    assert len([line for line in shown.split("\n") if line]) <= 3


@pytest.mark.parametrize(
    "text", ["normal(" + "(" * 5000, "normal(" + "-" * 100_000 + "1)", "constant(" + "9" * 5000 + ")"]
)
def test_hostile_text(text):
    """Deep and long text is an error as any other."""
    with pytest.raises(InitError):
        parse(text)


def test_rows_fit_the_columns():
    """`init --list` has a row for each initializer, and one for the default."""
    assert [column.key for column in COLUMNS] == ["name", "aliases", "arguments", "law"]
    assert {len(row) for row in rows()} == {4}
    assert ("normal", ["gaussian"], "mean=0.0, std=1.0", "N(mean, std²)") in rows()
    assert [row[0] for row in rows()] == [*INITIALIZERS, "default"]


def test_default_is_each_modules_own():
    """`default` gives what the module's constructor gave, and passes over modules that have none."""
    scheme = parse("default")
    torch.manual_seed(3)
    first = nn.Linear(4, 3)
    second = nn.Linear(4, 3)
    torch.manual_seed(3)
    scheme(second)
    assert (scheme.of, torch.equal(first.weight, second.weight)) == ("default", True)
    scheme(nn.ReLU())


CUSTOM = '''
from __future__ import annotations
import torch
from torch import Tensor, nn
from typing import TYPE_CHECKING
from neighbour import SCALE
if TYPE_CHECKING:
    from elsewhere import FancyTensor, Tensor as T
print("loading")

def plain(t, std=0.02):
    """A law of one line."""
    print("running")
    t.normal_(std=std)

def returns(w, *, by=2.0):
    return torch.full_like(w, by) * SCALE

def turned(t):
    t.copy_(torch.arange(4).view(2, 2))
    return t.t()

def annotated(anything: Tensor): anything.fill_(1)
def parameter(anything: nn.Parameter | None): anything.fill_(2)
def unresolved(anything: T.Tensor): anything.fill_(3)
def linear(thing: nn.Linear, val): nn.init.constant_(thing.weight, val)
def module(m):
    if isinstance(m, nn.Linear): m.weight.fill_(5)
def loose(thing): pass
def nothing(): pass
def anything(t, **more): t.fill_(more["val"])
def wrong_shape(t): return torch.zeros(9)
def wrong_type(t): return 3
def fails(t):
    raise ValueError("no\\nluck")
def leaves(t): raise SystemExit(3)
number = 3
'''


@pytest.fixture
def custom(tmp_path):
    (tmp_path / "neighbour.py").write_text("SCALE = 1.5\n")
    (tmp_path / "my init (2).py").write_text(CUSTOM)
    yield f"{tmp_path}/my init (2).py"
    sys.modules.pop("neighbour", None)


@pytest.mark.parametrize(
    ("call", "of", "expected"),
    [
        ("returns", "tensor", [[3.0, 3.0], [3.0, 3.0]]),
        ("returns(by=4)", "tensor", [[6.0, 6.0], [6.0, 6.0]]),
        ("turned", "tensor", [[0.0, 2.0], [1.0, 3.0]]),
        ("annotated", "tensor", [[1.0, 1.0], [1.0, 1.0]]),
        ("parameter", "tensor", [[2.0, 2.0], [2.0, 2.0]]),
        ("unresolved", "tensor", [[3.0, 3.0], [3.0, 3.0]]),
        ("anything(val=7)", "tensor", [[7.0, 7.0], [7.0, 7.0]]),
        ("linear(4)", "module", [[4.0, 4.0], [4.0, 4.0]]),
        ("module", "module", [[5.0, 5.0], [5.0, 5.0]]),
    ],
)
def test_custom_functions(custom, call, of, expected):
    """A function of a tensor may write or return, one of a module is given the module; annotation or name tells."""
    scheme = parse(f"{custom}:{call}")
    layer = nn.Linear(2, 2)
    scheme(layer.weight if of == "tensor" else layer)
    assert (scheme.of, layer.weight.tolist(), layer.weight.requires_grad) == (of, expected, True)
    assert scheme.cannot((), "int64") == ""
    assert parse(scheme.text).text == scheme.text


def test_custom_prints_go_to_stderr(custom, capsys):
    """A custom file writes no data: what a custom file prints, loading or running, goes to stderr."""
    scheme = parse(f"{custom}:plain(0.5)")
    torch.manual_seed(0)
    scheme(ours := torch.empty(40))
    torch.manual_seed(0)
    assert torch.equal(ours, torch.empty(40).normal_(std=0.5))
    assert (scheme.text, scheme.law) == (f"{custom}:plain(std=0.5)", "A law of one line.")
    assert capsys.readouterr() == ("", "loading\nrunning\n")


def test_custom_leaves_the_path_as_it_was(custom):
    """The file's folder is importable while its code runs, and not after."""
    before = list(sys.path)
    parse(f"{custom}:plain")(torch.empty(3))
    assert sys.path == before


def test_custom_from_a_package():
    """`package.module:function` works as a file does; torch.nn.init's own functions are of a tensor."""
    scheme = parse("torch.nn.init:xavier_uniform_(gain=2.0)")
    assert drawn(scheme, torch.empty(4, 4)) == drawn(parse("xavier(2.0)"), torch.empty(4, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("plane", "FILE: there is no plane in it\n\nhint: plain or linear?"),
        ("number", "FILE: number is no function"),
        ("plain(sdt=1)", "FILE:plain: no argument 'sdt'\n\nhint: it takes std=0.02"),
        ("linear", "FILE:linear: needs val\n\nhint: it takes val"),
        (
            "nothing",
            "FILE:nothing takes nothing to initialize\n\nhint: its first argument is the tensor or the module",
        ),
        (
            "loose",
            (
                "FILE:loose: whether 'thing' is a tensor or a module is not plain\n\n"
                "hint: annotate it: def loose(thing: torch.Tensor), or torch.nn.Module"
            ),
        ),
        ("wrong_shape", "FILE:wrong_shape returned a tensor of the shape [9], the tensor's is [2, 2]"),
        ("wrong_type", "FILE:wrong_type returned int, not a tensor\n\nhint: change the tensor in place"),
        ("fails", 'FILE: my init (2).py, line 35, `raise ValueError("no\\\\nluck")`: ValueError: no luck'),
        ("leaves", "FILE: my init (2).py, line 36, `def leaves(t): raise SystemExit(3)`: SystemExit: 3"),
    ],
)
def test_what_a_custom_error_says(custom, call, message):
    """A fault of the user's code is told with its file, line and message."""
    with pytest.raises(InitError) as caught:
        parse(f"{custom}:{call}")(torch.zeros(2, 2))
    assert str(caught.value) == "error: " + message.replace("FILE", custom)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(t:\n", "FILE: bad.py, line 1, `def f(t:`: SyntaxError: '(' was never closed"),
        (
            "\nimport no_such_library\n",
            "FILE: bad.py, line 2, `import no_such_library`: ModuleNotFoundError: No module named 'no_such_library'",
        ),
        ("1 / 0\n", "FILE: bad.py, line 1, `1 / 0`: ZeroDivisionError: division by zero"),
        ("assert False\n", "FILE: bad.py, line 1, `assert False`: AssertionError"),
        ("raise SystemExit\n", "FILE: bad.py, line 1, `raise SystemExit`: SystemExit"),
    ],
)
def test_a_custom_file_that_does_not_load(tmp_path, source, message):
    """A file that fails to load is told with its line."""
    file = tmp_path / "bad.py"
    file.write_text(source)
    with pytest.raises(InitError) as caught:
        parse(f"{file}:f")
    assert str(caught.value) == "error: " + message.replace("FILE", str(file))
