"""Watching a training run: live on a terminal, streamed in a pipe, and ended at any time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios

import pytest
import torch

from program import MODELS, ROOT

LONG = ("watch", str(MODELS / "tied.py"), "--input", "2,4", "--seed", "0", "--steps", "1000000")
FRAME = "\x1b[?7l"  # a picture begins: a line that is too long is not wrapped


@pytest.fixture
def begin(tmp_path):
    """Begin a command in a process of its own, that Ctrl-C can be sent to."""
    started = []

    def _begin(
        *words: str, term: str = "xterm", through: tuple[str, ...] = (), **streams: int
    ) -> subprocess.Popen[bytes]:
        kept = {key: value for key, value in os.environ.items() if key not in {"PARAMCTL_MODEL", "COLUMNS"}}
        process = subprocess.Popen(
            [*through, sys.executable, "-m", "paramctl", *words],
            cwd=tmp_path,
            env=kept | {"TERM": term, "NO_COLOR": "1"},
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams,
        )
        started.append(process)
        return process

    yield _begin
    for process in started:
        process.kill()
        process.wait()
        for stream in filter(None, (process.stdout, process.stderr)):
            stream.close()


class Terminal:
    """A pseudo-terminal: what a process shows on it."""

    def __init__(self, columns: int, lines: int = 24) -> None:
        self._ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.shown = b""

    def read(self, until: bytes = b"", times: int = 1) -> str:
        """All that is shown until a text has come so many times, or to the end."""
        while not until or self.shown.count(until) < times:
            try:
                chunk = os.read(self._ours, 1 << 16)
            except OSError:  # Linux: the other end was closed
                break
            if not chunk:
                break
            self.shown += chunk
        return self.shown.decode().replace("\r\n", "\n")

    def streams(self) -> dict[str, int]:
        return dict.fromkeys(("stdin", "stdout", "stderr"), self.theirs)

    def let_go(self) -> None:
        """The process alone holds the other end, so that its end is seen."""
        os.close(self.theirs)


def pictures(shown: str) -> tuple[list[list[str]], str]:
    """The pictures that were drawn over each other, as lines, and what stands there at the end."""
    before, *pieces = shown.split(FRAME)
    assert before == ""
    drawn = [piece.partition("\x1b[?7h") for piece in pieces]
    back = [re.fullmatch(r"\r\x1b\[(\d+)A\x1b\[J(.*)", after, re.DOTALL) for _, _, after in drawn]
    assert all(back)
    frames = [text.splitlines() for text, _, _ in drawn]
    assert [int(match[1]) for match in back] == [len(frame) for frame in frames]  # each is drawn over, no more, no less
    assert {match[2] for match in back[:-1]} <= {""}
    return frames, back[-1][2]


@pytest.mark.parametrize(("columns", "lines"), [(60, 24), (80, 10), (120, 40)])
def test_a_terminal_sees_it_learn(columns, lines, begin, run, monkeypatch):
    """Pictures are drawn over each other, none wider or higher than the terminal; at the end a table alone stays."""
    screen = Terminal(columns, lines)
    words = ("watch", str(MODELS / "tied.py"), "--input", "2,4", "--seed", "0", "--steps", "500")
    process = begin(*words, **screen.streams())
    screen.let_go()
    frames, end = pictures(screen.read())
    assert process.wait(timeout=60) == 0
    assert len(frames) > 1
    steps = [int(re.match(r"step (\d+) of 500  mse  sgd\(lr=0.1\)$", frame[0])[1]) for frame in frames]
    assert steps == sorted(set(steps))
    assert max(len(line) for frame in frames for line in frame) <= columns
    assert max(map(len, frames)) < lines
    assert "\x1b" not in end
    table = end.splitlines()
    assert table[0] == "step 500 of 500  mse  sgd(lr=0.1)"
    assert table[-1] == "still one tensor each: 2.weight = 4.weight, 2.bias = 4.bias"
    rows = run(*words, "-f", "json").rows[-6:]
    told = [line.split() for line in table if re.match(r"\d\.(weight|bias)", line)]
    assert [(line[0], line[1]) for line in told] == [(row["name"], f"{row['value_l2']:.4g}") for row in rows]


def test_more_parameters_than_lines_are_counted(begin):
    """A picture has as many rows as the terminal holds, and says how many there are more; the table has all."""
    screen = Terminal(130, 20)
    process = begin("watch", str(MODELS / "gpt.py"), "--seed", "0", "--steps", "2", **screen.streams())
    screen.let_go()
    frames, end = pictures(screen.read())
    assert process.wait(timeout=60) == 0
    names = [name for name, _ in _parameters()]
    rows = [line for line in frames[0] if line.startswith("transformer.")]
    assert frames[0][-1].endswith(f"· {len(names) - len(rows)} more parameters")
    assert len(frames[0]) in {18, 19}  # of 20, and a row that takes two lines may not find room
    assert [line.split()[0] for line in end.splitlines() if line.startswith("transformer.")] == names


def _parameters():
    import importlib.util

    spec = importlib.util.spec_from_file_location("watched_gpt", MODELS / "gpt.py")
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    return code.model().named_parameters()


def test_a_terminal_that_cannot_go_back_gets_the_table(begin):
    """On a dumb terminal nothing is drawn over; the table is printed at the end."""
    screen = Terminal(80)
    words = ("watch", str(MODELS / "tied.py"), "--input", "2,4", "--seed", "0", "--steps", "3")
    process = begin(*words, term="dumb", **screen.streams())
    screen.let_go()
    shown = screen.read()
    assert process.wait(timeout=60) == 0
    assert "\x1b" not in shown
    assert shown.startswith("step 3 of 3  mse")


def test_ctrl_c_on_a_terminal_ends_with_what_there_is(begin, tmp_path):
    """The step that runs is ended, the table stays, the checkpoint is written, and the status is 130."""
    screen = Terminal(80)
    process = begin(*LONG, "--save", "c-{step}.pt", **screen.streams())
    screen.let_go()
    screen.read(FRAME.encode(), times=2)
    process.send_signal(signal.SIGINT)
    _, end = pictures(screen.read())
    assert process.wait(timeout=60) == 130
    *table, written, ties, said = end.splitlines()
    step = int(re.fullmatch(r"interrupted after step ([\d,]+) of 1,000,000", said)[1].replace(",", ""))
    assert table[0].startswith(f"step {step:,} of 1,000,000")
    assert (written, ties[:9]) == (f"written: c-{step}.pt", "still one")
    value = float(torch.load(tmp_path / f"c-{step}.pt")["0.weight"].double().norm())
    assert f"{value:.4g}" in next(line for line in table if line.startswith("0.weight"))


def test_ctrl_c_in_a_pipe_ends_with_whole_steps(begin):
    """Each step that was made is on stdout, the last one whole, and the status is 130."""
    process = begin(*LONG)
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, err = process.stdout.read(), process.stderr.read()
    assert process.wait(timeout=60) == 130
    rows = [json.loads(line) for line in (first + rest).splitlines()]
    assert [row["step"] for row in rows] == [step for step in range(1, rows[-1]["step"] + 1) for _ in range(6)]
    assert err.decode().splitlines()[-1] == f"interrupted after step {rows[-1]['step']:,} of 1,000,000"


@pytest.mark.parametrize("style", ["jsonl", "tsv"])
def test_rows_are_seen_as_they_are_made(style, begin):
    """A row can be read long before the end; and when the reader goes, it ends at once with 141 and no word."""
    process = begin(*LONG, "-f", style)
    line = process.stdout.readline()
    assert line.startswith(b"step\tloss" if style == "tsv" else b'{"step": 1,')
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""


def test_head_ends_it(tmp_path):
    """`| head -n 2` prints two rows, and does not wait for the rest."""
    line = f'{shlex.join([sys.executable, "-m", "paramctl", *LONG])} | head -n 2; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
    )
    *rows, status = done.stdout.splitlines()
    assert [json.loads(row)["name"] for row in rows] == ["0.weight", "0.bias"]
    assert (status, done.stderr) == ("141", "")


def test_no_name_reaches_a_terminal_raw(begin, tmp_path):
    """A module whose name has an escape character is drawn escaped."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef net():\n    made = nn.Sequential()\n"
        "    made.add_module('evil\\x1b[2J\\u202e', nn.Linear(2, 2))\n    return made\n"
    )
    screen = Terminal(80)
    process = begin("watch", "net.py", "--steps", "2", "--seed", "0", **screen.streams())
    screen.let_go()
    frames, end = pictures(screen.read())
    assert process.wait(timeout=60) == 0
    assert not re.search("[\x1b\u202e]", end + "".join(line for frame in frames for line in frame))
    assert "evil\\x1b[2J\\u202e.weight" in end


