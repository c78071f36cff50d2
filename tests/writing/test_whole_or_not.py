"""A file appears whole or not at all: after an error, a full disk, or a signal the old one is there and nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import pty
import resource
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from paramctl.errors import FileError
from paramctl.formats import copying, whole

ROOT = Path(__file__).parent.parent.parent
PARAMCTL = f"{sys.executable} -m paramctl"


@pytest.fixture
def model(tmp_path):
    """A checkpoint in a folder of its own."""
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "m.pt"
    torch.save({"0.weight": torch.ones(64, 64), "1.weight": torch.ones(64, 64), "bias": torch.ones(3)}, path)
    return path


@contextlib.contextmanager
def untouched(*paths):
    """The block leaves these files, and the folders that they are in, as they were."""
    before = {path: path.read_bytes() for path in paths}
    beside = {folder: sorted(folder.iterdir()) for folder in {path.parent for path in paths}}
    yield
    assert {path: path.read_bytes() for path in paths} == before
    assert {folder: sorted(folder.iterdir()) for folder in beside} == beside


# ----------------------------------------------------------------------------- errors


def test_a_function_that_fails_in_the_middle(run, model, tmp_path):
    """An initializer that fails on the second tensor leaves no trace of the first."""
    (tmp_path / "own.py").write_text(
        "calls = []\ndef late(tensor):\n    tensor.zero_()\n    calls.append(1)\n    assert len(calls) < 2, 'late'\n"
    )
    with untouched(model):
        result = run("init", model, "--scheme", f"{tmp_path}/own.py:late", "--in-place")
    assert (result.code, result.out) == (2, "")
    where = "own.py, line 5, `assert len(calls) < 2, 'late'`"
    assert result.err == f"error: {tmp_path}/own.py: {where}: AssertionError: late\n"


@pytest.mark.parametrize("source", ["file", "definition"])
def test_what_cannot_be_written_to(run, model, tmp_path, source):
    """A folder, a missing folder, a file for a folder and a loop of links are each told, and nothing is left."""
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    (tmp_path / "file").write_text("")
    opened = model if source == "file" else "models/mlp.py"
    for target, why in (
        (tmp_path / "models", "a folder, and not a file"),
        (tmp_path / "nowhere" / "m.pt", f"cannot be written: there is no folder {tmp_path}/nowhere"),
        (tmp_path / "file" / "m.pt", "cannot be written: not a directory"),
        (tmp_path / "loop.pt", "cannot be written: too many levels of symbolic links"),
        (tmp_path / ("x" * 300), "cannot be written: file name too long"),
        ("/dev/full", "cannot be written: no space left on device"),
    ):
        with untouched(model):
            result = run("set", opened, "0.weight = 2", "-o", target)
        shown = str(target) if len(str(target)) < 240 else None
        assert result.code == 2
        assert shown is None or result.err == f"error: {target}: {why}\n"
        assert result.err.endswith(f": {why}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop.pt", "models"]


def test_long_names_are_written(run, model):
    """A name of the greatest length, in letters of several bytes, leaves room for the file beside it."""
    target = model.parent / ("模" * 83 + ".pt")
    assert run("set", model, "bias = 2", "-o", target).code == 0
    assert sorted(model.parent.iterdir()) == sorted([model, target])


def test_a_folder_that_is_read_only(run, model):
    """Where no file can be made, the old one stays."""
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    model.parent.chmod(0o555)
    try:
        with untouched(model):
            result = run("set", model, "bias = 2", "--in-place")
    finally:
        model.parent.chmod(0o755)
    assert result.err == f"error: {model}: cannot be written: permission denied\n"


@pytest.mark.parametrize("source", ["file", "definition"])
def test_a_disk_that_is_full(model, source):
    """A write that the system cuts off leaves the old file, and says why."""
    opened = model if source == "file" else ROOT / "models/gpt.py"

    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    words = ["set", opened, "* = 2" if source == "file" else "lm_head.weight = 2", "-o", model]
    with untouched(model):
        done = subprocess.run(
            [sys.executable, "-B", "-m", "paramctl", *map(str, words)],
            preexec_fn=small_files,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {model}: cannot be written: file too large\n"


def test_torch_that_is_interrupted(model, run, monkeypatch):
    """Ctrl-C while torch writes a definition is one, whatever torch makes of a file that has no end then."""

    def interrupted(*_):
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos")  # torch/serialization.py, _open_zipfile_writer_buffer.__exit__

    monkeypatch.setattr(torch, "save", interrupted)
    with untouched(model):
        done = run("set", ROOT / "models/gpt.py", "lm_head.weight = 2", "-o", model)
    assert (done.code, done.out, done.err) == (130, "", "")


def test_no_room_is_known_before(model):
    """A file that cannot fit is refused before a byte is written."""
    told = pytest.raises(FileError, match=r"needs 9,\d{3},.* bytes, and .* are free there")
    with untouched(model), told, whole.replacing(str(model), nbytes=9 * 10**18):
        pytest.fail("the block is not entered")


# ----------------------------------------------------------------------------- signals

SLOW = """
import time
def slow(tensor):
    tensor.zero_()
    print("drawing", flush=True)
    time.sleep(30)
