"""Standard input, standard output, standard error and signals: a command behaves in a pipeline."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from cli_files import mlp, safetensors

PARAMCTL = f"{shlex.quote(sys.executable)} -m paramctl"
NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.fixture
def shell(tmp_path):
    """Run a line in a shell that fails as its first failing command does; `paramctl` is a word of it."""

    def _shell(line: str, **env: str) -> subprocess.CompletedProcess[bytes]:
        kept = {key: value for key, value in os.environ.items() if key != "PARAMCTL_MODEL"}
        text = f'set -o pipefail; paramctl() {{ {PARAMCTL} "$@"; }}; {line}'
        return subprocess.run(
            ["bash", "-c", text],
            capture_output=True,
            check=False,
            cwd=tmp_path,
            env=kept | env,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )

    return _shell


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(mlp().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A file of 30,000 names: more output than a pipe holds."""
    folder = tmp_path_factory.mktemp("big")
    return safetensors(folder / "big.safetensors", {f"layers.{i}.weight": (1,) for i in range(30_000)})


# ---------------------------------------------------------------------- standard input


@pytest.mark.parametrize(
    "line",
    [
        "paramctl ls -f names model.pt",
        "paramctl ls -f names - < model.pt",
        "paramctl ls -f names < model.pt",
        "cat model.pt | paramctl ls -f names -",
        "cat model.pt | paramctl ls -f names",
        "paramctl ls -f names <(cat model.pt)",
        "paramctl ls -f names /dev/stdin < model.pt",
        "PARAMCTL_MODEL=model.pt paramctl ls -f names",
        "PARAMCTL_MODEL=no.pt paramctl ls -f names model.pt",
    ],
)
def test_a_model_comes_from_anywhere(line, shell, model):
    """A file, a redirection, a pipe, a dash, a process substitution and the environment give the same."""
    done = shell(line)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().split() == NAMES


def test_patterns_go_to_a_model_that_is_piped(shell, model):
    """With a model on standard input every word is a pattern, as it is after a dash."""
    assert shell("cat model.pt | paramctl ls -f names '*.bias'").stdout == b"0.bias\n2.bias\n"
    assert shell("cat model.pt | paramctl ls -f names - '*.bias'").stdout == b"0.bias\n2.bias\n"


def test_the_model_of_a_project_is_taken(run, tmp_path, model, monkeypatch):
    """[tool.paramctl] model of the nearest pyproject.toml is the MODEL, relative to that file; the environment wins."""
    (tmp_path / "pyproject.toml").write_text('[tool.paramctl]\nmodel = "model.pt"\n')
    (tmp_path / "src").mkdir()
    monkeypatch.chdir(tmp_path / "src")
    done = run("ls", "*.bias", "-f", "json")
    assert done.json["source"] == f"..{os.sep}model.pt"
    assert [row["name"] for row in done.rows] == ["0.bias", "2.bias"]
    monkeypatch.setenv("PARAMCTL_MODEL", "no.pt")
    assert run("ls").err == "error: no.pt: no such file\n"


def test_a_project_that_cannot_be_read_is_named(run, tmp_path, monkeypatch):
    """A pyproject.toml that is no TOML is an error that names it."""
    (tmp_path / "pyproject.toml").write_text("[tool\n")
    monkeypatch.chdir(tmp_path)
    done = run("ls")
    assert (done.code, done.out) == (2, "")
    assert "pyproject.toml: cannot be read: " in done.err
    assert len(done.err.splitlines()) <= 3


def test_nothing_on_standard_input_is_no_model(shell, model):
    """An empty pipe is an empty file, and no standard input is no MODEL."""
    done = shell("printf '' | paramctl ls")
    assert (done.returncode, done.stderr) == (2, b"error: -: the file is empty\n")
    done = shell("paramctl ls <&-")
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, b"error: no MODEL was given")


