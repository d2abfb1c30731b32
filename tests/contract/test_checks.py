"""Each check through the probe and the stand-in NVML: a planted fault is found on its GPU alone, and clears.

Time is the facts' own: one reading is judged again and again as if ten seconds lay between, so that windows fill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from nodeagent.config.model import Config, Health, Roots
from nodeagent.config.thresholds import Expect, MemoryErrors
from nodeagent.gpu.probe import ProbeProcess
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.verdict import Memory, Verdict, judge
from tests.simnvml import Process, Scenario, fake_roots

ERROR, WARNING = Severity.ERROR, Severity.WARNING
NONE, RESET, REBOOT, INSPECT = (
    RecoveryAction.NONE,
    RecoveryAction.RESET_GPU,
    RecoveryAction.REBOOT_NODE,
    RecoveryAction.INSPECT_HARDWARE,
)
SICK = 1
"""The slot in which faults are planted; its neighbours stay well."""
HEALED = 70
"""Cycles of ten seconds after which every window of ten minutes is clean, and `recover` cycles more."""
Plant = Callable[[Scenario], object]


@dataclass(frozen=True)
class Case:
    """One fault: what is planted (`first` before the first reading), what it is to be found as, what mends it."""

    check: str
    severity: Severity
    action: RecoveryAction
    plant: Plant
    mend: Plant = lambda scenario: scenario.heal()
    first: Plant = lambda scenario: None
    cycles: int = 1
    healed: int = HEALED
    settings: Health = field(default_factory=Health)
    model: str = "H100-80GB"


def values(**given: object) -> Plant:
    """Return what gives the sick GPU these values."""
    return lambda scenario: scenario.set(SICK, **given)  # type: ignore[arg-type]


def work(scenario: Scenario, sm_clock: int) -> None:
    """Let a process keep the sick GPU busy at that clock."""
    scenario.processes(SICK, [Process(42, 1 << 30)])
    scenario.set(SICK, gpu_util=100, sm_clock=sm_clock, clock_reasons=0)


def numa(scenario: Scenario, text: str) -> None:
    """Say which NUMA node the sick GPU is at."""
    device = scenario.bus_id(SICK)[-12:].lower()
    path = scenario.path.parent / "roots" / "sys" / "bus" / "pci" / "devices" / device / "numa_node"
    path.write_text(f"{text}\n")


def device_file(scenario: Scenario) -> Path:
    """Return the sick GPU's device file."""
    return scenario.path.parent / "roots" / "dev" / f"nvidia{scenario.get(SICK, 'minor')}"


def closed(scenario: Scenario) -> Path:
    """Let nobody but root open the sick GPU's device file."""
    device_file(scenario).chmod(0o600)
    return device_file(scenario)


def swapped(scenario: Scenario) -> None:
    """Put another GPU's device file in the place of the sick one's."""
    path = device_file(scenario)
    path.rename(path.with_name("gone"))
    path.symlink_to("nvidia0")


