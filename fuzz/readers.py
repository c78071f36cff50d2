"""A coverage-guided fuzz of the readers: `python fuzz/readers.py READER… --seconds N`; see the README beside it.

The law: `formats.read` gives a checkpoint that can be listed and whose small values can be read, or raises a
ParamctlError of at most three lines without control characters; in two seconds, without much memory, and running
nothing. What breaks it is told by its traceback, once, and its input is kept.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib
import io
import json
import os
import pickle
import pickletools
import pkgutil
import random
import re
import resource
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import unicodedata
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import seeds

MOST_CPU_SECONDS = 2.0
MOST_NBYTES = 1 << 28  # that one input may add to the process
MOST_NUMEL = 10_000  # of a tensor whose values are read
MOST_SEED_NBYTES = 16_000
_LISTED = 40  # tensors whose values are read
_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_FORBIDDEN = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.", "shutil.",
              "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.kill", "ctypes.dlopen")  # fmt: skip


class RanError(BaseException):
    """Something of the file's was run: no `except Exception` may hide it."""


class _Canary:
    """Raises where what a reader must not do is done, while it is `armed`."""

    armed = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        is_code = event == "exec" and getattr(arguments[0], "co_filename", "") in {"<string>", "<stdin>"}
        is_write = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & _WRITES)
        if is_code or is_write or event.startswith(_FORBIDDEN):
            self.armed = False
            raise RanError(f"{event} {arguments!r}"[:200])


# ----------------------------------------------------------------------------- from bytes to a file or folder


class _Place:
    """Where a mutated part is put among the others of its archive or folder."""

    def __init__(self, pack: seeds.Pack, bases: list[seeds.Parts], folder: Path) -> None:
        self.pack = pack
        self.bases = bases
        self.spots = [(i, name) for i, parts in enumerate(bases) for name in parts]
        self.folder = folder
        self.file = os.open(folder / "m", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for i, parts in enumerate(bases if pack == "folder" else ()):
            (folder / str(i)).mkdir(exist_ok=True)
            for name, raw in parts.items():
                (folder / str(i) / name).write_bytes(raw)

    def seeds(self) -> Iterator[bytes]:
        for place, (i, name) in enumerate(self.spots):
            raw = self.bases[i][name]
            if len(raw) <= MOST_SEED_NBYTES:
                yield raw if self.pack == "file" else struct.pack("<H", place) + raw

    def put(self, data: bytes) -> tuple[Path, Callable[[], object]]:
        """The file or folder that the data stands for, and what undoes it."""
        if self.pack == "file":
            return self._file(data)
        i, name = self.spots[int.from_bytes(data[:2], "little") % len(self.spots)]
        if self.pack == "folder":
            path = self.folder / str(i) / name
            path.write_bytes(data[2:])
            return path.parent, lambda: path.write_bytes(self.bases[i][name])
        return self._file(_PACKERS[self.pack](self.bases[i] | {name: data[2:]}))

    def _file(self, data: bytes) -> tuple[Path, Callable[[], object]]:
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, data, 0)
        return self.folder / "m", lambda: None


def _zipped(parts: seeds.Parts) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, raw in parts.items():
            archive.writestr(zipfile.ZipInfo(name), raw)
    return held.getvalue()


def _tarred(parts: seeds.Parts) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:") as archive:
        for name, raw in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return held.getvalue()


def _headed(parts: seeds.Parts) -> bytes:
    return struct.pack("<Q", len(parts["header"])) + parts["header"] + parts["data"]


def _array(parts: seeds.Parts) -> bytes:
    version, header = parts["header"][:2].ljust(2, b"\0"), parts["header"][2:]
    nbytes = len(header).to_bytes(4, "little")[: 2 if version[0] == 1 else 4]
    return b"\x93NUMPY" + version + nbytes + header + parts["data"]


_PACKERS = {"zip": _zipped, "tar": _tarred, "safetensors": _headed, "npy": _array}


# ----------------------------------------------------------------------------- what is done with it

Target = Callable[[Path, bytes], None]


