"""The site's own checks as real processes: what each sort of program comes to, and that none of them holds us up."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from nodeagent.clock import SystemClock
from nodeagent.config.load import load
from nodeagent.config.model import Health
from nodeagent.config.site_checks import SiteCheck
from nodeagent.external import child, schedule
from nodeagent.external.child import MAX_OUTPUT, check_executable
from nodeagent.external.schedule import SiteChecks
from nodeagent.gpu.facts import BROKEN, ENDED, HUNG, NOT_YET, SiteResult
from nodeagent.health.checks.site import find
from nodeagent.health.finding import Severity
from nodeagent.health.memory import Memory
from nodeagent.health.scene import observe
from tests.simulated_node import SimulatedNode, until
from tests.unit.test_health_facts import gpu, node, uuid

T = TypeVar("T")
AS_ROOT = os.geteuid() == 0


def idle() -> bool:
    return False


def held() -> bool:
    return True


def eventually(probe: Callable[[], T | None], within: float = 10.0) -> T:
    """Return what the probe gives as soon as that is something."""
    deadline = time.monotonic() + within
    while not (found := probe()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)
    return found


class Site:
    """The checks of one node, each a shell script under `place`."""

    def __init__(self, place: Path, mark: str) -> None:
        self.place = place
        self.mark = mark
        self.checks: dict[str, SiteCheck] = {}
        self.runner = SiteChecks(SystemClock())

    def add(self, name: str, script: str, **settings: object) -> Path:
        path = self.place / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        self.put(name, SiteCheck((str(path),), **settings))  # type: ignore[arg-type]
        return path

    def put(self, name: str, check: SiteCheck) -> None:
        self.checks = {**self.checks, name: check}

    def step(self, is_busy: Callable[[], bool] = idle) -> dict[str, SiteResult]:
        return {one.name: one for one in self.runner.step(self.checks, is_busy)}

    def result(self, name: str, within: float = 10.0) -> SiteResult:
        """Return what a check said, as soon as it has said it."""
        return eventually(lambda: one if (one := self.step()[name]).kind != NOT_YET else None, within)

    def marked(self) -> list[int]:
        """Return the processes that its checks have started."""
        found = []
        for pid in os.listdir("/proc"):
            try:
                if pid.isdigit() and f"{self.mark}=".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                    found.append(int(pid))
            except OSError:
                continue
        return found


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.geteuid() and not directory.stat().st_mode & 0o1000:
            directory.chmod(0o755)
    mark = f"{child.MARK}_{secrets.token_hex(4)}"  # other tests of this machine have theirs
    monkeypatch.setattr(child, "MARK", mark)
    found = Site(tmp_path, mark)
    yield found
    found.runner.close()
    assert found.marked() == [], "nothing of a check is left"


def test_an_exit_status_and_the_output_come_back(site: Site) -> None:
    site.add("well", "echo all is well")
    site.add("ill", "echo broken fan; echo more >&2; exit 3")
    assert {name: one.kind for name, one in site.step().items()} == {"well": NOT_YET, "ill": NOT_YET}
    well, ill = site.result("well"), site.result("ill")
    assert (well.kind, well.status, well.output) == (ENDED, 0, "all is well\n")
    assert (ill.kind, ill.status, ill.output) == (ENDED, 3, "broken fan\nmore\n")
    assert site.runner.counts == {("well", "ended"): 1, ("ill", "failed"): 1}


def test_a_check_has_a_clean_environment_no_input_and_a_session_of_its_own(site: Site) -> None:
    os.environ["LD_PRELOAD_OF_A_TEST"] = "x"
    try:
        site.add("env", 'env; echo "IN=$(cat)"; echo "SID=$(ps -o sid= -p $$)" PID=$$; pwd; ls -l /proc/$$/fd | wc -l')
        said = site.result("env").output
    finally:
        del os.environ["LD_PRELOAD_OF_A_TEST"]
    assert "LD_PRELOAD_OF_A_TEST" not in said and "PATH=/usr/sbin:/usr/bin:/sbin:/bin\n" in said
    assert "IN=\n" in said and "\n/\n" in said
    session, pid = said.partition("SID=")[2].split()[:2]
    assert pid == f"PID={session}"


def test_a_check_that_ignores_sigterm_is_ended_in_time_and_the_step_never_waits(site: Site) -> None:
    site.add("hang", "trap '' TERM INT HUP; echo so far; while :; do sleep 60; done", timeout=0.3)
    started = time.monotonic()
    site.step()
    assert time.monotonic() - started < 0.2
    hung = site.result("hang", 5.0)
    assert (hung.kind, hung.output, hung.timeout) == (HUNG, "so far\n", 0.3)
    assert time.monotonic() - started < 3.0


def test_children_that_left_the_group_or_multiply_are_ended_too(site: Site) -> None:
    site.add("strays", "setsid sh -c 'setsid sleep 300 & sleep 300' & setsid -f sleep 300; exit 1")
    assert site.result("strays").status == 1
    assert site.marked() == []
    spawn = 'n=0; while [ $n -lt 40 ]; do "$0" again & n=$((n+1)); done; wait'
    site.add("bomb", f'[ "$1" = again ] && exec sleep 300; {spawn}', timeout=0.5)
    assert site.result("bomb").kind == HUNG
    assert site.marked() == []


def test_a_child_that_keeps_the_output_open_is_not_waited_for(site: Site) -> None:
    site.add("daemon", "sleep 300 & echo done")
    started = time.monotonic()
    assert site.result("daemon").output == "done\n"
    assert time.monotonic() - started < 3.0


def test_output_without_end_is_bounded_and_does_not_stop_the_check(site: Site) -> None:
    site.add("chatter", f"head -c {8 * MAX_OUTPUT} /dev/zero | tr '\\0' x; exit 5")
    chatter = site.result("chatter")
    assert (chatter.status, len(chatter.output)) == (5, MAX_OUTPUT)
    site.add("endless", "yes", timeout=0.3)
    endless = site.result("endless", 5.0)
    assert (endless.kind, len(endless.output)) == (HUNG, MAX_OUTPUT)


def test_what_closes_its_output_and_goes_on_is_waited_for_without_spinning(site: Site) -> None:
    site.add("silent", "exec >&- 2>&-; sleep 0.5; exit 4")
    before = time.process_time()
    assert site.result("silent").status == 4
    assert time.process_time() - before < 0.4


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("/nowhere/at/all",), "No such file"),
        (("/etc/passwd",), "it is no program"),
        (("/etc",), "it is no program"),
        (("/bin/true",), ""),
    ],
)
def test_what_cannot_be_started_is_broken_and_says_why(site: Site, command: tuple[str, ...], words: str) -> None:
    site.put("one", SiteCheck(command))
    one = site.result("one")
    assert one.kind == (BROKEN if words else ENDED)
    assert words in one.why


def test_a_file_without_its_interpreter_and_a_user_that_is_none_are_broken(site: Site) -> None:
    path = site.add("lost", "")
    path.write_text("#!/no/such/shell\n")
    site.put("nobody", SiteCheck(("/bin/true",), user="no-such-user"))
    assert site.result("lost").kind == BROKEN
    assert site.result("nobody").why == "cannot be started: no user no-such-user"


@pytest.mark.parametrize("way", ["mode", "directory", "link"])
def test_what_others_could_have_written_is_not_run(site: Site, way: str) -> None:
    path = site.add("open", "touch ${0}.ran")
    if way == "mode":
        path.chmod(0o777)
    elif way == "directory":
        site.place.chmod(0o777)
    else:
        target = site.place / "theirs"
        target.mkdir()
        path.rename(target / "open")
        target.chmod(0o777)
        path.symlink_to(target / "open")
    one = site.result("open")
    site.place.chmod(0o755)
    assert one.kind == BROKEN and "others can write it" in one.why
    assert not list(site.place.rglob("*.ran"))


@pytest.mark.skipif(not AS_ROOT, reason="only root can give files away")
def test_root_runs_only_what_root_owns_and_runs_it_as_the_user_that_is_named(site: Site) -> None:
    theirs = site.add("theirs", "id")
    nobody = pwd.getpwnam("nobody")
    os.chown(theirs, nobody.pw_uid, nobody.pw_gid)
    site.add("ours", "id -un; id -G; echo $HOME $USER; grep CapEff /proc/self/status", user="nobody")
    assert f"belongs to uid {nobody.pw_uid}" in site.result("theirs").why
    said = site.result("ours").output.splitlines()
    assert said[0] == "nobody" and "0" not in said[1].split()
    assert said[2] == f"{nobody.pw_dir} nobody"
    assert int(said[3].split()[1], 16) == 0, "nothing of root's rights is left"


def test_programs_of_the_system_may_be_run() -> None:
    for path in ("/bin/sh", "/usr/bin/env"):
        check_executable(path)


def test_a_check_runs_once_an_interval_and_never_beside_itself(site: Site) -> None:
    site.add(
        "often", 'mkdir "$0.on" || echo twice >> "$0.log"; echo x >> "$0.log"; sleep 0.2; rmdir "$0.on"', interval=0.1
    )
    eventually(lambda: site.step() and site.runner.counts["often", "ended"] >= 4)
    assert "twice" not in (site.place / "often.log").read_text()
    site.add("seldom", 'echo x >> "$0.log"', interval=300.0)
    first = site.result("seldom")
    assert [site.step()["seldom"].monotonic for _ in range(3)] == [first.monotonic] * 3
    assert (site.place / "seldom.log").read_text() == "x\n"


def test_what_wants_an_idle_node_is_not_started_and_gives_way(site: Site) -> None:
    site.add("idle", 'echo x >> "$0.log"; sleep 300', only_when_idle=True)
    assert site.step(held)["idle"].kind == NOT_YET and site.marked() == []
    site.step(idle)
    eventually((site.place / "idle.log").exists)
    site.step(held)
    eventually(lambda: not site.step(held) or site.runner.counts["idle", "stopped"] == 1)
    assert site.step(held)["idle"].kind == NOT_YET and site.marked() == []
    site.step(idle)
    eventually(lambda: (site.place / "idle.log").read_text() == "x\nx\n")


def test_a_node_of_which_nobody_knows_whether_it_is_idle_is_not(site: Site) -> None:
    def broken() -> bool:
        raise OSError(5, "Input/output error")

    site.add("idle", "echo x", only_when_idle=True)
    site.step(broken)
    assert site.step(broken)["idle"].kind == NOT_YET and site.runner._slots["idle"].run is None


def test_a_reload_keeps_what_is_described_as_before_and_ends_the_rest(site: Site) -> None:
    site.add("stays", "echo x")
    site.add("goes", "sleep 300")
    kept = site.result("stays")
    eventually(lambda: len(site.marked()) >= 1)
    site.checks = {"stays": site.checks["stays"]}
    assert site.step() == {"stays": kept}
    eventually(lambda: site.step() and site.marked() == [])
    site.put("stays", SiteCheck(site.checks["stays"].command, interval=7.0))
    assert site.step()["stays"].kind == NOT_YET


def test_after_a_repair_each_check_runs_again(site: Site) -> None:
    flag = site.place / "bad"
    flag.touch()
    site.add("look", f"test ! -e {flag}")
    assert site.result("look").status == 1
    flag.unlink()
    site.runner.again()
    assert site.step()["look"].kind == NOT_YET
    assert site.result("look").status == 0


def test_one_that_even_sigkill_does_not_end_is_left_behind_and_not_started_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_KILL_WAIT", 0.1)
    kill_group = os.killpg
    monkeypatch.setattr(os, "killpg", lambda pid, number: None)
    site.add("d", "exec sleep 300", timeout=0.2, interval=0.1)
    assert site.result("d").kind == HUNG
    pids = eventually(site.marked)
    for _ in range(5):
        site.step()
        time.sleep(0.05)
    assert site.marked() == pids and site.runner.counts["d", "abandoned"] == 1
    monkeypatch.setattr(os, "killpg", kill_group)
    os.kill(pids[0], 9)
    eventually(lambda: site.step() and site.runner.counts["d", "hung"] >= 2, 5.0)


def test_a_start_that_hangs_counts_as_hung(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    release = site.place / "release"

    def slow(path: str) -> None:
        eventually(release.exists, 20.0)

    monkeypatch.setattr(child, "check_executable", slow)
    monkeypatch.setattr(schedule, "_LATE", 0.1)
    site.add("nfs", "echo late", timeout=0.1)
    assert site.result("nfs").kind == HUNG
    assert site.runner.counts == {("nfs", "hung"): 1}
    release.touch()
    eventually(lambda: site.step() and site.runner._slots["nfs"].run is None)
    assert site.step()["nfs"].kind == HUNG, "its time was over"


def test_runs_leave_no_descriptors(site: Site) -> None:
    site.add("often", "true", interval=0.001)
    site.result("often")
    before = len(os.listdir("/proc/self/fd"))
    eventually(lambda: site.step() and site.runner.counts["often", "ended"] > 20)
    eventually(lambda: site.step() and site.runner._slots["often"].run is not None)
    assert len(os.listdir("/proc/self/fd")) < before + 20, "one of each of more than twenty runs"


# -- the examples ------------------------------------------------------------------------------------------------------

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples" / "checks"
DCGM_3 = {
    "DCGM GPU Diagnostic": {
        "test_categories": [
            {"category": "Deployment", "tests": [{"name": "Denylist", "results": [{"status": "Pass"}]}]},
            {
                "category": "Integration",
                "tests": [
                    {
                        "name": "PCIe",
                        "results": [
                            {"gpu_id": "0", "status": "Pass"},
                            {"gpu_id": "1", "status": "Fail", "warnings": "too slow"},
                        ],
                    }
                ],
            },
        ]
    }
}
DCGM_4 = {
    "DCGM Diagnostic": {
        "test_categories": [
            {
                "category": "Hardware",
                "tests": [
                    {
                        "name": "memory",
                        "results": [
                            {
                                "entity_group": "GPU",
                                "entity_group_id": 1,
                                "entity_id": 1,
                                "status": "Fail",
                                "warnings": [{"error_id": 5, "warning": "a bad page"}],
                            },
                            {"entity_group": "GPU", "entity_group_id": 1, "entity_id": 0, "status": "Skip"},
                        ],
                    }
                ],
            }
        ]
    }
}


@pytest.mark.parametrize("report", [DCGM_3, DCGM_4], ids=["dcgm-3", "dcgm-4"])
def test_the_example_for_dcgmi_names_the_gpu_that_failed(site: Site, report: dict[str, object]) -> None:
    dcgmi = site.add("dcgmi", f"echo for people; cat <<'END'\n{json.dumps(report, indent=1)}\nEND\nexit 226")
    text = (EXAMPLES / "dcgmi-diag").read_text().replace("/usr/bin/dcgmi", str(dcgmi))
    wrapper = site.place / "dcgmi-diag"
    wrapper.write_text(text)
    wrapper.chmod(0o755)
    site.checks = {"diag": SiteCheck((str(wrapper), "-r", "2"), action="reset_gpu")}
    result = site.result("diag")
    scene = observe(Memory(), node(gpu(0), gpu(1), site=(result,)), Health())
    [found] = find(scene, Health())
    assert (found.unit, found.severity, found.action.word) == (uuid(1), Severity.ERROR, "reset_gpu")
    assert "too slow" in found.evidence or "a bad page" in found.evidence
    dcgmi.unlink()
    site.runner.again()
    broken = site.result("diag")
    assert broken.status == 127 and "dcgmi diag" in broken.output


def test_the_examples_configurations_are_valid(site: Site) -> None:
    (site.place / "config.yaml").write_text("")
    (site.place / "conf.d").mkdir()
    for example in sorted(EXAMPLES.glob("*.yaml")):
        shutil.copy(example, site.place / "conf.d" / "50.yaml")
        config = load(site.place / "config.yaml").config
        [check] = config.checks.values()
        assert check.command[0].startswith("/") and check.timeout < check.interval, example.name


# -- with an agent -----------------------------------------------------------------------------------------------------


def test_a_gpu_that_a_check_finds_bad_is_retired_over_a_restart_and_comes_back_after_a_clean_run(site: Site) -> None:
    flag = site.place / "bad"
    finding = '{"unit": "1", "evidence": "slow", "action": "reset_gpu"}'
    path = site.add("look", f"test ! -e {flag} || {{ echo '{finding}'; exit 1; }}")
    checks = f"interval: 200ms\nhealth: {{recover: 2}}\nchecks: {{look: {{command: [{path}], interval: 300ms}}}}\n"
    sim = SimulatedNode(site.place, gpus=2, settings=checks)
    with sim.agent() as agent:
        assert sim.retired() == []
        flag.touch()
        until(lambda: sim.retired() == [1], "the check's finding")
        [reason] = sim.status()["gpus"][1]["reasons"]
        assert (reason["check"], reason["evidence"], reason["action"]) == ("site-look", "slow", "reset_gpu")
        agent.kill()
    told = site.place / "told"  # the next agent does not know yet until the check may say so
    path.write_text(f"#!/bin/sh\nuntil test -e {told}; do sleep 0.05; done; test ! -e {flag}\n")
    flag.unlink()
    with sim.agent():
        for _ in range(5):
            assert sim.retired() == [1]
        told.touch()
        until(lambda: sim.retired() == [], "the check's clean run")
