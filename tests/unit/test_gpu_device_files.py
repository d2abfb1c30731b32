"""Device files as facts: there, missing, of another kind, and a node that keeps none."""

from __future__ import annotations

from pathlib import Path

from nodeagent.gpu.device_files import with_device_files
from tests.unit.test_health_facts import gpu, node


def test_each_gpus_file_is_held_against_nvidiactl(tmp_path: Path) -> None:
    for name in ("nvidiactl", "nvidia0"):
        (tmp_path / name).touch()
    (tmp_path / "nvidia1").mkdir()
    (tmp_path / "nvidia2").symlink_to("nowhere")
    facts = with_device_files(node(gpu(0), gpu(1), gpu(2), gpu(3, minor=None)), str(tmp_path))
    assert [one.device_file for one in facts.gpus] == [True, False, False, None]


def test_without_nvidiactl_nothing_is_known(tmp_path: Path) -> None:
    facts = node(gpu(0))
    assert with_device_files(facts, str(tmp_path)) == facts
