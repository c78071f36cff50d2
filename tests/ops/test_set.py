"""torch's own indexing is the oracle of `set`: the same bits where it writes, the same bytes everywhere else."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import paramctl

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
COMPLEX = (torch.complex64, torch.complex128)
OPERATORS = ("=", "+=", "-=", "*=", "/=")
SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).tolist() if tensor.numel() else []


def same(a, b):
    """Bit for bit; a NaN that was computed is any NaN."""
    if bits(a) == bits(b):
        return True
    wide = [t.to(torch.complex128) if t.is_complex() else t.double() for t in (a, b)]
    return torch.equal(torch.isnan(wide[0]), torch.isnan(wide[1])) and all(
        x == y and math.copysign(1, complex(x).real) == math.copysign(1, complex(y).real)
        for x, y in zip(a[~a.isnan()].tolist(), b[~b.isnan()].tolist(), strict=True)
    )


def operate(tensor, index, operator, value):
    """What torch does for `tensor[index] operator value`."""
    if operator == "=":
        tensor[index] = value
        return
    view = tensor[index]
    {"+=": view.add_, "-=": view.sub_, "*=": view.mul_, "/=": view.div_}[operator](value)


@st.composite
def indices(draw, shape):
    """An index as text and as Python has it: integers, slices, an ellipsis. torch has no negative steps."""
    texts, items = [], []
    axes = list(shape[: draw(st.integers(0, len(shape)))])
    for size in axes:
        if size and draw(st.booleans()):
            at = draw(st.integers(-size, size - 1))
            texts.append(str(at))
            items.append(at)
        else:
            ends = st.none() | st.integers(-size - 1, size + 1)
            start, stop, step = draw(ends), draw(ends), draw(st.none() | st.integers(1, 3))
            texts.append(":".join("" if part is None else str(part) for part in (start, stop, step)))
            items.append(slice(start, stop, step))
    if not axes or draw(st.booleans()):
        texts.append("...")
        items.append(...)
    return ", ".join(texts), tuple(items)


@st.composite
def cases(draw, dtypes, values):
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    dtype = draw(st.sampled_from(dtypes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    wide = torch.randn(shape, generator=generator, dtype=torch.float64) * 10
    tensor = wide.to(dtype) if not dtype.is_complex else torch.complex(wide, wide.flip(-1) if shape else wide).to(dtype)
    return tensor, draw(indices(shape)), draw(st.sampled_from(OPERATORS)), draw(values)


def written(run, tmp_path, state, *assignments, suffix=".pt"):
    """The state dict after `set` in a new file, with the old one checked to be as it was."""
    old, new = tmp_path / f"old{suffix}", tmp_path / f"new{suffix}"
    torch.save(state, old)
    before = old.read_bytes()
    result = run("set", old, *assignments, "-o", new)
    assert (result.code, result.err) == (0, ""), result.err
    assert old.read_bytes() == before
    return torch.load(new)


@SETTINGS
@given(case=cases(FLOATS, st.floats(-1e4, 1e4) | st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, 0.1, 3])))
def test_floats_are_torchs(run, tmp_path, case):
    """Floats of 16 to 64 bits: `t[index] op= number` gives torch's bits, and the tensor beside it keeps its own."""
    tensor, (text, index), operator, value = case
    beside = torch.arange(5.0)
    found = written(run, tmp_path, {"a.b": tensor, "c": beside}, f"a.b[{text}] {operator} {value!r}")
    expected = tensor.clone()
    operate(expected, index, operator, value)
    assert same(found["a.b"], expected)
    assert bits(found["c"]) == bits(beside)


@SETTINGS
@given(case=cases(INTS, st.integers(-300, 300)))
def test_integers_are_torchs_or_an_error(run, tmp_path, case):
    """Whole numbers give torch's where the type holds them; where torch would wrap or divide, it is an error."""
    tensor, (text, index), operator, value = case
    exact = tensor.to(torch.int64)
    path = tmp_path / "m.pt"
    torch.save({"a": tensor}, path)
    result = run("set", path, f"a[{text}] {operator} {value}", "--in-place")
    if exact[index].numel() == 0:
        assert result.code == 0
        return
    if operator != "/=":
        operate(exact, index, operator, value)
    limits = torch.iinfo(tensor.dtype)
    name = str(tensor.dtype).removeprefix("torch.")
    if operator == "/=":
        assert result.err == f"error: a: a[{text}] /= {value} gives floats, and it is {name}\n"
    elif exact.min() < limits.min or exact.max() > limits.max:
        assert result.err == f"error: a: {name} holds {limits.min:,} to {limits.max:,}\n"
    else:
        assert bits(torch.load(path)["a"]) == bits(exact.to(tensor.dtype))
        return
    assert result.code == 2
    assert bits(torch.load(path)["a"]) == bits(tensor)


