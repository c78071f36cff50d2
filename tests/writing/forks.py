"""The program, started many times: a process that has imported it forks once for each line that it is told.

So a trial costs what the command costs, and not the half second of imports; what is forked is the program from its
command line on, with the signals of a new process. It imports torch and never computes with it, so that no thread of
it is missing in the fork.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import paramctl
from paramctl import cli

NOBODY = 65534
_PATIENCE = 60


class Ended(NamedTuple):
    """How a command ended: its exit status, negative for a signal, and what it said."""

    code: int
    err: str


class Forks:
    """Starts commands, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._errors = folder / f"errors-{os.urandom(4).hex()}"
        self._server = subprocess.Popen(
            [sys.executable, "-B", __file__, str(self._errors)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._is_running = False
        self._told()

    def start(self, words: Sequence[str], cwd: Path, *, most_nbytes: int = 0, user: int = 0) -> int:
        """The process id of a command that has begun."""
        if self._is_running:  # a test failed and did not wait
            self.wait()
        self._is_running = True
        line = {"words": list(words), "cwd": str(cwd), "most_nbytes": most_nbytes, "user": user}
        assert self._server.stdin
        self._server.stdin.write(json.dumps(line) + "\n")
        self._server.stdin.flush()
        return int(self._told())

    def wait(self) -> Ended:
        """For the end of what was started."""
        code = int(self._told())
        self._is_running = False
        return Ended(code, self._errors.read_text())

    def run(self, words: Sequence[str], cwd: Path, **limits: int) -> Ended:
        self.start(words, cwd, **limits)
        return self.wait()

    def close(self) -> None:
        self._server.communicate(timeout=60)

    def _told(self) -> str:
        assert self._server.stdout
        assert select.select([self._server.stdout], [], [], _PATIENCE)[0], "it hangs"
        return self._server.stdout.readline()


def _serve(errors: str) -> None:
    for module in pkgutil.walk_packages(paramctl.__path__, "paramctl."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    cli.app()
    print("ready", flush=True)
    for line in sys.stdin:
        Path(errors).write_text("")
        pid = os.fork()
        if not pid:
            _become(json.loads(line), errors)
            os._exit(_code(cli.main))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _become(told: dict[str, Any], errors: str) -> None:
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)
    os.dup2(os.open(errors, os.O_WRONLY), 2)
    os.chdir(told["cwd"])
    if told["most_nbytes"]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (told["most_nbytes"], told["most_nbytes"]))
    if told["user"]:
        os.setgroups([])
        os.setgid(told["user"])
        os.setuid(told["user"])
    sys.argv = ["paramctl", *told["words"]]


def _code(main: Any) -> int:
    try:
        main()
    except SystemExit as left:
        return int(left.code or 0)
    except KeyboardInterrupt:  # before the program's own handling of it, or behind it
        return 130
    except BaseException:  # noqa: BLE001 - as the interpreter would
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    _serve(sys.argv[1])
