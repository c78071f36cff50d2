"""`diff`: which name is compared with which, what a row says, and its numbers, against numpy on the whole tensors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import paramctl
from paramctl.checkpoint import Checkpoint, Storage
from paramctl.errors import ParamctlError
from paramctl.ops import diff as ops_diff
from paramctl.ops._diff_match import matched
from paramctl.report import Report
from paramctl.source import Source
from program import MODELS
from tensors import of_array, param

KEYS = ["name", "status", "a", "b", "max_abs", "l2", "rel_l2", "cosine", "changed"]
NUMBERS = KEYS[4:]
SAME = {"max_abs": 0, "l2": 0, "rel_l2": 0, "cosine": 1, "changed": 0}


@pytest.fixture
def diff(tmp_path):
    """Two state dicts compared, each saved by torch."""

    def _diff(a: dict[str, object], b: dict[str, object], **options: object) -> Report:
        torch.save(a, tmp_path / "a.pt")
        torch.save(b, tmp_path / "b.pt")
        return paramctl.diff(str(tmp_path / "a.pt"), str(tmp_path / "b.pt"), **options)

    return _diff


def by_name(report: Report) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in report.dicts()}


def statuses(report: Report) -> dict[str, str]:
    return {name: row["status"] for name, row in by_name(report).items()}


def expected(a: torch.Tensor, b: torch.Tensor) -> dict[str, object]:
    """What numpy says of two tensors without NaN."""
    x, y = (each.double().numpy().reshape(-1) for each in (a, b))
    change, norm = np.linalg.norm(y - x), np.linalg.norm(x)
    return {
        "max_abs": pytest.approx(np.abs(y - x).max(initial=0), rel=1e-6),
        "l2": pytest.approx(change, rel=1e-6),
        "rel_l2": pytest.approx(change / norm, rel=1e-6),
        "cosine": pytest.approx(x @ y / norm / np.linalg.norm(y), abs=1e-6),
        "changed": pytest.approx(np.count_nonzero(x != y) / x.size),
    }


def numbers(row: dict[str, object]) -> dict[str, object]:
    return {key: row[key] for key in NUMBERS}


# ---------------------------------------------------------------------- rows


def test_a_row_of_each_status(diff):
    """What each status is of, what the sides are, and which numbers there are."""
    ones, thirds = torch.ones(2, 3), torch.full((2, 3), 1 / 3)
    report = diff(
        {"gone": ones, "same": ones, "shape": ones, "dtype": thirds, "cast": ones, "changed": ones},
        {
            "same": ones,
            "shape": torch.ones(3, 2),
            "dtype": thirds.half(),
            "cast": ones.half(),
            "changed": 2 * ones,
            "new": ones[0],
        },
    )
    assert [column.key for column in report.columns][:9] == KEYS
    rows = by_name(report)
    sides = {name: (row["status"], row["a"], row["b"]) for name, row in rows.items()}
    assert sides == {
        "gone": ("removed", "float32 [2,3]", None),
        "new": ("added", None, "float32 [3]"),
        "shape": ("shape", "float32 [2,3]", "float32 [3,2]"),
        "dtype": ("dtype", "float32 [2,3]", "float16 [2,3]"),
        "cast": ("dtype", "float32 [2,3]", "float16 [2,3]"),
        "changed": ("changed", "float32 [2,3]", "float32 [2,3]"),
        "same": ("same", "float32 [2,3]", "float32 [2,3]"),
    }
    assert list(rows)[:3] == ["gone", "new", "shape"]
    assert list(rows)[-2:] == ["changed", "same"]
    for name in ("gone", "new", "shape"):
        assert numbers(rows[name]) == dict.fromkeys(NUMBERS)
    assert numbers(rows["same"]) == numbers(rows["cast"]) == SAME
    assert numbers(rows["dtype"]) == expected(thirds, thirds.half())
    assert numbers(rows["changed"]) == expected(ones, 2 * ones)
    counts = {key: report.totals[key] for key in ops_diff.STATUSES}
    assert counts == {"removed": 1, "added": 1, "shape": 1, "dtype": 2, "changed": 1, "same": 1}


@pytest.mark.parametrize(
    ("a", "b", "told"),
    [
        ([0.0, 0.0], [0.0, 0.0], SAME),
        ([0.0, 0.0], [-0.0, 0.0], SAME),
        ([math.nan, math.inf], [math.nan, math.inf], SAME),
        ([0.0, 0.0], [3.0, 4.0], {"max_abs": 4, "l2": 5, "rel_l2": None, "cosine": None, "changed": 1}),
        ([3.0, 4.0], [0.0, 0.0], {"max_abs": 4, "l2": 5, "rel_l2": 1, "cosine": None, "changed": 1}),
        ([3.0, 4.0], [-3.0, -4.0], {"max_abs": 8, "l2": 10, "rel_l2": 2, "cosine": -1, "changed": 1}),
        ([1.0, 0.0], [0.0, 1.0], {"max_abs": 1, "l2": 2**0.5, "rel_l2": 2**0.5, "cosine": 0, "changed": 1}),
        ([1.0, 2.0], [1.0, math.nan], {**SAME, "changed": 0.5}),
        ([1.0, math.inf], [1.0, -math.inf], {**SAME, "changed": 0.5}),
        ([math.nan, 1.0], [math.nan, 2.0], {"max_abs": 1, "l2": 1, "rel_l2": 1, "cosine": 1, "changed": 0.5}),
        ([math.nan], [1.0], {**dict.fromkeys(NUMBERS), "changed": 1}),
        ([], [], SAME),
    ],
    ids=str,
)
def test_the_conventions_of_the_numbers(a, b, told, diff):
    """Zeros, NaN, infinities and nothing at all: what is same, what is null, and what is over what is finite."""
    (row,) = diff({"w": torch.tensor(a)}, {"w": torch.tensor(b)}).dicts()
    assert numbers(row) == {key: value if value is None else pytest.approx(value) for key, value in told.items()}
    assert row["status"] == ("changed" if told["changed"] else "same")
    odd = sum(not (math.isfinite(x) and math.isfinite(y)) and not (x == y or (x != x and y != y)) for x, y in zip(a, b))  # noqa: B905, PLR0124
    assert row["nonfinite"] == odd


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=8),
    changes=st.lists(st.tuples(st.integers(0, 7), st.floats(width=32)), max_size=3),
)
def test_what_is_called_the_same_is_the_same(tmp_path_factory, values, changes):
    """A tensor is `same` exactly where torch finds all its values equal, NaN being equal to NaN."""
    a = torch.tensor(values)
    b = a.clone()
    for at, value in changes:
        b[at % len(b)] = value
    folder = tmp_path_factory.mktemp("same")
    torch.save({"w": a}, folder / "a.pt")
    save_file({"w": b}, folder / "b.safetensors")
    report = paramctl.diff(str(folder / "a.pt"), str(folder / "b.safetensors"))
    is_same = torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    assert statuses(report) == {"w": "same" if is_same else "changed"}
    assert ops_diff.differs(report) == (not is_same)


def test_the_largest_relative_change_comes_first(diff):
    """Changed tensors go by rel_l2, what was all zero and what is no longer finite before them."""
    names = ("little", "much", "none", "from zero", "more", "broken")
    a = dict.fromkeys(names, torch.ones(4)) | {"from zero": torch.zeros(4)}
    changes = {"little": 0.01, "much": 3.0, "none": 0.0, "from zero": 1e-9, "more": 0.5, "broken": math.nan}
    report = diff({k: v.clone() for k, v in a.items()}, {name: a[name] + changes[name] for name in names})
    assert list(by_name(report)) == ["from zero", "broken", "much", "more", "little", "none"]


def test_the_place_of_the_largest_difference(diff):
    """`max_at` is an index, of a transposed tensor too; there is none where nothing differs."""
    a = torch.zeros(3, 4)
    b = a.clone()
    b[2, 1], b[0, 3] = -5, 4
    rows = by_name(diff({"w": a, "t": a.t(), "s": a}, {"w": b, "t": b.t(), "s": a}))
    assert (rows["w"]["max_at"], rows["t"]["max_at"], rows["s"]["max_at"]) == ([2, 1], [1, 2], None)


def test_another_dtype_may_be_ignored(diff):
    """Then values alone decide: what a cast kept is `same`, and what it lost is `changed`."""
    a = {"kept": torch.ones(3), "lost": torch.full((3,), 0.1)}
    b = {name: tensor.bfloat16() for name, tensor in a.items()}
    assert statuses(diff(a, b)) == {"kept": "dtype", "lost": "dtype"}
    assert statuses(diff(a, b, ignore_dtype=True)) == {"kept": "same", "lost": "changed"}
    assert statuses(diff(a, b, ignore_dtype=True, rtol=0.01)) == {"kept": "same", "lost": "same"}
    assert by_name(diff(a, b, ignore_dtype=True, rtol=0.01))["lost"]["l2"] > 0


def test_integers_and_bools_are_whole(diff):
    """Their largest difference is an integer, beyond float64 too."""
    a = {"i": torch.tensor([2**62, 5]), "b": torch.tensor([True, False])}
    b = {"i": torch.tensor([-(2**62) - 1, 5]), "b": torch.tensor([True, True])}
    rows = by_name(diff(a, b))
    assert (rows["i"]["max_abs"], rows["b"]["max_abs"]) == (2**63 + 1, 1)
    assert all(isinstance(row["max_abs"], int) for row in rows.values())


# ---------------------------------------------------------------------- all together


@pytest.fixture
def states():
    """Two state dicts of float32, in which one tensor has two names on both sides."""
    torch.manual_seed(0)
    shapes = {"emb.weight": (7, 4), "h.0.a.weight": (4, 4), "h.0.a.bias": (4,), "h.1.a.weight": (4, 4), "h.1.b": (3,)}
    a = {name: torch.randn(shape) for name, shape in shapes.items()}
    b = {name: tensor + 0.1 * torch.randn(tensor.shape) * ("1" in name or "emb" in name) for name, tensor in a.items()}
    return a | {"head": a["emb.weight"]}, b | {"head": b["emb.weight"]}


def together(a, b, names) -> dict[str, object]:
    return expected(*(torch.cat([side[name].reshape(-1) for name in names]) for side in (a, b)))


def test_totals_are_of_all_elements_once(states, diff):
    """Norms over everything, what is the same included, and what two names share counted once."""
    a, b = states
    totals = diff(a, b).totals
    want = together(a, b, [name for name in a if name != "head"])
    assert {key: totals[key] for key in ("l2", "rel_l2", "max_abs")} == {
        key: want[key] for key in ("l2", "rel_l2", "max_abs")
    }
    assert (totals["tensors"], totals["numel"], totals["unique_numel"]) == (6, 95, 67)


@pytest.mark.parametrize(
    ("depth", "modules"),
    [
        (None, {"emb": ["emb.weight"], "h.0.a": ["h.0.a.weight", "h.0.a.bias"], "h.1.a": ["h.1.a.weight"], "h.1": ["h.1.b"], "": ["head"]}),
        (0, {"": ["emb.weight", "h.0.a.weight", "h.0.a.bias", "h.1.a.weight", "h.1.b"]}),
        (1, {"emb": ["emb.weight"], "h": ["h.0.a.weight", "h.0.a.bias", "h.1.a.weight", "h.1.b"], "": ["head"]}),
        (2, {"emb": ["emb.weight"], "h.0": ["h.0.a.weight", "h.0.a.bias"], "h.1": ["h.1.a.weight", "h.1.b"], "": ["head"]}),
    ],
)  # fmt: skip
def test_modules_are_sums_of_their_tensors(depth, modules, states, diff):
    """Each tensor is in one module, and a module's numbers are those of its tensors as one, shared elements once."""
    a, b = states
    rows = by_name(diff(a, b, by="module", depth=depth))
    assert {name: numbers(row) for name, row in rows.items()} == {
        name: together(a, b, names) for name, names in modules.items()
    }
    counts = {name: int(row["a"].split()[0]) for name, row in rows.items()}
    assert sum(counts.values()) == 6
    assert counts == {name: len(names) + (depth == 0) for name, names in modules.items()}
    assert {name for name, row in rows.items() if row["status"] == "same"} == (
        {"h.0.a"} if depth is None else {"h.0"} if depth == 2 else set()
    )


