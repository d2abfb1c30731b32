"""What a poll of eight GPUs takes beside the NVML calls that it is made of.

A poll is `ProbeProcess.sample`: from the request to the facts in the parent's hands, through a real probe process. On
the stand-in library a call costs next to nothing, so all that can be seen there is our own part, in milliseconds. What
share that is of a poll depends on what a board's calls take, so they are made to take what others have measured:

- 22 us, the least that was found: 90 us for four values of an RTX 5080 (davidboulay/OpenKraken, pull request 3);
- 365 us: 2743 calls a second of nvmlDeviceGetPowerUsage on a K40m (wookayin/gpustat, issue 76).

Both count the binding; of the board's own share the stand-in's is taken off. Lists of processes take longer than either
(2.2 ms a call on an RTX 4090: flightlessmango/MangoHud, pull request 2104), which makes our share smaller.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import metered
from bench.failure import BenchFailed
from bench.figure import Figure
from nodeagent.config.model import Config, Roots
from nodeagent.gpu import probe_worker
from nodeagent.gpu.probe import ProbeProcess
from tests.simnvml import Scenario, fake_roots

GPUS = 8
TIMEOUT = 20.0
WARM_UP = 5
LIMIT = 1.3
OWN_LIMIT_MS = 4.0
"""What a poll may take beside its calls where those cost nothing."""
CALLS = {"22 us": 22e-6, "365 us": 365e-6}
"""What a call takes on a board, the binding's part included, in seconds."""


@dataclass(frozen=True)
class Poll:
    """One poll, in milliseconds: as a whole, in the probe, in NVML's calls; and how many calls."""

    whole: float
    probe: float
    calls: float
    count: int


def measure(polls: int) -> list[Figure]:
    """Poll so many times at each cost of a call, and return the figures.

    Raises:
        BenchFailed: a poll did not read all GPUs.

    """
    free = series(polls, 0.0)
    bare = _median(free, "calls") / free[0].count / 1000
    found = _figures("calls cost nothing", free, None)
    own = statistics.median(poll.whole - poll.calls for poll in free)
    found.append(Figure("poll", "a poll without its NVML calls", own, "ms", OWN_LIMIT_MS, note=_own(free)))
    for name, seconds in CALLS.items():
        found += _figures(f"calls take {name}", series(polls, max(0.0, seconds - bare)), LIMIT)
    return found


def _figures(name: str, polls: list[Poll], limit: float | None) -> list[Figure]:
    ratio = statistics.median(poll.whole / poll.calls for poll in polls)
    calls = _median(polls, "calls")
    parts = f"{_median(polls, 'whole'):.2f} ms, of which {polls[0].count} calls {calls:.2f} ms"
    return [Figure("poll", f"poll / its NVML calls, {name}", ratio, "x", limit, note=f"{parts}, {_own(polls)}")]


def _own(polls: list[Poll]) -> str:
    probe = statistics.median(poll.probe - poll.calls for poll in polls)
    parent = statistics.median(poll.whole - poll.probe for poll in polls)
    return f"the probe's own {probe:.2f} ms, the parent's, outside it, {parent:.2f} ms"


def _median(polls: list[Poll], part: str) -> float:
    return float(statistics.median(getattr(poll, part) for poll in polls))


def series(count: int, late: float) -> list[Poll]:
    """Poll so many times, with each NVML call that many seconds late."""
    with tempfile.TemporaryDirectory(prefix="gpu-nodeagent-bench-") as directory:
        scenario = Scenario(Path(directory) / "scenario", gpus=GPUS)
        if late:
            scenario.delay(late * 1000)
        with _source(Path(directory), scenario) as (source, meter):
            for _ in range(WARM_UP):
                _poll(source, meter)
            return [_poll(source, meter) for _ in range(count)]


def _poll(source: ProbeProcess, meter: metered.Meter) -> Poll:
    before = meter.read()
    began = time.perf_counter_ns()
    facts = source.sample()
    took = time.perf_counter_ns() - began
    if len([gpu for gpu in facts.gpus if gpu.error is None]) != GPUS:
        raise BenchFailed(f"{len(facts.gpus)} GPUs of {GPUS} were read: {facts.nvml_error_text}")
    spent = meter.read() - before
    return Poll(took / 1e6, spent.sweeps_ns / 1e6, spent.calls_ns / 1e6, spent.calls)


@contextmanager
def _source(directory: Path, scenario: Scenario) -> Iterator[tuple[ProbeProcess, metered.Meter]]:
    roots = Roots(**{name: str(path) for name, path in fake_roots(directory / "roots", scenario).items()})
    path = directory / "meter"
    meter = metered.Meter(path)
    boot, probe_worker.BOOT = probe_worker.BOOT, metered.BOOT
    source = ProbeProcess(
        Config(probe_timeout=TIMEOUT, roots=roots), env={**os.environ, **scenario.env, metered.METER: str(path)}
    )
    try:
        yield source, meter
    finally:
        source.close()
        probe_worker.BOOT = boot
