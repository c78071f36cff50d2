"""Header tier: which tensors lie below which modules."""

from __future__ import annotations

from collections.abc import Collection

_MOST_LEVELS = 1000  # of modules within modules: a name may be a million dots


def below(names: Collection[str], depth: int | None) -> dict[str, list[str]]:
    """The modules that have tensors of their own, or, with a depth, the branches down to it; parents first."""
    found: dict[str, list[str]] = {}
    owners = {name.rpartition(".")[0] for name in names}
    for name in names:
        steps = name.split(".")[:-1]
        for level in range(min(len(steps), _MOST_LEVELS if depth is None else depth) + 1):
            path = ".".join(steps[:level])
            if depth is not None or path in owners:
                found.setdefault(path, []).append(name)
    return found
