"""`old=>new`: what each rule makes of names, and what must stay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramctl import renaming
from paramctl.errors import SelectError

RULES = {
    ("module.=>", "module.0.weight"): "0.weight",
    ("module=>", "module.0.weight"): "0.weight",
    ("=>model.", "0.weight"): "model.0.weight",
    ("0.weight=>first", "0.weight"): "first",
    ("0=>first", "0.weight"): "first.weight",
    (" 0 => first ", "0.weight"): "first.weight",
    ("a.b=>c", "a.b.d.e"): "c.d.e",
    ("h.*.attn=>layers.*.attention", "h.11.attn.c_proj.weight"): "layers.11.attention.c_proj.weight",
    ("*.gamma=>*.weight", "a.b.gamma"): "a.b.weight",
    ("*=>model.*", "0.weight"): "model.0.weight",
    ("a.*.b.*=>*.*", "a.x.b.y.z"): "x.y.z",
    ("h.*.=>", "h.0.weight"): "weight",
    (r"re:^h\.(\d+)\.=>layer_\1.", "h.3.weight"): "layer_3.weight",
    ("re:[(]=>", "a("): "a",
    ("re:(?<=>)b=>c", "a=>b"): "a=>c",
    (r"re:(?P<n>\d+)=>\g<n>0", "0.1"): "00.10",
}
NOOPS = {
    ("module.=>", "modules.0.weight"),
    ("0=>first", "00.weight"),
    ("0.wei=>x", "0.weight"),
    ("h.*.attn=>x", "h.0.attention.weight"),
    ("*.gamma=>*.weight", "a.gammas"),
    ("weight=>w", "0.weight"),
}


@pytest.mark.parametrize(("rule", "name"), RULES, ids=str)
def test_a_rule_renames(rule, name):
    """A name becomes what stands in the table."""
    assert renaming.names([renaming.rule(rule)], [name]) == {name: RULES[rule, name]}


@pytest.mark.parametrize(("rule", "name"), NOOPS, ids=str)
def test_a_rule_leaves_alone(rule, name):
    """A name that the rule does not fit stays, and a rule that changes nothing is an error."""
    assert renaming.rule(rule).apply(name) == name
    with pytest.raises(SelectError, match="renames nothing"):
        renaming.names([renaming.rule(rule)], [name])


@given(st.lists(st.text("ab.", min_size=1, max_size=8), min_size=1, unique=True), st.text("ab", min_size=1, max_size=3))
def test_a_prefix_and_its_removal_cancel(names, prefix):
    """Putting a module before every name, and taking it away, gives the names back."""
    rules = [renaming.rule(f"=>{prefix}."), renaming.rule(f"{prefix}.=>")]
    assert renaming.names(rules, names) == {name: name for name in names}


def test_rules_follow_each_other():
    """Each rule sees what the one before it made."""
    rules = [renaming.rule("a=>b"), renaming.rule("b=>c")]
    assert renaming.names(rules, ["a.w", "b.w"]) == {"a.w": "c.w", "b.w": "c.w"}


ERRORS = {
    "weight": "error: not a renaming: OLD=>NEW\nweight\n      ^",
    "a=>*": "error: a star that stands for nothing of the old name\na=>*\n   ^",
    "re:(=>x": "error: the regular expression is wrong here: missing ), unterminated subpattern\nre:(=>x\n   ^",
}


@pytest.mark.parametrize("text", ERRORS)
def test_a_malformed_rule_is_pointed_at(text):
    """A rule that is none says where it is wrong."""
    with pytest.raises(SelectError) as told:
        renaming.rule(text)
    assert str(told.value) == ERRORS[text]


def test_a_file_of_rules(tmp_path):
    """One rule a line; comments and empty lines are none; an error names the line."""
    path = tmp_path / "rules"
    path.write_text("# names of ours\n\nmodule.=>\n re:(\\d)=>\\1_ \n")
    assert renaming.names(renaming.read(str(path)), ["module.0.w"]) == {"module.0.w": "0_.w"}
    with pytest.raises(SelectError) as told:
        renaming.names(renaming.read(str(path)), ["0.w"])
    assert str(told.value) == f"error: {path}, line 3: module.=> renames nothing\n\nhint: there is 0.w"
    with pytest.raises(SelectError) as told:
        renaming.names([renaming.rule(r"re:0=>\2")], ["0.w"])
    assert str(told.value) == "error: re:0=>\\\\2: the template is wrong: invalid group reference 2 at position 1"
