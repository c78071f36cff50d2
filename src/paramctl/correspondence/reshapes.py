"""Header tier: what no renaming can mend: matrices that are transposed, more rows than are wanted, parts in one.

GPT-2's `Conv1D` keeps (inputs, outputs) where `nn.Linear` has (outputs, inputs). A vocabulary is padded to a multiple
of 64 or so. Queries, keys and values may be three matrices, or the rows of one.

Source: transformers/pytorch_utils.py (`Conv1D`); transformers/models/phi3/modeling_phi3.py (`qkv_proj`,
`gate_up_proj`); torch/nn/modules/activation.py (`MultiheadAttention.in_proj_weight`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from paramctl.correspondence.forms import Form, Forms, relation
from paramctl.correspondence.state import State
from paramctl.correspondence.templates import Indices, starred
from paramctl.correspondence.words import likeness, words

Kind = Literal["transposed", "rows", "fused", "split"]


class Reshape(NamedTuple):
    """What `given` tensors must be made into to be the `wanted`; a name on each side, or several."""

    kind: Kind
    given: tuple[str, ...]
    wanted: tuple[str, ...]
    why: str


class _Fusion(NamedTuple):
    """Parts that may be one tensor, each by what it is called in a step of a name; and what the one is called."""

    parts: tuple[re.Pattern[str], ...]
    whole: re.Pattern[str]
    called: str


def _part(spelling: str) -> re.Pattern[str]:
    return re.compile(rf"(?:(?<![a-zA-Z])|(?<=\.w)|(?<=^w))(?:{spelling})(?![a-zA-Z0-9])")


_FUSIONS = (
    _Fusion(
        (_part("q|query"), _part("k|key"), _part("v|value")),
        re.compile(r"qkv|c_attn|in_proj|query_key_value", re.IGNORECASE),
        "q, k and v",
    ),
    _Fusion((_part("gate|w1"), _part("up|w3")), re.compile(r"gate_up|w13|gate_and_up"), "gate and up"),
    _Fusion((_part("k|key"), _part("v|value")), re.compile(r"(?<!q)kv|key_value", re.IGNORECASE), "k and v"),
)


def reshapes(state: State) -> list[Reshape]:
    """All that is seen of these, by the names as they have become."""
    found = [*_of_one(state)]
    given, wanted = dict(state.free), dict(state.missing)
    for fusion in _FUSIONS:
        for kind, parts, wholes in (("fused", given, wanted), ("split", wanted, given)):
            for some, one, why in _fusions(fusion, parts, wholes):
                if kind == "fused":
                    found.append(Reshape("fused", some, (one,), why))
                else:
                    found.append(Reshape("split", (one,), some, why))
                for name in some:
                    del parts[name]
                del wholes[one]
    return found


def squares(state: State, found: Iterable[Reshape]) -> tuple[str, ...]:
    """Matrices beside transposed ones that may be so themselves: they are square, and no shape tells."""
    places = {_place(one.wanted[0]) for one in found if one.kind == "transposed"}
    return tuple(
        name
        for name, form in (state.given.items() if places else ())
        if len(form.shape) == 2
        and form.shape[0] == form.shape[1] > 1
        and state.is_settled(name)
        and _place(name) in places
        and {"embed", "position"}.isdisjoint(words(name))
    )


def _place(name: str) -> str:
    """The layers that a tensor is in one of; else the module above its own."""
    template = starred(name)[0]
    before, star, _ = template.rpartition(".*.")
    return before + star if star else template.rpartition(".")[0].rpartition(".")[0]


def _of_one(state: State) -> Iterator[Reshape]:
    for name, form in state.given.items():
        other = state.wanted.get(name)
        how = relation(form, other) if other is not None else ""
        if other is None or how in ("same", ""):
            continue
        if how == "transposed":
            yield Reshape("transposed", (name,), (name,), "transposed")
        elif is_vocabulary(name, form, other):
            more = "the file" if form.shape[0] > other.shape[0] else "the model"
            yield Reshape("rows", (name,), (name,), f"{more} has {_rows(form, other)} rows more")


def _rows(a: Form, b: Form) -> str:
    return f"{abs(a.shape[0] - b.shape[0]):,}"


def is_vocabulary(name: str, a: Form, b: Form) -> bool:
    """Whether rows may be of a vocabulary that was padded: an embedding's or a head's, one a multiple of 8 and near."""
    less, more = sorted((a.shape[0], b.shape[0]))
    return not {"embed", "token", "head", "unembed"}.isdisjoint(words(name)) and less * 1.1 >= more and more % 8 == 0


# ----------------------------------------------------------------------------- several in one


def _fusions(fusion: _Fusion, parts: Forms, wholes: Forms) -> list[tuple[tuple[str, ...], str, str]]:
    """Parts, the one that they are, and what was seen."""
    ones: dict[Indices, list[str]] = {}
    for name in wholes:
        if fusion.whole.search(name):
            ones.setdefault(starred(name)[1], []).append(name)
    found: list[tuple[tuple[str, ...], str, str]] = []
    for some in _complete(fusion, parts) if ones else ():
        forms = [parts[name] for name in some]
        near = [one for one in ones.get(starred(some[0])[1], ()) if _adds_up(forms, wholes[one])]
        near = [one for one in near if _role(one) == _role(some[0])]
        scored = sorted(((likeness(_around(fusion, some[0]), one), one) for one in near), reverse=True)
        if not scored or (len(scored) > 1 and scored[0][0] == scored[1][0]):
            continue
        one = scored[0][1]
        ones[starred(one)[1]].remove(one)
        rows = " + ".join(f"{form.shape[0]:,}" for form in forms)
        found.append((some, one, f"{fusion.called} in one: {rows} rows"))
    return found


def _complete(fusion: _Fusion, names: Forms) -> list[tuple[str, ...]]:
    """Names that differ in which part they are and in nothing else, where all parts are there."""
    groups: dict[str, dict[int, str]] = {}
    for name in names:
        for number, part in enumerate(fusion.parts):
            without, count = part.subn("{}", name)
            if count == 1:
                groups.setdefault(without, {})[number] = name
    return [
        tuple(group[number] for number in range(len(fusion.parts)))
        for group in groups.values()
        if len(group) == len(fusion.parts)
    ]


def _around(fusion: _Fusion, name: str) -> str:
    return fusion.parts[0].sub("", name)


def _role(name: str) -> str:
    return "bias" if "bias" in words(name) else "weight"


def _adds_up(parts: list[Form], whole: Form) -> bool:
    """Whether the rows of the parts are those of the whole, which may be transposed."""
    if any(form.kind != whole.kind or form.shape[1:] != parts[0].shape[1:] or not form.shape for form in parts):
        return False
    made = (sum(form.shape[0] for form in parts), *parts[0].shape[1:])
    return relation(Form(made), Form(whole.shape)) in ("same", "transposed")