"""


@pytest.mark.parametrize(
    ("number", "status", "target"),
    [
        (signal.SIGTERM, -signal.SIGTERM, "--in-place"),
        (signal.SIGTERM, -signal.SIGTERM, "-o new"),
        (signal.SIGTERM, -signal.SIGTERM, "-o -"),
        (signal.SIGHUP, -signal.SIGHUP, "--in-place"),
        (signal.SIGINT, 130, "-o new"),
    ],
)
def test_a_signal_in_the_middle(model, tmp_path, number, status, target):
    """A write that is ended leaves the old file and no litter, and ends as that signal ends a program: 143, 129, 130."""
    (tmp_path / "slow.py").write_text(SLOW)
    words = ["init", model, "--scheme", f"{tmp_path}/slow.py:slow"]
    words += [target] if target == "--in-place" else ["-o", target[3:].replace("new", str(model.parent / "new.pt"))]
    with untouched(model):
        started = subprocess.Popen(
            [sys.executable, "-B", "-m", "paramctl", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509 - below nohup it is not
        )
        assert started.stderr.readline() == b"drawing\n", "what the user's code prints goes to stderr"
        started.send_signal(number)
        out, err = started.communicate(timeout=30)
    assert (started.returncode, out, err) == (status, b"", b"")


def test_the_shell_sees_143(model, tmp_path):
    """In a shell, a write that was terminated has the status 143."""
    (tmp_path / "end.py").write_text("import os, signal\ndef end(tensor): os.kill(os.getpid(), signal.SIGTERM)\n")
    line = f"{PARAMCTL} init {model} --scheme {tmp_path}/end.py:end --in-place; echo $?"
    with untouched(model):
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.strip().endswith("143")


def test_handlers_are_given_back(tmp_path):
    """After a write the program's signals are handled as before; a handler of its own is left in charge throughout."""
    heard = []
    before = signal.getsignal(signal.SIGTERM)
    try:
        for handler in (signal.SIG_DFL, signal.SIG_IGN, lambda number, _: heard.append(number)):
            signal.signal(signal.SIGTERM, handler)
            with whole.replacing(str(tmp_path / "x")) as file:
                file.write(b"whole")
                if handler != signal.SIG_DFL:
                    signal.raise_signal(signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is handler
            with pytest.raises(KeyError), whole.replacing(str(tmp_path / "x")) as file:
                raise KeyError
            assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert (tmp_path / "x").read_bytes() == b"whole"


def test_a_thread_may_write(tmp_path):
    """Outside of the main thread, where signals cannot be handled, a file is written as well."""

    def write():
        with whole.replacing(str(tmp_path / "x")) as file:
            file.write(b"whole")

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert (tmp_path / "x").read_bytes() == b"whole"


def test_readers_see_one_file_or_the_other(tmp_path):
    """While a file is written its old content is there; a reader that has it open keeps it."""
    (tmp_path / "x").write_bytes(b"old")
    with (tmp_path / "x").open("rb") as reader:
        with whole.replacing(str(tmp_path / "x")) as file:
            file.write(b"new and longer")
            file.flush()
            assert (tmp_path / "x").read_bytes() == b"old"
        assert (tmp_path / "x").read_bytes() == b"new and longer"
        assert reader.read() == b"old"


# ----------------------------------------------------------------------------- copies


def break_kernel(monkeypatch, broken):
    """Let the kernel copy nothing, or one megabyte: some filesystems stop before the end."""
    real = os.copy_file_range
    if "copy_file_range" in broken:
        monkeypatch.delattr(os, "copy_file_range")
    if "half" in broken:
        monkeypatch.setattr(
            os, "copy_file_range", lambda s, t, n, a, b: real(s, t, min(n, 1 << 20), a, b) if a < 1 << 20 else 0
        )


@pytest.mark.parametrize("broken", [(), ("_shared",), ("_shared", "copy_file_range"), ("_shared", "half")])
def test_every_way_to_copy_copies(tmp_path, monkeypatch, broken):
    """Shared, copied by the kernel, through memory, or by the kernel in part: all the bytes, with edits on top."""
    data = os.urandom(3 << 20)
    (tmp_path / "old").write_bytes(data)
    if "_shared" in broken:
        monkeypatch.setattr(copying, "_shared", lambda *_: False)
    break_kernel(monkeypatch, broken)
    with whole.replacing(str(tmp_path / "new")) as file:
        copying.copy(tmp_path / "old", file)
        copying.write_at(file.fileno(), 100, b"edited")
        file.seek(98)
        assert file.read(10) == data[98:100] + b"edited" + data[106:108]
    assert (tmp_path / "new").read_bytes() == data[:100] + b"edited" + data[106:]


@pytest.mark.parametrize("broken", ["", "copy_file_range", "half"])
def test_every_way_to_copy_a_tensor_copies(run, tmp_path, monkeypatch, broken):
    """By the kernel, through memory, or by the kernel in part: a tensor is what it was, and so is the one behind it."""
    tensors = {"a": torch.randn(3 << 18), "b": torch.randn(3 << 18), "c": torch.randn(2)}
    torch.save(tensors, tmp_path / "m.pt")
    break_kernel(monkeypatch, (broken,))
    assert run("convert", tmp_path / "m.pt", tmp_path / "m.safetensors").code == 0
    found = load_file(tmp_path / "m.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_block_that_fails_ends_the_copying(tmp_path, monkeypatch):
    """What is computed beside a copy fails: the copy goes no further than its step, and nothing is left of it."""
    (tmp_path / "old").write_bytes(bytes(1 << 20))
    monkeypatch.setattr(copying, "_shared", lambda *_: False)
    monkeypatch.setattr(copying, "_STEP_NBYTES", 1 << 10)
    begun, failed, steps = threading.Event(), threading.Event(), []

    def copied(*_, nbytes, at, **__):
        steps.append(at)
        begun.set()
        failed.wait(10)
        return nbytes

    monkeypatch.setattr(copying, "copy_range", copied)

    def edit():
        with whole.replacing(str(tmp_path / "new")) as file, copying.copying(tmp_path / "old", file):
            begun.wait(10)
            threading.Timer(0.1, failed.set).start()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        edit()
    assert (steps, sorted(path.name for path in tmp_path.iterdir())) == ([0], ["old"])


def test_a_copy_that_fails_is_the_error(run, tmp_path, monkeypatch):
    """What is computed beside a copy succeeds, and the copy does not: the error is the copy's, and nothing is left."""
    torch.save({"a": torch.zeros(2)}, tmp_path / "m.pt")
    monkeypatch.setattr(copying, "_shared", lambda *_: False)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(copying, "copy_range", full)
    done = run("set", tmp_path / "m.pt", "a = 1", "-o", tmp_path / "new.pt")
    assert (done.code, done.err) == (2, f"error: {tmp_path}/new.pt: cannot be written: no space left on device\n")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


@pytest.mark.parametrize("number", range(3))
def test_a_source_that_is_cut_short_is_the_error(run, tmp_path, monkeypatch, number):
    """Where it ends meanwhile, at the first step or a later one: nothing is written, and the name is the source's."""
    torch.save({"a": torch.zeros(5000)}, tmp_path / "m.pt")
    monkeypatch.setattr(copying, "_shared", lambda *_: False)
    monkeypatch.setattr(copying, "_STEP_NBYTES", 1 << 13)
    real = copying.copy_range
    monkeypatch.setattr(copying, "copy_range", lambda *args, **more: real(*args, **more) - (more["at"] == number << 13))
    done = run("set", tmp_path / "m.pt", "a = 1", "-o", tmp_path / "new.pt")
    said = f"error: {tmp_path}/m.pt: the file became shorter while it was read\n"
    assert (done.code, done.err, [path.name for path in tmp_path.iterdir()]) == (2, said, ["m.pt"])


@pytest.mark.parametrize("words", [["m.pt", "--in-place"], ["other.pt", "-o", "m.pt"]], ids=" ".join)
def test_the_old_file_leaves_memory(run, tmp_path, monkeypatch, words):
    """A file of 48 MiB is edited where another is: of what that one held in memory, less than a step is left."""
    monkeypatch.chdir(tmp_path)
    for name in ("m.pt", "other.pt"):
        torch.save({"a": torch.ones(12 << 20)}, name)
    monkeypatch.setattr(copying, "_shared", lambda *_: False)
    with Path("m.pt").open("rb") as old:
        os.fsync(old.fileno())
        if resident_nbytes(old) < 48 << 20:
            pytest.skip("the system had no room for the file itself")
        done = run("set", words[0], "a[0] = 2", *words[1:])
        assert (done.code, done.err) == (0, "")
        left = resident_nbytes(old)
        os.posix_fadvise(old.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if resident_nbytes(old):
            pytest.skip("nothing leaves memory on this filesystem")
    assert left < 16 << 20
    assert torch.load("m.pt")["a"][:2].tolist() == [2, 1]


def resident_nbytes(file):
    """How much of a file is in memory: mincore(2) of a mapping of it."""
    nbytes = os.fstat(file.fileno()).st_size
    with mmap.mmap(file.fileno(), nbytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        pages = (ctypes.c_ubyte * -(-nbytes // mmap.PAGESIZE))()
        begin = ctypes.c_char.from_buffer(mapped)
        try:
            assert ctypes.CDLL(None).mincore(ctypes.byref(begin), ctypes.c_size_t(nbytes), pages) == 0
        finally:
            del begin
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


def test_another_filesystem(run, model):
    """A file is edited from one filesystem into another."""
    shm = Path("/dev/shm")  # noqa: S108
    if not shm.is_dir() or shm.stat().st_dev == model.stat().st_dev or not os.access(shm, os.W_OK):
        pytest.skip("no other filesystem here")
    target = shm / f"paramctl-test-{os.getpid()}.pt"
    try:
        assert run("set", model, "bias = 2", "-o", target).code == 0
        assert torch.load(target)["bias"].tolist() == [2, 2, 2]
    finally:
        target.unlink(missing_ok=True)


# ----------------------------------------------------------------------------- streams


def shell(line, **options):
    return subprocess.run(["sh", "-c", line], capture_output=True, check=False, timeout=60, cwd=ROOT, **options)


def test_a_pipeline_keeps_ties(run, tmp_path):
    """`init … -o - | ties -`: a checkpoint goes through a pipe whole, and its ties with it."""
    shared = torch.ones(4, 4)
    torch.save({"0.weight": shared, "1.weight": shared, "2.weight": torch.ones(2, 2)}, tmp_path / "m.pt")
    words = f"init {tmp_path}/m.pt --scheme xavier --layer 0 --seed 0"
    done = shell(f"{PARAMCTL} {words} -o - | tee {tmp_path}/piped.pt | {PARAMCTL} ties - -f jsonl")
    assert (done.returncode, done.stderr) == (0, b"")
    assert [json.loads(line)["names"] for line in done.stdout.splitlines()] == [["0.weight", "1.weight"]]
    run(*words.split(), "-o", tmp_path / "direct.pt")
    assert (tmp_path / "piped.pt").read_bytes() == (tmp_path / "direct.pt").read_bytes(), "as the file would be"
    again = f"{PARAMCTL} set - '2.weight = 1' -o -"
    assert shell(f"{again} < {tmp_path}/direct.pt | {again}").stdout == (tmp_path / "direct.pt").read_bytes()


def test_a_definition_into_a_pipe():
    """A definition is written to standard output as a torch zip."""
    done = shell(
        f"{PARAMCTL} init models/tied.py --scheme xavier -o - --seed 0 | {PARAMCTL} ties - -f tsv --no-header | wc -l"
    )
    assert (done.stdout.strip(), done.stderr) == (b"2", b"")


def test_no_binary_to_a_terminal(model):
    """`-o -` on a terminal is refused in words, and not a byte of the file is printed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "paramctl", "set", str(model), "bias = 2", "-o", "-"])  # noqa: S606
    out = b""
    with contextlib.suppress(OSError):
        while select.select([terminal], [], [], 30)[0] and (piece := os.read(terminal, 1000)):
            out += piece
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 2
    assert out.replace(b"\r\n", b"\n").decode() == (
        "error: -o - would write a binary file to the terminal\n\nhint: pipe it on, or name a file with -o\n"
    )


def test_a_pipe_that_closes(model):
    """A reader that has enough ends the writing with 141 and no word."""
    done = shell(f"({PARAMCTL} init models/gpt.py --scheme zeros -o - --seed 0; echo $? >&2) | head -c 10 | wc -c")
    assert (done.stdout.strip(), done.stderr.strip()) == (b"10", b"141")


def test_no_file_to_write_to(run, model, tmp_path):
    """`-o /dev/null` swallows the file and shows what was done; a named pipe is written to and stays one."""
    result = run("set", model, "bias = 2", "-o", "/dev/null", "-f", "names")
    assert (result.code, result.out) == (0, "bias\n")
    assert Path("/dev/null").is_char_device()
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE)
    assert run("set", model, "bias = 2", "-o", tmp_path / "pipe").code == 0
    out, _ = reader.communicate(timeout=30)
    assert (tmp_path / "pipe").is_fifo()
    run("set", model, "bias = 2", "--in-place")
    assert out == model.read_bytes()


def test_standard_output_that_is_full(model):
    """A stream that cannot take the file is told as such."""
    done = shell(f"{PARAMCTL} set {model} 'bias = 2' -o - > /dev/full")
    assert done.returncode == 2
    assert done.stderr == b"error: standard output: cannot be written: no space left on device\n"


# ----------------------------------------------------------------------------- memory

MEASURE = """
import resource, sys
from paramctl import cli
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = cli.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    "words",
    [
        ["set", "*.weight *= 2", "*.weight += 1"],
        ["set", "*.weight = 1.weight"],
        ["init", "--scheme", "ones", "--seed", "0"],
    ],
    ids=" ".join,
)
def test_memory_is_that_of_the_largest_tensor(tmp_path, words):
    """A file of 100 MB in tensors of 5 MB is edited in 60 MB beyond what importing takes."""
    path = tmp_path / "m.pt"
    torch.save({f"{i}.weight": torch.zeros(1_250_000) for i in range(20)}, path)
    imports = f"import numpy, ml_dtypes, paramctl.ops.set{', torch, paramctl.ops.init' if words[0] == 'init' else ''}\n"
    script = [sys.executable, "-c", imports + MEASURE, words[0], path, *words[1:], "-o", tmp_path / "new.pt"]
    done = subprocess.run([*map(str, script)], capture_output=True, text=True, check=False, timeout=120)
    (tmp_path / "new.pt").unlink()
    assert done.returncode == 0, done.stderr
    assert int(done.stderr) < 60_000, "KiB"
