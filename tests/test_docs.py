"""The documents say what happens: every example in them is run, and compared with what is printed there."""

from __future__ import annotations

import doctest
import fcntl
import importlib.util
import io
import math
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from paramctl import cli
from program import MODELS, ROOT

README = (ROOT / "README.md").read_text("utf-8")
WIDTH = 100  # of the terminal that the README's examples are from
REAL = "mne-icalabel-0.10.0/mne_icalabel/iclabel/network/assets/ICLabelNet.pt"


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language: ```console is run with models/, ```shell-session with a real checkpoint."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def examples(language: str) -> Iterator[tuple[str, str]]:
    """Command lines, each with the output printed below it."""
    for block in blocks(language):
        for piece in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = piece.partition("\n")
            yield command, output


@pytest.fixture
def terminal(tmp_path, monkeypatch):
    """Run a command line in the shell, on a terminal without colour: what the terminal shows, and the exit status."""
    monkeypatch.chdir(tmp_path)
    shim = tmp_path / ".bin" / "paramctl"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m paramctl "$@"\n')
    shim.chmod(0o755)
    left_out = {"COLUMNS", "PARAMCTL_MODEL"}
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    environment |= {"PATH": f"{shim.parent}:{environment['PATH']}", "NO_COLOR": "1", "TERM": "dumb"}

    def _terminal(command: str) -> tuple[str, int]:
        if not re.search(r"[|>]", re.sub(r"'[^']*'", "", command)):
            return in_process(command, monkeypatch)  # torch is imported already
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, WIDTH, 0, 0))
        process = subprocess.Popen(
            ["sh", "-c", command], stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)
        shown = b""
        while chunk := _chunk(ours):
            shown += chunk
        os.close(ours)
        plain = re.sub(r"\x1b\[[\d;]*m", "", shown.decode().replace("\r\n", "\n"))  # an old jq knows no NO_COLOR
        return plain, process.wait(timeout=60)

    return _terminal


class Screen(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def in_process(command: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """What `paramctl …` shows on a terminal, stdout and stderr as they come, and the exit status."""
    program, *words = shlex.split(command)
    assert program == "paramctl"
    screen = Screen(io.BytesIO(), encoding="utf-8", newline="")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", screen)
        patch.setattr(sys, "stderr", screen)
        patch.setenv("COLUMNS", str(WIDTH))
        patch.setenv("NO_COLOR", "1")
        patch.setattr("paramctl.cli._progress._BEFORE", math.inf)  # on a slow machine too
        patch.setenv("TERM", "dumb")
        code = cli.run(words)
        screen.flush()
    return screen.buffer.getvalue().decode(), int(code)


def _chunk(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # Linux: the other end was closed
        return b""


def needs(command: str) -> None:
    """Skip where a program is not installed that the example pipes into."""
    for program in ("jq", "xargs"):
        if program in shlex.split(command) and not shutil.which(program):
            pytest.skip(f"{program} is not installed")


def test_the_readme_prints_what_its_commands_print(terminal, tmp_path):
    """Each example of the README with bundled models prints exactly what stands below it, in the README's order."""
    shutil.copytree(MODELS, tmp_path / "models")
    for command, expected in examples("console"):
        needs(command)
        shown, code = terminal(command)
        assert f"$ {command}\n{shown}" == f"$ {command}\n{expected}"
        differs = command.startswith("paramctl diff ") and "|" not in command
        assert code == (2 if expected.startswith("error: ") else 1 if differs else 0), command


@pytest.mark.corpus
def test_the_readme_is_right_about_the_real_checkpoint(terminal, tmp_path):
    """Each example of the README with a real checkpoint prints exactly what stands below it."""
    corpus = os.environ.get("PARAMCTL_CORPUS")
    if not corpus or not (Path(corpus) / REAL).is_file():
        pytest.skip("PARAMCTL_CORPUS names no folder with that file in it")
    shutil.copy(Path(corpus) / REAL, tmp_path)
    for command, expected in examples("shell-session"):
        needs(command)
        assert f"$ {command}\n{terminal(command)[0]}" == f"$ {command}\n{expected}"


def test_the_python_of_the_readme_works(run, tmp_path, monkeypatch):
    """The session in Python prints what the README prints, on the file that its shell examples leave."""
    shutil.copytree(MODELS, tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    for words in (
        ("init", "models/mlp.py", "--scheme", "xavier", "--bias", "zeros", "--seed", "0", "-o", "mlp.pt"),
        ("set", "mlp.pt", "0.weight[:] += 1", "0.weight[0, 0] = 42", "--in-place"),
    ):
        assert run(*words).code == 0
    session = doctest.DocTestParser().get_doctest("\n".join(blocks("pycon")), {}, "README", "README.md", 0)
    said: list[str] = []
    found = doctest.DocTestRunner(verbose=False).run(session, out=said.append)
    assert "".join(said) == ""
    assert found.attempted > 5


def help_examples() -> list[tuple[str, str]]:
    """Each command with each of the lines that its --help gives as examples."""
    found = []
    for name, module in cli.COMMANDS.items():
        lines = importlib.import_module(module).EXAMPLES.splitlines()
        found += [(name, line.strip()) for line in lines if line.startswith("  ")]
    return found


@pytest.mark.parametrize(("name", "line"), help_examples(), ids=[line for _, line in help_examples()])
def test_an_example_of_help_works_as_printed(name, line, terminal, run, tmp_path):
    """An example in --help is run as it stands, and ends with 0."""
    needs(line)
    shutil.copytree(MODELS, tmp_path / "models")
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    torch.save(model.state_dict(), "model.pt")
    torch.save(model.state_dict(), "mlp.pt")
    torch.save({"embed.weight": torch.ones(4, 2), "head.weight": torch.ones(4, 2)}, "lm.pt")
    torch.save(dict.fromkeys(("embed.weight", "head.weight"), torch.ones(4, 2)), "tied.pt")
    if "|" in line:
        shown, code = terminal(f"set -e; {line}")
        assert (code, shown.startswith("error")) == (0, False), shown
        assert shown
        return
    program, *words = shlex.split(line)
    assert (program, words[0]) == ("paramctl", name)
    result = run(*words)
    assert result.code == 0, result.err
    assert result.out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_documented(name):
    """A command has examples, a section in the reference and a row in the README."""
    assert [command for command, _ in help_examples()].count(name) >= 2
    assert f"\n## paramctl {name}\n" in (ROOT / "docs" / "commands.md").read_text("utf-8")
    assert f"\n| `{name}` |" in README


def test_the_reference_is_current():
    """docs/commands.md is what docs/reference.py would write, on any terminal; and a page that is not is told."""
    environment = os.environ | {"COLUMNS": "200", "FORCE_COLOR": "1", "PARAMCTL_MODEL": "no.pt"}
    words = [sys.executable, str(ROOT / "docs" / "reference.py"), "--check"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_reference_that_is_not_current_is_told(tmp_path, monkeypatch, capsys):
    """The check says in one line what to run, and ends with 1; nothing is written."""
    monkeypatch.setattr(os, "environ", dict(os.environ))  # the script sets its own width
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    reference.PAGE = tmp_path / "commands.md"
    assert reference.main(["--check"]) == 1
    assert capsys.readouterr() == ("", "docs/commands.md is not current: run `make docs`\n")
    assert not reference.PAGE.exists()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/README.md"])
def test_links_lead_somewhere(page):
    """Every relative link of a document names a file that is there."""
    text = (ROOT / page).read_text("utf-8")
    targets = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()] == []
