"""What every GpuSource promises, tried on the fake that other tests use and on the probe process with a stand-in NVML.

The second half is about the probe process alone.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Protocol

import pytest

from nodeagent.config.model import Config, Health, Roots
from nodeagent.gpu import probe
from nodeagent.gpu.facts import GpuFacts, MigInstance, NodeFacts, Process, Tended, XidEvent
from nodeagent.gpu.kernel_log import KernelLog
from nodeagent.gpu.probe import ProbeProcess
from nodeagent.gpu.probe_worker import Worker
from nodeagent.health.memory import Memory
from nodeagent.health.verdict import judge
from tests.simnvml import Process as SimProcess
from tests.simnvml import Scenario, fake_roots, log_xid
from tests.unit.fake_gpu import FakeGpuSource

SHORT = 1.0
"""A time-out, in seconds, for samples that are to run into it; a start of the probe takes 30 ms on an idle core."""
AMPLE = 20.0
ROOT = Path(__file__).resolve().parents[2]
FAULTS_OF_LIBRARY = (9, 12, 18)


class World(Protocol):
    """A node of eight GPUs, seen through `source`, and the ways in which a test lets them fail."""

    source: Any

    def uuid(self, slot: int) -> str: ...
    def lose(self, slot: int) -> None: ...
    def require_reset(self, slot: int) -> None: ...
    def absent(self, slot: int) -> None: ...
    def fail_init(self, code: int) -> None: ...
    def hang(self, slot: int | None = None) -> None: ...
    def crash(self, slot: int) -> None: ...
    def heal(self) -> None: ...
    def xid(self, slot: int, number: int) -> None: ...
    def make_mig(self, slot: int) -> None: ...
    def without(self, slot: int) -> None: ...
    def busy(self, slot: int, pid: int, memory: int) -> None: ...
    def driver(self, version: str) -> None: ...


class FakeWorld:
    """The fake's own words."""

    def __init__(self) -> None:
        self.source = FakeGpuSource()
        for name in ("lose", "require_reset", "absent", "fail_init", "hang", "crash", "heal", "xid"):
            setattr(self, name, getattr(self.source, name))

    def uuid(self, slot: int) -> str:
        return self.source.gpus[slot].uuid

    def make_mig(self, slot: int) -> None:
        instances = tuple(
            MigInstance(f"MIG-{gi}", gi, 0, 40 << 30, 0, "3g.40gb", (3 + 9 * gi, 4 + 9 * gi)) for gi in (1, 2)
        )
        self.source.set(slot, mig_enabled=True, mig=instances, utilization=None)

    def without(self, slot: int) -> None:
        self.source.set(slot, energy=None, memory_temperature=None, recovery_action=None, ecc_uncorrected=None)

    def busy(self, slot: int, pid: int, memory: int) -> None:
        self.source.set(slot, processes=(Process(pid, memory),), memory_used=memory)

    def driver(self, version: str) -> None:
        self.source.node.update(driver=version, kernel_driver=version)


class SimWorld:
    """A scenario for the stand-in library, a tree of /proc, /sys and /dev, and a real probe process."""

    def __init__(self, home: Path, **scenario: Any) -> None:
        self.home = home
        self.scenario = Scenario(home / "scenario", **scenario)
        self.roots = fake_roots(home / "roots", self.scenario)
        self.env = {**os.environ, **self.scenario.env}
        self.source = self.new_source()
        for name in ("uuid", "lose", "require_reset", "fail_init", "heal", "xid"):
            setattr(self, name, getattr(self.scenario, name))

    def new_source(self, timeout: float = AMPLE, **arguments: Any) -> ProbeProcess:
        roots = Roots(**{name: str(path) for name, path in self.roots.items()})
        return ProbeProcess(Config(probe_timeout=timeout, roots=roots), **{"env": self.env, **arguments})

    def restart(self, timeout: float = AMPLE, **arguments: Any) -> ProbeProcess:
        """Put another source in place of the one there is."""
        self.source.close()
        self.source = self.new_source(timeout, **arguments)
        return self.source

    def absent(self, slot: int) -> None:
        self.scenario.absent(slot)
        fake_roots(self.home / "roots", self.scenario)

    def hang(self, slot: int | None = None) -> None:
        self.source.timeout = SHORT
        self.scenario.hang(slot)

    def crash(self, slot: int) -> None:
        self.scenario.crash(slot)

    def make_mig(self, slot: int) -> None:
        self.scenario.mig(slot, ["3g.40gb", "3g.40gb"])
        fake_roots(self.home / "roots", self.scenario)

    def without(self, slot: int) -> None:
        self.scenario.set(
            slot, energy_mj=None, memory_temperature=None, recovery_action=None, ecc_uncorrected_volatile=None
        )

    def busy(self, slot: int, pid: int, memory: int) -> None:
        with self.scenario.edit():
            self.scenario.processes(slot, [SimProcess(pid, memory)])
            self.scenario.set(slot, memory_used=memory)

    def driver(self, version: str) -> None:
        self.scenario.driver = version
        self.scenario.set(0)
        fake_roots(self.home / "roots", self.scenario)


@pytest.fixture(params=["fake", "probe"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """The node, through each of the sources."""
    made: Any = FakeWorld() if request.param == "fake" else SimWorld(tmp_path)
    yield made
    made.source.close()


@pytest.fixture
def sim(tmp_path: Path) -> Iterator[SimWorld]:
    """The node, through the probe process."""
    made = SimWorld(tmp_path)
    yield made
    made.source.close()


def slots(world: World, facts: NodeFacts) -> list[int]:
    """The GPUs that were read, by slot."""
    by_uuid = {world.uuid(slot): slot for slot in range(8)}
    return [by_uuid[gpu.uuid] for gpu in facts.gpus]


def of(world: World, facts: NodeFacts, slot: int) -> GpuFacts:
    return next(gpu for gpu in facts.gpus if gpu.uuid == world.uuid(slot))


def woken(source: Any, timeout: float) -> bool:
    return bool(select.select([source.fileno()], [], [], timeout)[0])


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 10.0) -> Any:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"waited {timeout:g} s for {what}")


