"""Every order in which two hooks, or a hook and the agent or an administrator, can meet at the locks, one by one.

The points are `Store.trace`'s. After each step it is known who stepped, so each change of a lock is that one's doing
and must be its right.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nodeagent.agent.reconciler import Reconciler
from nodeagent.errors import UnitHeld
from nodeagent.gpu.facts import GpuFacts, NodeFacts
from nodeagent.hook import sge, slurm
from nodeagent.lock.record import HOLD, UNREADABLE, Owner
from nodeagent.lock.store import Store
from nodeagent.scheduler.local import LocalScheduler
from nodeagent.state.boot import boot_id
from nodeagent.state.files import write_new
from tests.contract.steps import (
    BEGIN,
    BUSY,
    LOCKED,
    OVER,
    RETURNED,
    UNLOCKED,
    Stepped,
    SteppedStore,
    every_order,
)
from tests.sge_files import SgeJob
from tests.support import LaidOutNode, uuid

BYSTANDER, LOST, FAILS = "8", "9", "3"
GRANTS = {"prolog 1": "1", "prolog 2": "2", "prolog 3": FAILS, "prolog 9": LOST, "slurm prolog 4": "4"}
ENDS = {"epilog 1": "1", "epilog 9": LOST}
HELD_BY_HAND = "hold"
PAIRS = [
    pair
    for pair in itertools.combinations_with_replacement(
        [*GRANTS, *ENDS, "retire", "restore", "reconcile", "hold", "sweep", "read"], 2
    )
    # two readers change nothing; job 2 is another of job 1's kind, and so meets only that
    if pair != ("read", "read") and ("prolog 2" not in pair or pair == ("prolog 1", "prolog 2"))
]


class Over(LocalScheduler):
    """A scheduler whose evidence is that the lost job's first grant is over."""

    def ended_here(self, owners: Iterable[Owner]) -> dict[str, str]:
        return {owner.grant: "over" for owner in owners if owner.grant == f"grant{LOST}"}


class Mute:
    """A log for nobody."""

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda *_, **__: None


class Scene:
    """A node of four GPUs: GPU 2 is held by a job whose epilog never came, GPU 3 by one that runs."""

    def __init__(self, directory: Path) -> None:
        self.node = LaidOutNode(directory, "sge", settings="hooks: {wait_for_units: 0}\n")
        self.locks, self.retired = self.node.state_dir / "locks", self.node.state_dir / "retired"
        spool = directory / "spool"
        self.jobs = {job: SgeJob(spool, job, gpus=2 if job < FAILS else 1) for job in ("1", "2", FAILS, LOST)}
        (self.jobs[FAILS].directory / "environment").unlink()
        (self.jobs[FAILS].directory / "environment").mkdir()  # its export fails, so its grant is rolled back
        self.reset()

    def reset(self) -> None:
        for path in (self.locks, self.retired):
            shutil.rmtree(path, ignore_errors=True)
        for path in [self.node.state_dir / "events", *self.node.state_dir.glob("reruns.*")]:
            path.unlink(missing_ok=True)
        self.node.hold([2], "sge", LOST)
        self.node.hold([3], "sge", BYSTANDER)
        for job in ("1", "2", LOST):
            (self.jobs[job].directory / "environment").write_text("")

    # -- what the processes do --------------------------------------------------------------------------------------

    def operations(self) -> dict[str, Callable[[Store], object]]:
        line = ["--config", str(self.node.config)]
        table: dict[str, Callable[[Store], object]] = {
            f"prolog {job}": lambda _, job=job: sge.run_prolog(line, self.jobs[job].environ)  # type: ignore[misc]
            for job in self.jobs
        }
        for job in ENDS.values():
            table[f"epilog {job}"] = lambda _, job=job: sge.run_epilog(line, self.jobs[job].environ)  # type: ignore[misc]
        granted = {"SLURM_JOB_ID": "4", "SLURM_JOB_GPUS": "0,1"}
        table["slurm prolog 4"] = lambda _: slurm.run_prolog(line, granted)
        table.update(
            {
                "retire": self._retire,
                "restore": self._restore,
                "reconcile": self._reconcile,
                "hold": self._hold,
                "sweep": self._sweep,
                "read": lambda store: sorted(store.owners()),
            }
        )
        return table

    def _retire(self, store: Store) -> None:
        with store.exclusive():
            store.retire(uuid(0), [("reason", "broken")])

    def _restore(self, store: Store) -> None:
        with store.exclusive():
            store.restore(uuid(0))

    def _hold(self, store: Store) -> str:
        owner = Owner(HOLD, job=HELD_BY_HAND, grant="byhand", units=(uuid(1), uuid(2)))
        with store.exclusive():
            store.sweep()
            try:
                store.claim(owner)
            except UnitHeld:
                return "refused"
        return "held"

    def _sweep(self, store: Store) -> None:
        with store.exclusive():
            store.sweep()

    def _reconcile(self, store: Store) -> None:
        gpus = tuple(GpuFacts(uuid(i), minor=i) for i in range(4))
        reconciler = Reconciler(store, Over(), Mute())  # type: ignore[arg-type]
        facts = NodeFacts(boot_id=boot_id("/proc"), monotonic=time.monotonic(), gpus=gpus)
        reconciler._here._suspects = {f"grant{LOST}": "over"}  # the first look was before
        reconciler.run(facts, {})