WISH = Health(expect=Expect(persistence="on", compute_mode="default", ecc="on", mig="off"))
CASES = {
    "remap failed": Case("row-remapping", ERROR, INSPECT, values(remapped_failure=1)),
    "remap pending": Case("row-remapping", WARNING, RESET, values(remapped_pending=1)),
    "bank exhausted": Case("row-remapping", WARNING, INSPECT, values(remap_exhausted=1)),
    "page pending": Case(
        "retired-pages", ERROR, RESET, lambda scenario: scenario.retire_page(SICK, 0x1000), model="V100-32GB"
    ),
    "pages retired": Case(
        *("retired-pages", ERROR, INSPECT),
        lambda scenario: [scenario.retire_page(SICK, n << 16, n % 2 == 0, False) for n in range(61)],
        mend=lambda scenario: scenario.unretire_pages(SICK),
        model="V100-32GB",
    ),
    "corrected errors": Case(
        *("ecc-corrected", WARNING, INSPECT),
        lambda scenario: scenario.ecc(SICK, corrected=10_000_001),
        mend=lambda scenario: scenario.reinitialise(SICK),
    ),
    "thermal slowdown": Case("hardware-slowdown", WARNING, INSPECT, values(clock_reasons=0x48), cycles=40),
    "power brake": Case("hardware-slowdown", WARNING, INSPECT, values(clock_reasons=0x88), cycles=40),
    "slowdown": Case("hardware-slowdown", WARNING, INSPECT, values(clock_reasons=0x8), cycles=40),
    "hot": Case("temperature", WARNING, INSPECT, values(temperature=89), cycles=40),
    "hot memory": Case("temperature", WARNING, INSPECT, values(memory_temperature=95), cycles=40),
    "no power": Case("power-readout", WARNING, INSPECT, values(power_mw=0), values(power_mw=70_000), cycles=40),
    "too much power": Case(
        "power-readout", WARNING, INSPECT, values(power_mw=1_400_001), values(power_mw=70_000), cycles=40
    ),
    "power not read": Case(
        *("power-readout", WARNING, INSPECT),
        lambda scenario: scenario.fault("nvmlDeviceGetPowerUsage", 999, gpu=SICK),
        cycles=40,
    ),
    "lanes lost": Case("pcie-link", WARNING, INSPECT, values(pcie_width=8), cycles=7),
    "generation lost": Case("pcie-link", WARNING, INSPECT, values(pcie_generation=3), cycles=7),
    "replays": Case(
        *("pcie-replays", WARNING, INSPECT, values(pcie_replay=81)),
        mend=lambda scenario: None,
    ),
    "link down": Case("nvlink-down", ERROR, RESET, lambda scenario: scenario.link(SICK, 3, up=False), cycles=7),
    "link never up": Case(
        *("nvlink-down", WARNING, RESET, lambda scenario: None),
        first=lambda scenario: scenario.link(SICK, 3, up=False),
        cycles=7,
    ),
    "link errors": Case(
        *("nvlink-errors", WARNING, RESET, lambda scenario: scenario.link(SICK, 3, errors=(1, 0, 60_001, 0, 0))),
        mend=lambda scenario: None,
    ),
    "link recovery": Case(
        *("nvlink-errors", WARNING, RESET, lambda scenario: scenario.link(SICK, 3, errors=(0, 1, 0, 0, 0))),
        mend=lambda scenario: None,
        healed=370,
    ),
    "fabric": Case("fabric-state", ERROR, REBOOT, values(fabric_state=2), values(fabric_state=3), cycles=40),
    "fabric error": Case("fabric-state", ERROR, REBOOT, values(fabric_status=999), values(fabric_status=0), cycles=40),
    "persistence": Case("gpu-modes", WARNING, NONE, values(persistence=0), values(persistence=1), settings=WISH),
    "compute mode": Case("gpu-modes", WARNING, NONE, values(compute_mode=3), values(compute_mode=0), settings=WISH),
    "ECC off": Case("gpu-modes", WARNING, RESET, values(ecc_mode=0), values(ecc_mode=1), settings=WISH),
    "MIG on": Case(
        *("gpu-modes", WARNING, RESET, lambda scenario: scenario.mig(SICK, [])),
        mend=lambda scenario: scenario.mig(SICK, None),
        settings=WISH,
    ),
    "memory held": Case(
        *("memory-held", WARNING, RESET, lambda scenario: scenario.processes(SICK, [], memory_used=1 << 30)),
        mend=lambda scenario: scenario.processes(SICK, []),
        cycles=40,
    ),
    "load stuck": Case(
        *("stuck-readings", WARNING, RESET),
        *(values(gpu_util=100, sm_clock=1980), values(gpu_util=0, sm_clock=345)),
        cycles=40,
    ),
    "clock stuck": Case(
        *("stuck-readings", WARNING, RESET, lambda scenario: work(scenario, sm_clock=600)),
        mend=lambda scenario: work(scenario, sm_clock=1980),
        cycles=40,
    ),
    "NUMA node": Case(
        "numa-affinity", WARNING, NONE, lambda scenario: numa(scenario, "-1"), lambda scenario: numa(scenario, "0")
    ),
    "device file": Case(
        *("device-files", WARNING, NONE),
        lambda scenario: device_file(scenario).rename(device_file(scenario).with_name("gone")),
        lambda scenario: device_file(scenario).with_name("gone").rename(device_file(scenario)),
    ),
    "device file is a folder": Case(
        *("device-files", WARNING, NONE),
        lambda scenario: [
            device_file(scenario).rename(device_file(scenario).with_name("gone")),
            device_file(scenario).mkdir(),
        ],
        lambda scenario: [
            device_file(scenario).rmdir(),
            device_file(scenario).with_name("gone").rename(device_file(scenario)),
        ],
    ),
    "device file is closed": Case(
        *("device-files", WARNING, NONE, closed),
        lambda scenario: device_file(scenario).chmod(0o666),
    ),
    "device file of another GPU": Case(
        *("device-files", WARNING, NONE, swapped),
        lambda scenario: device_file(scenario).with_name("gone").rename(device_file(scenario)),
    ),
    "uncorrected errors in a life": Case(
        *("ecc-uncorrected", WARNING, INSPECT, values(ecc_uncorrected_aggregate=11)),
        values(ecc_uncorrected_aggregate=10),
        settings=Health(memory_errors=MemoryErrors(uncorrected_total=10)),
    ),
    "reset status": Case(*("reset-required", ERROR, RESET, values(reset_status=1)), values(reset_status=0)),
    "drain and reset status": Case(
        *("reset-required", ERROR, RESET, values(drain_and_reset_status=1)), values(drain_and_reset_status=0)
    ),
    "recovery action": Case("reset-required", ERROR, RESET, lambda scenario: scenario.recover(SICK, 1)),
    "reset required": Case(
        *("reset-required", ERROR, RESET, lambda scenario: scenario.require_reset(SICK)),
        lambda scenario: scenario.heal(),
    ),
    "lost": Case("gpu-lost", ERROR, REBOOT, lambda scenario: scenario.lose(SICK)),
    "uncorrected errors": Case(
        *("ecc-uncorrected", ERROR, RESET, lambda scenario: scenario.ecc(SICK, uncorrected=1)),
        lambda scenario: scenario.reinitialise(SICK),
    ),
    "caches": Case("sram-errors", ERROR, INSPECT, values(sram_threshold=1)),
}


