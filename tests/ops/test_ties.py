"""`ties`: groups, what each view is, and the bytes saved."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file, save_model
from torch import nn

import paramctl
from gguf_bytes import file as gguf_file
from gguf_bytes import tensor as gguf_tensor
from paramctl.errors import ParamctlError

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


# ----------------------------------------------------------------------------- by content


def content(run, *words):
    result = run("ties", *words, "--by", "content", "-f", "json")
    assert result.code == 0, result.err
    return [row for row in result.rows if row["relation"] == "content"], result


def test_ties_by_storage_stay_beside_those_by_content(run, tmp_path):
    """Rows of what is shared as without --by, then a row for bytes that stand twice; tied names are one of them."""
    base = torch.arange(24.0).reshape(6, 4)
    torch.save({"a": base, "b": base, "c": base.clone(), "d": base + 1}, tmp_path / "m.pt")
    shared = run("ties", tmp_path / "m.pt", "-f", "json").rows
    rows, result = content(run, tmp_path / "m.pt")
    assert result.rows == shared + rows
    assert [list(row) for row in rows] == [KEYS]
    assert rows == [
        {
            "names": ["a", "c"],
            "relation": "content",
            "shape": [6, 4],
            "dtype": "float32",
            "nbytes": 96,
            "saved_nbytes": 96,
            "storage": shared[0]["storage"],
            "source": "content",
        }
    ]
    assert result.err == ""


def test_notes_tell_which_is_the_transpose_of_which(run, tmp_path):
    """And which holds the same bytes in another shape; of many only some are told."""
    base = torch.arange(24.0).reshape(6, 4)
    torch.save({"a": base, "t": base.t().contiguous(), "r": base.reshape(2, 12).clone()}, tmp_path / "m.pt")
    (row,), result = content(run, tmp_path / "m.pt")
    assert (row["names"], row["saved_nbytes"]) == (["a", "t", "r"], 192)
    assert result.err == "r is a reshape of a\nt is the transpose of a\n"
    torch.save(pairs_of_transposes(30), tmp_path / "m.pt")
    lines = run("ties", tmp_path / "m.pt", "--by", "content").err.splitlines()
    assert (len(lines), lines[-1]) == (21, "and 10 more of other shapes")


def pairs_of_transposes(count):
    made = {f"w{i}": torch.arange(6.0).reshape(2, 3) + i for i in range(count)}
    return made | {f"t{i}": made[f"w{i}"].t().contiguous() for i in range(count)}


def test_a_copy_beside_a_transpose_is_told_as_a_copy(run, tmp_path):
    """What is no plain copy of the first has a note, and what is one has none, whatever it is of the others."""
    base = torch.arange(24.0).reshape(6, 4)
    save_file({"a": base, "b": base.t().contiguous(), "c": base.clone()}, tmp_path / "m.safetensors")
    (row,), result = content(run, tmp_path / "m.safetensors")
    assert (row["names"], row["saved_nbytes"]) == (["a", "b", "c"], 192)
    assert result.err == "b is the transpose of a\n"


def test_a_view_of_what_is_equal_is_the_same_candidate(run, tmp_path):
    """A tensor and its transpose in one storage are shared; a copy of either is found once."""
    base = torch.arange(24.0).reshape(6, 4)
    torch.save({"a": base, "t": base.t(), "copy": base.t().contiguous()}, tmp_path / "m.pt")
    (row,), result = content(run, tmp_path / "m.pt")
    assert (row["names"], row["saved_nbytes"]) == (["a", "copy"], 96)
    assert result.err == "t is the transpose of a\ncopy is the transpose of a\n"
    torch.save({"a": base, "t": base.t()}, tmp_path / "m.pt")
    assert content(run, tmp_path / "m.pt")[0] == []


def test_what_would_be_saved_counts_each_byte_once(run, tmp_path):
    """An expanded tensor has fewer bytes than its copy, and parts of one storage that are equal can be one part."""
    row = torch.arange(5.0)
    torch.save({"copy": row.expand(3, 5).contiguous(), "expanded": row.expand(3, 5)}, tmp_path / "m.pt")
    assert content(run, tmp_path / "m.pt")[0][0]["saved_nbytes"] == 60
    fused = torch.arange(5.0).repeat(3)
    torch.save(dict(zip("qkv", fused.chunk(3), strict=True)), tmp_path / "m.pt")
    (group,), _ = content(run, tmp_path / "m.pt")
    assert (group["names"], group["saved_nbytes"]) == (["q", "k", "v"], 40)


def test_constants_are_left_out_unless_asked_for(run, tmp_path):
    """Zeros and ones are equal everywhere, and mean nothing."""
    state = {"0.bias": torch.zeros(8), "1.bias": torch.zeros(8), "0.norm": torch.ones(8), "1.norm": torch.ones(8)}
    state |= {"step": torch.tensor(5), "steps": torch.tensor(5), "w": torch.arange(8.0), "v": torch.arange(8.0)}
    torch.save(state, tmp_path / "m.pt")
    assert [row["names"] for row in content(run, tmp_path / "m.pt")[0]] == [["w", "v"]]
    rows, _ = content(run, tmp_path / "m.pt", "--constants")
    assert [row["names"] for row in rows] == [["0.bias", "1.bias"], ["0.norm", "1.norm"], ["step", "steps"], ["w", "v"]]


def test_a_group_by_content_is_shown_where_any_of_its_names_was_chosen(run, tmp_path):
    """A name that is tied to one of the group stands for it; and nothing else is read."""
    base = torch.arange(24.0)
    torch.save({"a": base, "b": base, "c": base.clone(), "x": base + 1, "y": base + 1}, tmp_path / "m.pt")
    assert [row["names"] for row in content(run, tmp_path / "m.pt", "b")[0]] == [["a", "c"]]
    assert [row["names"] for row in content(run, tmp_path / "m.pt", "y")[0]] == [["x", "y"]]
    assert len(content(run, tmp_path / "m.pt")[0]) == 2
    torch.save({"a": base, "b": torch.ones(3), "c": base.clone()}, tmp_path / "m.pt")
    read = []
    assert paramctl.open(tmp_path / "m.pt").select("b").ties(by="content", tell=read.append).rows == ()
    assert read == []


def test_a_definition_has_its_values_compared(run, tmp_path):
    """Layers that were copied are equal until they are trained; a definition on the meta device has no values."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\nlayer = nn.TransformerEncoderLayer(4, 2, 8)\n"
        "net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)\n"
    )
    names = {name for row in content(run, tmp_path / "net.py")[0] for name in row["names"]}
    assert "layers.1.linear1.weight" in names
    assert run("ties", tmp_path / "net.py", "-f", "json").rows == []


