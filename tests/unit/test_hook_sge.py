"""Grid Engine's hooks: the outcome table of the design, row by row."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nodeagent.errors import NodeAgentError
from nodeagent.hook import sge
from nodeagent.hook.sge_job import BadAmount, UnknownJobFile, job_file, read_job
from nodeagent.hook.sge_shepherd import LONGEST_LINE
from nodeagent.lock.record import Owner
from nodeagent.state import events
from nodeagent.state.verdict_file import UnitLine
from tests.sge_files import SgeJob, packed_job
from tests.support import LaidOutNode, uuid


@pytest.fixture
def node(tmp_path: Path) -> LaidOutNode:
    return LaidOutNode(tmp_path, "sge", settings="hooks: {wait_for_units: 0}\n")


def prolog(node: LaidOutNode, job: SgeJob, **environ: str) -> int:
    return sge.run_prolog(["--config", str(node.config)], {**job.environ, **environ})


def epilog(node: LaidOutNode, job: SgeJob, **environ: str) -> int:
    return sge.run_epilog(["--config", str(node.config)], {**job.environ, **environ})


def kinds(node: LaidOutNode) -> list[str]:
    return [event.kind for event in events.take(node.state)]


# -- the job file -----------------------------------------------------------------------------------------------------


def test_where_the_job_file_is() -> None:
    assert job_file("/s", "603", "4") == "/s/jobs/00/0000/0603.4"
    assert job_file("/s", "12345678", "") == "/s/jobs/00/1234/5678.1"


def test_a_job_is_read_as_it_was_packed() -> None:
    data = packed_job([("h_rt", "60", 60.0, 0), ("gpu", "2k", 2048.0, 1)], [("n2", 2), ("n1", 3)], user="bob")
    job = read_job("f", data)
    assert (job.owner, job.uid) == ("bob", 1000)
    assert job.slots == [("n2", 2), ("n1", 3)]
    assert job.requests == {"h_rt": (60.0, 0), "gpu": (2048.0, 1)}
    assert job.texts == {"h_rt": "60", "gpu": "2k"}


@pytest.mark.parametrize(
    ("number", "consumable", "host", "units"),
    [(2.0, 1, "n1", 6), (2.0, 2, "n1", 2), (1.0, 1, "n2", 2), (1.0, 1, "elsewhere", 2), (0.0, 1, "n1", 0)],
)
def test_units_on_a_host(number: float, consumable: int, host: str, units: int) -> None:
    job = read_job("f", packed_job([("gpu", "x", number, consumable)], [("n2", 2), ("n1", 3)]))
    assert job.units("gpu", host) == units
    assert job.units("gpus", host) == 0


@pytest.mark.parametrize("number", [-1.0, 0.5, 1e-9])
def test_an_amount_that_is_no_number_of_gpus(number: float) -> None:
    with pytest.raises(BadAmount):
        read_job("f", packed_job([("gpu", "x", number, 1)])).units("gpu", "n1")


def test_strings_of_the_users_are_never_taken_for_a_request() -> None:
    genuine = packed_job([("gpu", "4", 4.0, 1)])
    forged = [b"gpu", b"", b"\x014", b"hard resource list: gpu=4", genuine.replace(b"\0", b""), b"\n", b"\xff" * 5000]
    assert read_job("f", packed_job([], strings=forged)).requests == {}
    assert read_job("f", packed_job([("gpu", "1", 1.0, 1)], strings=forged)).units("gpu", "n1") == 1


def test_a_file_of_another_form_is_an_error_not_a_guess() -> None:
    data = packed_job([("gpu", "1", 1.0, 1)])
    read_job("f", data)
    others = [b"", b"\0" * 400, data[:-1], data + b"\0"]
    others += [data[:4] + b"\x10\x03" + data[6:], data[:12] + b"\0\0\0V" + data[16:]]
    for other in others + [data[:cut] for cut in range(0, len(data), 7)]:
        with pytest.raises(UnknownJobFile):
            read_job("f", other)


# -- the prolog -------------------------------------------------------------------------------------------------------


def test_a_job_gets_its_gpus_locked_and_named(node: LaidOutNode, tmp_path: Path) -> None:
    job = SgeJob(tmp_path / "spool", gpus=2)
    assert prolog(node, job) == 0
    assert node.held() == {0: "603", 1: "603"}
    exported = job.exported()
    assert exported["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert exported["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    for prefix in ("APPTAINERENV_", "SINGULARITYENV_"):
        assert exported[prefix + "CUDA_VISIBLE_DEVICES"] == "0,1"
        assert exported[prefix + "CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    owner = node.store.owners()[uuid(0)]
    assert (owner.user, owner.node, owner.units) == ("alice", "n1", (uuid(0), uuid(1)))
    assert kinds(node) == ["grant"]


def test_uuids_by_setting(tmp_path: Path) -> None:
    node = LaidOutNode(tmp_path, "sge", settings="hooks: {cuda_visible_devices: uuid}\n")
    job = SgeJob(tmp_path / "spool", gpus=1)
    assert prolog(node, job) == 0
    assert job.exported()["CUDA_VISIBLE_DEVICES"] == uuid(0)


def test_two_jobs_never_share_a_gpu_and_the_epilog_frees_only_its_own(node: LaidOutNode, tmp_path: Path) -> None:
    first = SgeJob(tmp_path / "spool", "1", gpus=2)
    second = SgeJob(tmp_path / "spool", "2", gpus=2)
    assert prolog(node, first) == prolog(node, second) == 0
    assert node.held() == {0: "1", 1: "1", 2: "2", 3: "2"}
    assert epilog(node, first, CUDA_VISIBLE_DEVICES="2,3") == 0
    assert node.held() == {2: "2", 3: "2"}
    assert epilog(node, first) == 0
    assert node.held() == {2: "2", 3: "2"}


# -- models and shares ------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> LaidOutNode:
    """GPU 0 and 1 are H100, 2 and 3 A100."""
    sge = "scheduler: {kind: sge, sge: {model_complex: gpu_model}}\n"
    node = LaidOutNode(tmp_path, "sge", settings="hooks: {wait_for_units: 0}\n")
    node.config.write_text(node.config.read_text().replace("scheduler: {kind: sge}\n", sge))
    node.compile()
    units = node.units()
    for unit in units:
        unit.model = "NVIDIA A100-SXM4-80GB" if unit.index > 1 else "NVIDIA H100 80GB HBM3"
    node.write_verdict(units=units)
    return node


def test_a_job_gets_gpus_of_the_model_it_asks_for(mixed: LaidOutNode, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    assert prolog(mixed, SgeJob(spool, "1", gpus=2, model="a100*")) == 0
    assert mixed.held() == {2: "1", 3: "1"}
    assert prolog(mixed, SgeJob(spool, "2", gpus=1, model="A100|V100")) == 99  # there are some, but not free
    assert prolog(mixed, SgeJob(spool, "3", gpus=1)) == 0
    assert mixed.held() == {2: "1", 3: "1", 0: "3"}
    assert epilog(mixed, SgeJob(spool, "1", gpus=2, model="a100*")) == 0
    assert mixed.held() == {0: "3"}


@pytest.mark.parametrize(("gpus", "model"), [(3, "A100"), (1, "V100"), (1, "(A100&!V100)")])
def test_a_model_that_the_node_can_never_give_is_the_jobs_mistake(
    mixed: LaidOutNode, tmp_path: Path, capfd: pytest.CaptureFixture[str], gpus: int, model: str
) -> None:
    assert prolog(mixed, SgeJob(tmp_path / "spool", gpus=gpus, model=model)) == 100
    assert model in capfd.readouterr().err
    assert mixed.held() == {} and kinds(mixed) == ["malformed_request"]


def test_a_model_out_of_service_sends_the_job_elsewhere(mixed: LaidOutNode, tmp_path: Path) -> None:
    with mixed.store.exclusive():
        mixed.store.retire(uuid(2), [("reason", "broken")])
    assert prolog(mixed, SgeJob(tmp_path / "spool", gpus=2, model="A100")) == 99
    assert kinds(mixed) == ["gave_back"] and mixed.held() == {}


def test_without_the_setting_no_model_is_read_from_a_job(node: LaidOutNode, tmp_path: Path) -> None:
    assert prolog(node, SgeJob(tmp_path / "spool", gpus=1, model="V100")) == 0


def shared(node: LaidOutNode, slots: int, index: int | None = None) -> None:
    """Let each GPU take so many jobs."""
    units = node.units()
    for unit in units:
        unit.slots, unit.memory = slots, 80 << 30
        unit.index = unit.index if index is None else index
    node.write_verdict(units=units)


def test_a_job_on_shares_sees_gpus_and_never_shares(node: LaidOutNode, tmp_path: Path) -> None:
    shared(node, 2)
    jobs = [SgeJob(tmp_path / "spool", str(job), gpus=2) for job in (1, 2)]
    assert [prolog(node, job) for job in jobs] == [0, 0]
    assert sorted(node.store.owners()) == [f"{uuid(gpu)}@{k}" for gpu in (0, 1) for k in (0, 1)]
    for job in jobs:
        assert job.exported()["CUDA_VISIBLE_DEVICES"] == "0,1"
        assert not any("MPS" in name for name in job.exported())
    shared(node, 2, index=-1)
    last = SgeJob(tmp_path / "spool", "3", gpus=1)
    assert prolog(node, last) == 0
    assert last.exported()["CUDA_VISIBLE_DEVICES"] == uuid(2)


def test_a_job_on_instances_sees_their_uuids(node: LaidOutNode, tmp_path: Path) -> None:
    whole, cut = node.units()[:2]
    instances = [UnitLine(f"MIG-{n}", -1, 1, "", "H100 MIG 3g", 0, (), "OK", "", cut.unit, (3, 4)) for n in "ab"]
    node.write_verdict(units=(whole, *instances))
    job = SgeJob(tmp_path / "spool", "1", gpus=3)
    assert prolog(node, job) == 0
    assert job.exported()["CUDA_VISIBLE_DEVICES"] == f"{uuid(0)},MIG-a,MIG-b"
    assert node.store.owners()["MIG-b"].gpus == (whole.unit, cut.unit, cut.unit)


@pytest.mark.parametrize(
    ("mps", "told"),
    [
        (
            "{enabled: true}",
            {
                "PIPE_DIRECTORY": "/tmp/nvidia-mps",
                "ACTIVE_THREAD_PERCENTAGE": "33",
                "PINNED_DEVICE_MEM_LIMIT": "0=27306M,1=27306M",
            },
        ),
        (
            "{enabled: true, pipe_directory: /run/mps, threads: all, memory: all}",
            {"PIPE_DIRECTORY": "/run/mps"},
        ),
        ("{enabled: false, pipe_directory: /run/mps}", {}),
    ],
)
def test_a_job_on_shares_is_told_of_mps_where_the_site_runs_it(tmp_path: Path, mps: str, told: dict[str, str]) -> None:
    node = LaidOutNode(tmp_path, "sge", settings=f"sharing: {{mps: {mps}}}\n")
    shared(node, 3)
    job = SgeJob(tmp_path / "spool", gpus=2)
    assert prolog(node, job) == 0
    exported = job.exported()
    for prefix in ("", "APPTAINERENV_", "SINGULARITYENV_"):
        begin = f"{prefix}CUDA_MPS_"
        assert {name.removeprefix(begin): exported[name] for name in exported if name.startswith(begin)} == told
    # the MPS server counts GPUs by its own order
    assert exported["CUDA_VISIBLE_DEVICES"] == (f"{uuid(0)},{uuid(1)}" if told else "0,1")
    shared(node, 1)
    whole = SgeJob(tmp_path / "spool", "9", gpus=1)
    assert prolog(node, whole) == 0
    assert not any("MPS" in name for name in whole.exported())


def test_array_tasks_are_jobs_of_their_own(node: LaidOutNode, tmp_path: Path) -> None:
    tasks = [SgeJob(tmp_path / "spool", "9", task, gpus=1) for task in ("1", "2", "3")]
    assert [prolog(node, task) for task in tasks] == [0, 0, 0]
    assert epilog(node, tasks[1]) == 0
    assert node.held() == {0: "9", 2: "9"}


def test_a_job_without_gpus_sees_none(node: LaidOutNode, tmp_path: Path) -> None:
    job = SgeJob(tmp_path / "spool", gpus=None)
    (job.directory / "environment").write_text("CUDA_VISIBLE_DEVICES=0\n")
    assert prolog(node, job) == 0
    assert job.exported()["CUDA_VISIBLE_DEVICES"] == "NoDevFiles"
    assert node.held() == {}


@pytest.mark.parametrize(("consumable", "held"), [(1, 3), (2, 1)])
def test_slots_count_for_a_consumable_of_each_slot(
    node: LaidOutNode, tmp_path: Path, consumable: int, held: int
) -> None:
    assert prolog(node, SgeJob(tmp_path / "spool", gpus=1, slots=3, consumable=consumable)) == 0
    assert len(node.held()) == held


def test_half_a_gpu_is_the_users_mistake(node: LaidOutNode, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = SgeJob(tmp_path / "spool")
    job.file.write_bytes(packed_job([("gpu", "0.5", 0.5, 1)]))
    assert prolog(node, job) == 100
    assert "no number of GPUs" in capfd.readouterr().err


def test_the_complex_may_have_another_name(tmp_path: Path) -> None:
    node = LaidOutNode(tmp_path, "sge", settings="")
    node.compile(**{"scheduler.sge.complex": "graphics"})
    assert prolog(node, SgeJob(tmp_path / "spool", gpus=2, name="graphics")) == 0
    assert len(node.held()) == 2


def test_more_than_the_node_has_is_the_users_mistake(
    node: LaidOutNode, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job = SgeJob(tmp_path / "spool", gpus=5)
    assert prolog(node, job) == 100
    assert "5 GPUs asked for; this node has 4" in capfd.readouterr().err
    assert node.held() == {}
    assert kinds(node) == ["malformed_request"]


@pytest.mark.parametrize("case", ["no units", "one failed", "unfit", "stale"])
def test_a_short_list_that_the_driver_may_be_to_blame_for_is_no_mistake_of_the_users(
    node: LaidOutNode, tmp_path: Path, case: str
) -> None:
    if case == "no units":
        node.gpus = 0
        node.write_verdict(node_state="UNKNOWN")
    elif case == "one failed":
        node.write_verdict({0: "FAILED"})
    else:
        node.write_verdict(**({"node_state": "FAILED"} if case == "unfit" else {}), age=0 if case == "unfit" else 3600)
    assert prolog(node, SgeJob(tmp_path / "spool", gpus=5)) == 99


def test_busy_units_send_the_job_back_without_a_word(
    node: LaidOutNode, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    node.hold([0, 1, 2], "sge", "1")
    assert prolog(node, SgeJob(tmp_path / "spool", gpus=2)) == 99
    assert node.held() == {0: "1", 1: "1", 2: "1"}
    assert capfd.readouterr() == ("", "")


def test_a_retired_unit_is_never_granted_and_the_fourth_refusal_stops_the_job(
    node: LaidOutNode, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with node.store.exclusive():
        node.store.retire(uuid(2), [("reason", "Xid 79")])
    job = SgeJob(tmp_path / "spool", gpus=4)
    assert [prolog(node, job) for _ in range(3)] == [99, 99, 99]
    assert capfd.readouterr().err == ""
    assert prolog(node, job) == 100
    assert "sent back 3 times" in capfd.readouterr().err
    assert node.held() == {}
    small = SgeJob(tmp_path / "spool", "604", gpus=3)
    assert prolog(node, small) == 0
    assert node.held() == {0: "604", 1: "604", 3: "604"}


def test_failed_and_unknown_units_are_not_granted_and_degraded_ones_last(node: LaidOutNode, tmp_path: Path) -> None:
    node.write_verdict({0: "FAILED", 1: "UNKNOWN", 2: "DEGRADED"})
    assert prolog(node, SgeJob(tmp_path / "spool", "1", gpus=1)) == 0
    assert node.held() == {3: "1"}
    assert prolog(node, SgeJob(tmp_path / "spool", "2", gpus=1)) == 0
    assert node.held() == {3: "1", 2: "2"}
    assert prolog(node, SgeJob(tmp_path / "spool", "3", gpus=1)) == 99


def test_an_unfit_node_sends_the_job_back(node: LaidOutNode, tmp_path: Path) -> None:
    node.write_verdict(node_state="FAILED", node_why="driver and library differ")
    assert prolog(node, SgeJob(tmp_path / "spool")) == 99
    assert node.held() == {}


def test_what_an_earlier_run_of_the_same_job_left_is_freed_first(node: LaidOutNode, tmp_path: Path) -> None:
    node.hold([0, 1, 2], "sge", "603")
    assert prolog(node, SgeJob(tmp_path / "spool", gpus=4)) == 0
    assert node.held() == dict.fromkeys(range(4), "603")


def test_a_stale_verdict_still_locks_and_says_so(node: LaidOutNode, tmp_path: Path) -> None:
    node.write_verdict(age=3600)
    assert prolog(node, SgeJob(tmp_path / "spool")) == 0
    assert len(node.held()) == 2
    assert kinds(node) == ["verdict_stale", "grant"]


def test_a_stale_verdict_refuses_where_the_site_wants_that(tmp_path: Path) -> None:
    node = LaidOutNode(tmp_path, "sge", settings="hooks: {on_internal_error: refuse}\n")
    node.write_verdict(age=3600)
    assert prolog(node, SgeJob(tmp_path / "spool")) == 99
    assert node.held() == {}


def test_without_verdict_or_configuration_a_gpu_job_goes_back_and_others_start(
    node: LaidOutNode, tmp_path: Path
) -> None:
    gpu_job, other = SgeJob(tmp_path / "spool", "1"), SgeJob(tmp_path / "spool", "2", gpus=None)
    node.state.remove("verdict")
    assert (prolog(node, gpu_job), prolog(node, other)) == (99, 0)
    assert kinds(node) == ["no_verdict", "no_verdict"]
    node.state.remove("hook.conf")
    assert (prolog(node, gpu_job), prolog(node, other)) == (99, 0)
    assert kinds(node) == ["no_hook_conf", "no_hook_conf"]


def test_a_configuration_of_an_older_release_stops_only_gpu_jobs_and_no_epilog(
    node: LaidOutNode, tmp_path: Path
) -> None:
    gpu_job, other = SgeJob(tmp_path / "spool", "1"), SgeJob(tmp_path / "spool", "2", gpus=None)
    assert prolog(node, gpu_job) == 0
    node.state.replace("hook.conf", "format=1\nroots.proc=/proc\n")
    assert epilog(node, gpu_job) == 0 and node.held() == {}
    assert (prolog(node, gpu_job), prolog(node, other)) == (99, 0)


def test_retiring_or_holding_a_gpu_takes_its_instances_along(node: LaidOutNode, tmp_path: Path) -> None:
    lines = node.units()
    for line in lines[:2]:
        line.unit = line.unit.replace("GPU", "MIG")
    node.units = lambda *_: lines  # type: ignore[method-assign]
    node.write_verdict()
    with node.store.exclusive():
        node.store.retire(uuid(0), [("reason", "x")])
    node.hold([1], "hold", "")
    assert prolog(node, SgeJob(tmp_path / "spool", gpus=2)) == 0
    owned = {unit for unit, owner in node.store.owners().items() if owner.job == "603"}
    assert owned == {uuid(2), uuid(3)}


def test_a_verdict_of_another_boot_counts_as_none(node: LaidOutNode, tmp_path: Path) -> None:
    text = node.state.read("verdict")
    node.state.replace("verdict", text.replace("boot_id=", "boot_id=other"))
    assert prolog(node, SgeJob(tmp_path / "spool")) == 99


def test_a_configuration_that_others_can_write_locks_nothing(
    node: LaidOutNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    monkeypatch.setattr("nodeagent.hook.boundary.complain", said.append)
    node.config.chmod(0o666)
    assert prolog(node, SgeJob(tmp_path / "spool")) == 99
    assert node.held() == {}
    assert len(said) == 1 and str(node.config) in said[0] and "others can write" in said[0]
    assert capfd.readouterr() == ("", "")


def test_a_spool_directory_that_is_not_this_jobs_is_refused(
    node: LaidOutNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodeagent.hook.boundary.complain", lambda words: None)
    job = SgeJob(tmp_path / "spool")
    for name, value in (
        ("SGE_JOB_SPOOL_DIR", str(tmp_path)),
        ("SGE_JOB_SPOOL_DIR", ""),
        ("JOB_ID", "603\n7"),
        ("JOB_ID", "../7"),
        ("SGE_TASK_ID", "1;2"),
    ):
        assert prolog(node, job, **{name: value}) == 99
    job.directory.chmod(0o777)
    assert prolog(node, job) == 99
    assert node.held() == {}


def test_an_environment_that_cannot_be_written_leaves_nothing_locked(
    node: LaidOutNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodeagent.hook.boundary.complain", lambda words: None)
    job = SgeJob(tmp_path / "spool")
    (job.directory / "environment").unlink()
    (job.directory / "environment").symlink_to("/etc/hostname")
    assert prolog(node, job) == 99
    assert node.held() == {}


def test_an_unknown_job_file_asks_qstat(node: LaidOutNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def answer(argv: tuple[str, ...], environment: dict[str, str], timeout: float) -> str:
        asked.append(argv)
        assert set(environment) == {"SGE_ROOT", "SGE_CELL", "SGE_ARCH"} and timeout <= 2
        return (
            "<detailed_job_info><djob_info><element><JB_job_number>603</JB_job_number><JB_owner>alice</JB_owner>"
            "<JB_hard_resource_list><qstat_l_requests><CE_name>gpu</CE_name><CE_doubleval>3.000000</CE_doubleval>"
            "<CE_consumable>1</CE_consumable></qstat_l_requests></JB_hard_resource_list>"
            "<VA_value>\x01</VA_value></element></djob_info></detailed_job_info>"
        )

    monkeypatch.setattr("nodeagent.scheduler.command.run", answer)
    job = SgeJob(tmp_path / "spool")
    job.file.write_bytes(b"another form")
    assert prolog(node, job) == 0
    assert len(node.held()) == 3
    assert asked == [("/usr/lib/gridengine/qstat", "-xml", "-j", "603")]


def test_an_error_of_the_fallback_sends_the_job_back(
    node: LaidOutNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise NodeAgentError("qstat")

    monkeypatch.setattr("nodeagent.scheduler.command.run", fail)
    monkeypatch.setattr("nodeagent.hook.boundary.complain", lambda words: None)
    job = SgeJob(tmp_path / "spool")
    job.file.unlink()
    assert prolog(node, job) == 99


# -- driver sets ------------------------------------------------------------------------------------------------------

BINDS = "/site/v1.2/bin:/nvbin:ro,/site/v1.2/lib:/nvlib:ro"


@pytest.fixture
def driver_node(tmp_path: Path) -> LaidOutNode:
    node = LaidOutNode(tmp_path, "sge", settings=f"roots: {{sys: {tmp_path}/sys}}\n")
    version = tmp_path / "sys" / "module" / "nvidia"
    version.mkdir(parents=True)
    (version / "version").write_text("1.2\n")
    node.write_verdict(driver="1.2", binds=BINDS)
    return node


def test_the_driver_set_is_bound_under_both_names(driver_node: LaidOutNode, tmp_path: Path) -> None:
    job = SgeJob(tmp_path / "spool", gpus=1)
    assert prolog(driver_node, job) == 0
    assert job.exported()["APPTAINER_BINDPATH"] == job.exported()["SINGULARITY_BINDPATH"] == BINDS


def test_the_users_own_binds_are_kept_and_nothing_is_added_twice(driver_node: LaidOutNode, tmp_path: Path) -> None:
    job = SgeJob(tmp_path / "spool", gpus=1)
    user = {"APPTAINER_BINDPATH": "/data,/mine:/nvlib", "SINGULARITY_BINDPATH": "/data,/scratch:/s:ro"}
    assert prolog(driver_node, job, **user) == 0
    expected = "/data,/mine:/nvlib,/scratch:/s:ro,/site/v1.2/bin:/nvbin:ro"
    assert job.exported()["APPTAINER_BINDPATH"] == job.exported()["SINGULARITY_BINDPATH"] == expected


def test_a_bind_path_of_several_lines_cannot_forge_the_environment(driver_node: LaidOutNode, tmp_path: Path) -> None:
    job = SgeJob(tmp_path / "spool", gpus=1)
    assert prolog(driver_node, job, APPTAINER_BINDPATH="/a\nCUDA_VISIBLE_DEVICES=0,1,2,3") == 0
    assert job.exported()["CUDA_VISIBLE_DEVICES"] == "0"
    assert "APPTAINER_BINDPATH" not in job.exported()


@pytest.mark.parametrize("over", [0, 1])
def test_no_line_is_longer_than_the_shepherd_reads(driver_node: LaidOutNode, tmp_path: Path, over: int) -> None:
    job = SgeJob(tmp_path / "spool", gpus=1)
    room = LONGEST_LINE - len(f"SINGULARITY_BINDPATH=,{BINDS}") + over
    assert prolog(driver_node, job, SINGULARITY_BINDPATH="é" * (room // 2) + "e" * (room % 2)) == 0
    assert ("SINGULARITY_BINDPATH" in job.exported()) == (not over)
    assert job.exported()["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_set_for_another_driver_than_runs_is_not_bound(driver_node: LaidOutNode, tmp_path: Path) -> None:
    (tmp_path / "sys" / "module" / "nvidia" / "version").write_text("1.3\n")
    job = SgeJob(tmp_path / "spool", gpus=1)
    assert prolog(driver_node, job) == 0
    assert "APPTAINER_BINDPATH" not in job.exported()


# -- the same job again -----------------------------------------------------------------------------------------------


@pytest.fixture
def with_processes(tmp_path: Path) -> LaidOutNode:
    """A node where a process of the job's user has GPU 1 open, and one of somebody else's GPU 0."""
    for name, uid, target in ((70, os.getuid(), "nvidia1"), (71, os.getuid() + 1, "nvidia0")):
        home = tmp_path / "proc" / str(name)
        (home / "fd").mkdir(parents=True)
        (home / "stat").write_text(f"{name} (a) S " + "0 " * 18 + "7 0 0\n")
        (home / "fd" / "3").symlink_to(tmp_path / "dev" / target)
        os.chown(home, uid, -1)
    (tmp_path / "proc/sys/kernel/random").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/random/boot_id").write_text(Path("/proc/sys/kernel/random/boot_id").read_text())
    (tmp_path / "dev").mkdir()
    for index, real in enumerate(("zero", "null", "full", "random")):
        (tmp_path / "dev" / f"nvidia{index}").symlink_to(f"/dev/{real}")
    roots = f"roots: {{proc: {tmp_path}/proc, dev: {tmp_path}/dev}}\n"
    return LaidOutNode(tmp_path, "sge", settings="hooks: {wait_for_units: 0}\n" + roots)


def held_earlier(node: LaidOutNode, index: int) -> None:
    """Leave the lock of an earlier run of job 603, of this user."""
    owner = Owner("sge", job="603", grant=f"earlier{index}", uid=str(os.getuid()), units=(uuid(index),))
    with node.store.exclusive():
        node.store.claim(owner)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="a process of another user: root only")


@as_root
def test_a_gpu_that_a_process_of_the_jobs_earlier_run_has_open_is_not_given_to_it_again(
    with_processes: LaidOutNode, tmp_path: Path
) -> None:
    node = with_processes
    for index in (0, 1):
        held_earlier(node, index)
    job = SgeJob(tmp_path / "spool", gpus=3)
    assert prolog(node, job) == 0
    assert job.exported()["CUDA_VISIBLE_DEVICES"] == "0,2,3"  # GPU 0 is open to somebody else only: monitoring
    assert node.store.owners()[uuid(1)].grant == "earlier1"
    assert kinds(node) == ["earlier_run_lives", "grant"]
    assert epilog(node, job) == 0
    assert node.held() == {}


@as_root
def test_too_few_gpus_beside_those_of_an_earlier_run_give_the_job_back(
    with_processes: LaidOutNode, tmp_path: Path
) -> None:
    held_earlier(with_processes, 1)
    assert prolog(with_processes, SgeJob(tmp_path / "spool", gpus=4)) == 99
    assert with_processes.held() == {1: "603"}
