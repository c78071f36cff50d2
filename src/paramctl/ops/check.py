"""Header tier, and values unless `fast`: whether checkpoints are whole, safe and finite. Nothing of a file is run.

Whole: the reader takes it, checksums and headers agree, nothing overlaps, nothing is dragged along.
Safe: no pickle in it would call anything that does harm.
Finite: no value is NaN or infinite.
"""

from __future__ import annotations

import os
import re
import struct
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from paramctl import formats, sharing
from paramctl.checkpoint import Checkpoint, Param
from paramctl.errors import FileError, MissingLibraryError, ParamctlError, shortened
from paramctl.formats import safetensors_file
from paramctl.formats.pickle_calls import Pickled
from paramctl.ops import _check_cut as cuts
from paramctl.ops import _check_pickle as pickles
from paramctl.ops import _check_zip as archives
from paramctl.ops import opened
from paramctl.ops._check_findings import LEVELS, Finding
from paramctl.ops._check_index import against_index
from paramctl.report import Column, Report
from paramctl.source import Reader, Source

COLUMNS = (Column("file", "name"), Column("level"), Column("rule"), Column("name", "name"), Column("detail"))
_VALUES = "paramctl.ops._check_values"  # of the values tier: doors, so that --fast costs no numpy
_TIES = "paramctl.ops._check_ties"
_PICKLES = re.compile(r"\.pkl$|\.npy$")
_MOST_PICKLE_NBYTES = 1 << 28
_MOST_TAR_PICKLE_NBYTES = 1 << 24
_MAIN_PICKLE = re.compile(rb"PK\x03\x04.{22}(.{4})(?:[\w.-]{1,200}/)?data\.pkl", re.DOTALL)
_BLOCK, _OVERLAP = 1 << 22, 512
_OWN_FILES = (".distcp", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".metadata")


def check(sources: Sequence[Source], *, fast: bool = False) -> Report:
    """A finding a row, the gravest of each file first; a file without errors and warnings begins with an `ok`.

    Args:
        sources: files, folders and definitions.
        fast: leave checksums and values unread.

    Raises:
        ParamctlError: a file cannot be opened at all, or what reads it is not installed.
    """
    rows: list[tuple[Any, ...]] = []
    sound = 0
    levels: Counter[str] = Counter()
    file_format = ""
    for source in sources:
        found, file_format = findings(source, fast=fast)
        sound += found[0].level == "ok"
        levels.update(finding.level for finding in found)
        rows += [(f.file or source.name, f.level, f.rule, f.name or None, f.detail) for f in found]
    totals = {
        "files": len(sources),
        "sound": sound,
        "errors": levels["error"],
        "warnings": levels["warning"],
        "notes": levels["note"],
    }
    return Report(
        COLUMNS,
        tuple(rows),
        totals,
        ", ".join(source.name for source in sources),
        file_format if len(sources) == 1 else "",
    )


def findings(source: Source, *, fast: bool = False) -> tuple[list[Finding], str]:
    """What is to be said of one source, sorted, at least one finding; and its format, where it could be read."""
    found: list[Finding] = []
    checkpoint: Checkpoint | None = None
    try:
        checkpoint = formats.read(source, values=not fast)
    except FileError as error:
        if isinstance(error.__cause__, OSError):
            raise
        found.append(Finding("error", "unreadable", "", _words(error), str(error.file)))
    except MissingLibraryError:
        raise
    except ParamctlError as error:
        if source.kind == "definition":
            raise
        found.append(Finding("error", "unreadable", "", error.what))
    accepted: list[str] = []
    for file in _files(source, checkpoint):
        found += [f._replace(file=_file_name(source, file)) for f in _in_file(file, checkpoint, accepted, fast=fast)]
    if checkpoint is not None:
        found += _oversized(checkpoint)
        found += against_index(checkpoint)
        if not fast:
            found += opened(_VALUES, "check", otherwise="--fast").finite(checkpoint.params.values())
            found += opened(_TIES, "check", otherwise="--fast").lost(checkpoint)
    found = list(dict.fromkeys(found))
    found.sort(key=lambda finding: LEVELS.index(finding.level))
    if not any(finding.level in ("error", "warning") for finding in found):
        unread = "values" if fast else "some values" if any(f.rule == "unread-values" for f in found) else ""
        found.insert(0, Finding("ok", "sound", "", _praise(checkpoint, accepted, unread)))
    return found, checkpoint.format if checkpoint is not None else ""


def _words(error: FileError) -> str:
    """What the reader says, without the file's name before it."""
    what = error.what.removeprefix(f"{shortened(str(error.file), 240)}: ")
    return f"{what} ({error.hint})" if error.hint else what


