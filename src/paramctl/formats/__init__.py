"""Header tier: from a source to a checkpoint, and from a plan to a file.

A format is a module with `NAME`, `sniff(reader)` and `read(reader)`, and one row in `FORMATS`.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import NamedTuple

from paramctl.checkpoint import Checkpoint
from paramctl.errors import FileError, MissingLibraryError
from paramctl.formats import zip_directory
from paramctl.source import Reader, Source


class Format(NamedTuple):
    """A row: a module, and what a file has that may be of it; what has it is asked with the module's own `sniff`.

    `magic` stands at byte `at`, and of a zip some member's name ends with one of `members`. So a module that has
    nothing to say is not imported, which would cost 2 ms each.
    `edited` is whether values are changed in place; `sealer` is a module whose `seal(file, source, patches)` then makes
    the checksums of the file right.
    """

    module: str
    magic: bytes = b""
    at: int = 0
    members: tuple[str, ...] = ()
    edited: bool = False
    sealer: str = ""

    def may_be(self, reader: Reader) -> bool:
        if not reader.head[self.at :].startswith(self.magic):
            return False
        return not self.members or any(name.endswith(self.members) for name in zip_directory.directory(reader))


_ZIP = b"PK\x03\x04"
_ZIP_SEAL = "paramctl.formats.zip_seal"
_EXPORTED = ("archive_format", "serialized_exported_program.json")
FORMATS: dict[str, Format] = {  # in the order in which they are asked
    "gguf": Format(
        "paramctl.formats.gguf", b"GGUF", edited=True
    ),  # before safetensors: one of 123 tensors has a "{" at byte 8
    "npy": Format("paramctl.formats.npy", b"\x93NUMPY", edited=True),
    "safetensors": Format("paramctl.formats.safetensors_file", b"{", 8, edited=True),
    "npz": Format("paramctl.formats.npz", _ZIP, members=(".npy",), edited=True, sealer=_ZIP_SEAL),
    "torchscript": Format(
        "paramctl.formats.torchscript", _ZIP, members=("constants.pkl", "model.json"), edited=True, sealer=_ZIP_SEAL
    ),
    "torch-export": Format(
        "paramctl.formats.torch_export", _ZIP, members=_EXPORTED, edited=True, sealer="paramctl.formats.torch_export"
    ),
    "torch-zip": Format("paramctl.formats.torch_zip", _ZIP, edited=True, sealer=_ZIP_SEAL),
    "torch-legacy": Format("paramctl.formats.torch_legacy", edited=True),
    "torch-tar": Format("paramctl.formats.torch_tar", b"ustar", 257, edited=True),
    "sharded": Format("paramctl.formats.sharded"),
}
FOLDERS: dict[str, str] = {  # formats that are a folder: `sniff(source)` and `read(source)`
    "dcp": "paramctl.formats.dcp",
    "folder": "paramctl.formats.folder",
}
DEFINITION = "paramctl.formats.python_model"
STRANGERS = "paramctl.formats.strangers"  # what to say of a file that is none of these
STRANGER_FOLDERS = "paramctl.formats.stranger_folders"


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
        module = of(reader)
        if module is None:
            raise _no_format(reader)
        try:
            found: Checkpoint = module.read(reader)
        except FileError:
            reader.end()  # of a stream that was refused by its beginning the rest may be without end
            raise
        _ = reader.nbytes  # of a stream: its values are wanted next
        return found


def of(reader: Reader) -> ModuleType | None:
    """The module of the format that a file is of."""
    for row in FORMATS.values():
        if row.may_be(reader):
            module = importlib.import_module(row.module)
            if module.sniff(reader):
                return module
    return None


def _read_folder(source: Source) -> Checkpoint:
    for name in FOLDERS.values():
        module = importlib.import_module(name)
        if module.sniff(source):
            found: Checkpoint = module.read(source)
            return found
    raise _no_folder(source)


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


def _no_format(reader: Reader) -> FileError:
    found: FileError = importlib.import_module(STRANGERS).unknown(reader)
    return found


def _no_folder(source: Source) -> FileError:
    found: FileError = importlib.import_module(STRANGER_FOLDERS).unknown(source)
    return found
