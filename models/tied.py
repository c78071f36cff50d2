"""One layer used in two places: `2` and `4` are the same module, and so the same weight and bias.

A change to `2.weight` is a change to `4.weight`,
and after a backward pass its gradient is the sum of what both places contributed.
"""

from torch import nn


def net(inputs: int = 4, hidden: int = 8, outputs: int = 1) -> nn.Sequential:
    shared = nn.Linear(hidden, hidden)
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        shared,
        nn.ReLU(),
        shared,
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )
