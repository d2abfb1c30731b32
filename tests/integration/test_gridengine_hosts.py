"""Real Grid Engine on two hosts: parallel jobs, login shells, rescheduled jobs, placement over hosts.

Each host is a namespace of this machine with an agent and simulated GPUs of its own.
"""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from nodeagent.hook.sge_slave import GRANT_LINK
from nodeagent.lock.store import Store
from nodeagent.state.files import Directory
from tests.clusters.gridengine import GridEngineCluster
from tests.clusters.process import open_directory
from tests.integration.support import Gates, executable, install_tree, require, variables
from tests.simulated_node import ROOT, SimulatedNode, until

HOSTS = ("node1", "node2")
SETTINGS = """interval: 1s
hooks: {{wait_for_units: 2s}}
scheduler:
  kind: sge
  sge: {{root: {root}, qmaster_port: {qmaster}, execd_port: {execd}}}
"""


class Lab:
    """Two exec hosts with four simulated GPUs and an agent each, set up as `discover sge` says."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.tree = install_tree(directory)
        self.nodes: dict[str, SimulatedNode] = {}
        for host in HOSTS:
            (directory / host).mkdir(mode=0o755)
            self.nodes[host] = SimulatedNode(directory / host, 4, host, "scheduler: {kind: sge}\n")
        told = self.discover("bundle")
        complexes = told["complexes"].splitlines()
        self.cluster = stack.enter_context(GridEngineCluster(directory, hosts=HOSTS, complexes=complexes))
        environment = self.cluster.environment
        settings = SETTINGS.format(
            root=environment["SGE_ROOT"],
            qmaster=environment["SGE_QMASTER_PORT"],
            execd=environment["SGE_EXECD_PORT"],
        )
        for host, node in self.nodes.items():
            node.settings = settings
            node.write_config()
            node.entrance = self.cluster.enter(host)
            stack.enter_context(node.agent())
        # One queue for both hosts: the path of the configuration, here one a host, is the only thing changed.
        self.hooks = dict(line.split(None, 1) for line in told["queue"].replace("/node1/", "/$host/").splitlines())
        self.cluster.set_queue(**self.hooks)
        here = f"--config {directory}/$(hostname)/config.yaml"
        sensor = f"export PYTHONPATH={ROOT}\nexec {ROOT}/.venv/bin/python -m nodeagent.cli.main {here} sge-sensor"
        shepherd = f'exec {told["shepherd"].split()[1]} {here} "$@"'
        self.cluster.set_global(
            load_sensor=str(executable(directory / "sensor", sensor)),
            shepherd_cmd=str(executable(directory / "shepherd", shepherd)),
        )
        for host in HOSTS:
            until(lambda host=host: self.cluster.qhost_values("gpu_free", host), f"the sensor of {host}")  # type: ignore[misc]
        self.gates = Gates(directory)

    def discover(self, placement: str) -> dict[str, str]:
        """Return what `discover sge` prints on the first host: text by name."""
        words = ("discover", "sge", "--json", "--hooks", str(self.tree), "--placement", placement)
        return {piece["name"]: piece["text"] for piece in json.loads(self.nodes["node1"].ask(*words))["pieces"]}

    def holders(self, host: str) -> dict[int, str]:
        """Return index → job for each GPU that is held on a host."""
        return self.nodes[host].holders()

    def grants(self, host: str) -> dict[str, set[str]]:
        """Return job → the grants that it holds on a host."""
        found: dict[str, set[str]] = {}
        for owner in Store(Directory(str(self.nodes[host].state_dir))).owners().values():
            found.setdefault(owner.job, set()).add(owner.grant)
        return found

    def begin(self, *arguments: str, user: str = "alice") -> str:
        """Submit a job that runs until all gates are opened; returns when it has begun."""
        _, script = self.gates.new()
        job = self.cluster.submit(user, list(arguments), script)
        until(lambda: "begun=yes" in self.cluster.job_output(job), f"job {job} begins")
        return job

    def parallel(self) -> tuple[str, Path]:
        """Submit a job of two slots a host with two tasks on the second and one on the first; returns when all run.

        Its master is on the first, whichever has less to do.
        """
        gate, _ = self.gates.new()
        place = self.directory / gate.name.replace("gate", "parallel")
        place.mkdir()
        place.chmod(0o777)
        stay = f"env >{place}/$0.new; mv {place}/$0.new {place}/$0; until [ -e {gate} ]; do sleep 0.1; done"
        executable(place / "task", f"grep SigIgn /proc/self/status >{place}/$1.signals\nexec sh -c '{stay}' $1")
        tasks = (("first", "node2"), ("second", "node2"), ("beside", "node1"))
        forged = "CUDA_VISIBLE_DEVICES=3,JOB_ID=7,SGE_TASK_ID=5,NSLOTS=9,SGE_JOB_SPOOL_DIR=/tmp"
        lines = [f"qrsh -inherit -v {forged} {host} {place}/task {name} &" for name, host in tasks]
        script = "\n".join([f"grep SigIgn /proc/self/status >{place}/master.signals", *lines, "wait", ""])
        job = self.cluster.submit("alice", ["-pe", "mpi", "4", "-masterq", "all.q@node1", "-l", "gpu=1"], script)
        until(
            lambda: all((place / name).exists() for name, _ in tasks),
            f"the tasks of job {job}",
        )
        return job, place

    def tidy(self) -> None:
        """Bring everything back: jobs ended, nothing held."""
        self.gates.open_all()
        for job in {name.partition(".")[0] for name in self.cluster.states()}:
            self.cluster.command("root", ["qdel", job])
        until(lambda: not self.cluster.states(), "no job left")
        for host in HOSTS:
            until(lambda host=host: not self.holders(host), f"all units of {host} free")  # type: ignore[misc]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Grid Engine with two hosts of four GPUs."""
    require("gridengine")
    require("namespaces")
    with open_directory("gna-hosts-") as directory, ExitStack() as stack:
        yield Lab(directory, stack)