def test_the_status_of_a_module(diff):
    """What all its tensors are; `shape` or `dtype` where the others are the same; else `changed`."""
    one, two = torch.ones(1), torch.ones(2)
    a = {
        "same.w": one,
        "gone.w": one,
        "gone.b": one,
        "cast.w": one,
        "cast.b": one,
        "both.w": one,
        "both.b": one,
        "less.w": one,
        "less.b": one,
    }
    b = {
        "same.w": one,
        "cast.w": one.half(),
        "cast.b": one,
        "both.w": two,
        "both.b": one.half(),
        "less.w": one,
        "new.w": one,
    }
    report = diff(a, b, by="module")
    assert statuses(report) == {
        "same": "same",
        "gone": "removed",
        "cast": "dtype",
        "both": "changed",
        "less": "changed",
        "new": "added",
    }
    sides = {name: (row["a"], row["b"]) for name, row in by_name(report).items()}
    assert (sides["less"], sides["gone"], sides["new"]) == (
        ("2 tensors", "1 tensor"),
        ("2 tensors", None),
        (None, "1 tensor"),
    )


def test_the_rank_of_a_change(diff):
    """A low-rank update has its rank, what is the same 0, a vector none; a module has the largest of its own."""
    torch.manual_seed(0)
    a = {"m.lora": torch.randn(40, 30), "m.same": torch.randn(40, 30), "m.bias": torch.randn(30)}
    change = torch.randn(40, 3) @ torch.randn(3, 30)
    b = {**a, "m.lora": a["m.lora"] + 0.1 * change, "m.bias": a["m.bias"] + 1}
    ranks = {name: row["rank"] for name, row in by_name(diff(a, b, rank=True)).items()}
    assert ranks == {"m.lora": 3, "m.same": 0, "m.bias": None}
    assert by_name(diff(a, b, rank=True, by="module"))["m"]["rank"] == 3


