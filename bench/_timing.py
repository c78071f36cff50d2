"""Times whole processes: wall seconds and peak resident memory, and tables of them.

What a user feels is a process from its start to its end, so that is what is measured.
Candidates take turns, one run each a round, so that a disturbance of the machine hits all alike.

This module and whoever imports it must stay small: Linux carries the peak of the parent over into
`ru_maxrss` of a child it starts, so that no child can measure smaller than its driver. `driver_mib`
says how much that is.
"""

import fcntl
import os
import resource
import struct
import sys
import termios
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

TIMEOUT_SECONDS = 60.0
BUDGET_SECONDS = 30.0  # a candidate that took this long in all gets no further rounds
TERMINAL_ROWS, TERMINAL_COLUMNS = 40, 120

# A user has none of these: they would make Python compile every module anew, write every line by
# itself, or change what is drawn.
REMOVED_FROM_ENVIRONMENT = (
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONUNBUFFERED",
    "PYTHONPROFILEIMPORTTIME",
    "COLUMNS",
    "NO_COLOR",
    "PARAMCTL_MODEL",
)


class Target(NamedTuple):
    """At most these; None where nothing is asked. `times` is against the reference of the table."""

    times: float | None = None
    seconds: float | None = None
    mib: float | None = None


class Candidate(NamedTuple):
    name: str
    argv: tuple[str, ...]
    target: Target = Target()
    terminal: bool = False  # standard output is a terminal; else it is thrown away
    timeout: float = TIMEOUT_SECONDS
    status: int = 0  # with which it ends: of a diff of what differs 1
    anew: str = ""  # a file that is not there when it begins


class Run(NamedTuple):
    seconds: float
    mib: float
    failure: str  # empty if there was none


class Measurement(NamedTuple):
    candidate: Candidate
    runs: tuple[Run, ...]

    @property
    def failure(self) -> str:
        return next((run.failure for run in self.runs if run.failure), "")

    @property
    def seconds(self) -> float:
        return median(run.seconds for run in self.runs)

    @property
    def mib(self) -> float:
        return median(run.mib for run in self.runs)


def median(numbers: Iterable[float]) -> float:
    # `statistics` would add 4 MiB to the driver.
    ordered = sorted(numbers)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def driver_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in REMOVED_FROM_ENVIRONMENT}
    return kept | {"TERM": "xterm-256color"}


def measure(candidates: Sequence[Candidate], *, rounds: int) -> list[Measurement]:
    """One warm-up each, which does not count unless it fails; who fails is not run again."""
    warm = {candidate: run(candidate) for candidate in candidates}
    runs: dict[Candidate, list[Run]] = {
        candidate: [first] if first.failure else [] for candidate, first in warm.items()
    }
    for _ in range(rounds):
        for candidate in candidates:
            if may_run_again(runs[candidate]):
                runs[candidate].append(run(candidate))
    return [Measurement(candidate, tuple(runs[candidate])) for candidate in candidates]


def may_run_again(runs: Sequence[Run]) -> bool:
    failed = any(run.failure for run in runs)
    return not failed and sum(run.seconds for run in runs) < BUDGET_SECONDS


def run(candidate: Candidate) -> Run:
    if candidate.anew:
        Path(candidate.anew).unlink(missing_ok=True)
    os.sync()  # what the one before has left for the disk is not paid for by this one
    with scratch_file() as errors:
        start = time.perf_counter()
        status, usage = wait(candidate, errors.fileno())
        seconds = time.perf_counter() - start
        errors.seek(0)
        failure = "" if status == candidate.status else describe_failure(status, errors.read().decode(errors="replace"))
    return Run(seconds, usage.ru_maxrss / 1024, failure)


def wait(candidate: Candidate, stderr: int) -> tuple[int, resource.struct_rusage]:
    """Start the process and wait for its end; its exit code (negative: a signal) and what it used."""
    stdin = os.open(os.devnull, os.O_RDONLY)
    reader, stdout = open_terminal() if candidate.terminal else (None, os.open(os.devnull, os.O_WRONLY))
    try:
        pid = os.posix_spawn(
            candidate.argv[0],
            candidate.argv,
            environment(),
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((stdin, stdout, stderr))],
        )
    except FileNotFoundError as error:
        raise SystemExit(f"error: {error.filename}: not there; see bench/README.md") from None
    finally:
        os.close(stdin)
        os.close(stdout)
    if reader is not None:
        threading.Thread(target=drain, args=(reader,)).start()
    killer = threading.Timer(candidate.timeout, os.kill, (pid, 9))
    killer.start()
    _, status, usage = os.wait4(pid, 0)
    killer.cancel()
    return os.waitstatus_to_exitcode(status), usage


