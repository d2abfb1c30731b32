"""Slave hosts of Grid Engine's parallel jobs, and the login shells that find their job."""

import os
from pathlib import Path

import pytest

from nodeagent.errors import UntrustedFile
from nodeagent.hook import sge_slave
from nodeagent.hook.sge_job import JOB_FIELDS, UnknownJobFile, read_job
from nodeagent.hook.sge_login import in_job, remember_spool, run_login
from nodeagent.lock.occupancy import with_slots
from nodeagent.state import events
from tests.sge_files import SgeJob, SlaveTask, packed_job
from tests.support import LaidOutNode, uuid


@pytest.fixture
def node(tmp_path: Path) -> LaidOutNode:
    return LaidOutNode(tmp_path, "sge", settings="hooks: {wait_for_units: 0}\n")


def prepare(node: LaidOutNode, task: SlaveTask) -> dict[str, str]:
    sge_slave._prepare(["--config", str(node.config)], str(task.place))
    return task.exported()


def kinds(node: LaidOutNode) -> list[str]:
    return [event.kind for event in events.take(node.state)]


def test_the_job_file_of_a_slave_host_describes_its_fields() -> None:
    requests = [("gpu", "1", 1.0, 1)]
    job = read_job("f", packed_job(requests, (("n1", 2),), described=JOB_FIELDS))
    assert job.units("gpu", "n1") == 2
    with pytest.raises(UnknownJobFile):
        read_job("f", packed_job(requests, described=JOB_FIELDS[:-1] + "S"))


