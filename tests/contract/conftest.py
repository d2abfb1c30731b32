"""What several contract tests need of the kernel."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.support import unavailable

pytest.register_assert_rewrite("tests.contract.crash_scene")


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Path]:
    """A frozen file system of its own: who writes there is in state D, out of SIGKILL's reach, until it is thawed."""
    image, mount = tmp_path / "image", tmp_path / "frozen"
    mount.mkdir()
    image.write_bytes(b"")
    os.truncate(image, 8 << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        unavailable("no loop device to mount")
    try:
        mount.chmod(0o777)
        subprocess.run(["fsfreeze", "-f", str(mount)], check=True)
        yield mount
    finally:
        subprocess.run(["fsfreeze", "-u", str(mount)], check=False, capture_output=True)
        subprocess.run(["umount", "-l", str(mount)], check=True)
