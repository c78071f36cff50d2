"""Laws 1, 2 and 5 of reading, over a set of hostile and damaged files whose names are what is wrong with them."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import hostile_archives
import hostile_damage
import hostile_folders
import hostile_pickles
import hostile_safetensors
import hostile_streams
import pytest
import torch
from safetensors.torch import save_file

from program import ROOT

Build = Callable[[], bytes]
FILES: dict[str, Build] = {}
for module in (hostile_safetensors, hostile_pickles, hostile_archives, hostile_streams, hostile_damage):
    assert not FILES.keys() & module.FILES.keys()
    FILES |= module.FILES
FOLDERS = hostile_folders.FOLDERS
COMMANDS = (
    "tree m", "ls m", "info m", "show m", "stats m", "ties m", "check m",
    "diff m sound", "match m sound", "match sound m", "history m sound", "history sound m",
    "convert m new.safetensors --dry-run", "set m *[:]=0", "tie m *", "untie m",
    "ls m --digest", "ties m --by content", "stats m --quantiles 0.5 --hist",
)  # fmt: skip
QUICK_COMMANDS = ("ls m", "check m")  # one reads headers, the other all that there is
LONG = re.compile(
    r"bomb|inflates|_000|million|_mb|shared|copied|nested"
)  # files that take a second to build or to open
MOST_SECONDS, MOST_NBYTES = 5, 500 << 20
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # but tab and newline
_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")
_NOW = re.compile(r"VmRSS:\s+(\d+) kB")


def memory(what: re.Pattern[str]) -> int:
    found = what.search(Path("/proc/self/status").read_text())
    return int(found[1]) << 10 if found else 0


def forget_peak() -> int:
    """Let the peak of this process's memory begin anew, and what it is now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the peak of a process cannot be set back here")
    return memory(_NOW)


def canaried(folder: Path) -> None:
    (folder / f"{hostile_pickles.IMPORTED}.py").write_text(f"open({hostile_pickles.CANARY!r}, 'w').close()\n")


def faults(code: int, out: str, err: str) -> list[str]:
    """What is wrong with how a command ended."""
    found = []
    if code not in (0, 1, 2):
        found.append(f"exit status {code}")
    if "Traceback" in err:
        found.append("a traceback")
    if len(err.splitlines()) > 3:
        found.append(f"{len(err.splitlines())} lines of error")
    if max(map(len, err.splitlines()), default=0) > 2000:
        found.append("an error of more than 2,000 characters")
    if code == 2 and not err.startswith("error: "):
        found.append(f"no error, but {err[:80]!r}")
    for name, text in (("stdout", out), ("stderr", err)):
        control = CONTROL.search(text)
        if control:
            found.append(f"{control[0]!r} on {name}")
    return found


