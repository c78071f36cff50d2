"""The tree: exact folding, natural order, totals of branches, and ninety thousand tensors."""

from __future__ import annotations

import collections
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramctl.checkpoint import Checkpoint, Module, Param, Storage, contiguous
from paramctl.dtypes import DTYPES
from paramctl.ops.tree import tree as grow
from paramctl.select import Filters, select
from paramctl.source import Source


def checkpoint(rows, modules=()):
    """Of (name, shape, …) rows; the third is the storage, of its own where there is none."""
    params = {}
    for i, (name, shape, *rest) in enumerate(rows):
        storage = Storage(rest[0] if rest else f"own{i}", 4096)
        params[name] = Param(name, DTYPES["float32"], shape, contiguous(shape), storage)
    made = {path: Module(path, *rest) for path, *rest in modules}
    return Checkpoint(Source("m.pt", "file"), "torch-zip", params, made)


def plain(branches, indent=0):
    """The labels, indented."""
    for branch in branches:
        yield " " * indent + branch.label + (f" ×{branch.times}" if branch.times > 1 else "")
        yield from plain(branch.children, indent + 1)


def shown(made, *patterns, fold=True, depth=None, filters=None):
    report = grow(made, select(made, patterns, filters), fold=fold, depth=depth)
    return list(plain(report.branch.children))


def spelled(label, times):
    """The names that a label of several stands for."""
    if times == 1:
        return [label]
    if numbers := re.search(r"\[(\d+)-(\d+)\]", label):
        found = [
            f"{label[: numbers.start()]}{i}{label[numbers.end() :]}"
            for i in range(int(numbers[1]), int(numbers[2]) + 1)
        ]
    else:
        words = re.search(r"\{([^{}]*)\}", label)
        found = [label[: words.start()] + word + label[words.end() :] for word in words[1].split(",")]
    assert len(found) == times
    return found


def unfolded(branches, rows, prefix=""):
    """Every name that a tree tells, with what it says of it."""
    for branch in branches:
        for label in spelled(branch.label, branch.times):
            path = prefix + label
            if branch.row is not None:
                yield path, tuple(rows[branch.row][1]), rows[branch.row][2], rows[branch.row][5]
            yield from unfolded(branch.children, rows, path + ".")


# ----------------------------------------------------------------------------- exact

STEPS = st.sampled_from(
    ["0", "1", "2", "3", "10", "q_proj", "k_proj", "v_proj", "block 0", "block 1", "w", "01", "a_1_b", "a_2_b"]
)
NAMES = st.lists(STEPS, min_size=1, max_size=4).map(".".join)
SHAPES = st.sampled_from([(2,), (2,), (2, 3), ()])
KEYS = st.sampled_from([None, None, None, "s", "t"])


@st.composite
def checkpoints(draw):
    names = draw(st.lists(NAMES, min_size=1, max_size=14, unique=True))
    if draw(st.booleans()):  # a model: the same below each of several
        names = [
            f"{top}.{name}" for top in draw(st.lists(STEPS, min_size=1, max_size=3, unique=True)) for name in names[:5]
        ]
    shape = draw(st.one_of(SHAPES, st.none()))
    rows = []
    for name in names:
        key = draw(KEYS)
        rows.append((name, draw(SHAPES) if shape is None else shape, *([key] if key else [])))
    paths = {name[: match.start()] for name in names for match in re.finditer(r"\.", name)}
    types = draw(st.sampled_from([(), ("Linear",), ("Linear", "Block")]))
    modules = [(path, draw(st.sampled_from(types))) for path in sorted(paths)] if types else []
    return checkpoint(rows, modules)


@settings(deadline=None)
@given(checkpoints())
def test_folding_loses_nothing_and_makes_nothing_up(made):
    """The labels, spelled out, are the rows: each name once, with its shape, dtype and kind."""
    report = grow(made, select(made))
    expected = collections.Counter((row[0], tuple(row[1]), row[2], row[5]) for row in report.rows)
    assert collections.Counter(unfolded(report.branch.children, report.rows)) == expected
    straight = grow(made, select(made), fold=False)
    assert collections.Counter(unfolded(straight.branch.children, straight.rows)) == expected