# ---------------------------------------------------------------------- names

WRAPPED = [  # names of A, of B, pairs, and what is said
    ("w b", "w b", "w=w b=b", ""),
    ("module.w module.b", "w b", "module.w=w module.b=b", "names of A are compared without module."),
    ("w b", "_orig_mod.w _orig_mod.b", "w=_orig_mod.w b=_orig_mod.b", "names of B are compared without _orig_mod."),
    ("module.w", "model.w", "module.w=model.w", "names of A are compared without module.;names of B are compared without model."),
    ("model.module.w epoch", "w epoch", "model.module.w=w epoch=epoch", "names of A are compared without model. and module."),
    ("h.0._orig_mod.w", "h.0.w", "h.0._orig_mod.w=h.0.w", "names of A are compared without _orig_mod."),
    ("model.w optimizer.w", "w", "model.w=w optimizer.w=", "names of A are compared without model."),
    ("model.w w", "w", "model.w= w=w", ""),
    ("bert.w bert.b cls.w", "w b", "bert.w=w bert.b=b cls.w=", "names of A are compared without bert."),
    ("w b", "net.inner.w net.inner.b", "w=net.inner.w b=net.inner.b", "names of B are compared without net.inner."),
    ("enc.w dec.w", "w", "enc.w= dec.w= =w", ""),
    ("a.w b.w c.w", "w x.y x.z", "a.w= b.w= c.w= =w =x.y =x.z", ""),
    ("module", "model", "module= =model", ""),
    ("module.w model.w", "w", "module.w=w model.w=", "names of A are compared without module."),
]  # fmt: skip


