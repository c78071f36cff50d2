"""A file on its way to the disk while it is written."""

from __future__ import annotations

import os
import threading

import pytest

from paramctl.formats import writeback


def test_it_begins_where_it_can(tmp_path):
    """The system takes the call for a file on a disk, and refuses it for a pipe, which has nothing to write back."""
    (tmp_path / "f").write_bytes(bytes(1 << 20))
    os.mkfifo(tmp_path / "pipe")
    assert writeback.beginning()(tmp_path / "f")
    assert not writeback.beginning()(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["f", "."])
def test_it_ends_with_the_block(name, tmp_path):
    """What is written within is there, an error is the block's own, and no thread stays."""
    before = threading.active_count()

    def write() -> None:
        with (tmp_path / "f").open("w+b") as file, writeback.flowing(tmp_path / name, large=0):
            os.pwrite(file.fileno(), b"abc" * 100_000, 5)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert (tmp_path / "f").read_bytes() == bytes(5) + b"abc" * 100_000
    assert threading.active_count() == before
