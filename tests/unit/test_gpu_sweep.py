"""From the probe's lines to facts, whole sweeps and broken ones."""

from __future__ import annotations

from typing import Any

from nodeagent.gpu.facts import GpuFacts, MigInstance, NodeFacts, Process
from nodeagent.gpu.sweep import Sweep, decode_gpu, settle

HOST = {"host": {"pci": {"0000:1b:00.0": "nvidia", "0000:2b:00.0": ""}, "kernel_driver": "550.54.15"}}
NODE = {"node": {"driver": "550.54.15", "nvml_version": "12.550"}}


def gpu(index: int, **fields: Any) -> dict[str, Any]:
    return {"gpu": {"uuid": f"GPU-{index}", "index": index, "bus_id": f"0000:{index:02x}:00.0", **fields}}


def begin(index: int, uuid: str = "") -> dict[str, Any]:
    return {"begin": {"index": index, "uuid": uuid, "bus_id": ""}}


def swept(*messages: dict[str, Any]) -> tuple[Sweep, NodeFacts]:
    sweep = Sweep()
    for message in messages:
        sweep.take(message)
    return sweep, sweep.facts("boot", 100.0, 0.5)


def test_a_whole_sweep() -> None:
    sweep, facts = swept(HOST, NODE, begin(1), gpu(1), begin(0), gpu(0), {"end": {}})
    assert sweep.ended and sweep.at is None
    assert [found.index for found in facts.gpus] == [0, 1]
    assert (facts.boot_id, facts.monotonic, facts.duration) == ("boot", 100.0, 0.5)
    assert (facts.driver, facts.kernel_driver, facts.nvml_version, len(facts.pci or {})) == (
        *("550.54.15", "550.54.15", "12.550", 2),
    )


def test_a_sweep_cut_short_tells_where() -> None:
    sweep, facts = swept(HOST, NODE, begin(0, "GPU-0"), gpu(0), begin(1), begin(1, "GPU-1"))
    assert not sweep.ended
    assert sweep.at == ("GPU-1", 1)
    assert [found.uuid for found in facts.gpus] == ["GPU-0"]
    sweep, facts = swept(HOST)
    assert sweep.heard and sweep.at is None and len(facts.pci or {}) == 2
    sweep, _ = swept()
    assert not sweep.heard


def test_where_nvml_fails_in_the_middle_there_are_no_gpus() -> None:
    failure = {"node": {"nvml_error": 18, "nvml_error_text": "mismatch"}}
    sweep, facts = swept(HOST, NODE, begin(0), gpu(0), failure, {"end": {}})
    assert sweep.ended
    assert (facts.nvml_error, facts.nvml_error_text, facts.gpus, len(facts.pci or {})) == (18, "mismatch", (), 2)


def test_links_are_of_the_gpus_that_answer() -> None:
    _, facts = swept(
        NODE,
        gpu(0, nvlinks=[[6, 2, "0000:c0:00.0"]]),
        gpu(1, nvlinks=[[6, 2, "0000:c0:00.0"]], ancestors={"0000:00:00.0": 10}),
        gpu(2, error=15, error_text="lost"),
        gpu(3, ancestors={"0000:00:00.0": -1}),
    )
    by_index = {found.index: found.links for found in facts.gpus}
    assert by_index[0] == {"0000:01:00.0": 6005, "0000:03:00.0": 0}
    assert by_index[1]["0000:00:00.0"] == 6005
    assert by_index[2] == {}


def test_a_record_becomes_facts_and_what_is_missing_none() -> None:
    record = {
        **{"uuid": "GPU-0", "power": 70.0, "temperature": None, "nvlinks": [], "mig_enabled": True},
        "mig": [{"uuid": "MIG-1", "gpu_instance": 1, "compute_instance": 0, "memory_total": 5, "profile": "1g.10gb"}],
        "processes": [{"pid": 7, "memory": None}],
    }
    facts = decode_gpu(record)
    assert (facts.power, facts.temperature, facts.energy) == (70.0, None, None)
    assert facts.mig == (MigInstance("MIG-1", 1, 0, 5, None, "1g.10gb"),)
    assert facts.processes == (Process(7, None),)
    assert decode_gpu({"error": 15, "index": 3}).uuid == ""


def test_a_remembered_name_gives_way_to_a_proven_one() -> None:
    well, sick = GpuFacts("GPU-0", 0, bus_id="a"), GpuFacts("GPU-0", 1, bus_id="b", error=15)
    other = GpuFacts("GPU-2", 2, bus_id="c", error=15)
    settled = settle([well, sick, other])
    assert [(found.uuid, found.bus_id, found.error) for found in settled] == [
        *(("GPU-0", "a", None), ("", "", 15), ("GPU-2", "c", 15)),
    ]
