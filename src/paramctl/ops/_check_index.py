"""Header tier: shards held against their index."""

from __future__ import annotations

import os
from collections.abc import Iterator

from paramctl.checkpoint import Checkpoint
from paramctl.formats import sharded
from paramctl.ops._check_findings import Finding, Level


def against_index(checkpoint: Checkpoint) -> Iterator[Finding]:
    """What the reader of the shards saw. What is in another shard is read all the same; in none, it is missed.

    A loader that goes by the index, and not by the shards, misses both.
    """
    if checkpoint.format != sharded.NAME:
        return
    about = checkpoint.extras["index"]
    name = checkpoint.source.name
    where = os.path.join(name, about.get("file", "")) if checkpoint.source.kind == "folder" else ""  # noqa: PTH118
    for problem in about["problems"]:
        yield Finding(_level(problem, checkpoint), "index", "", problem, where.removesuffix(os.sep))


def _level(problem: str, checkpoint: Checkpoint) -> Level:
    if problem.startswith(sharded.TOTAL):
        return "note"
    if not problem.endswith(sharded.IN_NO_SHARD):
        return "warning"
    return "warning" if problem.partition(sharded.SHOULD_BE)[0] in checkpoint.params else "error"  # a declared tie
