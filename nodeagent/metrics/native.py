"""The product's own metric families, made from one snapshot and the locks. Pure but for the collector's plumbing.

A value that is not known is absent, never 0. Base units, `_total` for counters (Prometheus naming). The job is on one
info series of its own (`gpu_job_info`), to be joined by `uuid`, so that a job's label multiplies nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from nodeagent.gpu.facts import GpuFacts
from nodeagent.health.verdict import UnitVerdict
from nodeagent.lock.record import CLEANING, HOLD, MAINTENANCE, UNREADABLE, Owner
from nodeagent.snapshot import Snapshot
from nodeagent.state.verdict_file import STATES

PREFIX = "gpu_nodeagent_"
STALE_INTERVALS = 3
"""Facts older than this many intervals say nothing about the GPUs of now."""
NOT_JOBS = (HOLD, MAINTENANCE, CLEANING, UNREADABLE)

VALUES = (
    ("gpu_utilization_ratio", "utilization", "Share of time in which a kernel ran on the GPU, 0 to 1."),
    ("gpu_memory_used_bytes", "memory_used", "GPU memory in use."),
    ("gpu_memory_total_bytes", "memory_total", "GPU memory there is."),
    ("gpu_temperature_celsius", "temperature", "Temperature of the GPU's die."),
    ("gpu_power_watts", "power", "Power that the board draws."),
    ("gpu_sm_clock_hertz", "sm_clock", "Clock of the streaming multiprocessors."),
    ("gpu_memory_clock_hertz", "memory_clock", "Clock of the GPU memory."),
    ("gpu_failed_calls", "failed_calls", "NVML calls about the GPU that failed without a reason in the last sweep."),
)
"""Gauges of one GPU: name, field of GpuFacts, help."""

INFO_LABELS = ("uuid", "gpu", "minor", "bus_id", "model", "serial", "driver")
JOB_LABELS = ("uuid", "scheduler", "job", "task", "user")


def render(snapshot: Snapshot | None, owners: Mapping[str, Owner], now: float | None = None) -> bytes:
    """Return the page in Prometheus' text format 0.0.4, all but the snapshot's age (see `age`).

    `owners` are the held units as `lock.store.Store.owners` gives them. `now` (monotonic seconds; by default when the
    snapshot ended) decides whether the facts are still worth showing. Without a snapshot the page says that the agent
    is up, and nothing of GPUs.
    """
    return _text(_families(snapshot, owners, now))


def age(snapshot: Snapshot, now: float) -> bytes:
    """Return the one family that is another at each scrape: how old the snapshot is."""
    seconds = max(0.0, now - snapshot.monotonic)
    return _text([_gauge("snapshot_age_seconds", "Time since the last cycle ended.", seconds)])


def is_stale(snapshot: Snapshot, now: float) -> bool:
    """Say whether the facts are too old to be shown as the GPUs' present state."""
    return now - snapshot.facts.monotonic > STALE_INTERVALS * snapshot.interval


class NativeCollector:
    """A prometheus_client collector over families that are made when it is asked."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client.registry.Collector."""
        return self._families

    def describe(self) -> Iterable[Metric]:
        """Nothing: a private registry has no names to protect, and asking would use the families up."""
        return ()


def _text(families: Iterable[Metric]) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NativeCollector(families))
    return generate_latest(registry)


def _families(snapshot: Snapshot | None, owners: Mapping[str, Owner], now: float | None) -> Iterator[Metric]:
    yield _gauge("up", "1 while the agent answers.", 1)
    if snapshot is None:
        return
    yield _labelled("build_info", "Version of gpu-nodeagent.", ("version",), [((snapshot.version,), 1)])
    yield from _own(snapshot, owners)
    yield _gpu_info(snapshot)
    if not is_stale(snapshot, snapshot.monotonic if now is None else now):
        yield from _judged(snapshot)
        yield from _values(snapshot)
    yield _retired(snapshot)
    xids = [((uuid, str(xid)), count) for (uuid, xid), count in sorted(snapshot.counters.xids.items())]
    yield _counter("gpu_xid_errors", "XIDs that the driver reported, repeats included.", ("uuid", "xid"), xids)
    yield from _use(snapshot, owners)
    yield _job_info(snapshot, owners)


