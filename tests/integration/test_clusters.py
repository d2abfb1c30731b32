"""The clusters that other integration tests stand on: real schedulers start, run users' jobs, and leave nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters import process
from tests.clusters.gridengine import GridEngineCluster
from tests.clusters.hosts import Hosts
from tests.clusters.nursery import descendants
from tests.clusters.process import ClusterError, Nursery, open_directory, wait_for
from tests.clusters.slurm import SlurmCluster
from tests.integration.conftest import SlurmUsr
from tests.integration.support import executable, require, variables


def alive(pids: list[int]) -> list[int]:
    """Those of `pids` that still exist, zombies included."""
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    """A Slurm whose root Prolog dumps its environment to `prolog.JOB.NODE` and whose TaskProlog exports a variable."""
    require("slurm")
    with open_directory("slurm-") as directory:
        prolog = executable(directory / "prolog", f"env >{directory}/prolog.$SLURM_JOB_ID.$SLURMD_NODENAME\n")
        task = executable(directory / "task-prolog", "echo export FROM_TASK_PROLOG=a value\n")
        with SlurmCluster(directory, prolog=prolog, task_prolog=task) as cluster:
            yield cluster


@pytest.fixture(scope="module")
def gridengine() -> Iterator[GridEngineCluster]:
    """A Grid Engine as it comes, without hooks."""
    require("gridengine")
    with open_directory("gridengine-") as directory, GridEngineCluster(directory) as cluster:
        yield cluster


class TestSlurm:
    """The Slurm of the tests."""

    def test_an_ordinary_users_job_gets_two_of_four_gpus_and_the_prolog_sees_them(self, slurm: SlurmCluster) -> None:
        job = slurm.submit("alice", ["--gres=gpu:2", "-w", "n1"], "id -un; env\n")
        assert slurm.wait_state(job) == "COMPLETED"
        output = slurm.output(job)
        assert output.splitlines()[0] == "alice"
        assert variables(output)["SLURM_JOB_GPUS"] == "0,1"
        seen = variables((slurm.directory / f"prolog.{job}.n1").read_text())
        assert (seen["SLURM_JOB_GPUS"], seen["SLURM_JOB_USER"], seen["SLURM_JOB_ID"]) == ("0,1", "alice", job)

    def test_the_environment_of_the_tests_does_not_reach_a_job(
        self, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SECRET_OF_THE_TESTS", "1")
        result = slurm.run("bob", ["env"])
        assert (result.returncode, variables(result.stdout).get("USER")) == (0, "bob"), result.stderr
        assert "SECRET_OF_THE_TESTS" not in result.stdout

    def test_an_export_of_the_task_prolog_arrives(self, slurm: SlurmCluster) -> None:
        result = slurm.run("bob", ["--gres=gpu:1", "env"])
        assert variables(result.stdout)["FROM_TASK_PROLOG"] == "a value"

    def test_the_device_files_are_character_devices_of_nvidia(self, slurm: SlurmCluster) -> None:
        status = slurm.device("n2", 3).stat()
        assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == (195, 3)

    def test_drain_and_resume(self, slurm: SlurmCluster) -> None:
        slurm.scontrol("update", "nodename=n2", "state=drain", "reason=a | pipe")
        state = slurm.wait_node("n2", lambda seen: seen.drained)
        assert (state.user, state.reason) == ("root", "a | pipe")
        job = slurm.submit("alice", ["-w", "n2"])
        time.sleep(1.2)
        assert slurm.state(job) == "PENDING"
        slurm.scontrol("update", "nodename=n2", "state=resume")
        assert slurm.wait_state(job) == "COMPLETED"
        assert slurm.node("n2").reason == ""

    def test_hooks_are_exchanged_while_it_runs(self, slurm: SlurmCluster) -> None:
        mark = slurm.directory / "epilog-was-here"
        slurm.reconfigure(epilog=executable(slurm.directory / "epilog", f"echo $SLURM_JOB_ID >>{mark}\n"))
        try:
            job = slurm.submit("alice", ["-w", "n1"])
            wait_for(mark.exists, 10, "the epilog")
            wait_for(lambda: mark.read_text() == f"{job}\n", 5, "the epilog's line", mark.read_text)
        finally:
            slurm.reconfigure(epilog=None)

    def test_a_job_survives_its_nodes_daemon(self, slurm: SlurmCluster) -> None:
        job = slurm.submit("alice", ["-w", "n1"], "echo begun; sleep 1.5; echo done\n")
        wait_for(lambda: slurm.output(job) == "begun\n", 10, "the job's own start")
        slurm.kill_slurmd("n1", signal.SIGKILL)
        slurm.start_slurmd("n1")
        assert slurm.wait_state(job) == "COMPLETED"
        assert slurm.output(job) == "begun\ndone\n"

    def test_two_clusters_at_once_and_nothing_left_after_stop(self, slurm: SlurmCluster) -> None:
        with open_directory("slurm-") as directory:
            other = SlurmCluster(directory, nodes=("x1",), gpus=1)
            other.start()
            job = other.submit("bob", [], "setsid sleep 600 & sleep 600\n")
            other.wait_state(job, {"RUNNING"})
            wait_for(lambda: len(other.pids()) >= 6, 5, "the job's processes", lambda: str(other.pids()))
            pids = other.pids()
            assert slurm.sinfo("-h", "-o", "%N").strip() == "n[1-2]"
            other.stop()
            assert alive(pids) == []
            other.stop()
        assert not directory.exists()

    def test_a_failed_start_says_why_and_leaves_nothing(self) -> None:
        require("slurm")
        with open_directory("slurm-") as directory:
            cluster = SlurmCluster(directory, extra_conf="NoSuchSetting=1\n")
            with pytest.raises(ClusterError, match="NoSuchSetting"):
                cluster.start(timeout=3)
            assert cluster.pids() == []

    def test_a_closed_directory_is_refused(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o700)
        with pytest.raises(ValueError, match="closed to ordinary users"):
            SlurmCluster(tmp_path)


@pytest.mark.timeout(300)  # the tree may have to be made
def test_a_slurm_of_another_release_runs_this_machines_hooks_and_jobs(slurm_usr: SlurmUsr) -> None:
    with open_directory("slurm-") as directory:
        words = "import os, sys; print(sys.prefix, os.environ['SLURM_JOB_GPUS'], os.environ['SLURM_JOB_NODELIST'])"
        prolog = executable(directory / "prolog", f'/usr/bin/python3 -IS -c "{words}" >{directory}/prolog.out')
        with SlurmCluster(directory, nodes=("n1",), prolog=prolog, usr=slurm_usr("24.11")) as cluster:
            assert "Version=24.11." in cluster.scontrol("show", "node", "n1")
            ask = [f"{directory}/bin/sinfo", "--version"]  # as an agent does, from outside
            told = subprocess.run(ask, env=cluster.environment, capture_output=True, text=True, check=True).stdout
            assert told.startswith("slurm-wlm 24.11.")
            job = cluster.submit("alice", ["--gres=gpu:2"], "id -un; pwd\n")
            assert cluster.wait_state(job) == "COMPLETED"
            assert cluster.output(job).split() == ["alice", str(cluster.work("alice"))]
            assert (directory / "prolog.out").read_text().split()[1:] == ["0,1", "n1"]  # the list is told since 24.11
            pids = cluster.pids()
        assert not alive(pids)  # and with the last of them its namespace is gone


class TestGridEngine:
    """The Grid Engine of the tests."""

    def test_the_prolog_runs_as_root_and_what_it_appends_reaches_the_job(self, gridengine: GridEngineCluster) -> None:
        seen = gridengine.directory / "prolog-saw"
        body = f'(id -u; env) >{seen}\necho FROM_PROLOG=yes >>"$SGE_JOB_SPOOL_DIR/environment"\n'
        gridengine.set_prolog(f"root@{executable(gridengine.directory / 'prolog', body)}")
        try:
            job = gridengine.submit("alice", ["-l", "gpu=2", "-v", "FROM_PROLOG=no"], "id -un; env\n")
            gridengine.wait_job_gone(job)
        finally:
            gridengine.set_prolog(None)
        output = gridengine.job_output(job)
        assert output.splitlines()[0] == "alice"
        assert variables(output)["FROM_PROLOG"] == "yes"
        assert seen.read_text().splitlines()[0] == "0"
        assert variables(seen.read_text())["JOB_ID"] == job
        assert gridengine.accounting(job)["exit_status"] == "0"

    def test_an_array_runs_each_task(self, gridengine: GridEngineCluster) -> None:
        job = gridengine.submit("bob", ["-t", "1-2", "-l", "gpu=1"], "echo task $SGE_TASK_ID\n")
        gridengine.wait_job_gone(job)
        assert [gridengine.job_output(job, task) for task in (1, 2)] == ["task 1\n", "task 2\n"]

    def test_more_gpus_than_there_are_wait(self, gridengine: GridEngineCluster) -> None:
        first = gridengine.submit("alice", ["-l", "gpu=3"], "sleep 60\n")
        gridengine.wait_state(first, {"r"})
        second = gridengine.submit("bob", ["-l", "gpu=2"])
        time.sleep(1.2)
        assert gridengine.state(second) == "qw"
        assert gridengine.qhost_values("gpu") == "1.000000"
        gridengine.qdel(first)
        gridengine.wait_job_gone(second)

    def test_qrsh_runs_as_the_user(self, gridengine: GridEngineCluster) -> None:
        result = gridengine.qrsh("bob", ["-l", "gpu=1", "id", "-un"])
        assert (result.returncode, result.stdout) == (0, "bob\n"), result.stderr

    def test_a_failing_prolog_closes_the_queue_until_it_is_cleared(self, gridengine: GridEngineCluster) -> None:
        gridengine.set_prolog(f"root@{executable(gridengine.directory / 'broken', 'exit 1')}")
        job = gridengine.submit("alice")
        try:
            wait_for(lambda: gridengine.queue_state() == "E", 15, "state E", gridengine.queue_state)
        finally:
            gridengine.set_prolog(None)
            gridengine.clear_error()
        gridengine.wait_job_gone(job)
        assert gridengine.queue_state() == ""

    def test_the_load_sensors_values_arrive(self, gridengine: GridEngineCluster) -> None:
        values = f"begin\n{gridengine.host}:gpu_faulty:1\n{gridengine.host}:gpu_reason:GPU2 Xid79\nend"
        body = f"while read line && [ \"$line\" != quit ]; do echo '{values}'; done\n"
        gridengine.set_load_sensor(executable(gridengine.directory / "sensor", body))
        try:
            wait_for(lambda: gridengine.qhost_values("gpu_reason") == "GPU2 Xid79", 20, "the sensor's values")
            assert gridengine.qhost_values("gpu_faulty") == "1.000000"
        finally:
            gridengine.set_load_sensor(None)

    def test_a_job_survives_the_exec_daemon(self, gridengine: GridEngineCluster) -> None:
        job = gridengine.submit("alice", [], "echo begun; sleep 1.5; echo done\n")
        wait_for(lambda: gridengine.job_output(job) == "begun\n", 10, "the job's own start")
        gridengine.kill_execd(signal.SIGKILL)
        gridengine.start_execd()
        wait_for(lambda: gridengine.job_output(job) == "begun\ndone\n", 10, "the job's output")
        later = gridengine.submit("bob")
        gridengine.wait_job_gone(later)

    def test_the_machines_own_cell_is_untouched(self, gridengine: GridEngineCluster) -> None:
        assert str(gridengine.directory) in gridengine.qconf("-sconf")
        assert gridengine.environment["SGE_ROOT"] == str(gridengine.directory / "root")

    def test_nothing_is_left_after_stop(self) -> None:
        require("gridengine")
        with open_directory("gridengine-") as directory:
            cluster = GridEngineCluster(directory, gpus=1)
            cluster.start()
            job = cluster.submit("bob", [], "setsid sleep 600 & sleep 600\n")
            cluster.wait_state(job, {"r"})
            wait_for(lambda: len(cluster.pids()) >= 5, 5, "the job's processes", lambda: str(cluster.pids()))
            pids = cluster.pids()
            cluster.stop()
            assert alive(pids) == []
        assert not directory.exists()


class TestHosts:
    """Several hosts, each a namespace."""

    def test_a_job_runs_on_each_and_nothing_is_left_after_stop(self) -> None:
        require("gridengine")
        require("namespaces")
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        with open_directory("gridengine-") as directory:
            cluster = GridEngineCluster(directory, gpus=1, hosts=("h1", "h2", "h3"))
            cluster.start()
            jobs = [cluster.submit("bob", ["-l", "gpu=1"], "hostname; sleep 600\n") for _ in cluster.hosts]
            for job in jobs:
                wait_for(lambda job=job: cluster.job_output(job), 10, f"job {job}")  # type: ignore[misc]
            assert {cluster.job_output(job).strip() for job in jobs} == {"h1", "h2", "h3"}
            pids = cluster.pids()
            cluster.stop()
            assert alive(pids) == []
        assert not directory.exists()
        assert subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout == links

    def test_where_there_are_no_namespaces_it_says_why(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        refused = executable(tmp_path / "unshare", "echo 'unshare failed: Operation not permitted' >&2; exit 1")
        monkeypatch.setattr(process, "program", lambda name, *_: str(refused) if name == "unshare" else name)
        with Nursery(tmp_path) as nursery, pytest.raises(ClusterError, match="h1: .*\n.*Operation not permitted"):
            Hosts(nursery, tmp_path, ("h1", "h2")).start()


class TestNursery:
    """The parent of the daemons."""

    def test_it_finds_and_ends_what_has_escaped_its_daemon(self, tmp_path: Path) -> None:
        escape = "setsid sh -c 'trap \"\" TERM; sleep 600 & wait' & exit 0"
        with Nursery(tmp_path) as nursery:
            daemon = nursery.start("escaping", ["/bin/sh", "-c", escape], {"PATH": "/usr/bin:/bin"})
            wait_for(lambda: daemon.status() == 0, 5, "the end of the daemon")
            pids = wait_for(nursery.pids, 5, "the leftover")
        assert alive(pids) == []

    def test_it_reaps_orphans(self, tmp_path: Path) -> None:
        with Nursery(tmp_path) as nursery:
            pid_file = tmp_path / "pid"
            argv = ["/bin/sh", "-c", f"sleep 0.1 & echo $! >{pid_file}; exit 3"]
            daemon = nursery.start("orphaning", argv, {"PATH": "/usr/bin:/bin"})
            assert wait_for(daemon.status, 5, "the end of the daemon") == 3
            orphan = int(pid_file.read_text())
            wait_for(lambda: not alive([orphan]), 5, "the orphan to be reaped")

    def test_it_ends_everything_when_the_tests_are_killed(self, tmp_path: Path) -> None:
        pid = os.fork()
        if pid == 0:
            nursery = Nursery(tmp_path)
            daemon = nursery.start("lonely", ["/bin/sleep", "600"], {})
            (tmp_path / "pid.new").write_text(str(daemon.pid))
            (tmp_path / "pid.new").rename(tmp_path / "pid")
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        daemon_pid = int((tmp_path / "pid").read_text())
        wait_for(lambda: not running(daemon_pid), 5, "the end of the daemon")

    def test_a_program_that_does_not_exist_is_a_status_and_a_line_in_the_log(self, tmp_path: Path) -> None:
        with Nursery(tmp_path) as nursery:
            daemon = nursery.start("missing", ["/no/such/program"], {})
            assert wait_for(daemon.status, 5, "the end") == 127
            assert "/no/such/program" in daemon.log.read_text()


def running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_descendants_are_found_below_a_process() -> None:
    assert os.getpid() in descendants(os.getppid())