@settings(deadline=None)
@given(checkpoints())
def test_totals_count_what_is_shared_once_within_each_branch(made):
    """Against sets of elements, at every branch of the tree as it is, folded siblings together."""
    report = grow(made, select(made))

    def elements(names):
        params = [made.params[name] for name in names]
        return len({(param.storage.key, i) for param in params for i in range(param.numel)})

    def check(branches, prefix):
        for branch in branches:
            paths = [prefix + label for label in spelled(branch.label, branch.times)]
            names = [name for name in made.params if any(name == path or name.startswith(path + ".") for path in paths)]
            if branch.row is not None and not branch.children:
                names = [name for name in made.params if name in paths]
            elif any(path in made.params for path in paths):
                continue  # a tensor and a module of one name are two lines
            assert (branch.tensors, branch.numel, branch.nbytes) == (len(names), elements(names), 4 * elements(names))
            check(branch.children, paths[0] + ".")

    check(report.branch.children, "")
    assert report.branch.numel == report.totals["unique_numel"] == elements(made.params)
    assert report.branch.tensors == len(made.params)


def layers(count, below):
    return [(f"layers.{i}.{name}", shape, *rest) for i in range(count) for name, shape, *rest in below]


ATTENTION = [("q.weight", (2, 2)), ("q.bias", (2,))]
OTHER = ["layers", " [0-1] ×2", "  q", "   weight", "   bias"]
OTHER += [" 2", "  x", "  q", "   weight", "   bias", " 3.q", "  weight", "  bias"]
FOLDS = [
    ("layers", layers(32, ATTENTION), ["layers.[0-31] ×32", " q", "  weight", "  bias"]),
    ("nothing else", layers(32, [("weight", (2,))]), ["layers.[0-31] ×32", " weight"]),
    ("one other", [*layers(4, ATTENTION), ("layers.2.x", (1,))], OTHER),
    (
        "gap",
        [row for row in layers(5, [("w", (2,))]) if ".2." not in row[0]],
        ["layers", " [0-1] ×2", "  w", " [3-4] ×2", "  w"],
    ),
    ("shapes", [("l.0.w", (2,)), ("l.1.w", (3,))], ["l", " 0.w", " 1.w"]),
    ("names", [("l.0.w", (2,)), ("l.1.v", (2,))], ["l", " 0.w", " 1.v"]),
    ("order", layers(12, [("w", (2,))])[::-1], ["layers.[0-11] ×12", " w"]),
    ("padded", [("l.00.w", (2,)), ("l.01.w", (2,)), ("l.1.w", (2,))], ["l", " 00.w", " 01.w", " 1.w"]),
    ("parameters", [("p.0", (2,)), ("p.1", (2,)), ("p.2", (3,))], ["p", " [0-1] ×2", " 2"]),
    (
        "words",
        [(f"attn.{x}_proj.weight", (2, 2)) for x in "qkvo"] + [("attn.norm.weight", (2,))],
        ["attn", " {q,k,v,o}_proj.weight ×4", " norm.weight"],
    ),
    ("no word in common", [("a.query.w", (2,)), ("a.key.w", (2,))], ["a", " query.w", " key.w"]),
    ("experts", [(f"mlp.experts.{i}.w", (2,)) for i in range(512)], ["mlp.experts.[0-511] ×512", " w"]),
    (
        "stems",
        [("conv1.w", (2,)), ("bn1.w", (3,)), ("conv2.w", (2,)), ("bn2.w", (3,))],
        ["conv1.w", "bn1.w", "conv2.w", "bn2.w"],
    ),
]


@pytest.mark.parametrize(("rows", "expected"), [row[1:] for row in FOLDS], ids=[row[0] for row in FOLDS])
def test_siblings_that_are_alike_fold(rows, expected):
    """And no others: in names, shapes and numbers, in natural order."""
    assert shown(checkpoint(rows)) == expected


