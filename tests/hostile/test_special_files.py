"""Law 2 of reading where MODEL is no plain file, may not be read, or changes while it is read."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_damage
import pytest
import torch
from hostile_folders import GOOD, INDEX, ONE, TWO, A, B

from program import ROOT

COMMANDS = ("tree", "ls", "info", "show", "stats", "ties", "check")
NOBODY = 65534
MOST_SECONDS = 30  # of six commands: what waits, waits for ever
Make = Callable[[Path], object]

# Runs the commands one after another in one process, each after `before`, and prints how each ended. What is imported
# late is imported before, as it may be out of reach of nobody.
_DRIVER = """
import contextlib, importlib, io, json, os, pkgutil, sys, threading
import paramctl.formats, paramctl.ops, paramctl.render
from paramctl import cli

def run(*argv):
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run(argv)
        out.flush()
    err.flush()
    return int(code), out.buffer.getvalue().decode(), err.buffer.getvalue().decode()

before, *commands = sys.argv[1:]
for package in (paramctl.formats, paramctl.ops, paramctl.render):
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if not found.name.endswith(("formats.python_model", "ops.init")):  # which import torch
            importlib.import_module(found.name)
for name in commands:
    importlib.import_module("paramctl.cli." + name)
ended = []
for command in commands:
    exec(before)
    ended.append((command, *run(command, "m")))
print(json.dumps(ended))
"""
_AS_NOBODY = f"if os.geteuid() == 0: os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})"
_WRITER = "threading.Thread(target=lambda: open('m', 'wb').write({data}), daemon=True).start()"


def ended(
    folder: Path, *, before: str = "pass", commands: tuple[str, ...] = COMMANDS
) -> list[tuple[str, int, str, str]]:
    """How each command ends on m in a folder: its name, exit status, output and errors; `before` is run before each."""
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, before, *commands], capture_output=True, check=False, cwd=folder,
        timeout=MOST_SECONDS, stdin=subprocess.DEVNULL, env={"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return [tuple(one) for one in json.loads(done.stdout)]


def in_folder(**held: bytes) -> Callable[[Path], Path]:
    """m as a folder of these files."""

    def make(home: Path) -> Path:
        (home / "m").mkdir()
        for name, raw in held.items():
            (home / "m" / name).write_bytes(raw)
        return home / "m"

    return make


def with_index(make: Callable[[Path], object]) -> Make:
    """m as an index with two shards, of which `make` makes the first."""

    def made(home: Path) -> None:
        make(in_folder(**{INDEX: GOOD, B: TWO})(home) / A)

    return made


def lone(make: Callable[[Path], object]) -> Make:
    """m as a folder of one file, which `make` makes."""
    return lambda home: make(in_folder()(home) / "model.safetensors")


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # a socket's address is short


def piped(path: Path) -> None:
    os.mkfifo(path.parent / "pipe")
    path.symlink_to("pipe")


SPECIAL: dict[str, tuple[Make, str]] = {
    "a device without end": (lambda home: (home / "m").symlink_to("/dev/zero"), "not a regular file"),
    "a device that is empty": (lambda home: (home / "m").symlink_to("/dev/null"), "not a regular file"),
    "a socket": (lambda home: bound(home / "m"), "not a regular file"),
    "a folder of a pipe": (lone(os.mkfifo), "model.safetensors: not a regular file"),
    "a folder of a link to a pipe": (lone(piped), "model.safetensors: not a regular file"),
    "a folder of a socket": (lone(bound), "model.safetensors: no such device or address"),
    "a folder of a device without end": (lone(lambda path: path.symlink_to("/dev/zero")), "not a regular file"),
    "a folder of a device that is empty": (lone(lambda path: path.symlink_to("/dev/null")), "not a regular file"),
    "a shard that is a pipe": (with_index(os.mkfifo), f"{A}: not a regular file"),
    "a shard that is a link to a pipe": (with_index(piped), f"{A}: not a regular file"),
    "a shard that is a socket": (with_index(bound), f"{A}: no such device or address"),
    "a shard that is a device without end": (with_index(lambda path: path.symlink_to("/dev/zero")), ""),
    "a shard that is a device that is empty": (with_index(lambda path: path.symlink_to("/dev/null")), ""),
    "an index that is a pipe": (
        lambda home: os.mkfifo(in_folder(**{A: ONE, B: TWO})(home) / INDEX), f"{INDEX}: not a regular file",
    ),
    "a torch file that is a pipe": (
        lambda home: os.mkfifo(in_folder()(home) / "pytorch_model.bin"), "pytorch_model.bin: not a regular file",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "said"), SPECIAL.values(), ids=SPECIAL.keys())
def test_what_is_no_plain_file_is_refused_at_once(make: Make, said: str, tmp_path: Path, monkeypatch):
    """Nobody waits for a pipe inside a folder to be written, and a device without end is not read."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    for command, code, out, err in ended(tmp_path):
        if command == "check" and code == 1:
            assert said in out.replace("\terror\tunreadable\t\t", ": ")
            continue
        assert (command, code, out) == (command, 2, "")
        assert err.startswith("error: m")
        assert said in err
        assert len(err.splitlines()) <= 3


