"""The choice of a job's GPUs: how well the chosen ones are linked, against first-fit, and how long a choice takes.

A stream of jobs comes to one node; a job that does not fit waits, and all behind it. Whatever GPUs a job gets, it ends
when it would have: so each way of choosing meets the same jobs at the same times, and only the choice differs. A job's
links are given as a share of the best that a job of its size finds on the empty node; jobs of one GPU, and of all, have
no choice and are not counted.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.failure import BenchFailed
from bench.figure import Figure
from nodeagent.gpu.topology import TO_GPU, TO_SWITCH, NvLink, Place, link_qualities
from nodeagent.lock.placement import choose
from tests.simnvml import topology
from tests.simnvml.models import MODELS

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "/usr/bin/python3"
LIMIT_MS = 5.0
JOBS = 4000
REPEATS = 25
SIZES = {1: 8, 2: 6, 3: 1, 4: 6, 8: 2}
"""Jobs of so many GPUs come so often."""
LOAD = 0.75
"""GPUs asked for over GPUs there, in the long run."""
NODES = {
    "A100 NVSwitch": ("nvswitch", "A100-80GB", (8, 16)),
    "H100 NVSwitch": ("nvswitch", "H100-80GB", (8, 16)),
    "V100 cube mesh": ("cube-mesh", "V100-32GB", (8,)),
    "L40S PCIe": ("pcie", "L40S", (8, 16)),
}

Table = list[list[int]]
Choice = Callable[[int, Table, list[int]], list[int]]
"""How many of the free GPUs; their links; their NUMA nodes -> their positions."""


@dataclass(frozen=True)
class Layout:
    """A node's GPUs in the order of their bus ids: the quality of each pair's links, and their NUMA nodes."""

    links: Table
    numa: list[int]

    def mean_link(self, gpus: Sequence[int]) -> float:
        """Return the mean quality over the pairs."""
        return statistics.fmean(self.links[i][j] for i, j in itertools.combinations(gpus, 2))


def layout(shape: str, model: str, gpus: int) -> Layout:
    """Return one of tests/simnvml's nodes as the agent would see it."""
    where = topology.places(shape, gpus)
    nvlinks = topology.links(shape, MODELS[model], where)
    version = MODELS[model].nvlink_version or 0
    kinds = {"gpu": TO_GPU, "switch": TO_SWITCH}
    seen = {
        here.bus_id: Place(
            [NvLink(version, kinds[link.kind], link.remote) for link in own],
            {there.bus_id: _ancestor(here, there) for there in where if there is not here},
        )
        for here, own in zip(where, nvlinks)
    }
    table = link_qualities(seen)
    ids = [place.bus_id for place in where]
    return Layout([[table[i].get(j, 0) for j in ids] for i in ids], [place.numa_node for place in where])


def _ancestor(here: topology.Place, there: topology.Place) -> int:
    if here.pcie_switch == there.pcie_switch:
        return 10
    if here.host_bridge == there.host_bridge:
        return 30
    return 40 if here.numa_node == there.numa_node else 50


def layouts() -> dict[str, Layout]:
    """Return the nodes by name."""
    return {
        f"{gpus} x {name}": layout(shape, model, gpus)
        for name, (shape, model, sizes) in NODES.items()
        for gpus in sizes
    }


def first_fit(count: int, _links: Table, _numa: list[int]) -> list[int]:
    """Choose the lowest."""
    return list(range(count))


def pack(count: int, links: Table, _numa: list[int]) -> list[int]:
    """Choose as with `placement: pack`."""
    return choose(count, links)


def spread(count: int, links: Table, numa: list[int]) -> list[int]:
    """Choose as with `placement: spread`."""
    return choose(count, links, None, numa)


@dataclass
class Outcome:
    """What the jobs of a stream got: mean link quality, its share of the best there is, company of one-GPU jobs.

    `neighbours` is how many other busy GPUs a job of one GPU finds on its NUMA node as it starts.
    """

    quality: float
    share: float
    neighbours: float


