"""Packages of other people, fetched by name and version."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def fetched(tmp_path_factory: pytest.TempPathFactory):
    """Where a requirement's wheel is; $PARAMCTL_LIGHT_CORPUS keeps them between runs."""
    folder = Path(os.environ.get("PARAMCTL_LIGHT_CORPUS") or tmp_path_factory.mktemp("wheels"))

    def _fetched(requirement: str) -> Path:
        place = folder / requirement
        if not list(place.glob("*.whl")):
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(place), requirement]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            if done.returncode:
                pytest.skip(f"{requirement} could not be fetched")
        return next(place.glob("*.whl"))

    return _fetched
