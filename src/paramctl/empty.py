"""Torch tier: building modules without the memory and the time that their values cost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from paramctl import usercode


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Parameters of modules that are built in the block are on the meta device from the moment a module has them.

    Nothing else is, so that code may look at values while it builds: `[x.item() for x in torch.linspace(0, 0.1, 12)]`.
    A parameter stays the same object, and what shared a storage shares one.
    """
    register = nn.Module.register_parameter
    storages = _Storages()

    def registered(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        if type(param) is nn.Parameter and not param.is_meta and param.layout == torch.strided:
            storages.empty(param)

    with _patched(nn.Module, "register_parameter", registered):
        yield


class _Storages:
    """On the meta device, one for each real storage that there still is."""

    def __init__(self) -> None:
        self.made: dict[int, tuple[Any, Any]] = {}

    def of(self, held: torch.UntypedStorage) -> Any:
        key = held._cdata  # noqa: SLF001 - torch's own identity of a storage, which another may have after its end
        if key not in self.made or self.made[key][0].expired():
            storage: Any = torch.UntypedStorage
            weak: Any = StorageWeakRef
            self.made[key] = weak(held), storage(held.nbytes(), device="meta")
        return self.made[key][1]

    def empty(self, param: nn.Parameter) -> None:
        """Put what is on the meta device in the place of a parameter's values."""
        bare: Any = torch.empty(0, dtype=param.dtype, device="meta")
        bare.set_(self.of(param.untyped_storage()), param.storage_offset(), param.shape, param.stride())
        other = nn.Parameter(bare, requires_grad=param.requires_grad)
        other.__dict__.update(param.__dict__)
        swap: Any = torch.utils.swap_tensors
        with contextlib.suppress(RuntimeError):  # something else refers to it, too: then it stays as it is
            swap(param, other)


@contextlib.contextmanager
def importing_on_cpu() -> Iterator[None]:
    """What a definition imports is run as if there were no default device, for it stays there for later builds.

    A tensor at the top of an imported module is else one without values, when a model is then built with them.
    """
    run = SourceFileLoader.exec_module

    def exec_module(loader: SourceFileLoader, module: ModuleType) -> None:
        if module.__name__.startswith(usercode.OWN_NAME):
            run(loader, module)
            return
        with torch.device("cpu"):
            run(loader, module)

    with _patched(SourceFileLoader, "exec_module", exec_module):
        yield


@contextlib.contextmanager
def _patched(owner: type, name: str, value: object) -> Iterator[None]:
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:  # it inherits one
            delattr(owner, name)
        else:
            setattr(owner, name, before)
