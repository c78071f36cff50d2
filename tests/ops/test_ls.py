"""`ls`: one parameter a row, the same keys for every kind of source."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

KEYS = [
    "name",
    "shape",
    "dtype",
    "numel",
    "nbytes",
    "kind",
    "requires_grad",
    "stride",
    "storage",
    "storage_offset",
    "tie",
    "module",
    "file",
]


def net():
    made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 4))
    made[3].weight = made[2].weight
    made[2].bias.requires_grad_(False)
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One network as a definition, a pickled module, a state dict, and safetensors."""
    folder = tmp_path_factory.mktemp("ls")
    torch.save(net(), folder / "module.pt")
    torch.save(net().state_dict(), folder / "state.pt")
    save_model(net(), str(folder / "m.safetensors"))
    code = __import__("inspect").getsource(net)
    (folder / "net.py").write_text(f"from torch import nn\n{code}")
    return {path.name: path for path in folder.iterdir()}


SOURCES = ["net.py", "module.pt", "state.pt", "m.safetensors"]


@pytest.mark.parametrize("name", SOURCES)
def test_row_holds_every_key(run, files, name):
    """The keys of the contract, in their order, and what torch says under each."""
    state = net().state_dict()
    parameters, buffers = dict(net().named_parameters()), dict(net().named_buffers())
    result = run("ls", files[name], "-f", "json")
    assert result.code == 0
    assert [row["name"] for row in result.rows] == (sorted(state) if name == "m.safetensors" else list(state))
    knows = name in ("net.py", "module.pt")
    for row in result.rows:
        tensor = state[row["name"]]
        assert list(row) == KEYS
        assert row["shape"] == list(tensor.shape)
        assert row["dtype"] == str(tensor.dtype).removeprefix("torch.")
        assert (row["numel"], row["nbytes"]) == (tensor.numel(), tensor.numel() * tensor.element_size())
        assert (row["stride"], row["storage_offset"]) == (list(tensor.stride()), 0)
        kind = "buffer" if row["name"] in buffers else "parameter"
        assert row["kind"] == (kind if knows else "tensor")
        assert row["tie"] == ("2.weight" if row["name"] == "3.weight" else None)
        owner = net().get_submodule(row["name"].rpartition(".")[0])
        assert row["module"] == (type(owner).__name__ if knows else None)
        assert row["file"] == str(files[name])
        if knows and kind == "parameter":
            trained = row["name"] != "2.bias"
            assert row["requires_grad"] is trained
        elif knows:
            assert row["requires_grad"] in (None, False)
        else:
            assert row["requires_grad"] is (None if name == "m.safetensors" else False)
    assert len(parameters) + len(buffers) == len(state) - 1
    storages = {row["name"]: row["storage"] for row in result.rows}
    assert storages["2.weight"] == storages["3.weight"]
    assert len(set(storages.values())) == len(state) - 1


@pytest.mark.parametrize("name", SOURCES)
def test_totals_count_a_tie_once(run, files, name):
    """`numel` counts every name, `unique_numel` every element."""
    totals = run("ls", files[name], "-f", "json").json["totals"]
    state = net().state_dict()
    numel = sum(tensor.numel() for tensor in state.values())
    nbytes = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert (totals["tensors"], totals["numel"], totals["unique_numel"]) == (len(state), numel, numel - 16)
    assert (totals["nbytes"], totals["unique_nbytes"], totals["storage_nbytes"]) == (nbytes, nbytes - 64, nbytes - 64)


def test_tie_is_told_when_its_other_end_was_not_chosen(run, files):
    """The totals are of what was chosen."""
    result = run("ls", files["state.pt"], "3.weight", "-f", "json")
    assert [row["tie"] for row in result.rows] == ["2.weight"]
    assert (result.json["totals"]["tensors"], result.json["totals"]["unique_numel"]) == (1, 16)


