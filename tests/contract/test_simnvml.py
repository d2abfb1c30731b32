"""The stand-in libnvidia-ml.so.1, driven by the real pynvml in child processes: needs `cc` and nvidia-ml-py."""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

import pytest

from tests import simnvml
from tests.simnvml import MODELS, Process, Scenario, UnknownKey, build, fake_roots, log_xid

pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

PATIENCE = 20.0  # seconds until a child that says nothing has failed; nothing here takes one

INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND, TIMEOUT, FUNCTION_NOT_FOUND = 2, 3, 6, 10, 13
LOST, RESET_REQUIRED = 15, 16
VERSION_MISMATCH, UNKNOWN = 25, 999
XID, RECOVERY = 0x8, 0x8000

# The child evaluates one expression a line and answers with one line of JSON.
CHILD = """
import ctypes, json, os, sys, threading, time, timeit
import pynvml as n

def plain(value):
    if isinstance(value, (ctypes.Structure, n.nvmlFriendlyObject)):
        names = [f[0] for f in value._fields_] if hasattr(value, "_fields_") else list(vars(value))
        return {name: plain(getattr(value, name)) for name in names if name != "device"}
    if isinstance(value, ctypes.Array):
        return [plain(v) for v in value]
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (ctypes.Union, ctypes._Pointer)):
        return None
    if isinstance(value, bytes):
        return value.decode()
    return value.value if isinstance(value, ctypes._SimpleCData) else value

def gpu(index):
    return n.nvmlDeviceGetHandleByIndex(index)

def mig(index, instance):
    return n.nvmlDeviceGetMigDeviceHandleByIndex(gpu(index), instance)

def field(handle, number, scope=0):
    (found,) = n.nvmlDeviceGetFieldValues(handle, [(number, scope)])
    return found.value.ullVal if found.nvmlReturn == 0 else None

def sized(name, *before):
    # the size query as such: the return code, and the count it left
    count = ctypes.c_uint(0)
    code = getattr(n.nvmlLib, name)(*before, ctypes.byref(count), None)
    return [code, count.value]

def event_set(*handles, types=n.nvmlEventTypeXidCriticalError):
    found = n.nvmlEventSetCreate()
    for handle in handles:
        n.nvmlDeviceRegisterEvents(handle, types, found)
    return found

def wait(events, ms):
    seen = n.nvmlEventSetWait_v2(events, ms)
    return [n.nvmlDeviceGetUUID(seen.device), seen.eventType, seen.eventData, seen.gpuInstanceId]

def aside(call):
    threading.Thread(target=call, daemon=True).start()

def fabric(handle):
    info = n.c_nvmlGpuFabricInfo_v3_t()
    n.nvmlDeviceGetGpuFabricInfoV(handle, ctypes.byref(info))
    return info

def in_a_fork(call):
    # the exit status of a forked process that returns what it read
    pid = os.fork()
    if pid == 0:
        os._exit(call())
    return os.waitpid(pid, 0)[1] >> 8

def versioned(struct, version, function, handle):
    value = struct()
    value.version = version
    return getattr(n.nvmlLib, function)(handle, ctypes.byref(value))

for line in sys.stdin:
    try:
        answer = {"value": plain(eval(line))}
    except n.NVMLError as error:
        answer = {"error": error.value, "name": type(error).__name__}
    print(json.dumps(answer), flush=True)
"""


class NvmlFailed(Exception):
    """What pynvml raised in the child: (code, name of the class)."""


