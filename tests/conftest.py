"""What the tests share."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paramctl import cli
from program import ROOT, Result


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    """Run the whole program in this process, as in a pipe: `run("ls", path, "-f", "json") -> Result`."""
    monkeypatch.delenv("PARAMCTL_MODEL", raising=False)

    def _run(*argv: object) -> Result:
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
        err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", newline="")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            code = cli.run([str(word) for word in argv])
            out.flush()
            err.flush()
        errors = "surrogateescape"
        return Result(int(code), out.buffer.getvalue().decode("utf-8", errors), err.buffer.getvalue().decode("utf-8"))

    return _run


@pytest.fixture
def process():
    """Run the whole program in a process of its own: `process("ls", "-", stdin=data) -> CompletedProcess` of bytes."""

    def _process(*argv: object, stdin: bytes | None = None, env: dict[str, str] | None = None, cwd: Path = ROOT):
        environment = {k: v for k, v in os.environ.items() if k != "PARAMCTL_MODEL"} | (env or {})
        words = [sys.executable, "-m", "paramctl", *map(str, argv)]
        source = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        return subprocess.run(words, capture_output=True, check=False, env=environment, cwd=cwd, timeout=60, **source)

    return _process
