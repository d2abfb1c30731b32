"""One GPU of eight out of service under a real Grid Engine, by load sensor and by complex_values: what jobs meet."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.clusters.process import open_directory
from tests.integration import stream
from tests.integration.support import require
from tests.integration.test_gridengine import Lab
from tests.simulated_node import until

pytestmark = pytest.mark.timeout(600)  # Grid Engine starts between three and four jobs a second that ask for a GPU
GPUS = 8


@contextmanager
def host(**more: object) -> Iterator[Lab]:
    require("gridengine")
    with open_directory("gna-sge-retire-") as directory, ExitStack() as stack:
        yield Lab(directory, stack, offered=GPUS, gpus=GPUS, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sensed() -> Iterator[Lab]:
    """A host whose load sensor tells what is out."""
    with host() as lab:
        yield lab


@pytest.fixture(scope="module")
def counted() -> Iterator[Lab]:
    """A host without a load sensor, whose complex_values the agent lowers."""
    with host(sge=", retire: complex_values", sensor=False) as lab:
        yield lab


@pytest.fixture(autouse=True)
def tidied(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test leaves its host healthy and idle."""
    yield
    for name in {"sensed", "counted"} & set(request.fixturenames):
        lab: Lab = request.getfixturevalue(name)
        lab.tidy()
        until(lambda lab=lab: left(lab) == GPUS, "all eight offered")


def left(lab: Lab) -> float:
    """Return what `qhost -F gpu` says is left."""
    return float(lab.value("gpu") or "nan")


def offered(lab: Lab) -> int:
    """Return what the host's complex_values say."""
    found = re.search(r"\bgpu=(\d+)", lab.cluster.qconf("-se", lab.cluster.host))
    assert found
    return int(found.group(1))


def break_gpu(lab: Lab, gpu: int) -> None:
    """Have it fall off the bus; returns when it is retired."""
    with lab.node.scenario.edit():
        lab.node.scenario.xid(gpu, 79)
        lab.node.scenario.lose(gpu)
    until(lambda: gpu in lab.node.retired(), f"GPU {gpu} retired")


def mend(lab: Lab, gpu: int) -> None:
    with lab.node.scenario.edit():
        lab.node.scenario.heal(gpu)
        lab.node.scenario.reinitialise(gpu)
    until(lambda: gpu not in lab.node.retired(), f"GPU {gpu} back")


def flow(lab: Lab, jobs: int, place: Path) -> list[stream.Run]:
    """Send so many jobs of one GPU each, of two users, through the host; returns when the last has ended."""
    place.mkdir()
    place.chmod(0o1777)
    script = stream.script(place, 0.5)
    for user in ("alice", "bob"):
        lab.cluster.submit(user, ["-t", f"1-{jobs // 2}", "-l", "gpu=1"], script)
    until(lambda: not lab.cluster.states(), "every job over", timeout=500)
    return stream.runs(place)


def given_back(lab: Lab) -> int:
    return lab.node.log.read_text().count("kind=gave_back")


# ---- the load sensor -------------------------------------------------------------------------------------------------


def test_qhost_shows_what_is_left_in_each_phase_by_the_sensor(sensed: Lab) -> None:
    until(lambda: left(sensed) == 8, "all eight left")
    job, gate = sensed.begin("-l", "gpu=2")
    until(lambda: left(sensed) == 6, "two in use")
    break_gpu(sensed, 0)  # under the job
    until(lambda: sensed.faulty() == 1, "the sensor's report")
    assert left(sensed) == 6 and "GPU 0" in str(sensed.value("gpu_reason"))
    assert offered(sensed) == GPUS and sensed.cluster.state(job) in ("t", "r")
    sensed.finish(job, gate)
    until(lambda: left(sensed) == 7, "the healthy one of the two is back")
    assert "hl:gpu=7" in sensed.cluster.checked("qhost", "-F", "gpu"), "by the sensor's word, less than the consumable"
    mend(sensed, 0)
    until(lambda: left(sensed) == 8, "all eight left")
    assert "hc:gpu=8" in sensed.cluster.checked("qhost", "-F", "gpu"), "the consumable decides again"


def test_of_200_jobs_all_run_and_none_on_the_faulty_gpu_by_the_sensor(sensed: Lab) -> None:
    break_gpu(sensed, 3)
    until(lambda: left(sensed) == 7, "the sensor's report")
    before = given_back(sensed)
    found = flow(sensed, 200, sensed.directory / "stream")
    print(f"sensor: {given_back(sensed) - before} of 200 jobs were given back once more")
    assert len(found) == 200
    assert {run.gpu for run in found} == {str(gpu) for gpu in range(GPUS) if gpu != 3}
    assert list(stream.meetings(found)) == []
    assert stream.most_at_once(found) == 7
    assert sensed.cluster.queue_state() == ""