def _file_target() -> Target:
    from paramctl import formats, source, values  # noqa: PLC0415 - instrumented as they are imported
    from paramctl.errors import ParamctlError  # noqa: PLC0415
    from paramctl.ops.info import info  # noqa: PLC0415
    from paramctl.ops.ls import ls  # noqa: PLC0415
    from paramctl.ops.ties import ties  # noqa: PLC0415
    from paramctl.ops.tree import tree  # noqa: PLC0415
    from paramctl.optimizer import optimizer_names  # noqa: PLC0415
    from paramctl.render import Screen, draw  # noqa: PLC0415
    from paramctl.select import select  # noqa: PLC0415

    styles = {"tree": Screen(), "tsv": Screen(), "json": Screen(), "table": Screen(is_terminal=True)}

    def look(path: Path, _: bytes) -> None:
        found = formats.read(source.resolve(str(path)))
        for style in ("json", "table"):
            _drain(draw(info(found), style, styles[style]))
        optimizer_names(found)
        if not found.params:
            return
        selection = select(found)
        ties(found, selection)
        for style in ("tsv", "json"):
            _drain(draw(ls(found, selection), style, styles[style]))
        _drain(draw(tree(found, selection), "tree", styles["tree"]))
        for param in list(found.params.values())[:_LISTED]:
            if param.numel < MOST_NUMEL:
                try:
                    values.array(param)
                except ParamctlError as error:
                    _checked(error)

    return look


def _drain(chunks: Iterator[str]) -> None:
    for chunk in chunks:
        if not _is_safe(chunk.replace("\n", "").replace("\t", "")):
            raise ValueError(f"what is drawn moves the cursor: {chunk[:2000]!r}")


def _calls_target() -> Target:
    from paramctl.formats import pickle_calls  # noqa: PLC0415

    def look(_: Path, data: bytes) -> None:
        found = pickle_calls.calls(data)
        for call in found.calls:
            if not _is_safe(call.text):
                raise ValueError(f"a call of control characters: {call.text!r}")

    return look


def _document_target() -> Target:
    """A pickle as a document has the reader's names, stays the same when it is written, and can be edited."""
    from paramctl.checkpoint import Storage, branches  # noqa: PLC0415
    from paramctl.errors import ParamctlError  # noqa: PLC0415
    from paramctl.formats import objects, unpickle  # noqa: PLC0415
    from paramctl.formats.pickle_document import Document  # noqa: PLC0415
    from paramctl.source import Source  # noqa: PLC0415

    def read(data: bytes) -> dict[str, Any]:
        tree = unpickle.load(data, "m")
        source = Source("m", "file", Path("m"))
        storage = lambda note, _: Storage(note.key, note.nbytes)  # noqa: E731
        found = objects.checkpoint(tree, source, "", storage, budget=1_000_000 + 100 * len(data))
        return {name: (param.shape, param.stride, param.dtype.name) for name, param in found.params.items()}

    def look(_: Path, data: bytes) -> None:
        expected = read(data)
        try:
            document = Document(data, "m")
        except ParamctlError as error:
            if "again" in error.what:  # it is of a kind that is not written
                raise
            raise ValueError("a pickle that can be read, and is no document") from error
        names = list(document.tensors)
        again = document.dump()
        if expected != read(again) or list(expected) != names or Document(again, "m").dump() != again:
            raise ValueError("a pickle that is another when it is written again")
        edits: list[Callable[[], object]] = [
            lambda: document.rename({name: f"{name}x" for name in names[::2]}),
            lambda: document.drop(list(document.tensors)[::3]),
            lambda: document.at(branches(document.tensors)[0]),
            lambda: document.keep(list(document.tensors)[:2]),
        ]
        for edit in edits if len(names) > 1 else ():
            try:
                edit()
            except (ParamctlError, IndexError) as error:
                _checked(error)
        read(document.dump())

    return look


def _check_target() -> Target:
    from paramctl import source  # noqa: PLC0415
    from paramctl.ops.check import check  # noqa: PLC0415
    from paramctl.render import Screen, draw  # noqa: PLC0415

    def look(path: Path, data: bytes) -> None:
        report = check([source.resolve(str(path))], fast=len(data) % 2 == 0)
        for style in ("tsv", "json", "sarif"):
            _drain(draw(report, style, Screen()))

    return look


