"""Header tier: a word for a folder that is recognised by the names in it, and is no model that is read.

Sources: orbax-checkpoint docs ("Checkpoint format"); tensorflow core/protobuf/saved_model.proto, saver.proto;
huggingface_hub docs ("Manage the cache"); diffusers pipelines/pipeline_utils.py (`model_index.json`);
coremltools docs (`.mlpackage`); deepspeed/utils/zero_to_fp32.py.
"""

from __future__ import annotations

import os
from pathlib import Path

from paramctl.errors import FileError, shortened
from paramctl.source import Source

_MOST_LISTED = 5
_MOST_LOOKED_INTO = 200
_MODELS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
_MARKS: tuple[tuple[str, str, str], ...] = (  # a name in it, what it is, what to do
    ("manifest.ocdbt", "an orbax checkpoint of JAX, which is not read", "restore it with orbax and save it as npz"),
    (
        "_CHECKPOINT_METADATA",
        "an orbax checkpoint of JAX, which is not read",
        "restore it with orbax and save it as npz",
    ),
    ("saved_model.pb", "a TensorFlow SavedModel, which is not read", "save its variables as npz or safetensors"),
    ("keras_metadata.pb", "a Keras model, which is not read", "save its variables as npz or safetensors"),
    ("zero_to_fp32.py", "a DeepSpeed checkpoint, in parts by rank", "join it: python zero_to_fp32.py . OUT"),
    ("data.pkl", "a torch file that was unpacked", "pack it again: zip -0 -r model.pt FOLDER"),
    (".zgroup", "a Zarr group, which is not read", ""),
    (".zarray", "a Zarr array, which is not read", ""),
    ("zarr.json", "a Zarr array or group, which is not read", ""),
)


def unknown(source: Source) -> FileError:
    """What a folder is that no format reads."""
    found = recognised(source)
    if found is not None:
        return found
    folder = source.path or Path()
    names = sorted(os.listdir(folder))  # noqa: PTH208 - names, and no paths
    if not names:
        return FileError(source.name, "the folder is empty")
    below = [name for name in names if not name.startswith(".")][:_MOST_LOOKED_INTO]
    inside = [str(folder / name) for name in below if (folder / name).is_dir() and _has_model(folder / name)]
    if inside:
        return FileError(source.name, "a folder without a model of its own", hint=_listed("models are in", inside))
    shown = ", ".join(shortened(name, 40) for name in names[:3]) + (" …" if len(names) > 3 else "")
    return FileError(source.name, "a folder without a model", hint=f"in it are {shown}")


def recognised(source: Source) -> FileError | None:
    """What a folder is by the names in it; None where they say nothing."""
    folder = source.path or Path()
    try:
        names = set(os.listdir(folder))  # noqa: PTH208 - names, and no paths
    except OSError as error:
        return FileError(source.name, (error.strerror or str(error)).lower())
    for mark, what, hint in _MARKS:
        if mark in names:
            return FileError(source.name, what, hint=hint)
    if {"snapshots", "refs"} <= names or {"snapshots", "blobs"} <= names:
        inside = [str(path) for path in sorted((folder / "snapshots").iterdir())]
        return FileError(source.name, "the Hub's cache of a model", hint=_listed("name a snapshot:", inside))
    if "model_index.json" in names:
        inside = [str(path) for path in sorted(folder.iterdir()) if path.is_dir() and _has_model(path)]
        return FileError(source.name, "a diffusers pipeline of several models", hint=_listed("name one:", inside))
    if any(name.endswith("weights_manifest.json") for name in names):
        what, hint = "TensorFlow.js models, which are not read", "look for the checkpoint that they were made from"
        return FileError(source.name, what, hint=hint)
    if any(name.endswith(".distcp") for name in names):
        return FileError(source.name, "pieces of a torch.distributed checkpoint, without its .metadata")
    if any(name.endswith(".index") and not name.endswith(".faiss.index") for name in names) and any(
        ".data-0" in name for name in names
    ):
        return FileError(
            source.name, "a TensorFlow checkpoint, which is not read", hint="tf.train.list_variables lists it"
        )
    if {"Manifest.json", "Data"} <= names:
        return FileError(source.name, "a Core ML package, which is not read")
    return None


def _has_model(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.endswith(_MODELS) or entry.name == ".metadata" for entry in entries)
    except OSError:
        return False


def _listed(what: str, paths: list[str]) -> str:
    if not paths:
        return ""
    more = f" and {len(paths) - _MOST_LISTED:,} more" if len(paths) > _MOST_LISTED else ""
    return f"{what} {', '.join(shortened(path) for path in paths[:_MOST_LISTED])}{more}"
