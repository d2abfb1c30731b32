"""How many jobs a second a real Slurm runs with our hooks, against the same Slurm with Python hooks that do nothing.

One node with sixteen GPUs and two cores of this machine; each job is /bin/true with one GPU. The hooks are changed
between rounds by a link that prolog and epilog lead through, so that all rounds are of one and the same cluster.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from bench.failure import BenchFailed
from bench.figure import Figure
from bench.place import PYTHON, compiled_library, in_memory
from tests.clusters.process import wait_for
from tests.clusters.slurm import SlurmCluster
from tests.support import LaidOutNode

SLOTS = 16
LIMIT = 0.9
NOOP = "no-op Python hooks"
OURS = "our prolog and epilog"


def measure(jobs: int, rounds: int = 3) -> list[Figure]:
    """Run `jobs` jobs in each of `rounds` rounds with each pair of hooks.

    Raises:
        BenchFailed: a round did not come to its end, or our hooks locked nothing.

    """
    rates: dict[str, list[float]] = {NOOP: [], OURS: []}
    with in_memory() as directory:
        pairs = _hooks(directory)
        current = directory / "current"
        _switch(current, pairs[NOOP])
        with SlurmCluster(
            directory / "slurm", ("n1",), SLOTS, current / "prolog", current / "epilog", cpus=SLOTS
        ) as slurm:
            node = LaidOutNode(directory / "node", "slurm", gpus=SLOTS)
            for number in range(rounds):
                for name in sorted(pairs, reverse=number % 2 == 1):
                    _switch(current, pairs[name])
                    node.write_verdict()
                    rates[name].append(_rate(slurm, jobs))
            granted = (node.state_dir / "events").read_text().count("\tgrant\t")
    if not granted:
        raise BenchFailed("our hooks locked nothing")
    median = {name: statistics.median(found) for name, found in rates.items()}
    note = f"{median[OURS]:.1f} of {median[NOOP]:.1f} jobs/s, {rounds} rounds of {jobs} jobs each"
    lost = median[NOOP] / median[OURS]
    return [
        Figure("jobs", f"Slurm, {NOOP}", median[NOOP], "jobs/s"),
        Figure("jobs", f"Slurm, {OURS}", median[OURS], "jobs/s", note=note),
        Figure("jobs", "no-op jobs/s over ours", lost, "x", 1 / LIMIT, note=f"ours reach {100 / lost:.0f} %"),
    ]


def _hooks(directory: Path) -> dict[str, Path]:
    """Return a directory with `prolog` and `epilog` for each pair."""
    noop, ours = directory / "noop", directory / "ours"
    library = compiled_library(directory / "lib")
    (directory / "slurm").mkdir()
    (directory / "node").mkdir()
    for pair in (noop, ours):
        pair.mkdir()
    for name in ("prolog", "epilog"):
        (noop / name).write_text(f"#!{PYTHON} -IS\npass\n")
        # Slurm's setting takes a path alone, and a wrapper would be one more process
        given = f'sys.argv[1:] = ["--config", "{directory}/node/config.yaml"]\nmain('
        stub = (library / name / "slurm").read_text().replace("\nmain(", f"\n{given}")
        (ours / name).write_text(stub.replace("os.path.realpath(__file__)", f'"{library}/{name}/slurm"'))
        for pair in (noop, ours):
            (pair / name).chmod(0o755)
    return {NOOP: noop, OURS: ours}


def _switch(link: Path, to: Path) -> None:
    fresh = Path(tempfile.mktemp(dir=link.parent))  # noqa: S306  in a directory of ours
    fresh.symlink_to(to)
    fresh.rename(link)


def _rate(slurm: SlurmCluster, jobs: int) -> float:
    """Return jobs a second, from the submission of an array to the end of its last task."""
    began = time.monotonic()
    array = ["-p", "main", "-n1", "--gres=gpu:1", f"--array=0-{jobs - 1}", "-o", "/dev/null"]
    slurm.submit("root", array, "#!/bin/true\n")
    wait_for(lambda: not slurm.squeue("-h", "-t", "PD,R,CG"), 180, f"the end of {jobs} jobs")
    return jobs / (time.monotonic() - began)
