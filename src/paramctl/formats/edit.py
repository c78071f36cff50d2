"""Header tier: carrying out a plan. Rehearsed on scratch memory, or written into a copy of the file or folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from paramctl import contents
from paramctl.checkpoint import Checkpoint
from paramctl.errors import FileError, shortened
from paramctl.formats import DEFINITION, FORMATS, copying, edit_folder, editing, torch_tier, whole
from paramctl.plan import Change, Compute, Plan

_FOLDERS = ("sharded", "dcp")
_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
_FILE_SUFFIXES = (".safetensors", *_TORCH_SUFFIXES, ".gguf", ".npy", ".npz")


def _but(*own: str) -> tuple[str, ...]:
    return tuple(suffix for suffix in _FILE_SUFFIXES if suffix not in own)


_SUFFIXES = {  # of files of another format than the one that is written
    **{name: _but(f".{name}") for name in ("safetensors", "gguf", "npy", "npz")},
    **dict.fromkeys(("torch-zip", "torch-legacy", "torch-tar", "torchscript"), _but(*_TORCH_SUFFIXES)),
    "python": (".py", *_but(".safetensors", *_TORCH_SUFFIXES)),
    **dict.fromkeys(_FOLDERS, _FILE_SUFFIXES),
}
_STRANGE_SUFFIXES = (".h5", ".onnx")


def rehearse(checkpoint: Checkpoint, plan: Plan) -> Plan:
    """The plan with what each change would do. Nothing is written."""
    held: dict[str, bytearray] = {}
    left = Counter(editing.target(change).storage.key for change in plan.changes if change.compute)

    def run(change: Change, compute: Compute) -> str:
        param = editing.target(change)
        storage = param.storage
        start, end = param.span
        if storage.data is not None and not storage.data.readonly:
            return compute(storage.data[start:end])
        editing.refuse(checkpoint, param)
        left[storage.key] -= 1
        if storage.key not in held and not left[storage.key]:
            return compute(memoryview(contents.read(param, start, end)))
        if storage.key not in held:  # changed more than once: the second change sees what the first did
            held[storage.key] = contents.read(param, 0, storage.nbytes)
        data = held[storage.key] if left[storage.key] else held.pop(storage.key)
        return compute(memoryview(data)[start:end])

    return plan.carried_out(run)


def nbytes(checkpoint: Checkpoint, plan: Plan, target: str) -> int:
    """How many bytes `write` copies."""
    if checkpoint.source.kind == "definition":
        return 0
    if checkpoint.format in _FOLDERS:
        return edit_folder.nbytes(checkpoint, plan, target)
    return copying.room(checkpoint.source.path) if checkpoint.source.path else 0


def write(checkpoint: Checkpoint, plan: Plan, target: str, tell: copying.Tell) -> Plan:
    """Carry out the plan into `target`, a path or `-`, in the source's format.

    Args:
        checkpoint: that is changed.
        plan: its changes.
        target: where it is written.
        tell: is told how many bytes were copied, each time.

    Returns:
        The plan with what each change did.

    Raises:
        FileError: it cannot be written; what was at `target` is as it was.
    """
    if checkpoint.format not in _FOLDERS or target != checkpoint.source.name:
        refuse_other_suffix(checkpoint, target)
    if checkpoint.source.kind == "definition":
        definition = torch_tier(DEFINITION)
        definition.refuse_unsaved(checkpoint, plan.changes)
        done = rehearse(checkpoint, plan)  # on the built module itself
        definition.write(checkpoint, target)
        return done
    if checkpoint.format in _FOLDERS:
        return edit_folder.write(checkpoint, plan, target, tell)
    path = checkpoint.source.path
    row = FORMATS.get(checkpoint.format)
    if path is None or row is None or not row.edited:
        raise FileError(checkpoint.source.name, f"{checkpoint.format} is not written yet")
    with (
        whole.replacing(target, nbytes=copying.room(path)) as file,
        editing.editing(checkpoint.source, file, editing.sealer(checkpoint.format), target=target, tell=tell) as copy,
    ):
        return editing.carried_out(checkpoint, plan, lambda _: copy)


def refuse_other_suffix(checkpoint: Checkpoint, target: str) -> None:
    suffix = Path(target).suffix.lower()
    if target == whole.STDOUT or suffix not in (*_SUFFIXES.get(checkpoint.format, (".npz",)), *_STRANGE_SUFFIXES):
        return
    if checkpoint.source.kind == "definition":
        raise FileError(target, f"{suffix} is no format that is written", hint="-o OUT.pt or OUT.safetensors")
    raise FileError(
        checkpoint.source.name,
        f"it is {checkpoint.format}, which {shortened(Path(target).name)} does not say",
        hint="an edit keeps the format; choose a suffix that fits",
    )