def _own(snapshot: Snapshot, owners: Mapping[str, Owner]) -> Iterator[Metric]:
    """What the agent says of itself."""
    count = snapshot.counters
    hooks = [((kind,), times) for kind, times in sorted(count.hook_events.items())]
    yield _counter("hook_events", "Events that hooks reported, by kind.", ("kind",), hooks)
    dropped = [((), count.hook_events_dropped)]
    yield _counter("hook_events_dropped", "Events of hooks that were lost because their file was full.", (), dropped)
    decisions = sorted(count.decisions.items())
    yield _counter("decisions", "What the agent decided and what came of it.", ("action", "result"), decisions)
    text = "1 while the scheduler answered when it was asked last."
    yield _gauge("scheduler_up", text, int(not snapshot.scheduler_problem))
    text = "1 while a drain is wanted and put off: the limit is reached, another node is at it, or a command failed."
    yield _gauge("drain_waiting", text, int(bool(snapshot.drain_waits)))
    yield _counter("probe_timeouts", "Sweeps that NVML did not finish in time.", (), [((), count.probe_timeouts)])
    yield _counter("probe_crashes", "Probe processes that died in NVML.", (), [((), count.probe_crashes)])
    abandoned = [((), count.probes_abandoned)]
    yield _counter("probes_abandoned", "Probe processes that could not be ended (state D).", (), abandoned)
    text = "Times that the kernel overwrote log records, and XIDs perhaps, before they were read."
    yield _counter("kernel_log_overruns", text, (), [((), count.kernel_log_overruns)])
    site = sorted(count.site_checks.items())
    yield _counter("site_check_runs", "Runs of the site's own checks and how they ended.", ("check", "result"), site)
    commands = sorted(count.site_commands.items())
    text = "Runs of the commands that the policy has, and how they ended."
    yield _counter("site_command_runs", text, ("command", "result"), commands)
    kept = snapshot.history
    yield _gauge("history_up", "1 while what happens can be written to history.db.", int(not kept.problem))
    yield _counter("history_dropped", "Entries for history that were lost.", (), [((), kept.dropped)])
    if kept.size is not None:
        yield _gauge("history_bytes", "Size of history.db and of what SQLite keeps beside it.", kept.size)
    text = "1 while the driver is released by `release-driver`: no GPU is asked, and none has values."
    yield _gauge("driver_released", text, int(snapshot.released is not None))
    text = "1 while an administrator has told the agent to take nothing out and bring nothing back."
    yield _gauge("maintenance", text, int(snapshot.maintenance is not None))
    yield _gauge("cycle_seconds", "Duration of the last cycle.", snapshot.cycle_seconds)
    yield _gauge("locks_held", "Units that have an owner.", len(owners))


def _gpu_info(snapshot: Snapshot) -> Metric:
    driver = snapshot.facts.driver or snapshot.facts.kernel_driver
    rows = [
        ((unit.uuid, _number(unit.index), _number(unit.minor), unit.bus_id, unit.model, unit.serial, driver), 1)
        for unit in snapshot.verdict.units
    ]
    return _labelled("gpu_info", "Identity of each GPU known in this boot; always 1.", INFO_LABELS, rows)