class Watch:
    """What must hold after each step, and at the end."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.store = Store(scene.node.state)
        self.owners = self.store.owners()
        self.out: set[str] = set()
        self.left: dict[int, list[str]] = {}

    def step(self, actor: Stepped, both: Sequence[Stepped]) -> None:
        """Judge what the actor's last step changed."""
        before, self.owners = self.owners, self.store.owners()
        for unit in sorted({*before, *self.owners}):
            was, now = before.get(unit), self.owners.get(unit)
            if (was and was.grant) != (now and now.grant):
                assert not (was and now), f"{unit} went from {was} to {now} in one step"
                if was is not None:
                    assert may_free(actor.operation, was), f"{actor.operation} freed {unit} of {was}"
                if now is not None:
                    assert may_take(actor.operation, now), f"{actor.operation} made {now} own {unit}"
                    assert unit not in self.out or now.scheduler == HOLD, f"{unit} granted after `retire` had returned"
        assert all(o.scheduler != UNREADABLE and unit in o.units for unit, o in self.owners.items()), "a torn owner"
        assert uuid(3) in self.owners, "the bystander lost its unit"
        if actor.operation == "retire" and actor.at in OVER:
            self.out.add(uuid(0))
        if any(one.operation == "restore" and one.at != BEGIN for one in both):
            self.out.clear()
        if actor.at == UNLOCKED and actor.operation in ENDS:  # what it leaves when it has the flock for the last time
            self.left[id(actor)] = [unit for unit, owner in self.owners.items() if owner.job == ENDS[actor.operation]]
        if actor.at == RETURNED and actor.operation in ENDS:
            assert not self.left[id(actor)], f"{actor.operation} left {self.left[id(actor)]}"
        assert sum(one.inside for one in both) < 2, "two writers at once"
        if not any(one.inside for one in both):
            self.whole()

    def whole(self) -> None:
        """While nobody writes every grant is there with all its units, and nothing half-made lies about."""
        for owner in self.owners.values():
            missing = [unit for unit in owner.units if getattr(self.owners.get(unit), "grant", "") != owner.grant]
            assert not missing, f"{owner} is without {missing}"
        assert set(os.listdir(self.scene.locks)) == set(self.owners), "debris"

    def end(self, both: Sequence[Stepped]) -> None:
        """Judge what is there when both are done, then give everything back: nothing is left."""
        for one in both:
            assert one.at == RETURNED, one.said
        names = {uuid(i): str(i) for i in range(4)}
        held: dict[str, list[str]] = {}
        for unit, owner in self.owners.items():
            held.setdefault(owner.job, []).append(names[unit])
        for one in both:
            job = GRANTS.get(one.operation, "")
            if (
                job in ("1", "2", LOST)
                and job in held
                and one.said == "0"
                and f"epilog {job}" not in [other.operation for other in both]
            ):
                assert self.scene.jobs[job].exported()["CUDA_VISIBLE_DEVICES"] == ",".join(sorted(held[job]))
        assert FAILS not in held, "a grant whose export failed stays"
        for job in list(self.scene.jobs) + ["4", BYSTANDER, HELD_BY_HAND]:
            with self.store.exclusive():
                self.store.release(lambda owner, job=job: owner.job == job)  # type: ignore[misc]
        assert os.listdir(self.scene.locks) == []


def may_free(operation: str, owner: Owner) -> bool:
    """Say whose units an operation may free: its own job's, the reconciler those of the grant that is over."""
    job = GRANTS.get(operation) or ENDS.get(operation)
    if operation == "hold":
        return owner.grant == "byhand"  # its own, when another of its units is held
    if operation == "reconcile":
        return owner.grant == f"grant{LOST}"
    return owner.job == job


def may_take(operation: str, owner: Owner) -> bool:
    return owner.job == (HELD_BY_HAND if operation == "hold" else GRANTS.get(operation, "?"))


