"""Ties by storage, as torch makes them: what each view is of the first, and what it costs to find out."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from paramctl import formats, sharing
from paramctl.checkpoint import Checkpoint, Param, Storage
from paramctl.dtypes import DTYPES
from paramctl.source import Source, resolve

FLOAT32 = DTYPES["float32"]


def params_of(tmp_path, tensors):
    torch.save(tensors, tmp_path / "m.pt")
    return list(formats.read(resolve(str(tmp_path / "m.pt"))).params.values())


def in_memory(name, tensor):
    """As a file would tell it; torch itself saves no storage under two dtypes."""
    dtype = DTYPES[str(tensor.dtype).removeprefix("torch.")]
    storage = Storage(str(tensor.untyped_storage().data_ptr()), tensor.untyped_storage().nbytes())
    return Param(name, dtype, tuple(tensor.shape), tensor.stride(), storage, tensor.storage_offset())


def views(base):
    return {
        "same": base,
        "transpose": base.t(),
        "row": base[1],
        "column": base[:, 1],
        "flat": base.view(-1),
        "reshaped": base.view(6, 4),
        "bits": base.view(torch.int32),
        "half": base.view(torch.int16)[:2],
        "diagonal": base.as_strided((4,), (7,)),
        "expanded": base[0, 0].expand(3),
    }


@pytest.mark.parametrize(
    ("name", "relation", "how"),
    [
        ("same", "same", None),
        ("transpose", "view", "the transpose"),
        ("row", "view", "a slice"),
        ("column", "view", "a slice"),
        ("flat", "view", "a reshape"),
        ("reshaped", "view", "a reshape"),
        ("bits", "view", "a view, as int32,"),
        ("half", "view", "a slice, as int16,"),
        ("diagonal", "view", "a slice"),
        ("expanded", "view", "a slice"),
    ],
)
def test_view_is_told_by_what_it_is_of_the_first(name, relation, how):
    """A tie, a transpose, a slice, a reshape, and the same bytes as another dtype."""
    base = torch.arange(24.0).reshape(4, 6)
    found = [in_memory("base", base), in_memory("other", views(base)[name])]
    (group,) = sharing.groups(found)
    assert (group.relation, group.names, group.source) == (relation, ("base", "other"), "storage")
    if how:
        assert sharing.how(found[0], found[1]) == how


def test_other_relations_are_told_too(tmp_path):
    """Parts that do not meet, an overlap, a permutation, and a view that contains the first."""
    base = torch.arange(24.0)
    found = params_of(
        tmp_path,
        {"a": base[:10], "b": base[10:], "c": base[5:15], "whole": base}
        | {"cube": base.view(2, 3, 4), "turned": base.view(2, 3, 4).permute(2, 0, 1)},
    )
    a, b, c, whole, cube, turned = found
    assert sharing.how(a, b) == "another part of the storage"
    assert sharing.how(a, c) == "an overlapping view"
    assert sharing.how(a, whole) == "a view that contains all"
    assert sharing.how(cube, turned) == "a permutation"
    assert [group.relation for group in sharing.groups(found)] == ["overlap"]
    assert sharing.first_names(found) == {"c": "a", "whole": "a", "cube": "a", "turned": "a"}
    totals = sharing.totals(Checkpoint(Source("m", "file"), "x", {}), found)
    assert (totals["unique_numel"], totals["unique_nbytes"], totals["storage_nbytes"]) == (24, 96, 96)


def test_parts_of_a_fused_storage_are_no_ties(tmp_path):
    """Queries, keys and values in one storage share it, and no element: nothing is saved, and nothing is `tie`."""
    fused = torch.randn(12, 4)
    found = params_of(tmp_path, dict(zip("qkv", fused.chunk(3), strict=True)))
    (group,) = sharing.groups(found)
    assert (group.relation, group.saved_nbytes) == ("view", 0)
    assert sharing.first_names(found) == {}


def test_interleaved_columns_are_told_apart(tmp_path):
    """Two views whose spans overlap and whose elements do not."""
    base = torch.randn(50, 8)
    found = params_of(tmp_path, {"even": base[:, ::2], "odd": base[:, 1::2]})
    assert sharing.groups(found)[0].relation == "view"
    assert sharing.first_names(found) == {}


def test_empty_tensors_are_tied_to_nothing(tmp_path):
    """They have no elements to share."""
    base = torch.randn(4)
    found = params_of(tmp_path, {"a": base, "b": base[4:], "c": base[:0]})
    assert sharing.groups(found) == []


# ----------------------------------------------------------------------------- definitions

DEFINITION = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(10, 4)
        self.lm = nn.Linear(4, 10, bias=False)
        {tie}

net = Net
"""
TIES = {
    "one Parameter": ("self.lm.weight = self.emb.weight", "same"),
    "two Parameters, one storage": ("self.lm.weight = nn.Parameter(self.emb.weight.detach())", "same"),
    "transposed": ("self.lm = nn.Module(); self.lm.weight = nn.Parameter(self.emb.weight.detach().t())", "view"),
    "one module at two paths": ("self.lm = self.emb", "same"),
    "a slice": ("self.lm.weight = nn.Parameter(self.emb.weight.detach()[:5])", "view"),
}


