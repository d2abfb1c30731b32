"""Real Son of Grid Engine, real hooks and load sensor, a real agent; only the GPUs are simulated."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from nodeagent.hook import sge
from nodeagent.state.files import Directory
from nodeagent.state.hook_conf import read_hook_conf
from tests.clusters.gridengine import GridEngineCluster
from tests.clusters.process import open_directory
from tests.integration.support import Gates, Leftovers, executable, install_tree, require, variables
from tests.simulated_node import ROOT, SimulatedNode, until

SETTINGS = """interval: 1s
hooks: {{wait_for_units: 2s}}
health: {{recover: 2}}
cleanup: {{patience: 1s, compute_mode: default}}
scheduler:
  kind: sge
  sge: {{root: {root}, qmaster_port: {qmaster}, execd_port: {execd}{more}}}
drivers: {{path: "{sets}/v{{version}}"}}
"""


class Lab:
    """One exec host with simulated GPUs and an agent; `offered` is what the host's complex_values say.

    `sge` and `settings` are further settings, of `scheduler.sge` and of the whole. Without `sensor` there is none.
    """

    def __init__(
        self,
        directory: Path,
        stack: ExitStack,
        offered: int = 4,
        complexes: tuple[str, ...] = (),
        sge: str = "",
        settings: str = "",
        model: str | Sequence[str] = "H100-80GB",
        gpus: int = 4,
        sensor: bool = True,
    ) -> None:
        self.directory = directory
        tree = install_tree(directory)
        more = {"complexes": complexes} if complexes else {}
        self.cluster = stack.enter_context(GridEngineCluster(directory, gpus=offered, **more))
        environment = self.cluster.environment
        self.sets = directory / "sets"
        settings += SETTINGS.format(
            more=sge,
            root=environment["SGE_ROOT"],
            qmaster=environment["SGE_QMASTER_PORT"],
            execd=environment["SGE_EXECD_PORT"],
            sets=self.sets,
        )
        (directory / "node").mkdir(mode=0o755)
        self.node = SimulatedNode(directory / "node", gpus=gpus, node=self.cluster.host, settings=settings, model=model)
        (self.sets / f"v{self.node.scenario.driver}").mkdir(parents=True)
        self.agent: subprocess.Popen[bytes] = stack.enter_context(self.node.agent())
        self.cluster.set_prolog(
            f"root@{tree}/prolog/sge --config {self.node.config}", f"root@{tree}/epilog/sge --config {self.node.config}"
        )
        self.gates = Gates(directory)
        command = f"exec {sys.executable} -m nodeagent.cli.main --config {self.node.config} sge-sensor"
        self.sensor = executable(directory / "sensor", f"export PYTHONPATH={ROOT}\n{command}")
        if sensor:
            self.cluster.set_load_sensor(self.sensor)
            until(lambda: self.value("gpu_faulty") is not None, "the load sensor's first report")

    def value(self, name: str) -> str | None:
        """Return what `qhost -F` shows of a complex."""
        return self.cluster.qhost_values(name)

    def faulty(self) -> int:
        """Return the sensor's number of faulty GPUs."""
        return int(float(self.value("gpu_faulty") or "0"))

    def begin(self, *arguments: str, user: str = "alice", before: str = "") -> tuple[str, Path]:
        """Submit a job that runs until its gate exists; returns when it has begun, which is after `before`."""
        gate, script = self.gates.new()
        job = self.cluster.submit(user, list(arguments), before + script)
        until(lambda: "begun=yes" in self.cluster.job_output(job), f"job {job} begins")
        return job, gate

    def finish(self, job: str, gate: Path) -> dict[str, str]:
        """Let a job end and return its environment."""
        gate.touch()
        self.cluster.wait_job_gone(job)
        return variables(self.cluster.job_output(job))

    def tidy(self) -> None:
        """Bring everything back: jobs ended, GPUs healthy, nothing held."""
        self.gates.open_all()
        with self.node.scenario.edit():
            self.node.scenario.clear_faults()
            self.node.scenario.heal()
        for index in self.node.retired():
            self.node.call("restore", str(index))
        until(lambda: not self.node.retired(), "nothing retired")
        until(lambda: self.faulty() == 0, "the sensor reports no fault")
        until(lambda: not self.node.holders(), "all units free")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Grid Engine with one host of four GPUs."""
    require("gridengine")
    with open_directory("gna-sge-") as directory, ExitStack() as stack:
        yield Lab(directory, stack)


@pytest.fixture(autouse=True)
def tidied(lab: Lab) -> Iterator[None]:
    """Each test leaves the host healthy and idle."""
    yield
    lab.tidy()


def test_a_users_job_gets_two_gpus_and_nothing_of_ours_is_in_its_output(lab: Lab) -> None:
    job, gate = lab.begin("-l", "gpu=2")
    held = [gpu for gpu in lab.node.status()["gpus"] if gpu["holders"]]
    assert [gpu["index"] for gpu in held] == [0, 1]
    assert {(gpu["holders"][0]["job"], gpu["holders"][0]["user"]) for gpu in held} == {(job, "alice")}
    seen = lab.finish(job, gate)
    assert seen["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert seen["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert seen["APPTAINERENV_CUDA_VISIBLE_DEVICES"] == seen["SINGULARITYENV_CUDA_VISIBLE_DEVICES"] == "0,1"
    place = f"{lab.sets}/v{lab.node.scenario.driver}"
    assert seen["APPTAINER_BINDPATH"] == seen["SINGULARITY_BINDPATH"] == f"{place}:/nvbin:ro,{place}:/nvlib:ro"
    assert "gpu-nodeagent" not in re.sub(r"^\w+=.*$", "", lab.cluster.job_output(job), flags=re.MULTILINE)
    until(lambda: not lab.node.holders(), "the lock released")


def test_jobs_at_once_never_share_a_gpu(lab: Lab) -> None:
    wanted = ((2, "alice"), (1, "bob"), (1, "bob"))
    jobs = [lab.begin("-l", f"gpu={count}", user=user) for count, user in wanted]
    assert sorted(lab.node.holders()) == [0, 1, 2, 3]
    seen = [lab.finish(*job)["CUDA_VISIBLE_DEVICES"].split(",") for job in jobs]
    assert sorted(sum(seen, [])) == ["0", "1", "2", "3"]
    assert [len(devices) for devices in seen] == [2, 1, 1]


def test_array_tasks_hold_units_of_their_own(lab: Lab) -> None:
    gate, script = lab.gates.new()
    job = lab.cluster.submit("alice", ["-t", "1-4", "-l", "gpu=1"], script)
    try:
        until(lambda: len(lab.node.holders()) == 4, "four tasks hold a unit each")
        tasks = {gpu["holders"][0]["task"] for gpu in lab.node.status()["gpus"]}
        assert tasks == {"1", "2", "3", "4"}
    finally:
        gate.touch()
    lab.cluster.wait_job_gone(job)
    until(lambda: not lab.node.holders(), "all tasks released theirs")


def test_a_parallel_job_gets_units_for_each_slot(lab: Lab) -> None:
    job, gate = lab.begin("-pe", "smp", "3", "-l", "gpu=1")
    assert len(lab.node.holders()) == 3
    assert lab.finish(job, gate)["CUDA_VISIBLE_DEVICES"] == "0,1,2"


def test_the_exec_daemons_job_file_and_the_qmaster_agree(lab: Lab) -> None:
    odd = "X=gpu=4,CONTEXT=hard resource_list: gpu=4"
    job, gate = lab.begin("-pe", "smp", "2", "-l", "gpu=1,h_rt=600", "-v", odd, "-ac", "gpu=9", "-N", "gpu")
    conf = read_hook_conf(Directory(str(lab.node.state_dir)))
    spool = lab.cluster.spool / "active_jobs" / f"{job}.1"
    found = sge.Job(conf, {"JOB_ID": job, "SGE_JOB_SPOOL_DIR": str(spool)})
    file, told = found.file(), sge._ask_qmaster(conf, found)
    assert file.units("gpu", lab.cluster.host) == told.units("gpu", lab.cluster.host) == 2
    assert (file.owner, file.uid, file.requests, file.slots) == (told.owner, told.uid, told.requests, told.slots)
    assert file.owner == "alice" and file.requests["h_rt"][0] == 600
    lab.finish(job, gate)


def test_a_deleted_job_releases_its_units(lab: Lab) -> None:
    job, _ = lab.begin("-l", "gpu=3")
    assert len(lab.node.holders()) == 3
    lab.cluster.qdel(job)
    until(lambda: not lab.node.holders(), "the deleted job's units free")


def test_a_job_without_gpus_sees_none_whatever_it_brings_along(lab: Lab) -> None:
    job, gate = lab.begin("-v", "CUDA_VISIBLE_DEVICES=0")
    assert lab.finish(job, gate)["CUDA_VISIBLE_DEVICES"] == "NoDevFiles"
    assert lab.node.holders() == {}


def test_nothing_of_a_hostile_user_runs_as_root(lab: Lab) -> None:
    trap = lab.directory / "trap"
    trap.mkdir(exist_ok=True)
    canary = lab.directory / "canary"
    for name in ("python3", "qstat", "sh", "env"):
        executable(trap / name, f"touch {canary}")
    for name in ("sitecustomize.py", "usercustomize.py", "os.py", "nodeagent.py", "fcntl.py"):
        (trap / name).write_text(f"import posix\nposix.open({str(canary)!r}, 0o101)\n")
    holder, holder_gate = lab.begin("-l", "gpu=1", user="bob")
    forged = {
        "PATH": f"{trap}:/usr/bin:/bin",
        "PYTHONPATH": str(trap),
        "PYTHONHOME": str(trap),
        "PYTHONSTARTUP": f"{trap}/os.py",
        "CUDA_VISIBLE_DEVICES": "0,1,2,3",
        "SGE_JOB_SPOOL_DIR": str(trap),
        "JOB_ID": "1",
        "X": "hard resource_list: gpu=4",
    }
    given = ",".join(f"{name}={value}" for name, value in forged.items() if "," not in value)
    job, gate = lab.begin("-l", "gpu=2", "-v", given, "-v", "CUDA_VISIBLE_DEVICES=0")
    assert sorted(lab.node.holders().values()) == sorted([holder, job, job])
    [theirs] = [index for index, held in lab.node.holders().items() if held == holder]
    devices = lab.finish(job, gate)["CUDA_VISIBLE_DEVICES"].split(",")
    assert len(devices) == 2 and str(theirs) not in devices
    until(lambda: list(lab.node.holders().values()) == [holder], "only the hostile job's own units freed")
    lab.finish(holder, holder_gate)
    assert not canary.exists()


def test_a_fault_under_a_job_takes_the_gpu_out_and_keeps_the_host(lab: Lab) -> None:
    job, gate = lab.begin("-l", "gpu=2")
    with lab.node.scenario.edit():
        lab.node.scenario.xid(1, 79)
        lab.node.scenario.lose(1)
    until(lambda: lab.node.retired() == [1], "GPU 1 retired")
    until(lambda: lab.faulty() == 1, "the load sensor's report")
    reason = lab.value("gpu_reason") or ""
    assert "GPU 1" in reason and "79" in reason and "reboot_node" in reason
    whole = lab.cluster.submit("bob", ["-l", "gpu=4"], "echo ran\n")
    others = [lab.begin("-l", "gpu=1", user="bob") for _ in range(2)]
    assert lab.cluster.state(job) in ("t", "r") and lab.cluster.state(whole) == "qw"
    seen = {lab.finish(*other)["CUDA_VISIBLE_DEVICES"] for other in others}
    assert seen == {"2", "3"}
    lab.finish(job, gate)
    three, three_gate = lab.begin("-l", "gpu=3", user="bob")
    assert lab.finish(three, three_gate)["CUDA_VISIBLE_DEVICES"] == "0,2,3"
    assert lab.cluster.state(whole) == "qw"
    with lab.node.scenario.edit():
        lab.node.scenario.heal(1)
        lab.node.scenario.reinitialise(1)
    until(lambda: lab.node.retired() == [], "GPU 1 back")
    lab.cluster.wait_job_gone(whole)
    assert lab.cluster.job_output(whole) == "ran\n"


def test_a_driver_that_is_unfit_as_a_whole_disables_the_host_until_it_is_well(lab: Lab) -> None:
    with lab.node.scenario.edit():  # the driver is exchanged under the agent: library and module differ from now on
        lab.node.scenario.fail_init(18)
        lab.node.scenario.fault("nvmlDeviceGetCount_v2", 18)
    until(lambda: "d" in lab.cluster.queue_state(), "the host disabled")
    until(lambda: (lab.node.status()["drained"] or "").startswith("gpu-nodeagent/1: "), "the drain in the status")
    job = lab.cluster.submit("alice", ["-l", "gpu=1"], "echo ran\n")
    until(lambda: lab.cluster.state(job) == "qw", "the job waits")
    lab.node.scenario.clear_faults()
    until(lambda: "d" not in lab.cluster.queue_state(), "the host enabled")
    lab.cluster.wait_job_gone(job)
    assert lab.cluster.job_output(job) == "ran\n"


def test_a_lock_whose_shepherd_was_killed_is_freed_although_no_epilog_ran(lab: Lab) -> None:
    job, _ = lab.begin("-l", "gpu=2")
    shepherd = int((lab.cluster.spool / "active_jobs" / f"{job}.1" / "pid").read_text())
    os.kill(shepherd, signal.SIGKILL)
    until(lambda: not lab.node.holders(), "the lock freed", timeout=90)
    assert "lock_reconciled" in lab.node.log.read_text()
    following, gate = lab.begin("-l", "gpu=4")
    assert lab.finish(following, gate)["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"


def test_units_held_by_hand_send_the_job_back_until_they_are_free(lab: Lab) -> None:
    assert lab.node.call("locks", "hold", "0", "1", "2").returncode == 0
    job = lab.cluster.submit("alice", ["-l", "gpu=2"], "env\n")
    try:
        until(lambda: "gave_back" in lab.node.log.read_text() or lab.value("gpu") == "1.000000", "the hold is seen")
        assert lab.cluster.job_output(job) == ""
    finally:
        assert lab.node.call("locks", "release", "0").returncode == 0
    lab.cluster.wait_job_gone(job, timeout=60)
    assert variables(lab.cluster.job_output(job))["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_a_job_consumable_counts_once_and_too_large_a_request_is_the_users_mistake() -> None:
    require("gridengine")
    complexes = (
        "gpu gpu INT <= YES JOB 0 0",
        "gpu_faulty gpu_faulty INT >= YES NO 0 0",
        "gpu_reason gpu_reason STRING == YES NO NONE 0",
    )
    with open_directory("gna-sge-job-") as directory, ExitStack() as stack:
        lab = Lab(directory, stack, offered=8, complexes=complexes)
        job, gate = lab.begin("-pe", "smp", "3", "-l", "gpu=2")
        assert lab.finish(job, gate)["CUDA_VISIBLE_DEVICES"] == "0,1"
        lab.cluster.set_load_sensor(None)
        large = lab.cluster.submit("bob", ["-l", "gpu=5"], "echo ran\n")
        until(lambda: lab.cluster.state(large) == "Eqw", "the job in error")
        assert "5 GPUs asked for; this node has 4" in lab.cluster.job_output(large)
        assert lab.node.holders() == {}
        assert lab.cluster.queue_state() == ""


@pytest.fixture
def without_addgrp_kill(lab: Lab) -> Iterator[None]:
    """Grid Engine itself ends a job's processes unless the site has told it not to; then the epilog does."""

    def obeyed() -> bool:
        job, gate = lab.begin()
        config = (lab.cluster.spool / "active_jobs" / f"{job}.1" / "config").read_text()
        lab.finish(job, gate)
        return "enable_addgrp_kill=0" in config

    lab.cluster.set_global(execd_params="ENABLE_ADDGRP_KILL=0")
    try:
        until(obeyed, "the exec daemon obeys")
        yield
    finally:
        lab.cluster.set_global(execd_params="none")