def stream(node: Layout, way: Choice, jobs: int = JOBS, seed: int = 1) -> Outcome:
    """Run a stream of jobs through a node and return what they got."""
    rng = random.Random(seed)  # noqa: S311  a stream to be had again, not a secret
    total = len(node.links)
    sizes = [size for size in SIZES if size <= total]
    weights = [SIZES[size] for size in sizes]
    apart = sum(s * w for s, w in zip(sizes, weights)) / sum(weights) / (LOAD * total)
    best = {size: node.mean_link(choose(size, node.links)) for size in sizes if size > 1}
    free = set(range(total))
    running: list[tuple[float, int, list[int]]] = []
    quality: list[float] = []
    share: list[float] = []
    neighbours: list[int] = []
    arrival = now = 0.0
    for number in range(jobs):
        arrival += rng.expovariate(1 / apart)
        size = rng.choices(sizes, weights)[0]
        lasts = rng.expovariate(1.0)
        now = max(now, arrival)
        while running and (running[0][0] <= now or len(free) < size):
            end, _, gone = heapq.heappop(running)
            now = max(now, end)
            free.update(gone)
        left = sorted(free)
        found = way(size, [[node.links[i][j] for j in left] for i in left], [node.numa[i] for i in left])
        got = [left[at] for at in found]
        if not 0 < size == len(set(got)):
            raise BenchFailed(f"a job for {size} GPUs got {got}")
        free.difference_update(got)
        heapq.heappush(running, (now + lasts, number, got))
        if 1 < size < total:
            quality.append(node.mean_link(got))
            share.append(quality[-1] / best[size])
        elif size == 1:
            neighbours.append(sum(node.numa[i] == node.numa[got[0]] for i in set(range(total)) - free) - 1)
    return Outcome(statistics.fmean(quality), statistics.fmean(share), statistics.fmean(neighbours))


def measure() -> list[Figure]:
    """Run the streams, time the choices and return the figures.

    Raises:
        BenchFailed: a choice was none, or could not be timed.

    """
    nodes = layouts()
    figures = []
    for name, node in nodes.items():
        ours, even, plain = (stream(node, way) for way in (pack, spread, first_fit))
        figures += [
            Figure(
                "placement",
                f"{name}: links of the best",
                100 * ours.share,
                "%",
                note=f"first-fit {100 * plain.share:.2f} %, spread {100 * even.share:.2f} %; mean quality "
                f"{ours.quality:.3f}, first-fit {plain.quality:.3f}, spread {even.quality:.3f}",
            ),
            Figure(
                "placement",
                f"{name}: busy neighbours, spread",
                even.neighbours,
                "GPUs",
                note=f"first-fit {plain.neighbours:.2f}, pack {ours.neighbours:.2f}: on a one-GPU job's NUMA node",
            ),
        ]
    for name, times in _timed(questions(nodes)).items():
        note = f"median {statistics.median(times):.2f} ms, {len(times)} choices"
        figures.append(Figure("placement", f"choice, {name}", max(times), "ms", LIMIT_MS, note=note))
    return figures


Question = tuple[list[int], Table, list[int]]
"""Each of these counts; of units with these links; on these NUMA nodes."""


def questions(nodes: Mapping[str, Layout]) -> dict[str, Question]:
    """Return what is timed: each node empty, units that all differ, and many MIG instances."""
    rng = random.Random(2)  # noqa: S311  the same links in each run
    asked: dict[str, Question] = {}
    for name, node in nodes.items():
        asked[name] = ([4, 5, 6, 7, 8] if len(node.links) > 8 else [2, 4], node.links, node.numa)
    greatest = max(max(row) for node in nodes.values() for row in node.links)
    for name, units, counts in (("16 all different", 16, [4, 5, 6, 7, 8]), ("64 all different", 64, [1, 8, 32, 63])):
        different = [[0] * units for _ in range(units)]
        for i, j in itertools.combinations(range(units), 2):
            different[i][j] = different[j][i] = rng.randint(1, greatest)
        asked[name] = (counts, different, [2 * i // units for i in range(units)])
    instances = [[6 if i // 8 == j // 8 else 2 if i // 32 == j // 32 else 1 for j in range(64)] for i in range(64)]
    asked["64 MIG instances"] = ([1, 8, 32, 63], instances, [i // 32 for i in range(64)])
    return asked


_TIMER = """
import sys, time, json
sys.path.insert(0, sys.argv[1])
from nodeagent.lock.placement import choose
times = {}
for name, (counts, links, numa) in json.load(sys.stdin).items():
    ranks = [at % 2 for at in range(len(links))]
    for spread in (None, numa):
        for count in counts:
            for preference in (None, ranks):
                for _ in range(int(sys.argv[2])):
                    began = time.thread_time_ns()
                    choose(count, links, preference, spread)
                    times.setdefault(name, []).append((time.thread_time_ns() - began) / 1e6)
print(json.dumps(times))
"""


def _timed(asked: Mapping[str, Question]) -> dict[str, list[float]]:
    """Return the processor time of each choice, in milliseconds, in the interpreter that hooks run in.

    A choice only computes: the clock on the wall would add what others do on the machine meanwhile.
    """
    argv = [PYTHON, "-IS", "-c", _TIMER, str(ROOT), str(REPEATS)]
    try:
        done = subprocess.run(argv, input=json.dumps(asked), capture_output=True, text=True, timeout=300, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise BenchFailed(f"choices could not be timed: {error}") from error
    times: dict[str, list[float]] = json.loads(done.stdout)
    return times
