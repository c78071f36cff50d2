"""What `safetensors.torch.save_model` leaves in the metadata is understood as declared ties."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from file_builders import entry, safetensors
from safetensors.torch import save_file, save_model
from torch import nn

from paramctl import formats, source, values


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embed.weight
        self.again = nn.Linear(3, 5, bias=False)
        self.again.weight = self.embed.weight


def test_aliases_of_save_model_are_ties(tmp_path: Path, run):
    """Every name of the model is listed, tied as the model ties it, and the tie's source is the metadata."""
    model = Tied()
    save_model(model, str(tmp_path / "m.safetensors"))
    found = formats.read(source.resolve(str(tmp_path / "m.safetensors")))
    assert set(found.params) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert values.array(found.params[name]).tolist() == tensor.tolist()
    tied = ("again.weight", "embed.weight", "head.weight")
    assert len({found.params[name].storage.key for name in tied}) == 1
    assert sorted(found.params[name].declared for name in tied) == ["", "metadata", "metadata"]
    done = run("ties", tmp_path / "m.safetensors", "-f", "json")
    (row,) = done.rows
    assert sorted(row["names"]) == list(tied)
    assert (row["relation"], row["source"], row["saved_nbytes"]) == ("same", "metadata", 120)
    assert done.json["totals"]["unique_numel"] == 15 + 5


@pytest.mark.parametrize("metadata", [{"format": "pt"}, {"a": "b"}, {"w": "w"}, {"x": "gone"}])
def test_other_metadata_is_no_tie(metadata: dict[str, str], tmp_path: Path):
    """Metadata that names no tensor, or a tensor that is there itself, declares nothing."""
    save_file({"w": torch.ones(2)}, tmp_path / "m.safetensors", metadata=metadata)
    found = formats.read(source.resolve(str(tmp_path / "m.safetensors")))
    assert list(found.params) == ["w"]
    assert found.metadata == metadata


def test_layers_are_in_natural_order(read):
    """Layers come as 0, 1, 2, 10, whatever the order of the header."""
    names = ["h.10.w", "h.2.w", "h.0.w", "h.1.w", "a"]
    header = {name: entry(offsets=(8 * i, 8 * i + 8)) for i, name in enumerate(names)}
    assert list(read(safetensors(header, bytes(40))).params) == ["a", "h.0.w", "h.1.w", "h.2.w", "h.10.w"]


@pytest.mark.parametrize("nbytes", [128, 384, 0x4B50, 0x4B80])
def test_a_header_of_any_length_is_known(nbytes: int, read):
    """A length whose bytes look like a pickle's or a zip's beginning is a length."""
    import json

    raw = json.dumps({"a": entry()}).encode().ljust(nbytes)
    assert len(raw) == nbytes
    assert list(read(safetensors(raw, bytes(8))).params) == ["a"]


@pytest.mark.parametrize(
    ("code", "shape", "nbytes"), [("F4", (3, 2), 3), ("F6_E2M3", (4,), 3), ("F8_E8M0", (5,), 5), ("C64", (2,), 16)]
)
def test_dtypes_that_torch_may_not_have(code: str, shape: tuple[int, ...], nbytes: int, read):
    """Dtypes of blocks have the bytes that the format gives them."""
    found = read(safetensors({"a": entry(code, shape, (0, nbytes))}, bytes(nbytes)))
    assert found.params["a"].shape == shape
    assert found.params["a"].nbytes == nbytes