def test_what_has_no_bytes_is_left_out(run, tmp_path):
    """A tensor on the meta device silently; with a note what might be equal, but is not to be read in order."""
    many, few = (torch.arange(2.0).expand(1 << 30 << i, 2) for i in range(2))
    state = {"meta": torch.empty(2, 2, device="meta"), "a": torch.arange(4.0), "b": many, "c": few}
    state["d"] = torch.ones(2).expand(1 << 30, 2)
    torch.save(state, tmp_path / "m.pt")
    rows, result = content(run, tmp_path / "m.pt")
    assert rows == []
    assert result.err.splitlines() == [
        f"{name}: its 2,147,483,648 elements are 2 that overlap; it was not compared" for name in "bd"
    ]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--by", "name"), "error: --by name: neither storage nor content\n"),
        (("--constants",), "error: constants are a matter of content\n\nhint: --by content\n"),
    ],
)
def test_words_that_make_no_sense_are_refused(words, what, run):
    """In one line, and a hint."""
    result = run("ties", "models/tied.py", *words)
    assert (result.code, result.out, result.err) == (2, "", what)


def test_the_api_refuses_them_too():
    """`by` is one of two words."""
    with pytest.raises(ParamctlError, match="neither storage nor content"):
        paramctl.open("models/tied.py").ties(by="name")