def _text_target(name: str) -> Target:
    from paramctl import assign, source  # noqa: PLC0415
    from paramctl.checkpoint import Checkpoint, Module, Param, Storage, contiguous  # noqa: PLC0415
    from paramctl.dtypes import DTYPES  # noqa: PLC0415
    from paramctl.select import select  # noqa: PLC0415

    shapes = {"0.weight": (3, 4), "0.bias": (3,), "layers.0.q_proj.weight": (2, 2), "layers.1.q_proj.weight": (2, 2),
              "a=b": (2,), "a\x1b": (), "a.*": (1, 1), "blocks.10.x[0]": (2, 0, 3)}  # fmt: skip
    params = {
        key: Param(key, DTYPES["float32"], shape, contiguous(shape), Storage(key, 64)) for key, shape in shapes.items()
    }
    held = Checkpoint(source.Source("m", "file", Path("m")), "made", params, {"0": Module("0", "Linear")})

    def chosen(_: Path, data: bytes) -> None:
        select(held, data.decode("utf-8", "surrogateescape").split("\n"))

    def assigned(_: Path, data: bytes) -> None:
        assign.parse(held, data.decode("utf-8", "surrogateescape"))

    return chosen if name == "select" else assigned


def _init_target() -> Target:
    import torch  # noqa: PLC0415

    from paramctl import initializers  # noqa: PLC0415

    def parsed(_: Path, data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        if ":" in text.partition("(")[0]:
            return  # names code, which the user may run
        initializers.parse(text)(torch.zeros(4, 4))

    return parsed


TARGETS: dict[str, Callable[[], Target]] = {
    "select": lambda: _text_target("select"),
    "assign": lambda: _text_target("assign"),
    "init": _init_target,
    "calls": _calls_target,
    "document": _document_target,
    "check": _check_target,
    "check-file": _check_target,
}


def _is_safe(text: str) -> bool:
    """Nothing that moves the cursor, breaks the line, turns the direction or is half a character."""
    return not any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} or c in _BIDIRECTIONAL for c in text)


def _checked(error: Any) -> None:
    """An error is at most three lines, and shows no control character."""
    text = str(error)
    if text.count("\n") > 2 or not _is_safe(text.replace("\n", "")):
        raise ValueError(f"an error that cannot be shown: {text!r}") from error


# ----------------------------------------------------------------------------- the fuzzed process


class _Trial:
    """An input held against the law."""

    def __init__(self, target: Target, place: _Place, folder: Path) -> None:
        self.target = target
        self.place = place
        self.findings = _Findings(folder)
        self.canary = _Canary()

    def __call__(self, data: bytes) -> None:
        path, undo = self.place.put(data)
        before, start = _most_nbytes(), time.thread_time()
        self.canary.armed = True
        try:
            self.target(path, data)
        except (Exception, RanError) as error:  # noqa: BLE001 - what is looked for
            self.canary.armed = False
            self.judge(error, data)
        self.canary.armed = False
        took, grown = time.thread_time() - start, _most_nbytes() - before
        undo()
        if took > MOST_CPU_SECONDS:
            self.findings.keep(f"took {took:.1f} s", f"slow {took:.0f}", data)
        if grown > MOST_NBYTES:
            self.findings.keep(f"took {grown >> 20:,} MiB", "large", data)

    def judge(self, error: BaseException, data: bytes) -> None:
        if not _is_told(error):
            self.findings.add(error, data)
            return
        try:
            _checked(error)
        except ValueError as unshowable:
            self.findings.add(unshowable, data)

    def learn(self, data: bytes) -> None:
        """A seed: what is imported late is imported before the canary and the limits."""
        path, undo = self.place.put(data)
        try:
            self.target(path, data)
        except Exception as error:  # noqa: BLE001 - what is looked for
            if _is_told(error):
                print(f"a seed is refused: {error}", flush=True)
            self.judge(error, data)
        undo()


def _is_told(error: BaseException) -> bool:
    from paramctl.errors import ParamctlError  # noqa: PLC0415 - instrumented as it is imported

    return isinstance(error, ParamctlError)


