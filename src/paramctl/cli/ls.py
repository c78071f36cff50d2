"""Header tier: `paramctl ls`."""

from __future__ import annotations

from paramctl.cli._options import Model, Output

EXAMPLES = """\b
Examples:
  paramctl ls models/tied.py
  paramctl ls model.pt '*.bias'
  paramctl ls model.pt -f names -0 | xargs -0 -n1 echo
"""


def command(model: Model, output: Output) -> None:
    """One parameter a line."""
    output.check()
    opened = model.open()
    output.show(opened.tree() if output.format == "tree" else opened.ls())
