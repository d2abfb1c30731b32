"""Rights and reach, as the doctor tells them: each answer of a scheduler, and what is not asked after a bad one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.config.model import Scheduler, Sge, Slurm
from nodeagent.doctor import sge_rights, slurm_rights
from nodeagent.doctor.line import FAIL, OK, WARN, Line, Look
from nodeagent.errors import CommandFailed
from tests.unit.test_doctor import look

UP = "Slurmctld(primary) at vm is UP\n"
NO_NODE = "slurm_update error: Invalid node name specified\n"
SENSOR = "load_sensor                  /usr/libexec/gpu-nodeagent/sge-sensor\n"
REFUSED = "error: commlib error: got select error (Connection refused)"


class Answers:
    """Answers by the beginning of a command's words: a text, or a CommandFailed to raise."""

    def __init__(self, **answers: str | CommandFailed) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def __call__(self, argv: Sequence[str]) -> str:
        words = "_".join([argv[0].rpartition("/")[2], *argv[1:]]).replace("-", "")
        self.asked.append(words)
        found = [answer for key, answer in self.answers.items() if f"{words}_".startswith(f"{key}_")]
        if not found:
            raise AssertionError(words)
        if isinstance(found[0], CommandFailed):
            raise found[0]
        return found[0]


def failed(words: str, status: int | None = 1) -> CommandFailed:
    return CommandFailed(["/x"], status, words)


def slurm(place: Path, user: str = "root", **answers: str | CommandFailed) -> list[Line]:
    known = {"scontrol_ping": UP, "sinfo": "idle\n", "scontrol_update": failed(NO_NODE), **answers}
    settings = Slurm(bin_dir=str(place), sbin_dir=str(place))
    return list(slurm_rights.rights(on(look("slurm", ask=Answers(**known), user=user), slurm=settings)))


def on(seen: Look, **settings: object) -> Look:
    scheduler = Scheduler(kind=seen.config.scheduler.kind, **settings)  # type: ignore[arg-type]
    return replace(seen, config=replace(seen.config, scheduler=scheduler))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("scontrol", "sinfo", "squeue", "slurmd", "qconf", "qhost", "qmod", "qselect"):
        (tmp_path / name).touch(mode=0o755)
    common = tmp_path / "default/common"
    common.mkdir(parents=True)
    (common / "bootstrap").write_text("# a comment\nadmin_user root\nsecurity_mode none\n")
    return tmp_path


def test_slurm_that_lets_root_drain_is_well(place: Path) -> None:
    lines = slurm(place)
    assert [(line.name, line.state) for line in lines] == [
        ("slurm-commands", OK),
        ("slurm-controller", OK),
        ("slurm-node", OK),
        ("slurm-drain-right", OK),
    ]
    assert lines[-1].evidence == "root may drain and resume nodes"


@pytest.mark.parametrize("words", ["Invalid user id", "Access/permission denied"])
def test_a_user_without_the_right_is_told_what_gives_it(place: Path, words: str) -> None:
    line = slurm(place, "alice", scontrol_update=failed(f"slurm_update error: {words}\n"))[-1]
    assert (line.name, line.state) == ("slurm-drain-right", FAIL)
    assert "as root" in line.remedy and "name=alice set adminlevel=Admin" in line.remedy


def test_the_request_is_for_a_node_that_there_is_not(place: Path) -> None:
    answers = Answers(scontrol_ping=UP, sinfo="idle\n", scontrol_update=failed(NO_NODE))
    settings = Slurm(bin_dir=str(place), sbin_dir=str(place))
    list(slurm_rights.rights(on(look("slurm", ask=answers), slurm=settings)))
    assert [words for words in answers.asked if "update" in words] == [
        "scontrol_update_nodename=gpunodeagentdoctor_state=resume"
    ]


@pytest.mark.parametrize("answer", ["", failed("slurm_update error: something new\n"), failed("", None)])
def test_an_answer_that_nobody_knows_is_no_right(place: Path, answer: str | CommandFailed) -> None:
    line = slurm(place, scontrol_update=answer)[-1]
    assert line.state == WARN and "not known" in line.evidence and line.remedy


def test_a_controller_that_is_away_ends_the_questions(place: Path) -> None:
    down = slurm(place, scontrol_ping=failed("Slurmctld(primary) at vm is DOWN\n"))[-1]
    assert (down.name, down.state) == ("slurm-controller", FAIL) and "slurmctld" in down.remedy
    late = slurm(place, scontrol_ping=failed("", None))[-1]
    assert (late.name, late.state) == ("slurm-controller", FAIL) and "timed out" in late.evidence
    second = slurm(place, scontrol_ping=failed("Slurmctld(primary) at a is DOWN\nSlurmctld(backup) at b is UP\n"))
    assert second[1].state == OK and len(second) == 4


def test_munge_that_does_not_work_is_named(place: Path) -> None:
    said = (
        "scontrol: error: If munged is up, restart with --num-threads=10\n"
        'scontrol: error: Munge encode failed: Failed to access "/run/munge/socket": No such file or directory\n'
        "scontrol: error: slurm_send_node_msg: auth_g_create: REQUEST_PING has authentication error\n"
    )
    line = slurm(place, scontrol_ping=failed(said))[-1]
    assert line.state == FAIL and "/run/munge/socket" in line.evidence and "munge -n | unmunge" in line.remedy


