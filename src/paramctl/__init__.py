"""paramctl: look into the parameters of neural networks, and change them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paramctl.api import Edit, Model, Tensor, open  # noqa: A004
    from paramctl.errors import ParamctlError

__all__ = ["Edit", "Model", "ParamctlError", "Tensor", "open"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'paramctl' has no attribute {name!r}")
    import importlib  # noqa: PLC0415 - the command line needs none of this

    module = importlib.import_module("paramctl.errors" if name == "ParamctlError" else "paramctl.api")
    return getattr(module, name)
