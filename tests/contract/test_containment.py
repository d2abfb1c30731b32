"""What NVML does to the agent stays contained: a real agent on simulated GPUs, its watchdog and its page from outside.

What each fault looks like at the source is tried in test_gpu_source.py. Here it is the agent as a whole that goes on:
the GPUs that answer are read and judged, the page answers, systemd is told that all is alive, no processes pile up.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest

from nodeagent.config.model import Config, Health, Roots
from nodeagent.gpu.facts import NodeFacts
from nodeagent.gpu.probe import ProbeProcess
from nodeagent.health.memory import Memory
from nodeagent.health.verdict import judge
from nodeagent.lock.store import Store
from nodeagent.state.files import Directory
from nodeagent.state.verdict_file import read_verdict
from tests.simnvml import Scenario, fake_roots, log_xid
from tests.simnvml.roots import linux_address
from tests.simulated_node import ROOT, SimulatedNode, until

GPUS = 4
SICK = 0
"""The first that a sweep comes to: none of the others is read in the sweep that meets the fault."""
OTHERS = [gpu for gpu in range(GPUS) if gpu != SICK]
INTERVAL = 1.0
PROBE_TIMEOUT = 0.8
WATCHDOG = 5.0
"""Seconds without a sign of life after which systemd would end this agent."""
SLACK = 1.5
"""Seconds that a busy machine may take on top, for starts of processes."""
SETTINGS = (
    f"interval: {INTERVAL}\nprobe_timeout: {PROBE_TIMEOUT}\nhealth: {{recover: 1, settle: 0}}\n"
    "scheduler: {kind: local}\n"
)


class Systemd:
    """The other end of NOTIFY_SOCKET: notes when a sign of life came."""

    def __init__(self, path: Path) -> None:
        self.beats: list[float] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": str(int(WATCHDOG * 1e6))}
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with suppress(OSError):
            while words := self._socket.recv(4096):
                if b"WATCHDOG=1" in words:
                    self.beats.append(time.monotonic())

    def longest_silence(self) -> float:
        """Seconds between two signs of life at most, from the first one to now."""
        beats = [*self.beats, time.monotonic()]
        return max(later - earlier for earlier, later in zip(beats, beats[1:]))

    def close(self) -> None:
        self._socket.close()


class Stage:
    """A node with an agent on it, looked at from outside."""

    def __init__(self, directory: Path) -> None:
        directory.chmod(0o755)
        self.node = SimulatedNode(directory, gpus=GPUS, settings=SETTINGS)
        self.scenario = self.node.scenario
        self.systemd = Systemd(directory / "notify")
        library = Path(self.scenario.env["LD_LIBRARY_PATH"]) / "libnvidia-ml.so.1"
        self.library = directory / "lib" / library.name
        self.library.parent.mkdir()
        self.library.symlink_to(library)
        self._real_library = library
        self.node.environment.update(self.systemd.environment, LD_LIBRARY_PATH=str(self.library.parent))

    def install_library(self) -> None:
        self.library.symlink_to(self._real_library)

    def states(self) -> list[str]:
        return [unit.state for unit in read_verdict(Directory(str(self.node.state_dir))).units]

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(self.node.url().rstrip("/") + "/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return {
            name.removeprefix("gpu_nodeagent_"): float(value)
            for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
        }

    def up(self) -> list[int]:
        """The GPUs that were read in the last sweep."""
        found = self.metrics()
        return [gpu for gpu in range(GPUS) if found.get(f'gpu_up{{uuid="{self.scenario.uuid(gpu)}"}}') == 1]

    def retired(self) -> list[int]:
        found = Store(Directory(str(self.node.state_dir))).retired()
        return [gpu for gpu in range(GPUS) if self.scenario.uuid(gpu) in found]

    def within_two_intervals(self, fault: Callable[[], object], condition: Callable[[], object], what: str) -> None:
        """Let something happen; the second sweep that begins after it must have the condition true."""
        fault()
        began = time.monotonic()
        until(condition, what)
        assert time.monotonic() - began < 2 * INTERVAL + PROBE_TIMEOUT + SLACK, what

    def is_well(self) -> bool:
        return self.up() == list(range(GPUS)) and set(self.states()) == {"OK"} and self.retired() == []

    def heal(self) -> None:
        self.scenario.heal()
        until(self.is_well, "all GPUs to be well again")

    def probes(self) -> list[int]:
        """The probe processes there are, dead ones left out."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    mine = str(self.scenario.path).encode() in (entry / "environ").read_bytes()
                    if mine and (entry / "comm").read_text() == "gpu-probe\n":
                        found.append(int(entry.name))
        return found

    def assert_contained(self, abandoned: int = 0) -> None:
        """The agent is alive to systemd and to Prometheus, and has left no more than that many processes behind."""
        assert self.systemd.longest_silence() < WATCHDOG
        found = self.metrics()
        assert found["up"] == 1 and found["snapshot_age_seconds"] < 3 * INTERVAL + SLACK
        assert found["probes_abandoned_total"] <= abandoned
        assert len(self.probes()) <= abandoned + 1


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with ExitStack() as stack:
        made = Stage(tmp_path)
        stack.callback(made.systemd.close)
        agent = stack.enter_context(made.node.agent())
        yield made
        assert agent.poll() is None, "the agent it began with"
        assert "cycle_failed" not in made.node.log.read_text()


