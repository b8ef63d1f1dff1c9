"""A file system that is soon full, for the tests of what happens then."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_file_system(size: int, directory: Path) -> Generator[Path]:
    """A directory with so many bytes of space; needs root."""
    if os.geteuid() != 0:
        pytest.skip("to mount a small tmpfs takes root")
    directory.mkdir()
    options = f"size={size},mode=700"
    command = ["mount", "-t", "tmpfs", "-o", options, "tsupervise-test", str(directory)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)