def test_a_sensor_that_hangs_leaves_its_last_word_and_the_prolog_refuses_what_failed_since(sensed: Lab) -> None:
    break_gpu(sensed, 3)
    until(lambda: left(sensed) == 7, "the sensor's report")
    [pid] = [pid for pid in sensed.cluster.pids() if b"sge-sensor" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(pid, signal.SIGSTOP)
    try:
        break_gpu(sensed, 5)
        before = given_back(sensed)
        job = sensed.cluster.submit("alice", ["-l", "gpu=7"], "env\n")
        until(lambda: given_back(sensed) > before, "the prolog gives the job back")
        until(lambda: left(sensed) == 7, "the last word stands")
        assert sensed.cluster.job_output(job) == ""
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: left(sensed) == 6, "it goes on")
    sensed.cluster.qdel(job)
    sensed.cluster.wait_job_gone(job)


def test_without_a_sensor_the_whole_number_is_offered_and_jobs_wait_for_a_healthy_gpu(sensed: Lab) -> None:
    break_gpu(sensed, 3)
    until(lambda: left(sensed) == 7, "the sensor's report")
    sensed.cluster.set_load_sensor(None)
    try:
        until(lambda: left(sensed) == 8, "its word is gone")
        found = flow(sensed, 24, sensed.directory / "unsensed")
        assert len(found) == 24 and "3" not in {run.gpu for run in found}
        assert list(stream.meetings(found)) == []
    finally:
        sensed.cluster.set_load_sensor(sensed.sensor)
    until(lambda: sensed.value("gpu_faulty") is not None, "the sensor is back")


# ---- complex_values --------------------------------------------------------------------------------------------------


def test_qhost_shows_what_is_left_in_each_phase_by_complex_values(counted: Lab) -> None:
    job, gate = counted.begin("-l", "gpu=2")
    until(lambda: left(counted) == 6, "two in use")
    break_gpu(counted, 0)  # under the job
    until(lambda: left(counted) == 5, "one fewer")
    assert offered(counted) == 7 and counted.cluster.state(job) in ("t", "r")
    counted.finish(job, gate)
    until(lambda: left(counted) == 7, "both places back, never eight")
    mend(counted, 0)
    until(lambda: (left(counted), offered(counted)) == (8, 8), "all eight left")
    assert not (counted.node.directory / "data" / "lowered").exists()


def test_a_job_on_all_of_them_runs_on_while_fewer_are_offered(counted: Lab) -> None:
    job, gate = counted.begin("-l", "gpu=8")
    break_gpu(counted, 3)
    until(lambda: left(counted) == -1, "one more in use than offered")
    waiting = counted.cluster.submit("bob", ["-l", "gpu=1"], "env\n")
    until(lambda: counted.cluster.state(waiting) == "qw", "the next one waits")
    until(lambda: counted.cluster.state(job) == "r", "the first runs on, as its host has reported by now")
    assert len(counted.finish(job, gate)["CUDA_VISIBLE_DEVICES"].split(",")) == 8
    counted.cluster.wait_job_gone(waiting)


def test_of_80_jobs_all_run_and_nothing_is_ever_over_booked_by_complex_values(counted: Lab) -> None:
    break_gpu(counted, 3)
    until(lambda: left(counted) == 7, "one fewer")
    before = given_back(counted)
    found = flow(counted, 80, counted.directory / "stream")
    assert given_back(counted) == before
    assert len(found) == 80
    assert {run.gpu for run in found} == {str(gpu) for gpu in range(GPUS) if gpu != 3}
    assert list(stream.meetings(found)) == []
    assert stream.most_at_once(found) == 7


def test_a_number_that_an_administrator_sets_meanwhile_stays(counted: Lab) -> None:
    break_gpu(counted, 3)
    until(lambda: offered(counted) == 7, "one fewer")
    try:
        counted.cluster.qconf("-mattr", "exechost", "complex_values", "gpu=5", counted.cluster.host)
        break_gpu(counted, 4)
        until(lambda: offered(counted) == 4, "one fewer than theirs")
        for gpu in (3, 4):
            mend(counted, gpu)
        until(lambda: offered(counted) == 5, "theirs")
        assert "capacity_of_others" in counted.node.log.read_text()
    finally:
        counted.cluster.qconf("-mattr", "exechost", "complex_values", f"gpu={GPUS}", counted.cluster.host)


def test_what_fails_while_the_qmaster_is_away_is_taken_off_when_it_is_back(counted: Lab) -> None:
    counted.cluster.kill_qmaster()
    break_gpu(counted, 3)
    until(lambda: "capacity_failed" in counted.node.log.read_text(), "the agent has tried")
    counted.cluster.start_qmaster()
    until(lambda: offered(counted) == 7, "one fewer")
    assert counted.node.log.read_text().count("capacity_failed") == 1, "said once"