def xids_within(source: Any, count: int, timeout: float = 5.0) -> list[XidEvent]:
    """Take XIDs as the agent does, on being woken, until there are `count`."""
    taken: list[XidEvent] = []
    deadline = time.monotonic() + timeout
    while len(taken) < count and time.monotonic() < deadline:
        woken(source, deadline - time.monotonic())
        taken += source.take_xids()
    return taken


# ---- every source ------------------------------------------------------------------------------------------------


def test_all_eight_are_read_completely(world: World) -> None:
    facts = world.source.sample()
    assert (facts.hung, facts.crashed, facts.nvml_error) == (False, None, None)
    assert slots(world, facts) == list(range(8))
    assert [gpu.index for gpu in facts.gpus] == list(range(8))
    assert len(facts.pci or {}) == 8
    assert facts.driver == facts.kernel_driver == "550.54.15"
    assert facts.boot_id and facts.monotonic > 0
    missing = {
        (gpu.index, name)
        for gpu in facts.gpus
        for name, value in vars(gpu).items()
        if value in (None, "") and name not in ("error", "error_text", "retired_pages", "retirement_pending")
    }
    assert missing == set()


def test_units_are_base_units(world: World) -> None:
    gpu = world.source.sample().gpus[0]
    assert gpu.power == 70.0
    assert gpu.power_limit == 700.0
    assert (gpu.sm_clock, gpu.memory_clock) == (345e6, 2619e6)
    assert gpu.memory_total is not None and gpu.memory_total > 79 << 30
    assert gpu.bus_id == "0000:1b:00.0"


def test_links_are_symmetric_and_name_no_stranger(world: World) -> None:
    gpus = world.source.sample().gpus
    by_bus = {gpu.bus_id: gpu for gpu in gpus}
    for gpu in gpus:
        assert set(gpu.links) == set(by_bus) - {gpu.bus_id}
        assert all(by_bus[other].links[gpu.bus_id] == quality for other, quality in gpu.links.items())


@pytest.mark.parametrize("state, code", [("lose", 15), ("require_reset", 16)])
def test_a_gpu_with_an_error_keeps_its_name_and_has_no_values(world: World, state: str, code: int) -> None:
    world.source.sample()
    getattr(world, state)(3)
    facts = world.source.sample()
    assert slots(world, facts) == list(range(8))
    sick = of(world, facts, 3)
    assert sick.error == code and sick.error_text
    assert (sick.index, sick.minor, sick.name) == (3, 3, "NVIDIA H100 80GB HBM3")
    assert (sick.temperature, sick.memory_used, sick.utilization, sick.power) == (None, None, None, None)
    assert all(gpu.error is None and gpu.temperature for gpu in facts.gpus if gpu is not sick)
    world.heal()
    assert [gpu.error for gpu in world.source.sample().gpus] == [None] * 8


@pytest.mark.parametrize("code", FAULTS_OF_LIBRARY)
def test_nvml_that_does_not_answer_is_an_answer(world: World, code: int) -> None:
    world.fail_init(code)
    facts = world.source.sample()
    assert (facts.nvml_error, facts.gpus, facts.hung, facts.crashed) == (code, (), False, None)
    world.heal()
    facts = world.source.sample()
    assert (facts.nvml_error, len(facts.gpus)) == (None, 8)


def test_a_driver_that_was_reloaded_is_read_anew(world: World) -> None:
    world.source.sample()
    world.fail_init(9)
    if isinstance(world, SimWorld):
        world.scenario.fault("nvmlDeviceGet*", 1)  # what one hears who had it open
    facts = world.source.sample()
    assert (facts.nvml_error, facts.gpus) == (9, ())
    world.heal()
    world.driver("570.86.10")
    facts = world.source.sample()
    assert (facts.driver, facts.kernel_driver, len(facts.gpus)) == ("570.86.10", "570.86.10", 8)


def test_a_hanging_gpu_is_named_and_the_next_sample_has_the_others(world: World) -> None:
    world.source.sample()
    world.hang(2)
    facts = world.source.sample()
    assert facts.hung and facts.hung_uuid == world.uuid(2) and facts.hung_index == 2
    assert slots(world, facts) == [0, 1]
    facts = world.source.sample()
    assert facts.hung and facts.hung_uuid == world.uuid(2)
    assert slots(world, facts) == [0, 1, 3, 4, 5, 6, 7]
    assert world.source.timeouts == 2
    world.heal()
    facts = world.source.sample()
    assert (facts.hung, facts.hung_uuid, len(facts.gpus)) == (False, "", 8)
    world.hang(7)  # the one that has answered is no longer the last
    assert slots(world, world.source.sample()) == [0, 1, 2, 3, 4, 5, 6]


def test_two_hanging_gpus_are_named_in_turn(world: World) -> None:
    world.source.sample()
    world.hang(1)
    world.hang(6)
    named = []
    for _ in range(4):
        facts = world.source.sample()
        named.append(facts.hung_uuid)
    assert named == [world.uuid(1), world.uuid(6), world.uuid(1), world.uuid(6)]
    assert set(slots(world, facts)) == {0, 2, 3, 4, 5, 7}