@SETTINGS
@given(case=cases(COMPLEX, st.floats(-100, 100) | st.complex_numbers(max_magnitude=100, allow_nan=False)))
def test_complex_numbers_are_torchs(run, tmp_path, case):
    """Complex values, written `1+2j`: sums bit for bit, products and quotients to the last place or two."""
    tensor, (text, index), operator, value = case
    assume(not (operator == "/=" and abs(value) < 1e-3))
    number = repr(value).strip("()")
    found = written(run, tmp_path, {"a": tensor}, f"a[{text}] {operator} {number}")["a"]
    expected = tensor.clone()
    operate(expected, index, operator, value)
    if operator in {"*=", "/="}:
        torch.testing.assert_close(found, expected, rtol=1e-6 if found.dtype == torch.complex64 else 1e-15, atol=1e-4)
    else:
        assert torch.equal(found, expected)


@SETTINGS
@given(case=cases((torch.bool,), st.sampled_from(["True", "False", 0, 1])))
def test_bools_are_assigned(run, tmp_path, case):
    """`=` works on bools, with True, False, 0 and 1."""
    tensor, (text, index), _, value = case
    found = written(run, tmp_path, {"a": tensor}, f"a[{text}] = {value}")["a"]
    expected = tensor.clone()
    expected[index] = value in {"True", 1}
    assert torch.equal(found, expected)


@SETTINGS
@given(
    st.sampled_from([*FLOATS, torch.int32, torch.uint8, torch.bool]),
    st.sampled_from(FLOATS),
    st.sampled_from(OPERATORS),
    st.sampled_from([(3, 4), (4,), (1,), (3, 1), ()]),
    st.integers(0, 1000),
)
def test_values_from_another_tensor_are_torchs(run, tmp_path, theirs, ours, operator, shape, seed):
    """Another tensor of any type is broadcast and cast as torch does it, bit for bit."""
    assume(not (theirs == torch.bool and operator == "-="))  # torch refuses
    generator = torch.Generator().manual_seed(seed)
    target = (torch.randn(3, 4, generator=generator) * 10).to(ours)
    source = (torch.rand(shape, generator=generator, dtype=torch.float64) * 200 + 1).to(theirs)
    found = written(run, tmp_path, {"t": target, "s": source}, f"t {operator} s")
    expected = target.clone()
    operate(expected, ..., operator, source)
    assert same(found["t"], expected)
    assert bits(found["s"]) == bits(source)


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
)
def test_float8_is_assigned(run, tmp_path, dtype):
    """`=` rounds to a type of eight bits as torch does."""
    tensor = torch.linspace(-3, 3, 12).view(3, 4).to(dtype)
    found = written(run, tmp_path, {"a": tensor}, "a[0] = 0.3", "a[1, ::2] = [17, -1e-3]")["a"]
    expected = tensor.clone()
    expected[0] = 0.3
    expected.view(torch.uint8)[1, ::2] = torch.tensor([17, -1e-3]).to(dtype).view(torch.uint8)
    assert bits(found) == bits(expected)


@pytest.mark.parametrize("name", ["uint16", "uint32", "uint64"])
def test_unsigned_integers_are_exact(run, tmp_path, name):
    """The largest value of a type is held and one more is refused, exactly."""
    dtype = getattr(torch, name)
    most = torch.iinfo(dtype).max
    found = written(run, tmp_path, {"a": torch.zeros(3, dtype=dtype)}, f"a[0] = {most}", "a[1] += 7", "a[2] = a[0]")
    assert found["a"].tolist() == [most, 7, most]
    result = run("set", tmp_path / "new.pt", "a += 1")
    assert (result.code, result.out, result.err) == (2, "", f"error: a: {name} holds 0 to {most:,}\n")