def test_views_tell_stride_and_offset(run, tmp_path):
    """A transposed column slice of a saved storage, and what it drags along."""
    base = torch.zeros(6, 8)
    torch.save({"w": base.t()[2:4, 1:]}, tmp_path / "m.pt")
    result = run("ls", tmp_path / "m.pt", "-f", "json")
    (row,) = result.rows
    assert (row["shape"], row["stride"], row["storage_offset"], row["nbytes"]) == ([2, 5], [1, 8], 10, 40)
    assert (result.json["totals"]["unique_nbytes"], result.json["totals"]["storage_nbytes"]) == (40, 192)


def test_tsv_is_the_rows_under_their_keys(run, files):
    """One line a row, tab-separated, raw."""
    lines = run("ls", files["state.pt"], "0").out.splitlines()
    assert lines[0].split("\t") == KEYS
    assert lines[1].split("\t")[:5] == ["0.weight", "[4,3]", "float32", "12", "48"]
    assert len(lines) == 3


# ----------------------------------------------------------------------------- digests


def test_digest_is_a_column_more(run, files):
    """The keys and values of the list stay, and behind them stands what hashlib gives, the same in every source."""
    digests = []
    for name in ("state.pt", "module.pt", "m.safetensors"):
        plain = run("ls", files[name], "-f", "json")
        result = run("ls", files[name], "--digest", "-f", "json")
        assert [list(row) for row in result.rows] == [[*KEYS, "digest"]] * len(plain.rows)
        assert [{key: row[key] for key in KEYS} for row in result.rows] == plain.rows
        assert result.json["totals"] == plain.json["totals"]
        digests.append({row["name"]: row["digest"] for row in result.rows if row["name"] != "2.weight"})
        shared = {row["digest"] for row in result.rows if row["name"] in ("2.weight", "3.weight")}
        assert len(shared) == 1
    steps = np.array(0, np.int64).tobytes()
    assert digests[0]["1.num_batches_tracked"] == hashlib.sha256(b"int64 \n" + steps).hexdigest()


def test_two_saves_of_one_network_agree_by_their_digests(run, tmp_path):
    """And a change of one element changes one line."""
    torch.manual_seed(0)
    state = {name: tensor.detach().clone() for name, tensor in net().state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    save_file(state, tmp_path / "b.safetensors")
    lists = [
        dict(line.split("\t")[:: len(KEYS)] for line in run("ls", path, "--digest").out.splitlines()[1:])
        for path in (tmp_path / "a.pt", tmp_path / "b.safetensors")
    ]
    assert lists[0] == lists[1]
    state["2.weight"][0, 0] += 1
    torch.save(state, tmp_path / "a.pt")
    changed = run("ls", tmp_path / "a.pt", "--digest", "-f", "json").rows
    assert [row["name"] for row in changed if row["digest"] != lists[1][row["name"]]] == ["2.weight"]


def test_a_definition_is_digested_with_a_seed(run, files):
    """With one seed the same, with another different, and as what `--seed` would write."""
    first, again, other = (
        [row["digest"] for row in run("ls", files["net.py"], "0.weight", "--digest", "--seed", seed, "-f", "json").rows]
        for seed in (0, 0, 1)
    )
    assert first == again != other
    torch.manual_seed(0)
    raw = net()[0].weight.detach().numpy().tobytes()
    assert first == [hashlib.sha256(b"float32 4,3\n" + raw).hexdigest()]


def test_what_has_no_bytes_has_no_digest(run, tmp_path):
    """It is null, and a note says why."""
    torch.save({"w": torch.ones(2), "meta": torch.empty(2, 2, device="meta")}, tmp_path / "m.pt")
    result = run("ls", tmp_path / "m.pt", "--digest", "-f", "json")
    assert [row["digest"] is None for row in result.rows] == [False, True]
    assert (result.code, result.err) == (0, "meta: it has a shape, and no values, so no digest\n")


def test_a_tree_has_no_digests(run, files):
    """It is said, and nothing is read."""
    result = run("ls", files["state.pt"], "--digest", "-f", "tree")
    said = "error: --digest is a column, and a tree has none\n\nhint: --format table, tsv or json\n"
    assert (result.code, result.out, result.err) == (2, "", said)
