"""Match on definitions of other people: models of transformers, built from a configuration; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import others
import paramctl
from program import MODELS
from renames import renamed

pytestmark = pytest.mark.filterwarnings("ignore")
others.need("transformers")

DEFINITIONS = """
import transformers as t

SIZES = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96, vocab_size=200)
LLAMA = SIZES | dict(num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
GPT2 = dict(n_embd=64, n_layer=4, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0)


def gpt2():
    return t.GPT2LMHeadModel(t.GPT2Config(vocab_size=1000, **GPT2))


def gpt2_inside(vocab_size=1000):
    return t.GPT2Model(t.GPT2Config(vocab_size=vocab_size, **GPT2))


def bert():
    return t.BertModel(t.BertConfig(**SIZES))


def bert_for_words():
    return t.BertForMaskedLM(t.BertConfig(**SIZES))


def llama():
    return t.LlamaForCausalLM(t.LlamaConfig(**LLAMA))


def phi3():
    return t.Phi3ForCausalLM(t.Phi3Config(**LLAMA))


def mixtral():
    return t.MixtralForCausalLM(t.MixtralConfig(num_local_experts=4, **LLAMA))


def vit():
    return t.ViTModel(t.ViTConfig(**(SIZES | dict(image_size=32, patch_size=16))))


def resnet():
    return t.ResNetModel(t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 1]))


def t5():
    return t.T5Model(t.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=200))
"""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A folder with the definitions; and them, as a module."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "theirs.py").write_text(DEFINITIONS)
    spec = importlib.util.spec_from_file_location("their_models", folder / "theirs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def saved(theirs, tmp_path):
    """Save a state dict, and match it with a definition of theirs or another."""

    def _saved(state, definition: str):
        torch.save(state, tmp_path / "m.pt")
        folder = Path(theirs.__file__).parent
        where = definition if definition.endswith(".py") else f"{folder / 'theirs.py'}:{definition}"
        return paramctl.match(tmp_path / "m.pt", where)

    return _saved


NAMES = re.findall(r"^def (\w+)", DEFINITIONS, re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_takes_its_own_state_dict(name, theirs, saved):
    """Each model's own state dict fits, buffers that are not saved and ties that are left alone."""
    report = saved(getattr(theirs, name)().state_dict(), name)
    assert report.totals["fits"]
    assert {row["status"] for row in report.dicts()} == {"ok"}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_found_again_under_other_names(name, theirs, saved):
    """Behind module. and with other words in the names it is found again exactly, and loads."""
    model = getattr(theirs, name)()
    other = {f"module.{key.replace('weight', 'w8')}": tensor for key, tensor in model.state_dict().items()}
    mending = saved(other, name).totals["mending"]
    assert mending["then"]["fits"]
    made = {renamed(key, mending["rules"]): tensor for key, tensor in other.items()}
    assert all(torch.equal(tensor, made[key]) for key, tensor in model.state_dict().items())
    model.load_state_dict(made, strict=True)


def test_gpt2_is_transposed(theirs, saved):
    """GPT-2's Conv1D against nn.Linear: the transposed are told, the square ones doubted; both transposed it computes the same."""
    model = theirs.gpt2().eval()
    report = saved(model.state_dict(), str(MODELS / "gpt.py"))
    shapes = [row["name"] for row in report.dicts() if row["status"] == "shape"]
    parts = ("attn.c_attn", "mlp.c_fc", "mlp.c_proj")
    assert shapes == [f"transformer.h.{i}.{part}.weight" for i in range(4) for part in parts]
    assert {row["detail"] for row in report.dicts() if row["status"] == "shape"} == {"transposed"}
    assert report.totals["mending"]["doubtful"] == ["transformer.h.[0-3].attn.c_proj.weight"]
    doubtful = [row["name"] for row in report.dicts() if "square" in (row["detail"] or "")]
    assert doubtful == [f"transformer.h.{i}.attn.c_proj.weight" for i in range(4)]
    made = {key: tensor.T if key in {*shapes, *doubtful} else tensor for key, tensor in model.state_dict().items()}
    ours = _ours()
    ours.load_state_dict(made, strict=True)
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), model(tokens).logits, rtol=1e-4, atol=1e-4)


def _ours() -> nn.Module:
    spec = importlib.util.spec_from_file_location("our_gpt", MODELS / "gpt.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.model().eval()


def test_a_part_of_gpt2_lacks_a_prefix_and_has_a_padded_vocabulary(theirs, saved):
    """The inner model's names get their prefix; a vocabulary padded to 1,024 rows is told with its rows."""
    report = saved(theirs.gpt2_inside(1024).state_dict(), str(MODELS / "gpt.py"))
    mending = report.totals["mending"]
    assert mending["rules"] == ["=>transformer."]
    (rows,) = (one for one in mending["reshapes"] if one["kind"] == "rows")
    assert (rows["given"], rows["why"]) == (["transformer.wte.weight"], "the file has 24 rows more")
    (row,) = (row for row in report.dicts() if row["name"] == "transformer.wte.weight")
    assert (row["candidate"], row["detail"]) == ("wte.weight", "=>transformer., the file has 24 rows more")
    assert {row["name"] for row in report.dicts() if row["status"] == "missing" and not row["candidate"]} <= {
        "lm_head.weight"
    }


def test_bert_was_called_gamma_and_beta(theirs, saved):
    """Names of TensorFlow's days are systematically others; the head that the model has not is left."""
    model = theirs.bert_for_words()
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for key, tensor in model.state_dict().items()
    }
    report = saved(old, "bert_for_words")
    assert [step["evidence"] for step in report.totals["mending"]["steps"]] == [
        "weight is called gamma; all 8 shapes agree",
        "bias is called beta; all 8 shapes agree",
    ]
    made = {renamed(key, report.totals["mending"]["rules"]): tensor for key, tensor in old.items()}
    model.load_state_dict(made, strict=True)
    part = saved(old, "bert").totals["mending"]
    assert part["at"] == "bert"
    assert part["then"]["missing"] == 2  # the pooler, which the other model has not


META = {  # Llama's own names; meta-llama/llama, llama/model.py
    "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "model.layers": "layers",
}  # fmt: skip


def test_llama_under_its_own_names(theirs, saved):
    """Every tensor finds the one that it is, those of one shape too."""
    model = theirs.llama()
    truth = {}
    for key in model.state_dict():
        name = key
        for ours, meta in META.items():
            name = name.replace(ours, meta)
        truth[name] = key
    report = saved({name: model.state_dict()[key] for name, key in truth.items()}, "llama")
    assert report.totals["mending"]["then"]["fits"]
    assert {name: renamed(name, report.totals["mending"]["rules"]) for name in truth} == truth


def test_llama_against_phi3(theirs, saved):
    """q, k and v, and gate and up, are parts of one; put together as told, the other model takes them."""
    state = theirs.llama().state_dict()
    report = saved(state, "phi3")
    assert {one["kind"] for one in report.totals["mending"]["reshapes"]} == {"fused"}
    for i in range(3):
        at = f"model.layers.{i}"
        state[f"{at}.self_attn.qkv_proj.weight"] = torch.cat(
            [state.pop(f"{at}.self_attn.{x}_proj.weight") for x in "qkv"]
        )
        state[f"{at}.mlp.gate_up_proj.weight"] = torch.cat(
            [state.pop(f"{at}.mlp.{x}_proj.weight") for x in ("gate", "up")]
        )
    theirs.phi3().load_state_dict(state, strict=True)
    back = saved(theirs.phi3().state_dict(), "llama").totals["mending"]
    assert {one["kind"] for one in back["reshapes"]} == {"split"}


UNRELATED = [("bert", "resnet"), ("resnet", "llama"), ("t5", "gpt2"), ("vit", "t5")]


@pytest.mark.parametrize(("given", "wanted"), UNRELATED, ids=[f"{a} in {b}" for a, b in UNRELATED])
def test_unrelated_models_are_not_mapped(given, wanted, theirs, saved):
    """Of a model that is another no mapping is proposed."""
    report = saved(getattr(theirs, given)().state_dict(), wanted)
    mending = report.totals["mending"]
    assert not report.totals["fits"]
    assert mending is None or not mending["rules"]
