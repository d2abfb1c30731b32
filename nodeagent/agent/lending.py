"""Lends the driver to whoever resets a GPU: for a time when told to, and between sweeps while a retired GPU is idle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf

from nodeagent.agent.chronicle import Chronicle
from nodeagent.agent.journal import Log
from nodeagent.clock import Clock
from nodeagent.gpu.facts import GpuFacts, GpuSource, NodeFacts
from nodeagent.health.scene import is_complete
from nodeagent.health.units import Instances, units_of
from nodeagent.lock.record import HOLD, MAINTENANCE, Owner
from nodeagent.snapshot import Released
from nodeagent.state.events import Event

RELEASE_DRIVER = "release_driver"
"""The event by which a command asks for the driver: `seconds` (0: it is given back), `by`, and `request`, any token."""
LONGEST = 900.0
"""Seconds for which the agent lets go at most: nobody looks at the GPUs meanwhile."""
_SOON = 0.2
_IDLE = (HOLD, MAINTENANCE)


@dataclass(frozen=True)
class Lending:
    """Whether NVML is let go between two sweeps: `gpus` are retired and idle, `obstacle` is what forbids it."""

    gpus: tuple[str, ...] = ()
    obstacle: str = ""

    @property
    def between(self) -> bool:
        """Whether it is."""
        return bool(self.gpus) and not self.obstacle


def lending(
    facts: NodeFacts,
    retired: Mapping[str, object],
    owners: Mapping[str, Owner],
    instances: Instances,
    has_kernel_log: bool = True,
) -> Lending:
    """Return what a sweep leads to; of one that was cut short, nothing. Pure.

    A GPU counts if it, or each of its instances, is retired, nobody but a hold or maintenance has a lock on it or on a
    part of it, and the sweep saw no process on it (none can be seen on a GPU with an error, and none can run).
    """
    if not is_complete(facts):
        return Lending()
    parents = {instance.uuid: gpu for gpu, found in instances.items() for instance in found}
    held = {parents.get(unit) or owner.gpu_of(unit) for unit, owner in owners.items() if owner.scheduler not in _IDLE}
    gpus = tuple(
        gpu.uuid
        for gpu in facts.gpus
        if gpu.uuid and gpu.uuid not in held and _is_idle(gpu) and _is_retired(gpu.uuid, retired, instances)
    )
    return Lending(gpus, _obstacle(facts, has_kernel_log)) if gpus else Lending()


def _is_idle(gpu: GpuFacts) -> bool:
    return gpu.error is not None or (bool(gpu.processes_known) and not gpu.processes)


def _is_retired(uuid: str, retired: Mapping[str, object], instances: Instances) -> bool:
    units = units_of(uuid, instances)
    return uuid in retired or (bool(units) and all(unit in retired for unit in units))


def _obstacle(facts: NodeFacts, has_kernel_log: bool) -> str:
    """Return why NVML stays open all the same, empty if it need not.

    A GPU without persistence mode is set up by its first client and torn down after its last: opening NVML for each
    sweep would do both each time, which takes seconds and begins its counters anew, as if it had been reset.
    """
    if not has_kernel_log:
        return "the kernel log cannot be read, and XIDs would be missed"
    loose = [str(gpu.index) for gpu in facts.gpus if gpu.error is None and gpu.persistence is not True]
    return f"persistence mode is not known to be on (GPU {', '.join(loose)})" if loose else ""


class Lender:
    """Sees to it that nothing of the agent's has the driver open when it is not to. Shared by all cycles of an agent.

    Remembers nothing beyond the agent's end: the one that is started next looks at the GPUs at once.
    """

    def __init__(self, source: GpuSource, chronicle: Chronicle, clock: Clock, log: Log) -> None:
        self._source = source
        self._chronicle = chronicle
        self._clock = clock
        self._log = log
        self._released: Released | None = None
        self._lending = Lending()
        self._ending = False
        self._let_go = False

    @property
    def is_out(self) -> bool:
        """Whether somebody has been given the driver, so that nobody of ours may open it."""
        return self._released is not None

    @property
    def is_free(self) -> bool:
        """Whether somebody has been given the driver, and no process of ours has it open any more."""
        return self._released is not None and self._let_go and not self._released.still_open

    @property
    def request(self) -> str:
        """The token of the request by which somebody has the driver; empty where nobody has."""
        return self._released.request if self._released is not None else ""

    @property
    def due(self) -> float:
        """When a cycle is due on this account, by the clock's monotonic seconds; inf for never."""
        if self._released is None:
            return inf
        return min(self._released.until, self._clock.monotonic() + _SOON if self._ending else inf)

    def told(self, event: Event) -> None:
        """Take up a request for the driver, or that it is given back."""
        by = event.fields.get("by", "")
        seconds = _seconds(event.fields.get("seconds", ""))
        if seconds <= 0:
            self._take_back(f"told to by {by or 'somebody'}")
            return
        until = self._clock.monotonic() + min(LONGEST, seconds)
        kernel_log = self._source.has_kernel_log
        self._let_go = False
        self._released = Released(until, by, event.fields.get("request", ""), kernel_log=kernel_log)
        self._log.warning("driver_released", by=by, seconds=f"{seconds:g}", xids_seen="yes" if kernel_log else "no")
        self._chronicle.agent("driver released", by=by, seconds=f"{seconds:g}")

    def is_away(self) -> bool:
        """Say whether this cycle is to open no driver; takes it back when its time is over."""
        if self._released is not None and self._clock.monotonic() >= self._released.until:
            self._take_back("the time is over")
        return self._released is not None

    def let_go(self, running: int, stuck: int) -> Released | None:
        """Let NVML go, if somebody has been given the driver; return how that stands.

        Of other processes of ours that may have it open, `running` are about to end and `stuck` cannot be ended.
        """
        if self._released is not None:
            self._ending = running > 0
            self._let_go = True
            self._released = replace(self._released, still_open=self._source.leave() + running + stuck)
        return self._released

    def settle(self, found: Lending) -> None:
        """Keep NVML open till the next sweep, or not."""
        if found != self._lending:
            gpus = " ".join(found.gpus)
            if found.between:
                self._log.info("driver_lent", gpus=gpus, note="NVML is open for each sweep only")
            elif found.obstacle:
                self._log.warning("driver_kept", gpus=gpus, why=found.obstacle)
            elif self._lending.between:
                self._log.info("driver_kept", why="no retired GPU is idle")
        self._lending = found
        self._source.lend(found.between)

    def _take_back(self, why: str) -> None:
        if self._released is not None:
            self._log.warning("driver_taken_back", why=why)
            self._chronicle.agent("driver taken back", why=why)
        self._released = None


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
