"""Laws of a pickle as a document: written again it is the same; edited, what was not named is."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from graphs import assert_same_graph
from paramctl.formats.torch_pickle import Layout
from paramctl.formats.torch_zip_writer import Fresh
from property.test_reading import NAMES, pools, raw_bytes, trees
from torch_files import assert_written_again, chunks, loaded, read, rewritten, saved

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@quick
@given(data=st.data(), protocol=st.sampled_from([2, 3, 4, 5]))
def test_any_tree_is_written_again(data: st.DataObject, protocol: int, tmp_path: Path):
    """Any tree of containers, tensors and values is written again as it is."""
    assert_written_again(data.draw(pools().flatmap(trees)), tmp_path / "m.pt", protocol)


# ----------------------------------------------------------------------------- drop


def plain_trees(pool: list[torch.Tensor]) -> st.SearchStrategy[Any]:
    leaves = st.one_of(st.sampled_from(pool), st.sampled_from(pool), st.integers(), st.text(max_size=3))
    keys = st.one_of(st.text("ab.é", max_size=3), st.integers(0, 3))

    def wider(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        named = st.dictionaries(keys, inner, max_size=4)
        return st.one_of(named, named.map(OrderedDict), st.lists(inner, max_size=4))

    return st.dictionaries(keys, st.recursive(leaves, wider, max_leaves=12), max_size=5)


class _Gone:
    """What stands for a container in which nothing is left."""


def without(value: Any, names: set[str], prefix: str = "") -> Any:
    """The tree without the tensors of these names, and without the containers that are empty for that."""
    pairs = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    kept = []
    for key, item in pairs:
        path = f"{prefix}{key}"
        if isinstance(item, torch.Tensor):
            left = _Gone if path in names else item
        else:
            left = without(item, names, f"{path}.") if isinstance(item, (dict, list)) and item else item
        if left is not _Gone:
            kept.append((key, left))
    if pairs and not kept and prefix:
        return _Gone
    return type(value)(kept) if isinstance(value, dict) else [item for _, item in kept]


@quick
@given(data=st.data())
def test_what_is_dropped_is_gone_and_the_rest_stays(data: st.DataObject, tmp_path: Path):
    """Without some tensors a file loads as the same objects but for these, and names the storages of the others alone."""
    tree = data.draw(pools().flatmap(plain_trees))
    names = list(saved(tree, tmp_path / "m.pt").params)
    assume(names and not any(name.endswith("'") for name in names))
    gone = set(data.draw(st.lists(st.sampled_from(names), unique=True)))
    new = rewritten(tmp_path / "m.pt", lambda document: document.drop(gone))
    assert_same_graph(loaded(new), without(loaded(tmp_path / "m.pt"), gone))
    kept = {param.storage.key for name, param in read(tmp_path / "m.pt").params.items() if name not in gone}
    with_data = {name for name in torch._C.PyTorchFileReader(str(new)).get_all_records() if name.startswith("data/")}
    assert len(with_data) == len(kept)


# ----------------------------------------------------------------------------- rename


@quick
@given(data=st.data())
def test_renaming_keeps_every_byte_and_the_order(data: st.DataObject, tmp_path: Path):
    """Any new names of a state dict, a permutation of the old ones too, change its keys and nothing else."""
    names = data.draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    root = OrderedDict((name, torch.full((2,), float(i))) for i, name in enumerate(names))
    root["again"] = root[names[0]]
    root["part"] = root[names[-1]][1:]
    new_names = data.draw(
        st.one_of(st.permutations(names), st.lists(NAMES, min_size=len(names), max_size=len(names), unique=True))
    )
    assume(not {"again", "part"}.intersection([*names, *new_names]))
    torch.save(root, tmp_path / "m.pt")
    renamed = dict(zip(names, new_names, strict=True))
    new = rewritten(tmp_path / "m.pt", lambda document: document.rename(renamed))
    expected = OrderedDict((renamed.get(name, name), tensor) for name, tensor in loaded(tmp_path / "m.pt").items())
    assert_same_graph(loaded(new), expected)
    assert list(torch.load(new, weights_only=True)) == [*new_names, "again", "part"]


# ----------------------------------------------------------------------------- replace


def layout_of(param: Any) -> Layout:
    storage = param.storage
    return Layout(storage.key, storage.nbytes, param.dtype, param.storage_offset, param.shape, param.stride)


def names_by_object(value: dict[str, Any]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for name, tensor in value.items():
        found.setdefault(id(tensor), []).append(name)
    return found


@quick
@given(data=st.data())
def test_untie_of_tie_gives_the_tensors_back(data: st.DataObject, tmp_path: Path):
    """A tensor that takes the layout of another is tied to it; with a storage of its own it is as it was."""
    pool = data.draw(pools())
    root = {f"t{i}": data.draw(st.sampled_from(pool)) for i in range(data.draw(st.integers(2, 5)))}
    before = saved(root, tmp_path / "m.pt")
    one, other = data.draw(st.sampled_from(list(root))), data.draw(st.sampled_from(list(root)))
    assume(before.params[one].dtype == before.params[other].dtype)
    tied = rewritten(tmp_path / "m.pt", lambda document: document.replace({other: layout_of(before.params[one])}))
    there = loaded(tied)
    assert raw_bytes(there[other]) == raw_bytes(there[one])
    assert (
        there[other].untyped_storage()._cdata == there[one].untyped_storage()._cdata
        or not there[one].untyped_storage().nbytes()
    )
    first = loaded(tmp_path / "m.pt")
    assert_same_graph({k: v for k, v in there.items() if k != other}, {k: v for k, v in first.items() if k != other})
    param = before.params[other]
    own = layout_of(param)._replace(key="own")
    fresh = {"own": Fresh("own", own.nbytes, chunks(param.storage))}
    untied = rewritten(tied, lambda document: document.replace({other: own}), fresh)
    again = loaded(untied)
    assert raw_bytes(again[other]) == raw_bytes(first[other])
    assert (again[other].stride(), again[other].storage_offset()) == (
        first[other].stride(),
        first[other].storage_offset(),
    )
    assert type(again[other]) is type(first[other])
    assert list(again) == list(first)
