"""Torch tier: a model's Python definition, built to be looked at or to be written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paramctl import modules, storages
from paramctl import outline as outlines
from paramctl.checkpoint import Checkpoint, Module, Param, ParamKind, Storage
from paramctl.contents import Window
from paramctl.dtypes import DTYPES
from paramctl.errors import ParamctlError, shortened
from paramctl.formats import safetensors_writer, torchscript, whole
from paramctl.formats.pour import Pourer
from paramctl.plan import Change
from paramctl.source import Source

NAME = "python"
_WITHOUT_VALUES: tuple[modules.Device, ...] = ("meta", "mixed")


def read(source: Source, *, values: bool = False, seed: int | None = None) -> Checkpoint:
    """The module that `source` defines.

    It is built on the meta device, which costs no memory, unless its values are asked for or it cannot be built so:
    then with its parameters alone there, and really if that cannot be.

    Raises:
        ParamctlError: its code raised, or made no module.
    """
    for device in () if values else _WITHOUT_VALUES:
        with contextlib.suppress(ParamctlError):  # its code looks at values while it builds, or something is wrong
            return described(modules.build(source, device=device), source)
    return described(modules.build(source, device="cpu", seed=seed), source)


def described(module: nn.Module, source: Source) -> Checkpoint:
    """Parameters, buffers and tensors under the names of `state_dict()`, shared storages known by their identity."""
    storages: dict[Any, Storage] = {}
    params: dict[str, Param] = {}
    paths: dict[str, Module] = {}
    for path, child in module.named_modules(remove_duplicate=False):
        qualified = _qualified(child)
        paths[path] = Module(path, qualified.rpartition(".")[2], _hyperparameters(child), qualified)
        for name, kind, tensor in _tensors(child):
            full = f"{path}.{name}" if path else name
            params[full] = _param(full, kind, tensor, storages)
    return Checkpoint(source, NAME, params, paths, live=module)


def _tensors(module: nn.Module) -> list[tuple[str, ParamKind, torch.Tensor]]:
    found: list[tuple[str, ParamKind, torch.Tensor]] = []
    found += [(name, "parameter", p) for name, p in module._parameters.items() if p is not None]  # noqa: SLF001
    found += [(name, "buffer", b) for name, b in module._buffers.items() if b is not None]  # noqa: SLF001
    plain = [(name, value) for name, value in vars(module).items() if isinstance(value, torch.Tensor)]
    return found + [(name, "tensor", value) for name, value in plain if not name.startswith("_")]


def _qualified(module: nn.Module) -> str:
    """Its class; of a scripted or traced module, that of which it was made."""
    if isinstance(module, torch.jit.ScriptModule):
        return torchscript.unmangled(module._c._type().qualified_name())  # noqa: SLF001
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _hyperparameters(module: nn.Module) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training" and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return len(value) <= 8 and all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _param(name: str, kind: ParamKind, tensor: torch.Tensor, storages: dict[Any, Storage]) -> Param:
    if nn.parameter.is_lazy(tensor):
        raise ParamctlError(
            f"{shortened(name)}: a lazy parameter, whose shape is known after a forward pass",
            hint="run a batch through the model in the definition before it is returned",
        )
    dtype = DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None or tensor.layout != torch.strided:
        raise ParamctlError(f"{shortened(name)}: a tensor of {tensor.dtype} and {tensor.layout} is not read yet")
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    held = tensor.untyped_storage()
    identity = held._cdata  # noqa: SLF001 - torch's own identity of a storage
    if identity not in storages:
        data = None if tensor.is_meta or not held.nbytes() else _bytes(held)
        storages[identity] = Storage(str(len(storages)), held.nbytes(), (), data)
    return Param(
        name,
        dtype,
        tuple(tensor.shape),
        tuple(tensor.stride()),
        storages[identity],
        int(tensor.storage_offset()),
        kind,
        tensor.requires_grad,
        type(tensor).__name__,
    )


def _bytes(storage: torch.UntypedStorage) -> memoryview:
    return _view(torch.empty(0, dtype=torch.uint8).set_(storage))


def _view(tensor: torch.Tensor) -> memoryview:
    array: Any = tensor.numpy()
    return memoryview(array)


def refuse_unsaved(checkpoint: Checkpoint, changes: Iterable[Change]) -> None:
    """Refuse to assign to what the state dict leaves out (plain tensors, buffers that are not persistent), or to
    initialize nothing else.

    Raises:
        ParamctlError: names the first such tensor.
    """
    saved = checkpoint.live.state_dict()
    changed = [(change.after.name, change.action) for change in changes if change.compute and change.after]
    unsaved = [(name, action) for name, action in changed if name not in saved]
    if unsaved and (len(unsaved) == len(changed) or any(action == "set" for _, action in unsaved)):
        raise ParamctlError(f"{shortened(unsaved[0][0])}: the state dict leaves it out, so it would not be written")


def write(checkpoint: Checkpoint, target: str) -> None:
    """The built module's state dict: as safetensors where `target` says so by its suffix, else as a torch zip.

    Raises:
        FileError: it cannot be written.
    """
    made = outlines.outline(checkpoint)
    nbytes = sum(blob.nbytes for blob in storages.laid_out(made)[0])
    if Path(target).suffix.lower() == ".safetensors":
        with whole.replacing(target, nbytes=nbytes) as file, Window() as window:
            safetensors_writer.write(outlines.with_metadata(made, {"format": "pt"}), file, Pourer(window))
        return
    with whole.replacing(target, nbytes=nbytes) as file:
        try:
            torch.save(checkpoint.live.state_dict(), file)
        except RuntimeError as error:  # torch's own, about a file whose end is not where it should be
            if isinstance(error.__context__, (OSError, KeyboardInterrupt)):
                raise error.__context__ from None
            raise
