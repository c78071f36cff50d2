"""Header tier: `paramctl info`."""

from __future__ import annotations

from paramctl import ops
from paramctl.cli._options import Model, Output
from paramctl.errors import ParamctlError

EXAMPLES = """\b
Examples:
  paramctl info models/gpt.py
  paramctl info model.pt -f json | jq .totals
"""


def command(model: Model, output: Output) -> None:
    """A model in short: format, totals, dtypes, metadata, and what it holds besides tensors."""
    output.check()
    name, patterns = model.split()
    if patterns or model.narrows:
        raise ParamctlError("info is about the whole model", hint="--at PATH roots it; ls and tree take patterns")
    output.show(ops.info(model.read(name)))
