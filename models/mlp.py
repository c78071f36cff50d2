"""A network with one hidden layer: the smallest thing that has layers, weights and biases."""

from torch import nn


def net(inputs: int = 4, hidden: int = 8, outputs: int = 1) -> nn.Sequential:
    """Parameters: `0.weight`, `0.bias`, `2.weight`, `2.bias`; child 1 is a ReLU and has none."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )
