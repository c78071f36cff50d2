"""Which tensor is which: what is proposed, with what evidence, and where nothing may be."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramctl.correspondence import Correspondence, Form, Forms, correspond
from renames import renamed


def forms(**shapes: tuple[int, ...]) -> dict[str, Form]:
    return {name.replace("__", "."): Form(shape) for name, shape in shapes.items()}


def decoder(layers: int = 3, width: int = 8) -> dict[str, Form]:
    """Names and shapes of a small Llama."""
    made = {"model.embed_tokens.weight": Form((40, width))}
    for i in range(layers):
        for part, shape in {
            "self_attn.q_proj": (width, width), "self_attn.k_proj": (width // 2, width),
            "self_attn.v_proj": (width // 2, width), "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (3 * width, width), "mlp.up_proj": (3 * width, width), "mlp.down_proj": (width, 3 * width),
            "input_layernorm": (width,), "post_attention_layernorm": (width,),
        }.items():  # fmt: skip
            made[f"model.layers.{i}.{part}.weight"] = Form(shape)
    return made | {"model.norm.weight": Form((width,)), "lm_head.weight": Form((40, width))}


LLAMA_OF_META = {
    "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "model.layers": "layers",
}  # fmt: skip


def replaced(pairs: dict[str, str]):
    def rename(name: str) -> str:
        for old, new in pairs.items():
            name = name.replace(old, new)
        return name

    return rename


def counted_from(first: int):
    return lambda name: re.sub(r"layers\.(\d+)", lambda match: f"layers.{int(match[1]) + first}", name)


RENAMINGS = [  # what was done to the names; the kinds of the steps that find it out; and the rules
    ("module", lambda name: f"module.{name}", ["prefix"], ["module.=>"]),
    ("two wrappers", lambda name: f"_orig_mod.module.{name}", ["prefix"], ["_orig_mod.module.=>"]),
    ("a prefix that is missing", lambda name: name.removeprefix("model."), ["prefix", "prefix"],
     ["=>model.", "model.lm_head.=>lm_head."]),
    ("a layer compiled", replaced({"layers.": "layers._orig_mod."}), ["step"], [r"re:(\A|\.)_orig_mod\.=>\1"]),
    ("gamma", replaced({"norm.weight": "norm.gamma"}), ["word"], [r"re:(\A|\.)gamma(?=\.|\Z)=>\1weight"]),
    ("a word", replaced({"self_attn": "attention"}), ["word"], [r"re:(\A|\.)attention(?=\.|\Z)=>\1self_attn"]),
    ("counted from 1", counted_from(1), ["offset"], [f"model.layers.{i + 1}=>model.layers.{i}" for i in range(3)]),
    ("counted from 1, in other words",
     lambda name: replaced({"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2"})(counted_from(1)(name)),
     ["offset", "name"], None),
    ("counted from less", counted_from(0), [], []),
    ("prefix and word", lambda name: "module." + name.replace("mlp", "ffn"), ["prefix", "word"],
     ["module.=>", r"re:(\A|\.)ffn(?=\.|\Z)=>\1mlp"]),
    ("Llama's own", replaced(LLAMA_OF_META), ["prefix", "name"], None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rename", "kinds", "rules"), [row[1:] for row in RENAMINGS], ids=[row[0] for row in RENAMINGS]
)
def test_a_renaming_is_found_out(rename, kinds, rules):
    """Each systematic renaming is undone exactly, by so many steps and rules, and all shapes agree."""
    wanted = decoder()
    given_names = {rename(name): form for name, form in wanted.items()}
    found = correspond(given_names, wanted)
    assert [step.kind for step in found.steps] == kinds
    assert rules is None or list(found.rules) == rules
    assert found.names == {rename(name): name for name in wanted}
    assert {name: renamed(name, found.rules) for name in given_names} == found.names


def test_evidence_is_counted():
    """A step says what was seen, and of how many tensors the shapes agree."""
    wanted = decoder()
    given_names = {f"module.{name}": form for name, form in wanted.items()}
    given_names["module.lm_head.weight"] = Form((41, 8))
    given_names["module.extra"] = Form((1,))
    (step,) = correspond(given_names, wanted).steps
    assert step.evidence == (
        "names begin with module. (DataParallel and DistributedDataParallel), and the model's do not; "
        "30 of 31 are then wanted, and 29 of these agree"
    )


def stack(*, outer: bool = True) -> dict[str, Form]:
    """Layers with a norm each, and one outside of them that is called as theirs."""
    parts = {"q_proj": (8, 8), "up": (32, 8), "norm": (8,)}
    made = {f"layers.{i}.{part}.weight": Form(shape) for i in range(4) for part, shape in parts.items()}
    return {"emb.weight": Form((40, 8)), **made} | ({"norm.weight": Form((8,))} if outer else {})


@pytest.mark.parametrize("there", [True, False], ids=["an outer norm", "none"])
@pytest.mark.parametrize("is_ours", [True, False], ids=["given", "wanted"])
def test_a_norm_of_a_layer_is_not_the_one_outside(is_ours, there):
    """What is alike in every layer stays in its layer, and takes no place outside of them."""
    plain, other = stack(), {}
    for name, form in stack(outer=there).items():
        other["transformer." + name.replace("layers.", "h.")] = form
    names = correspond(*((other, plain) if is_ours else (plain, other))).names
    same = {"transformer." + name.replace("layers.", "h."): name for name in stack(outer=there)}
    assert {ours if is_ours else theirs: theirs if is_ours else ours for ours, theirs in names.items()
            if ours != theirs} == same  # fmt: skip


NOTHING = [  # what must not be taken for something
    ("the same", forms(a__weight=(2, 2)), forms(a__weight=(2, 2))),
    ("nothing alike", forms(a__weight=(2, 3), b__weight=(4,)), forms(c__weight=(5, 3), d__weight=(6,))),
    ("q is no k", forms(a__q__weight=(2, 2)), forms(a__k__weight=(2, 2))),
    ("a weight is no bias", forms(a__weight=(2,), c=(9,)), forms(a__bias=(2,), c=(9,))),
    ("a counter is no weight", {"a.steps": Form((2,), "int")}, forms(a__scale=(2,))),
    ("one of two", forms(x__weight=(2, 2)), forms(a__weight=(2, 2), b__weight=(2, 2), c__weight=(3,), d__weight=(4,))),
    ("other shapes behind a prefix", forms(module__a=(2,), module__b=(3,)), forms(a=(4,), b=(5,))),
    ("a scalar like any other", forms(temperature=(), w=(2,)), forms(logit_scale=(), w=(2,))),
]


@pytest.mark.parametrize(("one", "other"), [row[1:] for row in NOTHING], ids=[row[0] for row in NOTHING])
def test_nothing_is_made_up(one, other):
    """Where names or shapes contradict, or two would do as well, no mapping is proposed."""
    found = correspond(one, other)
    assert (found.steps, found.root.path) == ((), "")
    assert all(name == now for name, now in found.names.items())


def test_two_models_are_not_mapped_by_accident():
    """Of two unrelated models that share a few shapes none is mapped to the other."""
    bert = {f"encoder.{i}.{part}.{kind}": Form(shape)
            for i in range(4) for part in ("query", "key", "dense") for kind, shape in (("weight", (8, 8)), ("bias", (8,)))}  # fmt: skip
    conv = {f"stage{i}.conv.weight": Form((8, 8, 3, 3)) for i in range(9)} | {
        f"stage{i}.bn.bias": Form((8,)) for i in range(9)
    }
    found = correspond(bert, conv)
    assert found.steps == ()


def test_crossing_names_that_say_little_are_left_alone():
    """Two of one shape, whose names are nearly as alike the other way round and stand in the other order: neither."""
    one = forms(a__pre_x_norm__weight=(4,), a__y_norm__weight=(4,), b=(3,), c=(5,), d=(6,), e=(7,))
    other = forms(a__y2__norm__weight=(4,), a__x__norm__weight=(4,), b=(3,), c=(5,), d=(6,), e=(7,))
    names = correspond(one, other).names
    assert names["a.y_norm.weight"] in ("a.y_norm.weight", "a.y2.norm.weight")
    assert names["a.pre_x_norm.weight"] != "a.y2.norm.weight"


def test_the_order_decides_where_names_say_nothing():
    """The same shapes one after another are taken for each other, and the evidence says that this is all there is."""
    shapes = [(4, 3), (4,), (5, 4), (5,), (4, 3), (2, 5)]
    one = {f"n{i}x": Form(shape) for i, shape in enumerate(shapes)}
    other = {f"m{chr(97 + i)}z.w": Form(shape) for i, shape in enumerate(shapes)}
    found = correspond(one, other)
    assert list(found.names.values()) == list(other)
    reasons = {reason for step in found.steps for reason in step.reasons.values()}
    assert reasons <= {"by the order alone: the same 2 shapes follow each other", "the only one of its shape",
                       "by the order alone: the same 6 shapes follow each other"} | {r for r in reasons if "order" in r}  # fmt: skip


# ----------------------------------------------------------------------------- what no renaming mends


def test_transposes_are_told_and_squares_are_doubted():
    """Names that agree with transposed shapes are settled, each is told, and square ones beside them are doubted."""
    wanted = {f"h.{i}.{part}.weight": Form(shape) for i in range(2) for part, shape in
              {"c_attn": (24, 8), "c_proj": (8, 8), "c_fc": (32, 8), "ln": (8,)}.items()} | {"wpe.weight": Form((8, 8))}  # fmt: skip
    given_names = {name: form.transposed for name, form in wanted.items()}
    found = correspond(given_names, wanted)
    assert {one.given[0] for one in found.reshapes if one.kind == "transposed"} == {
        f"h.{i}.{part}.weight" for i in range(2) for part in ("c_attn", "c_fc")
    }
    assert found.doubtful == ("h.0.c_proj.weight", "h.1.c_proj.weight")


def split(names: Forms, fused: str, parts: dict[str, tuple[int, ...]]) -> dict[str, Form]:
    made: dict[str, Form] = {}
    for name, form in names.items():
        if fused in name:
            made |= {name.replace(fused, part): Form(shape) for part, shape in parts.items()}
        else:
            made[name] = form
    return made


FUSED = [
    ("Phi-3", "self_attn.qkv_proj", {f"self_attn.{x}_proj": (n, 8) for x, n in (("q", 8), ("k", 4), ("v", 4))}, "q, k and v"),
    ("GPT-2", "attn.c_attn", {f"attn.{x}": (8, 8) for x in ("query", "key", "value")}, "q, k and v"),
    ("Llama's own", "attention.wqkv", {f"attention.w{x}": (8, 8) for x in "qkv"}, "q, k and v"),
    ("torch", "self_attn.in_proj", {f"self_attn.{x}_proj": (8, 8) for x in "qkv"}, "q, k and v"),
    ("gate", "mlp.gate_up_proj", {"mlp.gate_proj": (24, 8), "mlp.up_proj": (24, 8)}, "gate and up"),
    ("kv", "attn.kv_proj", {"attn.k_proj": (4, 8), "attn.v_proj": (4, 8)}, "k and v"),
]  # fmt: skip


@pytest.mark.parametrize("is_fused", [True, False], ids=["fused in the file", "fused in the model"])
@pytest.mark.parametrize(("whole", "parts", "called"), [row[1:] for row in FUSED], ids=[row[0] for row in FUSED])
def test_parts_and_the_whole_find_each_other(whole, parts, called, is_fused):
    """Matrices whose rows are those of one, in each layer, in either direction; in the order in which they are called."""
    rows = sum(shape[0] for shape in parts.values())
    one = {f"layers.{i}.{whole}.weight": Form((rows, 8)) for i in range(3)} | {"norm.weight": Form((8,))}
    several = split(one, whole, parts)
    found = correspond(one, several) if is_fused else correspond(several, one)
    assert [
        (tuple(r.wanted if is_fused else r.given), (r.given if is_fused else r.wanted)) for r in found.reshapes
    ] == [(tuple(f"layers.{i}.{part}.weight" for part in parts), (f"layers.{i}.{whole}.weight",)) for i in range(3)]
    assert {r.kind for r in found.reshapes} == {"split" if is_fused else "fused"}
    assert all(r.why.startswith(f"{called} in one: ") for r in found.reshapes)


def test_rows_that_do_not_add_up_are_no_parts():
    """Queries, keys and values of other sizes than the fused tensor are not taken for its parts."""
    parts = {f"attn.{x}_proj.weight": Form((8, 8)) for x in "qkv"}
    assert correspond(parts, {"attn.qkv.weight": Form((23, 8))}).reshapes == ()


@pytest.mark.parametrize(
    ("one", "other", "is_told"),
    [((50304, 8), (50257, 8), True), ((50257, 8), (50304, 8), True), ((1000, 8), (10, 8), False), ((50257, 8), (50256, 9), False)],
    ids=["the file is padded", "the model is padded", "another head", "another width"],
)  # fmt: skip
def test_a_vocabulary_may_be_padded(one, other, is_told):
    """A few rows more, up to a multiple of 8, are of a padded vocabulary; another number of classes is none."""
    found = correspond(forms(wte__weight=one, x=(3,)), forms(wte__weight=other, x=(3,)))
    assert [r.kind for r in found.reshapes] == (["rows"] if is_told else [])


# ----------------------------------------------------------------------------- containers


def test_a_branch_is_chosen_and_its_copies_are_told():
    """Of state_dict and ema, which hold the same, the usual one is taken and the other named; the rest is left."""
    wanted = decoder()
    given_names = {f"{top}.model.{name}": form for top in ("ema", "state_dict") for name, form in wanted.items()}
    given_names |= {f"optimizer.state.{i}.exp_avg": form for i, form in enumerate(wanted.values())}
    found = correspond(given_names, wanted, extras=["epoch"])
    assert (found.root.path, found.root.others) == ("state_dict", ("ema",))
    assert found.rules == ("model.=>",)
    assert set(found.names.values()) == set(wanted)


def test_a_branch_that_has_one_name_alike_is_no_copy():
    """Beside the encoder that is wanted stands a head with a norm, too: it is not told as having the same."""
    wanted = decoder() | {"embeddings.norm.weight": Form((8,))}
    given_names = {f"encoder.{name}": form for name, form in wanted.items()}
    given_names |= {"head.norm.weight": Form((8,)), "head.bias": Form((99,))}
    assert tuple(correspond(given_names, wanted).root) == ("encoder", ())


def test_a_part_of_the_model_is_no_container():
    """Modules that all are wanted stay where they are, whatever they are called."""
    wanted = decoder()
    assert correspond(
        {f"module.{name}": form for name, form in wanted.items()}, wanted, extras=["epoch"]
    ).root.path in ("module", "")
    assert correspond({name.removeprefix("model."): form for name, form in wanted.items()}, wanted).root.path == ""


# ----------------------------------------------------------------------------- laws


STEPS = st.sampled_from(
    ["a", "b", "weight", "0", "1", "12", "*", "**", " x", "re:", "#c", "=>", "a=>b", "\\1", "\n", "é", "(", "~renamed"]
)
NAMES = st.lists(STEPS, min_size=1, max_size=4).map(".".join)
SHAPES = st.sampled_from([(2,), (3,), (2, 3), (4,), (5,), (6, 2), (7,)]).map(Form)


@settings(deadline=None, max_examples=250)
@given(
    wanted=st.dictionaries(NAMES, SHAPES, min_size=1, max_size=8),
    prefix=st.sampled_from(["", "module.", "re:.", "*.", " x.", "#c.", "=>.", "\n."]),
    old=STEPS,
    new=STEPS,
    more=st.dictionaries(NAMES, SHAPES, max_size=3),
)
def test_rules_say_what_was_found(wanted, prefix, old, new, more):
    """Whatever the names hold: the rules, one after another, make exactly the names that were found, one-to-one."""
    changed = {
        prefix + ".".join(new if step == old else step for step in name.split(".")): form
        for name, form in wanted.items()
    }
    given_names = changed | {f"more.{name}": form for name, form in more.items()}
    found = correspond(given_names, wanted)
    below = f"{found.root.path}." if found.root.path else ""
    assert {name: renamed(name[len(below) :], found.rules) for name in found.names} == found.names
    assert len(set(found.names.values())) == len(found.names)
    assert not any("\n" in rule or rule.startswith("#") or rule != rule.strip() for rule in found.rules)
    for step in found.steps:
        assert step.gain > 0
        assert 2 * step.agreeing >= step.found


def test_names_without_end_are_names():
    """Paths of thousands of steps, numbered or not, are compared as they are, and cost no more than their length."""
    one = {"0." * 9000 + "w": Form((3,)), "layer." * 16_666 + "last": Form((2, 2))}
    one |= {f"{'0.' * 30}{i}.w": Form((2,)) for i in range(20)} | {f"{'1.' * 500}{i}.w": Form((5,)) for i in range(20)}
    found = correspond({f"module.{name}": form for name, form in one.items()}, one)
    assert found.rules == ("module.=>",)
    other = {name.replace("w", "v"): form for name, form in one.items()}
    assert set(correspond(one, other).names.values()) == set(other)


@settings(deadline=None, max_examples=100)
@given(one=st.dictionaries(NAMES, SHAPES, max_size=8), other=st.dictionaries(NAMES, SHAPES, max_size=8))
def test_what_is_settled_stays_settled(one, other):
    """A renaming never loses more names that stand for themselves than it wins; and any names at all are taken."""
    found = correspond(one, other)
    before = sum(name in other and other[name] == form for name, form in one.items())
    assert _settled(found) >= before


def _settled(found: Correspondence) -> int:
    return len(found.left.wanted) - len(found.left.open_wanted)


def test_the_rules_are_read_as_they_are_meant(tmp_path):
    """What `convert --rename-file` reads of the rules does what they say."""
    renaming = pytest.importorskip("paramctl.renaming")
    wanted = decoder()
    for _, rename, _, _ in RENAMINGS:
        given_names = {rename(name): form for name, form in wanted.items()}
        found = correspond(given_names, wanted)
        (tmp_path / "names.txt").write_text("".join(f"{rule}\n" for rule in found.rules))
        assert renaming.names(renaming.read(str(tmp_path / "names.txt")), given_names) == found.names