def test_a_hang_or_a_crash_at_one_gpu_leaves_the_others_in_service(stage: Stage) -> None:
    for fault, state in ((stage.scenario.hang, "FAILED"), (stage.scenario.crash, "UNKNOWN")):
        stage.within_two_intervals(partial(fault, SICK), lambda: stage.up() == OTHERS, "the others to be read")
        until(lambda: stage.states()[SICK] != "OK", "the sick one to be judged")
        assert stage.states()[SICK] == state
        assert [stage.states()[gpu] for gpu in OTHERS] == ["OK"] * 3
        assert stage.up() == OTHERS and stage.retired() == ([SICK] if state == "FAILED" else [])
        stage.assert_contained()
        stage.heal()
    found = stage.metrics()
    assert found["probe_timeouts_total"] >= 2 and found["probe_crashes_total"] >= 2


def test_where_the_whole_library_hangs_every_gpu_is_unknown(stage: Stage) -> None:
    stage.within_two_intervals(
        stage.scenario.hang, lambda: stage.states() == ["UNKNOWN"] * GPUS, "all GPUs to be unknown"
    )
    assert stage.up() == [] and stage.retired() == []
    stage.assert_contained()
    stage.heal()


def test_a_process_in_state_d_is_left_behind_once(stage: Stage, frozen: Path) -> None:
    stage.scenario.dstate_file = frozen / "file"
    stage.within_two_intervals(
        lambda: stage.scenario.dstate(SICK), lambda: stage.up() == OTHERS, "the others to be read"
    )
    until(lambda: stage.retired() == [SICK], "the sick one to be judged")
    assert [stage.states()[gpu] for gpu in OTHERS] == ["OK"] * 3
    assert state_of(stage.probes()).count("D") == 1
    stage.assert_contained(abandoned=1)
    thaw(frozen)
    stage.heal()
    assert len(stage.probes()) == 1
    subprocess.run(["fsfreeze", "-f", str(frozen)], check=True)
    stage.within_two_intervals(
        stage.scenario.dstate, lambda: stage.states() == ["UNKNOWN"] * GPUS, "all GPUs to be unknown"
    )
    silent = stage.metrics()["probe_timeouts_total"]
    seen = read_verdict(Directory(str(stage.node.state_dir))).monotonic
    until(lambda: read_verdict(Directory(str(stage.node.state_dir))).monotonic > seen + 2 * INTERVAL, "more cycles")
    assert stage.metrics()["probe_timeouts_total"] <= silent + 1, "no further process is spent on it"
    # The second is the one that found out that the library answers for no GPU while the first is stuck.
    assert len(stage.probes()) <= 2
    stage.assert_contained(abandoned=3)
    thaw(frozen)
    stage.heal()


def state_of(pids: list[int]) -> list[str]:
    return [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in pids]


def thaw(place: Path) -> None:
    subprocess.run(["fsfreeze", "-u", str(place)], check=True)