# ----------------------------------------------------------------------------- ties that were lost on the way


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wte = nn.Embedding(12, 4)
        self.h = nn.Linear(4, 4)
        self.lm_head = nn.Linear(4, 12, bias=False)
        self.lm_head.weight = self.wte.weight


def cloned(path, state):
    """What safetensors' own error advises."""
    save_file({name: tensor.clone() for name, tensor in state.items()}, path)


def saved_by_name(path, state):
    torch.save({name: tensor.clone() for name, tensor in state.items()}, path)


def in_half(path, state):
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in state.items()}, path)


def in_two_shards(path, state):
    path.mkdir()
    names = list(state)
    save_file({name: state[name].clone() for name in names[:2]}, path / "model-00001-of-00002.safetensors")
    save_file({name: state[name].clone() for name in names[2:]}, path / "model-00002-of-00002.safetensors")


def as_arrays(path, state):
    """numpy has no ties."""
    np.savez(path.with_suffix(".npz"), **{name: tensor.numpy() for name, tensor in state.items()})
    path.with_suffix(".npz").rename(path)


def distributed(path, state):
    dcp.save(dict(state), storage_writer=dcp.FileSystemWriter(path), no_dist=True)


def as_conv1d(path, state):
    """GPT-2 of TensorFlow keeps its output layer the other way round."""
    save_file({n: t.t().contiguous() if n == "lm_head.weight" else t.clone() for n, t in state.items()}, path)


def as_gguf(path, state):
    names = ["token_embd.weight", "output.weight", "blk.0.w"]
    raw = [state[name].numpy().tobytes() for name in ("wte.weight", "lm_head.weight", "h.weight")]
    dims, starts = [(4, 12), (4, 12), (4, 4)], [0, 192, 384]
    tensors = [gguf_tensor(name, dim, 0, at) for name, dim, at in zip(names, dims, starts, strict=True)]
    path.write_bytes(gguf_file(*tensors, data=b"".join(raw)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "write",
    [cloned, saved_by_name, in_half, in_two_shards, as_arrays, distributed, as_conv1d, as_gguf],
    ids=lambda write: write.__name__,
)
def test_equal_but_no_longer_tied_is_found(write, run, tmp_path):
    """However a tie was lost, the pair is found, and nothing else; until then nobody says a word."""
    model = Tied().eval()
    write(tmp_path / "m", {name: tensor.detach() for name, tensor in model.state_dict().items()})
    assert run("ties", tmp_path / "m", "-f", "json").rows == []
    (row,), result = content(run, tmp_path / "m")
    wanted = {"token_embd.weight", "output.weight"} if write is as_gguf else {"wte.weight", "lm_head.weight"}
    assert set(row["names"]) == wanted
    assert row["saved_nbytes"] == row["nbytes"] == 12 * 4 * (2 if write is in_half else 4)
    assert (" is the transpose of " in result.err) == (write is as_conv1d)


def test_a_tie_that_was_kept_is_no_tie_by_content(run, tmp_path):
    """Neither one of torch's nor one that safetensors declares; and a trained copy is none at all."""
    model = Tied()
    torch.save(model.state_dict(), tmp_path / "m.pt")
    save_model(model, str(tmp_path / "m.safetensors"))
    for name in ("m.pt", "m.safetensors"):
        rows, result = content(run, tmp_path / name)
        assert (rows, [row["relation"] for row in result.rows]) == ([], ["same"])
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    state["lm_head.weight"][11, 3] += 1e-6
    save_file(state, tmp_path / "m.safetensors")
    assert content(run, tmp_path / "m.safetensors")[1].rows == []
