"""Slurm's hooks: Slurm decides, the lock records; a step's binding is never widened."""

from pathlib import Path

import pytest

from nodeagent.errors import BadRequest, CommandFailed
from nodeagent.hook import slurm
from nodeagent.state import events
from nodeagent.state.hook_conf import HOOK_CONF, Gres, read_hook_conf
from nodeagent.state.verdict_file import UnitLine
from tests.support import LaidOutNode, uuid


class Commands:
    """Stands in for Slurm's commands: records what was run and fails where it is told to."""

    def __init__(self) -> None:
        self.run: list[tuple[str, ...]] = []
        self.fail: set[str] = set()
        self.status: int | None = 1

    def __call__(self, argv: tuple[str, ...], environment: dict[str, str], timeout: float) -> str:
        assert timeout <= 2 and argv[0].startswith("/")
        self.run.append((argv[0].rpartition("/")[2], *argv[1:]))
        if argv[1] in self.fail:
            raise CommandFailed(argv, self.status, "Only batch jobs are accepted")
        return ""


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    monkeypatch.setattr("nodeagent.scheduler.command.run", commands)
    return commands


@pytest.fixture
def node(tmp_path: Path) -> LaidOutNode:
    return LaidOutNode(tmp_path, "slurm")


def environ(job: str = "12", gpus: str = "0,1") -> dict[str, str]:
    return {
        "SLURM_JOB_ID": job,
        "SLURM_JOB_GPUS": gpus,
        "SLURM_JOB_UID": "1000",
        "SLURM_JOB_USER": "alice",
        "SLURM_CLUSTER_NAME": "lab",
        "SLURM_JOB_RESTART_COUNT": "0",
    }


def prolog(node: LaidOutNode, **kwargs: str) -> int:
    return slurm.run_prolog(["--config", str(node.config)], environ(**kwargs))


def epilog(node: LaidOutNode, job: str = "12") -> int:
    return slurm.run_epilog(["--config", str(node.config)], {**environ(job), "SLURM_JOB_RESTART_COUNT": "1"})


def test_the_job_that_holds_a_retired_gpu_is_let_be(node: LaidOutNode, commands: Commands) -> None:
    with node.store.exclusive():
        node.store.retire(uuid(1), {"reason": "a test"}.items())
    holder = {**environ(gpus="1"), "SLURM_JOB_UID": "0", "SLURM_JOB_PARTITION": "gpuhold"}
    config = ["--config", str(node.config)]
    assert slurm.run_prolog(config, holder) == slurm.run_epilog(config, holder) == 0
    assert (node.held(), commands.run, recorded(node)) == ({}, [], {})
    for other in ({"SLURM_JOB_UID": "1000"}, {"SLURM_JOB_PARTITION": "main"}):
        assert slurm.run_prolog(config, {**holder, **other}) == 0
        assert commands.run.pop() == ("scontrol", "requeue", "12"), f"{other} is a job like any other"


def test_an_older_hook_conf_knows_of_no_holder(node: LaidOutNode) -> None:
    conf = read_hook_conf(node.state)
    del conf.settings["scheduler.slurm.hold_partition"]
    node.state.replace(HOOK_CONF, conf.encode())
    root = {**environ(gpus="1"), "SLURM_JOB_UID": "0"}
    assert slurm.run_prolog(["--config", str(node.config)], root) == 0
    assert node.held() == {1: "12"}


def recorded(node: LaidOutNode) -> dict[str, str]:
    return {event.kind: event.fields.get("why", event.fields.get("units", "")) for event in events.take(node.state)}


@pytest.mark.parametrize(
    ("text", "indices"), [("0", [0]), ("0,2", [0, 2]), ("0-3", [0, 1, 2, 3]), ("1,3-4", [1, 3, 4]), ("1,1", [1])]
)
def test_lists_of_indices(text: str, indices: list[int]) -> None:
    assert slurm.parse_indices(text) == indices


@pytest.mark.parametrize("text", ["a", "0,", "-1", "0;rm", "0-", "99999", "0-9999", "٣", "0\n1", "1" * 100000])
def test_malformed_lists(text: str) -> None:
    with pytest.raises(BadRequest):
        slurm.parse_indices(text)


def test_the_grant_is_recorded_and_released(node: LaidOutNode) -> None:
    assert prolog(node, gpus="1,3") == 0
    assert node.held() == {1: "12", 3: "12"}
    owner = node.store.owners()[uuid(1)]
    assert (owner.scheduler, owner.cluster, owner.node) == ("slurm", "lab", "n1")
    assert (owner.user, owner.uid) == ("alice", "1000")
    assert epilog(node, "13") == 0
    assert node.held() == {1: "12", 3: "12"}
    assert epilog(node) == epilog(node) == 0
    assert node.held() == {}