def paired(a: str, b: str, **options: object) -> tuple[str, str]:
    one = np.zeros(1, np.float32)
    sides = [[of_array(one)._replace(name=name) for name in names.split()] for names in (a, b)]
    pairs, notes = matched(*sides, **options)
    words = [f"{pair.a.name if pair.a else ''}={pair.b.name if pair.b else ''}" for pair in pairs]
    return " ".join(words), ";".join(notes)


@pytest.mark.parametrize(("a", "b", "pairs", "notes"), WRAPPED)
def test_names_match_without_what_wraps_them(a, b, pairs, notes):
    """A common prefix is left out, and said; a name that is there wins, and where two would do none is chosen."""
    assert paired(a, b) == (pairs, notes)


@pytest.mark.parametrize(("a", "b"), [(row[0], row[1]) for row in WRAPPED])
def test_exact_names_match_as_they_are(a, b):
    """With exact names only equal ones are compared, and nothing is said."""
    pairs, notes = paired(a, b, exact=True)
    assert {word for word in pairs.split() if not word.startswith("=") and not word.endswith("=")} == {
        f"{name}={name}" for name in set(a.split()) & set(b.split())
    }
    assert notes == ""


@settings(deadline=None)
@given(
    names=st.lists(st.lists(st.sampled_from(("a", "b", "module", "model", "_orig_mod", "0")), min_size=1, max_size=4).map(".".join), unique=True),
    others=st.lists(st.lists(st.sampled_from(("a", "b", "module", "0")), min_size=1, max_size=4).map(".".join), unique=True),
)  # fmt: skip
def test_every_name_is_in_one_pair(names, others):
    """Whatever is matched, each name of A and of B stands in exactly one pair, and equal names stand together."""
    one = np.zeros(1, np.float32)
    sides = [[of_array(one)._replace(name=name) for name in each] for each in (names, others)]
    pairs, _ = matched(*sides)
    assert [pair.a.name for pair in pairs if pair.a] == names
    assert sorted(pair.b.name for pair in pairs if pair.b) == sorted(others)
    assert all(pair.b is not None and pair.b.name == pair.a.name for pair in pairs if pair.a and pair.a.name in others)