def test_nvml_hung_as_a_whole_names_no_gpu(world: World) -> None:
    world.source.sample()
    world.hang()
    facts = world.source.sample()
    assert (facts.hung, facts.hung_uuid, facts.gpus) == (True, "", ())
    world.heal()
    assert len(world.source.sample().gpus) == 8


def test_a_crash_is_told_with_its_signal_and_the_others_are_read(world: World) -> None:
    world.source.sample()
    world.crash(4)
    facts = world.source.sample()
    assert (facts.crashed, facts.hung, facts.hung_uuid) == (signal.SIGSEGV, False, world.uuid(4))
    assert slots(world, facts) == [0, 1, 2, 3]
    assert slots(world, world.source.sample()) == [0, 1, 2, 3, 5, 6, 7]
    assert world.source.crashes == 2
    world.heal()
    facts = world.source.sample()
    assert (facts.crashed, len(facts.gpus)) == (None, 8)


def test_an_absent_gpu_shifts_indices_and_no_names(world: World) -> None:
    world.source.sample()
    world.absent(1)
    facts = world.source.sample()
    assert slots(world, facts) == [0, 2, 3, 4, 5, 6, 7]
    assert [gpu.index for gpu in facts.gpus] == list(range(7))
    assert [gpu.minor for gpu in facts.gpus] == [0, 2, 3, 4, 5, 6, 7]
    assert len(facts.pci or {}) == 7


def test_a_look_reads_who_uses_those_asked_for_and_passes_over_what_is_silent(world: World) -> None:
    world.source.sample()
    world.busy(2, 4711, 3 << 30)
    world.lose(4)
    looked = {gpu.uuid: gpu for gpu in world.source.look([world.uuid(2), world.uuid(4), world.uuid(5)])}
    assert looked.keys() == {world.uuid(2), world.uuid(4), world.uuid(5)}
    assert looked[world.uuid(2)].processes == (Process(4711, 3 << 30),)
    assert (looked[world.uuid(2)].memory_used, looked[world.uuid(5)].processes) == (3 << 30, ())
    assert looked[world.uuid(4)].error == 15
    assert len(world.source.sample().gpus) == 8
    world.fail_init(9)
    world.source.release()
    assert world.source.look([world.uuid(5)]) == ()


def test_what_lends_or_leaves_reads_as_ever(world: World) -> None:
    assert world.source.has_kernel_log
    world.source.lend(True)
    assert len(world.source.sample().gpus) == 8
    assert world.source.leave() == 0
    assert len(world.source.sample().gpus) == 8
    world.source.lend(False)
    assert len(world.source.sample().gpus) == 8


def test_what_is_not_supported_is_none_and_never_zero(world: World) -> None:
    world.without(0)
    facts = world.source.sample()
    gpu = of(world, facts, 0)
    assert (gpu.energy, gpu.memory_temperature, gpu.recovery_action, gpu.ecc_uncorrected) == (None, None, None, None)
    assert (gpu.error, gpu.temperature) == (None, 34.0)
    assert of(world, facts, 1).recovery_action == 0


def test_mig_instances_are_listed(world: World) -> None:
    world.make_mig(5)
    facts = world.source.sample()
    gpu = of(world, facts, 5)
    assert gpu.mig_enabled is True
    assert [instance.profile for instance in gpu.mig] == ["3g.40gb", "3g.40gb"]
    assert len({(instance.gpu_instance, instance.compute_instance) for instance in gpu.mig}) == 2
    assert all(instance.uuid.startswith("MIG-") and instance.memory_total for instance in gpu.mig)
    assert gpu.utilization is None
    caps = [cap for instance in gpu.mig for cap in instance.caps]
    assert len(set(caps)) == len(caps) == 4
    assert of(world, facts, 4).mig_enabled is False


def test_processes_come_with_their_memory(world: World) -> None:
    world.busy(6, 4711, 5 << 30)
    gpu = of(world, world.source.sample(), 6)
    assert gpu.processes == (Process(4711, 5 << 30),)
    assert gpu.memory_used == 5 << 30


def test_an_xid_wakes_and_is_taken_once(world: World) -> None:
    world.source.sample()
    assert not woken(world.source, 0)
    world.xid(3, 79)
    began = time.monotonic()
    assert woken(world.source, 1.0)
    assert time.monotonic() - began < 1.0
    (event,) = world.source.take_xids()
    assert (event.uuid, event.xid, event.source, event.kind) == (world.uuid(3), 79, "nvml", "xid")
    assert world.source.take_xids() == ()
    assert not woken(world.source, 0)


def test_an_xid_that_repeats_is_as_many_events_in_order(world: World) -> None:
    world.source.sample()
    for number in (31, 31, 13):
        world.xid(0, number)
    events = xids_within(world.source, 3)
    assert [event.xid for event in events] == [31, 31, 13]
    assert len({event.sequence for event in events}) == 3


def test_an_xid_that_comes_during_a_sample_still_wakes(world: World) -> None:
    world.source.sample()
    world.xid(1, 63)
    wait_for(lambda: woken(world.source, 0), "the event")
    world.source.sample()
    assert woken(world.source, 0)
    assert [event.xid for event in world.source.take_xids()] == [63]


# ---- modes between two jobs -----------------------------------------------------------------------------------------

WISH = {"compute_mode": "default", "persistence": "on", "power_limit": "default", "application_clocks": "default"}


