"""What counts as left by a job, from facts as plain values."""

from __future__ import annotations

from dataclasses import replace

from nodeagent.gpu.facts import GpuFacts, MigInstance, Process
from nodeagent.health.finding import RecoveryAction
from nodeagent.health.leftover import MEMORY, PROCESS, Leftover, left_on
from tests.unit.fake_gpu import GIB, idle_gpu

LIMIT = 512 << 20
USERS = {10: 1000, 11: 0, 12: 2000}
"""Processes 10 of the job's user, 11 of root's, 12 of somebody else's; 13 is not known to the kernel."""


def left(gpu: GpuFacts, unit: str = "", uid: int = 1000) -> Leftover | None:
    return left_on(gpu, unit or gpu.uuid, uid, lambda pid: USERS.get(pid, -1), LIMIT)


def gpu(*processes: Process, used: int | None = 0) -> GpuFacts:
    return replace(idle_gpu(0), processes=processes, memory_used=used)


def test_an_idle_gpu_is_clean_up_to_the_limit() -> None:
    assert left(gpu()) is None
    assert left(gpu(used=LIMIT)) is None
    soiled = left(gpu(used=LIMIT + (1 << 20)))
    assert soiled is not None and (soiled.check, soiled.action) == (MEMORY, RecoveryAction.RESET_GPU)
    assert soiled.evidence == "513 MiB are in use and no process has them"
    assert left(gpu(used=LIMIT + 1)) is not None
    assert left(gpu(Process(11, 0), used=LIMIT + 1)) is not None, "a process that uses nothing explains nothing"


def test_memory_that_nvml_does_not_tell_is_not_judged() -> None:
    assert left(gpu(used=None)) is None
    assert left(gpu(Process(11, None), used=4 * GIB)) is None


def test_a_process_of_the_jobs_user_or_of_none_is_the_jobs() -> None:
    for pid in (10, 13):
        soiled = left(gpu(Process(pid, GIB), Process(12, GIB), used=2 * GIB))
        assert soiled is not None and (soiled.check, soiled.processes) == (PROCESS, (pid,))
        assert soiled.action is RecoveryAction.REBOOT_NODE
        assert soiled.evidence == f"the job's process {pid} is still on the GPU"


def test_of_many_processes_the_first_eight_are_named_and_all_are_told() -> None:
    soiled = left(gpu(*(Process(pid) for pid in range(100, 109))))
    assert soiled is not None and soiled.processes == tuple(range(100, 109))
    named = ", ".join(map(str, range(100, 108)))
    assert soiled.evidence == f"the job's process {named} is still on the GPU"


def test_the_first_user_after_root_is_a_user() -> None:
    soiled = left_on(gpu(Process(10)), idle_gpu(0).uuid, 1, lambda pid: 1, LIMIT)
    assert soiled is not None and soiled.check == PROCESS


def test_processes_of_others_are_left_alone_and_what_they_use_is_theirs() -> None:
    others = (Process(11, GIB), Process(12, 2 * GIB))
    assert left(gpu(*others, used=3 * GIB)) is None
    soiled = left(gpu(*others, used=5 * GIB))
    assert soiled is not None and soiled.check == MEMORY


def test_of_a_job_of_roots_no_process_is_taken_for_its_own() -> None:
    assert left(gpu(Process(11, GIB), used=GIB), uid=0) is None


def test_of_an_instance_only_its_own_memory_counts() -> None:
    instances = (MigInstance("MIG-1", 1, 0, 10 * GIB, 0), MigInstance("MIG-2", 2, 0, 10 * GIB, GIB))
    whole = replace(gpu(Process(10, GIB), used=GIB), mig_enabled=True, mig=instances)
    assert left(whole, "MIG-1") is None
    soiled = left(whole, "MIG-2")
    assert soiled is not None and soiled.check == MEMORY
