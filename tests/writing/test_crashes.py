"""Whatever ends a command that writes, the old file is there or the new one in full, and the next run clears up."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from crashes import COMMANDS, MOMENTS, SIGNALS, Command, Harness, beside, make_sources, state
from forks import NOBODY, Ended, Forks

from paramctl.errors import FileError
from paramctl.formats import copying, whole

_SEED = 20_240_607
_TRIALS, _LIGHT_TRIALS = 420, 30  # of signals; what else ends a command makes them 500 and 40
LIGHT = ("set-in-place", "safetensors", "dcp-force", "document", "set-folder")
BY_NAME = {command.name: command for command in COMMANDS}


@pytest.fixture(scope="module")
def open_folder():
    """A folder that another user may reach."""
    folder = Path(tempfile.mkdtemp(prefix="paramctl-crashes-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def sources(open_folder):
    folder = open_folder / "sources"
    folder.mkdir()
    make_sources(folder)
    return folder


@pytest.fixture(scope="module")
def forks(open_folder):
    made = [Forks(open_folder), Forks(open_folder)]
    yield made
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def harness(open_folder, sources, forks):
    return Harness(sources, open_folder / "work", forks[0])


def endings(count: int, commands=COMMANDS):
    """Commands, moments and signals: every command in turn, the others drawn."""
    draw = random.Random(_SEED)
    for trial in range(count):
        yield commands[trial % len(commands)], draw.choice(MOMENTS), draw.choice(SIGNALS), draw


def crash(harness: Harness, count: int, commands=COMMANDS) -> None:
    seen = {harness.crash(*ending) for ending in endings(count, commands)}
    assert seen == {"old", "new"}, "the moments are not spread over the run"


def test_thirty_ends_by_signals(harness):
    """Of thirty runs ended by SIGKILL, SIGTERM or SIGINT none leaves a file that is half of anything."""
    crash(harness, _LIGHT_TRIALS, [BY_NAME[name] for name in LIGHT])


@pytest.mark.slow
def test_all_ends_by_signals(harness):
    """Of 420 such runs, each command at every kind of moment, none does."""
    crash(harness, _TRIALS)


# ----------------------------------------------------------------------------- no space, no permission


def assert_cannot_be_written(ended: Ended, command: Command, why: str) -> None:
    """It is said of what was to be written, which may be one file of the folder."""
    said = ended.err.splitlines()[-1].replace(f"{command.target}/model-00002-of-00002.safetensors", command.target)
    assert said == f"error: {command.target}: cannot be written: {why}"


def fill_up(harness: Harness, command: Command, *, most_nbytes: int) -> None:
    harness.reference(command)
    harness.reset(command)
    ended = harness.run(command, most_nbytes=most_nbytes)
    assert ended.code == 2
    assert_cannot_be_written(ended, command, "file too large")
    assert harness.hold(command, ended, 0, f"{command.name}, {most_nbytes:,} bytes") == "old"


def fractions(harness: Harness, command: Command, count: int) -> list[int]:
    """Sizes of files, spread from a page to nearly the largest that the command writes."""
    most = harness.reference(command).largest_nbytes
    return [4096 + (most - 8192) * i // count for i in range(count)]


@pytest.mark.parametrize("name", ["set-in-place", "safetensors", "sharded", "dcp-force"])
def test_no_space(harness, name):
    """A write that the system cuts off in the middle is told, and leaves nothing."""
    command = BY_NAME[name]
    fill_up(harness, command, most_nbytes=fractions(harness, command, 2)[1])


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_no_space_at_three_sizes(harness, command):
    """As soon as the first page, and at two and five sixths of the largest file, for every command."""
    for most in fractions(harness, command, 3):
        fill_up(harness, command, most_nbytes=most)


@pytest.fixture
def tiny_disk(open_folder):
    """A filesystem of 1 MB."""
    folder = open_folder / "tiny"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if subprocess.run(words, check=False, capture_output=True).returncode:
        folder.rmdir()
        pytest.skip("nothing may be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


def test_a_disk_that_fills_up_meanwhile(tiny_disk, sources):
    """Room that was there when it was looked at, and is not when it is written, is told; nothing is left."""
    (tiny_disk / "x").write_bytes(b"old")
    why = "cannot be written: no space left on device"
    with pytest.raises(FileError, match=why), whole.replacing(str(tiny_disk / "x"), nbytes=1000) as file:
        copying.copy(sources / "m.pt", file)
    with pytest.raises(FileError, match=why), whole.replacing(str(tiny_disk / "x"), nbytes=1000) as file:
        file.write(bytes(2 << 20))
    with pytest.raises(FileError, match=why), whole.replacing_folder(str(tiny_disk / "y"), nbytes=1000) as folder:
        (folder / "z").write_bytes(bytes(2 << 20))
    assert [(path.name, path.read_bytes()) for path in tiny_disk.iterdir()] == [("x", b"old")]


def read_only(harness: Harness, command: Command) -> None:
    known = harness.reference(command)
    target = harness.reset(command)
    if target.is_file():
        target.chmod(0o644)
    harness.folder.chmod(0o555)
    try:
        ended = harness.run(command, user=0 if os.geteuid() else NOBODY)
        assert ended.code == 2
        assert_cannot_be_written(ended, command, "permission denied")
        assert state(target) == known.old
        assert [*harness.folder.iterdir()] == [target] * bool(command.before)
    finally:
        harness.folder.chmod(0o755)


@pytest.mark.parametrize("name", ["init-in-place", "torch-zip", "split-force"])
def test_a_folder_that_is_read_only(harness, name):
    """Where another user may only read, each way to write is refused before anything is made."""
    read_only(harness, BY_NAME[name])


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_in_a_folder_that_is_read_only(harness, command):
    """So for every command."""
    read_only(harness, command)


@pytest.fixture
def shards(open_folder, sources):
    """A folder of shards that another user owns, with a folder in it that has a file."""
    parent = open_folder / "shared"
    parent.mkdir()
    folder = parent / "shards"
    shutil.copytree(sources / "shards", folder)
    (folder / "sub").mkdir()
    (folder / "sub" / "notes.txt").write_text("kept")
    for path in (parent, folder, *folder.rglob("*")):
        if not os.geteuid():
            os.chown(path, NOBODY, NOBODY)
    yield folder
    for path in (parent, *parent.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(parent)


def as_another(forks: list[Forks], folder: Path, *words: str):
    return forks[0].run(("set", "shards", "*.weight *= 2", *words), folder.parent, user=0 if os.geteuid() else NOBODY)


@pytest.mark.parametrize("words", [("--in-place",), ("-o", "out")], ids=" ".join)
@pytest.mark.parametrize("mode", [0o555, 0o000], ids=oct)
def test_a_folder_below_that_may_not_be_changed(shards, forks, words, mode):
    """What cannot be read is not left out, and a folder that could not be taken away is not replaced."""
    before = state(shards)
    (shards / "sub").chmod(mode)
    ended = as_another(forks, shards, *words)
    (shards / "sub").chmod(0o755)
    assert state(shards) == before
    if mode and words[0] == "-o":
        assert (ended.code, state(shards.parent / "out" / "sub")) == (0, state(shards / "sub")), ended
        assert (shards.parent / "out" / "sub").stat().st_mode & 0o777 == mode
        return
    why = "cannot be written" if mode else "cannot be read"
    assert (ended.code, ended.err) == (2, f"error: shards/sub: {why}: permission denied\n")
    assert [path.name for path in shards.parent.iterdir()] == ["shards"]


def test_what_a_killed_writer_left_is_taken_away_or_told(shards, forks):
    """With folders in it that may not be changed, which are its own, and with one of another user."""
    out = shards.parent / "out"
    litter = whole._beside(out)
    shards.rename(litter)
    (litter / "sub").chmod(0o555)
    shutil.copytree(litter, shards)
    (shards / "sub").chmod(0o755)
    if not os.geteuid():
        for path in (shards, *shards.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    ended = as_another(forks, shards, "-o", "out")
    assert (ended.code, litter.exists()) == (0, False)
    if os.geteuid():
        return
    shutil.rmtree(out)
    shutil.copytree(shards, litter)
    os.chown(litter, NOBODY, NOBODY)
    ended = as_another(forks, shards, "-o", "out")
    said = f"error: out: {litter}, of a writer that was killed, cannot be removed\n"
    assert (ended.code, ended.err, out.exists()) == (2, said, False)


# ----------------------------------------------------------------------------- two writers


def two_at_once(harness: Harness, forks: list[Forks], command: Command, *, ended_by: int = 0) -> None:
    harness.reset(command)
    known = harness.reference(command)
    harness.reset(command)
    words = harness.words(command)
    pids = [one.start(words, harness.folder) for one in forks]
    if ended_by:
        while not beside(harness.folder):
            os.kill(pids[0], 0)
        os.kill(pids[0], ended_by)
    ends = [one.wait() for one in forks]
    refused = f"error: {command.target}: another process is writing it\n\nhint: wait until it has ended\n"
    for ended in ends[bool(ended_by) :]:
        assert ended.code == 0 or (ended.code == 2 and ended.err.endswith(refused)), ended
    if not ended_by:
        assert 0 in [ended.code for ended in ends], "one of them writes"
        assert state(harness.folder / command.target) == known.new
        assert [path.name for path in harness.folder.iterdir()] == [command.target]
    elif ends[1].code == 0:
        assert state(harness.folder / command.target) == known.new
    else:
        assert state(harness.folder / command.target) == known.old


OUTS = [command for command in COMMANDS if "--in-place" not in command.words and "--force" not in command.words]


@pytest.mark.parametrize("name", ["document", "safetensors", "sharded"])
def test_two_writers(harness, forks, name):
    """Of two that write one file at once, one does, and the other does after it or is refused."""
    two_at_once(harness, forks, BY_NAME[name])


@pytest.mark.slow
@pytest.mark.parametrize("command", OUTS, ids=lambda command: command.name)
def test_two_writers_of_which_one_is_killed(harness, forks, command):
    """The lock of one that was killed holds nobody off."""
    two_at_once(harness, forks, command)
    two_at_once(harness, forks, command, ended_by=signal.SIGKILL)