class Node:
    """Three GPUs of one model, read by a real probe and judged."""

    def __init__(self, home: Path, model: str, settings: Health) -> None:
        self.scenario = Scenario(home / "scenario", gpus=3, model=model)
        self.home = home
        roots = fake_roots(home / "roots", self.scenario)
        config = Config(probe_timeout=20.0, roots=Roots(**{name: str(path) for name, path in roots.items()}))
        self.source = ProbeProcess(config, env=self.scenario.env)
        self.settings = settings
        self.memory = Memory()
        self.now = 1000.0

    def see(self, cycles: int = 1) -> Verdict:
        """Read once and judge what was read `cycles` times."""
        facts = self.source.sample()
        assert (facts.nvml_error, facts.hung, len(facts.gpus)) == (None, False, 3)
        for _ in range(cycles):
            self.now += 10.0
            verdict, self.memory = judge(self.memory, replace(facts, monotonic=self.now), self.settings)
        return verdict

    def reload(self, driver: str) -> None:
        """Load another driver: the probe lets NVML go, as it does when that disappears under it."""
        self.scenario.driver = driver
        self.scenario.reinitialise()
        fake_roots(self.home / "roots", self.scenario)
        self.source.release()

    def found(self, verdict: Verdict) -> dict[int, list[Finding]]:
        """What stands against each GPU that is not well, by slot, the node's at -1."""
        found = {unit.index: list(unit.reasons) for unit in verdict.units if unit.state != "OK"}
        return {**found, **({-1: list(verdict.node_findings)} if verdict.node_findings else {})}


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def node(case: Case, tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path, case.model, case.settings)
    yield made
    made.source.close()


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_a_planted_fault_is_found_on_its_gpu_alone_and_clears(case: Case, node: Node) -> None:
    case.first(node.scenario)
    assert node.found(node.see(2)) == {}
    case.plant(node.scenario)
    found = node.found(node.see(case.cycles))
    assert list(found) == [SICK]
    assert [(one.check, one.severity, one.action) for one in found[SICK]] == [(case.check, case.severity, case.action)]
    case.mend(node.scenario)
    assert node.found(node.see(case.healed)) == {}


@pytest.fixture
def wishing(tmp_path: Path) -> Iterator[Node]:
    """A node on which the site has an eye on versions and identity."""
    expect = Expect(drivers=("550.*",), vbios=("96.*",), gpus=("S0", "S1", "S2"))
    made = Node(tmp_path, "H100-80GB", Health(expect=expect))
    for slot in made.scenario.slots:
        made.scenario.set(slot, serial=f"S{slot}")
    yield made
    made.source.close()


def checks_of(found: dict[int, list[Finding]]) -> dict[int, list[tuple[str, Severity, RecoveryAction]]]:
    return {slot: [(one.check, one.severity, one.action) for one in reasons] for slot, reasons in found.items()}


def test_another_board_is_found_by_its_serial_and_its_place_in_the_list(wishing: Node) -> None:
    assert wishing.found(wishing.see()) == {}
    wishing.scenario.set(SICK, serial="S9")
    wishing.reload("550.54.15")
    found = wishing.found(wishing.see())
    assert checks_of(found) == {slot: [("gpu-identity", WARNING, INSPECT)] for slot in (SICK, -1)}
    assert "S1" in found[-1][0].evidence and "S9" in found[SICK][0].evidence
    wishing.scenario.set(SICK, serial="S1")
    wishing.reload("550.54.15")
    assert wishing.found(wishing.see(3)) == {}


def test_another_firmware_is_found_and_that_it_is_mixed(wishing: Node) -> None:
    assert wishing.found(wishing.see()) == {}
    wishing.scenario.set(SICK, vbios="97.00")
    wishing.reload("550.54.15")
    assert checks_of(wishing.found(wishing.see())) == {
        SICK: [("vbios-version", WARNING, NONE)],
        -1: [("vbios-version", Severity.INFO, NONE)],
    }
    wishing.scenario.set(SICK, vbios="96.00")
    wishing.reload("550.54.15")
    assert checks_of(wishing.found(wishing.see(3))) == {-1: [("vbios-version", Severity.INFO, NONE)]}


def test_another_driver_is_the_nodes_and_no_gpus(wishing: Node) -> None:
    assert wishing.found(wishing.see()) == {}
    wishing.reload("535.1.2")
    assert checks_of(wishing.found(wishing.see())) == {-1: [("driver-version", WARNING, NONE)]}
    wishing.reload("550.99.1")
    assert wishing.found(wishing.see(3)) == {}
