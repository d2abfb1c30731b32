"""The checks of the node through all that reads it: probe, kernel log, sysfs, locks, systemctl. They fire and clear.

As in test_checks.py time is the facts' own. What stands for the real thing: systemctl is a program that prints what
systemd's prints; a booted systemd is asked in tests/packaging.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from nodeagent.agent.surroundings import Surroundings
from nodeagent.clock import SystemClock
from nodeagent.config.model import Config, Health, Roots
from nodeagent.config.thresholds import Infiniband, Rogue
from nodeagent.external.services import Services
from nodeagent.gpu.probe import ProbeProcess
from nodeagent.health.checks import CHECKS, site
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.verdict import Memory, judge
from nodeagent.lock.record import Owner
from nodeagent.lock.store import Store
from nodeagent.state.files import Directory
from tests.contract import test_checks
from tests.integration.support import unavailable
from tests.simnvml import Process, Scenario, fake_roots, log_xid
from tests.simnvml.roots import linux_address

ERROR, WARNING, INFO, UNKNOWN = Severity.ERROR, Severity.WARNING, Severity.INFO, Severity.UNKNOWN
NONE, RESET, REBOOT, INSPECT = test_checks.NONE, test_checks.RESET, test_checks.REBOOT, test_checks.INSPECT
SICK, GPUS, NODE = 1, 3, -1
STRANGER = 4242
Found = dict[int, set[tuple[str, Severity, RecoveryAction]]]


class Node:
    """Three GPUs with all that is around them."""

    def __init__(self, home: Path, settings: Health) -> None:
        self.home = home
        self.scenario = Scenario(home / "scenario", gpus=GPUS)
        self.roots = fake_roots(home / "roots", self.scenario)
        roots = Roots(**{name: str(path) for name, path in self.roots.items()})
        config = Config(probe_timeout=1.0, roots=roots, health=settings)
        self.settings = settings
        self.state = home / "state"
        self.state.mkdir()
        self.store = Store(Directory(str(self.state)))
        self.source = ProbeProcess(config, env=self.scenario.env)
        self.around = Surroundings(config, self.store, SystemClock())
        self.memory = Memory()
        self.now = 1000.0

    def see(self, cycles: int = 1) -> Found:
        """Read so many times, ten seconds apart; return what stands in the end, by slot, and at NODE."""
        for _ in range(cycles):
            facts = self.around.complete(self.source.sample(), patience=5.0)
            xids = tuple(replace(event, monotonic=self.now) for event in self.source.take_xids())
            self.now += 10.0
            services = tuple(replace(one, at=self.now) for one in facts.services)
            facts = replace(facts, xids=xids, monotonic=self.now, services=services)
            verdict, self.memory = judge(self.memory, facts, self.settings)
        found = {unit.index: _told(unit.reasons) for unit in verdict.units if unit.reasons}
        return {**found, **({NODE: _told(verdict.node_findings)} if verdict.node_findings else {})}

    def close(self) -> None:
        """End what runs."""
        self.source.close()
        self.around.close()

    # ---- what is done to it ------------------------------------------------------------------------------------

    @property
    def proc(self) -> Path:
        """The root of /proc."""
        return Path(self.roots["proc"])

    @property
    def sys(self) -> Path:
        """The root of /sys."""
        return Path(self.roots["sys"])

    def log(self, text: str) -> None:
        """Write a kernel message."""
        with (Path(self.roots["dev"]) / "kmsg").open("a") as file:
            file.write(f"4,1,{time.monotonic_ns() // 1000},-;{text}\n")

    def fail_to_start(self, code: int) -> None:
        """NVML does not start; a probe that has it open does not see that before it has let go."""
        self.scenario.fail_init(code)
        self.source.release()

    def unload(self) -> None:
        """The kernel module is gone."""
        for path in (self.proc / "driver/nvidia/version", self.sys / "module/nvidia/version"):
            path.rename(path.with_name("gone"))
        self.fail_to_start(9)

    def load(self) -> None:
        """The kernel module is back."""
        for path in (self.proc / "driver/nvidia/version", self.sys / "module/nvidia/version"):
            path.with_name("gone").rename(path)
        self.scenario.heal()

    def port(self, state: str, downed: int = 0) -> None:
        """An InfiniBand port is in that state."""
        home = self.sys / "class/infiniband/mlx5_0/ports/1"
        (home / "counters").mkdir(parents=True, exist_ok=True)
        texts = {"state": state, "phys_state": "5: LinkUp", "rate": "200 Gb/sec (4X HDR)", "link_layer": "InfiniBand"}
        for name, text in {**texts, "counters/link_downed": str(downed)}.items():
            (home / name).write_text(f"{text}\n")

    def service(self, active: str) -> None:
        """Systemd says so of the fabric manager."""
        program = self.home / "systemctl"
        lines = (
            "Id=nvidia-fabricmanager.service",
            "LoadState=loaded",
            f"ActiveState={active}",
            "UnitFileState=enabled",
        )
        program.write_text("#!/bin/sh\n" + "".join(f"echo {line}\n" for line in (*lines, "Result=exit-code")))
        program.chmod(0o755)
        self.around._services = Services(_Hurried(), systemctl=str(program))

    def process(self, *slots: int) -> None:
        """A process of a stranger's is on those GPUs and no others; a job's lock is on the first."""
        home = self.proc / str(STRANGER)
        home.mkdir(exist_ok=True)
        (home / "stat").write_text(f"{STRANGER} (miner) S " + "0 " * 18 + "1 0 0\n")
        os.chown(home, 1234, 1234)
        for slot in range(GPUS):
            self.scenario.processes(slot, [Process(STRANGER, 1 << 20)] if slot in slots else [])
        if not self.store.owners():
            unit = self.scenario.uuid(0)
            with self.store.exclusive():
                self.store.claim(Owner("slurm", "17", user="a", uid="1001", grant="g", units=(unit,), gpus=(unit,)))

    def another_card(self) -> None:
        """A GPU is on the bus that the driver does not serve."""
        shutil.copytree(self.sys / "bus/pci/devices" / self._address(), self._other, symlinks=True)

    def no_other_card(self) -> None:
        """It is taken out."""
        shutil.rmtree(self._other)

    @property
    def _other(self) -> Path:
        return self.sys / "bus/pci/devices/0000:f1:00.0"

    def _address(self) -> str:
        return linux_address(self.scenario.bus_id(0))


class _Hurried(SystemClock):
    """A clock by which systemd is asked anew at each step."""

    _now = 0.0

    def monotonic(self) -> float:
        self._now += 100.0
        return self._now


def _told(findings: tuple[Finding, ...]) -> set[tuple[str, Severity, RecoveryAction]]:
    return {(one.check, one.severity, one.action) for one in findings}


@dataclass(frozen=True)
class Case:
    """What is done to a node, what it has to be found as after so many readings, what mends it."""

    plant: Callable[[Node], object]
    found: Found
    mend: Callable[[Node], object] = lambda node: node.scenario.heal()
    before: Callable[[Node], object] = lambda node: None
    cycles: int = 1
    healed: int = 3
    settings: Health = field(default_factory=Health)


def whole(check: str, severity: Severity, action: RecoveryAction) -> Found:
    """What concerns the node as a whole, and each of its GPUs as far as they cannot be judged."""
    return {NODE: {(check, severity, action)}, **unread(check)}


def unread(check: str, *slots: int) -> Found:
    """Those GPUs, or all, cannot be judged."""
    return {slot: {(check, UNKNOWN, NONE)} for slot in slots or range(GPUS)}


UP, DOWN = "4: ACTIVE", "1: DOWN"
CASES = {
    "versions differ": Case(lambda node: node.fail_to_start(18), whole("driver-init", ERROR, REBOOT), cycles=3),
    "no module": Case(Node.unload, whole("kernel-module", ERROR, REBOOT), mend=Node.load, cycles=3),
    "a GPU hangs": Case(
        lambda node: node.scenario.hang(SICK), {SICK: {("driver-unresponsive", ERROR, RESET)}}, cycles=2
    ),
    "NVML hangs": Case(lambda node: node.scenario.hang(), whole("driver-unresponsive", UNKNOWN, NONE), cycles=2),
    "a crash": Case(lambda node: node.scenario.crash(SICK), unread("probe-crashed", SICK), cycles=2),
    "a GPU is gone": Case(lambda node: node.scenario.absent(SICK), {SICK: {("gpu-lost", ERROR, REBOOT)}}),
    "a GPU that is not served": Case(
        Node.another_card, {NODE: {("gpu-count", WARNING, NONE)}}, mend=Node.no_other_card
    ),
    "XID": Case(
        lambda node: node.scenario.xid(SICK, 95),
        {SICK: {("xid", ERROR, RESET)}},
        mend=lambda node: node.scenario.reinitialise(SICK),
    ),
    "XID in the kernel log": Case(
        lambda node: log_xid(node.roots, node.scenario, SICK, 79),
        {SICK: {("xid", ERROR, REBOOT)}},
        mend=lambda node: node.scenario.reinitialise(SICK),
    ),
    "a user's XID": Case(
        lambda node: node.scenario.xid(SICK, 31), {SICK: {("xid", INFO, RecoveryAction.RESTART_APPLICATION)}}
    ),
    "SXid": Case(
        lambda node: node.log("nvidia-nvswitch0: SXid (PCI:0000:c4:00.0): 22003, Fatal, Minion Halt"),
        {NODE: {("sxid", ERROR, REBOOT)}},
        mend=lambda node: node.scenario.reinitialise(),
    ),
    "SXid of a link": Case(
        lambda node: node.log("nvidia-nvswitch0: SXid (PCI:0000:c4:00.0): 20034, Fatal, Link 30 LTSSM Fault Up"),
        {NODE: {("sxid", WARNING, NONE)}},
    ),
    "a port is down": Case(
        lambda node: node.port(DOWN),
        {NODE: {("infiniband", WARNING, INSPECT)}},
        before=lambda node: node.port(UP),
        mend=lambda node: node.port(UP),
        cycles=26,
    ),
    "too few ports": Case(
        lambda node: node.port(DOWN),
        {NODE: {("infiniband", ERROR, REBOOT), ("infiniband", WARNING, INSPECT)}},
        before=lambda node: node.port(UP),
        mend=lambda node: node.port(UP),
        cycles=26,
        settings=Health(infiniband=Infiniband(ports=1)),
    ),
    "a port flaps": Case(
        lambda node: node.port(UP, downed=3),
        {NODE: {("infiniband", WARNING, INSPECT)}},
        before=lambda node: node.port(UP),
        mend=lambda node: node.port(UP),
        healed=4,
    ),
    "a service is down": Case(
        lambda node: node.service("failed"),
        {NODE: {("services", ERROR, REBOOT)}},
        before=lambda node: node.service("active"),
        mend=lambda node: node.service("active"),
        cycles=2,
    ),
    "a process without a grant": Case(
        lambda node: node.process(SICK),
        {SICK: {("rogue-process", WARNING, NONE)}},
        before=Node.process,
        mend=Node.process,
        cycles=2,
        settings=Health(rogue=Rogue(from_uid=1000)),
    ),
}


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def node(case: Case, tmp_path: Path) -> Iterator[Node]:
    if case.before is Node.process and os.geteuid():
        unavailable("only root can make another user's process")
    made = Node(tmp_path, case.settings)
    yield made
    made.close()


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_a_planted_fault_is_found_where_it_is_and_clears(case: Case, node: Node) -> None:
    case.before(node)
    assert node.see(2) == {}
    case.plant(node)
    assert node.see(case.cycles) == case.found
    case.mend(node)
    assert node.see(case.healed) == {}


def test_a_stranger_is_named_with_number_program_and_user(tmp_path: Path) -> None:
    if os.geteuid():
        unavailable("only root can make another user's process")
    node = Node(tmp_path, Health(strikes={}))
    try:
        node.process(SICK)
        node.see()
        (reason,) = [
            one for standing in node.memory.units[node.scenario.uuid(SICK)].standing for one in standing.findings
        ]
        assert "process 4242 (miner) of 1234 of no job" in reason.evidence
        node.process(0)
        assert node.see(3) == {0: {("rogue-process", WARNING, NONE)}}, "nor is a job's GPU anybody's but the job's"
    finally:
        node.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m,mode=755", "none", str(place)], check=False).returncode:
        unavailable("no file system can be mounted")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_state_directory_is_told(small: Path, tmp_path: Path) -> None:
    node = Node(tmp_path, Health())
    try:
        node.around = Surroundings(Config(), Store(Directory(str(small))), SystemClock())
        assert node.see() == {}
        filler = small / "filler"
        for size, severity in ((10 << 20, WARNING), (20 << 20, ERROR)):
            subprocess.run(["dd", "if=/dev/zero", f"of={filler}", f"bs={size}", "count=1"], check=False, stderr=-3)
            assert node.see() == {NODE: {("state-space", severity, NONE)}}
        filler.unlink()
        assert node.see(3) == {}
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        assert node.see() == {NODE: {("state-space", ERROR, NONE)}}
    finally:
        node.close()


def test_every_check_is_planted_somewhere() -> None:
    here = {check for case in CASES.values() for told in case.found.values() for check, _, _ in told}
    by_hand = {
        # test_checks.py, by tests of their own; the site's in test_site_checks.py; test_a_full_state_directory above
        *("gpu-identity", "vbios-version", "driver-version", site.NAME, "state-space"),
    }
    assert set(CHECKS) == here | {case.check for case in test_checks.CASES.values()} | by_hand
