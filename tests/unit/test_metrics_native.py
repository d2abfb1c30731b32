"""The product's own metrics: names, labels, units, and what must not be there. Parsed as Prometheus would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from nodeagent.gpu.facts import MigInstance, NodeFacts
from nodeagent.health.verdict import Memory, judge
from nodeagent.history.entry import Keeping
from nodeagent.lock.record import Owner
from nodeagent.metrics.native import age, is_stale, render
from nodeagent.snapshot import Counters, Snapshot
from tests.unit.test_health_facts import SETTINGS, bus, gpu, lost, node, uuid

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
VALUE_NAMES = (
    "gpu_utilization_ratio",
    "gpu_memory_used_bytes",
    "gpu_memory_total_bytes",
    "gpu_temperature_celsius",
    "gpu_power_watts",
    "gpu_energy_joules_total",
    "gpu_sm_clock_hertz",
    "gpu_memory_clock_hertz",
)
FULL = {
    "utilization": 0.25,
    "memory_used": 1024,
    "memory_total": 85899345920,
    "temperature": 41.0,
    "power": 312.5,
    "energy": 98765.5,
    "sm_clock": 1.98e9,
    "memory_clock": 2.6e9,
}


def snapshot(facts: NodeFacts, monotonic: float = 1000.0, **values: object) -> Snapshot:
    """Return the snapshot of one first cycle over these facts."""
    facts = replace(facts, monotonic=monotonic)
    verdict, _ = judge(Memory(), facts, SETTINGS)
    made = Snapshot("n1", 42, 10.0, monotonic, 1.7e9, facts, verdict, version="1.2.3", cycle_seconds=0.5)
    return replace(made, **values)  # type: ignore[arg-type]


def parse(page: bytes) -> Samples:
    """Return every sample by its name, without the prefix, and its sorted labels; a sample there twice is an error."""
    found: Samples = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            key = (sample.name.replace("gpu_nodeagent_", "", 1), tuple(sorted(sample.labels.items())))
            assert sample.name.startswith("gpu_nodeagent_")
            assert key not in found, key
            found[key] = sample.value
    return found


def of(samples: Samples, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    return {labels: value for (one, labels), value in samples.items() if one == name}


def by(samples: Samples, name: str, label: str) -> dict[str, float]:
    return {dict(labels)[label]: value for labels, value in of(samples, name).items()}


def names(samples: Samples) -> set[str]:
    return {name for name, _ in samples}


def job(unit: str, **values: str) -> Owner:
    return Owner(**{"scheduler": "slurm", "job": "77", "user": "ada", "grant": "g1", **values}, units=(unit,))  # type: ignore[arg-type]


def test_the_values_of_a_gpu_in_base_units() -> None:
    samples = parse(render(snapshot(node(gpu(0, **FULL))), {}))
    assert {name: by(samples, name, "uuid") for name in VALUE_NAMES} == {
        "gpu_utilization_ratio": {uuid(0): 0.25},
        "gpu_memory_used_bytes": {uuid(0): 1024},
        "gpu_memory_total_bytes": {uuid(0): 85899345920},
        "gpu_temperature_celsius": {uuid(0): 41.0},
        "gpu_power_watts": {uuid(0): 312.5},
        "gpu_energy_joules_total": {uuid(0): 98765.5},
        "gpu_sm_clock_hertz": {uuid(0): 1.98e9},
        "gpu_memory_clock_hertz": {uuid(0): 2.6e9},
    }


def test_identity_is_one_info_series() -> None:
    samples = parse(render(snapshot(node(gpu(1))), {}))
    ((labels, value),) = of(samples, "gpu_info").items()
    assert value == 1
    assert dict(labels) == {
        "uuid": uuid(1),
        "gpu": "1",
        "minor": "1",
        "bus_id": bus(1),
        "model": "NVIDIA H100",
        "serial": "S1",
        "driver": "550.1",
    }


def test_a_value_that_is_not_known_is_absent_and_a_zero_is_there() -> None:
    samples = parse(render(snapshot(node(gpu(0, utilization=0.0, memory_used=0), gpu(1, energy=None))), {}))
    assert by(samples, "gpu_utilization_ratio", "uuid") == {uuid(0): 0.0}
    assert by(samples, "gpu_memory_used_bytes", "uuid") == {uuid(0): 0.0}
    assert by(samples, "gpu_energy_joules_total", "uuid") == {uuid(0): 1000.0}
    assert "gpu_temperature_celsius" not in names(samples)


def test_a_lost_gpu_is_down_and_has_no_values() -> None:
    dead = replace(lost(1), **FULL)
    samples = parse(render(snapshot(node(gpu(0, **FULL), dead)), {}))
    assert by(samples, "gpu_up", "uuid") == {uuid(0): 1, uuid(1): 0}
    for name in VALUE_NAMES:
        assert set(by(samples, name, "uuid")) == {uuid(0)}
    assert set(by(samples, "gpu_info", "uuid")) == {uuid(0), uuid(1)}


def test_a_gpu_that_hangs_half_read_is_down_and_has_no_values() -> None:
    facts = node(gpu(0, **FULL), gpu(1, **FULL), hung=True, hung_uuid=uuid(1))
    samples = parse(render(snapshot(facts), {}))
    assert by(samples, "gpu_up", "uuid") == {uuid(0): 1, uuid(1): 0}
    assert set(by(samples, "gpu_power_watts", "uuid")) == {uuid(0)}


def test_health_is_a_one_hot_state_set() -> None:
    samples = parse(render(snapshot(node(gpu(0), lost(1))), {}))
    for number, state in ((0, "OK"), (1, "FAILED")):
        hot = {
            dict(labels)["verdict"]: value
            for labels, value in of(samples, "gpu_health").items()
            if dict(labels)["uuid"] == uuid(number)
        }
        assert hot == {word: float(word == state) for word in ("OK", "DEGRADED", "FAILED", "UNKNOWN")}
    assert by(samples, "node_health", "verdict") == {"OK": 1, "DEGRADED": 0, "FAILED": 0, "UNKNOWN": 0}


def test_facts_older_than_three_intervals_say_nothing_of_the_gpus_of_now() -> None:
    taken = snapshot(node(gpu(0, **FULL)), retired={uuid(0): {"reason": "x"}}, counters=Counters({(uuid(0), 79): 1}))
    owners = {uuid(0): job(uuid(0))}
    assert names(parse(render(taken, owners, 1030.0))) >= {"gpu_power_watts", "gpu_up", "gpu_health"}
    stale = names(parse(render(taken, owners, 1030.1)))
    assert stale.isdisjoint({*VALUE_NAMES, "gpu_up", "gpu_health", "node_health"})
    assert stale >= {"up", "gpu_info", "gpu_retired", "gpu_xid_errors_total", "gpu_job_info"}


def test_facts_older_than_their_snapshot_are_stale_too() -> None:
    taken = snapshot(node(gpu(0, **FULL)), 1000.0)
    late = replace(taken, monotonic=1031.0)
    assert is_stale(late, late.monotonic)
    assert names(parse(render(late, {}))).isdisjoint(VALUE_NAMES)


def test_xids_are_counters_by_number() -> None:
    counters = Counters(xids={(uuid(0), 79): 1, (uuid(0), 13): 5})
    samples = parse(render(snapshot(node(gpu(0)), counters=counters), {}))
    assert of(samples, "gpu_xid_errors_total") == {
        (("uuid", uuid(0)), ("xid", "13")): 5,
        (("uuid", uuid(0)), ("xid", "79")): 1,
    }


def test_retired_is_one_or_zero_for_each_gpu_and_one_for_a_unit_that_is_no_gpu() -> None:
    retired: Mapping[str, Mapping[str, str]] = {uuid(1): {}, "MIG-a": {}}
    samples = parse(render(snapshot(node(gpu(0), gpu(1)), retired=retired), {}))
    assert by(samples, "gpu_retired", "uuid") == {uuid(0): 0, uuid(1): 1, "MIG-a": 1}


def test_jobs_are_info_series_on_the_gpu_they_hold() -> None:
    sliced = gpu(2, mig=(MigInstance("MIG-a", 1, 0), MigInstance("MIG-b", 2, 0)))
    owners = {
        uuid(0): job(uuid(0), task="3"),
        f"{uuid(1)}@0": job("x", scheduler="sge", job="9", user="bob"),
        f"{uuid(1)}@1": job("x", scheduler="sge", job="9", user="bob"),
        "MIG-a": job("MIG-a", job="1"),
        "MIG-b": job("MIG-b", job="2"),
        "MIG-gone": job("MIG-gone", job="3"),
    }
    samples = parse(render(snapshot(node(gpu(0), gpu(1), sliced)), owners))
    held = sorted(
        (labels["uuid"], labels["scheduler"], labels["job"], labels["task"], labels["user"])
        for labels in map(dict, of(samples, "gpu_job_info"))
    )
    assert held == [
        (uuid(0), "slurm", "77", "3", "ada"),
        (uuid(1), "sge", "9", "", "bob"),
        (uuid(2), "slurm", "1", "", "ada"),
        (uuid(2), "slurm", "2", "", "ada"),
        ("MIG-gone", "slurm", "3", "", "ada"),
    ]
    assert samples["locks_held", ()] == 6


def test_how_many_jobs_a_gpu_takes_and_how_many_it_has() -> None:
    owners = {
        f"{uuid(0)}@0": job("x"),
        f"{uuid(0)}@3": job("x"),
        "MIG-gone": Owner("sge", grant="g", units=("MIG-gone",), gpus=(uuid(1),)),
    }
    samples = parse(render(snapshot(node(gpu(0), gpu(1)), slots={uuid(0): 2}), owners))
    assert by(samples, "gpu_slots", "uuid") == {uuid(0): 2, uuid(1): 1}
    assert by(samples, "gpu_slots_held", "uuid") == {uuid(0): 2, uuid(1): 1}


def test_what_is_no_job_is_held_but_is_no_job() -> None:
    owners = {
        uuid(k): job(uuid(k), scheduler=word)
        for k, word in enumerate(("hold", "maintenance", "cleaning", "unreadable"))
    }
    samples = parse(render(snapshot(node(*map(gpu, range(4)))), owners))
    assert of(samples, "gpu_job_info") == {}
    assert samples["locks_held", ()] == 4


def test_what_the_agent_says_of_itself() -> None:
    counters = Counters(
        hook_events={"granted": 4},
        hook_events_dropped=2,
        decisions={("drain", "refused"): 1},
        probe_timeouts=3,
        probe_crashes=5,
        probes_abandoned=6,
        kernel_log_overruns=8,
    )
    shown = snapshot(node(), counters=counters, history=Keeping("full", 7, 4096), drain_waits="nothing done")
    samples = parse(render(shown, {}))
    assert {key: value for key, value in samples.items() if not key[0].startswith(("gpu_", "node_"))} == {
        ("up", ()): 1,
        ("build_info", (("version", "1.2.3"),)): 1,
        ("hook_events_total", (("kind", "granted"),)): 4,
        ("hook_events_dropped_total", ()): 2,
        ("decisions_total", (("action", "drain"), ("result", "refused"))): 1,
        ("drain_waiting", ()): 1,
        ("probe_timeouts_total", ()): 3,
        ("probe_crashes_total", ()): 5,
        ("probes_abandoned_total", ()): 6,
        ("kernel_log_overruns_total", ()): 8,
        ("history_up", ()): 0,
        ("history_dropped_total", ()): 7,
        ("history_bytes", ()): 4096,
        ("driver_released", ()): 0,
        ("scheduler_up", ()): 1,
        ("maintenance", ()): 0,
        ("cycle_seconds", ()): 0.5,
        ("locks_held", ()): 0,
    }


def test_before_the_first_snapshot_there_is_only_up() -> None:
    assert parse(render(None, {uuid(0): job(uuid(0))})) == {("up", ()): 1}


def test_the_age_is_a_family_of_its_own_and_never_negative() -> None:
    taken = snapshot(node(gpu(0)), 1000.0)
    assert parse(age(taken, 1012.5)) == {("snapshot_age_seconds", ()): 12.5}
    assert parse(age(taken, 999.0)) == {("snapshot_age_seconds", ()): 0.0}
    assert "snapshot_age_seconds" not in names(parse(render(taken, {})))


def test_types_and_help_of_every_family() -> None:
    page = render(snapshot(node(gpu(0, **FULL))), {})
    for family in text_string_to_metric_families(page.decode()):
        assert family.documentation.endswith("."), family.name
        counter = any(sample.name.endswith("_total") for sample in family.samples)
        assert family.type == "counter" if counter else True
        if family.samples and not counter:
            assert family.type == "gauge", family.name


def test_labels_are_escaped() -> None:
    strange = 'a"b\\c\nd'
    samples = parse(render(snapshot(node(gpu(0))), {uuid(0): job(uuid(0), user=strange)}))
    ((labels, _),) = of(samples, "gpu_job_info").items()
    assert dict(labels)["user"] == strange
