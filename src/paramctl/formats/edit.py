"""Header tier: carrying out a plan. Rehearsed on scratch memory, or written into a copy of the file.

What stays is copied by the kernel, while the first change is computed; what changes is read, computed and put in its
place, one tensor at a time. So the rest of the file, its ties and its pickled classes with it, stays byte for byte, and
memory is bounded by the largest tensor.
"""

from __future__ import annotations

import importlib
import zlib
from collections import Counter
from pathlib import Path

from paramctl import contents
from paramctl.checkpoint import Checkpoint, Extent, Param, Storage
from paramctl.errors import FileError, ParamctlError, shortened
from paramctl.formats import DEFINITION, FORMATS, torch_tier, whole
from paramctl.formats.checksums import Patch
from paramctl.plan import Change, Compute, Plan

_SUFFIXES = {  # of files of another format than the one that is written
    "safetensors": (".pt", ".pth", ".ckpt", ".bin", ".gguf", ".npy"),
    "torch-zip": (".safetensors", ".gguf", ".npy"),
    "torch-legacy": (".safetensors", ".gguf", ".npy"),
    "torch-tar": (".safetensors", ".gguf", ".npy"),
    "torchscript": (".safetensors", ".gguf", ".npy"),
    "gguf": (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".npy"),
    "npy": (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".gguf"),
    "python": (".py", ".gguf", ".npy"),
}
_STRANGE_SUFFIXES = (".npz", ".h5", ".onnx")


def rehearse(checkpoint: Checkpoint, plan: Plan) -> Plan:
    """The plan with what each change would do. Nothing is written."""
    held: dict[str, bytearray] = {}
    left = Counter(_target(change).storage.key for change in plan.changes if change.compute)

    def run(change: Change, compute: Compute) -> str:
        param = _target(change)
        storage = param.storage
        start, end = param.span
        if storage.data is not None and not storage.data.readonly:
            return compute(storage.data[start:end])
        _extent(checkpoint, param)
        left[storage.key] -= 1
        if storage.key not in held and not left[storage.key]:
            return compute(memoryview(contents.read(param, start, end)))
        if storage.key not in held:  # changed more than once: the second change sees what the first did
            held[storage.key] = contents.read(param, 0, storage.nbytes)
        data = held[storage.key] if left[storage.key] else held.pop(storage.key)
        return compute(memoryview(data)[start:end])

    return plan.carried_out(run)


def write(checkpoint: Checkpoint, plan: Plan, target: str) -> Plan:
    """Carry out the plan into `target`, a path or `-`, in the source's format.

    Returns:
        The plan with what each change did.

    Raises:
        FileError: it cannot be written; what was at `target` is as it was.
    """
    refuse_other_suffix(checkpoint, target)
    if checkpoint.source.kind == "definition":
        definition = torch_tier(DEFINITION)
        definition.refuse_unsaved(checkpoint, plan.changes)
        done = rehearse(checkpoint, plan)  # on the built module itself
        definition.write(checkpoint, target)
        return done
    path = checkpoint.source.path
    row = FORMATS.get(checkpoint.format)
    if path is None or row is None or not row.edited:
        raise FileError(checkpoint.source.name, f"{checkpoint.format} is not written yet")
    patches: list[Patch] = []
    status = path.stat()
    needed = min(status.st_size, 512 * status.st_blocks)
    with whole.replacing(target, nbytes=needed) as file, whole.copying(path, file, target=target) as copy:

        def run(change: Change, compute: Compute) -> str:
            param = _target(change)
            extent = _extent(checkpoint, param)
            start, end = param.span
            data = contents.filled(copy.readable, extent.path, param, extent.offset + start, end - start)
            before = zlib.crc32(data) if row.edited == "sealed" else 0
            did = compute(memoryview(data))
            copy.wait()
            whole.write_at(file.fileno(), extent.offset + start, data)
            if row.edited == "sealed":
                patches.append(Patch(extent.offset + start, len(data), before ^ zlib.crc32(data)))
            return did

        done = plan.carried_out(run)
        copy.wait()
        if row.edited == "sealed":
            importlib.import_module(row.module).seal(file, checkpoint.source, patches)
    return done


def _target(change: Change) -> Param:
    if change.after is None:
        raise ParamctlError("a change without a tensor")
    return change.after


def _extent(checkpoint: Checkpoint, param: Param) -> Extent:
    storage = param.storage
    if len(storage.extents) == 1 and not storage.extents[0].packing and not storage.extents[0].box:
        return storage.extents[0]
    if not param.numel:
        return Extent("", 0, 0)
    where = f"{checkpoint.source.name}: {param.name}"
    if storage.is_meta:
        raise FileError(where, "it has a shape, and no values to change")
    raise FileError(where, f"{storage.why_unreadable or _where_else(storage)}, and cannot be changed there")


def _where_else(storage: Storage) -> str:
    if not storage.extents:
        return "its values lie inside the pickle"
    if len(storage.extents) == 1 and storage.extents[0].packing == "deflate":
        return "its bytes are compressed inside the archive"
    return "its values lie in pieces"


def refuse_other_suffix(checkpoint: Checkpoint, target: str) -> None:
    suffix = Path(target).suffix.lower()
    if target == whole.STDOUT or suffix not in (*_SUFFIXES.get(checkpoint.format, ()), *_STRANGE_SUFFIXES):
        return
    if checkpoint.source.kind == "definition":
        raise FileError(target, f"{suffix} is no format that is written", hint="-o OUT.pt or OUT.safetensors")
    raise FileError(
        checkpoint.source.name,
        f"it is {checkpoint.format}, which {shortened(Path(target).name)} does not say",
        hint="an edit keeps the format; choose a suffix that fits",
    )
