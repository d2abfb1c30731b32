"""Agent and probe process are as large after 10^4 polls as after the first thousands; a soak makes 10^5 of eight GPUs.

`GPU_NODEAGENT_MEMORY_POLLS` sets how many polls there are, `GPU_NODEAGENT_MEMORY_GPUS` of how many GPUs. Few GPUs make
a poll cheap: what leaks once a poll, a message or a call leaks with one GPU as with eight.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.contract.memory_scene import Report, Size
from tests.simnvml import Process
from tests.simulated_node import ROOT, SimulatedNode

POLLS = int(os.environ.get("GPU_NODEAGENT_MEMORY_POLLS", "10000"))
GPUS = int(os.environ.get("GPU_NODEAGENT_MEMORY_GPUS", "1"))
CYCLE_EVERY = 10
REPORTS = 100
WARM_UP = 0.3
"""The share of the polls in which caches fill, the windows of health checks among them."""
MOST_GROWTH_KIB = 256
"""What the fitted line may rise by in the polls after that. A leaked object takes 50 bytes or more: one at each of
7,000 polls is 350 KiB, at each of 70,000 ten times as much. The line of a sound agent rises by some 30 KiB."""
SECONDS = 120 + POLLS / 10
"""A poll of one GPU takes 2 ms on an idle machine, one of eight 8 ms, and a busy machine several times as long."""


def growth(points: Sequence[tuple[int, int]]) -> float:
    """Return what the least-squares line through points (x, y) rises by from the first x to the last."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return slope * (points[-1][0] - points[0][0])


def test_the_line_is_that_of_a_leak() -> None:
    saw = [0, 80, 10, 60]
    flat = [(poll, 20_000 + saw[poll % 4]) for poll in range(200)]
    assert abs(growth(flat)) < 10
    assert growth([(poll, kib + 3 * poll) for poll, kib in flat]) == pytest.approx(3 * 199, abs=10)


def change(node: SimulatedNode, number: int) -> None:
    """Let happen on the node's GPUs what happens on any: load, other processes, now and then a user's XID."""
    slot = number % GPUS
    with node.scenario.edit():
        node.scenario.set(slot, gpu_util=number % 100, temperature=40 + number % 30)
        node.scenario.processes(slot, [Process(10_000 + number, 1 << 30)] if number % 3 else [])
        if number % 4 == 0:
            node.scenario.xid(slot, 31)


def poll(node: SimulatedNode) -> list[Report]:
    """Have all polls made on that node and return what was reported meanwhile."""
    argv = [sys.executable, "-m", "tests.contract.memory_scene", str(node.config)]
    reports = []
    with subprocess.Popen(
        [*argv, str(POLLS), str(CYCLE_EVERY), str(REPORTS)],
        env=node.environment,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as scene:
        assert scene.stdin is not None and scene.stdout is not None
        try:
            for line in scene.stdout:
                reports.append(Report.of_line(line))
                if len(reports) % 10 == 0:
                    print(reports[-1], flush=True)
                change(node, len(reports))
                scene.stdin.write("\n")
        finally:
            scene.terminate()
    return reports


def judged(name: str, sizes: Sequence[tuple[int, Size]]) -> list[str]:
    """Return what is wrong with how a process went on."""
    settled = sizes[int(len(sizes) * WARM_UP) :]
    rise = growth([(polls, size.kib) for polls, size in settled])
    print(f"{name}: {settled[0][1].kib} KiB after {settled[0][0]} polls, {settled[-1][1].kib} at the end, {rise:+.0f}")
    wrong = [f"{name} grows by {rise:.0f} KiB in {settled[-1][0] - settled[0][0]} polls"] * (rise > MOST_GROWTH_KIB)
    for what in ("descriptors", "threads"):
        first, last = getattr(settled[0][1], what), getattr(settled[-1][1], what)
        wrong += [f"{name} has {last} {what}, had {first}"] * (last > first)
    return wrong


@pytest.mark.timeout(SECONDS)
def test_memory_is_flat(tmp_path: Path) -> None:
    node = SimulatedNode(tmp_path, gpus=GPUS, settings="scheduler: {kind: local}\nlog: {level: error}\n")
    reports = poll(node)
    assert len(reports) == REPORTS
    wrong = judged("agent", [(report.polls, report.agent) for report in reports])
    wrong += judged("probe", [(report.polls, report.probe) for report in reports])
    assert not wrong
