"""Header tier: shards held against their index."""

from __future__ import annotations

import os
from collections.abc import Iterator

from paramctl.checkpoint import Checkpoint, Problem
from paramctl.formats import sharded
from paramctl.ops._check_findings import Finding, Level


def against_index(checkpoint: Checkpoint) -> Iterator[Finding]:
    """What the reader of the shards saw. What is in another shard is read all the same; in none, it is missed.

    A loader that goes by the index, and not by the shards, misses both.
    """
    if checkpoint.format != sharded.NAME:
        return
    index = checkpoint.extras["index"].get("file", "")
    where = os.path.join(checkpoint.source.name, index) if checkpoint.source.kind == "folder" else ""  # noqa: PTH118
    for problem in checkpoint.problems:
        yield Finding(_level(problem, checkpoint), "index", "", problem.sentence, where.removesuffix(os.sep))


def _level(problem: Problem, checkpoint: Checkpoint) -> Level:
    if problem.kind == "total":
        return "note"
    is_lost = problem.kind == "nowhere" and problem.name not in checkpoint.params  # where it is one: a declared tie
    return "error" if is_lost else "warning"