def test_nan_payloads_are_copied(run, tmp_path):
    """One tensor assigned to another of its type is a copy of bits."""
    for dtype, pattern in ((torch.bfloat16, 0x7FA5), (torch.float16, 0x7D01), (torch.float32, 0x7FA00001)):
        whole = torch.int16 if dtype.itemsize == 2 else torch.int32
        source = torch.tensor([pattern, 5], dtype=whole).view(dtype)
        found = written(run, tmp_path, {"a": torch.zeros(2, dtype=dtype), "b": source}, "a = b")
        assert bits(found["a"]) == bits(source)


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        (["0.weight[:] += 1", "0.weight[0, 0] = 42"], lambda w, b: (w.add_(1), w[0].__setitem__(0, 42))),
        (["0.weight = [[1, 2, 3], [4, 5, 6]]"], lambda w, b: w.copy_(torch.tensor([[1, 2, 3], [4, 5, 6]]))),
        (["0.weight[1] = (7, 8, 9)"], lambda w, b: w[1].copy_(torch.tensor([7, 8, 9]))),
        (["0.weight[:, ::-1] = [1, 2, 3]"], lambda w, b: w.copy_(torch.tensor([3.0, 2, 1]).expand(2, 3))),
        (["0.weight[:, 0] = 0.bias"], lambda w, b: w[:, 0].copy_(b)),
        (["0.weight *= 2", "0.weight *= 2"], lambda w, b: w.mul_(4)),
        (["0.bias += 1", "0.weight[:, 1] = 0.bias"], lambda w, b: w[:, 1].copy_(b.add_(1))),
        (["0.weight += 0.weight"], lambda w, b: w.mul_(2)),
        (["*.bias[:] = 0"], lambda w, b: b.zero_()),
        (["[0].weight[..., -1] = -inf"], lambda w, b: w[..., -1].fill_(-math.inf)),
        (["re:bias = nan"], lambda w, b: b.fill_(math.nan)),
        (["0.bias=+1e-3"], lambda w, b: b.fill_(1e-3)),
        (["0.weight[0:0] = 5"], lambda w, b: None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_what_assignments_mean(run, tmp_path, kind, assignments, expected):
    """Slices, wildcards, positions, lists and tensors; a later assignment sees what an earlier one did."""
    from safetensors.torch import load_file, save_file

    weight, bias = torch.randn(2, 3), torch.randn(2)
    state = {"0.weight": weight, "0.bias": bias, "other": torch.randn(4)}
    path = tmp_path / f"m.{kind}"
    save_file(state, path) if kind == "safetensors" else torch.save(state, path)
    dry = run("set", path, *assignments, "-f", "json")
    wet = run("set", path, *assignments, "--in-place", "-f", "json")
    assert (dry.code, wet.code) == (0, 0)
    assert dry.rows == wet.rows, "the plan says what is done"
    assert dry.err == "nothing was written; -o OUT or --in-place writes\n"
    expected(weight, bias)
    found = load_file(path) if kind == "safetensors" else torch.load(path)
    assert {name: bits(tensor) for name, tensor in found.items()} == {name: bits(t) for name, t in state.items()}


def test_names_with_operators_in_them(run, tmp_path):
    """A name may hold what reads as an operator: the first reading whose target is there is taken."""
    state = {"a = b": torch.zeros(1), "c+=d.weight": torch.zeros(1), "block 0.w": torch.zeros(1), "=": torch.zeros(1)}
    texts = ["a = b = 1", "c+=d.weight += 2", "block 0.w=3", "= = 4"]
    found = written(run, tmp_path, state, *texts)
    assert [tensor.item() for tensor in found.values()] == [1, 2, 3, 4]


def test_a_tie_changes_with_its_twin(run, tmp_path):
    """An assignment to one name of a tie is one to the other, and says so."""
    shared = torch.zeros(2, 2)
    state = {"a": shared, "b": shared, "view": shared[0]}
    result = run("set", *_saved(tmp_path, state), "b[0, 1] = 5", "--in-place", "-f", "json")
    assert result.rows == [
        {"name": "b", "shape": [], "dtype": "float32", "action": "set", "detail": "b[0, 1] = 5: 0 → 5",
         "tied_with": ["a", "view"]}
    ]  # fmt: skip
    found = torch.load(tmp_path / "m.pt")
    assert (found["a"][0, 1], found["view"][1]) == (5, 5)
    assert found["a"].data_ptr() == found["b"].data_ptr() == found["view"].data_ptr()


def _saved(tmp_path, state):
    torch.save(state, tmp_path / "m.pt")
    return (tmp_path / "m.pt",)


def test_an_expanded_tensor(run, tmp_path):
    """Elements that share bytes can be assigned, and not counted up one by one."""
    path = _saved(tmp_path, {"a": torch.ones(3).expand(2, 3)})
    assert run("set", *path, "a = 5", "--in-place").code == 0
    assert torch.load(*path)["a"].tolist() == [[5.0] * 3] * 2
    result = run("set", *path, "a += 1", "--in-place")
    assert result.err == "error: a: its elements share bytes, and += would count some twice\n\nhint: = works\n"


def test_a_definition_is_set_and_written(run, tmp_path):
    """A definition's parameters are set as it was built under the seed, and written as a state dict."""
    run("set", "models/mlp.py", "0.weight[:] += 1", "0.weight[0, 0] = 42", "--seed", 3, "-o", tmp_path / "m.pt")
    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    net[0].weight.data[:] += 1
    net[0].weight.data[0, 0] = 42
    found = torch.load(tmp_path / "m.pt")
    assert {name: bits(t) for name, t in found.items()} == {name: bits(t) for name, t in net.state_dict().items()}


def test_the_api_is_the_command(run, tmp_path):
    """`Model.set` plans what the command plans."""
    path = _saved(tmp_path, {"a": torch.zeros(3)})[0]
    paramctl.open(path).set("a[1:] = 2").write(tmp_path / "n.pt")
    assert torch.load(tmp_path / "n.pt")["a"].tolist() == [0, 2, 2]


STATE = {
    "0.weight": torch.zeros(2, 3),
    "0.bias": torch.zeros(2),
    "steps": torch.zeros(2, dtype=torch.int64),
    "small": torch.zeros(2, dtype=torch.uint8),
    "half": torch.zeros(2, dtype=torch.float16),
    "mask": torch.zeros(2, dtype=torch.bool),
    "eight": torch.zeros(2).to(torch.float8_e5m2),
    "wave": torch.zeros(2, dtype=torch.complex64),
}
ERRORS = [
    (["0.wieght = 1"], "FILE: no parameter and no module 0.wieght\n\nhint: nearest: 0.weight, eight"),
    (["0 = 1"], "0 is a module, and not a parameter\n\nhint: write 0.* to mean all below it"),
    (["0.weight[2] = 1"], "0.weight[2]: 2 is out of range, axis 0 has 2"),
    (["0.weight[0, 0, 0] = 1"], "0.weight[0, 0, 0]: 3 indices, and it has 2 dimensions"),
    (["0.weight[a] = 1"], "an index is a whole number\n0.weight[a]\n         ^"),
    (["0.weight[::0] = 1"], "a step cannot be 0\n0.weight[::0]\n         ^"),
    (["0.weight[] = 1"], "the slice is empty\n0.weight[]\n         ^"),
    (["0.weight = [1, 2]"], "0.weight is 2×3, and the value is 2"),
    (["0.weight[0] = [1, 2]"], "0.weight[0] is 3, and the value is 2"),
    (["0.weight[0, 0] = [1]"], "0.weight[0, 0] is a scalar, and the value is 1"),
    (["0.weight = 0.bias"], "0.weight is 2×3, and the value is 2"),
    (["0.bias = 0.weight"], "0.bias is 2, and the value is 2×3"),
    (["0.weight = [[1, 2], [3]]"], "0.weight = [[1, 2], [3]]: the lists are not all of one length"),
    (["0.weight = "], "a value is missing\n0.weight = \n           ^"),
    (["= 3"], "nothing to assign to\n= 3\n^"),
    (["0.weight 3"], "no assignment here: TARGET = VALUE, with =, +=, -=, *= or /=\n0.weight 3\n          ^"),
    (["0.weight = 1 + 1"], "this is no number, no list of numbers and no parameter\n0.weight = 1 + 1\n           ^"),
    (["0.weight = __import__('os')"], "no number, and no parameter and no module __import__('os')\n\nhint: it has 0.weight, 0.bias, steps …"),
    (["0.weight = 0.bais"], "this is no number, no list of numbers and no parameter\n0.weight = 0.bais\n           ^"),
    (["0.weight = stpes"], "no number, and no parameter and no module stpes\n\nhint: nearest: steps"),
    (["0.weight = *.bias[0]", "x"], None),
    (["0.bias = 0.*"], "this is no number, no list of numbers and no parameter\n0.bias = 0.*\n         ^"),
    (["0.bias = *"], "a value is one parameter, and this is 8\n0.bias = *\n         ^"),
    (["0.weight = True + 1"], None),
    (["0.weight = 1e39"], "0.weight: 1e+39 overflows float32"),
    (["0.weight = 1" + "0" * 400], None),
    (["half = 70000"], "half: 70000 overflows float16"),
    (["half = [1, -1e9]"], None),
    (["0.weight = 1j"], "0.weight: float32 cannot hold complex values"),
    (["0.weight[0, :2] += wave"], "0.weight: float32 cannot hold complex values"),
    (["steps = 0.5"], "steps: 0.5 is no value of int64"),
    (["steps = nan"], "steps: nan is no value of int64"),
    (["steps += 0.5"], "steps: steps += 0.5 gives floats, and it is int64"),
    (["steps += 0.bias"], "steps: steps += 0.bias gives floats, and it is int64"),
    (["steps *= 9223372036854775808", "steps += 9223372036854775808"], "steps: int64 holds -9,223,372,036,854,775,808 to 9,223,372,036,854,775,807"),
    (["small = 256"], "small: uint8 holds 0 to 255"),
    (["small -= 1"], "small: uint8 holds 0 to 255"),
    (["mask = 2"], "mask: 2 is no value of bool"),
    (["mask += 1"], "mask: += does not work on bool\n\nhint: = does"),
    (["eight *= 2"], "eight: *= does not work on float8_e5m2\n\nhint: = does"),
]  # fmt: skip


@pytest.mark.parametrize(("assignments", "message"), ERRORS, ids=[" ".join(texts)[:40] for texts, _ in ERRORS])
def test_what_an_error_says(run, tmp_path, assignments, message):
    """An assignment that cannot be done is told in three lines, and leaves the file as it was."""
    (path,) = _saved(tmp_path, STATE)
    before = path.read_bytes()
    for more in ([], ["--in-place"]):
        result = run("set", path, *assignments, *more)
        assert (result.code, result.out) == (2, "")
        assert len([line for line in result.err.splitlines() if line]) <= 3
        if message is not None:
            assert result.err == f"error: {message.replace('FILE', str(path))}\n"
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.pt"]


def test_values_inside_the_pickle_are_not_changed(run, tmp_path):
    """An array that lies in the pickle itself is no storage of the file, and the dry run says so too."""
    import numpy as np

    (path,) = _saved(tmp_path, {"w": torch.zeros(2), "scores": np.arange(3.0)})
    for more in ([], ["--in-place"]):
        result = run("set", path, "scores[0] = 1", *more)
        assert result.err == f"error: {path}: scores: its values lie inside the pickle, and cannot be changed there\n"


# ----------------------------------------------------------------------------- recipes


def test_a_recipe_of_assignments(run, tmp_path):
    """Rules are carried out in order, each on what it selects, and before what stands on the command line."""
    path, new = tmp_path / "m.pt", tmp_path / "n.pt"
    torch.save(
        {"0.weight": torch.ones(2), "0.bias": torch.ones(2), "1.weight": torch.ones(2), "n": torch.arange(2)}, path
    )
    (tmp_path / "r.toml").write_text(
        "[[rule]]\nset = '*= 4'\nselect = '*.weight'\n[[rule]]\nset = '-= 1'\nlayer = '0'\n"
    )
    done = run("set", path, "1.weight[0] = 9", "--recipe", tmp_path / "r.toml", "-o", new, "-f", "json")
    assert [row["name"] for row in done.rows] == ["0.weight", "1.weight", "0.weight", "0.bias", "1.weight"]
    found = {name: tensor.tolist() for name, tensor in torch.load(new).items()}
    assert found == {"0.weight": [3, 3], "0.bias": [0, 0], "1.weight": [9, 4], "n": [0, 1]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[rule]]\nscheme = 'zeros'", "rule 1: unknown key scheme\n\nhint: it has set, select, layer, type"),
        ("[[rule]]\nselect = '*'", "rule 1 has no set"),
        ("[[rule]]\nset = '3'", "rule 1: set begins with =, +=, -=, *= or /="),
    ],
)
def test_what_a_recipe_of_assignments_cannot_be(run, tmp_path, text, message):
    """What is wrong with it is told with its file and rule."""
    torch.save({"w": torch.ones(2)}, tmp_path / "m.pt")
    (tmp_path / "r.toml").write_text(text)
    done = run("set", tmp_path / "m.pt", "--recipe", tmp_path / "r.toml")
    assert (done.code, done.err) == (2, f"error: {tmp_path}/r.toml: {message}\n")
