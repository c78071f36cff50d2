"""Header tier: from a source to a checkpoint, and from a plan to a file.

A format is a module with `NAME`, `sniff(reader)` and `read(reader)`, and one row in `FORMATS`. One that can be edited
in place has `seal(file, source, storages)`, which makes its checksums right again after storages were changed.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from paramctl.checkpoint import Checkpoint
from paramctl.errors import FileError, MissingLibraryError
from paramctl.source import Reader, Source

FORMATS: dict[str, str] = {  # in the order in which they are asked
    "safetensors": "paramctl.formats.safetensors_file",
    "torch-zip": "paramctl.formats.torch_zip",
}
FOLDERS: dict[str, str] = {}  # formats that are a folder: `sniff(source)` and `read(source)`
DEFINITION = "paramctl.formats.python_model"

_STRANGERS: tuple[tuple[bytes, str], ...] = (
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a torch file of before 1.6, which is not read yet"),
    (b"GGUF", "a GGUF file, which is not read yet"),
    (b"\x93NUMPY", "a numpy array, which is not read yet"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, which is not read"),
    (b"\x1f\x8b", "compressed by gzip: unpack it with gunzip first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it with unzstd first"),
    (b"\xfd7zXZ\x00", "compressed by xz: unpack it with unxz first"),
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with git lfs pull"),
    (b"<!DOCTYPE", "an HTML page, and no checkpoint: the download went wrong"),
    (b"<html", "an HTML page, and no checkpoint: the download went wrong"),
    (b"\x80", "a pickle that is no checkpoint of torch"),
)


def read(source: Source, *, values: bool = False, seed: int | None = None) -> Checkpoint:
    """What `source` holds. The format is found in the content.

    Args:
        source: a file or a definition.
        values: whether its values will be asked for: a definition is then built with them, and not on the meta device.
        seed: for a definition that is built with values: torch's seed before its code runs.

    Raises:
        FileError: it cannot be read, or is of no format that is known.
        MissingLibraryError: a definition, and torch is not installed.
    """
    if source.kind == "definition":
        made: Checkpoint = torch_tier(DEFINITION).read(source, values=values, seed=seed)
        return made
    if source.kind == "folder":
        return _read_folder(source)
    with Reader(source) as reader:
        for name in FORMATS.values():
            module = importlib.import_module(name)
            if module.sniff(reader):
                found: Checkpoint = module.read(reader)
                return found
        raise _unknown(source, reader.head)


def _read_folder(source: Source) -> Checkpoint:
    for name in FOLDERS.values():
        module = importlib.import_module(name)
        if module.sniff(source):
            found: Checkpoint = module.read(source)
            return found
    raise _folder(source)


def torch_tier(name: str) -> ModuleType:
    """A module of the torch tier.

    Raises:
        MissingLibraryError: torch is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "torch":
            raise
        raise MissingLibraryError("this needs torch, which is not installed", hint="pip install torch") from None


def _folder(source: Source) -> FileError:
    folder = source.path or Path()
    try:
        inside = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".pt", ".bin", ".pth"))
    except OSError as error:
        return FileError(source.name, (error.strerror or str(error)).lower())
    hint = f"name a file in it: {folder / inside[0]}" if inside else ""
    return FileError(source.name, "a folder; folders are not read yet", hint=hint)


def _unknown(source: Source, head: bytes) -> FileError:
    if not head:
        return FileError(source.name, "the file is empty")
    for magic, what in _STRANGERS:
        if head.startswith(magic):
            return FileError(source.name, what)
    return FileError(source.name, "no checkpoint of a format that is known", hint=f"it begins with {head[:16]!r}")