def test_module_types_and_kinds_keep_siblings_apart():
    """What differs in a type below, in kind or in requires_grad, is told."""
    rows = [(f"l.{i}.w", (2,)) for i in range(4)]
    types = [("l", "ModuleList"), *((f"l.{i}", kind) for i, kind in enumerate(["A", "A", "B", "A"]))]
    assert shown(checkpoint(rows, types)) == ["l", " [0-1] ×2", "  w", " 2", "  w", " 3", "  w"]
    made = checkpoint(rows)
    params = dict(made.params) | {"l.1.w": made.params["l.1.w"]._replace(requires_grad=False)}
    assert shown(Checkpoint(made.source, made.format, params)) == ["l", " 0.w", " 1.w", " [2-3] ×2", "  w"]


def test_layers_that_are_tied_alike_inside_fold():
    """A tie within each layer does not keep them apart, and one from layer to layer does."""
    within = [(f"l.{i}.{name}", (2,), f"s{i}") for i in range(3) for name in ("a.x", "b.y")]
    assert shown(checkpoint(within))[0] == "l.[0-2] ×3"
    across = [(f"l.{i}.w", (2,), f"s{i // 2}") for i in range(4)]
    assert shown(checkpoint(across)) == ["l", " 0.w", " 1.w", " 2.w", " 3.w"]


def test_layers_that_are_all_one_count_once():
    """As in ALBERT: the first, and the others that are tied to it."""
    made = checkpoint([(f"l.{i}.w", (10,), "s") for i in range(12)])
    report = grow(made, select(made))
    (top,) = report.branch.children
    assert list(plain([top])) == ["l", " 0.w", " [1-11] ×11", "  w"]
    assert (top.numel, top.nbytes, top.tensors) == (10, 40, 12)
    assert [child.numel for child in top.children] == [10, 10]


def test_hyperparameters_are_told_where_all_that_are_folded_have_them():
    """Within a folded layer too."""
    rows = [(f"l.{i}.fc.w", (2,)) for i in range(3)]
    modules = [("l", "ModuleList")]
    for i in range(3):
        modules += [(f"l.{i}", "Block", {"depth": i, "heads": 4})]
        modules += [(f"l.{i}.fc", "Linear", {"out": 2, "rate": i / 10})]
    report = grow(checkpoint(rows, modules), select(checkpoint(rows, modules)))
    (top,) = report.branch.children
    assert (top.label, top.type, top.hyperparameters) == ("l.[0-2]", "Block", "heads=4")
    assert (top.children[0].type, top.children[0].hyperparameters) == ("Linear", "out=2")


# ----------------------------------------------------------------------------- places, depth, parts

SEQUENTIAL = [("", "Sequential"), ("0", "Linear"), ("1", "ReLU"), ("2", "Linear"), ("3", "ReLU")]
WEIGHTS = [("0.weight", (2, 2)), ("2.weight", (2, 2))]


def test_modules_without_parameters_stand_in_their_place():
    """0 Linear, 1 ReLU, 2 Linear, 3 ReLU."""
    made = checkpoint(WEIGHTS, SEQUENTIAL)
    report = grow(made, select(made))
    assert [(child.label, child.type) for child in report.branch.children] == SEQUENTIAL[1:]
    assert report.branch.type == "Sequential"


def test_module_without_parameters_is_shown_with_its_whole_parent():
    """A choice of biases does not show activations; a choice of their parent does."""
    nested = [("", "Net"), ("a", "Block"), ("a.0", "Linear"), ("a.1", "ReLU"), ("b", "Linear")]
    made = checkpoint([("a.0.w", (2,)), ("b.w", (2,)), ("b.v", (2,))], nested)
    assert shown(made, "a") == ["a", " 0", "  w", " 1"]
    assert shown(made, "b.w") == ["b", " w"]