def scratch_file() -> BinaryIO:
    """In memory. `tempfile` would add 2 MiB to the driver."""
    return os.fdopen(os.memfd_create("bench"), "w+b")


def open_terminal() -> tuple[int, int]:
    """The end to read what was drawn, and the end to give to a process."""
    reader, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", TERMINAL_ROWS, TERMINAL_COLUMNS, 0, 0))
    return reader, terminal


def drain(reader: int) -> None:
    try:
        while os.read(reader, 1 << 16):
            pass
    except OSError:
        pass  # how Linux says that the other end is closed
    finally:
        os.close(reader)


def describe_failure(exit_code: int, stderr: str) -> str:
    if exit_code == -9:
        return "stopped after its time, or out of memory"
    lines = [line for line in stderr.splitlines() if line.strip()]
    return f"exit {exit_code}: {lines[-1][:100] if lines else 'no message'}"


def count_lines(argv: tuple[str, ...]) -> int | None:
    """Of standard output, without keeping it (see the note on memory above); None if the process fails."""
    reader, writer = os.pipe()
    pid = os.posix_spawn(argv[0], argv, environment(), file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)])
    os.close(writer)
    lines = 0
    while chunk := os.read(reader, 1 << 16):
        lines += chunk.count(b"\n")
    os.close(reader)
    return lines if succeeds(pid) else None


def imported(argv: tuple[str, ...]) -> frozenset[str] | None:
    """The names of all modules that a Python process imports from start to end; None if it fails."""
    with scratch_file() as errors, Path(os.devnull).open("wb") as null:
        outputs = ((null.fileno(), 1), (errors.fileno(), 2))
        pid = os.posix_spawn(
            argv[0],
            argv,
            environment() | {"PYTHONPROFILEIMPORTTIME": "1"},
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for fd, number in outputs],
        )
        if not succeeds(pid):
            return None
        errors.seek(0)
        lines = errors.read().decode(errors="replace").splitlines()
    # import time:       108 |        108 |   zipimport
    return frozenset(line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:"))


def succeeds(pid: int) -> bool:
    return os.waitpid(pid, 0)[1] == 0


def misses(measurement: Measurement, reference: Measurement) -> list[str]:
    """What of its target a candidate does not reach; empty if it reaches it, or has none."""
    target = measurement.candidate.target
    if target == Target():
        return []
    if measurement.failure:
        return ["failed"]
    reached = (
        (target.times, measurement.seconds / reference.seconds, "×"),
        (target.seconds, measurement.seconds, " s"),
        (target.mib, measurement.mib, " MiB"),
    )
    return [
        f"{actual:.2f}{unit} > {most:g}{unit}" for most, actual, unit in reached if most is not None and actual > most
    ]


def target_text(target: Target) -> str:
    parts = ((target.times, "×"), (target.seconds, " s"), (target.mib, " MiB"))
    return ", ".join(f"≤ {most:g}{unit}" for most, unit in parts if most is not None)


def table(measurements: Sequence[Measurement]) -> str:
    """Markdown; ratios are of median wall times, against the first row."""
    reference = measurements[0]
    lines = ["| process | wall s | ratio | peak MiB | target |", "| --- | ---: | ---: | ---: | --- |"]
    lines += [row(measurement, reference) for measurement in measurements]
    return "\n".join(lines)


def row(measurement: Measurement, reference: Measurement) -> str:
    name = measurement.candidate.name
    target = target_text(measurement.candidate.target)
    if measurement.failure:
        return f"| {name} | {measurement.failure} | | | {target and target + ' ✗'} |"
    verdict = target and f"{target} {'✗' if misses(measurement, reference) else '✓'}"
    ratio = measurement.seconds / reference.seconds
    return f"| {name} | {measurement.seconds:.3f} | {ratio:.2f}× | {measurement.mib:.1f} | {verdict} |"


def compile_package(folder: Path) -> None:
    """Bytecode for every module below `folder`, as installing a package leaves it."""
    argv = [sys.executable, "-m", "compileall", "-q", str(folder)]
    if not succeeds(os.posix_spawn(argv[0], argv, environment())):
        raise SystemExit(f"error: {folder}: does not compile")