def test_a_change_goes_through_a_pipe(shell, model):
    """`-o -` writes the model to standard output, and nothing else."""
    done = shell(
        "paramctl set model.pt '2.bias = 7' -o - | paramctl set - '2.bias += 1' -o - | paramctl show - 2.bias -f json"
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["rows"][0]["value"] == [8.0]


def test_ties_go_through_a_pipe(shell, tmp_path):
    """What `init -o -` writes is tied as it was."""
    model = mlp()
    states = model.state_dict()
    torch.save({**states, "head.weight": states["0.weight"]}, tmp_path / "tied.pt")
    done = shell("paramctl init tied.pt --scheme xavier --layer 0 --seed 0 -o - | paramctl ties - -f json")
    assert (done.returncode, done.stderr) == (0, b"")
    assert [row["names"] for row in json.loads(done.stdout)["rows"]] == [["0.weight", "head.weight"]]


def test_in_place_is_refused_for_standard_input(shell, model):
    """There is no place to write standard input back to."""
    done = shell("paramctl set - '2.bias = 7' --in-place < model.pt")
    assert (done.returncode, done.stdout) == (2, b"")
    assert (
        done.stderr
        == b"error: --in-place, and the model is standard input\n\nhint: -o - writes it to standard output\n"
    )


# ---------------------------------------------------------------------- standard output


@pytest.mark.parametrize("command", ["ls", "tree --no-fold", "ls -f json"])
def test_a_closed_pipe_is_silent(command, shell, big):
    """`| head` ends the command with 141 and no word."""
    done = shell(f"paramctl {command} {shlex.quote(str(big))} | head -n 1")
    assert (done.returncode, done.stderr) == (141, b"")
    assert done.stdout.count(b"\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")  # noqa: PTH110
@pytest.mark.parametrize("line", ["ls {big}", "ls model.pt", "--help", "info model.pt"])
def test_a_full_disk_is_one_line(line, shell, model, big):
    """Output that cannot be written is an error, not a traceback, and not a success."""
    done = shell(f"paramctl {line.format(big=shlex.quote(str(big)))} > /dev/full")
    assert done.returncode == 2
    assert done.stderr == b"error: standard output: no space left on device\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")  # noqa: PTH110
def test_a_model_that_cannot_be_written_to_a_pipe_is_one_line(shell, model):
    """`-o -` onto a full disk is an error, not a traceback, and not a success."""
    done = shell("paramctl set model.pt '2.bias = 7' -o - > /dev/full")
    assert (done.returncode, done.stderr) == (
        2,
        b"error: standard output: cannot be written: no space left on device\n",
    )


def test_closed_streams_are_no_tracebacks(shell, model):
    """Without standard output a command fails in one line; without standard error it works."""
    done = shell("paramctl ls model.pt >&-")
    assert (done.returncode, done.stderr) == (2, b"error: standard output is closed\n")
    done = shell("paramctl ls model.pt -f names 2>&-")
    assert (done.returncode, done.stdout.decode().split()) == (0, NAMES)
    assert shell("paramctl ls no.pt 2>&-").returncode == 2


def test_an_interrupt_ends_a_command_with_130(tmp_path, process):
    """Ctrl-C while a pipe is awaited leaves no traceback."""
    words = [sys.executable, "-m", "paramctl", "ls", "-"]
    running = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    running.stdin.write(b"x" * (1 << 20))  # returns when it is read: the command is at work
    time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert (running.returncode, out, err) == (130, b"", b"")


# ---------------------------------------------------------------------- encodings


C_LOCALE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
ASCII = {"PYTHONIOENCODING": "ascii"}


