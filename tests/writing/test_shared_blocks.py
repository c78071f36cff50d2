"""On a filesystem that shares blocks between files, an edit copies nothing: one is made, and mounted, for the test."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow
MIB = 1 << 20


@pytest.fixture(params=["xfs", "btrfs"])
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on such a filesystem."""
    make, image, folder = f"mkfs.{request.param}", tmp_path / "image", tmp_path / "volume"
    if shutil.which(make) is None:
        pytest.skip(f"there is no {make}")
    image.touch()
    os.truncate(image, 512 * MIB)
    folder.mkdir()
    subprocess.run([make, "-q", image], check=True, capture_output=True)
    done = subprocess.run(["mount", "-o", "loop", image, folder], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no filesystem can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def free(folder: Path) -> int:
    os.sync()
    status = os.statvfs(folder)
    return status.f_bavail * status.f_bsize


@pytest.mark.parametrize("words", [("-o", "new.pt"), ("--in-place",)], ids=" ".join)
def test_one_value_takes_no_room(words, volume, run, monkeypatch):
    """A value in a file of 64 MiB is changed, into another file or in place, for less than 2 MiB."""
    monkeypatch.chdir(volume)
    torch.save({"w": torch.arange(8 * MIB, dtype=torch.int64), "b": torch.ones(3)}, "m.pt")
    before = free(volume)
    done = run("set", "m.pt", "w[5] = 7", *words)
    assert (done.code, done.err) == (0, "")
    assert before - free(volume) < 2 * MIB
    expected = torch.arange(8 * MIB, dtype=torch.int64)
    expected[5] = 7
    assert torch.equal(torch.load(words[-1] if "-o" in words else "m.pt")["w"], expected)