def test_the_name_in_b_is_told_where_it_is_another(diff):
    """`name` is A's name, `name_b` B's where that differs; the prefix is said in a note."""
    report = diff({"w": torch.ones(2), "x": torch.ones(1)}, {"module.w": torch.zeros(2), "x": torch.ones(1)})
    assert {name: row["name_b"] for name, row in by_name(report).items()} == {"w": "module.w", "x": None}
    assert report.notes == ("names of B are compared without module.",)


@pytest.mark.parametrize(
    ("rules", "error"),
    [
        (["w"], "error: not a renaming: OLD=>NEW\nw\n ^"),
        (["z=>y"], "error: z=>y renames nothing\n\nhint: there is w"),
        (["w=>v"], "error: --rename: w and v would both be v"),
    ],
)
def test_a_rule_that_is_wrong_is_refused(rules, error, diff):
    """Malformed rules, and rules that do nothing or make two names one."""
    with pytest.raises(ParamctlError) as raised:
        diff({"w": torch.ones(1), "v": torch.ones(1)}, {"w": torch.ones(1)}, rename=rules)
    assert str(raised.value) == error


def test_names_that_have_nothing_in_common_are_said(diff):
    """Where nothing can be compared a note says what would help."""
    report = diff({"w": torch.ones(1)}, {"blk.0.ffn": torch.ones(1)})
    assert report.notes == ("A and B have no names in common; --rename OLD=>NEW matches others",)
    assert diff({"w": torch.ones(1)}, {"w": torch.ones(2)}).notes == ()


def test_renamed_names_are_compared(diff):
    """Rules go over the names of A, one after another; rows keep A's own names."""
    a = {"h.0.w": torch.ones(2), "h.1.w": torch.ones(2), "wte": torch.ones(1)}
    b = {"layers.0.weight": torch.ones(2), "layers.1.weight": torch.zeros(2), "wte": torch.ones(1)}
    report = diff(a, b, rename=["h=>layers", "*.w=>*.weight"])
    assert statuses(report) == {"h.0.w": "same", "h.1.w": "changed", "wte": "same"}
    assert by_name(report)["h.1.w"]["name_b"] == "layers.1.weight"


def test_a_name_that_moved_away_is_free(diff):
    """A name of B that A's own one was renamed away from is added, and the pair keeps its numbers."""
    a, b = {"w": torch.ones(2)}, {"w": torch.zeros(3), "v": torch.full((2,), 3.0)}
    rows = diff(a, b, rename=["w=>v"]).dicts()
    assert [(row["name"], row["status"], row["name_b"], row["l2"]) for row in rows] == [
        ("w", "added", None, None),
        ("w", "changed", "v", pytest.approx(8**0.5)),
    ]


# ---------------------------------------------------------------------- ties


