"""Blocks within blocks: what names look like when modules are nested.

The inner blocks are called "block 0", "block 1", …, with a space,
so the first weight of all is the parameter `0.block 0.0.weight`.
"""

from collections import OrderedDict

from torch import nn


def block() -> nn.Sequential:
    """From 4 features to 8 and back to 4."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU())


def block_of_blocks(blocks: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict((f"block {number}", block()) for number in range(blocks)))


def net(blocks: int = 4) -> nn.Sequential:
    return nn.Sequential(block_of_blocks(blocks), nn.Linear(4, 1))