def test_modes_are_brought_to_the_wish_and_what_is_as_wished_is_not_touched(sim: SimWorld) -> None:
    default = {key: sim.scenario.get(3, key) for key in ("power_limit_mw", "app_memory_clock", "app_graphics_clock")}
    soiled = {"compute_mode": 3, "persistence": 0, "power_limit_mw": 300_000, "app_memory_clock": 1000}
    sim.scenario.set(3, **soiled)
    done = sim.source.tend(sim.uuid(3), WISH)
    assert done.refused == {}
    assert done.changed["compute_mode"] == (3, 0) and done.changed["persistence"] == (0, 1)
    assert done.changed.keys() == WISH.keys()
    assert {key: sim.scenario.get(3, key) for key in default} == default
    assert (sim.scenario.get(3, "compute_mode"), sim.scenario.get(3, "persistence")) == (0, 1)
    sim.scenario.fault("nvmlDeviceSet*", 4)
    assert sim.source.tend(sim.uuid(3), WISH) == Tended({}, {})
    wish = {"power_limit": "350", "application_clocks": "2000,1500", "compute_mode": "exclusive_process"}
    sim.scenario.clear_faults()
    assert sim.source.tend(sim.uuid(3), wish).changed.keys() == wish.keys()
    assert (sim.scenario.get(3, "power_limit_mw"), sim.scenario.get(3, "compute_mode")) == (350_000, 3)
    assert (sim.scenario.get(3, "app_memory_clock"), sim.scenario.get(3, "app_graphics_clock")) == (2000, 1500)


@pytest.mark.parametrize("code, words", [(4, "Insufficient Permissions"), (3, "Not Supported")])
def test_a_setter_that_is_refused_is_told_and_the_others_are_done(sim: SimWorld, code: int, words: str) -> None:
    sim.scenario.set(3, compute_mode=3, persistence=0)
    sim.scenario.fault("nvmlDeviceSetComputeMode", code)
    done = sim.source.tend(sim.uuid(3), WISH)
    assert done.refused == {"compute_mode": words} and done.changed.keys() == {"persistence"}


def test_a_setter_that_hangs_costs_one_time_out_and_the_gpu_is_named_by_the_next_sample(sim: SimWorld) -> None:
    sim.source.sample()
    sim.scenario.set(3, compute_mode=3)
    sim.hang(3)
    began = time.monotonic()
    assert sim.source.tend(sim.uuid(3), WISH) is None
    assert time.monotonic() - began < 2 * SHORT
    facts = sim.source.sample()
    assert facts.hung_uuid == sim.uuid(3) and len(facts.gpus) == 7
    sim.heal()
    sim.scenario.clear_faults()
    sim.scenario.lose(3)
    assert sim.source.tend(sim.uuid(3), WISH) is None


# ---- the probe process -------------------------------------------------------------------------------------------


def unkillable(pid: int) -> None:
    """A SIGKILL that does nothing, as to a process in state D."""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def left_behind() -> Iterator[list[int]]:
    """Process ids that the test leaves alive on purpose; ended afterwards."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_missing_library_is_an_answer(sim: SimWorld) -> None:
    source = sim.restart(env={**sim.env, "LD_LIBRARY_PATH": str(sim.home)})
    facts = source.sample()
    assert (facts.nvml_error, facts.gpus) == (12, ())
    assert facts.nvml_error_text
    assert (len(facts.pci or {}), facts.kernel_driver) == (8, "550.54.15")
    library = Path(sim.env["LD_LIBRARY_PATH"]) / "libnvidia-ml.so.1"
    (sim.home / library.name).symlink_to(library)
    assert len(source.sample().gpus) == 8  # the same process finds it once it is there
    assert source.crashes == 0


def test_after_a_version_mismatch_a_fresh_process_loads_the_new_library(sim: SimWorld) -> None:
    sim.source.sample()
    before = sim.source.pid
    sim.fail_init(18)
    sim.scenario.fault("nvmlDeviceGetCount_v2", 18)
    assert sim.source.sample().nvml_error == 18
    sim.heal()
    assert len(sim.source.sample().gpus) == 8
    assert sim.source.pid != before and sim.source.crashes == 0


def test_without_a_driver_the_same_process_tries_again(sim: SimWorld) -> None:
    sim.fail_init(9)
    sim.source.sample()
    before = sim.source.pid
    sim.heal()
    assert len(sim.source.sample().gpus) == 8
    assert sim.source.pid == before


def test_a_driver_that_goes_away_in_the_middle_leaves_no_half_a_node(sim: SimWorld) -> None:
    sim.source.sample()
    sim.scenario.fault("nvmlDeviceGetPowerUsage", 9, gpu=4)
    facts = sim.source.sample()
    assert (facts.nvml_error, facts.gpus, facts.hung, facts.crashed) == (9, (), False, None)
    sim.heal()
    assert len(sim.source.sample().gpus) == 8


def test_a_gpu_lost_in_the_middle_of_its_reading(sim: SimWorld) -> None:
    sim.source.sample()
    sim.scenario.fault("nvmlDeviceGetPowerUsage", 15, gpu=3)
    gpus = sim.source.sample().gpus
    assert [gpu.error for gpu in gpus] == [None, None, None, 15, None, None, None, None]
    assert (gpus[3].uuid, gpus[3].minor, gpus[3].power, gpus[3].memory_total) == (sim.uuid(3), 3, None, None)


def test_a_gpu_that_asks_for_a_reset_is_read_as_far_as_it_answers(sim: SimWorld) -> None:
    sim.busy(3, 4711, 1 << 30)
    sim.scenario.fault("nvmlDeviceGetPowerUsage", 16, gpu=3)
    sim.scenario.fault("nvmlDeviceGetFieldValues", 16, gpu=3)
    gpu = of(sim, sim.source.sample(), 3)
    assert (gpu.error, gpu.power, gpu.recovery_action) == (16, None, None)
    assert gpu.processes == (Process(4711, 1 << 30),)  # who has to be ended before the reset


def test_a_lost_gpu_that_was_never_read_is_named_by_proc(sim: SimWorld) -> None:
    sim.lose(3)
    gpu = of(sim, sim.source.sample(), 3)
    assert (gpu.error, gpu.index, gpu.minor, gpu.bus_id) == (15, 3, 3, sim.scenario.bus_id(3)[-12:].lower())
    assert gpu.name == "NVIDIA H100 80GB HBM3"


def test_a_lost_gpu_that_nobody_can_name_still_has_its_place(sim: SimWorld) -> None:
    for file in (sim.roots["proc"] / "driver/nvidia/gpus").glob("*/information"):
        file.unlink()
    sim.lose(3)
    gpu = next(gpu for gpu in sim.source.sample().gpus if gpu.error is not None)
    assert (gpu.uuid, gpu.error, gpu.index, gpu.bus_id) == ("", 15, 3, sim.scenario.bus_id(3)[-12:].lower())


def test_a_new_process_knows_a_lost_gpu_from_the_old_one(sim: SimWorld) -> None:
    sim.source.sample()
    shutil.rmtree(sim.roots["proc"] / "driver/nvidia/gpus")
    sim.source.take_xids()
    os.kill(sim.source.pid, signal.SIGKILL)
    sim.lose(3)
    assert of(sim, sim.source.sample(), 3).error == 15
    assert sim.source.crashes == 1


def test_a_gpu_that_hangs_from_the_start_gets_its_name_from_proc(sim: SimWorld) -> None:
    sim.restart(SHORT)
    sim.scenario.hang(2)
    facts = sim.source.sample()
    assert (facts.hung, facts.hung_uuid, facts.hung_index) == (True, "", 2)
    facts = sim.source.sample()
    assert (facts.hung, facts.hung_uuid, facts.hung_index) == (True, sim.uuid(2), 2)
    assert slots(sim, facts) == [0, 1, 3, 4, 5, 6, 7]


def test_a_sample_with_a_hang_keeps_to_its_time(sim: SimWorld) -> None:
    sim.source.sample()
    sim.hang(0)
    began = time.monotonic()
    facts = sim.source.sample()
    assert SHORT <= time.monotonic() - began < SHORT + 1.0
    assert facts.duration == pytest.approx(SHORT, abs=0.9)


def test_a_killed_probe_is_replaced_within_the_same_sample(sim: SimWorld) -> None:
    sim.source.sample()
    os.kill(sim.source.pid, signal.SIGKILL)
    wait_for(lambda: woken(sim.source, 0), "the end of the probe to wake")
    assert sim.source.take_xids() == ()
    assert not woken(sim.source, 0)  # its end does not keep the agent awake
    assert len(sim.source.sample().gpus) == 8
    assert (sim.source.crashes, sim.source.timeouts, sim.source.abandoned) == (1, 0, 0)


def test_a_probe_that_dies_as_it_is_asked_is_replaced_too(sim: SimWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    sim.source.sample()
    request = Worker.request

    def killed_request(worker: Worker, **words: Any) -> None:
        monkeypatch.undo()
        os.kill(worker.pid, signal.SIGKILL)
        request(worker, **words)

    monkeypatch.setattr(Worker, "request", killed_request)
    facts = sim.source.sample()
    assert (facts.crashed, len(facts.gpus), sim.source.crashes) == (None, 8, 1)


def test_what_does_not_die_is_abandoned_and_its_gpu_passed_over(sim: SimWorld, left_behind: list[int]) -> None:
    source = sim.restart(SHORT, kill=unkillable)
    source.sample()
    left_behind.append(source.pid)
    sim.scenario.hang(2)
    assert source.sample().hung
    assert (source.abandoned, source.stuck) == (1, 1)
    for _ in range(3):  # one further process reads the rest for as long as that lasts
        began = time.monotonic()
        facts = source.sample()
        assert time.monotonic() - began < SHORT
        assert (facts.hung, facts.hung_uuid) == (True, sim.uuid(2))
        assert slots(sim, facts) == [0, 1, 3, 4, 5, 6, 7]
    assert (source.abandoned, source.stuck, source.timeouts) == (1, 1, 1)
    left_behind.append(source.pid)
    sim.scenario.heal()
    os.kill(left_behind[0], signal.SIGKILL)
    wait_for(lambda: source.stuck == 0, "the abandoned process to be gone")
    facts = source.sample()
    assert (facts.hung, len(facts.gpus)) == (False, 8)


def test_a_gpu_that_hangs_from_the_start_on_keeps_the_others_only_once(sim: SimWorld) -> None:
    """It tells its UUID, to a process that is gone when the next one wants to know which GPU to leave to the end."""
    source = sim.restart(SHORT)
    sim.scenario.hang(0, call="nvmlDeviceGetTemperature")
    assert slots(sim, source.sample()) == []
    for _ in range(2):
        facts = source.sample()
        assert (slots(sim, facts), facts.hung_uuid) == ([1, 2, 3, 4, 5, 6, 7], sim.uuid(0))
    sim.heal()
    assert len(source.sample().gpus) == 8


def test_a_gpu_in_state_d_from_the_start_on_is_passed_over(sim: SimWorld, left_behind: list[int]) -> None:
    source = sim.restart(SHORT, kill=unkillable)
    sim.scenario.hang(0, call="nvmlDeviceGetTemperature")
    source._start()
    left_behind.append(source.pid)
    assert slots(sim, source.sample()) == []
    for _ in range(2):
        facts = source.sample()
        assert (slots(sim, facts), facts.hung_uuid) == ([1, 2, 3, 4, 5, 6, 7], sim.uuid(0))
    assert source.abandoned == 1


def test_processes_that_do_not_die_are_not_piled_up(sim: SimWorld, left_behind: list[int]) -> None:
    source = sim.restart(SHORT, kill=unkillable)
    source.sample()
    left_behind.append(source.pid)
    sim.scenario.hang()
    for _ in range(4):
        facts = source.sample()
        assert (facts.hung, facts.hung_uuid, facts.gpus) == (True, "", ())
        left_behind += [source.pid] if source.pid else []
    assert (source.abandoned, source.stuck, source.timeouts) == (2, 2, 2)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    probes = [pid for pid in children if Path(f"/proc/{pid}/comm").read_text() == "gpu-probe\n" and alive(int(pid))]
    left_behind += map(int, probes)
    assert len(probes) == 2
    sim.scenario.heal()
    for pid in left_behind:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: source.stuck == 0, "the abandoned processes to be gone")
    assert len(source.sample().gpus) == 8
    left_behind.append(source.pid)


def test_a_process_in_state_d_is_abandoned_until_it_comes_back(sim: SimWorld, frozen: Path) -> None:
    source = sim.restart(SHORT)
    source.sample()
    sick = source.pid
    sim.scenario.dstate_file = frozen / "file"
    sim.scenario.dstate(5)
    facts = source.sample()
    assert (facts.hung, facts.hung_uuid) == (True, sim.uuid(5))
    assert Path(f"/proc/{sick}/stat").read_text().rpartition(")")[2].split()[0] == "D"
    assert (source.abandoned, source.stuck) == (1, 1)
    assert slots(sim, source.sample()) == [0, 1, 2, 3, 4, 6, 7]
    subprocess.run(["fsfreeze", "-u", str(frozen)], check=True)
    wait_for(lambda: source.stuck == 0, "the thawed process to die of the SIGKILL it was sent")
    sim.scenario.heal()
    facts = source.sample()
    assert (facts.hung, len(facts.gpus)) == (False, 8)


def test_release_closes_nvml_and_the_next_sample_opens_it(sim: SimWorld) -> None:
    sim.source.sample()
    before = sim.source.pid
    sim.source.release()
    sim.fail_init(9)  # to be seen only by one who opens it again
    assert sim.source.sample().nvml_error == 9
    sim.heal()
    assert len(sim.source.sample().gpus) == 8
    assert sim.source.pid == before
    sim.xid(7, 48)
    assert [event.xid for event in xids_within(sim.source, 1)] == [48]


def has_driver_open(sim: SimWorld) -> bool:
    """Say whether NVML is open in the probe process, by the device file that it has open then."""
    control = str(sim.roots["dev"] / "nvidiactl")
    return control in {os.readlink(link) for link in Path(f"/proc/{sim.source.pid}/fd").iterdir()}


def test_a_source_that_lends_has_nvml_open_for_its_work_only(sim: SimWorld) -> None:
    sim.source.sample()
    pid = sim.source.pid
    assert has_driver_open(sim)
    sim.source.lend(True)
    assert not has_driver_open(sim)
    facts = sim.source.sample()
    assert len(facts.gpus) == 8 and not has_driver_open(sim)
    assert len(sim.source.look([sim.uuid(2)])) == 1 and not has_driver_open(sim)
    assert sim.source.tend(sim.uuid(2), {"compute_mode": "default"}) is not None and not has_driver_open(sim)
    began = time.monotonic()
    sim.source.sample()
    assert time.monotonic() - began < 0.9, "no event thread is waited for"
    log_xid(sim.roots, sim.scenario, 3, 79)
    assert [event.source for event in xids_within(sim.source, 1)] == ["kernel"]
    sim.source.lend(False)
    sim.source.sample()
    assert has_driver_open(sim)
    sim.xid(7, 48)
    assert [event.source for event in xids_within(sim.source, 1)] == ["nvml"]
    assert sim.source.pid == pid and sim.source.crashes == sim.source.timeouts == 0


def test_a_source_that_leaves_has_no_process_and_loses_no_xid(sim: SimWorld) -> None:
    sim.source.sample()
    pid = sim.source.pid
    sim.xid(7, 48)
    wait_for(lambda: woken(sim.source, 0), "the probe to say so")
    assert (sim.source.leave(), sim.source.pid, alive(pid)) == (0, None, False)
    assert [event.xid for event in sim.source.take_xids()] == [48]
    assert sim.source.leave() == 0 and sim.source.take_xids() == ()
    assert len(sim.source.sample().gpus) == 8 and sim.source.crashes == 0


def test_what_cannot_be_ended_is_told_on_leaving(
    sim: SimWorld, left_behind: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sim.restart(SHORT, kill=unkillable)
    source.sample()
    left_behind.append(source.pid)
    sim.scenario.hang(call="nvmlShutdown")
    monkeypatch.setattr(probe, "RELEASE_TIMEOUT", 0.2)
    assert (source.leave(), source.leave()) == (1, 1)


def test_release_of_a_hanging_nvml_ends_the_process(sim: SimWorld) -> None:
    sim.source.sample()
    sick = sim.source.pid
    sim.scenario.hang(call="nvmlShutdown")
    sim.source.release()
    assert sim.source.pid is None and not alive(sick)


def test_close_ends_the_process(sim: SimWorld) -> None:
    sim.source.sample()
    pid = sim.source.pid
    sim.source.close()
    assert not alive(pid)
    sim.source = sim.new_source()


def test_the_probe_dies_with_its_parent_even_while_it_hangs(sim: SimWorld) -> None:
    sim.scenario.hang(0)
    code = (
        "import sys, time\n"
        "from nodeagent.config.model import Config\n"
        "from nodeagent.gpu.probe import ProbeProcess\n"
        "source = ProbeProcess(Config())\n"
        "source._start(); source._worker.request(op='sample')\n"
        "print(source.pid, flush=True); time.sleep(60)\n"
    )
    env = {**sim.env, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env, text=True) as parent:
        assert parent.stdout is not None
        probe = int(parent.stdout.readline())
        wait_for(lambda: Path(f"/proc/{probe}/comm").read_text() == "gpu-probe\n", "the probe to run")
        parent.kill()
    wait_for(lambda: not alive(probe), "the probe to die")


def test_the_probe_has_no_descriptors_of_ours_and_its_own_session(sim: SimWorld) -> None:
    with open(sim.home / "ours", "w", encoding="ascii") as ours:
        os.set_inheritable(ours.fileno(), True)
        sim.source.sample()
    targets = {os.readlink(link) for link in Path(f"/proc/{sim.source.pid}/fd").iterdir()}
    assert str(sim.home / "ours") not in targets
    assert os.getsid(sim.source.pid) == sim.source.pid


def test_the_probe_is_lean(sim: SimWorld) -> None:
    sim.source.sample()
    fat = ("yaml", "structlog", "prometheus", "asyncio", "dataclasses", "multiprocessing", "sqlite3", "_ssl")
    code = "import sys, nodeagent.gpu.worker; print('\\n'.join(sys.modules))"
    argv = [sys.executable, "-c", code]
    loaded = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert [name for name in loaded if name.startswith(fat) and not name.startswith("nodeagent")] == []
    (pss,) = (
        int(line.split()[1])
        for line in Path(f"/proc/{sim.source.pid}/smaps_rollup").read_text().splitlines()
        if line.startswith("Pss:")
    )
    assert pss < 20_000  # KiB; 60 MB are for it and the agent together


def test_a_probe_that_cannot_be_started_is_no_answer(sim: SimWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(sim.home / "no-such-python"))
    facts = sim.source.sample()
    assert (facts.hung, facts.gpus) == (True, ())
    assert "cannot be started" in facts.nvml_error_text
    monkeypatch.undo()
    assert len(sim.source.sample().gpus) == 8


def test_an_xid_seen_by_both_witnesses_is_one(sim: SimWorld) -> None:
    sim.source.sample()
    sim.xid(3, 79)
    log_xid(sim.roots, sim.scenario, 3, 79)
    assert [event.xid for event in xids_within(sim.source, 1)] == [79]
    sim.source.sample()
    assert sim.source.take_xids() == ()
    log_xid(sim.roots, sim.scenario, 3, 79)
    sim.source.sample()
    (again,) = sim.source.take_xids()
    assert (again.uuid, again.xid, again.source) == (sim.uuid(3), 79, "kernel")


def test_the_kernel_log_alone_tells_while_nvml_hangs(sim: SimWorld) -> None:
    sim.source.sample()
    sim.hang()
    sim.source.sample()
    log_xid(sim.roots, sim.scenario, 5, 119)
    sim.source.sample()
    (event,) = sim.source.take_xids()
    assert (event.uuid, event.xid, event.source) == (sim.uuid(5), 119, "kernel")
    assert "NVRM" in event.text


def test_the_first_sample_already_names_the_kernels_gpus(sim: SimWorld) -> None:
    log_xid(sim.roots, sim.scenario, 5, 119)
    sim.source.sample()
    (event,) = sim.source.take_xids()
    assert event.uuid == sim.uuid(5)


def test_xids_from_before_the_start_do_not_count(sim: SimWorld) -> None:
    sim.xid(0, 79)
    log_xid(sim.roots, sim.scenario, 1, 79)
    source = sim.restart()
    source.sample()
    sim.xid(2, 48)
    assert [(event.uuid, event.xid) for event in xids_within(source, 1)] == [(sim.uuid(2), 48)]
    source.sample()
    assert source.take_xids() == ()


def test_xids_of_the_other_gpus_come_while_one_hangs(sim: SimWorld) -> None:
    sim.source.sample()
    sim.hang(2)
    sim.source.sample()
    sim.xid(0, 1)  # nobody listens: the kernel log is there for that
    sim.source.timeout = 2.0
    late = threading.Timer(0.8, lambda: sim.xid(4, 94))
    late.start()
    facts = sim.source.sample()
    late.join()
    assert facts.hung_uuid == sim.uuid(2)
    assert [(event.uuid, event.xid) for event in sim.source.take_xids()] == [(sim.uuid(4), 94)]


def test_an_event_that_names_a_mig_instance(sim: SimWorld) -> None:
    sim.scenario.mig(5, ["3g.40gb"])
    sim.source.sample()
    instance = sim.scenario.mig_instances(5)[0]
    sim.scenario.xid(5, 31, gi=instance.gi, ci=instance.ci)
    (event,) = xids_within(sim.source, 1)
    assert (event.uuid, event.gpu_instance, event.compute_instance) == (sim.uuid(5), instance.gi, instance.ci)


def test_a_broken_watch_is_made_anew(sim: SimWorld) -> None:
    sim.source.sample()
    sim.scenario.fault("nvmlEventSetWait_v2", 15)
    threads = Path(f"/proc/{sim.source.pid}/task")
    wait_for(lambda: len(list(threads.iterdir())) == 1, "the event thread to give up")
    sim.scenario.clear_faults()
    sim.source.sample()
    sim.xid(1, 74)
    assert [event.xid for event in xids_within(sim.source, 1)] == [74]


def test_links_follow_the_topology(tmp_path: Path) -> None:
    world = SimWorld(tmp_path, topology="pcie", model="A100-40GB")
    try:
        gpus = world.source.sample().gpus
    finally:
        world.source.close()
    assert {quality for gpu in gpus for quality in gpu.links.values()} <= set(range(7))
    first = gpus[0]
    near = max(first.links, key=lambda bus_id: first.links[bus_id])
    far = min(first.links, key=lambda bus_id: first.links[bus_id])
    numa = {gpu.bus_id: gpu.numa_node for gpu in gpus}
    assert numa[near] == first.numa_node != numa[far]


def test_a_link_that_is_down_counts_no_more(sim: SimWorld) -> None:
    whole = sim.source.sample().gpus[0]
    sim.scenario.link(0, 3, up=False, errors=(1, 2, 3, 4, 5))
    gpu = sim.source.sample().gpus[0]
    assert (gpu.nvlink_total, gpu.nvlink_active, gpu.nvlink_errors) == (18, 17, 10)
    assert all(gpu.links[other] == quality - 6000 for other, quality in whole.links.items())


def test_older_gpus_retire_pages(tmp_path: Path) -> None:
    world = SimWorld(tmp_path, gpus=1, model="V100-32GB", topology="pcie")
    try:
        world.scenario.retire_page(0, 0x1000)
        gpu = world.source.sample().gpus[0]
    finally:
        world.source.close()
    assert (gpu.retired_pages, gpu.retirement_pending, gpu.remapping_pending) == (1, True, None)


def test_the_standard_output_of_a_library_does_not_reach_the_protocol(sim: SimWorld) -> None:
    sim.source.sample()
    stdout = os.readlink(f"/proc/{sim.source.pid}/fd/1")
    assert stdout == os.readlink(f"/proc/{sim.source.pid}/fd/2")


def test_the_device_of_the_kernel_log_begins_at_its_end(sim: SimWorld) -> None:
    if not os.access("/dev/kmsg", os.W_OK) or os.geteuid() != 0:
        pytest.skip("not allowed to write the kernel log")
    address = sim.scenario.bus_id(3)[-12:-2].lower()

    def say(number: int) -> None:
        Path("/dev/kmsg").write_text(f"<4>NVRM: Xid (PCI:{address}): {number}, by a test\n")

    say(79)
    source = sim.restart(kernel_log=KernelLog("/dev/kmsg"))
    source.sample()
    assert source.take_xids() == ()
    say(48)
    (event,) = xids_within(source, 1)
    assert (event.uuid, event.xid, event.source) == (sim.uuid(3), 48, "kernel")
    assert abs(event.monotonic - time.monotonic()) < 5.0
    seen = source.kernel_sequence
    assert seen is not None
    say(62)  # the next source does not listen yet
    source = sim.restart(kernel_log=KernelLog("/dev/kmsg"))
    source.resume("another-boot", seen)
    source.sample()
    assert source.take_xids() == ()
    source = sim.restart(kernel_log=KernelLog("/dev/kmsg"))
    source.resume(source.sample().boot_id, seen)
    (late,) = xids_within(source, 1)
    assert (late.uuid, late.xid, late.late) == (sim.uuid(3), 62, True)
    assert source.kernel_sequence is not None and source.kernel_sequence > seen


def test_slow_gpus_are_not_hung_ones(sim: SimWorld) -> None:
    sim.source.timeout = 1.0
    sim.scenario.delay(250, call="nvmlDeviceGetUtilizationRates")
    facts = sim.source.sample()
    assert not facts.hung and len(facts.gpus) == 8
    assert facts.duration > 1.5, "each GPU took its quarter of a second, all of them more than the time-out"
    assert sim.source.timeouts == 0


def test_a_call_that_fails_without_a_reason_is_no_value_and_is_counted(sim: SimWorld) -> None:
    well = sim.source.sample().gpus[2]
    sim.scenario.fault("nvmlDeviceGetTemperature*", 999, gpu=2)
    sim.scenario.fault("nvmlDeviceGetPowerUsage", 999, gpu=2)
    ill = sim.source.sample().gpus[2]
    assert (well.failed_calls, well.error) == (0, None)
    assert (ill.error, ill.temperature, ill.power, ill.utilization) == (None, None, None, well.utilization)
    assert ill.failed_calls is not None and ill.failed_calls >= 2
    sim.heal()
    healed = sim.source.sample().gpus[2]
    assert (healed.failed_calls, healed.name) == (0, well.name) and healed.temperature is not None


@pytest.mark.parametrize("known", [True, False])
def test_a_gpu_that_answers_almost_nothing_but_failures_is_not_read(sim: SimWorld, known: bool) -> None:
    if known:
        sim.source.sample()
    for letter in ascii_uppercase.replace("H", ""):  # all but its handle
        sim.scenario.fault(f"nvmlDeviceGet{letter}*", 999, gpu=2)
    facts = sim.source.sample()
    ill = facts.gpus[2]
    assert (ill.uuid, ill.error, ill.temperature) == (sim.uuid(2), 999, None)
    assert [gpu.error for gpu in facts.gpus].count(None) == 7
    verdict, memory = judge(Memory(), facts, Health())
    assert [unit.state for unit in verdict.units].count("UNKNOWN") == 1
    sim.heal()
    well = sim.source.sample()
    assert well.gpus[2].error is None and well.gpus[2].serial and well.gpus[2].name
    assert {unit.state for unit in judge(memory, well, Health(recover=1))[0].units} == {"OK"}
