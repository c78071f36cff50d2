"""Header tier: what a MODEL argument names, and where its bytes are."""

from __future__ import annotations

import ast
import io
import os
import re
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Self

from paramctl.errors import FileError, ParamctlError, shortened

NO_MODEL_HINT = (
    'name a MODEL, set $PARAMCTL_MODEL, write `model = "…"` under [tool.paramctl] in pyproject.toml, or pipe a file in'
)
_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".gguf", ".npz", ".npy", ".tar", ".jit", ".pt2")
_DEFINITION = re.compile(r"^(?P<file>.*\.py)(?::(?P<name>[A-Za-z_][\w.]*))?$")
_IMPORTED = re.compile(r"^(?!re:)(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_][\w.]*)$")
_PIECE_NBYTES = 1 << 20


class Source(NamedTuple):
    """A model's place. `name` is what the user wrote, for messages and the JSON `source`."""

    name: str
    kind: Literal["file", "folder", "definition"]
    path: Path | None = None  # a file, a folder, or a definition's file
    module: str = ""  # a definition that is imported
    attribute: str = ""  # `net.py:attribute`
    arguments: Mapping[str, Any] = MappingProxyType({})


def literals(arguments: Sequence[str]) -> dict[str, Any]:
    """`["hidden=8", "act=relu"]` as `{"hidden": 8, "act": "relu"}`: Python literals, and else strings."""
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key.isidentifier():
            raise ParamctlError(f"--arg {shortened(argument)!r}: not of the form name=value")
        try:
            values[key] = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            values[key] = text
    return values


def is_model(word: str) -> bool:
    """Whether a word reads as a MODEL: it exists, or has a model's form."""
    if word == "-" or "://" in word or _DEFINITION.match(word) or _IMPORTED.match(word):
        return True
    try:
        return os.path.lexists(word) or word.lower().endswith(_SUFFIXES)
    except ValueError:  # a NUL byte
        return False


def default_model() -> str | None:
    """`configured_model`, else a piped stdin."""
    return configured_model() or ("-" if _stdin_has_data() else None)


def configured_model() -> str | None:
    """`$PARAMCTL_MODEL`, else `model` of the nearest pyproject.toml with a [tool.paramctl]."""
    return os.environ.get("PARAMCTL_MODEL") or _configured()


def _configured() -> str | None:
    here = Path.cwd()
    for folder in (here, *here.parents):
        file = folder / "pyproject.toml"
        if not file.is_file():
            continue
        import tomllib  # noqa: PLC0415 - 6 ms that only a pyproject.toml pays

        try:
            tool = tomllib.loads(file.read_text("utf-8")).get("tool")
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise FileError(file, f"cannot be read: {shortened(str(error))}") from error
        if not isinstance(tool, dict) or "paramctl" not in tool:
            continue
        table = tool["paramctl"]
        model = table.get("model", "") if isinstance(table, dict) else None
        if not isinstance(model, str):
            raise FileError(file, "[tool.paramctl] model is not a text", hint='model = "model.pt"')
        is_elsewhere = "://" in model or (_IMPORTED.match(model) and not _DEFINITION.match(model))
        return os.path.relpath(folder / model) if model and not is_elsewhere else model or None
    return None


def _stdin_has_data() -> bool:
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def resolve(model: str | None, *, arguments: Sequence[str] = ()) -> Source:
    """The source that MODEL names.

    Raises:
        ParamctlError: no MODEL, or nothing of that name.
    """
    word = model if model is not None else default_model()
    if not word:
        raise ParamctlError("no MODEL was given", hint=NO_MODEL_HINT)
    if word == "-":
        return Source("-", "file", spool_stdin())
    if "://" in word:
        raise ParamctlError(f"{shortened(word)}: URLs are not read yet", hint="download it and name the file")
    found = definition(word, literals(arguments))
    if found is not None:
        return found
    if arguments:
        raise ParamctlError(f"--arg goes with a definition, and {shortened(word)} is none")
    return _on_disk(word)


def definition(word: str, arguments: Mapping[str, Any]) -> Source | None:
    """`net.py`, `net.py:build` or `package.module:name` as a source; None for any other word."""
    match = _DEFINITION.match(word)
    if match:
        path = Path(match["file"])
        if not path.is_file():
            raise FileError(word, "no such file" if not path.exists() else "not a file")
        return Source(word, "definition", path, attribute=match["name"] or "", arguments=arguments)
    match = _IMPORTED.match(word)
    if match and not os.path.lexists(word):
        return Source(word, "definition", module=match["module"], attribute=match["name"], arguments=arguments)
    return None


def _on_disk(word: str) -> Source:
    try:
        mode = os.stat(word).st_mode  # noqa: PTH116 - the word as it was written
    except FileNotFoundError:
        if os.path.islink(word):  # noqa: PTH114 - the word as it was written
            raise FileError(word, f"a link to {shortened(os.readlink(word))}, which is not there") from None  # noqa: PTH115
        hint = "" if is_model(word) else "the first word is the MODEL, and what is chosen of it comes after"
        raise FileError(word, "no such file", hint=hint) from None
    except (OSError, ValueError) as error:
        raise FileError(word, _reason(error)) from error
    if stat.S_ISDIR(mode):
        return Source(word, "folder", Path(word))
    if stat.S_ISFIFO(mode):  # opening one waits for its writer, as cat does
        return Source(word, "file", _spool_pipe(word))
    if not stat.S_ISREG(mode):
        raise FileError(word, "not a regular file")
    return Source(word, "file", Path(word))


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def spool_stdin() -> Path:
    """Standard input as a file that can be read at any offset: itself where it is a file, else a `Spool`."""
    if sys.stdin is None or os.isatty(0):
        why = "closed" if sys.stdin is None else "a terminal"
        raise ParamctlError(f"MODEL is -, and standard input is {why}", hint="pipe a checkpoint in: … | paramctl ls -")
    if stat.S_ISREG(os.fstat(0).st_mode):
        return Path("/dev/fd/0")
    return Spool(open(0, "rb", buffering=0, closefd=False), "-").path


