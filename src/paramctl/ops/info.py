"""Header tier: a checkpoint in short."""

from __future__ import annotations

from paramctl import sharing
from paramctl.checkpoint import Checkpoint
from paramctl.report import Report


def info(checkpoint: Checkpoint) -> Report:
    """No rows; totals, the file's own metadata, and what is no tensor."""
    return Report(
        (),
        (),
        sharing.totals(checkpoint, tuple(checkpoint.params.values())),
        checkpoint.source.name,
        checkpoint.format,
        metadata=dict(checkpoint.metadata),
        extras=dict(checkpoint.extras),
    )