def test_a_driver_that_is_exchanged_under_the_agent_is_taken_up(stage: Stage) -> None:
    old = stage.scenario.driver

    def unloaded() -> None:
        with stage.scenario.edit():
            stage.scenario.fault("nvmlDeviceGet*", 1)  # what one hears who had it open
            stage.scenario.fail_init(9)

    stage.within_two_intervals(unloaded, lambda: stage.states() == ["UNKNOWN"] * GPUS, "the driver to be missed")
    assert node_why(stage).count("(9)") == 1 and stage.up() == []
    stage.assert_contained()
    with stage.scenario.edit():
        stage.scenario.clear_faults()
        stage.scenario.fail_init(18)
    until(lambda: "(18)" in node_why(stage), "the versions to differ")
    stage.library.unlink()
    until(lambda: "(12)" in node_why(stage), "the library to be missed")
    stage.assert_contained()
    assert stage.retired() == [], "no GPU is at fault"
    with stage.scenario.edit():
        stage.scenario.driver = "570.86.10"
        stage.scenario.clear_faults()
        stage.scenario.reinitialise()
    fake_roots(stage.node.directory / "roots", stage.scenario)
    stage.within_two_intervals(stage.install_library, stage.is_well, "the new driver to be taken up")
    assert old != "570.86.10" and read_verdict(Directory(str(stage.node.state_dir))).driver == "570.86.10"
    assert any('driver="570.86.10"' in name for name in stage.metrics())
    stage.assert_contained()


def node_why(stage: Stage) -> str:
    return read_verdict(Directory(str(stage.node.state_dir))).node_why


STORM = 5000
"""XIDs at once in the kernel log: more than are taken up at one read of it."""
EVENTS = 200
"""XIDs at once from NVML: as many as the stand-in keeps, and some to spare."""


def test_thousands_of_xids_at_once_are_each_counted(stage: Stage) -> None:
    address = linux_address(stage.scenario.bus_id(1))[:-2]
    now = time.monotonic_ns() // 1000
    line = f"NVRM: Xid (PCI:{address}): 13, pid=4711, name=train"
    storm = "".join(f"4,{number},{now},-;{line}\n" for number in range(STORM))
    began = time.monotonic()
    with stage.scenario.edit():
        for _ in range(EVENTS):
            stage.scenario.xid(2, 31)
        stage.scenario.xid(3, 79)
    with (stage.node.roots["dev"] / "kmsg").open("a", encoding="ascii") as log:
        log.write(storm)
    until(lambda: stage.retired() == [3], "the grave one among them")
    until(lambda: counted(stage, 1, 13) == STORM and counted(stage, 2, 31) == EVENTS, "all of them to be counted")
    assert time.monotonic() - began < 3 * INTERVAL + SLACK
    lines = stage.node.log.read_text()
    assert (lines.count("xid=13 "), lines.count("xid=31 "), lines.count("xid=79 ")) == (STORM, EVENTS, 1)
    assert "xids_lost" not in lines and stage.metrics()["kernel_log_overruns_total"] == 0
    assert stage.states() == ["OK", "OK", "OK", "FAILED"]
    stage.assert_contained()
    log_xid(stage.node.roots, stage.scenario, 1, 48)
    until(lambda: stage.retired() == [1, 3], "what comes afterwards")


def counted(stage: Stage, gpu: int, xid: int) -> float:
    return stage.metrics().get(f'gpu_xid_errors_total{{uuid="{stage.scenario.uuid(gpu)}",xid="{xid}"}}', 0.0)


# ---- a probe that crashes at each of its calls in turn ---------------------------------------------------------------

WISHES: tuple[dict[str, str], ...] = (
    {"compute_mode": "prohibited", "persistence": "off", "power_limit": "300", "application_clocks": "1593,1410"},
    {"compute_mode": "default", "persistence": "on", "power_limit": "default", "application_clocks": "default"},
)
RECORDER = """
import json, os, sys
import pynvml
from nodeagent.gpu.worker import Output, Sweeper
sweeper = Sweeper(Output(os.open(os.devnull, os.O_WRONLY)), *sys.argv[1:3])
sweeper.sweep({})
sweeper.attend({"gpus": sys.argv[3:]})
for wish in json.loads(sys.stdin.read()):
    sweeper.attend({"gpus": sys.argv[3:], "wish": wish})
sweeper.release()
print("\\n".join(pynvml._nvmlGetFunctionPointer_cache))
"""
"""Does what a probe process does, and tells which of the library's functions the binding has looked up and called."""


