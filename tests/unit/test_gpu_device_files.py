"""Device files as facts: what they are, links followed; a missing one has no kind."""

from __future__ import annotations

import os
from pathlib import Path

from nodeagent.gpu.device_files import look, with_device_files
from nodeagent.gpu.host import DeviceFile
from tests.unit.test_health_facts import gpu, node


def test_each_gpus_file_is_told_and_nvidiactl(tmp_path: Path) -> None:
    for name, mode in (("nvidiactl", 0o666), ("nvidia0", 0o640)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    (tmp_path / "nvidia1").mkdir()
    (tmp_path / "nvidia2").symlink_to("nowhere")
    facts = with_device_files(node(gpu(0), gpu(1), gpu(2), gpu(3, minor=None)), str(tmp_path))
    files = [one.device for one in facts.gpus]
    assert [file and file.kind for file in files] == ["-", "?", "", None]
    own = (os.getuid(), os.getgid())
    assert files[0] == DeviceFile("-", 0o640, *own)
    assert facts.control == DeviceFile("-", 0o666, *own)


def test_a_device_is_told_by_its_number() -> None:
    null = look("/dev/null")
    assert (null.kind, null.major, null.minor) == ("c", 1, 3)


def test_without_nvidiactl_there_is_a_file_without_a_kind(tmp_path: Path) -> None:
    assert with_device_files(node(gpu(0)), str(tmp_path)).control == DeviceFile()