def _most_nbytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def fuzz(name: str, folder: Path, seconds: int) -> None:
    """Fuzz in this process, which ends with it."""
    import atheris  # noqa: PLC0415 - its own extra, and only here

    with atheris.instrument_imports(include=["paramctl"]):
        target = TARGETS.get(name, _file_target)()
        _import_all()
    bases, words = pickle.loads((folder / "bases").read_bytes())
    place = _Place(seeds.READERS[name].pack, bases, folder / "place")
    trial = _Trial(target, place, folder / "findings")
    for data in place.seeds():
        trial.learn(data)
    if name != "init":  # torch maps more than it uses
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    sys.addaudithook(trial.canary)
    flags = ["-timeout=20", "-rss_limit_mb=1500", "-malloc_limit_mb=1000", "-print_final_stats=1", "-max_len=20000"]
    flags += [f"-max_total_time={seconds}", f"-artifact_prefix={folder}/findings/", str(folder / "corpus")]
    atheris.Setup([sys.argv[0], *flags], trial, custom_mutator=_mutator(atheris, words))
    atheris.Fuzz()


def _mutator(atheris: Any, words: tuple[bytes, ...]) -> Callable[[bytes, int, int], bytes]:
    values = [word for word in words if _is_value(word)]

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)  # noqa: S311 - no secrets
        if values and chance.random() < 0.6:
            return _opcodes_changed(data, values, chance)[:most]
        if not values and data[2:3] == b"{" and chance.random() < 0.5:
            return data[:2] + _json_changed(data[2:], chance)[: most - 2]
        if words and chance.random() < 0.5:
            at = chance.randrange(len(data) + 1)
            over = chance.choice((0, 0, 1, 8))
            return (data[:at] + chance.choice(words) + data[at + over :])[:most]
        return bytes(atheris.Mutate(data, most))

    return mutated


def _is_value(word: bytes) -> bool:
    """Whether these opcodes push one value."""
    try:
        pickletools.dis(word + b".", io.StringIO())
    except Exception:  # noqa: BLE001 - pickletools raises what comes
        return False
    return True


def _opcodes_changed(data: bytes, values: list[bytes], chance: random.Random) -> bytes:
    """One of the pickles in `data` with another value, some opcodes again, or some less."""
    starts = [match.start() for match in re.finditer(rb"\x80[\x02-\x05]", data)]
    if not starts:
        return data + chance.choice(values)
    begin = chance.choice(starts)
    places: list[int] = []
    pushes: list[int] = []
    try:
        for code, _, at in pickletools.genops(data[begin:]):
            if len(code.stack_after) == 1 and not code.stack_before and code.name != "MARK":
                pushes.append(len(places))
            places.append(begin + (at or 0))
    except Exception:  # noqa: BLE001, S110 - the pickle is followed as far as it goes
        pass
    if len(places) < 3 or not pushes:
        return data + chance.choice(values)
    i, j = chance.choice(pushes), chance.choice(pushes)
    at, end = places[i], places[min(i + 1, len(places) - 1)]
    other = data[places[j] : places[min(j + chance.choice((1, 1, 2, 8)), len(places) - 1)]]
    kind = chance.random()
    if kind < 0.6:
        return data[:at] + chance.choice(values) + data[end:]
    if kind < 0.95:
        return data[:at] + other + data[end if kind < 0.85 else at :]
    return data[:at] + data[end:]


_ODD = (
    None, True, -1, 0, 1, 2, 1 << 31, 1 << 62, 1 << 64, 10**400, 0.5, 1e308, float("nan"), "", "a", "F32", "F4", "../a",
    "/etc/passwd", "\ud800", "\0", [], {}, [0, 0], [2, -1], [1 << 40, 1 << 40], ["a"], {"a": 1}, {"": None}, [[[[1]]]],
)  # fmt: skip


def _keys(value: Any) -> list[tuple[Any, Any]]:
    """The container with each key or index of it."""
    if isinstance(value, dict):
        return [(value, key) for key in value]
    return [(value, i) for i in range(len(value))] if isinstance(value, list) else []


def _json_changed(text: bytes, chance: random.Random) -> bytes:
    """JSON with another value or key somewhere, or something less, or twice."""
    try:
        root = json.loads(text)
    except (ValueError, RecursionError):
        return text + b" "
    places = _keys(root)
    for holder, key in places:  # grows as it is gone over
        places += _keys(holder[key])
    if not places:
        return text + b" "
    holder, key = chance.choice(places)
    other_holder, other = chance.choice(places)
    kind = chance.random()
    if kind < 0.6:
        holder[key] = chance.choice(_ODD)
    elif kind < 0.8:
        holder[key] = copy.deepcopy(other_holder[other])
    elif isinstance(holder, dict) and kind < 0.95:
        holder[chance.choice(("", "a", "a.b", "__metadata__", "\ud800", "x" * 300, str(other)))] = holder.pop(key)
    else:
        del holder[key]
    return json.dumps(root, ensure_ascii=chance.random() < 0.8).encode("utf-8", "surrogatepass")


