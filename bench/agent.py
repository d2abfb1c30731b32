"""What the agent costs a node at rest: processor time and memory of both its processes, eight simulated GPUs.

The agent is the installed command with its own probe process; NVML is the stand-in library, so the driver's share is
not in the figures. A scrape of the metrics every 15 s is, as a Prometheus server makes it.
"""

from __future__ import annotations

import time

from bench.failure import BenchFailed
from bench.figure import Figure
from bench.simulated_agent import SimulatedAgent, running

SCRAPE_EVERY = 15.0
CPU_LIMIT = 0.5
PSS_LIMIT = 60.0


def measure(seconds: float) -> list[Figure]:
    """Watch an agent at rest for at least `seconds` and return the figures.

    Raises:
        BenchFailed: the agent did not come up, or did not go on.

    """
    with running() as agent:
        agent.wait_for_verdict()
        agent.wait_for_verdict()  # the second cycle: what the first one imported and built is behind it
        return _watch(agent, seconds)


def _watch(agent: SimulatedAgent, seconds: float) -> list[Figure]:
    began = time.monotonic()
    before = agent.processor_seconds()
    largest: dict[str, float] = {}
    cycles = scrapes = 0
    scrape_at = began + SCRAPE_EVERY
    while time.monotonic() < began + seconds:
        agent.wait_for_verdict()
        cycles += 1
        if time.monotonic() >= scrape_at:
            agent.scrape()
            scrapes += 1
            scrape_at = time.monotonic() + SCRAPE_EVERY
        sizes = agent.pss()
        if sum(sizes.values()) > sum(largest.values()):
            largest = sizes
    took = time.monotonic() - began
    after = agent.processor_seconds()
    if after.keys() != before.keys():
        raise BenchFailed(f"the agent's processes changed: {sorted(before)} before, {sorted(after)} after")
    used = {name: (after[name] - before[name]) / took * 100 for name in after}
    note = f"{took:.0f} s, {cycles} cycles, {scrapes} scrapes"
    found = [Figure("agent", "processor, both processes", sum(used.values()), "%", CPU_LIMIT, note=note)]
    found += [Figure("agent", f"processor, {name}", share, "%") for name, share in used.items()]
    found.append(Figure("agent", "memory (PSS), both processes", sum(largest.values()), "MB", PSS_LIMIT))
    found += [Figure("agent", f"memory (PSS), {name}", size, "MB") for name, size in largest.items()]
    return found
