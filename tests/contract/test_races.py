"""Many processes at one state directory, some killed in mid-operation: no unit granted twice, none lost.

`GPU_NODEAGENT_RACE_OPERATIONS` sets how many operations there are (10^5 by default; a soak does 10^6),
`GPU_NODEAGENT_RACE_WORKERS` how many processes, `GPU_NODEAGENT_RACE_SEED` what they choose.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.agent.reconciler import Reconciler
from nodeagent.gpu.facts import GpuFacts, NodeFacts
from nodeagent.lock.record import HOLD
from nodeagent.state.boot import boot_id
from nodeagent.state.verdict_file import OK, UnitLine
from tests.contract.race_witness import KILLED, RELEASING, Log, Proof, WitnessedStore
from tests.contract.race_worker import EndedWithTheirProcess, Journal, Shared, run
from tests.support import LaidOutNode, uuid

OPERATIONS = int(os.environ.get("GPU_NODEAGENT_RACE_OPERATIONS", "100000"))
WORKERS = int(os.environ.get("GPU_NODEAGENT_RACE_WORKERS", "64"))
SEED = int(os.environ.get("GPU_NODEAGENT_RACE_SEED", "3"))
WHOLE, INSTANCES, SHARES = 8, 3, 3
SHARED = uuid(WHOLE - 1)
KILL_EVERY = 0.25
SECONDS = 120 + OPERATIONS / 500


def units() -> tuple[UnitLine, ...]:
    """Return seven whole GPUs, one that three jobs share, and three instances of a ninth."""
    names = [(uuid(i), uuid(i)) for i in range(WHOLE)] + [(f"MIG-{i}", uuid(WHOLE)) for i in range(INSTANCES)]
    links = (1,) * len(names)
    return tuple(
        UnitLine(unit, at, at, f"0000:{at:02x}:00.0", "H100", 0, links, OK, "", gpu, (), SHARES if gpu == SHARED else 1)
        for at, (unit, gpu) in enumerate(names)
    )


class Race:
    """The processes, one a slot; one that is killed is followed by another."""

    def __init__(self, state: Path, logs: Path) -> None:
        self.state, self.logs = state, logs
        self.log = Log(logs / "parent")
        self.shared = Shared(WORKERS)
        self.generation = [0] * WORKERS
        self.running: dict[int, int] = {}
        self.failed: list[int] = []
        self._choices = random.Random(SEED)  # noqa: S311  a race, not a secret

    def start(self, slot: int) -> None:
        quota = (OPERATIONS + WORKERS - 1) // WORKERS
        pid = os.fork()
        if pid == 0:
            try:
                name = f"{slot:03d}.{self.generation[slot]:04d}"
                run(self.state, Log(self.logs / name), slot, f"{SEED}/{name}", quota, self.shared, units())
            finally:
                os._exit(1)  # whatever happened: this process must not go on as a second test
        self.generation[slot] += 1
        self.running[slot] = pid

    def look_after(self) -> None:
        """Replace who was killed; forget who is done."""
        for slot, pid in list(self.running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            del self.running[slot]
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                self.start(slot)
            elif status:
                self.failed.append(slot)

    def kill(self, slot: int) -> None:
        self.log.say(KILLED, self.running[slot])  # before it is done: whatever is freed for it is freed later
        os.kill(self.running[slot], signal.SIGKILL)

    def run(self) -> None:
        """Run to the end, or until one process found something wrong."""
        deadline = time.monotonic() + SECONDS
        next_kill = time.monotonic() + KILL_EVERY
        try:
            for slot in range(WORKERS):
                self.start(slot)
            while self.running and not self.failed:
                assert time.monotonic() < deadline, f"{self.shared.total()} operations in {SECONDS} s"
                time.sleep(0.01)
                self.look_after()
                if self.running and time.monotonic() > next_kill:
                    next_kill += KILL_EVERY
                    self.kill(self._choices.choice(list(self.running)))
        finally:
            for slot, pid in self.running.items():
                self.kill(slot)
                os.waitpid(pid, 0)

    def clean_up(self, node: LaidOutNode) -> None:
        """What an agent does in two cycles, and an administrator with the holds of people who are gone."""
        store = WitnessedStore(node.state, self.log)
        reconciler = Reconciler(store, EndedWithTheirProcess(), Journal(self.log))
        idle = tuple(GpuFacts(gpu) for gpu in {unit.gpu for unit in units()})
        for _ in range(2):
            reconciler.run(NodeFacts(boot_id=boot_id("/proc"), monotonic=time.monotonic(), gpus=idle), {})
        with store.exclusive():
            for owner in store.owners().values():
                if owner.scheduler == HOLD:
                    self.log.say(RELEASING, owner.grant)
            store.release(lambda owner: owner.scheduler == HOLD)
            store.sweep()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Return a directory on a tmpfs, where there is one: that is what /run is."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="gpu-nodeagent-race-", dir="/dev/shm") as name:
        yield Path(name)


@pytest.mark.timeout(SECONDS + 60)
def test_no_unit_is_granted_twice_and_none_is_lost(place: Path) -> None:
    logs = place / "logs"
    logs.mkdir()
    node = LaidOutNode(place, "local", gpus=WHOLE)
    race = Race(node.state_dir, logs)
    began = time.monotonic()
    race.run()
    took = time.monotonic() - began
    race.clean_up(node)
    shares = {f"{SHARED}@{k}": SHARED for k in range(SHARES)}
    proof = Proof({unit.unit: unit.gpu for unit in units()} | shares)
    proof.read(logs)
    print(f"{race.shared.total()} operations by {WORKERS} processes in {took:.1f} s: {dict(proof.count)}")

    assert not proof.wrong, "\n".join([f"{len(proof.wrong)} wrong, seed {SEED}:", *proof.wrong[:20]])
    assert not race.failed
    assert race.shared.total() >= OPERATIONS
    assert proof.left() == {}
    assert os.listdir(node.state_dir / "locks") == []
    # what the proof is worth: enough happened, and enough of it in the middle of something
    assert proof.count["granted"] > OPERATIONS / 20
    assert proof.count["shares granted"] > OPERATIONS / 1000
    assert proof.count["killed"] > OPERATIONS / 2000
    assert proof.count["grants of the dead freed"] > OPERATIONS / 10000
    assert proof.count["swept"] > OPERATIONS / 20000
