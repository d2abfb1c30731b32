"""tests/hardware on the stand-in library, so that it still runs when somebody has a board; without a GPU, a line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hardware.place import ROOTS
from tests.simnvml import Process, Scenario, fake_roots
from tests.simulated_node import ROOT


def run(*argv: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *argv], cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=110
    )


@pytest.fixture
def board(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that takes two played GPUs for real ones."""
    scenario = Scenario(tmp_path / "scenario", gpus=2, model="H100-80GB")
    with scenario.edit():
        for slot in scenario.slots:  # a driver that was loaded long ago
            scenario.set(slot, energy_mj=5 * 10**9)
    fake_roots(tmp_path / "roots", scenario)
    (tmp_path / "out").mkdir()
    return {**os.environ, **scenario.env, ROOTS: str(tmp_path / "roots"), "OUT": str(tmp_path / "out")}


def test_the_suite_passes_on_the_stand_in(board: dict[str, str], tmp_path: Path) -> None:
    done = run("tests.hardware", "-q", "-p", "no:cacheprovider", env=board)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d\d passed", done.stdout) and "skipped" not in done.stdout
    facts = json.loads((tmp_path / "out/hardware.json").read_text())
    assert {"first_sweep_s", "later_sweeps_s", "calls_us", "calls_a_sweep_ms", "codes", "abi"} <= set(facts)
    assert facts["differs_from_stand_in"] == {}


def test_it_sees_a_board_that_answers_otherwise(board: dict[str, str], tmp_path: Path) -> None:
    """The comparison is one: a call that this board does not support, and a list that says so without 7."""
    scenario = Scenario(tmp_path / "scenario", gpus=2, model="H100-80GB")
    with scenario.edit():
        scenario.fault("nvmlDeviceGetEnforcedPowerLimit", 3)
        scenario.fault("nvmlDeviceGetPerformanceState", 999)
        scenario.set(0, power_mw=70)
        scenario.processes(0, [Process(4711, 1 << 30)])
        scenario.fault("nvmlDeviceGetComputeRunningProcesses_v3", 0)
    done = run("tests.hardware", "-q", "-p", "no:cacheprovider", env=board)
    failed = set(re.findall(r"^FAILED \S+::(\w+)", done.stdout, re.MULTILINE))
    assert {
        "test_the_same_calls_are_not_supported",
        "test_no_call_failed_for_no_reason",
        "test_unknown_errors_are_none",
        "test_values_are_in_base_units",
    } <= failed, done.stdout


def test_without_a_gpu_it_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "sys/bus/pci/devices").mkdir(parents=True)
    env = {**os.environ, ROOTS: str(tmp_path), "CI": "true"}
    line = "tests/hardware: not run, there is no NVIDIA GPU on the PCI bus"
    made = run("tests.hardware", env=env)
    assert (made.returncode, made.stdout.strip()) == (0, line)
    collected = run(
        "pytest", "-q", "-p", "no:cacheprovider", "tests/hardware", "tests/unit/test_gpu_output.py", env=env
    )
    assert collected.returncode == 0, collected.stdout
    assert line in collected.stdout and "skipped" not in collected.stdout


def test_a_gpu_without_nvml_is_a_line(board: dict[str, str]) -> None:
    scenario = {name: value for name, value in board.items() if name != "LD_LIBRARY_PATH"}
    made = run("tests.hardware", env=scenario)
    assert made.returncode == 0
    assert "2 NVIDIA GPUs on the PCI bus, but NVML does not answer" in made.stdout
