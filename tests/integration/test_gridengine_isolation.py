"""Real Grid Engine jobs that try to open each other's devices; the devices are real, the GPUs behind them simulated."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nodeagent.isolation.cgroup import PREFIX, directory_of
from tests.clusters.process import open_directory
from tests.contract.isolation_scene import CONTROLLER, NUMBERS, VERSIONS, make_node, opening
from tests.integration.support import require, unavailable
from tests.integration.test_gridengine import Lab
from tests.simulated_node import until

ALL = (0, 1, 2, 3)

both = pytest.mark.parametrize("method", VERSIONS)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Grid Engine with one host of four GPUs, whose device files open without a driver."""
    require("gridengine")
    with open_directory("gna-sge-isolation-") as directory, ExitStack() as stack:
        lab = Lab(directory, stack)
        for gpu, (major, minor) in zip(ALL, NUMBERS):
            make_node(lab.node.roots["dev"] / f"nvidia{gpu}", major, minor)
        yield lab


@pytest.fixture(autouse=True)
def tidied(lab: Lab) -> Iterator[None]:
    """Each test leaves the host idle, and nothing of what confined its jobs."""
    yield
    lab.tidy()
    until(lambda: not left(lab), "nothing left of the jobs' confinements")


def use(lab: Lab, setting: str) -> None:
    """Let the hooks isolate by that setting."""
    if setting in VERSIONS and not directory_of("/proc", os.getpid(), CONTROLLER[setting]):
        unavailable(f"{setting} is not mounted here")
    lab.node.write_config(f"isolation: {setting}\n")
    lab.node.reload(lab.agent)
    hook_conf = lab.node.state_dir / "hook.conf"
    until(lambda: f"isolation={setting}\n" in hook_conf.read_text(), "the configuration compiled")


def left(lab: Lab) -> list[str]:
    """Return the records of confinements, and the cgroups that they name."""
    records = lab.node.state_dir / "isolation"
    return sorted(os.listdir(records)) if records.exists() else []


def places(lab: Lab, method: str) -> list[Path]:
    """Return the cgroups that are named by the records."""
    above = Path(directory_of("/proc", os.getpid(), CONTROLLER[method]))
    return [path for name in left(lab) for path in above.glob(f"**/{PREFIX}{name}")]


def run(lab: Lab, script: str, *arguments: str) -> list[str]:
    """Run a job to its end and return what it printed, in words."""
    job = lab.cluster.submit("alice", list(arguments), script)
    lab.cluster.wait_job_gone(job)
    return lab.cluster.job_output(job).split()


@both
def test_a_job_opens_its_own_device_and_gets_eperm_from_all_others(lab: Lab, method: str) -> None:
    use(lab, method)
    other, gate = lab.begin("-l", "gpu=1", user="bob")  # holds GPU 0, so the next job gets GPU 1
    [made] = places(lab, method)
    tries = opening(lab.node.roots["dev"], *ALL)
    script = f"""echo $CUDA_VISIBLE_DEVICES
{tries}
unshare -Urm {tries}
(setsid sh -c {shlex.quote(f"sleep 0.2; {tries} > $TMPDIR/late; mv $TMPDIR/late $TMPDIR/done")} >/dev/null 2>&1 &)
until [ -e $TMPDIR/done ]; do sleep 0.05; done
cat $TMPDIR/done
"""
    visible, *tried = run(lab, script, "-l", "gpu=1")
    assert visible == lab.node.status()["gpus"][1]["uuid"]
    expected = ["EPERM", "opens", "EPERM", "EPERM"]
    assert tried == [*expected, *expected, *expected]
    assert made.is_dir()
    lab.finish(other, gate)
    until(lambda: not made.exists() and not left(lab), "the cgroups removed by the epilogs")


@both
def test_a_job_without_gpus_opens_none(lab: Lab, method: str) -> None:
    use(lab, method)
    assert run(lab, opening(lab.node.roots["dev"], *ALL)) == ["EPERM"] * 4


@both
def test_what_a_killed_shepherd_leaves_is_removed_by_the_agent(lab: Lab, method: str) -> None:
    use(lab, method)
    job, _ = lab.begin("-l", "gpu=2")
    [made] = places(lab, method)
    os.kill(int((lab.cluster.spool / "active_jobs" / f"{job}.1" / "pid").read_text()), signal.SIGKILL)
    lab.gates.open_all()
    until(lambda: not lab.node.holders(), "the lock freed", timeout=90)
    until(lambda: not made.exists() and not left(lab), "the cgroup removed")


def test_a_job_that_cannot_be_confined_does_not_start(lab: Lab) -> None:
    use(lab, "device-files")  # the driver's ModifyDeviceFiles is 1
    job = lab.cluster.submit("alice", ["-l", "gpu=1"], "echo ran\n")
    until(lambda: "isolation_failed" in lab.node.log.read_text(), "the failure is told")
    assert "ModifyDeviceFiles" in lab.node.log.read_text()
    assert lab.cluster.job_output(job) == "" and lab.cluster.queue_state() == ""
    use(lab, "none")
    lab.cluster.wait_job_gone(job, timeout=60)
    assert lab.cluster.job_output(job) == "ran\n"