@pytest.mark.parametrize(
    ("a", "b", "only_a", "only_b"),
    [
        ("x=y z", "x=y z", [], []),
        ("x=y z", "x y z", [["x", "y"]], []),
        ("x y z", "x=y z", [], [["x", "y"]]),
        ("x=y=z", "x=y z", [["x", "y", "z"]], []),
        ("x=y z", "x=y=z", [], [["x", "y", "z"]]),
        ("x=y z", "x z", [], []),
        ("x=y z", "x y=z", [["x", "y"]], [["y", "z"]]),
        ("x=y z=w", "x y z w", [["x", "y"], ["z", "w"]], []),
    ],
)
def test_ties_of_one_side(a, b, only_a, only_b, diff):
    """Names that share elements on one side alone are a difference, and are said; of names that both sides have."""

    def state(text: str) -> dict[str, torch.Tensor]:
        groups = [(group.split("="), torch.ones(2)) for group in text.split()]
        return {name: tensor for names, tensor in groups for name in names}

    report = diff(state(a), state(b))
    assert (report.totals["ties_only_a"], report.totals["ties_only_b"]) == (only_a, only_b)
    assert report.notes == (
        *(f"tied in A and not in B: {', '.join(names)}" for names in only_a),
        *(f"tied in B and not in A: {', '.join(names)}" for names in only_b),
    )
    removed = len(a.replace("=", " ").split()) != len(b.replace("=", " ").split())
    assert ops_diff.differs(report) == bool(only_a or only_b or removed)
    ignored = diff(state(a), state(b), ignore_ties=True)
    assert ops_diff.differs(ignored) == removed
    assert ignored.notes == ()


def test_parts_of_one_storage_are_no_tie(diff):
    """Tensors that lie side by side in one storage share nothing; views of the same elements do."""
    base = torch.arange(6.0)
    apart = {"x": base[:3], "y": base[3:]}
    assert diff(apart, {name: tensor.clone() for name, tensor in apart.items()}).totals["ties_only_a"] == []
    overlapping = {"x": base[:4], "y": base[2:]}
    report = diff(overlapping, {name: tensor.clone() for name, tensor in overlapping.items()})
    assert report.totals["ties_only_a"] == [["x", "y"]]


def test_many_ties_are_said_in_a_few_notes(diff):
    """Ten groups, and the number of the others; of many names the first."""
    a = {f"{i}.{j}": tensor for i, tensor in enumerate(torch.ones(12, 2).unbind()) for j in range(6)}
    report = diff(
        {k: v.clone() if k.startswith("x") else v for k, v in a.items()}, {k: v.clone() for k, v in a.items()}
    )
    assert len(report.totals["ties_only_a"]) == 12
    assert report.notes[0] == "tied in A and not in B: 0.0, 0.1, 0.2, 0.3 and 2 more"
    assert report.notes[10:] == ("and 2 more that are tied in A and not in B",)


# ---------------------------------------------------------------------- what is not read


def test_a_layout_reads_no_values(tmp_path):
    """With `layout` values may be missing: what lies alike is `same`, and no number is told."""
    torch.save({"w": torch.ones(2, 3), "v": torch.ones(2)}, tmp_path / "a.pt")
    torch.save({"w": torch.zeros(2, 3), "v": torch.ones(3)}, tmp_path / "b.pt")
    report = paramctl.diff(str(tmp_path / "a.pt"), str(tmp_path / "b.pt"), layout=True)
    assert statuses(report) == {"w": "same", "v": "shape"}
    assert all(row[key] is None for row in report.dicts() for key in NUMBERS)
    assert report.notes == ()


def test_a_definition_is_a_layout_unless_it_is_built(tmp_path):
    """Of a definition names, shapes and dtypes are compared, which is said; with a seed its values are."""
    code = str(MODELS / "mlp.py")
    paramctl.open(code).init(scheme="xavier_uniform", seed=0).write(str(tmp_path / "a.pt"))
    report = paramctl.diff(code, str(tmp_path / "a.pt"))
    assert set(statuses(report).values()) == {"same"}
    assert report.notes == (f"values are not compared: {code} is a definition; --seed N builds it with values",)
    built = paramctl.diff(code, str(tmp_path / "a.pt"), seed=0)
    assert statuses(built) == {"0.weight": "changed", "2.weight": "changed", "0.bias": "same", "2.bias": "same"}
    assert set(statuses(paramctl.diff(code, code, seed=3)).values()) == {"same"}


def of(**params: object) -> Checkpoint:
    return Checkpoint(Source("m", "file"), "made", {name: p._replace(name=name) for name, p in params.items()})