def _spool_pipe(word: str) -> Path:
    try:
        pipe = open(word, "rb", buffering=0)  # noqa: SIM115, PTH123 - the spool closes it
    except OSError as error:
        raise FileError(word, _reason(error)) from error
    return Spool(pipe, word).path


class Spool:
    """A stream as a file on disk, as far as somebody asked for it: one without end is refused by its first bytes.

    It has no name in any folder, so that nothing is left of it, and is open as long as the process may read it.
    """

    held: ClassVar[dict[str, Spool]] = {}  # each by its path

    def __init__(self, stream: io.FileIO, name: str) -> None:
        import tempfile  # noqa: PLC0415 - 7 ms that only a pipe pays

        self._stream = stream
        self._name = name
        self._folder = tempfile.gettempdir()
        self._file = tempfile.TemporaryFile(prefix="paramctl-", buffering=0)  # noqa: SIM115 - unlinked
        self.path = Path(f"/dev/fd/{self._file.fileno()}")
        self.nbytes = 0
        self.held[str(self.path)] = self

    def fill(self, nbytes: int | None = None) -> None:
        """Take in the first `nbytes` of the stream, or as many as there are; without a number, all."""
        while not self._stream.closed and (nbytes is None or self.nbytes < nbytes):
            piece = self._next()
            if not piece:
                self._stream.close()
            self.nbytes += len(piece)

    def end(self) -> None:
        """Take in no more: what is there is the whole."""
        self._stream.close()

    def _next(self) -> bytes:
        try:
            piece = self._stream.read(_PIECE_NBYTES) or b""
        except OSError as error:
            raise FileError(self._name, _reason(error)) from error
        try:
            left = memoryview(piece)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise FileError(self._name, f"could not be kept in {self._folder}: {_reason(error)}") from error
        return piece


def _opened(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


class Reader:
    """Reads of a file at offsets, by `pread`: no read goes beyond the end, and none is short.

    Args:
        source: the file.
        descriptor: of another one, to be read instead: a copy.
    """

    _spool: Spool | None = None

    def __init__(self, source: Source, *, descriptor: int | None = None) -> None:
        self.source = source
        self.name = source.name
        self.cache: dict[str, Any] = {}  # what formats that ask one after another need to read but once
        if source.path is None:
            raise FileError(source.name, "not a file")
        self.path = str(source.path)
        try:
            self._fd = _opened(self.path) if descriptor is None else os.dup(descriptor)
            status = os.fstat(self._fd)
        except OSError as error:
            raise FileError(self.name, _reason(error)) from error
        if not stat.S_ISREG(status.st_mode):
            os.close(self._fd)
            raise FileError(self.name, "not a regular file")
        self._nbytes = status.st_size
        self._spool = Spool.held.get(self.path) if descriptor is None else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        """Its descriptor, for copies inside the kernel."""
        return self._fd

    @property
    def nbytes(self) -> int:
        """Its length; a stream is read to its end for this."""
        return self._nbytes if self._spool is None else self._grown(None)

    def _grown(self, nbytes: int | None) -> int:
        """How many bytes there are, where so many are asked for; None: all."""
        if self._spool is None:
            return self._nbytes
        self._spool.fill(nbytes)
        return self._spool.nbytes

    def reaches(self, end: int) -> bool:
        """Whether there are so many bytes; of a stream no more is read."""
        return self._grown(end) >= end

    def part(self, offset: int, nbytes: int) -> bytes:
        """The bytes at `offset`, or as many as there are; of a stream no more is read."""
        return self.read(offset, min(nbytes, self._grown(offset + nbytes) - offset))

    def end(self, nbytes: int = 0) -> None:
        """Let a stream end behind so many bytes, or those that were read, as nobody wants the rest."""
        if self._spool is not None:
            self._spool.fill(nbytes)
            self._spool.end()

    def read(self, offset: int, nbytes: int) -> bytes:
        """Exactly `nbytes` bytes at `offset`.

        Raises:
            FileError: the file ends before.
        """
        if offset < 0 or nbytes < 0 or offset + nbytes > self._grown(offset + nbytes):
            raise FileError(
                self.name,
                f"wants {nbytes:,} bytes at {offset:,}, the file has {self.nbytes:,}",
                hint="the download may have been cut short",
            )
        pieces, end = [], offset + nbytes
        while offset < end:
            try:
                piece = os.pread(self._fd, min(end - offset, 1 << 30), offset)
            except OSError as error:
                raise FileError(self.name, _reason(error)) from error
            if not piece:
                raise FileError(self.name, "the file became shorter while it was read")
            pieces.append(piece)
            offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @property
    def head(self) -> bytes:
        """The first 512 bytes, or as many as there are."""
        if "head" not in self.cache:
            self.cache["head"] = self.part(0, 512)
        found: bytes = self.cache["head"]
        return found
