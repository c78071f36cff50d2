"""Header tier: what each command finds or plans, as pure functions from a selection to a Report or a Plan.

`ops.show` and the like are modules, imported when they are first asked for, so that a command pays for its own tier
only: `ops.show.show(checkpoint, selection)`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from paramctl.errors import MissingLibraryError

OPERATIONS = (
    "ls", "tree", "info", "ties", "show", "set", "init", "edit", "check", "stats", "diff", "convert", "tie", "match",
    "history", "grad", "watch",
)  # fmt: skip
_LIBRARIES = ("torch", "numpy", "ml_dtypes", "numkong")


def __getattr__(name: str) -> ModuleType:
    if name not in OPERATIONS:
        raise AttributeError(name)
    return _imported(f"{__name__}.{name}", name)


def opened(module: str, what: str, *, otherwise: str = "") -> ModuleType:
    """The door to a module of the values tier, for an operation of the header tier.

    Args:
        module: its full name.
        what: the command, or the option of one, that needs it.
        otherwise: what works without it, for the hint.

    Raises:
        MissingLibraryError: a library of that tier is not installed.
    """
    _imported("numpy", what, otherwise)  # first: without it ml_dtypes fails in words that name no library
    return _imported(module, what, otherwise)


def _imported(module: str, what: str, otherwise: str = "") -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = (error.name or "").split(".")[0]
        if library not in _LIBRARIES:
            raise
        hint = f"pip install {library}, or {otherwise}" if otherwise else f"pip install {library}"
        raise MissingLibraryError(f"{what} needs {library}, which is not installed", hint=hint) from None
