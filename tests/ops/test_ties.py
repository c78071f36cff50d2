"""`ties`: groups, what each view is, and the bytes saved."""

from __future__ import annotations

import torch

KEYS = ["names", "relation", "shape", "dtype", "nbytes", "saved_nbytes", "storage", "source"]


def test_rows_hold_every_key(run, tmp_path):
    """A group of the same, and one of views, each with what it saves."""
    base = torch.zeros(6, 4)
    torch.save({"a": base, "b": base, "c": base.t(), "alone": torch.zeros(3)}, tmp_path / "m.pt")
    result = run("ties", tmp_path / "m.pt", "-f", "json")
    same, view = result.rows
    assert list(same) == KEYS
    assert (same["names"], same["relation"], same["saved_nbytes"]) == (["a", "b"], "same", 96)
    assert (view["names"], view["relation"], view["saved_nbytes"]) == (["a", "c"], "view", 96)
    assert (same["shape"], same["dtype"], same["nbytes"], same["source"]) == ([6, 4], "float32", 96, "storage")
    assert result.err == "c is the transpose of a\n"


def test_group_is_whole_where_one_of_its_names_was_chosen(run, tmp_path):
    """And is not there where none was."""
    base, other = torch.zeros(4), torch.zeros(4)
    torch.save({"a": base, "b": base, "c": other, "d": other}, tmp_path / "m.pt")
    assert [row["names"] for row in run("ties", tmp_path / "m.pt", "b", "-f", "json").rows] == [["a", "b"]]


def test_nothing_tied_is_an_answer(run):
    """No rows, and exit status 0."""
    result = run("ties", "models/mlp.py", "-f", "json")
    assert (result.code, result.rows) == (0, [])


def test_many_views_are_said_in_a_few_notes(run, tmp_path):
    """Twenty, and the number of the others."""
    base = torch.zeros(100)
    torch.save({f"v{i}": base[i:] for i in range(50)}, tmp_path / "m.pt")
    lines = run("ties", tmp_path / "m.pt").err.splitlines()
    assert (len(lines), lines[0], lines[-1]) == (21, "v1 is a slice of v0", "and 29 more views")
