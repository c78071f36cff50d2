"""A folder is replaced at once where the system can exchange two; where it cannot, nothing is lost either."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from paramctl.errors import FileError
from paramctl.formats import whole

_KILLED = """
import os, pathlib, signal, sys
from paramctl.formats import whole
whole._changed_places = lambda one, other: False
left = [int(sys.argv[2])]
real = {"rename": pathlib.Path.rename, "rmtree": whole.shutil.rmtree}
def counted(name):
    def run(*args, **more):
        if not left[0]:
            os.kill(os.getpid(), getattr(signal, sys.argv[3]))
        left[0] -= 1
        return real[name](*args, **more)
    return run
pathlib.Path.rename, whole.shutil.rmtree = counted("rename"), counted("rmtree")
with whole.replacing_folder(sys.argv[1], force=True) as folder:
    (folder / "file").write_text("new")
"""


@pytest.fixture
def there(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "file").write_text("old")
    return path


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def write(path: Path, text: str) -> None:
    with whole.replacing_folder(str(path), force=True) as folder:
        (folder / "file").write_text(text)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_is_replaced_as_a_whole(can_exchange: bool, there: Path, monkeypatch):
    """What was in it is gone, what is new is there, and nothing is left beside it."""
    if not can_exchange:
        monkeypatch.setattr(whole, "_changed_places", lambda one, other: False)
    write(there, "new")
    assert (there / "file").read_text() == "new"
    assert names(there.parent) == ["model"]


def test_a_new_folder_that_cannot_be_moved_leaves_the_old_one(there: Path, monkeypatch):
    """Where the second step fails the first is undone."""
    monkeypatch.setattr(whole, "_changed_places", lambda one, other: False)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".paramctl"):
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(FileError, match="cannot be written: input/output error"):
        write(there, "new")
    assert (there / "file").read_text() == "old"
    assert names(there.parent) == ["model"]


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_writer_killed_between_two_steps_loses_nothing(steps: int, how: str, there: Path):
    """The next writer finds the old folder or the new one, whole, and what was left over is gone."""
    done = subprocess.run([sys.executable, "-c", _KILLED, str(there), str(steps), how], check=False, timeout=60)
    assert done.returncode == -getattr(signal, how)
    with pytest.raises(FileError, match="a folder that is not empty"), whole.replacing_folder(str(there)):
        pass
    assert (there / "file").read_text() == ("old" if how == "SIGKILL" and steps < 2 else "new")
    write(there, "newer")
    assert (there / "file").read_text() == "newer"
    assert names(there.parent) == ["model"]


def test_what_another_process_has_put_aside_is_its_own(there: Path):
    """A folder aside that is locked is left alone."""
    aside = whole._aside(there)
    aside.mkdir()
    descriptor = os.open(aside, os.O_RDONLY)
    assert whole._lock(descriptor)
    write(there, "new")
    assert aside.exists()
    os.close(descriptor)
    write(there, "newer")
    assert names(there.parent) == ["model"]
