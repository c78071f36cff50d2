"""Real checkpoints, as a manifest counts them: `$PARAMCTL_MANIFEST` names it, `$PARAMCTL_CORPUS` the folder of its files."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from paramctl import api, formats, sharing, source, values
from paramctl.checkpoint import Checkpoint, Param

pytestmark = [pytest.mark.corpus, pytest.mark.filterwarnings("ignore")]
SOME = 12  # tensors of each file whose values are compared


def rows() -> list[dict[str, str]]:
    """The manifest's torch zips and safetensors files; none where there is no manifest."""
    manifest = os.environ.get("PARAMCTL_MANIFEST")
    if not manifest or "PARAMCTL_CORPUS" not in os.environ:
        return []
    with Path(manifest).open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row for row in found if row["kind"].startswith(("torch-zip", "safetensors"))]


ROWS = rows()
WHOLE = [row for row in ROWS if row["n_tensors"]]
BROKEN = [row for row in ROWS if not row["n_tensors"]]
if not ROWS:
    pytestmark.append(pytest.mark.skip(reason="no PARAMCTL_MANIFEST and PARAMCTL_CORPUS"))


def path_of(row: dict[str, str]) -> str:
    path = Path(os.environ["PARAMCTL_CORPUS"]) / row["path"]
    if not path.is_file():
        pytest.skip(f"{row['path']} was not fetched")
    return str(path)


def label(row: dict[str, str]) -> str:
    return row["path"].rpartition("/")[2]


@pytest.mark.parametrize("row", WHOLE, ids=label)
def test_counts(row: dict[str, str], run):
    """Tensors, parameters and unique parameters are those of the manifest."""
    totals = run("info", path_of(row), "-f", "json").json["totals"]
    assert [totals[key] for key in ("tensors", "numel", "unique_numel")] == [
        int(row[key]) for key in ("n_tensors", "n_params", "n_params_unique")
    ]


def by_name(value: object, path: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {path: value}
    found: dict[str, torch.Tensor] = {}
    for key, item in value.items() if isinstance(value, dict) else ():
        found |= by_name(item, f"{path}.{key}" if path else str(key))
    return found


@pytest.mark.parametrize("row", WHOLE, ids=label)
def test_to_safetensors_and_back(row: dict[str, str], tmp_path: Path):
    """Converted to safetensors and back to torch, every tensor is the same bytes, and the ties are the same."""
    path = path_of(row)
    api.open(path).convert("m.safetensors").write(str(tmp_path / "m.safetensors"))
    api.open(str(tmp_path / "m.safetensors")).convert("m.pt").write(str(tmp_path / "m.pt"))
    before, after = (formats.read(source.resolve(str(name))) for name in (path, tmp_path / "m.pt"))
    assert before.params.keys() == after.params.keys()
    assert _same(before) == _same(after)
    for name, param in before.params.items():
        assert param.dtype == after.params[name].dtype
        np.testing.assert_array_equal(_raw(param), _raw(after.params[name]))


def _same(checkpoint: Checkpoint) -> set[frozenset[str]]:
    groups = sharing.groups(checkpoint.params.values())
    return {frozenset(group.names) for group in groups if group.relation == "same"}


def _raw(param: Param) -> np.ndarray:
    array = np.ascontiguousarray(values.array(param))
    return array.reshape(-1).view(np.uint8).reshape(*param.shape, -1)


@pytest.mark.parametrize("row", WHOLE, ids=label)
def test_values(row: dict[str, str]):
    """The values of tensors from the beginning to the end of the file are those of torch or safetensors."""
    path = path_of(row)
    mine = formats.read(source.resolve(path))
    if row["kind"].startswith("safetensors"):
        theirs = load_file(path)
    else:
        try:
            theirs = by_name(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # noqa: BLE001 - whatever torch has against it
            pytest.skip(f"torch's safe mode does not load it: {type(error).__name__}")
    shared = [name for name in mine.params if name in theirs]
    assert shared
    for name in shared[:: max(1, len(shared) // SOME)]:
        param, tensor = mine.params[name], theirs[name]
        assert (param.shape, param.stride, f"torch.{param.dtype}") == (tensor.shape, tensor.stride(), str(tensor.dtype))
        mine_wide = torch.tensor(values.array(param).astype("float64"))
        assert torch.equal(mine_wide.nan_to_num(7), tensor.double().nan_to_num(7))


@pytest.mark.parametrize("row", BROKEN, ids=label)
def test_a_broken_file_is_refused(row: dict[str, str], run):
    """A file that was cut short is an error of at most three lines."""
    done = run("info", path_of(row))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) <= 3
