"""Header tier: what each command finds or plans, as pure functions from a selection to a Report or a Plan.

`ops.show` and the like are imported when they are first asked for, so that a command pays for its own tier only.
"""

from __future__ import annotations

import importlib
from typing import Any

from paramctl.errors import MissingLibraryError

OPERATIONS: dict[str, str] = {
    "ls": "paramctl.ops.ls",
    "tree": "paramctl.ops.tree",
    "info": "paramctl.ops.info",
    "ties": "paramctl.ops.ties",
    "show": "paramctl.ops.show",
    "array": "paramctl.ops.show",
    "set": "paramctl.ops.set",
    "init": "paramctl.ops.init",
    "Edit": "paramctl.ops.edit",
    "initializers": "paramctl.ops.init",
}
_LIBRARIES = {"torch": "torch", "numpy": "numpy", "ml_dtypes": "ml_dtypes"}


def __getattr__(name: str) -> Any:
    if name not in OPERATIONS:
        raise AttributeError(name)
    try:
        return getattr(importlib.import_module(OPERATIONS[name]), name)
    except ModuleNotFoundError as error:
        library = _LIBRARIES.get((error.name or "").split(".")[0])
        if library is None:
            raise
        raise MissingLibraryError(
            f"{name} needs {library}, which is not installed", hint=f"pip install {library}"
        ) from None
