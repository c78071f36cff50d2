"""A module that is more than a row of layers: a constant, one layer called twice, and a loop.

`linear` appears once in the list of parameters, because there is only one:
using a layer twice does not make a second one.
`mixing` is a buffer: saved with the model and moved with it, but never trained.
"""

import torch
from torch import nn


class FancyMLP(nn.Module):
    """(batch, width) in, one number out."""

    mixing: torch.Tensor

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.register_buffer("mixing", torch.rand(width, width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.linear(features)
        hidden = torch.relu(hidden @ self.mixing + 1)
        hidden = self.linear(hidden)
        # How often this runs depends on the values, which no list of layers could express.
        while hidden.norm() > 1:
            hidden = hidden / 2
        return hidden.sum()


def net(width: int = 20) -> FancyMLP:
    return FancyMLP(width)
