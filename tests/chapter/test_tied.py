"""Sharing parameters: one layer in two places."""

from __future__ import annotations

import pytest
import torch
from chapter_sources import SEED, bits
from torch import nn


def test_ties_are_listed(run, opened):
    """The shared layer's weight and bias are each one tensor under two names, by storage or by what the file declares."""
    tied = opened("tied")
    rows = run("ties", tied.path, "-f", "json").rows
    assert sorted(row["names"] for row in rows) == [["2.bias", "4.bias"], ["2.weight", "4.weight"]]
    assert {row["relation"] for row in rows} == {"same"}
    assert {row["source"] for row in rows} == {"metadata" if tied.kind == "safetensors" else "storage"}
    assert sum(row["saved_nbytes"] for row in rows) == 4 * (8 * 8 + 8)
    totals = run("ls", tied.path, "-f", "json").json["totals"]
    assert totals["unique_numel"] == sum(p.numel() for p in tied.net.parameters())


def test_no_ties_where_there_are_none(run, opened):
    """Layers that are merely alike are not tied."""
    assert run("ties", opened("nested").path, "-f", "json").rows == []


def test_tied_layers_are_equal(run, opened):
    """`net[2].weight.data[0] == net[4].weight.data[0]`."""
    tied = opened("tied")
    rows = run("show", *tied.words, "2.weight[0]", "4.weight[0]", "-f", "json").rows
    assert rows[0]["value"] == rows[1]["value"] == tied.net[2].weight.data[0].tolist()


@pytest.mark.parametrize("name", ["2", "4"])
def test_a_change_to_one_is_a_change_to_the_other(run, opened, name):
    """`net[2].weight.data[0, 0] = 100`: both show it, for they are one object and not equal by chance."""
    tied = opened("tied")
    other = {"2": "4", "4": "2"}[name]
    result = run("set", *tied.words, f"{name}.weight[0, 0] = 100", "-o", tied.out, "-f", "json")
    assert result.rows[0]["tied_with"] == [f"{other}.weight"]
    rows = run("show", tied.out, "2.weight[0]", "4.weight[0]", "-f", "json").rows
    tied.net[2].weight.data[0, 0] = 100
    assert rows[0]["value"] == rows[1]["value"] == tied.net[4].weight.data[0].tolist()
    assert bits(tied.state()) == bits(tied.net.state_dict())
    assert len(run("ties", tied.out, "-f", "json").rows) == 2


def test_a_tied_layer_is_initialized_once(run, opened):
    """A tie takes one draw, as `apply` has it, and stays tied."""
    tied = opened("tied")
    result = run("init", tied.path, "--scheme", "xavier", "--seed", SEED, "-o", tied.out, "-f", "json")
    assert [row["name"] for row in result.rows] == ["0.weight", "2.weight", "6.weight"]
    torch.manual_seed(SEED)
    tied.net.apply(lambda m: nn.init.xavier_uniform_(m.weight) if isinstance(m, nn.Linear) else None)
    assert bits(tied.state()) == bits(tied.net.state_dict())
    assert len(run("ties", tied.out, "-f", "json").rows) == 2
    if tied.out.suffix == ".pt":
        state = tied.state()
        assert state["2.weight"].data_ptr() == state["4.weight"].data_ptr()
