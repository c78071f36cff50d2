"""On a terminal: colour, the terminal's width, and tables; in a pipe none of these."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from cli_files import safetensors

ESCAPE = "\x1b"


@pytest.fixture
def terminal(tmp_path):
    """Run a command on a pseudo-terminal of so many columns: what it shows there, with its line ends."""

    def _terminal(*words: str, columns: int = 80, **env: str) -> str:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        dropped = {"PARAMCTL_MODEL", "NO_COLOR", "COLUMNS"}
        kept = {key: value for key, value in os.environ.items() if key not in dropped} | {"TERM": "xterm"}
        process = subprocess.Popen(
            [sys.executable, "-m", "paramctl", *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=tmp_path,
            env=kept | env,
        )
        os.close(theirs)
        shown = b""
        while True:
            try:
                chunk = os.read(ours, 1 << 16)
            except OSError:  # Linux: the other end was closed
                break
            if not chunk:
                break
            shown += chunk
        os.close(ours)
        assert process.wait(timeout=60) in (0, 2)
        return shown.decode().replace("\r\n", "\n")

    return _terminal


@pytest.fixture
def model(tmp_path):
    names = {f"encoder.layers.{i}.attention.self.query.weight": (8, 4) for i in (0, 10)}
    return safetensors(tmp_path / "m.safetensors", {**names, "classifier.dense.output_projection.bias": (2,)})


@pytest.mark.parametrize("words", [("ls",), ("tree",), ("info",), ("show", "--full"), ("ties",)])
def test_a_terminal_gets_colour(words, terminal, model):
    """Every command that looks is in colour on a terminal."""
    assert ESCAPE in terminal(words[0], "m.safetensors", *words[1:])


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "dumb"])
def test_a_terminal_may_refuse_colour(env, terminal, model):
    """NO_COLOR and a dumb terminal get the same text, plain."""
    plain = terminal("tree", "m.safetensors", **env)
    assert ESCAPE not in plain
    assert plain == re.sub(r"\x1b\[[\d;]*m", "", terminal("tree", "m.safetensors"))


def test_color_never_and_always_win(terminal, model):
    """--color never is plain on a terminal; --color always is in colour with NO_COLOR."""
    assert ESCAPE not in terminal("tree", "m.safetensors", "--color", "never")
    assert ESCAPE in terminal("tree", "m.safetensors", "--color", "always", NO_COLOR="1")


@pytest.mark.parametrize("style", ["tree", "table", "tsv", "json", "jsonl", "markdown", "names"])
def test_a_pipe_gets_no_colour(style, run, model):
    """In a pipe no format is in colour, and --color always makes only the drawn ones so."""
    words = ("tree" if style == "tree" else "ls", model, "-f", style)
    assert ESCAPE not in run(*words).out
    drawn = style in {"tree", "table"}
    assert (ESCAPE in run(*words, "--color", "always").out) == drawn


@pytest.mark.parametrize("command", ["ls", "tree", "ties", "info", "show"])
@pytest.mark.parametrize("columns", [40, 80])
def test_the_width_of_a_terminal_is_kept(command, columns, terminal, model):
    """No line is wider than the terminal, and a name is folded, not cut."""
    shown = terminal(command, "m.safetensors", columns=columns, NO_COLOR="1")
    assert max(map(len, shown.splitlines())) <= columns
    if command == "show":
        assert "classifier.dense.output_projection.bias" in re.sub(r"\s", "", shown)


def test_columns_wins_over_the_terminal(terminal, model):
    """COLUMNS is believed before the terminal is asked, on a terminal."""
    narrow = terminal("ls", "m.safetensors", columns=200, COLUMNS="40", NO_COLOR="1")
    assert max(map(len, narrow.splitlines())) <= 40
    assert narrow == terminal("ls", "m.safetensors", columns=40, NO_COLOR="1")
    assert terminal("ls", "m.safetensors", COLUMNS="x", NO_COLOR="1") == terminal("ls", "m.safetensors", NO_COLOR="1")


@pytest.mark.parametrize("words", [("ls",), ("tree",), ("ls", "-f", "table"), ("info", "-f", "table")])
def test_a_pipe_has_no_width(words, run, model, monkeypatch):
    """COLUMNS changes nothing in a pipe, where nothing is cut."""
    wide = run(words[0], model, *words[1:])
    monkeypatch.setenv("COLUMNS", "20")
    assert run(words[0], model, *words[1:]) == wide


def test_a_terminal_gets_a_table_and_a_pipe_rows(terminal, run, model):
    """Without --format: a table of dressed values on a terminal, raw values with their keys in a pipe."""
    assert "8×4" in terminal("ls", "m.safetensors", NO_COLOR="1")
    first, second = run("ls", model).out.splitlines()[:2]
    assert first.split("\t")[:2] == ["name", "shape"]
    assert second.split("\t")[:2] == ["classifier.dense.output_projection.bias", "[2]"]


def test_a_terminal_is_not_written_a_file(terminal, model):
    """`-o -` to a terminal is refused, and so is reading one."""
    shown = terminal("set", "m.safetensors", "classifier.dense.output_projection.bias = 1", "-o", "-")
    assert shown == (
        "error: -o - would write a binary file to the terminal\n\nhint: pipe it on, or name a file with -o\n"
    )
    assert terminal("ls", "-").startswith("error: MODEL is -, and standard input is a terminal\n")
    assert terminal("ls").startswith("error: no MODEL was given\n")


def test_many_values_are_cut_on_a_terminal_only(terminal, run, tmp_path):
    """A tensor of a thousand elements and more is summarised on a terminal, and whole with --full and in a pipe."""
    safetensors(tmp_path / "m.safetensors", {"w": (1500,)})
    assert "..." in terminal("show", "m.safetensors", NO_COLOR="1")
    assert terminal("show", "m.safetensors", "--full", NO_COLOR="1").count("0.") == 1500
    assert run("show", tmp_path / "m.safetensors", "-f", "json").rows[0]["value"] == [0.0] * 1500