def test_indices_are_mapped_by_what_slurmd_said(node: LaidOutNode) -> None:
    node.compile(gres={0: 2, 1: 3})
    assert prolog(node, gpus="0,1") == 0
    assert node.held() == {2: "12", 3: "12"}


def test_an_index_that_means_no_gpu_is_told_and_the_rest_recorded(node: LaidOutNode) -> None:
    assert prolog(node, gpus="0,9") == 0
    assert node.held() == {0: "12"}
    assert "9" in recorded(node)["unmapped"]


def test_a_job_without_gpus_takes_none(node: LaidOutNode) -> None:
    assert prolog(node, gpus="") == 0
    assert node.held() == {} and recorded(node) == {}


@pytest.mark.parametrize("gpus", ["zero", "0;1", "1" * 100000])
def test_a_malformed_request_is_recorded_and_drains_nothing(node: LaidOutNode, gpus: str) -> None:
    assert prolog(node, gpus=gpus) == 0
    assert node.held() == {}
    assert "SLURM_JOB_GPUS" in recorded(node)["malformed_request"]


def test_slurms_word_stands_over_a_lock_and_the_disagreement_is_told(node: LaidOutNode) -> None:
    node.hold([1], job="7")
    assert prolog(node, gpus="0,1") == 0
    assert node.held() == {0: "12", 1: "7"}
    assert "slurm 7" in recorded(node)["conflict"]


def test_a_requeued_job_under_the_same_id_finds_its_units(node: LaidOutNode) -> None:
    assert prolog(node, gpus="0,1") == 0
    assert prolog(node, gpus="1,2") == 0
    assert node.held() == {1: "12", 2: "12"}


def test_a_retired_unit_gives_the_batch_job_back_with_nothing_locked(node: LaidOutNode, commands: Commands) -> None:
    with node.store.exclusive():
        node.store.retire(uuid(1), [("reason", "GPU1 Xid 79")])
    assert prolog(node, gpus="0,1") == 0
    assert node.held() == {}
    assert commands.run == [("scontrol", "requeue", "12")]
    assert "GPU1 Xid 79" in recorded(node)["gave_back"]


def test_an_interactive_job_is_told_and_cancelled(node: LaidOutNode, commands: Commands) -> None:
    node.write_verdict({0: "FAILED"})
    commands.fail.add("requeue")
    assert prolog(node, gpus="0") == 0
    ran = [run[:2] for run in commands.run]
    assert ran == [("scontrol", "requeue"), ("scontrol", "notify"), ("scancel", "12")]
    assert node.held() == {}


def test_a_controller_that_does_not_answer_never_costs_a_job_its_life(node: LaidOutNode, commands: Commands) -> None:
    node.write_verdict({0: "FAILED"})
    commands.fail.add("requeue")
    commands.status = None
    assert prolog(node, gpus="0") == 0
    assert commands.run == [("scontrol", "requeue", "12")]


def test_a_unit_held_by_hand_gives_the_job_back(node: LaidOutNode, commands: Commands) -> None:
    node.hold([1], scheduler="maintenance", job="")
    assert prolog(node, gpus="0,1") == 0
    assert commands.run == [("scontrol", "requeue", "12")]
    assert node.held() == {1: ""}


def test_without_an_agent_the_job_goes_back_where_the_site_wants_that(tmp_path: Path, commands: Commands) -> None:
    node = LaidOutNode(tmp_path, "slurm", settings="hooks: {on_internal_error: refuse}\n")
    node.write_verdict(age=3600)
    assert prolog(node) == 0
    assert commands.run == [("scontrol", "requeue", "12")] and node.held() == {}


def test_an_unfit_node_gives_the_job_back(node: LaidOutNode, commands: Commands) -> None:
    node.write_verdict(node_state="FAILED", node_why="driver and library differ")
    assert prolog(node) == 0
    assert commands.run == [("scontrol", "requeue", "12")]
    assert node.held() == {}


def test_a_stale_verdict_fails_nobody(node: LaidOutNode, commands: Commands) -> None:
    node.write_verdict({0: "FAILED"}, age=3600, node_state="FAILED")
    assert prolog(node, gpus="0") == 0
    assert node.held() == {0: "12"}
    assert commands.run == []
    assert "old" in recorded(node)["verdict_stale"]


