"""`info`: totals that agree with the rows of `ls`, metadata, and what is no tensor."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

KEYS = ["tensors", "numel", "unique_numel", "nbytes", "unique_nbytes", "storage_nbytes", "dtypes", "modules"]


def test_totals_hold_every_key_and_agree_with_the_rows(run, tmp_path):
    """For each dtype too; bytes that a slice drags along are in `storage_nbytes` alone."""
    base = torch.zeros(10, 4)
    tensors = {"a": base, "b": base.t(), "c": torch.zeros(5, dtype=torch.int8), "d": torch.zeros(100)[:3]}
    torch.save({"model": tensors, "epoch": 3, "note": "x"}, tmp_path / "m.pt")
    result = run("info", tmp_path / "m.pt", "-f", "json").json
    rows = run("ls", tmp_path / "m.pt", "-f", "json").rows
    totals = result["totals"]
    assert list(totals) == KEYS
    assert result["rows"] == []
    assert totals["tensors"] == len(rows) == 4
    assert totals["numel"] == sum(row["numel"] for row in rows) == 88
    assert totals["nbytes"] == sum(row["nbytes"] for row in rows) == 160 + 160 + 5 + 12
    assert (totals["unique_numel"], totals["unique_nbytes"]) == (48, 177)
    assert totals["storage_nbytes"] == 160 + 5 + 400
    assert totals["dtypes"] == {
        "float32": {"tensors": 3, "numel": 83, "nbytes": 332},
        "int8": {"tensors": 1, "numel": 5, "nbytes": 5},
    }
    assert result["extras"] == {"epoch": 3, "note": "x"}


def test_metadata_is_shown_exactly(run, tmp_path):
    """As the header has it."""
    save_file({"w": torch.zeros(2)}, tmp_path / "m.safetensors", metadata={"format": "pt", "who": "a\nb"})
    result = run("info", tmp_path / "m.safetensors", "-f", "json").json
    assert (result["metadata"], result["format"]) == ({"format": "pt", "who": "a\nb"}, "safetensors")


@pytest.mark.parametrize("words", [["0"], ["--layer", "0"], ["--dtype", "float32"]])
def test_info_takes_no_selection(run, words):
    """It is about the whole."""
    result = run("info", "models/mlp.py", *words)
    assert (result.code, result.out) == (2, "")
    assert len(result.err.splitlines()) == 3


def test_definition_is_counted_as_its_parameters_are(run):
    """A tied embedding once; modules by their number."""
    totals = run("info", "models/gpt.py", "-f", "json").json["totals"]
    assert (totals["unique_numel"], totals["numel"]) == (268_160, 332_160)
    assert totals["modules"] > 30
