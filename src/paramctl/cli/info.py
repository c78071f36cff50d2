"""Header tier: `paramctl info`."""

from __future__ import annotations

from paramctl.cli._options import Output, Whole

EXAMPLES = """\b
Examples:
  paramctl info models/gpt.py
  paramctl info model.pt -f json | jq .totals
"""


def command(model: Whole, output: Output) -> None:
    """The model in short: totals, dtypes, metadata, extras."""
    output.check()
    output.show(model.open().info())