CLOSED: dict[str, tuple[Make, str]] = {
    "a file": (lambda home: ((home / "m").write_bytes(ONE), (home / "m").chmod(0)), "m: permission denied"),
    "a folder": (lambda home: in_folder(**{A: ONE})(home).chmod(0), "m: permission denied"),
    "a folder whose names alone may be read": (lambda home: in_folder(**{"model.safetensors": ONE})(home).chmod(0o444),
                                               "permission denied"),
    "a folder whose names alone may be read, of an index": (
        lambda home: in_folder(**{INDEX: GOOD, A: ONE, B: TWO})(home).chmod(0o444), "permission denied"),
    "a folder whose names may not be read": (lambda home: in_folder(**{"model.safetensors": ONE})(home).chmod(0o111),
                                             "m: permission denied"),
    "a lone file of a folder": (lone(lambda path: (path.write_bytes(ONE), path.chmod(0))),
                                "model.safetensors: permission denied"),
    "a shard": (with_index(lambda path: (path.write_bytes(ONE), path.chmod(0))), f"{A}: permission denied"),
    "an index": (
        lambda home: (in_folder(**{INDEX: GOOD, A: ONE, B: TWO})(home) / INDEX).chmod(0),
        f"{INDEX}: permission denied",
    ),
    "a folder within": (
        lambda home: ((in_folder()(home) / "model").mkdir(), (home / "m" / "model").chmod(0)), "a folder without a model"),
    "a piece of a distributed checkpoint": (
        lambda home: ((in_folder(**{".metadata": b"\x80\x02}."})(home) / ".metadata").chmod(0)), "permission denied"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "said"), CLOSED.values(), ids=CLOSED.keys())
def test_what_may_not_be_read_is_said_with_its_name(make: Make, said: str, tmp_path: Path):
    """As the system says it, in a process that is not root's."""
    _reachable(tmp_path)
    make(tmp_path)
    try:
        for command, code, out, err in ended(tmp_path, before=_AS_NOBODY):
            if command == "check" and code == 1:
                assert said in out.replace("\terror\tunreadable\t\t", ": ")
                continue
            assert (command, code, out) == (command, 2, "")
            assert err.startswith("error: m")
            assert said in err
            assert len(err.splitlines()) <= 3
    finally:
        for path in (tmp_path / "m", *(tmp_path / "m").glob("*")) if os.geteuid() else ():
            path.chmod(0o700)


def _reachable(folder: Path) -> None:
    """Let whoever it is go down to a folder, and no further than pytest's own folders are opened for it."""
    if os.geteuid():
        return
    for path in (folder, *folder.parents):
        if not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)


# ----------------------------------------------------------------------------- pipes

