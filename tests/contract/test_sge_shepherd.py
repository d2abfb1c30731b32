"""Grid Engine's shepherd_cmd as a whole process: the shepherd is started whatever happens, as the exec daemon would."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from nodeagent.isolation.confine import undo_gone
from tests.clusters.process import open_directory
from tests.contract.isolation_scene import VERSIONS, Cell, Shepherd, make_devices, opening
from tests.integration.support import executable, install_tree
from tests.sge_files import SlaveTask
from tests.support import LaidOutNode, uuid

ROOT = Path(__file__).resolve().parents[2]
STUB = ROOT / "prolog" / "sge-shepherd"
PATIENCE = 10.0
PROMISED = 2.0
SHEPHERD = 'echo $0 "$@"; id -u; pwd; umask; grep SigIgn /proc/self/status; echo PATH=$PATH'

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes its user: root only")


class Host:
    """A slave host with a shepherd that only says how it was called, and a task that is about to be started."""

    def __init__(self, directory: Path, settings: str = "") -> None:
        self.node = LaidOutNode(directory, "sge", settings=f"hooks: {{wait_for_units: 0}}\n{settings}")
        self.root = directory / "sge"
        (self.root / "bin" / "arch").mkdir(parents=True)
        self.shepherd(SHEPHERD)
        self.node.compile(**{"scheduler.sge.bin_dir": str(self.root / "bin" / "arch")})
        self.task = SlaveTask(directory / "spool")
        self.environ = {"SGE_ROOT": str(self.root), "SGE_ARCH": "arch", "PATH": "/usr/bin:/bin"}

    def shepherd(self, body: str) -> None:
        """Let the shepherd be this script."""
        executable(self.root / "bin" / "arch" / "sge_shepherd", body)

    def start(self, *words: str, stub: Path = STUB, cwd: Path | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(stub), "--config", str(self.node.config), *words],
            env=self.environ,
            cwd=cwd or self.task.place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def said(self, *words: str, stub: Path = STUB, cwd: Path | None = None) -> list[str]:
        """Run it to its end and return what the shepherd says: words, uid, directory, umask, ignored signals, PATH."""
        out, err = self.start(*words, stub=stub, cwd=cwd).communicate(timeout=PATIENCE)
        assert err == ""
        return out.splitlines()

    def devices(self) -> str:
        return self.task.exported()["CUDA_VISIBLE_DEVICES"]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_the_task_is_told_and_the_shepherd_started_as_the_exec_daemon_does(host: Host) -> None:
    plain = subprocess.run(
        ["/bin/sh", "-c", "umask; grep SigIgn /proc/self/status"], capture_output=True, text=True, check=True
    )
    words, uid, directory, umask, ignored, path = host.said()
    assert words == f"{host.root}/bin/arch/sge_shepherd -bg"
    assert (uid, directory, path) == (str(os.geteuid()), str(host.task.place), "PATH=/usr/bin:/bin")
    assert [umask, ignored] == plain.stdout.splitlines()
    assert host.devices() == "0,1"
    assert host.node.held() == {0: "603", 1: "603"}


def test_of_eight_tasks_at_once_one_locks_and_all_are_told_the_same(host: Host) -> None:
    places = [host.task.place] + [host.task.another(number).place for number in range(2, 9)]
    for process in [host.start(cwd=place) for place in places]:
        process.communicate(timeout=PATIENCE)
    for place in places:
        host.task.place = place
        assert host.devices() == "0,1"
    owners = host.node.store.owners().values()
    assert (len(owners), len({owner.grant for owner in owners})) == (2, 1)


@pytest.mark.parametrize("trouble", ["config", "state", "hook.conf", "environment", "elsewhere", "library"])
def test_the_shepherd_is_started_whatever_is_missing(host: Host, trouble: str, tmp_path: Path) -> None:
    how: dict[str, Path] = {}
    if trouble == "config":
        host.node.config.unlink()
    elif trouble == "state":
        shutil.rmtree(host.node.state_dir)
        host.node.state_dir.write_text("")
    elif trouble == "hook.conf":
        (host.node.state_dir / "hook.conf").unlink()
        os.mkfifo(host.node.state_dir / "hook.conf")
    elif trouble == "environment":
        (host.task.place / "environment").unlink()
    elif trouble == "elsewhere":
        how["cwd"] = tmp_path
    else:
        (tmp_path / "alone" / "prolog").mkdir(parents=True)
        how["stub"] = Path(shutil.copy(STUB, tmp_path / "alone" / "prolog"))
    assert host.said("more", **how)[0].endswith("sge_shepherd -bg more")


def test_somebody_sits_on_the_flock(host: Host) -> None:
    with (host.node.state_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        begun = time.monotonic()
        assert host.said()[0].endswith("-bg")
        assert time.monotonic() - begun < PROMISED + 0.5
    assert host.devices() == "NoDevFiles"


@as_root
def test_it_locks_as_root_and_is_the_administrator_again_afterwards() -> None:
    """With another admin_user than root the exec daemon's children have that effective uid, and root's real one."""
    with open_directory("gna-shepherd-") as directory:
        host, tree = Host(directory), install_tree(directory)
        admin = 12345
        shepherd = host.root / "bin" / "arch" / "sge_shepherd"
        shepherd.write_text("#!/usr/bin/python3 -IS\nimport os\nprint(*os.getresuid()[:2])\n")
        lower = f"import os, sys; os.setresuid(0, {admin}, {admin}); os.execv(sys.argv[1], sys.argv[1:])"
        argv = ["/usr/bin/python3", "-c", lower, f"{tree}/prolog/sge-shepherd", "--config", str(host.node.config)]
        done = subprocess.run(argv, env=host.environ, cwd=host.task.place, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["0", str(admin)]
        assert host.devices() == "0,1"
        assert host.node.held() == {0: "603", 1: "603"}


@as_root
@pytest.mark.parametrize("method", VERSIONS)
def test_each_task_is_kept_off_other_gpus_and_nothing_is_left_of_it(tmp_path: Path, method: str) -> None:
    cell = Cell(method)
    shell = Shepherd(cell)
    try:
        dev = tmp_path / "dev"
        make_devices(dev)
        host = Host(tmp_path, f"isolation: {method}\nroots: {{dev: {dev}}}\n")
        host.shepherd(opening(dev, 0, 1, 2, 3))
        for task in (host.task, host.task.another(2)):
            words = [f"cd {task.place};", *(f"{name}={value}" for name, value in host.environ.items())]
            said = shell.run(f"{' '.join(words)} {STUB} --config {host.node.config}")[1]
            assert said == ["opens", "opens", "EPERM", "EPERM"]
            devices = task.exported()["CUDA_VISIBLE_DEVICES"]
            assert devices == f"{uuid(0)},{uuid(1)}", "UUIDs, as others cannot be counted any more"
        assert len(cell.made()) == 1, "the first task's went when the second one's was made"
        with host.node.store.exclusive():
            host.node.store.release(lambda owner: owner.job == "603")
            undo_gone(host.node.state, {})
        assert cell.made() == []
    finally:
        shell.end()
        cell.remove()
