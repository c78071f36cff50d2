"""A screen's width and colours."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from paramctl.render import RENDERERS, Screen
from paramctl.render._cells import bytes_text, cells, column_texts, fold, value_text
from paramctl.report import Branch, Column, Report
from render.builders import LS, columns, ls, tensor, terminal, text, values

GPT = ls(
    *(
        tensor(f"model.layers.{i}.{leaf}.weight", (4096, 14336 + i), storage=str(i))
        for i in range(12)
        for leaf in ("self_attn.q_proj", "mlp.gate_proj", "post_attention_layernorm")
    ),
    tensor("lm_head.weight", (128256, 4096), tie="model.embed_tokens.weight"),
    branch=Branch(
        "",
        children=(
            Branch(
                "model", "LlamaModel", numel=8_030_261_248, nbytes=16_060_522_496, tensors=36,
                children=(
                    Branch("layers.[0-31]", "LlamaDecoderLayer", "hidden_size=4096", 32, 10**9, 10**10, 9, children=(
                        Branch("post_attention_layernorm", "LlamaRMSNorm", "4096, eps=1e-05", 1, 4096, 8192, 1, children=(Branch("weight", row=0),)),
                    )),
                ),
            ),
            Branch("lm_head", "Linear", "in_features=4096, out_features=128256", numel=1, nbytes=1, tensors=1, children=(Branch("weight", row=36),)),
        ),
    ),
)  # fmt: skip
PLAN = Report(
    columns("name shape dtype action detail tied_with"),
    (("model.layers.0.self_attn.q_proj.weight", [8, 4], "float32", "init", "xavier_uniform(gain=1.0): U(-0.7071, 0.7071)", ["b.c"]),),
)  # fmt: skip
DIGESTS = Report(
    columns(f"{LS} digest"),
    tuple(
        (*tensor(name, (4096, 1024)), f"{i:064x}")
        for i, name in enumerate(("0.bias", "model.layers.0.self_attn.q_proj.weight", "a" * 70))
    ),
)
DIFF = Report(
    columns("name status a b max_abs l2 rel_l2 cosine changed max_at name_b nonfinite"),
    (
        ("model.layers.0.self_attn.q_proj.weight", "shape", "float32 [4096,1024]", "float32 [1024,4096]", *[None] * 8),
        ("x", "dtype", "float32 []", "bfloat16 []", 0.5, 0.25, 0.125, 0.9999996, 1e-9, [], None, 0),
        ("lm_head.weight", "changed", "float32 [8]", "float32 [8]", 3, 0.25, None, -1.0, 1.0, [7], None, 0),
        ("new", "added", None, "q4_0 [32]", *[None] * 8),
    ),
    {"tensors": 4, "same": 0, "changed": 1, "added": 1, "shape": 1, "dtype": 1, "l2": 0.0, "rel_l2": 0.0, "max_abs": 3},
)
SHOW = values([[float(i) / 3 for i in range(300)]] * 4, name="model.layers.0.self_attn.q_proj.weight", slice="[0, :4]")
INFO = Report((), (), {"tensors": 1}, "m.pt", "torch zip", {"k" * 50: "v " * 500}, {"x": list(range(1000))})


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
@pytest.mark.parametrize(
    ("report", "style"),
    [
        (GPT, "table"),
        (GPT, "tree"),
        (PLAN, "table"),
        (DIGESTS, "table"),
        (DIFF, "table"),
        (SHOW, "table"),
        (INFO, "table"),
    ],
)
def test_fits(report, style, width):
    """No line is longer than the terminal is wide, and none ends in blanks."""
    lines = terminal(report, style, width).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert not any(line.endswith(" ") for line in lines)


@pytest.mark.parametrize(("width", "lines"), [(60, 6), (80, 3), (100, 2), (160, 1)])
def test_a_digest_is_on_as_few_lines_as_there_is_room_for(width, lines):
    """All of it is there, on lines of one length, and one line where that fits."""
    shown = terminal(DIGESTS, "table", width).splitlines()
    place = shown[0].index("digest")
    told = [line[place:].strip() for line in shown[1 : 1 + lines]]
    assert "".join(told) == f"{0:064x}"


def test_both_sides_of_a_difference_are_in_one_column():
    """What is the same is said once, what only one side has as it is; the totals say what there is."""
    lines = terminal(DIFF, "table", 200).splitlines()
    assert [re.split(r" {2,}", line)[2] for line in lines[:5]] == [
        "a → b",
        "float32 4096×1024 → 1024×4096",
        "float32 → bfloat16 scalar",
        "float32 8",
        "q4_0 32",
    ]
    assert lines[5] == "4 tensors · 1 changed · 1 added · 1 of another shape · 1 of another dtype · max abs 3"
    assert "a -> b" in terminal(DIFF, "table", 200, ascii=True)
    assert "float32 [4096,1024]\tfloat32 [1024,4096]" in text(DIFF, "tsv")


@pytest.mark.parametrize(
    ("share", "want"),
    [(0, "0%"), (1, "100%"), (0.5, "50.0%"), (0.0625, "6.2%"), (0.99999, ">99.9%"), (0.001, "0.1%"), (3e-6, "0.0003%")],
)
def test_a_share_is_neither_nothing_nor_all_unless_it_is(share, want):
    """Percents, and never 0% or 100% of what is between."""
    assert value_text(float(share), "share", Screen()) == want


@given(st.floats(-1, 1))
def test_a_cosine_is_told_from_1(cosine):
    """Only 1 is shown as 1, and what is shown is right to four digits, or to two of the distance from 1."""
    shown = value_text(cosine, "cosine", Screen())
    assert (shown == "1") == (cosine == 1)
    assert float(shown) == pytest.approx(cosine, rel=1e-3, abs=1e-300)
    assert 1 - float(shown) == pytest.approx(1 - cosine, rel=0.06, abs=1e-15)


@pytest.mark.parametrize(
    ("is_ascii", "bars"), [(False, ["█" * 20, "█" * 10, "▏", "", ""]), (True, ["#" * 20, "#" * 10, "#", "", ""])]
)
def test_a_bar_is_as_long_as_its_value(is_ascii, bars):
    """The greatest takes a fifth of the screen, and what is not 0 is seen."""
    screen = Screen(is_terminal=True, width=100, ascii=is_ascii)
    assert column_texts(Column("", "bar"), [2.0, 1.0, 1e-9, 0.0, None], screen) == bars


@pytest.mark.parametrize("width", [60, 80, 160])
def test_no_name_is_cut(width):
    """A folded name is there whole, whatever the width."""
    lines = terminal(GPT, "table", width).splitlines()
    end = lines[0].index("shape")
    assert GPT.rows[5][0] in "".join(line[:end].strip() for line in lines[1:])


def test_what_a_narrow_tree_does_without():
    """Hyperparameters go first, then bytes, then counts; shapes and ties never."""
    wide, narrow, narrower = (terminal(GPT, "tree", width) for width in (120, 70, 44))
    assert "(4096, eps=1e-05)" in wide
    assert "(4096, eps=1e-05)" not in narrow
    assert "8.0 KiB" in narrow
    assert "8.0 KiB" not in narrower
    for tree in (wide, narrow, narrower):
        assert "LlamaRMSNorm" in tree
        assert "= model.embed_tokens.weight" in tree
        assert "4096×14336" in tree


def test_pipe_has_no_width():
    """In a pipe nothing is cut, wrapped or left out."""
    assert len(text(GPT, "table", width=20).splitlines()) == 38
    assert "in_features=4096, out_features=128256" in text(GPT, "tree", width=20)
    assert len(text(SHOW, "table", width=20, full=True).splitlines()) == 5


@pytest.mark.parametrize("style", RENDERERS)
def test_colour(style):
    """There is an escape where colour is asked for, in a table or tree, and nowhere else; without them the text is the same."""
    plain, colored = terminal(GPT, style), terminal(GPT, style, color=True)
    assert "\x1b" not in plain + text(GPT, style)
    assert ("\x1b" in colored) == (style in {"table", "tree"})
    assert re.sub(r"\x1b\[\d*m", "", colored) == plain


@pytest.mark.parametrize("report", [PLAN, SHOW, INFO])
def test_colour_changes_nothing_else(report):
    """The text under the colours is the text without."""
    assert re.sub(r"\x1b\[\d*m", "", terminal(report, "table", color=True)) == terminal(report, "table")


@pytest.mark.parametrize(
    ("nbytes", "want"),
    [
        (0, "0 B"),
        (128, "128 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (508_106_752, "484.6 MiB"),
        (1024**2 - 1, "1.0 MiB"),
        (5 * 1024**4, "5.0 TiB"),
        (1024**6, "1,024.0 PiB"),
    ],
)
def test_bytes(nbytes, want):
    """Bytes are in binary units, and exact below the first."""
    assert bytes_text(nbytes) == want


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=60), st.integers(1, 30))
def test_fold(line, width):
    """Folding loses nothing but blanks, and fits wherever a character does."""
    lines = fold(line, width)
    assert "".join("".join(lines).split()) == "".join(line.split())
    assert all(cells(piece) <= max(width, 2) for piece in lines)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("= 1: 0.03223", ["= 1:", "0.03223"]),
        ("mean 3.14159", ["mean", "3.14159"]),
        ("attn.c_attn.weight", ["attn.c_", "attn.", "weight"]),
        ("layers.10.weight", ["layers.10.", "weight"]),
    ],
)
def test_a_text_is_broken_where_one_reads_on(text, lines):
    """At a blank, or behind a mark, but not at the point of a number."""
    assert [line.strip() for line in fold(text, 10)] == lines


def test_cells_are_those_of_rich():
    """Letters and ideographs are as wide as rich takes them to be."""
    text = "".join(
        map(
            chr,
            [
                *range(0x20, 0x7F),
                *range(0xA1, 0xAD),
                *range(0x391, 0x3A0),
                *range(0x3042, 0x3090),
                *range(0x4E00, 0x4F00),
                *range(0x300, 0x330),
            ],
        )
    )
    assert cells(text) == cell_len(text)
    assert all(cells(c) == cell_len(c) for c in text if unicodedata.category(c) != "Mn")