@pytest.mark.parametrize("values", [False, True], ids=["meta", "real"])
@pytest.mark.parametrize(("tie", "relation"), TIES.values(), ids=TIES)
def test_definition_is_tied_by_the_identity_of_its_storages(tmp_path, tie, relation, values):
    """One Parameter under two names, and two Parameters over one storage, on the meta device as really."""
    (tmp_path / "net.py").write_text(DEFINITION.format(tie=tie))
    found = formats.read(resolve(str(tmp_path / "net.py")), values=values)
    (group,) = sharing.groups(found.params.values())
    assert (group.names, group.relation) == (("emb.weight", "lm.weight"), relation)
    assert sharing.totals(found, tuple(found.params.values()))["unique_numel"] == 40


@pytest.mark.parametrize(
    ("path", "groups"),
    [
        ("models/tied.py", [("2.weight", "4.weight"), ("2.bias", "4.bias")]),
        ("models/gpt.py", [("transformer.wte.weight", "lm_head.weight")]),
        ("models/mlp.py", []),
        ("models/fancy.py", []),
    ],
)
def test_bundled_models_are_tied_as_they_say(path, groups):
    """And what is tied counts once, as `parameters()` does."""
    found = formats.read(resolve(path))
    assert [group.names for group in sharing.groups(found.params.values())] == groups
    parameters = [param for param in found.params.values() if param.kind == "parameter"]
    expected = sum(parameter.numel() for parameter in found.live.parameters())
    assert sharing.totals(found, parameters)["unique_numel"] == expected


def test_aliases_of_safetensors_are_declared_ties(tmp_path):
    """What `save_model` leaves out is there, and says where it is known from."""
    from safetensors.torch import save_model

    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    save_model(net, str(tmp_path / "m.safetensors"))
    found = formats.read(resolve(str(tmp_path / "m.safetensors")))
    (group,) = sharing.groups(found.params.values())
    assert (group.names, group.relation, group.source) == (("0.weight", "1.weight"), "same", "metadata")
    assert group.saved_nbytes == 36


# ----------------------------------------------------------------------------- what it costs

BIG = Storage("s", 1 << 40)


def many(count, shape, stride, step):
    return [Param(f"p{i}", FLOAT32, shape, stride, BIG, i * step) for i in range(count)]


HOSTILE = {
    "10,000 parts": many(10_000, (1000,), (1,), 1000),
    "10,000 sliding windows": many(10_000, (1000,), (1,), 100),
    "10,000 of one": many(10_000, (1000,), (1,), 0),
    "10,000 strided": many(10_000, (10, 10), (10_000, 2), 1),
    "1,000 columns": many(1_000, (1000,), (1000,), 1),
    "one of 100,000 runs": many(1, (100_000,), (7,), 0),
    "two of 100,000 runs": many(2, (100_000,), (7,), 1),
    "64 of 100,000 runs": many(64, (100_000,), (70,), 1),
    "a billion runs": many(3, (1000, 1000, 1000), (4_000_000, 4000, 3), 1),
    "10,000 growing": [Param(f"p{i}", FLOAT32, (i + 1,), (1,), BIG, 5000 - i // 2) for i in range(10_000)],
}


@pytest.mark.parametrize("params", HOSTILE.values(), ids=HOSTILE)
def test_hostile_sharing_is_bounded(params):
    """Ten thousand views of a storage, and views of a hundred thousand runs, take no time by their square."""
    began = time.process_time()
    groups = sharing.groups(params)
    ties = sharing.first_names(params)
    totals = sharing.totals(Checkpoint(Source("m", "file"), "x", {}), params)
    assert time.process_time() - began < 3  # of which each is a third, on a machine that is busy
    assert len(groups) <= 1
    assert len(ties) < len(params)
    assert 0 < totals["unique_numel"] <= totals["numel"]


def test_strided_views_are_exact_up_to_the_bound():
    """Two views of 100,000 rows that lie between each other's share nothing, and count in full."""
    pair = many(2, (100_000, 3), (7, 1), 3)
    assert sharing.first_names(pair) == {}
    assert sharing.groups(pair)[0].relation == "view"
    assert sharing.unique(pair) == (600_000, 2_400_000)