def test_the_first_task_locks_and_the_others_share_its_grant(node: LaidOutNode, tmp_path: Path) -> None:
    task = SlaveTask(tmp_path / "spool")
    assert prepare(node, task)["CUDA_VISIBLE_DEVICES"] == "0,1"
    owner = node.store.owners()[uuid(0)]
    assert (owner.run, owner.user, owner.units) == (str(task.directory), "alice", (uuid(0), uuid(1)))
    assert prepare(node, task.another(2))["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert {held.grant for held in node.store.owners().values()} == {owner.grant}
    assert kinds(node) == ["grant"]


def test_later_tasks_have_the_same_units_whatever_is_free_by_now(node: LaidOutNode, tmp_path: Path) -> None:
    task = SlaveTask(tmp_path / "spool")
    node.hold([0], "sge", "7")
    assert prepare(node, task)["CUDA_VISIBLE_DEVICES"] == "1,2"
    with node.store.exclusive():
        node.store.release(lambda owner: owner.job == "7")
    assert prepare(node, task.another(2))["CUDA_VISIBLE_DEVICES"] == "1,2"
    assert node.held() == {1: "603", 2: "603"}


def test_what_an_earlier_run_left_is_not_taken_for_this_runs(node: LaidOutNode, tmp_path: Path) -> None:
    task = SlaveTask(tmp_path / "spool", slots=1)
    node.hold([0, 1, 2], "sge", "603")
    assert prepare(node, task)["CUDA_VISIBLE_DEVICES"] == "0"
    assert node.held() == {0: "603"}
    assert node.store.owners()[uuid(0)].grant == os.readlink(task.directory / sge_slave.GRANT_LINK)


def test_half_a_grant_is_of_a_killed_task_and_taken_anew(node: LaidOutNode, tmp_path: Path) -> None:
    task = SlaveTask(tmp_path / "spool")
    assert prepare(node, task)["CUDA_VISIBLE_DEVICES"] == "0,1"
    first = node.store.owners()[uuid(1)]
    with node.store.exclusive():
        node.store.release(lambda owner: owner.grant == first.grant)
        whole, first.units = first.units, (uuid(3),)
        node.store.claim(first)
    lock = node.state_dir / "locks" / uuid(3) / "owner"
    lock.write_text(lock.read_text().replace(f"units={uuid(3)}", f"units={' '.join([uuid(3), whole[0]])}"))
    assert prepare(node, task.another(2))["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert node.held() == {0: "603", 1: "603"}


def test_a_gpu_that_has_vanished_stays_the_jobs(node: LaidOutNode, tmp_path: Path) -> None:
    task = SlaveTask(tmp_path / "spool")
    prepare(node, task)
    node.gpus = 1
    node.write_verdict()
    assert prepare(node, task.another(2))["CUDA_VISIBLE_DEVICES"] == "0"
    node.gpus = 4
    assert node.held() == {0: "603", 1: "603"}


def test_a_job_consumable_is_of_the_master_host_only(node: LaidOutNode, tmp_path: Path) -> None:
    assert prepare(node, SlaveTask(tmp_path / "spool", consumable=2))["CUDA_VISIBLE_DEVICES"] == "NoDevFiles"
    assert node.held() == {}


def test_a_task_beside_the_master_has_what_the_prolog_locked(node: LaidOutNode, tmp_path: Path) -> None:
    task = SlaveTask(tmp_path / "spool")
    (task.directory / "config").write_text("")
    assert prepare(node, task)["CUDA_VISIBLE_DEVICES"] == "NoDevFiles"
    node.hold([2], "sge", "603")
    assert prepare(node, task)["CUDA_VISIBLE_DEVICES"] == "2"
    assert node.held() == {2: "603"}


def test_tasks_of_a_job_on_shares_are_told_of_their_gpus(node: LaidOutNode, tmp_path: Path) -> None:
    node.write_verdict(units=tuple(with_slots(unit, 2) for unit in node.units()))
    task = SlaveTask(tmp_path / "spool")
    first = prepare(node, task)["CUDA_VISIBLE_DEVICES"]
    assert prepare(node, task.another(2))["CUDA_VISIBLE_DEVICES"] == first
    assert len(node.store.owners()) == 2


def test_a_task_whose_units_are_not_there_sees_none(node: LaidOutNode, tmp_path: Path) -> None:
    node.hold([0, 1, 2], "sge", "7")
    assert prepare(node, SlaveTask(tmp_path / "spool"))["CUDA_VISIBLE_DEVICES"] == "NoDevFiles"
    assert kinds(node) == ["slave_without_units"]
    assert set(node.held().values()) == {"7"}


def test_a_failure_of_ours_shows_no_gpu(node: LaidOutNode, tmp_path: Path) -> None:
    task = SlaveTask(tmp_path / "spool")
    task.file.write_bytes(b"of another release")
    node.compile(**{"scheduler.sge.bin_dir": "/nowhere"})
    with pytest.raises(Exception, match="qstat"):
        prepare(node, task)
    assert task.exported()["CUDA_VISIBLE_DEVICES"] == "NoDevFiles"


@pytest.mark.parametrize(
    "forged", ["JOB_ID=7\nSGE_TASK_ID=1\nNSLOTS=4\n", "SGE_JOB_SPOOL_DIR=/tmp\n", "X=\udcff\n=\nno name\n"]
)
def test_the_environment_says_nothing_of_which_job_it_is(node: LaidOutNode, tmp_path: Path, forged: str) -> None:
    task = SlaveTask(tmp_path / "spool")
    file = task.place / "environment"
    file.write_bytes(file.read_bytes() + forged.encode("utf-8", "surrogateescape"))
    prepare(node, task)
    assert node.held() == {0: "603", 1: "603"}


def test_an_environment_too_large_to_be_read_shows_no_gpu(node: LaidOutNode, tmp_path: Path) -> None:
    task = SlaveTask(tmp_path / "spool")
    file = task.place / "environment"
    file.write_text(f"X={'x' * (2 << 20)}\n{file.read_text()}")
    with pytest.raises(UntrustedFile, match="larger"):
        prepare(node, task)
    assert task.exported()["CUDA_VISIBLE_DEVICES"] == "NoDevFiles"
    assert node.held() == {}


def test_a_job_itself_is_its_prologs_business(node: LaidOutNode, tmp_path: Path) -> None:
    job = SgeJob(tmp_path / "spool")
    sge_slave._prepare(["--config", str(node.config)], str(job.directory))
    assert job.exported() == {"HOME": "/home/alice"}
    assert node.held() == {}


# -- login shells -----------------------------------------------------------------------------------------------------


class Login:
    """A job with a group of its own, and what a shell of that group is told."""

    def __init__(self, node: LaidOutNode, spool: Path, group: int = 20007) -> None:
        self.node = node
        self.place = SgeJob(spool).directory
        (self.place / "addgrpid").write_text(f"{group}\n")
        (self.place / "error").write_text("")
        remember_spool(node.state, str(spool))

    def told(self, *words: str, group: int = 20007, uid: "int | None" = None) -> str:
        user = os.getuid() if uid is None else uid
        return run_login([*words, "--config", str(self.node.config)], [100, group], user)

    def environment(self, text: str) -> None:
        (self.place / "environment").write_text(text)


def test_a_login_shell_is_told_of_its_own_job_only(node: LaidOutNode, tmp_path: Path) -> None:
    login = Login(node, tmp_path / "spool")
    login.environment("CUDA_VISIBLE_DEVICES=3\nPATH=/trap\nCUDA_DEVICE_ORDER=PCI_BUS_ID\nCUDA_VISIBLE_DEVICES=0,1\n")
    said = "export CUDA_VISIBLE_DEVICES='0,1'\nexport CUDA_DEVICE_ORDER='PCI_BUS_ID'\n"
    assert login.told() == said
    assert login.told("csh") == said.replace("export ", "setenv ").replace("='", " '").replace("\n", ";\n")
    assert login.told(group=20008) == ""
    assert login.told(uid=os.getuid() + 1) == ""


def test_a_slave_task_has_a_group_of_its_own(node: LaidOutNode, tmp_path: Path) -> None:
    login = Login(node, tmp_path / "spool")
    task = login.place / "1.n1"
    task.mkdir()
    (task / "addgrpid").write_text("20009")
    (task / "error").write_text("")
    (task / "environment").write_text("CUDA_VISIBLE_DEVICES=2\n")
    assert login.told(group=20009) == "export CUDA_VISIBLE_DEVICES='2'\n"


def test_only_below_a_shepherd_is_a_spool_directory_asked(tmp_path: Path) -> None:
    rows = {
        1: ("init", 0),
        7: ("sshd", 1),
        8: ("bash", 7),
        20: ("sge_shepherd", 1),
        21: ("-ba sh) (x", 20),
        30: ("a", 29),
    }
    for pid, (name, parent) in rows.items():
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} 0 0\n")
    assert [in_job(str(tmp_path), pid) for pid in (8, 21, 20, 30, 1)] == [False, True, True, False, False]


def test_nothing_of_a_value_is_run_by_the_shell(node: LaidOutNode, tmp_path: Path) -> None:
    login = Login(node, tmp_path / "spool")
    login.environment("APPTAINER_BINDPATH=a'; touch /x; '!b\nSINGULARITY_BINDPATH=\x1b[2J\n")
    assert login.told() == "export APPTAINER_BINDPATH='a'\\''; touch /x; '\\''!b'\n"
    assert login.told("csh") == "setenv APPTAINER_BINDPATH 'a'\\''; touch /x; '\\''\\!b';\n"


def test_the_spool_directory_is_written_down_once(node: LaidOutNode) -> None:
    for spool in ("/a", "/a", "/b"):
        remember_spool(node.state, spool)
        written = (node.state_dir / "sge-spool").stat().st_ino
        remember_spool(node.state, spool)
        assert (node.state_dir / "sge-spool").stat().st_ino == written
    assert "spool=/b\n" in (node.state_dir / "sge-spool").read_text()
