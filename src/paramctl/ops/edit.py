"""Header tier: a plan over a checkpoint, to be rehearsed or written."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from paramctl import plan as plans
from paramctl import sharing
from paramctl.checkpoint import Checkpoint
from paramctl.contents import to_nobody
from paramctl.formats import edit
from paramctl.plan import Plan
from paramctl.report import Report


class Edit(NamedTuple):
    """A plan over a model, not carried out."""

    checkpoint: Checkpoint
    plan: Plan

    def rehearse(self) -> Report:
        """A change a row, with what it would do. Nothing is written."""
        return self._report(edit.rehearse(self.checkpoint, self.plan))

    def nbytes(self, target: str) -> int:
        """How many bytes are copied to write it there."""
        return edit.nbytes(self.checkpoint, self.plan, str(target))

    def write(self, target: str, *, tell: Callable[[int], None] = to_nobody) -> Report:
        """Write the whole changed model to a path, or `-` for standard output; the path may be the one it is from.

        Args:
            target: the path.
            tell: is told how many bytes were copied, each time.

        Raises:
            FileError: it cannot be written; what was there is as it was.
        """
        return self._report(edit.write(self.checkpoint, self.plan, str(target), tell))

    def _report(self, done: Plan) -> Report:
        names = dict.fromkeys(change.after.name for change in done.changes if change.after is not None)
        changed = tuple(self.checkpoint.params[name] for name in names)
        return plans.report(done)._replace(
            totals=sharing.totals(self.checkpoint, changed),
            source=self.checkpoint.source.name,
            format=self.checkpoint.format,
        )