def test_a_node_that_slurm_does_not_know_and_commands_that_are_not_there(place: Path) -> None:
    unknown = slurm(place, sinfo="")[-1]
    assert (unknown.name, unknown.state) == ("slurm-node", FAIL) and "node_name" in unknown.remedy
    unanswered = slurm(place, sinfo=failed("", None))
    assert [line.state for line in unanswered] == [OK, OK, WARN, OK]
    (place / "squeue").chmod(0o644)
    missing = slurm(place)
    assert [line.state for line in missing] == [FAIL] and f"{place}/squeue" in missing[0].evidence


def sge_answers(**answers: str | CommandFailed) -> Answers:
    known: dict[str, str | CommandFailed] = {
        **answers,
        "qconf_sh": "master\nn1\n",
        "qconf_sm": "root\nsgeadmin\n",
        "qconf_so": failed("no operator defined"),
        "qselect": "all.q@n1\n",
        "qconf_sconf_n1": failed("configuration n1 not defined"),
        "qconf_sconf": f"#global:\n{SENSOR}",
        "qconf_sc": "#name shortcut\ngpu gpu INT\ngpu_faulty gpu_faulty INT\ngpu_reason gpu_reason STRING\n",
        "qhost": "n1 lx-amd64\n   hl:gpu_faulty=0.000000\n   hl:gpu_reason=none\n   hc:gpu=4.000000\n",
    }
    known.update(answers)
    return Answers(**known)


def sge(place: Path, user: str = "root", **answers: str | CommandFailed) -> dict[str, Line]:
    seen = on(look("sge", ask=sge_answers(**answers), user=user), sge=Sge(root=str(place), bin_dir=str(place)))
    checks = (sge_rights.rights, sge_rights.load_sensor, sge_rights.admin_user)
    lines = [line for check in checks for line in check(seen)]
    assert all(bool(line.remedy) == (line.state != OK) for line in lines)
    return {line.name: line for line in lines}


def test_grid_engine_on_which_all_is_well(place: Path) -> None:
    lines = sge(place)
    assert {line.state for line in lines.values()} == {OK}
    assert list(lines) == [
        *("sge-commands", "sge-qmaster", "sge-admin-host", "sge-queues", "sge-drain-right"),
        *("sge-load-sensor", "sge-admin-user"),
    ]
    assert lines["sge-load-sensor"].evidence.endswith("is heard: hl:gpu_faulty=0.000000 hl:gpu_reason=none")


def test_managers_and_operators_may_drain_and_others_need_not(place: Path) -> None:
    line = sge(place, "alice")["sge-drain-right"]
    assert line.state == WARN and "qconf -ao alice" in line.remedy and "the load sensor needs no right" in line.remedy
    assert sge(place, "alice", qconf_so="alice\n")["sge-drain-right"].state == OK


def test_a_host_that_is_no_admin_host_and_has_no_queue(place: Path) -> None:
    lines = sge(place, qconf_sh="master\n", qselect=failed(""))
    assert lines["sge-admin-host"].state == FAIL and "qconf -ah n1" in lines["sge-admin-host"].remedy
    assert lines["sge-queues"].state == WARN


def test_a_qmaster_that_is_away_is_said_once_and_the_rest_is_not_known(place: Path) -> None:
    away = failed(REFUSED)
    lines = sge(place, **dict.fromkeys(("qconf", "qselect", "qhost"), away))
    assert lines["sge-qmaster"].state == FAIL and "Connection refused" in lines["sge-qmaster"].evidence
    assert lines["sge-load-sensor"].state == WARN and "sge-drain-right" not in lines
    half = sge(place, qselect=away)
    assert half["sge-qmaster"].state == FAIL, "the last word on it"


def test_a_load_sensor_that_is_missing_silent_or_not_defined(place: Path) -> None:
    assert sge(place, qconf_sconf="load_sensor none\n")["sge-load-sensor"].state == WARN
    own = sge(place, qconf_sconf_n1="load_sensor /own\n", qconf_sconf="load_sensor none\n")["sge-load-sensor"]
    assert own.evidence.startswith("/own is heard")
    silent = sge(place, qhost="n1 lx-amd64\n   hc:gpu_faulty=0.000000\n")["sge-load-sensor"]
    assert silent.state == FAIL and "nothing of it is heard" in silent.evidence
    undefined = sge(place, qconf_sc="gpu gpu INT\n")["sge-load-sensor"]
    assert undefined.state == FAIL and "gpu_faulty gpu_reason" in undefined.evidence


def test_daemons_of_another_user_than_root_and_a_prolog(place: Path) -> None:
    bootstrap = place / "default/common/bootstrap"
    bootstrap.write_text("admin_user sgeadmin\n")
    line = sge(place)["sge-admin-user"]
    assert line.state == WARN and "qrsh" in line.evidence and "admin_user root" in line.remedy
    bootstrap.unlink()
    assert sge(place)["sge-admin-user"].state == OK


def test_commands_of_grid_engine_that_are_not_there(place: Path) -> None:
    (place / "qmod").unlink()
    assert sge(place)["sge-commands"].state == FAIL


def test_neither_says_anything_of_the_other_nor_of_a_node_without_a_scheduler() -> None:
    assert not list(slurm_rights.rights(look("sge"))) and not list(slurm_rights.rights(look("local")))
    for check in (sge_rights.rights, sge_rights.load_sensor, sge_rights.admin_user):
        assert not list(check(look("slurm"))) and not list(check(look("local")))
