"""What a shell is offered: commands, options, files, and the names inside a checkpoint."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch
from cli_files import mlp, safetensors

from program import MODELS


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(MODELS, tmp_path / "models", ignore=shutil.ignore_patterns("__pycache__"))
    torch.save(mlp().state_dict(), tmp_path / "model.pt")
    os.mkfifo(tmp_path / "pipe")
    safetensors(tmp_path / "odd.safetensors", {"a\x1b[2J": (1,), "block 1.w": (1,), "b\nc": (1,)})
    return tmp_path


@pytest.fixture
def complete(folder):
    """What bash is offered for the last word of a line."""

    def _complete(line: str) -> list[str]:
        words = {"_PARAMCTL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        done = subprocess.run(
            [sys.executable, "-c", "from paramctl.cli import main; main()"],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            env=os.environ | words,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return [line for line in done.stdout.split("\n") if line]

    return _complete


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        (
            "paramctl ",
            [
                *("tree", "ls", "info", "show", "stats", "ties", "diff", "init", "set"),
                *("convert", "tie", "untie", "check", "match", "history", "grad", "watch"),
            ],
        ),
        ("paramctl s", ["show", "stats", "set"]),
        ("paramctl ls --fo", ["--format"]),
        ("paramctl match mod", ["model.pt", "models/"]),
        ("paramctl match model.pt models/m", ["models/mlp.py"]),
        ("paramctl history model.pt mod", ["model.pt", "models/"]),
        ("paramctl match --emit", ["--emit-rename"]),
        ("paramctl ls mod", ["model.pt", "models/"]),
        ("paramctl diff model.pt mod", ["model.pt", "models/"]),
        ("paramctl diff model.pt model.pt 2.b", ["2.bias"]),
        ("paramctl info models/m", ["models/mlp.py"]),
        ("paramctl ls model.pt 0", ["0", "0.bias", "0.weight"]),
        ("paramctl show -f json model.pt 2.b", ["2.bias"]),
        ("paramctl set model.pt 2.w", ["2.weight"]),
        ("paramctl ls model.pt 0.bias 2.", ["2.bias", "2.weight"]),
        ("paramctl ls model.pt --sort st", ["stride", "storage", "storage_offset"]),
        ("paramctl ls --columns name,d", ["name,dtype", "name,digest"]),
        ("paramctl grad --columns use,g", ["use,grad_l2"]),
        ("paramctl ls no.pt 0", []),
        ("paramctl ls models/mlp.py 0", []),  # a definition is not run for this
        ("paramctl ls torchvision.models:resnet18 0", []),
        ("paramctl ls pipe 0", []),  # nor is a pipe waited for
        ("paramctl ls - 0", []),
        ("paramctl ls odd.safetensors bl", ["block 1", "block 1.w"]),
        ("paramctl ls odd.safetensors a", [r"a\x1b[2J"]),
        ("paramctl ls odd.safetensors b", ["b\\nc", "block 1", "block 1.w"]),
    ],
)
def test_a_word_is_completed(line, offered, complete):
    """Commands, options, files and names that begin so; names as they are shown, harmless to the terminal."""
    assert complete(line) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_be_taught(shell, process):
    """--show-completion prints a script for the shell, which calls paramctl."""
    done = process("--show-completion", shell, env={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert done.returncode == 0
    assert b"_PARAMCTL_COMPLETE=complete_" + shell.encode() in done.stdout


def test_bash_completes_a_word(folder):
    """Bash itself, taught by the script, completes the name of a parameter."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    (folder / "bin").mkdir()
    (folder / "bin" / "paramctl").write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -c "from paramctl.cli import main; main()" "$@"\n'
    )
    (folder / "bin" / "paramctl").chmod(0o755)
    script = (
        'eval "$(_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION=1 paramctl --show-completion bash)"; '
        'COMP_WORDS=(paramctl ls model.pt 2.w); COMP_CWORD=3; _paramctl_completion paramctl; echo "${COMPREPLY[@]}"'
    )
    environment = os.environ | {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [bash, "-c", script], capture_output=True, text=True, check=False, cwd=folder, env=environment, timeout=60
    )
    assert (done.stdout, done.stderr) == ("2.weight\n", "")
