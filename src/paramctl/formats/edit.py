"""Header tier: carrying out a plan. Rehearsed on scratch memory, or written into a copy of the file.

What stays is copied by the kernel; what changes is read, computed and put in its place, one tensor at a time. So the
rest of the file, its ties and its pickled classes with it, stays byte for byte, and memory is bounded by the largest
tensor.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path

from paramctl.checkpoint import Checkpoint, Param, Storage
from paramctl.errors import FileError, ParamctlError, shortened
from paramctl.formats import DEFINITION, FORMATS, torch_tier, whole
from paramctl.plan import Change, Compute, Plan


def rehearse(checkpoint: Checkpoint, plan: Plan) -> Plan:
    """The plan with what each change would do. Nothing is written."""
    held: dict[str, bytearray] = {}
    left = _uses(plan)

    def read(param: Param) -> memoryview:
        start, end = param.span
        if param.storage.data is not None:
            return param.storage.data[start:end]
        if left[param.storage.key] == 1:
            return memoryview(_read(param))
        whole_storage = held.setdefault(param.storage.key, bytearray())
        if not whole_storage:  # changed more than once: the second change sees what the first did
            whole_storage += _read(param, everything=True)
        return memoryview(whole_storage)[start:end]

    return plan.carried_out(lambda change, compute: compute(read(_target(change))))


def _uses(plan: Plan) -> dict[str, int]:
    uses: dict[str, int] = {}
    for change in plan.changes:
        if change.compute and change.after:
            uses[change.after.storage.key] = uses.get(change.after.storage.key, 0) + 1
    return uses


def write(checkpoint: Checkpoint, plan: Plan, target: str) -> Plan:
    """Carry out the plan into `target`, a path or `-`, in the source's format.

    Returns:
        The plan with what each change did.

    Raises:
        FileError: it cannot be written; what was at `target` is as it was.
    """
    if checkpoint.source.kind == "definition":
        done = rehearse(checkpoint, plan)  # on the built module itself
        torch_tier(DEFINITION).write(checkpoint, target)
        return done
    path = checkpoint.source.path
    module = importlib.import_module(FORMATS[checkpoint.format])
    if path is None or not hasattr(module, "seal"):
        raise FileError(checkpoint.source.name, f"{checkpoint.format} is not written yet")
    _refuse_other_suffix(checkpoint, target)
    storages: dict[str, Storage] = {}
    with whole.replacing(target, nbytes=path.stat().st_size) as file:
        whole.copy(path, file)
        done = plan.carried_out(_patching(file.fileno(), lambda data, at: whole.patch(file, at, data), storages))
        module.seal(file, checkpoint.source, storages.values())
    return done


def _patching(
    descriptor: int, patch: Callable[[bytearray, int], None], storages: dict[str, Storage]
) -> Callable[[Change, Compute], str]:
    def run(change: Change, compute: Compute) -> str:
        param = _target(change)
        extent = _extent(param)
        start, end = param.span
        data = bytearray(os.pread(descriptor, end - start, extent.offset + start)) if end > start else bytearray()
        while len(data) < end - start:
            more = os.pread(descriptor, end - start - len(data), extent.offset + start + len(data))
            if not more:
                raise ParamctlError(f"{shortened(param.name)}: the file ends before its bytes")
            data += more
        did = compute(memoryview(data))
        patch(data, extent.offset + start)
        storages[param.storage.key] = param.storage
        return did

    return run


def _target(change: Change) -> Param:
    if change.after is None:
        raise ParamctlError("a change without a tensor")
    return change.after


def _extent(param: Param):  # type: ignore[no-untyped-def]
    if not param.storage.extents:
        why = param.storage.why_unreadable or "its values lie inside the pickle"
        raise ParamctlError(f"{shortened(param.name)}: {why}, and cannot be changed there")
    return param.storage.extents[0]


def _read(param: Param, *, everything: bool = False) -> bytearray:
    start, end = (0, param.storage.nbytes) if everything else param.span
    extent = _extent(param)
    with open(extent.path, "rb", buffering=0) as file:  # noqa: PTH123 - /dev/fd/N too
        data = bytearray(end - start)
        view, at = memoryview(data), extent.offset + start
        while view:
            got = os.preadv(file.fileno(), [view[: 1 << 30]], at)
            if not got:
                raise ParamctlError(f"{shortened(param.name)}: the file ends before its bytes")
            view, at = view[got:], at + got
    return data


def _refuse_other_suffix(checkpoint: Checkpoint, target: str) -> None:
    suffix = Path(target).suffix.lower()
    other = {"safetensors": (".pt", ".pth", ".ckpt"), "torch-zip": (".safetensors",)}
    if target != whole.STDOUT and suffix in other.get(checkpoint.format, ()):
        raise FileError(
            checkpoint.source.name,
            f"it is {checkpoint.format}, which {shortened(Path(target).name)} does not say",
            hint="an edit keeps the format; choose a suffix that fits",
        )