def signals(line: str) -> int:
    """Return the set in a line of /proc/PID/status, but for 32 and 33: the C library has these for itself."""
    return int(line.split()[1], 16) & ~(0b11 << 31)


@pytest.fixture(autouse=True)
def tidied(lab: Lab) -> Iterator[None]:
    """Each test leaves both hosts idle."""
    yield
    lab.tidy()


def test_a_parallel_job_holds_its_gpus_on_each_of_its_hosts_and_every_task_is_told(lab: Lab) -> None:
    job, place = lab.parallel()
    assert lab.holders("node1") == lab.holders("node2") == {0: job, 1: job}
    assert [len(lab.grants(host)[job]) for host in HOSTS] == [1, 1]
    for task in ("first", "second", "beside"):
        seen = variables((place / task).read_text(errors="replace"))
        assert seen["HOSTNAME"] == ("node1" if task == "beside" else "node2")
        assert seen["CUDA_VISIBLE_DEVICES"] == seen["APPTAINERENV_CUDA_VISIBLE_DEVICES"] == "0,1"
    ignored = {signals((place / f"{task}.signals").read_text()) for task in ("master", "first", "beside")}
    plain = subprocess.run(["/bin/grep", "SigIgn", "/proc/self/status"], capture_output=True, text=True, check=True)
    assert ignored == {signals(plain.stdout)}, "what the daemons were started with, and nothing that Python adds"
    other = lab.begin("-l", "gpu=2", "-q", "all.q@node2", user="bob")
    assert lab.holders("node2") == {0: job, 1: job, 2: other, 3: other}
    lab.gates.open_all()
    lab.cluster.wait_job_gone(job)
    until(lambda: not lab.holders("node2"), "the slave host's units free", timeout=6)


def test_a_slave_hosts_lock_goes_when_everything_of_the_job_is_killed_there(lab: Lab) -> None:
    job, _ = lab.parallel()
    runs = [lab.cluster.spool_of(host) / "active_jobs" / f"{job}.1" for host in HOSTS]
    assert len(os.readlink(runs[1] / GRANT_LINK)) == 16
    named = {int(file.read_text()) for run in runs for file in run.rglob("*pid")}
    lab.cluster.kill_execd(signal.SIGKILL, "node2")
    for pid in named.intersection(lab.cluster.pids()):
        with suppress(ProcessLookupError):  # a shepherd leaves when its task is gone
            os.kill(pid, signal.SIGKILL)
    until(lambda: not named.intersection(lab.cluster.pids()), "all of it dead")
    assert lab.holders("node2") == {0: job, 1: job}  # nobody has said yet that the job is over there
    lab.cluster.start_execd(host="node2")
    until(lambda: not runs[1].exists(), "the exec daemon has noticed")
    until(lambda: not lab.holders("node2"), "the lock freed", timeout=6)
    assert "lock_reconciled" in lab.nodes["node2"].log.read_text()


def typed(lab: Lab, words: list[str], line: str, answer: str) -> str:
    """Type a line into an interactive command of alice's once it asks for one; return all that it shows."""
    argv, environment = lab.cluster.invocation("alice", words)
    here, there = pty.openpty()
    process = subprocess.Popen(argv, env=environment, stdin=there, stdout=there, stderr=there, start_new_session=True)
    os.close(there)
    shown = b""
    deadline = time.monotonic() + 20
    try:
        while answer.encode() not in shown and time.monotonic() < deadline:
            if select.select([here], [], [], 0.2)[0]:
                shown += os.read(here, 4096)
            if shown.rstrip().endswith((b"$", b"%")) and line:
                os.write(here, f"{line}\n".encode())
                line = ""
        os.write(here, b"exit\n")
        process.wait(timeout=20)
    finally:
        process.kill()
        process.wait()
        os.close(here)
    return shown.decode(errors="replace")