def test_numbers_that_are_not_known(diff):
    """Blocks whose numbers are not known are the same or changed by their bytes, without numbers; and this is said."""
    raw = bytes(18 * 2)
    mine, theirs = param(raw, "q1_0", (2, 128)), param(raw[:-1] + b"\1", "q1_0", (2, 128))
    why = "w: values of q1_0 are not read yet"
    floats = of_array(np.zeros((2, 128), np.float32))
    for other, status in ((mine, "same"), (theirs, "changed"), (floats, "dtype")):
        for options in ((ops_diff.Options()), ops_diff.Options(ignore_dtype=True)):
            report = ops_diff.diff(of(w=mine), of(w=other), options)
            assert statuses(report) == {"w": status}
            assert report.notes == (why,)
            assert numbers(report.dicts()[0]) == dict.fromkeys(NUMBERS)
            assert report.totals["l2"] is None


def test_many_notes_are_few():
    """Of many tensors whose numbers are not known ten are named, and the others counted."""
    blocks = {
        f"w{i}": param(bytes(18), "q1_0", (128,))._replace(storage=Storage(str(i), 18, data=memoryview(bytes(18))))
        for i in range(12)
    }
    notes = ops_diff.diff(of(**blocks), of(**blocks)).notes
    assert notes == (*(f"w{i}: values of q1_0 are not read yet" for i in range(10)), "and 2 more of this kind")


def test_values_that_cannot_be_had(tmp_path):
    """A tensor that has no values on one side is an error, not a difference and not the same."""
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    torch.save({"w": torch.ones(2, device="meta")}, tmp_path / "b.pt")
    with pytest.raises(ParamctlError) as raised:
        paramctl.diff(str(tmp_path / "a.pt"), str(tmp_path / "b.pt"))
    assert str(raised.value) == (
        "error: w: it has a shape, and no values\n\nhint: --layout reads no values, and '!w' leaves this out"
    )
    both = paramctl.diff(str(tmp_path / "b.pt"), str(tmp_path / "b.pt"))
    assert statuses(both) == {"w": "same"}


def test_what_is_told_while_it_is_read(tmp_path):
    """`tell` is told the bytes of both sides, and `reading` each name that is read."""
    state = {"w": torch.ones(100), "v": torch.ones(50)}
    torch.save(state, tmp_path / "a.pt")
    save_file(state, tmp_path / "b.safetensors")
    told, names = [], []
    paramctl.diff(str(tmp_path / "a.pt"), str(tmp_path / "b.safetensors"), tell=told.append, reading=names.append)
    assert (sum(told), names) == (2 * 600, ["w", "v"])


def test_what_is_chosen_in_either_is_compared(tmp_path):
    """A choice is of the names of A and of B: a pair is compared that has one of them; none in either is an error."""
    torch.save({"a.w": torch.ones(1), "a.b": torch.ones(1)}, tmp_path / "a.pt")
    torch.save({"module.a.w": torch.ones(1), "c.b": torch.ones(1)}, tmp_path / "b.pt")
    a, b = (paramctl.open(str(tmp_path / name)) for name in ("a.pt", "b.pt"))
    for first, second, names in (
        (a.select("a.w"), b, ["a.w"]),
        (a, b.select("module"), ["a.w"]),
        (a.select("*.b"), b.select("*.b"), ["a.b", "c.b"]),
        (a.select("c"), b.select("c"), ["c.b"]),
        (a, b, ["a.b", "c.b", "a.w"]),
    ):
        assert list(by_name(paramctl.diff(first, second))) == names
    for first, second in ((a.select("z"), b.select("z")), (a.select("a.w[0]"), b.select("a.w[0]")), (a.select("z"), b)):
        with pytest.raises(ParamctlError):
            paramctl.diff(first, second)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"atol": -1.0}, "error: a tolerance is 0 or more, and atol is -1"),
        ({"rtol": math.nan}, "error: a tolerance is 0 or more, and rtol is nan"),
        ({"rank": True, "layout": True}, "error: the rank of a change is of values, and these are not read"),
    ],
)
def test_options_that_make_no_sense(options, error, diff):
    """Tolerances below zero, and ranks of what is not read."""
    with pytest.raises(ParamctlError) as raised:
        diff({"w": torch.ones(1)}, {"w": torch.ones(1)}, **options)
    assert str(raised.value) == error