def _praise(checkpoint: Checkpoint | None, accepted: list[str], unread: str) -> str:
    params = tuple(checkpoint.params.values()) if checkpoint is not None else ()
    count = f"{len(params):,} tensor{'' if len(params) == 1 else 's'}"
    said = f"{count}, whole and safe; {unread} were not read" if unread else f"{count}, whole, safe and finite"
    return said + ("; torch.load(weights_only=True) takes it" if accepted else "")


# ----------------------------------------------------------------------------- files


def _files(source: Source, checkpoint: Checkpoint | None) -> list[Source]:
    """The files that a source is made of."""
    if source.kind == "definition" or source.path is None:
        return []
    inside: dict[Path, None] = {}
    for param in checkpoint.params.values() if checkpoint is not None else ():
        inside.update((Path(extent.path), None) for extent in param.storage.extents)
    if source.kind == "file":
        inside.pop(source.path, None)
        return [source, *(Source(str(path), "file", path) for path in inside)]
    try:
        beside = sorted(path for path in source.path.iterdir() if path.name.endswith(_OWN_FILES))
    except OSError:
        beside = []
    is_pieces = any(path.name == ".metadata" for path in beside)
    inside.update((path, None) for path in beside if checkpoint is None or is_pieces)
    return [Source(str(path), "file", path) for path in inside if path.is_file()]


def _file_name(source: Source, file: Source) -> str:
    if file is source or source.path is None or file.path is None:
        return ""
    if source.kind == "file":
        return str(file.path)
    return os.path.join(source.name, os.path.relpath(file.path, source.path))  # noqa: PTH118 - as it was written


def _in_file(file: Source, checkpoint: Checkpoint | None, accepted: list[str], *, fast: bool) -> list[Finding]:
    """Structure and pickles of one file, whether or not a reader took it."""
    with Reader(file) as reader:
        if reader.path.endswith(".distcp"):
            return [] if fast else _in_pieces(reader)
        if reader.head.startswith(b"PK\x03\x04") or (checkpoint is None and _ends_as_zip(reader)):
            return _in_zip(reader, checkpoint, accepted, fast=fast)
        if reader.head.startswith(b"\x93NUMPY"):
            data = _objects_of(reader.read(0, min(reader.nbytes, archives.MOST_PICKLE_NBYTES)))
            return pickles.findings(pickles.walked(data), "", is_torch=False) if data else []
        if reader.head[257:262] == b"ustar":
            return _in_tar(reader)
        found = cuts.cut(reader) if checkpoint is None else []
        is_header = safetensors_file.sniff(reader)  # one in 256 begins as a pickle does
        if pickles.likely(reader.head) and not (is_header and checkpoint is not None):
            told = _in_pickle(reader, checkpoint, accepted)
            found += [f for f in told if f.rule != "damaged-pickle"] if is_header else told
        return found


def _ends_as_zip(reader: Reader) -> bool:
    tail = min(reader.nbytes, 22)
    return reader.read(reader.nbytes - tail, tail).startswith(b"PK\x05\x06")


def _in_pickle(reader: Reader, checkpoint: Checkpoint | None, accepted: list[str]) -> list[Finding]:
    window = 1 << 20
    while True:  # the weights of a torch file of before 1.6 come behind its pickles
        found = pickles.walked(reader.read(0, min(window, reader.nbytes)))
        if not found[-1].damage or window >= min(reader.nbytes, _MOST_PICKLE_NBYTES):
            break
        window *= 8
    if reader.head[:1] != b"\x80" and (found[-1].damage or not found[-1].calls):
        return []  # text, or what else it may be
    is_torch = reader.head.startswith(pickles.LEGACY)
    if is_torch and checkpoint is not None and not any(pickled.refused for pickled in found):
        accepted.append(reader.name)
    expected = pickles.PIECES if os.path.basename(reader.path) == ".metadata" else ()  # noqa: PTH119
    return pickles.findings(found, "", is_torch=is_torch, expected=expected)


def _in_pieces(reader: Reader) -> list[Finding]:
    """The pickles of what a DCP writer has put behind each other: archives of torch, one for each entry."""
    walked: list[Pickled] = []
    at = 0
    while at < reader.nbytes:
        block = reader.read(at, min(_BLOCK, reader.nbytes - at))
        for match in _MAIN_PICKLE.finditer(block):
            name_nbytes, extra_nbytes = struct.unpack("<2H", match.group(1))
            begin = at + match.start() + 30 + name_nbytes + extra_nbytes
            if begin < reader.nbytes:
                walked.append(_walked_at(reader, begin))
        at += max(len(block) - _OVERLAP, 1) if at + len(block) < reader.nbytes else len(block)
    return pickles.findings((pickled for pickled in walked if pickled.calls), "", is_torch=False)


def _walked_at(reader: Reader, begin: int) -> Pickled:
    window = 1 << 16
    while True:
        (found,) = pickles.walked(reader.read(begin, min(window, reader.nbytes - begin)))
        if not found.damage or window >= min(_MOST_TAR_PICKLE_NBYTES, reader.nbytes - begin):
            return found
        window *= 16