def test_layer_shows_its_subtree():
    """`--layer` keeps the path to it."""
    made = checkpoint(layers(3, ATTENTION))
    assert shown(made, filters=Filters(layers=("layers.1",))) == ["layers.1.q", " weight", " bias"]


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(0, []), (1, ["layers"]), (2, ["layers.[0-2] ×3"]), (3, ["layers.[0-2] ×3", " q"]), (9, None), (None, None)],
)
def test_depth_is_of_names(depth, expected):
    """A line that says two steps is two levels."""
    whole = ["layers.[0-2] ×3", " q", "  weight", "  bias"]
    assert shown(checkpoint(layers(3, ATTENTION)), depth=depth) == (whole if expected is None else expected)


def test_no_fold_shows_every_layer():
    """Each by its own name, and nothing doubled up."""
    lines = shown(checkpoint(layers(3, [("w", (2,))])), fold=False)
    assert lines == ["layers", " 0.w", " 1.w", " 2.w"]


ODD_NAMES = [
    "",
    ".",
    "a..b",
    ".a",
    "a.",
    "a",
    "a.b",
    "x" * 100_000,
    ".".join("d" * 300),
    "9" * 5_000,
    "w" + "0" * 30,
    "é.ü",
    "a\nb.c",
]


def test_odd_names_are_told_whole():
    """Empty steps, three hundred dots, digits without end, and a tensor where a module of its name is."""
    made = checkpoint([(name, (2,)) for name in ODD_NAMES])
    report = grow(made, select(made))
    assert sorted(name for name, *_ in unfolded(report.branch.children, report.rows)) == sorted(ODD_NAMES)


def test_plain_tree_says_how_often_a_layer_is_there(run):
    """In a pipe: `h.[0-3] ×4`, without colour."""
    lines = run("tree", "models/gpt.py").out.splitlines()
    assert any("h.[0-3] ×4" in line and "Block" in line for line in lines)
    assert any("act" in line and "GELU" in line for line in lines)
    assert any("= transformer.wte.weight" in line for line in lines)


# ----------------------------------------------------------------------------- size


@pytest.fixture(scope="module")
def mixture():
    """Ninety thousand tensors of a mixture of experts."""
    rows = [("model.embed_tokens.weight", (2, 2)), ("lm_head.weight", (2, 2)), ("model.norm.weight", (2,))]
    for layer in range(61):
        top = f"model.layers.{layer}"
        rows += [(f"{top}.input_layernorm.weight", (2,)), (f"{top}.post_attention_layernorm.weight", (2,))]
        rows += [
            (f"{top}.self_attn.{x}_proj.{kind}", s) for x in "qkvo" for kind, s in (("weight", (2, 2)), ("bias", (2,)))
        ]
        experts = 490 if layer > 2 else 0
        paths = [f"{top}.mlp.experts.{i}" for i in range(experts)] or [f"{top}.mlp"]
        rows += [(f"{path}.{x}_proj.weight", (2, 2)) for path in paths for x in ("gate", "up", "down")]
    return checkpoint(rows)


def test_ninety_thousand_tensors_fit_on_a_screen(mixture):
    """The folded tree has no more than forty lines, and takes no more than two seconds."""
    selection = select(mixture)
    began = time.process_time()
    report = grow(mixture, selection)
    assert time.process_time() - began < 4  # two, on a machine that is not busy
    lines = list(plain(report.branch.children))
    assert len(lines) <= 40
    assert any(line.strip() == "mlp.experts.[0-489] ×490" for line in lines)


def test_unfolded_tree_is_no_slower_by_the_square():
    """Every branch is summed up once, however many are above it."""
    made = checkpoint([(f"a.b.c.d.e.f.{i}.x.y.w", (2,)) for i in range(20_000)])
    selection = select(made)
    began = time.process_time()
    report = grow(made, selection, fold=False)
    assert time.process_time() - began < 6  # one, on a machine that is not busy
    assert report.branch.children[0].tensors == 20_000


def test_ten_thousand_views_of_a_storage_are_summed_in_time():
    """Where every tensor may be another's, too."""
    made = checkpoint([(f"a.{i % 100}.{i}.w", (i % 7 + 1,), "s") for i in range(10_000)])
    began = time.process_time()
    grow(made, select(made), fold=False)
    assert time.process_time() - began < 4