class Bare:
    """Three GPUs and a source, no agent."""

    def __init__(self, directory: Path) -> None:
        self.scenario = Scenario(directory / "scenario", gpus=3, model="A100-80GB")
        self.roots = fake_roots(directory / "roots", self.scenario)
        self.environment = {**os.environ, **self.scenario.env, "PYTHONPATH": str(ROOT)}
        self.source = self.new_source()
        self.memory = Memory()

    def new_source(self) -> ProbeProcess:
        roots = Roots(**{name: str(path) for name, path in self.roots.items()})
        return ProbeProcess(Config(probe_timeout=20.0, roots=roots), env=self.environment)

    def renew(self) -> None:
        self.source.close()
        self.source = self.new_source()

    def calls(self) -> list[str]:
        """The exports that the worker calls."""
        argv = [sys.executable, "-c", RECORDER, str(self.roots["proc"]), str(self.roots["sys"]), self.scenario.uuid(0)]
        done = subprocess.run(
            argv, env=self.environment, input=json.dumps(WISHES), capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout.split()

    def sweep(self) -> tuple[NodeFacts, dict[str, str]]:
        """Read and judge; UUID → state."""
        facts = self.source.sample()
        verdict, self.memory = judge(self.memory, facts, Health(recover=1, settle=0.0))
        return facts, {unit.uuid: unit.state for unit in verdict.units}

    def crash(self, call: str) -> int:
        """Have that call crash, about the first GPU if it is about one; returns how many sweeps met it, 0 for none."""
        self.scenario.crash(0, call)
        met = self.meet(call, others=[1, 2])
        if not met:
            met = self.meet_anywhere(call)
            self.renew()  # one whose event thread crashes may do so when nobody looks any more
        return met

    def meet(self, call: str, others: list[int]) -> int:
        """Sweep till those others are read and judged in spite of a crash, which takes two sweeps at most."""
        before = self.source.crashes
        for sweeps in (1, 2):
            facts, states = self.sweep()
            assert set(states.values()) <= {"OK", "UNKNOWN"}, f"{call}: a crash proves nothing about a GPU"
            assert len(states) == 3
            self.source.take_xids()  # one that has died by its event thread is noticed by that
            if self.source.crashes == before:
                return 0
            read = [gpu.uuid for gpu in facts.gpus if gpu.error is None]
            if facts.crashed == signal.SIGSEGV and read == [self.scenario.uuid(gpu) for gpu in others]:
                assert all(states[uuid] == "OK" for uuid in read)
                return sweeps
        assert not others, f"{call}: the others were not read in two sweeps"
        return sweeps

    def meet_anywhere(self, call: str) -> int:
        """The same for a call that is about no GPU, or is made but once, or between two sweeps: by a new process."""
        self.scenario.clear_faults(0)
        self.renew()
        self.scenario.crash(call=call)
        found = self.meet(call, others=[])
        if self.source.crashes:
            return found
        uuid = self.scenario.uuid(0)
        self.source.look([uuid])
        for wish in WISHES:
            self.source.tend(uuid, wish)
        self.source.release()
        return self.source.crashes


def test_a_crash_at_any_call_of_the_probes_costs_no_other_gpu(tmp_path: Path) -> None:
    bare = Bare(tmp_path)
    try:
        bare.sweep()
        calls = bare.calls()
        met = {}
        for call in calls:
            met[call] = bare.crash(call)
            bare.scenario.heal()
        assert len(calls) > 40 and [call for call, times in met.items() if not times] == []
        facts, _ = bare.sweep()
        assert len(facts.gpus) == 3 and bare.source.abandoned == 0
        assert set(bare.sweep()[1].values()) == {"OK"}
    finally:
        bare.source.close()
