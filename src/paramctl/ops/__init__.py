"""Header tier: what each command finds or plans, as pure functions from a selection to a Report or a Plan.

`ops.show` and the like are modules, imported when they are first asked for, so that a command pays for its own tier
only: `ops.show.show(checkpoint, selection)`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from paramctl.errors import MissingLibraryError

OPERATIONS = ("ls", "tree", "info", "ties", "show", "set", "init", "edit", "check", "stats")
_LIBRARIES = ("torch", "numpy", "ml_dtypes", "numkong")


def __getattr__(name: str) -> ModuleType:
    if name not in OPERATIONS:
        raise AttributeError(name)
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        library = (error.name or "").split(".")[0]
        if library not in _LIBRARIES:
            raise
        raise MissingLibraryError(
            f"{name} needs {library}, which is not installed", hint=f"pip install {library}"
        ) from None
