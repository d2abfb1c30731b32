"""Writes a state directory as this release does, for tests/recorded/state: `python -m tests.record_state DIRECTORY`.

Each release adds its own, named after its version, and leaves the others as they are: a node is upgraded while jobs
hold locks (tests/unit/test_upgrade.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

from nodeagent.config.compile import hook_settings
from nodeagent.config.model import Config
from nodeagent.hook.node import Node
from nodeagent.hook.prolog import record
from nodeagent.lock.record import HOLD, Owner
from nodeagent.state.files import Directory
from nodeagent.state.hook_conf import HOOK_CONF, Gres, HookConf, Source
from nodeagent.state.verdict_file import OK, VERDICT, UnitLine, VerdictFile

BOOT = "0b7cf1b4-5f5e-4f8e-9a51-7f4b3f0d0001"
GPUS = tuple(f"GPU-0000000{at}-0000-4000-8000-000000000000" for at in range(6))
INSTANCES = tuple(f"MIG-0000000{at}-0000-5000-8000-000000000000" for at in range(2))
SHARED = GPUS[5]


def verdict() -> VerdictFile:
    """Return the agent's word: four whole GPUs, one in MIG mode, one that is shared."""
    names = (*GPUS[:4], *INSTANCES, SHARED)
    units = []
    for at, name in enumerate(names):
        gpu = GPUS[4] if name in INSTANCES else name
        minor = GPUS.index(gpu)
        links = tuple(0 if other == name else 5 for other in names)
        line = UnitLine(name, minor, minor, f"0000:0{minor}:00.0", "NVIDIA H100", 0, links, OK, "", gpu)
        if name in INSTANCES:
            line.index, line.model, line.caps = -1, "NVIDIA H100 MIG 3g.40gb", (22 + 2 * at, 23 + 2 * at)
        line.slots = 4 if name == SHARED else 1
        units.append(line)
    return VerdictFile(BOOT, 100.0, tuple(units), 7, 10.0, "550.54.15")


def write_state(directory: Path) -> None:
    """Write a state directory with a lock of each kind, a hold, a retired GPU, hook.conf, verdict and events."""
    state = Directory(str(directory), create=True)
    word = verdict()
    state.replace(VERDICT, word.encode())
    settings = {**hook_settings(Config(node_name="n1")), "scheduler.sge.admin_uids": "0"}
    gres = {0: Gres(0), 1: Gres(4, (30, 31)), 2: Gres(5, (), 4)}
    sources = (Source("/etc/gpu-nodeagent/config.yaml", 5, 6, "ab"),)
    state.replace(HOOK_CONF, HookConf(settings, sources, gres).encode())
    node = Node(state, BOOT, None, word, fresh=True)
    run = "/spool/active_jobs/42.3"
    for owner, unit in (
        (Owner("slurm", "41", cluster="lab", grant="a" * 16, run="0"), GPUS[0]),
        (Owner("sge", "42", "3", cluster="default", grant="b" * 16, run=run), INSTANCES[0]),
        (Owner("slurm", "43", cluster="lab", grant="c" * 16, run="0"), SHARED),
        (Owner(HOLD, grant="d" * 16, run="a fan is loud"), GPUS[1]),
    ):
        owner.node, owner.user, owner.uid = "n1", "alice", "1000"
        owner.pid, owner.pid_start, owner.boot_id, owner.since = "4242", "77", BOOT, 1_700_000_000
        record(node, owner, [line for line in word.units if line.unit == unit])
        node.event("grant", owner, units=" ".join(owner.units))
    with node.store.exclusive():
        node.store.retire(GPUS[2], [("reason", "GPU2 Xid 79"), ("check", "xid"), ("by", "agent")])


if __name__ == "__main__":
    write_state(Path(sys.argv[1]).absolute())