def _in_tar(reader: Reader) -> list[Finding]:
    """The pickles of torch 0.1, one at the head of each member."""
    found: list[Finding] = []
    try:
        with tarfile.open(reader.path, "r:") as archive:
            for member in archive:
                held = archive.extractfile(member) if member.isreg() else None
                data = held.read(_MOST_TAR_PICKLE_NBYTES) if held is not None else b""
                if pickles.likely(data[:512]):
                    walked = [pickled for pickled in pickles.walked(data) if pickled.calls or not pickled.damage]
                    found += pickles.findings(walked, member.name, is_torch=False)
    except (tarfile.TarError, OSError, ValueError) as error:
        found.append(Finding("error", "unreadable", "", f"the tar is damaged: {shortened(str(error))}"))
    return found


def _in_zip(reader: Reader, checkpoint: Checkpoint | None, accepted: list[str], *, fast: bool) -> list[Finding]:
    infos, directory_offset = archives.members(reader)
    if not infos:
        return cuts.cut(reader) if checkpoint is None else []
    places, found = archives.places(reader, infos)
    found += archives.duplicates(infos)
    found += archives.layout(places, directory_offset)
    found += archives.behind(reader)
    found += _pickles_of(reader, places, accepted if checkpoint is not None else [])
    if checkpoint is not None and checkpoint.format == "torch-zip":
        found += _unreferenced(places, checkpoint)
    if not fast:
        found += archives.checksums(reader, places)
    return found


def _pickles_of(reader: Reader, places: list[archives.Place], accepted: list[str]) -> list[Finding]:
    found: list[Finding] = []
    names = [place.info.orig_filename for place in places]
    mains = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    main = min(mains, key=len, default="")
    is_script = f"{main.removesuffix('data.pkl')}constants.pkl" in names
    for place in places:
        name = place.info.orig_filename
        if place.info.flag_bits & 1 or not (_PICKLES.search(name) or _seems_pickled(reader, place)):
            continue
        data = archives.head(reader, place, 1 << 16 if name.endswith(".npy") else archives.MOST_PICKLE_NBYTES)
        if name.endswith(".npy"):
            data = _objects_of(data) and archives.head(reader, place, archives.MOST_PICKLE_NBYTES)
            data = _objects_of(data)
            if not data:
                continue
        walked = pickles.walked(data)
        is_torch = name == main and not is_script
        found += pickles.findings(walked, name, is_torch=is_torch, expected=pickles.SCRIPTED if is_script else ())
        if is_torch and not walked[0].refused:
            accepted.append(name)
    if main and is_script:
        what = "torch.load(weights_only=True) refuses TorchScript archives"
        found.append(Finding("note", "weights-only", "", what))
    return found


def _seems_pickled(reader: Reader, place: archives.Place) -> bool:
    """Whether a member that is no storage begins as a pickle does, whatever it is called."""
    is_storage = re.search(r"(^|/)data/", place.info.orig_filename) is not None
    return not is_storage and re.match(rb"\x80[\x00-\x05]", archives.head(reader, place, 2)) is not None


def _objects_of(data: bytes) -> bytes:
    """The pickle in an array of objects, which comes behind its header.

    Source: numpy/lib/format.py, "Format Version 1.0".
    """
    if data[:6] != b"\x93NUMPY" or len(data) < 12:
        return b""
    begin = 10 + int.from_bytes(data[8:10], "little") if data[6] == 1 else 12 + int.from_bytes(data[8:12], "little")
    return data[begin:] if re.search(rb"'descr':[^:]*O", data[:begin]) else b""


def _unreferenced(places: list[archives.Place], checkpoint: Checkpoint) -> Iterable[Finding]:
    used = {extent.offset for param in checkpoint.params.values() for extent in param.storage.extents}
    for place in places:
        name, nbytes = place.info.orig_filename, place.info.file_size
        if re.search(r"(^|/)data/[^/]+$", name) and nbytes and place.begin not in used:
            yield Finding("note", "unreferenced-storage", name, f"no tensor looks at its {nbytes:,} bytes")


# ----------------------------------------------------------------------------- tensors


def _oversized(checkpoint: Checkpoint) -> Iterable[Finding]:
    """Storages of which parts are seen by no tensor: a saved slice drags its whole storage along."""
    groups: dict[str, list[Param]] = {}
    for param in checkpoint.params.values():
        if not param.storage.is_meta:
            groups.setdefault(param.storage.key, []).append(param)
    for group in groups.values():
        _, used = sharing.unique(group)
        nbytes = group[0].storage.nbytes
        if nbytes > used:
            what = f"its storage has {nbytes:,} bytes, of which {used:,} are used: {nbytes - used:,} are wasted"
            yield Finding("warning", "oversized-storage", group[0].name, what)