def test_without_anything_the_job_starts(node: LaidOutNode) -> None:
    node.state.remove("hook.conf")
    assert prolog(node) == epilog(node) == 0
    assert "hook.conf" in recorded(node)["no_hook_conf"]


@pytest.mark.parametrize("damage", ["missing", "format=2\n", "format=1\n"])
def test_the_epilog_frees_however_broken_the_configuration_is(node: LaidOutNode, damage: str) -> None:
    assert prolog(node) == 0
    node.state.remove("hook.conf")
    if damage != "missing":
        node.state.replace("hook.conf", damage)
    assert epilog(node) == 0
    assert node.held() == {}


def test_a_job_of_the_same_number_in_another_cluster_keeps_its_units(node: LaidOutNode) -> None:
    assert prolog(node, gpus="0") == 0
    arguments = ["--config", str(node.config)]
    assert slurm.run_epilog(arguments, {**environ(), "SLURM_CLUSTER_NAME": "other"}) == 0
    assert node.held() == {0: "12"}


def test_an_agents_wrong_command_line_fails_no_task() -> None:
    assert slurm.run_task_prolog(["--conf", "x"], {"SLURM_JOB_GPUS": "0"}) == 0


def test_our_own_bug_drains_nothing(
    node: LaidOutNode, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    monkeypatch.setattr("nodeagent.hook.boundary.complain", said.append)
    monkeypatch.setattr("nodeagent.hook.prolog.record", lambda *_: 1 // 0)
    assert prolog(node) == 0
    assert "ZeroDivisionError" in said[0]
    assert capfd.readouterr().err.count("\n") == 1


# -- shares and instances ---------------------------------------------------------------------------------------------


def test_jobs_on_slurms_shards_of_one_gpu_are_recorded_without_a_conflict(node: LaidOutNode) -> None:
    node.compile(gres={0: Gres(0, (), 2), 1: Gres(1)})
    assert [prolog(node, job=job, gpus="0") for job in ("12", "13")] == [0, 0]
    assert {unit: owner.job for unit, owner in node.store.owners().items()} == {
        f"{uuid(0)}@0": "12",
        f"{uuid(0)}@1": "13",
    }
    assert "conflict" not in recorded(node)
    assert prolog(node, job="14", gpus="0,1") == 0  # one more than there are shards
    assert "slurm 12" in recorded(node)["conflict"]
    assert set(node.store.owners()) == {f"{uuid(0)}@0", f"{uuid(0)}@1", uuid(1)}
    assert epilog(node, "12") == epilog(node, "14") == 0
    assert set(node.store.owners()) == {f"{uuid(0)}@1"}


def test_a_gpu_that_gres_conf_names_twice_is_one_unit(node: LaidOutNode) -> None:
    node.compile(gres={0: 0, 1: 0})
    assert prolog(node, gpus="0,1") == 0
    assert node.held() == {0: "12"}


@pytest.fixture
def cut_up(node: LaidOutNode) -> LaidOutNode:
    """GPU 2 is in MIG mode; Slurm knows its two instances as indices 2 and 3."""
    units = list(node.units())
    for name, caps in (("MIG-a", (21, 22)), ("MIG-b", (30, 31))):
        units.append(UnitLine(name, -1, 2, units[2].bus_id, "H100 MIG 3g.40gb", 0, (), "OK", "", uuid(2), caps))
    del units[2]
    node.write_verdict(units=tuple(units))
    node.compile(gres={0: 0, 1: 1, 2: Gres(2, (21, 22)), 3: Gres(2, (31, 30)), 4: 2, 5: Gres(2, (40, 41))})
    return node


def test_an_instance_is_known_by_its_capability_files(cut_up: LaidOutNode) -> None:
    assert prolog(cut_up, job="12", gpus="1,3") == 0
    assert prolog(cut_up, job="13", gpus="2") == 0
    held = {unit: owner.job for unit, owner in cut_up.store.owners().items()}
    assert held == {uuid(1): "12", "MIG-b": "12", "MIG-a": "13"}
    assert cut_up.store.owners()["MIG-a"].gpus == (uuid(2),)
    assert prolog(cut_up, job="14", gpus="4,5") == 0  # the GPU as a whole, and an instance that is no more
    assert recorded(cut_up)["unmapped"].endswith("4,5") and "14" not in {o.job for o in cut_up.store.owners().values()}


def test_a_task_on_an_instance_is_told_its_uuid(cut_up: LaidOutNode, capfd: pytest.CaptureFixture[str]) -> None:
    assert task(cut_up, capfd, CUDA_VISIBLE_DEVICES="3", SLURM_JOB_GPUS="3")["CUDA_VISIBLE_DEVICES"] == "MIG-b"


# -- TaskProlog -------------------------------------------------------------------------------------------------------


def task(node: LaidOutNode, capfd: pytest.CaptureFixture[str], **environment: str) -> dict[str, str]:
    assert slurm.run_task_prolog(["--config", str(node.config)], environment) == 0
    lines = capfd.readouterr().out.splitlines()
    assert all(line.startswith("export ") for line in lines)
    return dict(line[len("export ") :].split("=", 1) for line in lines)


def test_the_twins_reach_the_task(node: LaidOutNode, capfd: pytest.CaptureFixture[str]) -> None:
    out = task(node, capfd, CUDA_VISIBLE_DEVICES="0,1", SLURM_JOB_GPUS="0,1")
    assert out["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert out["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert out["APPTAINERENV_CUDA_VISIBLE_DEVICES"] == out["SINGULARITYENV_CUDA_VISIBLE_DEVICES"] == "0,1"


def test_a_step_is_never_given_more_than_slurm_gave_it(node: LaidOutNode, capfd: pytest.CaptureFixture[str]) -> None:
    out = task(node, capfd, CUDA_VISIBLE_DEVICES="2", SLURM_STEP_GPUS="2", SLURM_JOB_GPUS="0,1,2,3")
    assert {value for name, value in out.items() if name.endswith("VISIBLE_DEVICES")} == {"2"}


def test_gres_indices_become_cudas_where_devices_are_not_constrained(
    node: LaidOutNode, capfd: pytest.CaptureFixture[str]
) -> None:
    node.compile(gres={0: 2, 1: 3})
    assert task(node, capfd, CUDA_VISIBLE_DEVICES="0", SLURM_STEP_GPUS="0")["CUDA_VISIBLE_DEVICES"] == "2"
    node.compile(gres={0: 2, 1: 3}, **{"scheduler.slurm.constrains_devices": "yes"})
    assert task(node, capfd, CUDA_VISIBLE_DEVICES="0", SLURM_STEP_GPUS="0")["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_value_that_slurm_did_not_set_is_left_alone(node: LaidOutNode, capfd: pytest.CaptureFixture[str]) -> None:
    out = task(node, capfd, SLURM_GPUS_ON_NODE="4")
    assert not any(name.endswith("VISIBLE_DEVICES") for name in out)
    out = task(node, capfd, CUDA_VISIBLE_DEVICES=uuid(1), SLURM_STEP_GPUS="1")
    assert out["CUDA_VISIBLE_DEVICES"] == uuid(1)


def test_a_job_without_gpus_sees_none_whatever_it_brought_along(
    node: LaidOutNode, capfd: pytest.CaptureFixture[str]
) -> None:
    assert task(node, capfd, CUDA_VISIBLE_DEVICES="0", SLURM_JOB_ID="1")["CUDA_VISIBLE_DEVICES"] == "NoDevFiles"


def test_the_driver_set_reaches_the_task(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    node = LaidOutNode(tmp_path, "slurm", settings=f"roots: {{sys: {tmp_path}/sys}}\n")
    (tmp_path / "sys/module/nvidia").mkdir(parents=True)
    (tmp_path / "sys/module/nvidia/version").write_text("1.2\n")
    node.write_verdict(driver="1.2", binds="/s/v1.2:/nvbin:ro,/s/v1.2:/nvlib:ro")
    out = task(node, capfd, CUDA_VISIBLE_DEVICES="0", SLURM_JOB_GPUS="0", APPTAINER_BINDPATH="/data")
    assert out["APPTAINER_BINDPATH"] == out["SINGULARITY_BINDPATH"] == "/data,/s/v1.2:/nvbin:ro,/s/v1.2:/nvlib:ro"
    assert "APPTAINER_BINDPATH" not in task(node, capfd, SLURM_JOB_ID="1")


def test_a_malformed_request_fails_the_task_with_a_message(
    node: LaidOutNode, capfd: pytest.CaptureFixture[str]
) -> None:
    assert slurm.run_task_prolog(["--config", str(node.config)], {"SLURM_JOB_GPUS": "0;1"}) == 1
    captured = capfd.readouterr()
    assert captured.out == "" and "SLURM_JOB_GPUS" in captured.err and captured.err.count("\n") == 1


def test_a_node_that_was_never_configured_fails_no_task(node: LaidOutNode, capfd: pytest.CaptureFixture[str]) -> None:
    node.state.remove("hook.conf")
    assert task(node, capfd, CUDA_VISIBLE_DEVICES="0", SLURM_JOB_GPUS="0") == {}