SENT: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 2, "m: the file is empty"),
    "a checkpoint": (ONE, 0, ""),
    "half of a checkpoint": (ONE[: len(ONE) // 2], 2, "m: "),
    "more than a pipe holds": (hostile_damage.whole_safetensors()[:8] + bytes(1 << 20), 2, "m: "),
}


@pytest.mark.parametrize(("data", "wanted", "said"), SENT.values(), ids=SENT.keys())
def test_a_pipe_is_read_until_its_writer_is_gone(data: bytes, wanted: int, said: str, tmp_path: Path):
    """What comes through it is a file like another, whole or not."""
    os.mkfifo(tmp_path / "m")
    (tmp_path / "sent").write_bytes(data)
    before = _WRITER.format(data="open('sent', 'rb').read()")
    for command, code, out, err in ended(tmp_path, before=before):
        if command == "check" and wanted:
            assert code in (1, 2)
            assert said.removeprefix("m: ") in out + err
            continue
        assert (command, code) == (command, wanted)
        assert (out == "") == bool(wanted)
        assert said in err
        assert len(err.splitlines()) <= 3


def test_a_pipe_that_fits_a_link_and_a_second_reader(tmp_path: Path):
    """A link to a pipe as MODEL is the pipe."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "m").symlink_to("pipe")
    (tmp_path / "sent").write_bytes(ONE)
    before = _WRITER.format(data="open('sent', 'rb').read()")
    assert [code for _, code, _, _ in ended(tmp_path, before=before, commands=("ls", "show"))] == [0, 0]


# ----------------------------------------------------------------------------- standard input

ENDLESS: dict[str, str] = {  # what makes it, and how the error begins
    "cat /dev/zero": "it begins with nothing but zeros",
    "yes": "a text file, and no checkpoint",
    "yes '{\"a\": 1},'": "a text file, and no checkpoint",
    "yes '<html><title>404</title>'": "an HTML page (404), and no checkpoint",
    "(printf '\\037\\213\\010'; cat /dev/zero)": "compressed by gzip",
    "(printf '\\377'; cat /dev/zero)": "no checkpoint of a format that is known",
    "yes 'abcdefgh{'": "the header says",
    "(printf 'GGUF'; yes)": "GGUF",
}


def piped_in(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """How a line of the shell ends whose programs may write no file of more than 32 MiB."""
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"], "TMPDIR": str(folder)}
    return subprocess.run(
        ["bash", "-c", command.replace("paramctl", f"{sys.executable} -m paramctl", 1)], capture_output=True,
        check=False, cwd=folder, timeout=MOST_SECONDS, env=environment, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 25, 1 << 25)),
    )  # fmt: skip


@pytest.mark.parametrize("command", ["ls", "check"])
@pytest.mark.parametrize(("made", "said"), ENDLESS.items())
def test_a_stream_without_end_is_refused_by_its_beginning(made: str, said: str, command: str, run, tmp_path: Path):
    """As a file of such content is, while next to nothing of it was kept."""
    streamed = piped_in(f"{made} | paramctl {command} -", tmp_path)
    piped_in(f"{made} | head -c 100000 > file", tmp_path)
    with contextlib.chdir(tmp_path):
        filed = run(command, "file")
    assert said in streamed.stdout + streamed.stderr
    assert streamed.returncode == filed.code == (1 if command == "check" else 2)
    assert streamed.stdout == filed.out.replace("\nfile\t", "\n-\t").replace("-k file", "-k FILE")
    assert streamed.stderr == filed.err.replace("error: file:", "error: -:").replace("-k file", "-k FILE")


def test_a_device_without_end_as_standard_input(tmp_path: Path):
    """What is no pipe is a stream, too."""
    done = piped_in("paramctl ls < /dev/zero - ", tmp_path)
    said = "error: -: it begins with nothing but zeros\n\nhint: the download may not be finished\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


@pytest.mark.parametrize("name", [*hostile_damage.WHOLE, "long", "long and legacy"])
def test_a_checkpoint_that_is_piped_in_is_kept_whole(name: str, process, run, tmp_path: Path):
    """Every format, and one that is longer than what is kept of an unknown stream: as the file."""
    if name in hostile_damage.WHOLE:
        (tmp_path / "m").write_bytes(hostile_damage.WHOLE[name]())
    else:
        state = {"w": torch.arange(5 << 20, dtype=torch.float32), "v": torch.ones(3)}
        torch.save(state, tmp_path / "m", _use_new_zipfile_serialization=name == "long")
    for words in (("ls", "--columns", "name,shape,dtype"), ("check",)):
        streamed = process(*words[:1], "-", *words[1:], stdin=(tmp_path / "m").read_bytes())
        with contextlib.chdir(tmp_path):
            filed = run(*words[:1], "m", *words[1:])
        assert streamed.stdout.decode() == filed.out.replace("\nm\t", "\n-\t")
        assert streamed.returncode == filed.code


# ----------------------------------------------------------------------------- files that shrink


class _Shrinking:
    """Cuts a file to `left` bytes right before the read of that number, by whichever call it is made."""

    def __init__(self, path: Path, number: int, left: int) -> None:
        self.path, self.number, self.left = path, number, left
        self.reads = 0
        self._pread, self._preadv = os.pread, os.preadv

    def _before(self, descriptor: int) -> None:
        if os.fstat(descriptor).st_ino != self.path.stat().st_ino:
            return
        if self.reads == self.number:
            os.truncate(self.path, self.left)
        self.reads += 1

    def pread(self, descriptor: int, *rest: Any) -> bytes:
        self._before(descriptor)
        return self._pread(descriptor, *rest)

    def preadv(self, descriptor: int, *rest: Any) -> int:
        self._before(descriptor)
        return self._preadv(descriptor, *rest)


@pytest.mark.parametrize("left", [0, 0.5, 0.9], ids=["to nothing", "to a half", "by a tenth"])
@pytest.mark.parametrize("name", hostile_damage.WHOLE)
def test_a_file_that_shrinks_while_it_is_read(name: str, left: float, run, tmp_path: Path, monkeypatch):
    """Whichever read it is cut before: an error or a finding, or what was asked for, where that was read before."""
    data = hostile_damage.WHOLE[name]()
    path = tmp_path / "m"
    monkeypatch.chdir(tmp_path)
    for command in ("show", "stats", "check"):
        path.write_bytes(data)
        whole = run(command, "m")
        for number in range(100):
            path.write_bytes(data)
            shrinking = _Shrinking(path, number, int(len(data) * left))
            with monkeypatch.context() as patch:
                patch.setattr(os, "pread", shrinking.pread)
                patch.setattr(os, "preadv", shrinking.preadv)
                done = run(command, "m")
            assert len(done.err.splitlines()) <= 3
            assert "Traceback" not in done.err
            assert done.code in ((0, 1, 2) if command == "check" else (0, 2))
            assert done.code != 2 or done.err.startswith("error: ")
            if shrinking.reads <= number:  # it was never cut
                assert done == whole
                break
        else:
            pytest.fail("more than a hundred reads")


@pytest.mark.parametrize("command", ["show", "check"])
def test_values_that_are_gone_are_missed(command: str, run, tmp_path: Path, monkeypatch):
    """A file that is cut between its header and its values is not shown as zeros, nor called whole."""
    monkeypatch.chdir(tmp_path)
    from paramctl import contents

    path = tmp_path / "m"
    path.write_bytes(ONE)
    before = contents.fill

    def cut(*arguments: Any) -> None:
        os.truncate(path, len(ONE) - 1)
        before(*arguments)

    monkeypatch.setattr(contents, "fill", cut)
    done = run(command, "m")
    said = "m: it ends before the bytes of a"
    if command == "show":
        assert (done.code, done.out, done.err) == (2, "", f"error: {said}\n")
    else:
        assert (done.code, done.err) == (1, "")
        assert f"m\terror\tunreadable\ta\t{said}" in done.out.splitlines()


@pytest.mark.parametrize("command", ["ls", "show", "stats", "check"])
def test_a_file_that_is_cut_by_somebody_else_all_the_time(command: str, tmp_path: Path):
    """A process of its own that reads while another cuts and fills the file ends by itself, and not by a signal."""
    path = tmp_path / "m"
    data = hostile_damage.whole_safetensors()
    path.write_bytes(data)
    stopped = threading.Event()

    def cut() -> None:
        with path.open("r+b", buffering=0) as file:
            while not stopped.is_set():
                os.ftruncate(file.fileno(), len(data) // 2)
                os.pwrite(file.fileno(), data, 0)

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        results = ended(tmp_path, commands=(command,) * 20)
    finally:
        stopped.set()
        thread.join()
    for _, code, _, err in results:
        assert code in (0, 1, 2)
        assert len(err.splitlines()) <= 3
