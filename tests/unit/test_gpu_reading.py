"""One GPU's values from NVML's answers: units, fall-backs, and what becomes of refusals. NVML is a table here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nodeagent.gpu.facts import GpuFacts
from nodeagent.gpu.nvml import GpuFault
from nodeagent.gpu.reading import CHANGING, LASTING, Reading
from nodeagent.gpu.sweep import decode_gpu

HANDLE = object()


class TableLibrary:
    """Answers by (function, arguments) or by function; what is in no table has no value. Exceptions are raised."""

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[Any, Any] = answers
        self.field_values: dict[int, float] = {}
        self.calls: list[str] = []

    def value(self, name: str, *args: object) -> Any:
        self.calls.append(name)
        assert args[0] is not None
        answer = self.answers.get((name, args[1:]), self.answers.get(name))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def fields(self, handle: Any, ids: tuple[int, ...]) -> dict[int, float]:
        return {key: value for key, value in self.field_values.items() if key in ids}

    def fabric(self, handle: Any) -> tuple[int, int] | None:
        answer: tuple[int, int] | None = self.answers.get("fabric")
        return answer

    def sram_threshold_exceeded(self, handle: Any) -> bool | None:
        answer: bool | None = self.answers.get("sram")
        return answer


def read(library: TableLibrary, lasting: dict[str, Any] | None = None) -> dict[str, Any]:
    reading = Reading(library, HANDLE)
    reading.read({} if lasting is None else lasting, {})
    return reading.record


def test_nothing_supported_is_no_value_at_all() -> None:
    record = read(TableLibrary())
    assert record == {"processes": []}
    facts = decode_gpu(record)
    assert all(value in (None, "", (), {}) for value in vars(facts).values())


@pytest.mark.parametrize(
    "function, args, raw, field, value",
    [
        ("nvmlDeviceGetPowerUsage", (), 70125, "power", 70.125),
        ("nvmlDeviceGetEnforcedPowerLimit", (), 700000, "power_limit", 700.0),
        ("nvmlDeviceGetPowerManagementLimit", (), 650000, "power_limit", 650.0),
        ("nvmlDeviceGetTotalEnergyConsumption", (), 1500, "energy", 1.5),
        ("nvmlDeviceGetClockInfo", (1,), 1980, "sm_clock", 1.98e9),
        ("nvmlDeviceGetMaxClockInfo", (1,), 1980, "sm_clock_max", 1.98e9),
        ("nvmlDeviceGetComputeRunningProcesses", (), [], "processes_known", True),
        ("nvmlDeviceGetPerformanceState", (), 8, "performance_state", 8),
        ("nvmlDeviceGetClockInfo", (2,), 2619, "memory_clock", 2.619e9),
        ("nvmlDeviceGetTemperature", (0,), 34, "temperature", 34.0),
        ("nvmlDeviceGetTemperatureV", (0,), 35, "temperature", 35.0),
        ("nvmlDeviceGetMarginTemperature", (), -3, "temperature_margin", -3.0),
        ("nvmlDeviceGetTemperatureThreshold", (0,), 92, "shutdown_temperature", 92),
        ("nvmlDeviceGetTemperatureThreshold", (1,), 89, "slowdown_temperature", 89),
        ("nvmlDeviceGetCurrentClocksEventReasons", (), 0x40, "slowdown_reasons", 0x40),
        ("nvmlDeviceGetCurrentClocksThrottleReasons", (), 0x8, "slowdown_reasons", 0x8),
        ("nvmlDeviceGetTotalEccErrors", (1, 0), 3, "ecc_uncorrected", 3),
        ("nvmlDeviceGetTotalEccErrors", (0, 0), 9, "ecc_corrected", 9),
        ("nvmlDeviceGetTotalEccErrors", (0, 1), 99, "ecc_corrected_total", 99),
        ("nvmlDeviceGetPersistenceMode", (), 1, "persistence", True),
        ("nvmlDeviceGetPersistenceMode", (), 0, "persistence", False),
        ("nvmlDeviceGetEccMode", (), (0, 1), "ecc_enabled", False),
        ("nvmlDeviceGetName", (), b"NVIDIA H100", "name", "NVIDIA H100"),
        ("nvmlDeviceGetSerial", (), "1650", "serial", "1650"),
        ("nvmlDeviceGetUtilizationRates", (), SimpleNamespace(gpu=25, memory=0), "utilization", 0.25),
        ("nvmlDeviceGetUtilizationRates", (), SimpleNamespace(gpu=25, memory=0), "memory_utilization", 0.0),
        ("nvmlDeviceGetRemappedRows", (), (1, 2, 0, 1), "remapped_uncorrectable", 2),
        ("nvmlDeviceGetRemappedRows", (), (1, 2, 0, 1), "remapping_pending", False),
        ("nvmlDeviceGetRemappedRows", (), (1, 2, 0, 1), "remapping_failed", True),
        ("nvmlDeviceGetRetiredPages", (1,), [4096, 8192], "retired_pages", 2),
        ("nvmlDeviceGetRetiredPagesPendingStatus", (), 1, "retirement_pending", True),
    ],
)
def test_one_answer_becomes_one_field(function: str, args: tuple[int, ...], raw: Any, field: str, value: Any) -> None:
    library = TableLibrary()
    library.answers[function, args] = raw
    found = read(library)[field]
    assert found == pytest.approx(value) if isinstance(value, float) else found is value or found == value
    assert type(found) is type(value)


def test_zero_is_a_value() -> None:
    record = read(TableLibrary(nvmlDeviceGetTotalEccErrors=0, nvmlDeviceGetPowerUsage=0))
    assert (record["ecc_uncorrected"], record["power"]) == (0, 0.0)


def test_field_values() -> None:
    library = TableLibrary()
    library.field_values = {82: 41, 230: 0}
    record = read(library)
    assert (record["memory_temperature"], record["recovery_action"]) == (41, 0)


def test_old_drivers_know_only_the_old_memory_call() -> None:
    library = TableLibrary()
    library.answers["nvmlDeviceGetMemoryInfo", ()] = SimpleNamespace(total=100, used=10)
    assert read(library)["memory_used"] == 10
    library.answers["nvmlDeviceGetMemoryInfo", (0x02000028,)] = SimpleNamespace(total=100, used=7)
    assert read(library)["memory_used"] == 7


def test_a_process_in_two_lists_is_one() -> None:
    library = TableLibrary(
        nvmlDeviceGetComputeRunningProcesses=[SimpleNamespace(pid=1, usedGpuMemory=5)],
        nvmlDeviceGetGraphicsRunningProcesses=[
            SimpleNamespace(pid=1, usedGpuMemory=9),
            SimpleNamespace(pid=2, usedGpuMemory=None),
            SimpleNamespace(pid=3, usedGpuMemory=(1 << 64) - 1),
        ],
    )
    assert read(library)["processes"] == [
        *({"pid": 1, "memory": 9}, {"pid": 2, "memory": None}, {"pid": 3, "memory": None}),
    ]


def test_a_lost_gpu_ends_the_reading() -> None:
    library = TableLibrary(nvmlDeviceGetPowerUsage=GpuFault(15, "GPU is lost"))
    with pytest.raises(GpuFault):
        read(library)


def test_a_gpu_that_asks_for_a_reset_is_read_as_far_as_it_answers() -> None:
    library = TableLibrary(nvmlDeviceGetPowerUsage=GpuFault(16, "reset"), nvmlDeviceGetTemperature=50)
    record = read(library)
    assert (record["error"], record["error_text"], record["temperature"]) == (16, "reset", 50.0)
    assert "power" not in record


def test_what_lasts_is_asked_once() -> None:
    library = TableLibrary(nvmlDeviceGetName="NVIDIA H100")
    lasting: dict[str, Any] = {}
    read(library, lasting)
    library.calls.clear()
    assert read(library, lasting)["name"] == "NVIDIA H100"
    assert "nvmlDeviceGetName" not in library.calls


def test_mig_off_lists_nothing_and_instances_that_vanish_are_left_out() -> None:
    assert "mig" not in read(TableLibrary(nvmlDeviceGetMigMode=(0, 0)))
    library = TableLibrary(
        nvmlDeviceGetMigMode=(1, 1), nvmlDeviceGetMaxMigDeviceCount=7, nvmlDeviceGetGpuInstanceId=1,
        nvmlDeviceGetComputeInstanceId=0, nvmlDeviceGetName="NVIDIA H100 MIG 1g.10gb",
    )  # fmt: skip
    library.answers["nvmlDeviceGetMigDeviceHandleByIndex", (2,)] = object()
    assert read(library)["mig"] == []
    library.answers["nvmlDeviceGetUUID"] = "MIG-1"
    (instance,) = read(library)["mig"]
    assert instance == {"uuid": "MIG-1", "gpu_instance": 1, "compute_instance": 0, "profile": "1g.10gb"}


def test_links_that_are_up_and_where_they_lead() -> None:
    library = TableLibrary(
        nvmlDeviceGetNvLinkVersion=6,
        nvmlDeviceGetNvLinkRemoteDeviceType=2,
        nvmlDeviceGetNvLinkRemotePciInfo=SimpleNamespace(busId=b"00000000:C0:00.0"),
        fabric=(3, 0),
    )
    library.answers["nvmlDeviceGetNvLinkState", (0,)] = 1
    library.answers["nvmlDeviceGetNvLinkState", (1,)] = 0
    ends: dict[int, tuple[int, int, str]] = {}
    reading = Reading(library, HANDLE)
    reading.read({}, ends)
    assert reading.nvlinks == [(6, 2, "0000:c0:00.0")]
    assert (reading.record["nvlink_total"], reading.record["nvlink_active"]) == (2, 1)
    assert (reading.record["fabric_state"], reading.record["fabric_status"]) == (3, 0)
    library.calls.clear()
    library.answers["nvmlDeviceGetNvLinkState", (0,)] = 0  # when it comes back it may lead elsewhere
    Reading(library, HANDLE).read({}, ends)
    assert ends == {}


def test_every_name_is_a_field_of_the_facts() -> None:
    names = {name for name, *_ in CHANGING} | {name for name, *_ in LASTING}
    assert names <= set(GpuFacts.__dataclass_fields__)