@pytest.fixture
def beset(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run every command, or some, on m in the working directory, and see what is wrong with any of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    canaried(tmp_path)
    save_file({"w": torch.ones(3)}, tmp_path / "sound")

    def _beset(commands: Sequence[str] = COMMANDS) -> None:
        before = sorted(path.name for path in tmp_path.iterdir())
        found = []
        for command in commands:
            held, began = forget_peak(), time.process_time()
            done = run(*command.split())
            seconds, nbytes = time.process_time() - began, memory(_PEAK) - held
            wrong = faults(done.code, done.out, done.err)
            if seconds > MOST_SECONDS:
                wrong.append(f"{seconds:.1f} s")
            if nbytes > MOST_NBYTES:
                wrong.append(f"{nbytes >> 20} MiB")
            found += [f"{command}: {what}" for what in wrong]
        assert found == []
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        assert hostile_pickles.IMPORTED not in sys.modules

    return _beset


@pytest.mark.slow  # some minutes: bombs are built, and each file is opened by every command
@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_does_no_harm(name: str, beset):
    """No traceback, nothing run, a short error, nothing on the screen but text, and little time and memory."""
    Path("m").write_bytes(FILES[name]())
    beset()


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_a_hostile_folder_does_no_harm(name: str, beset):
    """As a file, for indexes, shards and distributed checkpoints."""
    Path("m").mkdir()
    FOLDERS[name](Path("m"))
    beset()


@pytest.mark.parametrize("name", [name for name in FILES if not LONG.search(name)])
def test_a_small_hostile_file_does_no_harm(name: str, beset):
    """As every hostile file, for those that are small, and the two commands between them that read all that is read."""
    Path("m").write_bytes(FILES[name]())
    beset(QUICK_COMMANDS)


@pytest.mark.parametrize("name", [name for name in FOLDERS if not LONG.search(name)])
def test_a_small_hostile_folder_does_no_harm(name: str, beset):
    """As every hostile folder, for those that are small."""
    Path("m").mkdir()
    FOLDERS[name](Path("m"))
    beset(QUICK_COMMANDS)


AT_ONCE: tuple[tuple[str, str], ...] = (  # what once took minutes, or many lines, for these few bytes
    ("tensor_expanded_to_2_20_by_2_20", "set m *[:]=0"),
    ("tensor_expanded_to_2_20_by_2_20", "init m w --scheme zeros"),
    ("tensor_expanded_to_2_by_2_40_times", "set m *[:]=0"),
    ("safetensors_shape_of_10_000_axes", "set m *[:]=0"),
    ("safetensors_shape_of_10_000_axes", "set m a=[1,2]"),
    ("safetensors_metadata_ties_by_the_ten_thousand", "match sound m"),
    ("tensor_tensors_20_000_of_one_storage", "tie m *"),
    ("zip_storage_inflates_400_mb_in_1_000_tensors", "history m sound"),
)


@pytest.mark.parametrize(("name", "command"), AT_ONCE)
def test_a_file_that_other_commands_found_hard(name: str, command: str, beset):
    """As every hostile file."""
    Path("m").write_bytes(FILES[name]())
    beset((command,))


def test_the_set_is_large():
    """Several hundred files."""
    assert len(FILES) + len(FOLDERS) >= 500


# ----------------------------------------------------------------------------- in processes of their own

_LIMITED = f"""
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_AS, ({MOST_NBYTES << 1}, {MOST_NBYTES << 1}))
resource.setrlimit(resource.RLIMIT_CPU, ({MOST_SECONDS}, {MOST_SECONDS}))
sys.argv[0] = "paramctl"
from paramctl.cli import main
try:
    main()
finally:
    with open({{peak!r}}, "w") as file:
        file.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""
WORST: tuple[tuple[str, str], ...] = (
    ("zip_pickle_inflates_200_mb", "ls"),
    ("zip_pickle_inflates_200_mb", "check"),
    ("zip_pickle_inflates_to_what_it_does_not_say", "ls"),
    ("zip_storage_inflates_400_mb", "show"),
    ("zip_storage_inflates_400_mb", "check"),
    ("npz_bomb_400_mb", "show"),
    ("npz_bomb_400_mb", "check"),
    ("npz_header_bomb", "ls"),
    ("pickle_bomb_lists_nested_200_000", "info"),
    ("pickle_bomb_lists_shared_10_to_the_30", "tree"),
    ("pickle_bomb_dicts_shared_10_to_the_30", "ls"),
    ("pickle_bomb_names_of_long_keys", "tree"),
    ("pickle_bomb_names_of_long_keys_in_long_keys", "check"),
    ("pickle_bomb_memo_bomb_long_binput", "ls"),
    ("pickle_bomb_dicts_copied_quadratically", "info"),
    ("pickle_bomb_list_of_a_billion_by_call", "check"),
    ("pickle_bomb_tuples_shared_as_a_key", "ls"),
    ("tensor_expanded_view_of_one_element", "show"),
    ("tensor_expanded_view_of_one_element", "check"),
    ("tensor_expanded_to_2_27", "show"),
    ("tensor_expanded_a_hundred_times_2_20", "show"),
    ("tensor_terabyte_of_storage", "show"),
    ("tensor_tensors_20_000_of_one_storage", "ties"),
    ("safetensors_header_nested_in_shape", "ls"),
    ("safetensors_name_of_100_000_dots", "tree"),
    ("safetensors_names_of_many_levels", "tree"),
    ("gguf_tensor_count_2_60", "ls"),
    ("gguf_arrays_in_arrays", "info"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "command"), WORST, ids=[f"{name}-{command}" for name, command in WORST])
def test_the_worst_keep_within_bounds(name: str, command: str, tmp_path: Path):
    """In a process of its own: less than 5 s and 500 MiB, whichever way the command ends."""
    import subprocess

    (tmp_path / "m").write_bytes(FILES[name]())
    canaried(tmp_path)
    peak = tmp_path / "peak"
    code = _LIMITED.format(peak=str(peak)) if "{peak" in _LIMITED else _LIMITED
    began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [sys.executable, "-c", code, command, "m"],
        capture_output=True, check=False, cwd=tmp_path, timeout=60, env={"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began
    assert faults(done.returncode, done.stdout.decode(), done.stderr.decode()) == []
    assert "not enough memory" not in done.stderr.decode()
    assert seconds < MOST_SECONDS
    assert int(peak.read_text()) << 10 < MOST_NBYTES
    assert not (tmp_path / hostile_pickles.CANARY).exists()