def _import_all() -> None:
    """What readers import late: imports run code, which the canary takes for the file's."""
    import paramctl  # noqa: PLC0415

    importlib.import_module("difflib")
    for found in pkgutil.walk_packages(paramctl.__path__, "paramctl."):
        below = found.name.split(".")[1]
        if below in {"formats", "render", "values"} and not found.name.endswith("python_model"):
            importlib.import_module(found.name)


class _Findings:
    """Each once: by the kind of error, and the last lines of ours that it came from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: set[str] = set()

    def add(self, error: BaseException, data: bytes) -> None:
        origin = error.__cause__ or error
        frames = [frame for frame in traceback.extract_tb(origin.__traceback__) if "paramctl" in frame.filename]
        where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-2:]]
        self.keep(
            "".join(traceback.format_exception(error)), f"{type(error).__name__} {where} {type(origin).__name__}", data
        )

    def keep(self, said: str, key: str, data: bytes) -> None:
        if key in self.known:
            return
        self.known.add(key)
        stem = hashlib.sha256(key.encode()).hexdigest()[:10]
        (self.folder / f"{stem}.txt").write_text(f"{key}\n{said}", "utf-8", "backslashreplace")
        (self.folder / f"{stem}.input").write_bytes(data)


# ----------------------------------------------------------------------------- the process that looks on


def run(name: str, folder: Path, seconds: int) -> int:
    """Fuzz one reader in a process of its own, again where it was killed; how many findings there are."""
    reader = seeds.READERS[name]
    warnings.simplefilter("ignore")  # of torch, that its kinds of tensors are prototypes
    for part in ("corpus", "findings", "place"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    bases = reader.bases()
    (folder / "bases").write_bytes(pickle.dumps((bases, reader.words())))
    for i, data in enumerate(_Place(reader.pack, bases, folder / "place").seeds()):
        (folder / "corpus" / f"seed{i:04}").write_bytes(data)
    start, executions, failed = time.monotonic(), 0, 0
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    while (left := seconds - int(time.monotonic() - start)) > 0:
        words = [sys.executable, __file__, name, "--seconds", str(left), "--child", str(folder)]
        with (folder / "log").open("ab+") as log:
            at = log.seek(0, os.SEEK_END)
            ended = subprocess.run(words, stdout=log, stderr=log, check=False, env=environment, cwd=folder).returncode  # noqa: S603 - ourselves
            log.seek(at)
            said = log.read().decode("utf-8", "replace")
        counts = [line.split()[-1] for line in said.splitlines() if "number_of_executed_units" in line]
        executions += int(counts[-1]) if counts else 0
        if not counts:
            print(said[-3000:])
        failed = int(not counts)
        if not ended or failed:
            break
    found = sorted((folder / "findings").iterdir())
    print(f"{name}: {executions:,} executions, {len([p for p in found if p.suffix != '.input'])} findings", flush=True)
    for path in found:
        if path.suffix == ".txt":
            print(path.read_text("utf-8"))
        print(f"  {path}")
    return len(found) + failed


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz readers; exits 1 if anything was found.")
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"all, or some of: {', '.join(seeds.READERS)}")
    parser.add_argument("--seconds", type=int, default=20, help="for each reader")
    parser.add_argument("--folder", type=Path, help="where corpus and findings are kept; else a new temporary folder")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        fuzz(given.readers[0], given.child, given.seconds)
        return 0
    names = given.readers or list(seeds.READERS)
    unknown = [name for name in names if name not in seeds.READERS]
    if unknown:
        parser.error(f"no reader {', '.join(unknown)}; there are {', '.join(seeds.READERS)}")
    folder = given.folder or Path(tempfile.mkdtemp(prefix="paramctl-fuzz-"))
    return 1 if sum([run(name, folder / name, given.seconds) for name in names]) else 0


if __name__ == "__main__":
    sys.exit(main())