@pytest.mark.parametrize(("words", "devices"), [(["-l", "gpu=2"], "0,1"), ([], "NoDevFiles")])
def test_a_login_shell_has_its_jobs_variables(lab: Lab, words: list[str], devices: str) -> None:
    profiles = lab.directory / "profile.d"
    if not profiles.exists():
        profiles.mkdir(mode=0o755)
        node = lab.nodes["node1"]
        helper = f"{lab.tree}/prolog/sge-login --config {node.config}"
        text = (ROOT / "systemd" / "gpu-nodeagent.profile.sh").read_text()
        text = text.replace("/usr/libexec/gpu-nodeagent/prolog/sge-login", helper)
        (profiles / "gpu-nodeagent.sh").write_text(text.replace("/run/gpu-nodeagent/", f"{node.state_dir}/"))
        mount = [*lab.cluster.enter("node1"), "mount", "--bind", str(profiles), "/etc/profile.d"]
        subprocess.run(mount, check=True)
    command = ["qrsh", "-now", "no", "-q", "all.q@node1", *words]
    shown = typed(lab, command, "echo =$CUDA_DEVICE_ORDER=$CUDA_VISIBLE_DEVICES=", f"={devices}=")
    assert f"=PCI_BUS_ID={devices}=" in shown


def test_a_rescheduled_jobs_gpus_stay_its_own_until_it_is_over(lab: Lab) -> None:
    """`qmod -rj` frees the count at once, while the old run ends: here its epilog takes a few seconds."""
    slow = lab.directory / "slow"
    epilog = lab.hooks["epilog"].partition("@")[2]
    wrapped = executable(lab.directory / "slow-epilog", f'while [ -e {slow} ]; do sleep 0.1; done\nexec "$@"')
    lab.cluster.set_queue(epilog=f"root@{wrapped} {epilog}")
    lab.cluster.qmod("-d", "all.q@node2")
    log = lab.nodes["node1"].log
    try:
        job = lab.begin("-r", "y", "-l", "gpu=3")
        first = lab.grants("node1")
        assert list(first) == [job]
        slow.touch()
        lab.cluster.qmod("-rj", job)
        following = lab.cluster.submit("bob", ["-l", "gpu=3"], "env\n")
        until(lambda: "gave_back" in log.read_text() and f"job={following}" in log.read_text(), "the next is sent back")
        assert lab.grants("node1") == first  # the old run's, until its epilog; nothing is granted twice
        assert lab.cluster.job_output(following) == ""
        slow.unlink()
        until(lambda: lab.grants("node1") != first, "the old run's lock released")
        until(lambda: lab.cluster.job_output(job).count("begun=yes") == 2, "the job runs again", timeout=60)
        again = lab.grants("node1")[job]
        assert again.isdisjoint(first[job])
        lab.gates.open_all()
        lab.cluster.wait_job_gone(following, timeout=60)
        assert len(variables(lab.cluster.job_output(following))["CUDA_VISIBLE_DEVICES"].split(",")) == 3
    finally:
        slow.unlink(missing_ok=True)
        lab.cluster.set_queue(**lab.hooks)
        lab.cluster.qmod("-e", "all.q@node2")


@pytest.mark.parametrize(("placement", "large"), [("bundle", "r"), ("spread", "qw")])
def test_three_small_jobs_and_a_large_one(lab: Lab, placement: str, large: str) -> None:
    """IBM's example: with small jobs all over the place none is left with four free GPUs."""
    text = lab.discover(placement)["scheduler"]
    lab.cluster.set_scheduler(**dict(line.split(None, 1) for line in text.splitlines()))
    small = [lab.begin("-l", "gpu=1") for _ in range(3)]
    held = {host: sorted(lab.holders(host).values()) for host in HOSTS}
    assert sorted(len(jobs) for jobs in held.values()) == ([0, 3] if placement == "bundle" else [1, 2])
    assert sorted(sum(held.values(), [])) == sorted(small)
    _, script = lab.gates.new()
    job = lab.cluster.submit("bob", ["-l", "gpu=4"], script)
    lab.begin("-l", "gpu=0", user="bob")  # the scheduler has seen both
    lab.cluster.wait_state(job, {large}, timeout=5)
    told = {host: str(float(4 - len(lab.holders(host)))) for host in HOSTS}
    for host, free in told.items():
        until(lambda h=host, f=free: float(lab.cluster.qhost_values("gpu_free", h) or -1) == float(f), "told")  # type: ignore[misc]
        assert float(lab.cluster.qhost_values("gpu_linked", host) or -1) == float(free)
