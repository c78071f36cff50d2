"""Header tier: a word for what is recognised in its content, and holds no parameters that are read.

Sources: file(1)'s magic; onnx/onnx.proto (ModelProto); coremltools mlmodel/format/Model.proto; tensorflow
core/framework/graph.proto, core/protobuf/saved_model.proto; sentencepiece_model.proto; leveldb doc/table_format.md;
ggml's `GGML_FILE_MAGIC`; git-lfs docs/spec.md; POSIX pax (ustar).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath
from typing import Any

from paramctl.errors import FileError, shortened
from paramctl.source import Reader

_LOOKED_AT_NBYTES = 1 << 16
_MOST_NBYTES = 1 << 24  # of JSON that is read whole, and of a stream that is nothing known: it may have no end
_MOST_PICKLE_NBYTES = 1 << 28  # whose calls check follows as far
_MOST_ENTRIES = 3
_AGAIN = "the download went wrong: look at it with head, and download it again"
_UNFINISHED = (".incomplete", ".crdownload", ".part", ".partial", ".download", ".aria2", ".tmp")
_GGML = ("a ggml file of before GGUF, as whisper.cpp's", "convert it to GGUF with the scripts of llama.cpp")
_PICTURE = "a picture, and no checkpoint"
_PROGRAM = "a program, and no checkpoint"

_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (  # at which byte, what stands there, what it is, what to do
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes, which is not read", "h5ls -r lists it"),
    (4, b"TFL3", "a TensorFlow Lite model, which is not read", "look for the checkpoint that it was made from"),
    (0, b"lmgg", *_GGML),
    (0, b"fmgg", *_GGML),
    (0, b"tjgg", *_GGML),
    (0, b"algg", *_GGML),
    (0, b"\x1f\x8b", "compressed by gzip", "unpack it first: gunzip -k {}"),
    (0, b"BZh", "compressed by bzip2", "unpack it first: bunzip2 -k {}"),
    (0, b"\xfd7zXZ\x00", "compressed by xz", "unpack it first: unxz -k {}"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it first: unzstd {}"),
    (0, b"\x04\x22\x4d\x18", "compressed by lz4", "unpack it first: unlz4 {}"),
    (0, b"\x1f\x9d", "compressed by compress", "unpack it first: uncompress -k {}"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first: 7z x {}"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "unpack it first: unrar x {}"),
    (0, b"PK\x05\x06", "an empty zip archive", ""),
    (0, b"version https://git-lfs", "a Git LFS pointer, and not the file itself", "fetch it: git lfs pull"),
    (0, b"%PDF-", "a PDF document, and no checkpoint", ""),
    (0, b"\x89PNG\r\n\x1a\n", _PICTURE, ""),
    (0, b"\xff\xd8\xff", _PICTURE, ""),
    (0, b"GIF8", _PICTURE, ""),
    (8, b"WEBP", _PICTURE, ""),
    (8, b"WAVE", "a sound, and no checkpoint", ""),
    (4, b"ftyp", "a video, and no checkpoint", ""),
    (0, b"\x7fELF", _PROGRAM, ""),
    (0, b"MZ", _PROGRAM, ""),
    (0, b"\xcf\xfa\xed\xfe", _PROGRAM, ""),
    (0, b"#!", "a script, and no checkpoint", "a definition's file is named with .py at its end"),
    (0, b"SQLite format 3\0", "an SQLite database, and no checkpoint", ""),
    (0, b"PAR1", "a Parquet table, and no checkpoint", ""),
    (0, b"ARROW1", "an Arrow table, and no checkpoint", ""),
    (0, b"\x0c\xdb\x3a\x2a", "an OCDBT manifest, as of orbax, which is not read", "it is a part of a JAX checkpoint"),
)


def unknown(reader: Reader) -> FileError:
    """What a file is that no format reads."""
    reader.end(_MOST_PICKLE_NBYTES if _begins_as_pickle(reader.head) else _MOST_NBYTES)
    if not reader.head:
        return FileError(reader.name, "the file is empty", hint=_hint_of_suffix(reader))
    for at, magic, what, hint in _MAGIC:
        if reader.head[at : at + len(magic)] == magic:
            file = "FILE" if reader.name == "-" else shortened(reader.name)
            return FileError(reader.name, what, hint=hint.format(file))
    data = reader.read(0, min(reader.nbytes, _LOOKED_AT_NBYTES))
    for look in _LOOKS:
        found = look(reader, data)
        if found is not None:
            return FileError(reader.name, found[0], hint=found[1] or _hint_of_suffix(reader))
    hint = _hint_of_suffix(reader) or f"it begins with {reader.head[:16]!r}"
    return FileError(reader.name, "no checkpoint of a format that is known", hint=hint)


def _hint_of_suffix(reader: Reader) -> str:
    suffix = PurePath(reader.name).suffix.lower()
    return f"{suffix} says that the download is not finished" if suffix in _UNFINISHED else ""


def archive(name: str, kind: str, entries: Iterable[str]) -> FileError:
    """A zip or tar of something else; `entries`: its names, of which the first few are told."""
    first: list[str] = []
    for entry in entries:
        if len(first) == _MOST_ENTRIES:
            first.append("…")
            break
        first.append(shortened(entry, 60))
    holds = f" of {', '.join(first)}" if first else ", and nothing in it"
    return FileError(name, f"a {kind} archive{holds}", hint="unpack it, and name the checkpoint in it")


# ----------------------------------------------------------------------------- by a closer look


Said = tuple[str, str] | None  # what it is, and what to do
Look = Callable[[Reader, bytes], Said]


def _zeros(_: Reader, data: bytes) -> Said:
    return None if data.strip(b"\0") else ("it begins with nothing but zeros", "the download may not be finished")


def _tar(reader: Reader, data: bytes) -> Said:
    if data[257:262] != b"ustar":
        return None
    found = archive(reader.name, "tar", _tar_entries(reader))
    return found.what.removeprefix(f"{shortened(reader.name, 240)}: "), found.hint


def _tar_entries(reader: Reader) -> Iterator[str]:
    at = 0
    while at + 512 <= reader.nbytes:
        block = reader.read(at, 512)
        name = block[:100].rstrip(b"\0").decode("utf-8", "replace")
        digits = block[124:136].strip(b"\0 ")
        if not name or not re.fullmatch(rb"[0-7]{1,12}", digits):
            return
        if block[156:157] not in (b"x", b"g", b"L", b"K"):  # of pax and GNU: about the entry that follows
            yield name
        at += 512 + -(-int(digits, 8) // 512) * 512


def _table(reader: Reader, _: bytes) -> Said:
    if reader.nbytes < 48 or reader.read(reader.nbytes - 8, 8) != b"\x57\xfb\x80\x8b\x24\x75\x47\xdb":
        return None
    return "the index of a TensorFlow checkpoint, which is not read", "tf.train.list_variables lists it"


def _begins_as_pickle(data: bytes) -> bool:
    return data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def _pickle(_: Reader, data: bytes) -> Said:
    if not _begins_as_pickle(data) and not re.match(rb"\(?[dl]p\d+\n|\(i\w|c[\w.]+\n[\w.]+\n", data):
        return None
    named = re.search(rb"c([A-Za-z_][\w.]*)\n([A-Za-z_]\w*)\n", data) or re.search(
        rb"\x8c.([A-Za-z_][\w.]*)\x94\x8c.([A-Za-z_]\w*)\x94\x93", data, re.DOTALL
    )
    first = f"; the first class in it is {shortened(b'.'.join(named.groups()).decode(), 80)}" if named else ""
    kind = "a joblib pickle" if b"joblib.numpy_pickle" in data else "a pickle"
    return (
        f"{kind} that is no checkpoint of torch{first}",
        "it runs code when it is loaded: open it only if you trust it",
    )


def _markup(_: Reader, data: bytes) -> Said:
    text = data.removeprefix(b"\xef\xbb\xbf").lstrip()[:4096].lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        title = re.search(rb"<title[^>]*>\s*([^<]*?)\s*</title>", data[:4096], re.IGNORECASE)
        said = f" ({shortened(title[1].decode('utf-8', 'replace'), 60)})" if title and title[1] else ""
        return f"an HTML page{said}, and no checkpoint", _AGAIN
    if not text.startswith((b"<?xml", b"<error")):
        return None
    code = re.search(rb"<code>\s*([^<]{1,80}?)\s*</code>", data[:4096], re.IGNORECASE)
    if b"<error" in text and code:
        return f"an error answer of the site: {shortened(code[1].decode('utf-8', 'replace'))}", _AGAIN
    return "an XML file, and no checkpoint", ""


def _json(reader: Reader, data: bytes) -> Said:
    if data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] not in (b"{", b"["):
        return None
    try:
        value = json.loads(reader.read(0, reader.nbytes) if reader.nbytes < _MOST_NBYTES else data)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, list) and value and isinstance(value[0], dict) and {"weights", "paths"} <= value[0].keys():
        return "a TensorFlow.js weights manifest, which is not read", "its weights lie beside it in .bin files"
    if isinstance(value, dict) and {"modelTopology", "weightsManifest"} & value.keys():
        return "a TensorFlow.js model, which is not read", "its weights lie beside it in .bin files"
    if isinstance(value, dict) and {"architectures", "model_type", "peft_type", "_class_name"} & value.keys():
        return "a model's configuration, without parameters", "name its folder, or the checkpoint beside it"
    if isinstance(value, dict) and len(value) < 10:
        said = next((value[key] for key in ("error", "message", "detail", "errors") if value.get(key)), None)
        if said is not None:
            return f"an error answer of the site: {shortened(_sentence(said), 80)}", _AGAIN
    return "a JSON file, and no checkpoint", ""


def _sentence(said: Any) -> str:
    if isinstance(said, dict) and isinstance(said.get("message"), str):
        return str(said["message"])
    return said if isinstance(said, str) else json.dumps(said)


def _msgpack(_: Reader, data: bytes) -> Said:
    if re.match(
        rb"(?:[\x81-\x8f]|\xde..)(?:[\xa1-\xbf]|\xd9.)[A-Za-z_][\w/.]*[\x80-\x8f\xde\xc7-\xc9]", data, re.DOTALL
    ):
        return "a msgpack file, as Flax writes, which is not read", "save the model as safetensors"
    return None


def _text(_: Reader, data: bytes) -> Said:
    try:
        text = data[:4096].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < min(len(data), 4096) - 4 or not error.start:
            return None
        text = data[: error.start].decode("utf-8")
    if any(ord(character) < 32 and character not in "\t\n\r\f\x1b" for character in text):
        return None
    line = next((line for line in text.splitlines() if line.strip()), "")
    return "a text file, and no checkpoint", f"it begins with {shortened(line.strip(), 60)}" if line else ""


# ----------------------------------------------------------------------------- protocol buffers, which have no magic


Field = tuple[int, int, Any]  # number, wire type, and the number or the range of its bytes


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise IndexError


def _fields(data: bytes, start: int, end: int, most: int = 64) -> list[Field]:
    """The fields of a message of which the beginning is there: all that can be read; [] where it is no message."""
    found: list[Field] = []
    at = start
    try:
        while at < end and len(found) < most:
            tag, at = _varint(data, at)
            number, wire = tag >> 3, tag & 7
            if wire not in (0, 1, 2, 5) or not number:
                return []
            value: Any
            if wire in (0, 2):
                value, at = _varint(data, at)
            if wire == 2:
                value, at = (at, at + value), at + value
                if at > end:
                    return []
            elif wire != 0:
                value, at = at, at + (8 if wire == 1 else 4)
            found.append((number, wire, value))
    except IndexError:
        pass  # it goes on beyond what was looked at
    return found


def _protobuf(reader: Reader, data: bytes) -> Said:
    top = _fields(data, 0, reader.nbytes)
    if not top:
        return None
    kinds = {(number, wire) for number, wire, _ in top}
    first = top[0]
    if first[:2] == (1, 0) and first[2] < 100:
        if any(number >= 200 and wire == 2 for number, wire in kinds):
            return "a Core ML model, which is not read", "look for the checkpoint that it was made from"
        if (7, 2) in kinds and kinds <= {(1, 0), (5, 0), *((n, 2) for n in (2, 3, 4, 6, 7, 8, 14, 20, 25))}:
            return "an ONNX model, which is not read", "look for the checkpoint that it was made from"
        if kinds == {(1, 0), (2, 2)} and _is_meta_graph(data, top[1][2]):
            return "a TensorFlow SavedModel, which is not read", "save its variables as npz or safetensors"
        return None
    if first[:2] != (1, 2):
        return None
    if _is_node(data, first[2]):
        return "a TensorFlow graph, which is not read", "look for the checkpoint that it was made from"
    if _is_meta_graph(data, (0, reader.nbytes)):
        return "the graph of a TensorFlow checkpoint, which is not read", "tf.train.list_variables lists the checkpoint"
    piece = _fields(data, *first[2])
    if len(top) > 8 and [field[:2] for field in piece[:2]] == [(1, 2), (2, 5)]:
        return "a SentencePiece tokenizer, and no checkpoint", "name the model beside it"
    return None


def _is_node(data: bytes, where: tuple[int, int]) -> bool:
    """A NodeDef: a name, and an operation in CamelCase."""
    fields = [field for field in _fields(data, *where) if field[1] == 2]
    if [number for number, _, _ in fields[:2]] != [1, 2]:
        return False
    name, operation = (data[slice(*field[2])] for field in fields[:2])
    return bool(re.fullmatch(rb"[\w./-]+", name) and re.fullmatch(rb"_?[A-Z]\w+", operation))


def _is_meta_graph(data: bytes, where: tuple[int, int]) -> bool:
    """A MetaGraphDef: first what made it, whose first part is a list of operations or a version."""
    fields = _fields(data, *where)
    if not fields or fields[0][:2] != (1, 2):
        return False
    inner = _fields(data, *fields[0][2])
    return bool(inner) and all(1 <= number <= 8 for number, _, _ in inner) and (2, 2) in [field[:2] for field in inner]


_LOOKS: tuple[Look, ...] = (_zeros, _tar, _table, _pickle, _markup, _json, _msgpack, _protobuf, _text)