class Child:
    """A process with the stand-in library loaded."""

    def __init__(self, scenario: Scenario, init: bool = True) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            env={**os.environ, **scenario.env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        if init:
            self.ask("n.nvmlInit()")

    def send(self, expression: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(expression + "\n")

    def answer(self, within: float = PATIENCE) -> Any:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], within)
        assert ready, f"no answer within {within} s"
        found = json.loads(self.process.stdout.readline())
        if "error" in found:
            raise NvmlFailed(found["error"], found["name"])
        return found["value"]

    def ask(self, expression: str) -> Any:
        self.send(expression)
        return self.answer()

    def code(self, expression: str) -> int:
        """The NVML error of an expression that must fail."""
        with pytest.raises(NvmlFailed) as failed:
            self.ask(expression)
        return int(failed.value.args[0])

    def state(self) -> str:
        """The letter of /proc/PID/stat."""
        return process_state(self.process.pid)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def process_state(pid: int) -> str:
    """The state letter of a process, empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def pending(pid: int, number: int) -> bool:
    """Whether the process has the signal, and has not acted on it."""
    found = re.search(r"^ShdPnd:\s+(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


def children_of(pid: int) -> "list[int]":
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            found.append(int(entry.name))
    return found


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("simnvml")


@pytest.fixture
def make(tmp_path: Path, library: Path) -> Callable[..., Scenario]:
    def make_scenario(**options: Any) -> Scenario:
        return Scenario(tmp_path / "scenario", library=library, **options)

    return make_scenario


@pytest.fixture
def start() -> Iterator[Callable[..., Child]]:
    started: list[Child] = []

    def start_child(scenario: Scenario, init: bool = True) -> Child:
        started.append(Child(scenario, init))
        return started[-1]

    yield start_child
    for child in started:
        child.kill()


# ---- the build ---------------------------------------------------------------------------------------------------


def test_build_is_shared_by_processes_that_want_it_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        homes = set(pool.map(lambda _: build(tmp_path), range(4)))
    (home,) = homes
    made = (home / "libnvidia-ml.so.1").stat()
    assert build(tmp_path) == home
    assert (home / "libnvidia-ml.so.1").stat().st_mtime_ns == made.st_mtime_ns


# ---- all of the interface ----------------------------------------------------------------------------------------

EXPRESSIONS = (
    *("n.nvmlLib.nvmlInit_v2()", "n.nvmlLib.nvmlInit()", "n.nvmlShutdown()", "n.nvmlErrorString(15)"),
    *("n.nvmlSystemGetDriverVersion()", "n.nvmlSystemGetNVMLVersion()", "n.nvmlSystemGetCudaDriverVersion()"),
    *("n.nvmlSystemGetCudaDriverVersion_v2()", "n.nvmlDeviceGetCount()"),
    "n.nvmlDeviceGetUUID(n.nvmlDeviceGetHandleByUUID(n.nvmlDeviceGetUUID(gpu(0))))",
    "n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByPciBusId(n.nvmlDeviceGetPciInfo(gpu(0)).busId))",
    "n.nvmlDeviceGetName(n.nvmlDeviceGetHandleBySerial(n.nvmlDeviceGetSerial(gpu(0))))",
    *(
        f"n.nvmlDeviceGet{name}(gpu(0))"
        for name in (
            *("MinorNumber", "Brand", "Architecture", "PowerUsage", "PowerManagementLimit", "EnforcedPowerLimit"),
            *("PowerManagementDefaultLimit", "PowerState", "PerformanceState", "PersistenceMode", "ComputeMode"),
            *("CurrPcieLinkGeneration", "MaxPcieLinkGeneration", "CurrPcieLinkWidth", "MaxPcieLinkWidth"),
            *("PcieReplayCounter", "MaxMigDeviceCount", "NumaNodeId", "TotalEnergyConsumption", "MigMode"),
            *("CurrentClocksEventReasons", "CurrentClocksThrottleReasons", "SupportedEventTypes", "EccMode"),
            *("PowerManagementLimitConstraints", "CudaComputeCapability", "VbiosVersion", "InforomImageVersion"),
            *("BoardPartNumber", "GspFirmwareVersion", "MemoryInfo", "BAR1MemoryInfo", "UtilizationRates"),
            *("EncoderUtilization", "DecoderUtilization", "MarginTemperature", "RemappedRows"),
            *("RowRemapperHistogram", "ComputeRunningProcesses", "GraphicsRunningProcesses"),
            "MPSComputeRunningProcesses",
        )
    ),
    *("n.nvmlDeviceGetMemoryInfo(gpu(0), version=n.nvmlMemory_v2)", "n.nvmlDeviceGetTemperature(gpu(0), 0)"),
    *("n.nvmlDeviceGetTemperatureV(gpu(0), 0)", "n.nvmlDeviceGetTemperatureThreshold(gpu(0), 1)"),
    *("n.nvmlDeviceGetClockInfo(gpu(0), 1)", "n.nvmlDeviceGetMaxClockInfo(gpu(0), 2)"),
    *("n.nvmlDeviceGetViolationStatus(gpu(0), 1)", "n.nvmlDeviceGetTotalEccErrors(gpu(0), 1, 0)"),
    *("n.nvmlDeviceGetMemoryErrorCounter(gpu(0), 1, 1, 2)", "n.nvmlDeviceGetRetiredPages(gpu(2), 1)"),
    *("n.nvmlDeviceGetRetiredPages_v2(gpu(2), 1)", "n.nvmlDeviceGetRetiredPagesPendingStatus(gpu(2))"),
    *("n.nvmlDeviceGetPcieThroughput(gpu(0), 1)", "n.nvmlDeviceGetNvLinkState(gpu(0), 17)"),
    *("n.nvmlDeviceGetNvLinkVersion(gpu(0), 0)", "n.nvmlDeviceGetNvLinkCapability(gpu(0), 0, 0)"),
    *("n.nvmlDeviceGetNvLinkErrorCounter(gpu(0), 0, 1)", "n.nvmlDeviceGetNvLinkRemotePciInfo(gpu(0), 0)"),
    *("n.nvmlDeviceGetNvLinkRemoteDeviceType(gpu(0), 0)", "n.nvmlDeviceGetP2PStatus(gpu(0), gpu(1), 2)"),
    *("n.nvmlDeviceGetTopologyCommonAncestor(gpu(0), gpu(1))", "len(n.nvmlDeviceGetTopologyNearestGpus(gpu(0), 40))"),
    *("n.nvmlDeviceGetGpuFabricInfo(gpu(0), ctypes.byref(n.c_nvmlGpuFabricInfo_t()))", "field(gpu(0), 230)"),
    "n.nvmlDeviceGetGpuFabricInfoV(gpu(0), ctypes.byref(n.c_nvmlGpuFabricInfo_v3_t()))",
    *("n.nvmlDeviceGetCpuAffinity(gpu(0), 2)", "n.nvmlDeviceGetCpuAffinityWithinScope(gpu(0), 2, 1)"),
    *("n.nvmlDeviceGetMemoryAffinity(gpu(0), 1, 0)", "n.nvmlDeviceGetGpuInstanceId(mig(1, 0))"),
    *("n.nvmlDeviceGetComputeInstanceId(mig(1, 0))", "n.nvmlDeviceIsMigDeviceHandle(mig(1, 0))"),
    *("n.nvmlDeviceGetAttributes(mig(1, 0))", "n.nvmlDeviceGetProcessUtilization(gpu(0), 0)"),
    "n.nvmlDeviceGetUUID(n.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(mig(1, 0)))",
    "n.nvmlDeviceGetSramEccErrorStatus(gpu(0), ctypes.byref(n.c_nvmlEccSramErrorStatus_v1_t()))",
    "n.nvmlEventSetFree(event_set(gpu(0)))",
    *("n.nvmlDeviceSetPersistenceMode(gpu(0), 1)", "n.nvmlDeviceSetComputeMode(gpu(0), 3)"),
    "n.nvmlDeviceSetPowerManagementLimit(gpu(0), 500000)",
    *("n.nvmlDeviceGetApplicationsClock(gpu(0), 2)", "n.nvmlDeviceGetDefaultApplicationsClock(gpu(0), 0)"),
    *("n.nvmlDeviceSetApplicationsClocks(gpu(0), 1000, 1200)", "n.nvmlDeviceResetApplicationsClocks(gpu(0))"),
)


def exports() -> "set[str]":
    """The names the sources export: written out, or as the first argument of a macro that defines a function."""
    pattern = re.compile(r"^(?:EXPORT [a-z ]+\*?|[A-Z_]*(?:GETTER|LIST)\()(nvml\w+)", re.MULTILINE)
    folder = Path(simnvml.__file__).parent
    return {name for source in folder.glob("*.c") for name in pattern.findall(source.read_text())}


def test_every_export_answers_through_pynvml(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make(model=["H100-80GB", "H100-80GB", "V100-32GB"])
    scenario.mig(1, ["1g.10gb"])
    scenario.processes(0, [Process(42, 1 << 20)])
    scenario.retire_page(2, 0x1000)
    child = start(scenario)
    for expression in EXPRESSIONS:
        child.ask(expression)  # raises where NVML did
    assert child.code("n.nvmlEventSetWait_v2(event_set(gpu(0)), 0)") == TIMEOUT
    called = set(child.ask("list(n._nvmlGetFunctionPointer_cache)"))
    assert exports() - called == {"nvmlInit", "nvmlInit_v2"}  # pynvml has its own way to start
    assert len(exports()) > 90


def test_identity_is_what_the_scenario_says(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make(gpus=8, driver="570.86.10")
    child = start(scenario)
    assert child.ask("n.nvmlSystemGetDriverVersion()") == "570.86.10"
    assert child.ask("[n.nvmlDeviceGetUUID(gpu(i)) for i in range(8)]") == [scenario.uuid(i) for i in range(8)]
    assert re.fullmatch(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", scenario.uuid(0))
    pci = child.ask("n.nvmlDeviceGetPciInfo(gpu(7))")
    assert pci["busId"] == scenario.bus_id(7) == "00000000:DF:00.0"
    assert (pci["bus"], pci["busIdLegacy"]) == (0xDF, "0000:DF:00.0")
    for spelling in ("00000000:DF:00.0", "0000:df:00.0", "0000:df:00"):
        assert child.ask(f"n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByPciBusId('{spelling}'))") == 7
    assert child.code("n.nvmlDeviceGetHandleByUUID('GPU-none')") == NOT_FOUND


@pytest.mark.parametrize("model", MODELS)
def test_models(model: str, make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    known = MODELS[model]
    child = start(make(gpus=1, model=model))
    assert child.ask("n.nvmlDeviceGetName(gpu(0))") == known.name
    memory = child.ask("n.nvmlDeviceGetMemoryInfo(gpu(0), version=n.nvmlMemory_v2)")
    assert memory["total"] == known.memory << 20
    assert memory["free"] + memory["reserved"] + memory["used"] == memory["total"]
    assert child.ask("n.nvmlDeviceGetPowerManagementLimitConstraints(gpu(0))") == [w * 1000 for w in known.power[1:]]
    assert child.ask("n.nvmlDeviceGetCudaComputeCapability(gpu(0))") == list(known.compute_capability)
    assert child.ask("field(gpu(0), 91)") == (known.nvlinks or None)
    if known.mig_slice_multiprocessors:
        assert child.ask("n.nvmlDeviceGetMigMode(gpu(0))") == [0, 0]
    else:
        assert child.code("n.nvmlDeviceGetMigMode(gpu(0))") == NOT_SUPPORTED
    if not known.remaps_rows:
        assert child.code("n.nvmlDeviceGetRemappedRows(gpu(0))") == NOT_SUPPORTED
        assert child.ask("n.nvmlDeviceGetRetiredPages(gpu(0), 1)") == []


# ---- topology ----------------------------------------------------------------------------------------------------

ANCESTORS = "[[n.nvmlDeviceGetTopologyCommonAncestor(gpu(i), gpu(j)) for j in range(8)] for i in range(8)]"
NVLINKED = "[[i != j and n.nvmlDeviceGetP2PStatus(gpu(i), gpu(j), 2) == 0 for j in range(8)] for i in range(8)]"


def test_nvswitch_links_all_to_all(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    child = start(make())
    assert all(sum(row) == 7 for row in child.ask(NVLINKED))
    assert child.ask("n.nvmlDeviceGetNvLinkRemoteDeviceType(gpu(0), 17)") == 2
    assert child.ask("n.nvmlDeviceGetTopologyCommonAncestor(gpu(0), gpu(7))") == 50


def test_cube_mesh_is_the_one_of_eight_v100(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    child = start(make(model="V100-32GB", topology="cube-mesh"))
    linked = child.ask(NVLINKED)
    assert [j for j, yes in enumerate(linked[0]) if yes] == [1, 2, 3, 4]
    assert all(sum(row) == 4 for row in linked)
    assert linked == [list(column) for column in zip(*linked)]
    buses = child.ask("[n.nvmlDeviceGetNvLinkRemotePciInfo(gpu(0), link).bus for link in range(6)]")
    assert sorted(buses) == [0x07, 0x0A, 0x0B, 0x0B, 0x85, 0x85]
    assert child.code("n.nvmlDeviceGetNvLinkState(gpu(0), 6)") == 2


def test_pcie_has_two_switches_a_numa_node(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    child = start(make(model="L40S", topology="pcie"))
    assert child.ask(ANCESTORS)[0] == [0, 10, 40, 40, 50, 50, 50, 50]
    assert not any(any(row) for row in child.ask(NVLINKED))
    assert child.code("n.nvmlDeviceGetNvLinkState(gpu(0), 0)") == NOT_SUPPORTED
    near = "[n.nvmlDeviceGetIndex(g) for g in n.nvmlDeviceGetTopologyNearestGpus(gpu(4), 40)]"
    assert child.ask(near) == [6, 7]
    assert child.ask("n.nvmlDeviceGetCpuAffinity(gpu(7), 1)") == [0xFFFFFFFF00000000]


def test_a_link_that_is_down(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make()
    child = start(scenario)
    scenario.link(2, 5, up=False, errors=[1, 2, 3, 4, 5])
    assert child.ask("[n.nvmlDeviceGetNvLinkState(gpu(2), i) for i in (4, 5)]") == [1, 0]
    assert child.ask("[n.nvmlDeviceGetNvLinkErrorCounter(gpu(2), 5, e) for e in range(5)]") == [1, 2, 3, 4, 5]
    assert child.ask("[field(gpu(2), 161, 5), field(gpu(2), 165, 5), field(gpu(2), 165, 4)]") == [1, 0, 1]


# ---- the scenario changes under a running process ----------------------------------------------------------------


def test_a_change_is_seen_at_the_next_call(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make()
    child = start(scenario)
    for temperature in range(20, 99):  # faster than a file system's clock ticks, and all of one size
        scenario.set(3, temperature=10)  # and a second file, which may leave its inode to the third
        scenario.set(3, temperature=temperature)
        assert child.ask("n.nvmlDeviceGetTemperature(gpu(3), 0)") == temperature


def test_several_changes_are_seen_together(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make()
    child = start(scenario)
    with scenario.edit():
        scenario.set(0, temperature=90)
        assert child.ask("n.nvmlDeviceGetTemperature(gpu(0), 0)") == 34
        scenario.ecc(0, uncorrected=2)
        scenario.ecc(0, uncorrected=1, sram=True)
    assert child.ask("n.nvmlDeviceGetTotalEccErrors(gpu(0), 1, 0)") == 3
    assert child.ask("[n.nvmlDeviceGetMemoryErrorCounter(gpu(0), 1, 1, where) for where in (2, 7, 1)]") == [2, 1, 0]


def test_what_a_process_sets_is_seen_by_others(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make()
    one, two = start(scenario), start(scenario)
    one.ask("n.nvmlDeviceSetComputeMode(gpu(1), 3)")
    assert two.ask("n.nvmlDeviceGetComputeMode(gpu(1))") == 3
    assert scenario.get(1, "compute_mode") == 3
    scenario.set(0, temperature=50)  # a rewrite keeps it
    assert two.ask("n.nvmlDeviceGetComputeMode(gpu(1))") == 3
    scenario.set(1, compute_mode=0)
    assert two.ask("n.nvmlDeviceGetComputeMode(gpu(1))") == 0


def test_application_clocks_are_set_within_the_boards_and_reset(
    make: Callable[..., Scenario], start: Callable[..., Child]
) -> None:
    scenario = make()
    child = start(scenario)
    default = [child.ask(f"n.nvmlDeviceGetDefaultApplicationsClock(gpu(1), {kind})") for kind in (2, 0)]
    child.ask("n.nvmlDeviceSetApplicationsClocks(gpu(1), 1500, 900)")
    assert [child.ask(f"n.nvmlDeviceGetApplicationsClock(gpu(1), {kind})") for kind in (2, 0)] == [1500, 900]
    assert child.code("n.nvmlDeviceSetApplicationsClocks(gpu(1), 1500, 90000)") == 2
    child.ask("n.nvmlDeviceResetApplicationsClocks(gpu(1))")
    assert [scenario.get(1, key) for key in ("app_memory_clock", "app_graphics_clock")] == default


def test_a_line_not_understood_is_loud(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make()
    child = start(scenario)
    with pytest.raises(UnknownKey):
        scenario.set(0, temperatur=50)
    assert child.ask("n.nvmlDeviceGetCount()") == 8
    with open(scenario.path, "a", encoding="ascii") as file:
        file.write("gpu.0.temperatur 50\n")
    assert child.code("gpu(0)") == UNKNOWN


# ---- counters ----------------------------------------------------------------------------------------------------


def test_energy_is_power_times_time_in_every_process(
    make: Callable[..., Scenario], start: Callable[..., Child]
) -> None:
    scenario = make()
    scenario.set(0, power_mw=500_000_000, energy_mj=7_000_000)  # 500 kW: a second shows
    one, two = start(scenario), start(scenario)
    reading = "[time.monotonic(), n.nvmlDeviceGetTotalEnergyConsumption(gpu(0)), time.monotonic()]"
    first, second = one.ask(reading), two.ask(reading)
    assert first[1] >= 7_000_000
    assert (second[0] - first[2]) * 5e8 - 1 <= second[1] - first[1] <= (second[2] - first[0]) * 5e8 + 1
    assert one.ask("field(gpu(0), 83)") > second[1]


def test_a_change_of_power_does_not_make_energy_jump(
    make: Callable[..., Scenario], start: Callable[..., Child]
) -> None:
    scenario = make()
    scenario.set(0, power_mw=400_000_000, pcie_replay_rate=1_000_000)
    child = start(scenario)
    both = "[n.nvmlDeviceGetTotalEnergyConsumption(gpu(0)), n.nvmlDeviceGetPcieReplayCounter(gpu(0))]"
    before = child.ask(both)
    scenario.set(0, power_mw=0, pcie_replay_rate=0)
    after = child.ask(both)
    assert after[0] >= before[0] > 0
    assert after[1] >= before[1] > 0
    assert child.ask(both) == after


def test_counters_restart_with_the_driver(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make()
    scenario.set(0, energy_mj=10**12, power_mw=70_000)
    scenario.ecc(0, corrected=5)
    child = start(scenario)
    scenario.reinitialise(0)
    assert child.ask("n.nvmlDeviceGetTotalEnergyConsumption(gpu(0))") < 10**9
    assert child.ask("[n.nvmlDeviceGetTotalEccErrors(gpu(0), 0, span) for span in (0, 1)]") == [0, 5]


def test_time_slowed_by_heat_is_counted(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make()
    scenario.set(0, clock_reasons=0x40)
    child = start(scenario)
    reading = "n.nvmlDeviceGetViolationStatus(gpu(0), 1).violationTime"
    first = child.ask(reading)
    assert child.ask(reading) > first > 0
    assert child.ask("n.nvmlDeviceGetViolationStatus(gpu(0), 0).violationTime") == 0
    assert child.ask("n.nvmlDeviceGetCurrentClocksThrottleReasons(gpu(0))") == 0x40


def test_a_value_of_none_is_not_supported(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make()
    scenario.set(0, power_mw=None, memory_temperature=None, firmware=None)
    child = start(scenario)
    assert child.code("n.nvmlDeviceGetPowerUsage(gpu(0))") == NOT_SUPPORTED
    assert child.code("n.nvmlDeviceGetGspFirmwareVersion(gpu(0))") == NOT_SUPPORTED
    assert child.ask("[field(gpu(0), 82), field(gpu(0), 186), field(gpu(0), 100)]") == [None, None, None]


def test_fields_of_health(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make()
    scenario.set(0, remapped_correctable=1, remapped_uncorrectable=2, remapped_pending=1, recovery_action=4)
    scenario.set(0, reset_status=1, drain_and_reset_status=1, power_mw=123_000)
    child = start(scenario)
    wanted = [1, 2, 1, 0, 1, 1, 4, 123_000]
    assert child.ask("[field(gpu(0), f) for f in (142, 143, 144, 145, 226, 227, 230, 186)]") == wanted
    assert child.ask("n.nvmlDeviceGetRemappedRows(gpu(0))") == [1, 2, 1, 0]


# ---- sizes and versions ------------------------------------------------------------------------------------------


def test_processes(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make()
    child = start(scenario)
    assert child.ask("n.nvmlDeviceGetComputeRunningProcesses(gpu(0))") == []
    scenario.processes(
        0,
        [Process(100 + i, i << 20, sm_util=i) for i in range(20)]
        + [Process(7, None, "graphics", sm_util=None), Process(8, 5 << 20, "mps", sm_util=None)],
    )
    compute = child.ask("n.nvmlDeviceGetComputeRunningProcesses(gpu(0))")
    assert [(p["pid"], p["usedGpuMemory"]) for p in compute] == [(100 + i, i << 20) for i in range(20)]
    assert compute[0]["gpuInstanceId"] == 0xFFFFFFFF
    assert child.ask("n.nvmlDeviceGetGraphicsRunningProcesses(gpu(0))")[0]["usedGpuMemory"] is None
    assert child.ask("n.nvmlDeviceGetMPSComputeRunningProcesses(gpu(0))")[0]["pid"] == 8
    assert child.ask("n.nvmlDeviceGetMemoryInfo(gpu(0), version=n.nvmlMemory_v2).used") == (sum(range(20)) + 5) << 20
    samples = child.ask("n.nvmlDeviceGetProcessUtilization(gpu(0), 0)")
    assert [(s["pid"], s["smUtil"]) for s in samples] == [(100 + i, i) for i in range(20)]
    again = child.ask(f"n.nvmlDeviceGetProcessUtilization(gpu(0), {samples[0]['timeStamp']})")
    assert again[0]["timeStamp"] > samples[0]["timeStamp"]
    assert child.code("n.nvmlDeviceGetProcessUtilization(gpu(1), 0)") == NOT_FOUND


def test_a_size_query_says_insufficient_where_there_is_something(
    make: Callable[..., Scenario], start: Callable[..., Child]
) -> None:
    scenario = make(model="V100-32GB", gpus=2)
    scenario.processes(0, [Process(1), Process(2)])
    scenario.retire_page(0, 0x4000)
    child = start(scenario)
    assert child.ask("sized('nvmlDeviceGetComputeRunningProcesses_v3', gpu(0))") == [7, 2]
    assert child.ask("sized('nvmlDeviceGetComputeRunningProcesses_v3', gpu(1))") == [0, 0]
    assert child.ask("sized('nvmlDeviceGetRetiredPages', gpu(0), 1)") == [7, 1]
    assert child.ask("sized('nvmlDeviceGetTopologyNearestGpus', gpu(0), 50)") == [0, 1]  # pynvml wants it so
    assert child.ask("n.nvmlDeviceGetRetiredPages_v2(gpu(0), 1)[0]['address']") == 0x4000
    assert child.ask("n.nvmlDeviceGetRetiredPagesPendingStatus(gpu(0))") == 1
    name = "ctypes.create_string_buffer(8), ctypes.c_uint(8)"
    assert child.ask(f"n.nvmlLib.nvmlDeviceGetName(gpu(0), {name})") == 7


@pytest.mark.parametrize(
    ("struct", "version", "function"),
    [
        ("c_nvmlMemory_v2_t", "n.nvmlMemory_v2", "nvmlDeviceGetMemoryInfo_v2"),
        ("c_nvmlTemperature_v1_t", "n.nvmlTemperature_v1", "nvmlDeviceGetTemperatureV"),
        ("c_nvmlMarginTemperature_v1_t", "n.nvmlMarginTemperature_v1", "nvmlDeviceGetMarginTemperature"),
        ("c_nvmlGpuFabricInfo_v2_t", "n.nvmlGpuFabricInfo_v2", "nvmlDeviceGetGpuFabricInfoV"),
        ("c_nvmlGpuFabricInfo_v3_t", "n.nvmlGpuFabricInfo_v3", "nvmlDeviceGetGpuFabricInfoV"),
    ],
)
def test_struct_versions_are_checked(
    struct: str, version: str, function: str, make: Callable[..., Scenario], start: Callable[..., Child]
) -> None:
    child = start(make(gpus=1))
    assert child.ask(f"versioned(n.{struct}, {version}, '{function}', gpu(0))") == 0
    assert child.ask(f"versioned(n.{struct}, {version} + 8, '{function}', gpu(0))") == VERSION_MISMATCH
    assert child.ask(f"versioned(n.{struct}, 0, '{function}', gpu(0))") == VERSION_MISMATCH


def test_fabric(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make()
    scenario.set(1, fabric_state=2, fabric_clique=9, fabric_health=0x55, fabric_summary=2)
    child = start(scenario)
    assert child.ask("fabric(gpu(0))")["state"] == 3
    found = child.ask("fabric(gpu(1))")
    assert [found[key] for key in ("state", "cliqueId", "healthMask", "healthSummary")] == [2, 9, 0x55, 2]


# ---- MIG ---------------------------------------------------------------------------------------------------------


def test_mig(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make(gpus=2)
    child = start(scenario)
    assert child.code("mig(0, 0)") == NOT_FOUND
    uuids = scenario.mig(0, ["1g.10gb", "3g.40gb"])
    scenario.processes(0, [Process(50, 1 << 30, mig=1), Process(51, 2 << 30, mig=0)])
    assert child.ask("n.nvmlDeviceGetMigMode(gpu(0))") == [1, 1]
    assert child.ask("n.nvmlDeviceGetMaxMigDeviceCount(gpu(0))") == 7
    assert child.ask("[n.nvmlDeviceGetUUID(mig(0, i)) for i in range(2)]") == uuids
    assert child.ask("n.nvmlDeviceGetName(mig(0, 1))") == "NVIDIA H100 80GB HBM3 MIG 3g.40gb"
    assert child.code("mig(0, 2)") == NOT_FOUND
    attributes = child.ask("n.nvmlDeviceGetAttributes(mig(0, 1))")
    assert (attributes["gpuInstanceSliceCount"], attributes["multiprocessorCount"]) == (3, 48)
    assert child.ask("n.nvmlDeviceGetMemoryInfo(mig(0, 1))")["used"] == 1 << 30
    assert [p["pid"] for p in child.ask("n.nvmlDeviceGetComputeRunningProcesses(mig(0, 1))")] == [50]
    assert [p["pid"] for p in child.ask("n.nvmlDeviceGetComputeRunningProcesses(gpu(0))")] == [50, 51]
    instances = child.ask("[n.nvmlDeviceGetGpuInstanceId(mig(0, i)) for i in range(2)]")
    assert instances == [instance.gi for instance in scenario.mig_instances(0)]
    by_uuid = f"n.nvmlDeviceGetHandleByUUID('{uuids[1]}')"
    assert child.ask(f"n.nvmlDeviceIsMigDeviceHandle({by_uuid})") == 1
    parent = f"n.nvmlDeviceGetDeviceHandleFromMigDeviceHandle({by_uuid})"
    assert child.ask(f"n.nvmlDeviceGetUUID({parent})") == scenario.uuid(0)
    assert child.code("n.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(gpu(0))") == INVALID_ARGUMENT
    assert child.code("n.nvmlDeviceGetTemperature(mig(0, 0), 0)") == NOT_SUPPORTED
    assert child.code("n.nvmlDeviceGetUtilizationRates(gpu(0))") == NOT_SUPPORTED
    scenario.mig(0, None)
    assert child.ask("n.nvmlDeviceGetMigMode(gpu(0))") == [0, 0]


# ---- events ------------------------------------------------------------------------------------------------------


def test_xids_are_delivered_once_and_not_collapsed(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make()
    scenario.xid(0, 31)  # before there was a set: nobody's
    child = start(scenario)
    child.ask("[globals().update(a=event_set(gpu(0), gpu(2)), b=event_set(gpu(2))), None][1]")
    assert child.code("wait(a, 0)") == TIMEOUT
    scenario.xid(2, 79)
    scenario.xid(1, 48)  # not registered for
    scenario.xid(2, 79)
    scenario.xid(0, 94, gi=3, ci=0)
    seen = [child.ask("wait(a, 1000)") for _ in range(3)]
    lost = [scenario.uuid(2), XID, 79, 0xFFFFFFFF]
    assert seen == [lost, lost, [scenario.uuid(0), XID, 94, 3]]
    assert child.code("wait(a, 30)") == TIMEOUT
    assert [child.ask("wait(b, 1000)") for _ in range(2)] == [lost, lost]
    assert child.code("wait(b, 0)") == TIMEOUT


def test_a_waiting_thread_gets_the_event_as_it_comes(
    make: Callable[..., Scenario], start: Callable[..., Child]
) -> None:
    scenario = make()
    child = start(scenario)
    child.ask("globals().update(a=event_set(gpu(0)), seen=[])")
    child.ask("aside(lambda: seen.append(wait(a, 60000)))")
    assert child.ask("n.nvmlDeviceGetTemperature(gpu(1), 0)") == 34  # the wait holds up no other call
    scenario.xid(0, 62)
    sent = time.monotonic()
    eventually(lambda: child.ask("len(seen)") == 1, "the event did not arrive")
    assert time.monotonic() - sent < 5.0
    assert child.ask("seen[0]") == [scenario.uuid(0), XID, 62, 0xFFFFFFFF]


def test_an_event_follows_its_gpu_when_indices_shift(
    make: Callable[..., Scenario], start: Callable[..., Child]
) -> None:
    scenario = make()
    child = start(scenario)
    child.ask("globals().update(a=event_set(gpu(5)))")
    scenario.absent(1)
    scenario.xid(5, 13)
    assert child.ask("wait(a, 1000)")[:3] == [scenario.uuid(5), XID, 13]
    assert child.ask("n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByUUID(n.nvmlDeviceGetUUID(gpu(4))))") == 4


def test_the_recovery_action_is_an_event_of_its_own_type(
    make: Callable[..., Scenario], start: Callable[..., Child]
) -> None:
    scenario = make()
    child = start(scenario)
    child.ask("globals().update(a=event_set(gpu(0)), b=event_set(gpu(0), types=0x8008))")
    scenario.recover(0, 2)
    assert child.ask("wait(b, 1000)")[1:3] == [RECOVERY, 2]
    assert child.code("wait(a, 0)") == TIMEOUT
    assert child.ask("field(gpu(0), 230)") == 2
    scenario.set(1, event_types=XID)
    assert child.code("event_set(gpu(1), types=0x8008)") == NOT_SUPPORTED


# ---- faults ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "code", "name"),
    [("lose", LOST, "NVMLError_GpuIsLost"), ("require_reset", RESET_REQUIRED, "NVMLError_ResetRequired")],
)
def test_a_gpu_lost_or_in_need_of_a_reset(
    change: str, code: int, name: str, make: Callable[..., Scenario], start: Callable[..., Child]
) -> None:
    scenario = make()
    child = start(scenario)
    child.ask("globals().update(old=gpu(2))")
    getattr(scenario, change)(2)
    uuid, bus_id = scenario.uuid(2), scenario.bus_id(2)
    for expression in (
        *("gpu(2)", f"n.nvmlDeviceGetHandleByUUID('{uuid}')", f"n.nvmlDeviceGetHandleByPciBusId('{bus_id}')"),
        *("n.nvmlDeviceGetTemperature(old, 0)", "n.nvmlDeviceGetUUID(old)", "field(old, 230)", "event_set(old)"),
        *("n.nvmlDeviceGetComputeRunningProcesses(old)", "n.nvmlDeviceGetP2PStatus(gpu(0), old, 2)"),
    ):
        with pytest.raises(NvmlFailed, match=name) as failed:
            child.ask(expression)
        assert failed.value.args[0] == code
    assert child.ask("n.nvmlDeviceGetCount()") == 8
    assert child.ask("n.nvmlDeviceGetTemperature(gpu(3), 0)") == 34
    scenario.heal(2)
    assert child.ask("n.nvmlDeviceGetTemperature(old, 0)") == 34


def test_an_absent_gpu_shifts_indices_and_keeps_uuids(
    make: Callable[..., Scenario], start: Callable[..., Child]
) -> None:
    scenario = make()
    child = start(scenario)
    child.ask("globals().update(old=gpu(2))")
    scenario.absent(2)
    uuids = child.ask("[n.nvmlDeviceGetUUID(gpu(i)) for i in range(n.nvmlDeviceGetCount())]")
    assert uuids == [scenario.uuid(i) for i in range(8) if i != 2]
    assert child.ask("n.nvmlDeviceGetIndex(gpu(2))") == 2
    assert child.ask("n.nvmlDeviceGetMinorNumber(gpu(2))") == 3
    assert child.code(f"n.nvmlDeviceGetHandleByUUID('{scenario.uuid(2)}')") == NOT_FOUND
    assert child.code("n.nvmlDeviceGetTemperature(old, 0)") == LOST


@pytest.mark.parametrize(("code", "name"), [(9, "DriverNotLoaded"), (18, "LibRmVersionMismatch"), (999, "Unknown")])
def test_initialising_fails(code: int, name: str, make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make()
    scenario.fail_init(code)
    child = start(scenario, init=False)
    with pytest.raises(NvmlFailed, match=name):
        child.ask("n.nvmlInit()")
    assert child.code("n.nvmlDeviceGetCount()") == 1
    scenario.heal()
    child.ask("n.nvmlInit()")
    assert child.ask("n.nvmlDeviceGetCount()") == 8
    child.ask("n.nvmlShutdown()")
    assert child.code("n.nvmlDeviceGetCount()") == 1


@pytest.mark.parametrize(
    ("code", "name"),
    [(NOT_SUPPORTED, "NotSupported"), (FUNCTION_NOT_FOUND, "FunctionNotFound"), (4, "NoPermission"), (999, "Unknown")],
)
def test_one_call_fails(code: int, name: str, make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make()
    child = start(scenario)
    scenario.fault("nvmlDeviceGetTemperature", code, gpu=1)
    with pytest.raises(NvmlFailed, match=f"NVMLError_{name}"):
        child.ask("n.nvmlDeviceGetTemperature(gpu(1), 0)")
    assert child.ask("n.nvmlDeviceGetTemperatureV(gpu(1), 0)") == 34  # its name begins alike
    assert child.ask("n.nvmlDeviceGetTemperature(gpu(0), 0)") == 34
    scenario.fault("nvmlDeviceGetTemp*", code)
    assert child.code("n.nvmlDeviceGetTemperatureV(gpu(0), 0)") == code
    scenario.clear_faults()
    assert child.ask("n.nvmlDeviceGetTemperature(gpu(0), 0)") == 34
    assert child.code("n.nvmlDeviceGetTemperature(gpu(1), 0)") == code


def test_a_hung_gpu_hangs_one_thread_and_no_other(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make()
    child = start(scenario)
    child.ask("globals().update(old=gpu(2), done=[])")
    scenario.hang(2)
    child.ask("aside(lambda: done.append(n.nvmlDeviceGetTemperature(old, 0)))")
    child.ask("aside(lambda: done.append(gpu(2)))")  # the lookup hangs too
    assert child.ask("n.nvmlDeviceGetTemperature(gpu(3), 0)") == 34
    assert child.ask("[threading.active_count(), done]") == [3, []]
    child.send("n.nvmlDeviceGetTemperature(old, 0)")
    eventually(lambda: child.state() == "S", "the process is not asleep")
    with pytest.raises(AssertionError, match="no answer"):
        child.answer(within=0.2)
    child.kill()


def test_initialising_hangs(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make()
    scenario.hang(call="nvmlInit*")
    child = start(scenario, init=False)
    child.send("n.nvmlInit()")
    with pytest.raises(AssertionError, match="no answer"):
        child.answer(within=0.3)
    assert child.state() == "S"


def test_uninterruptible(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make()
    child = start(scenario)
    scenario.dstate(1, "nvmlDeviceGetTemperature")
    child.send("n.nvmlDeviceGetTemperature(gpu(1), 0)")
    eventually(lambda: child.state() == "D", "the process is not in state D")
    (helper,) = children_of(child.process.pid)
    os.kill(child.process.pid, signal.SIGTERM)
    eventually(lambda: pending(child.process.pid, signal.SIGTERM), "SIGTERM is not pending")
    assert child.state() == "D"
    child.kill()
    eventually(lambda: process_state(helper) in ("", "Z"), "the sleeping child outlived its parent")


def test_uninterruptible_ends_by_itself(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make()
    child = start(scenario)
    scenario.dstate(call="nvmlDeviceGetCount_v2", seconds=1)
    assert child.code("n.nvmlDeviceGetCount()") == UNKNOWN
    assert children_of(child.process.pid) == []
    assert child.ask("n.nvmlDeviceGetTemperature(gpu(0), 0)") == 34


def test_crash(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make()
    child = start(scenario)
    scenario.crash(0, "nvmlDeviceGetPowerUsage")
    assert child.ask("n.nvmlDeviceGetPowerUsage(gpu(1))") == 70_000
    child.send("n.nvmlDeviceGetPowerUsage(gpu(0))")
    assert child.process.wait(PATIENCE) == -signal.SIGSEGV


def test_a_late_call_answers_all_the_same(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    scenario = make()
    scenario.delay(500, call="nvmlDeviceGetHandleByIndex_v2")
    child = start(scenario)
    took = child.ask("[time.monotonic(), gpu(0), time.monotonic()][::2]")
    assert 0.5 <= took[1] - took[0] < 0.95  # late once, not once for the library and once for the GPU


def test_a_call_can_be_late_by_less_than_a_millisecond(
    make: Callable[..., Scenario], start: Callable[..., Child]
) -> None:
    scenario = make()
    scenario.delay(0.3, gpu=1, call="nvmlDeviceGetTemperature")
    child = start(scenario)
    child.ask("globals().update(on_time=gpu(0), late=gpu(1))")
    rounds = "min(timeit.repeat(lambda: n.nvmlDeviceGetTemperature({}, 0), number=1, repeat=200))"
    assert child.ask(rounds.format("on_time")) < 300e-6 <= child.ask(rounds.format("late")) < 600e-6


@pytest.mark.parametrize("late", ["0.", ".5", "1.2345", "1.x", "-1", "1.-5"])
def test_a_latency_that_makes_no_sense(make: Callable[..., Scenario], start: Callable[..., Child], late: str) -> None:
    scenario = make()
    with scenario.path.open("a") as file:
        file.write(f"latency nvmlDeviceGetTemperature {late}\n")
    assert start(scenario, init=False).code("n.nvmlInit()") == UNKNOWN


def test_a_fork_beside_busy_threads(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    child = start(make())
    for _ in range(2):
        child.ask("aside(lambda: [n.nvmlDeviceGetTotalEnergyConsumption(gpu(i % 8)) for i in range(10**8)])")
    assert child.ask("{in_a_fork(lambda: n.nvmlDeviceGetTemperature(gpu(0), 0)) for _ in range(200)} == {34}")


# ---- speed -------------------------------------------------------------------------------------------------------


def test_a_call_is_cheap(make: Callable[..., Scenario], start: Callable[..., Child]) -> None:
    child = start(make(gpus=16))
    rounds = "min(timeit.repeat(lambda: n.nvmlDeviceGetTemperature(old, 0), number=2000, repeat=5)) / 2000"
    child.ask("globals().update(old=gpu(15))")
    assert child.ask(rounds) < 50e-6


# ---- the trees beside it -----------------------------------------------------------------------------------------


def test_fake_roots_agree_with_the_scenario(make: Callable[..., Scenario], tmp_path: Path) -> None:
    scenario = make(gpus=4, model="A100-80GB")
    scenario.mig(3, ["1g.10gb"])
    scenario.absent(1)
    roots = fake_roots(tmp_path / "node", scenario)
    version = (roots["proc"] / "driver/nvidia/version").read_text()
    assert version.startswith("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  ")
    folders = sorted(path.name for path in (roots["proc"] / "driver/nvidia/gpus").iterdir())
    assert folders == [scenario.bus_id(gpu)[4:].lower() for gpu in (0, 2, 3)]
    assert folders == sorted(path.name for path in (roots["sys"] / "bus/pci/devices").iterdir())
    information = (roots["proc"] / "driver/nvidia/gpus" / folders[2] / "information").read_text()
    assert re.search(rf"^GPU UUID:\s+{scenario.uuid(3)}$", information, re.MULTILINE)
    assert re.search(r"^Device Minor:\s+3$", information, re.MULTILINE)
    assert (roots["sys"] / "bus/pci/devices" / folders[2] / "numa_node").read_text() == "1\n"
    nodes = {path.name for path in roots["dev"].iterdir()}
    assert nodes >= {"nvidia0", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm", "kmsg"} and "nvidia1" not in nodes
    (instance,) = scenario.mig_instances(3)
    minors = dict(
        line.rsplit(" ", 1) for line in (roots["proc"] / "driver/nvidia-caps/mig-minors").read_text().splitlines()
    )
    access = minors[f"gpu3/gi{instance.gi}/access"]
    assert (roots["dev"] / f"nvidia-caps/nvidia-cap{access}").exists()
    capability = roots["proc"] / f"driver/nvidia/capabilities/gpu3/mig/gi{instance.gi}/access"
    assert capability.read_text().startswith(f"DeviceFileMinor: {access}\n")
    _assert_device(roots["dev"] / "nvidia3", (195, 3))


def _assert_device(path: Path, numbers: Optional["tuple[int, int]"]) -> None:
    if path.is_char_device():
        device = path.stat().st_rdev
        assert (os.major(device), os.minor(device)) == numbers
    else:
        assert path.is_file()


def test_the_kernel_log_keeps_its_lines(make: Callable[..., Scenario], tmp_path: Path) -> None:
    scenario = make(gpus=2)
    roots = fake_roots(tmp_path / "node", scenario)
    log_xid(roots, scenario, 1, 79)
    fake_roots(tmp_path / "node", scenario)
    log_xid(roots, scenario, 0, 31)
    lines = (roots["dev"] / "kmsg").read_text().splitlines()
    assert re.fullmatch(r"4,0,\d+,-;NVRM: Xid \(PCI:0000:43:00\): 79, .*", lines[0])
    assert re.fullmatch(r"4,1,\d+,-;NVRM: Xid \(PCI:0000:1b:00\): 31, .*", lines[1])
