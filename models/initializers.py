"""Initializers of one's own.

There are two kinds.
One takes a tensor and fills it, like the functions of `torch.nn.init`.
The other takes a module, looks at what it is, and is handed to every module by `Module.apply`.
"""

import torch
from torch import nn


@torch.no_grad()
def five_to_ten(tensor: torch.Tensor) -> torch.Tensor:
    """Draw from U(-10, -5) with probability 1/4, U(5, 10) with probability 1/4, and 0 otherwise.

    Half of U(-10, 10) lies closer to zero than 5; that half becomes zero.
    """
    nn.init.uniform_(tensor, -10, 10)
    return tensor.mul_(tensor.abs() >= 5)


def my_init(module: nn.Module) -> None:
    """`five_to_ten` on the weight of a linear layer; biases and other layers stay as they are."""
    if isinstance(module, nn.Linear):
        five_to_ten(module.weight)


def normal_and_zeros(module: nn.Module) -> None:
    """A linear layer's weight from N(0, 0.01²), its bias zero; other layers stay as they are."""
    if not isinstance(module, nn.Linear):
        return
    nn.init.normal_(module.weight, mean=0.0, std=0.01)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
