"""Header tier: `paramctl ties`."""

from __future__ import annotations

from paramctl import ops
from paramctl.cli._options import Model, Output

EXAMPLES = """\b
Examples:
  paramctl ties models/tied.py
  paramctl ties model.pt -f json | jq '[.rows[].saved_nbytes] | add'
"""


def command(model: Model, output: Output) -> None:
    """Groups of tied tensors: which names share a storage, how, and how many bytes that saves."""
    output.check()
    report = ops.ties(*model.open())
    output.show(report)