class Explorer:
    """Steps two processes through every order."""

    def __init__(self, scene: Scene, store: type[SteppedStore] = SteppedStore) -> None:
        self.scene = scene
        state = str(scene.node.state_dir)
        self._blocked: set[int] = set()
        self.processes = [Stepped(state, scene.operations(), store) for _ in range(2)]

    def explore(self, pair: tuple[str, str]) -> int:
        """Return how many orders there are; each is run from a fresh scene."""
        self.scene.node.write_verdict()
        return sum(1 for _ in every_order(lambda prefix: self._run(pair, prefix)))

    def _run(self, pair: tuple[str, str], prefix: Sequence[int]) -> list[tuple[int, Sequence[int]]]:
        self.scene.reset()
        self._blocked.clear()
        for process, operation in zip(self.processes, pair):
            process.start(operation)
        watch = Watch(self.scene)
        trail: list[tuple[int, Sequence[int]]] = []
        story = []
        seen_elsewhere = False
        try:
            while options := self._options():
                which = prefix[len(trail)] if len(trail) < len(prefix) else options[0]
                actor = self.processes[which]
                actor.step()
                trail.append((which, [which] if seen_elsewhere else options))
                story.append(f"{which}:{actor.at}")
                if actor.at in (UNLOCKED, *OVER):
                    self._blocked.clear()
                if actor.at == BUSY:
                    self._blocked.add(which)
                    # To be refused later in the same critical section is the same: what follows is tried once.
                    seen_elsewhere |= self.processes[1 - which].at != LOCKED
                watch.step(actor, self.processes)
            assert all(process.at in OVER for process in self.processes), "each waits for the other"
            watch.end(self.processes)
        except AssertionError as error:
            raise AssertionError(f"{error}\n0 = {pair[0]}, 1 = {pair[1]}: {' '.join(story)}") from None
        return trail

    def _options(self) -> list[int]:
        return [i for i, one in enumerate(self.processes) if one.at not in OVER and i not in self._blocked]

    def end(self) -> None:
        for process in self.processes:
            process.end()


@contextmanager
def explorer(store: type[SteppedStore] = SteppedStore, scene: type[Scene] = Scene) -> Iterator[Explorer]:
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="gpu-nodeagent-steps-", dir=place) as name:
        found = Explorer(scene(Path(name)), store)
        try:
            yield found
        finally:
            found.end()


@pytest.fixture(scope="module")
def real() -> Iterator[Explorer]:
    with explorer() as found:
        yield found


@pytest.mark.parametrize("pair", PAIRS, ids=" + ".join)
def test_no_order_of_two_breaks_a_lock(real: Explorer, pair: tuple[str, str]) -> None:
    orders = real.explore(pair)
    print(f"{orders} orders")
    assert orders >= 3


class Unlocked(SteppedStore):
    """Every writer goes ahead without the flock."""

    @contextmanager
    def _pretend(self) -> Iterator[None]:
        self.trace(LOCKED)
        yield
        self.trace(UNLOCKED)

    def exclusive(self, timeout: float = 0.0) -> Any:
        return self._pretend()


class SharedFlock(SteppedStore):
    """The flock keeps nobody out: it is had for reading."""

    def exclusive(self, timeout: float = 0.0) -> Any:
        flock = super().exclusive()
        flock._path += f".{os.getpid()}"
        return flock


class NoRollBack(SteppedStore):
    """What was claimed before a unit that is held stays claimed."""

    def _discard(self, locks: Any, units: Iterable[str]) -> None:
        if not isinstance(units, list):
            super()._discard(locks, units)


class KeepsOne(SteppedStore):
    """The last unit of a grant is not given back."""

    def release(self, mine: Callable[[Owner], bool]) -> dict[str, Owner]:
        return super().release(lambda owner: mine(owner) and owner.units[-1:] != (uuid(1),))


class OwnerLast(SteppedStore):
    """The lock gets its name before it has an owner: for a moment it is nobody's."""

    def _claim_one(self, locks: Any, unit: str, grant: str, text: str) -> None:
        os.mkdir(unit, dir_fd=locks.fd)
        self.trace("written")
        write_new(f"{unit}/owner", text, locks.fd)
        self.trace("claimed")


class Careless(Scene):
    """The reconciler frees the job that it saw before it had the flock, not the grant."""

    def _reconcile(self, store: Store) -> None:
        if any(owner.job == LOST for owner in store.owners().values()):
            with store.exclusive():
                store.release(lambda owner: owner.job == LOST)


@pytest.mark.parametrize(
    ("mutant", "pair"),
    [
        (Unlocked, ("prolog 1", "retire")),
        (Unlocked, ("prolog 1", "prolog 1")),
        (SharedFlock, ("prolog 1", "prolog 2")),
        (SharedFlock, ("prolog 1", "sweep")),
        (NoRollBack, ("hold", "read")),
        (KeepsOne, ("prolog 1", "epilog 1")),
        (OwnerLast, ("hold", "epilog 1")),
    ],
)
def test_what_breaks_the_protocol_is_found(mutant: type[SteppedStore], pair: tuple[str, str]) -> None:
    with explorer(mutant) as broken, pytest.raises(AssertionError):
        broken.explore(pair)


def test_a_reconciler_that_judges_jobs_instead_of_grants_is_found() -> None:
    with explorer(scene=Careless) as broken, pytest.raises(AssertionError, match="reconcile freed"):
        broken.explore(("prolog 9", "reconcile"))