@pytest.mark.usefixtures("without_addgrp_kill")
def test_what_a_job_left_running_on_its_gpu_is_ended_and_the_gpu_granted_again(lab: Lab) -> None:
    node = lab.node
    leftovers = Leftovers(node)
    job, gate = lab.begin("-l", "gpu=2", before=leftovers.script(0))
    pid = int(variables(lab.cluster.job_output(job))["left"])
    leftovers.seen(pid)
    node.scenario.set(0, compute_mode=3)
    assert Leftovers.lives(pid)
    lab.finish(job, gate)
    until(lambda: not node.holders(), "the job's units free")
    assert not Leftovers.lives(pid)
    until(lambda: "kind=leftover" in node.log.read_text(), "the event in the log")
    assert node.scenario.get(0, "compute_mode") == 0 and node.retired() == []
    again, gate = lab.begin("-l", "gpu=4")
    assert lab.finish(again, gate)["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"


def test_memory_that_a_job_left_retires_its_gpu_frees_the_rest_and_is_over_when_it_is_gone(lab: Lab) -> None:
    node = lab.node
    job, gate = lab.begin("-l", "gpu=2")
    node.scenario.set(1, memory_used=3 << 30)
    lab.finish(job, gate)
    until(lambda: node.retired() == [1], "GPU 1 retired")
    until(lambda: not node.holders(), "the grant freed")
    reason = node.status()["gpus"][1]["retired"]
    assert reason["check"] == "leftover-memory" and f"left by job {job}" in reason["reason"]
    node.scenario.set(1, memory_used=0)
    until(lambda: node.retired() == [], "GPU 1 back")
