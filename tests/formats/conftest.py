"""What the tests of formats share."""

from __future__ import annotations

from pathlib import Path

import pytest

from paramctl import formats, source
from paramctl.checkpoint import Checkpoint


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What `formats.read` makes of these bytes, in a file called m."""
    monkeypatch.chdir(tmp_path)

    def _read(data: bytes) -> Checkpoint:
        Path("m").write_bytes(data)
        return formats.read(source.resolve("m"))

    return _read
