"""paramctl: look into the parameters of neural networks, and change them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paramctl.api import Model, Run, Tensor, check, diff, match, open, run  # noqa: A004
    from paramctl.errors import ParamctlError
    from paramctl.ops.edit import Edit

__all__ = ["Edit", "Model", "ParamctlError", "Run", "Tensor", "check", "diff", "match", "open", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'paramctl' has no attribute {name!r}")
    import importlib  # noqa: PLC0415 - the command line needs none of this

    homes = {"ParamctlError": "paramctl.errors", "Edit": "paramctl.ops.edit"}
    return getattr(importlib.import_module(homes.get(name, "paramctl.api")), name)
