"""A file on its way to the disk while it is written."""

from __future__ import annotations

import os
import threading

import pytest

from paramctl.formats import writeback


def test_it_begins_where_it_can(tmp_path):
    """The system takes the call for a file on a disk, and refuses it for a pipe, which has nothing to write back."""
    with (tmp_path / "f").open("wb") as file:
        file.write(bytes(1 << 20))
        file.flush()
        assert writeback._beginning()(file.fileno())
    for end in os.pipe():
        assert not writeback._beginning()(end)
        os.close(end)


def test_it_ends_with_the_block(tmp_path):
    """What is written within is there, an error is the block's own, and no thread stays."""
    before = threading.active_count()

    def write() -> None:
        with (tmp_path / "f").open("w+b") as file, writeback.flowing(file.fileno(), large=0):
            os.pwrite(file.fileno(), b"abc" * 100_000, 5)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert (tmp_path / "f").read_bytes() == bytes(5) + b"abc" * 100_000
    assert threading.active_count() == before
