"""Open device files of real processes, whatever mount namespace they have them from."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from nodeagent.state.processes import holding, open_devices

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes device nodes: root only")
NULL = os.makedev(1, 3)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "nvidia0"
    os.mknod(path, 0o20666, NULL)
    return path


@as_root
def test_a_device_that_is_open_as_a_path_only_is_not_held(device: Path) -> None:
    for flags, held in ((os.O_RDONLY, {NULL}), (os.O_PATH, set())):
        fd = os.open(device, flags)
        try:
            assert open_devices("/proc", os.getpid()) == held
        finally:
            os.close(fd)


@as_root
def test_a_device_from_a_mount_namespace_of_the_jobs_own_is_found(device: Path, tmp_path: Path) -> None:
    script = f"mount -t tmpfs none {tmp_path} && mknod {device} c 1 3 && exec 3<{device} && echo open && read -r _"
    argv = ["unshare", "-m", "sh", "-c", script]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"open\n"
        assert [found.pid for found in holding("/proc", {NULL}, [process.pid])] == [process.pid]
        process.communicate(b"\n", timeout=10)
    assert holding("/proc", {NULL}, [process.pid]) == []
