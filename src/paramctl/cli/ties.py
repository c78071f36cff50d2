"""Header tier: `paramctl ties`."""

from __future__ import annotations

from paramctl.cli._options import Model, Output

EXAMPLES = """\b
Examples:
  paramctl ties models/tied.py
  paramctl ties model.pt -f json | jq '[.rows[].saved_nbytes] | add'
"""


def command(model: Model, output: Output) -> None:
    """Tied tensors: which names share a storage, and how.

    The relation is `same` for names of the very same elements, `view` for slices, transposes and other parts of one
    storage, and `overlap` for tensors that share some elements and not others.
    """
    output.check()
    output.show(model.open().ties())
