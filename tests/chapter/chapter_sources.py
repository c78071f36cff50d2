"""The chapter's networks, as each kind of source that paramctl opens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

MODELS = Path(__file__).parent.parent.parent / "models"
SEED = 0


@dataclass(frozen=True)
class Opened:
    """A network of `models/`, and how to open it: `run("show", *it.words)` shows the values that `net` has."""

    net: nn.Module
    kind: str
    path: Path
    out: Path
    knows_types: bool

    @property
    def words(self):
        return (self.path, "--seed", SEED) if self.kind == "definition" else (self.path,)

    def state(self):
        """What is in the file that was written to `out`."""
        if self.out.suffix == ".safetensors":
            found = load_file(self.out)
            return found | {name: found[self.ties[name]] for name in self.ties}
        found = torch.load(self.out, weights_only=False)
        return found.state_dict() if isinstance(found, nn.Module) else found

    @property
    def ties(self):
        """Names that safetensors keeps under another name."""
        names = list(self.net.state_dict())
        return {name: name.replace("4.", "2.") for name in names if self.path.stem == "tied" and name.startswith("4.")}


def bits(tensors):
    """Every tensor's bytes, by name."""
    return {
        name: tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist() for name, tensor in tensors.items()
    }