def _judged(snapshot: Snapshot) -> Iterator[Metric]:
    units = snapshot.verdict.units
    answering = _answering(snapshot)
    asked = units if snapshot.released is None else ()
    up = [((unit.uuid,), int(unit.uuid in answering)) for unit in asked]
    yield _labelled("gpu_up", "1 if the GPU answered in the last cycle, 0 if it is lost or hangs.", ("uuid",), up)
    health = [row for unit in units for row in _one_hot(unit)]
    yield _labelled("gpu_health", "1 for the GPU's verdict, 0 for the others.", ("uuid", "verdict"), health)
    node = [((state,), int(state == snapshot.verdict.node_state)) for state in STATES]
    yield _labelled("node_health", "1 for the verdict on the node as a whole, 0 for the others.", ("verdict",), node)


def _one_hot(unit: UnitVerdict) -> list[tuple[tuple[str, str], int]]:
    return [((unit.uuid, state), int(state == unit.state)) for state in STATES]


def _answering(snapshot: Snapshot) -> dict[str, GpuFacts]:
    """Return the GPUs whose values were read in this sweep."""
    facts = snapshot.facts
    stuck = facts.hung or facts.crashed is not None
    return {
        gpu.uuid: gpu
        for gpu in facts.gpus
        if gpu.uuid and gpu.error is None and not (stuck and gpu.uuid == facts.hung_uuid)
    }


def _values(snapshot: Snapshot) -> Iterator[Metric]:
    gpus = _answering(snapshot)
    for name, field, help_text in VALUES:
        rows = [((uuid,), getattr(gpu, field)) for uuid, gpu in gpus.items() if getattr(gpu, field) is not None]
        yield _labelled(name, help_text, ("uuid",), rows)
    energy = [((uuid,), gpu.energy) for uuid, gpu in gpus.items() if gpu.energy is not None]
    text = "Energy used since the driver was last loaded."
    yield _counter("gpu_energy_joules", text, ("uuid",), energy)


def _retired(snapshot: Snapshot) -> Metric:
    known = [unit.uuid for unit in snapshot.verdict.units]
    others = sorted(set(snapshot.retired).difference(known))
    rows = [((unit,), int(unit in snapshot.retired)) for unit in (*known, *others)]
    return _labelled("gpu_retired", "1 if the unit is granted no more.", ("uuid",), rows)


def _use(snapshot: Snapshot, owners: Mapping[str, Owner]) -> Iterator[Metric]:
    parents = _parents(snapshot)
    held = Counter(gpu_of(unit, owner, parents) for unit, owner in owners.items())
    slots = [((unit.uuid,), snapshot.slots.get(unit.uuid, 1)) for unit in snapshot.verdict.units]
    text = "How many jobs may have the GPU at a time: its shares or instances, else 1."
    yield _labelled("gpu_slots", text, ("uuid",), slots)
    used = [((unit.uuid,), held[unit.uuid]) for unit in snapshot.verdict.units]
    yield _labelled("gpu_slots_held", "How many of them, or of those it had before, have an owner.", ("uuid",), used)


def _parents(snapshot: Snapshot) -> dict[str, str]:
    return {mig.uuid: gpu.uuid for gpu in snapshot.facts.gpus for mig in gpu.mig}


def _job_info(snapshot: Snapshot, owners: Mapping[str, Owner]) -> Metric:
    parents = _parents(snapshot)
    rows = {
        (gpu_of(unit, owner, parents), owner.scheduler, owner.job, owner.task, owner.user)
        for unit, owner in owners.items()
        if owner.scheduler not in NOT_JOBS
    }
    text = "The jobs that hold the GPU, or an instance or share of it; always 1."
    return _labelled("gpu_job_info", text, JOB_LABELS, [(row, 1) for row in sorted(rows)])


def gpu_of(unit: str, owner: Owner, parents: Mapping[str, str]) -> str:
    """Return the UUID of the GPU that a unit is, or is a share or (by `parents` or its owner) an instance of."""
    return parents.get(unit) or owner.gpu_of(unit)


def _number(value: int) -> str:
    return "" if value < 0 else str(value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value=value)


def _labelled(
    name: str, text: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _counter(
    name: str, text: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], float]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(PREFIX + name, text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family