@pytest.mark.parametrize("command", ["grad", "watch"])
def test_what_a_model_prints_is_no_data(command, run, tmp_path):
    """What forward prints goes to stderr, so that stdout holds rows alone."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass net(nn.Linear):\n    def __init__(self):\n        super().__init__(2, 2)\n"
        "    def forward(self, x):\n        print('hello')\n        return super().forward(x)\n"
    )
    more = ["--steps", 2] if command == "watch" else []
    done = run(command, tmp_path / "net.py", "--input", "2,2", "--seed", 0, *more, "-f", "jsonl")
    assert {json.loads(line)["name"] for line in done.out.splitlines()} == {"weight", "bias"}
    assert done.err == "hello\n" * (2 if command == "watch" else 1)


def test_a_signal_that_was_ignored_stays_so(begin):
    """Where Ctrl-C is ignored, as in the background of a script, it does not end the training."""
    process = begin(*LONG[:-1], "40", through=("bash", "-c", "trap '' INT; exec \"$@\"", "-"))
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    *_, last = process.stdout.read().splitlines()
    assert json.loads(last)["step"] == 40
    assert process.wait(timeout=60) == 0


def test_ctrl_c_twice_ends_at_once(begin, tmp_path):
    """A step that never ends is ended by the second Ctrl-C, with 130 and no traceback."""
    (tmp_path / "net.py").write_text(
        "import time\nfrom torch import nn\nclass net(nn.Linear):\n    def __init__(self):\n        super().__init__(2, 2)\n"
        "    def forward(self, x):\n        print('begun', flush=True)\n        while True:\n            time.sleep(0.01)\n"
    )
    process = begin("watch", "net.py", "--input", "2,2", "--seed", "0")
    assert process.stderr.readline() == b"begun\n"
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.send_signal(signal.SIGINT)
        process.wait(timeout=0.5)
        pytest.fail("the first Ctrl-C waits for the step")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert process.stderr.read() == b""
