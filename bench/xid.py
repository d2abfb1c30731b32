"""How long a GPU that has failed goes on being granted: from an XID in the NVML library to the verdict file.

The agent is the installed command, at rest at its usual interval, on eight simulated GPUs. XID 79 comes at any moment
between two of its cycles, to one GPU after the other. The clock runs from the moment at which the stand-in library has
the event, which it hands on at once, as a real one does.
"""

from __future__ import annotations

import random
import statistics
import time

from bench.failure import BenchFailed
from bench.figure import Figure
from bench.simulated_agent import GPUS, INTERVAL, SimulatedAgent, running
from nodeagent.state.verdict_file import FAILED

LIMIT = 0.5
LOOK_EVERY = 0.001
FELL_OFF_THE_BUS = 79
KEEP_ALL = "policy: {reboot_node: tell}\n"
"""Nothing is retired: beside a retired idle GPU XIDs come from the kernel log, and what is measured here is NVML."""
REST = (0.3, 4.0)
"""Seconds from the end of a cycle to the XID."""


def measure(xids: int, interval: float = INTERVAL, rest: tuple[float, float] = REST) -> list[Figure]:
    """Send so many XIDs, to a fresh agent after each GPU has had one, and return the figures.

    Raises:
        BenchFailed: the agent did not come up, did not go on, or passed over an XID.

    """
    rng = random.Random(7)  # noqa: S311  the same moments in each run
    times: list[float] = []
    while len(times) < xids:
        with running(interval, KEEP_ALL) as agent:
            agent.wait_for_verdict()
            for slot in range(min(GPUS, xids - len(times))):
                agent.wait_for_verdict()  # a cycle in its turn: only one in between is hurried
                time.sleep(rng.uniform(*rest))
                times.append(_until_failed(agent, slot))
    note = f"{len(times)} XIDs, {GPUS} GPUs"
    return [
        Figure("xid", "XID to verdict, worst", max(times), "s", LIMIT, note=note),
        Figure("xid", "XID to verdict, median", statistics.median(times), "s", LIMIT),
    ]


def _until_failed(agent: SimulatedAgent, slot: int) -> float:
    uuid = agent.scenario.uuid(slot)
    agent.scenario.xid(slot, FELL_OFF_THE_BUS)
    began = time.monotonic()
    agent.wait_for_verdict(LOOK_EVERY)
    took = time.monotonic() - began
    if agent.states().get(uuid) != FAILED:
        raise BenchFailed(f"XID {FELL_OFF_THE_BUS} of {uuid}: the next verdict is {agent.states().get(uuid)}")
    return took