@pytest.mark.parametrize(
    ("command", "env"),
    [
        ("tree", C_LOCALE),
        ("tree", ASCII),
        ("ls -f table", C_LOCALE),
        ("ls", C_LOCALE),
        ("ls -f json", C_LOCALE),
        ("ls -f markdown", ASCII),
        ("show -f table", ASCII),
    ],
)
def test_a_terminal_without_unicode_gets_ascii(command, env, shell, tmp_path):
    """Nothing fails in a C locale: guides are ASCII, and a name with other letters is spelled out."""
    safetensors(tmp_path / "m.safetensors", {"größe": (2, 3), "plain": (1,)})
    done = shell(f"paramctl {command} m.safetensors", **env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    assert rb"gr\xf6\xdfe" in done.stdout or rb"gr\u00f6\u00dfe" in done.stdout


def test_an_error_in_a_c_locale_is_an_error(shell, tmp_path):
    """An error text with other letters is still shown, in ASCII."""
    safetensors(tmp_path / "m.safetensors", {"größe": (2, 3)})
    done = shell("paramctl ls m.safetensors grösse", **C_LOCALE)
    assert done.returncode == 2
    assert done.stderr.isascii()
    assert done.stderr.startswith(b"error: m.safetensors: no parameter and no module gr")
    assert b"Traceback" not in done.stderr


def test_help_needs_no_unicode(shell):
    """--help is printed in a C locale too."""
    done = shell("paramctl init --help", **C_LOCALE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"Usage: paramctl init")


# ---------------------------------------------------------------------- the program itself


def test_no_words_at_all_is_help(run):
    """`paramctl` alone prints what `paramctl --help` does."""
    assert run() == run("--help")
    assert run().out.startswith("Usage: paramctl [OPTIONS] COMMAND [ARGS]...")


def test_the_version_is_told(run):
    """--version prints the name and the version."""
    program, version = run("--version").out.split()
    assert program == "paramctl"
    assert version[0].isdigit()


INTERRUPTED = """
import os, signal, time

class Deleted:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

Deleted()
time.sleep(20)
"""


def test_an_interrupt_where_nothing_can_be_raised_is_not_lost(tmp_path, process):
    """Ctrl-C that comes while an object is deleted ends the command as at any other moment, and without a traceback."""
    (tmp_path / "net.py").write_text(INTERRUPTED)
    done = process("ls", tmp_path / "net.py")
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


# ---------------------------------------------------------------------- the end


ENDS = """
import atexit, threading, time
from torch import nn

class Logger:
    def __init__(self):
        self.myself = self
        self.file = open("in-a-circle.txt", "w")
        self.file.write("flushed")

class Ends:
    def __del__(self, open=open):
        open("deleted.txt", "w").write("ended")

left_open = open("left-open.txt", "w")
left_open.write("written")
logger, ends = Logger(), Ends()
atexit.register(lambda: open("at-exit.txt", "w").write("called"))
threading.Thread(target=lambda: (time.sleep(0.2), open("thread.txt", "w").write("ended"))).start()
net = nn.Linear(2, 1)
"""


def test_a_definition_ends_as_python_would_end_it(shell, tmp_path):
    """Files that a definition leaves open are flushed, what it registered is called, and objects and threads end."""
    (tmp_path / "net.py").write_text(ENDS)
    done = shell("paramctl ls -f names net.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"weight\nbias\n", b"")
    said = {path.name: path.read_text() for path in tmp_path.glob("*.txt")}
    assert said == {
        "left-open.txt": "written",
        "in-a-circle.txt": "flushed",
        "deleted.txt": "ended",
        "at-exit.txt": "called",
        "thread.txt": "ended",
    }


def test_a_command_ends_with_its_status(shell, model):
    """The process ends without what the interpreter does last, and output and status are the command's own."""
    (model.parent / "sitecustomize.py").write_text(
        "import os\nclass Last:\n    def __del__(self, write=os.write): write(2, b'torn down')\nlast = Last()\n"
    )
    path = os.pathsep.join(filter(None, [str(model.parent), os.environ.get("PYTHONPATH")]))
    for line, status in (("ls -f names model.pt", 0), ("diff model.pt model.pt", 0), ("ls none.pt", 2)):
        done = shell(f"paramctl {line}", PYTHONPATH=path)
        assert (done.returncode, b"torn down" in done.stderr) == (status, False)
    python = subprocess.run([sys.executable, "-c", ""], capture_output=True, check=True, env={"PYTHONPATH": path})
    assert python.stderr == b"torn down"
