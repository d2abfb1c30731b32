"""The package as installed: under a real systemd, beside real jobs' processes, upgraded and removed."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path

import pytest

from nodeagent.agent.journal import MESSAGE_IDS
from tests.packaging.conftest import GPUS, PORT, RPM, Install, Node, build
from tests.packaging.machine import until

LIBRARY, HOOKS = "/usr/lib/gpu-nodeagent", "/usr/libexec/gpu-nodeagent"
UNIT = "gpu-nodeagent"
UNIT_FILE = f"/usr/lib/systemd/system/{UNIT}.service"
SGE_RERUN = 99
BAD_CONFIG = "/etc/gpu-nodeagent/conf.d/zz-bad.yaml"

pytestmark = pytest.mark.timeout(600)  # the first one may have to make the tree


def python_names(node: Node) -> dict[str, list[str]]:
    """Return the sources and the bytecode below the library, each without its ending."""
    found = node.machine.ok("find", LIBRARY, "-name", "*.py", "-o", "-name", "*.pyc").splitlines()
    compiled = [re.sub(r"/__pycache__/(.*)\.cpython-\d+\.pyc$", r"/\1", name) for name in found if name.endswith("c")]
    return {"sources": sorted(name[:-3] for name in found if name.endswith(".py")), "compiled": sorted(compiled)}


def held(node: Node) -> list[str]:
    return [lock["scheduler"] for lock in json.loads(node.command("locks", "list", "--json").stdout)["locks"]]


# ---- a node that runs -----------------------------------------------------------------------------------------------


def test_the_service_is_active_when_the_first_verdict_stands(node: Node) -> None:
    said = node.machine.show(UNIT, "ActiveState", "SubState", "Type", "NRestarts", "Result", "WatchdogUSec")
    assert said == ["active", "running", "notify", "0", "success", "1min 30s"]
    assert node.machine.ok("systemctl", "is-enabled", UNIT).strip() == "enabled"
    assert {"slurmd.service", "sge_execd.service"} <= set(node.machine.show(UNIT, "Before")[0].split())
    assert not node.machine.run("systemd-analyze", "verify", "--man=no", UNIT_FILE).stderr


def test_bytecode_is_there_for_every_module(node: Node) -> None:
    names = python_names(node)
    assert names["sources"] == names["compiled"]


def test_status_shows_all_gpus(node: Node) -> None:
    done = node.command("status", "--json")
    status = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert status["schema"] == "gpu-nodeagent/status/1"
    assert status["agent"]["fresh"] and status["agent"]["pid"]
    assert [gpu["uuid"] for gpu in status["gpus"]] == [node.scenario.uuid(gpu) for gpu in range(GPUS)]
    assert {gpu["verdict"] for gpu in status["gpus"]} == {"OK"}


def test_bash_completes_from_where_it_looks_for_it(node: Node) -> None:
    script = (
        "source /usr/share/bash-completion/completions/gpu-nodeagent; COMP_LINE='gpu-nodeagent restor'; "
        "COMP_POINT=${#COMP_LINE}; _gpu_nodeagent gpu-nodeagent; echo ${COMPREPLY[*]}"
    )
    assert node.machine.ok("bash", "--norc", "-c", script).strip() == "restore"


def test_metrics_answer(node: Node) -> None:
    fetch = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{PORT}/metrics').read().decode())"
    metrics = node.machine.ok("python3", "-I", "-c", fetch)
    assert len(re.findall(r"^gpu_nodeagent_gpu_up\{.*\} 1(?:\.0)?$", metrics, re.MULTILINE)) == GPUS


def test_the_probe_finds_its_modules_where_they_are_installed(node: Node) -> None:
    child = node.machine.ok("pgrep", "--parent", str(node.main_pid())).split()
    words = node.machine.ok("cat", f"/proc/{child[0]}/cmdline").split("\0")
    assert words[0] == "/usr/bin/python3"
    assert [word for word in words if word.startswith(LIBRARY)] == [LIBRARY, f"{LIBRARY}/vendor"]


@pytest.mark.parametrize(
    ("hook", "status"),
    [("prolog/sge", SGE_RERUN), ("epilog/sge", 0), ("prolog/slurm", 0), ("epilog/slurm", 0)],
)
def test_a_hook_that_nobody_called_rightly_says_so_by_its_status(node: Node, hook: str, status: int) -> None:
    done = node.machine.run(f"{HOOKS}/{hook}")
    assert done.returncode == status, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr


def test_a_slurm_job_is_recorded_and_released(node: Node) -> None:
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_UID": "0", "SLURM_JOB_USER": "root"}
    assert node.machine.run(f"{HOOKS}/prolog/slurm", env=job).returncode == 0
    assert node.machine.run(f"{HOOKS}/epilog/slurm", env=job).returncode == 0
    assert held(node) == []


def test_exec_gives_a_command_its_gpus(node: Node) -> None:
    done = node.command("exec", "-n", "2", "--", "env")
    seen = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert done.returncode == 0, done.stderr
    assert seen["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert len(set(seen["CUDA_VISIBLE_DEVICES"].split(","))) == 2
    assert held(node) == []


def test_the_journal_tells_what_happened_by_field(node: Node) -> None:
    said = node.machine.ok("journalctl", "--output=json", f"MESSAGE_ID={MESSAGE_IDS['agent_ready']}")
    entry = json.loads(said.splitlines()[0])
    assert entry["_SYSTEMD_UNIT"] == f"{UNIT}.service"
    assert entry["SYSLOG_IDENTIFIER"] == UNIT
    assert "8 OK" in entry["MESSAGE"]


def test_an_xid_of_the_kernel_log_reaches_the_confined_agent(node: Node) -> None:
    node.log_xid(3, 43)  # an application's own fault
    until(lambda: bool(node.journal(f"MESSAGE_ID={MESSAGE_IDS['xid']}").strip()), 10, "the XID in the journal")


def test_a_service_of_nvidias_that_failed_is_told_in_systemds_words(own_node: Node) -> None:
    machine = own_node.machine
    unit = "[Service]\nExecStart=/bin/false\n[Install]\nWantedBy=multi-user.target\n"
    machine.write("/etc/systemd/system/nvidia-persistenced.service", unit)
    machine.ok("systemctl", "daemon-reload")
    machine.ok("systemctl", "enable", "nvidia-persistenced")
    machine.run("systemctl", "start", "nvidia-persistenced")
    own_node.configure("interval: 1s\nhealth: {strikes: {services: 1}, settle: 0s}\n")
    machine.ok("systemctl", "restart", UNIT)

    def told() -> list[str]:
        findings = json.loads(own_node.command("status", "--json").stdout)["node_findings"]
        return [one["evidence"] for one in findings if one["check"] == "services"]

    until(lambda: bool(told()), 20, "the finding")
    assert told() == ["service nvidia-persistenced is failed (exit-code); see `systemctl status nvidia-persistenced`"]
    assert "service nvidia-persistenced is failed" in own_node.command("check").stdout, "also without the agent"


# What the agent's features need of the kernel, and what it has no need of; run under the unit's own confinement.
CONFINED = """
import ctypes, json, os, socket, subprocess, sys

QUIET = os.O_RDWR | os.O_NONBLOCK

def tried(action):
    try:
        action()
    except OSError as error:
        return error.errno
    return 0

def other(*action):
    return tried(lambda: action[0](*action[1:]))

alien = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)

def mount():
    if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "mount")

def connect():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()

json.dump({
    "environment of another's process": other(open, f"/proc/{alien}/environ"),
    "open files of another's process": other(os.readlink, f"/proc/{alien}/fd/0"),
    "another's private file": other(open, "/mnt/private/file"),
    "signal to another's process": other(os.kill, alien, 15),
    "connect": other(connect),
    "start a program": other(subprocess.run, ["/bin/true"]),
    "kernel log": other(lambda: os.read(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK), 8192)),
    "GPU": other(os.open, "/dev/nvidia0", QUIET),
    "state": other(open, "/run/gpu-nodeagent/tried", "w"),
    "data": other(open, "/var/lib/gpu-nodeagent/tried", "w"),
    "write in /usr": other(open, "/usr/tried", "w"),
    "write in /etc": other(open, "/etc/gpu-nodeagent/tried", "w"),
    "write in /sys": other(open, "/sys/power/state", "w"),
    "mount": other(mount),
    "disk": other(os.open, "/dev/disk0", os.O_RDONLY),
    "node of a GPU": other(os.mknod, "/dev/nvidia1", 0o20666, os.makedev(195, 1)),
    "make a disk": other(os.mknod, "/dev/disk1", 0o60600, os.makedev(8, 0)),
    "give a file back": other(os.chown, "/run/gpu-nodeagent/tried", 65534, 65534),
    "run a check as its user": other(os.setuid, 65534),
}, sys.stdout)
"""


def test_the_confinement_leaves_what_is_needed_and_no_more(node: Node) -> None:
    machine = node.machine
    machine.ok("install", "-d", "-o", "nobody", "-m", "700", "/mnt/private")
    machine.ok("install", "-o", "nobody", "-m", "600", "/dev/null", "/mnt/private/file")
    for name, *numbers in (("kmsg", "c", "1", "11"), ("nvidia0", "c", "195", "0"), ("disk0", "b", "7", "0")):
        machine.ok("mknod", f"/dev/{name}", *numbers)
    machine.write("/etc/confined.py", CONFINED)
    machine.ok("systemd-run", "--quiet", "--unit=alien", "--property=User=nobody", "/bin/sleep", "300")
    (alien,) = machine.show("alien", "MainPID")
    unit = machine.ok("cat", UNIT_FILE)
    command = f"/usr/bin/python3 -I /etc/confined.py {alien}"
    unit = re.sub("^ExecStart=.*", f"ExecStart={command}", unit, flags=re.MULTILINE)
    unit = re.sub("^Type=.*", "Type=oneshot\nStandardOutput=file:/run/confined.json", unit, flags=re.MULTILINE)
    unit = re.sub("^(Restart|Watchdog).*\n", "", unit, flags=re.MULTILINE)
    machine.write("/run/systemd/system/confined.service", unit)
    machine.ok("systemctl", "daemon-reload")
    machine.ok("systemctl", "start", "confined")
    result = json.loads(machine.ok("cat", "/run/confined.json"))
    machine.ok("rm", "-f", "/run/gpu-nodeagent/tried", "/var/lib/gpu-nodeagent/tried")
    machine.run("systemctl", "stop", "alien")

    assert result.pop("GPU") == errno.ENXIO  # let through to the driver, which this machine has not got
    refused = ("write in", "mount", "make a disk", "disk")
    for what, number in result.items():
        assert bool(number) == what.startswith(refused), result


# ---- what goes wrong, and the end -----------------------------------------------------------------------------------


def test_killed_it_comes_back_and_the_locks_are_still_there(own_node: Node) -> None:
    node = own_node
    job = node.machine.start("env", *(f"{k}={v}" for k, v in node.env.items()), UNIT, "exec", "--", "sleep", "300")
    try:
        until(lambda: held(node) == ["local"], 10, "the lock")
        before = node.main_pid()
        node.machine.ok("kill", "-9", str(before))
        until(lambda: node.main_pid() not in (0, before), 20, "another process")
        node.until_active()
        assert node.machine.show(UNIT, "NRestarts") == ["1"]
        assert held(node) == ["local"]
        node.machine.ok("systemctl", "stop", UNIT)
        assert held(node) == ["local"]
    finally:
        node.machine.run("pkill", "-x", "sleep")  # the only one in this machine
        job.wait(20)


def test_one_that_hangs_is_ended_by_the_watchdog(own_node: Node) -> None:
    node = own_node
    node.configure(drop_in="WatchdogSec=3\nTimeoutAbortSec=2\n")
    node.machine.ok("systemctl", "restart", UNIT)
    before = node.main_pid()
    node.machine.ok("kill", "-STOP", str(before))
    until(lambda: node.main_pid() not in (0, before), 30, "another process")
    node.until_active()
    assert "Watchdog timeout" in node.journal()


def test_a_bad_configuration_is_refused_and_the_old_one_stays(own_node: Node) -> None:
    node = own_node
    before = node.main_pid()
    node.machine.write(BAD_CONFIG, "interval: soon\n")
    node.machine.ok("systemctl", "reload", UNIT)
    until(lambda: BAD_CONFIG in node.journal(f"MESSAGE_ID={MESSAGE_IDS['config_refused']}"), 10, "the refusal")
    assert node.command("config", "check").returncode == 78
    node.machine.ok("rm", BAD_CONFIG)
    node.until_active()
    assert node.main_pid() == before

    node.configure("interval: 1500ms\n")
    node.machine.ok("systemctl", "reload", UNIT)
    until(lambda: bool(node.journal(f"MESSAGE_ID={MESSAGE_IDS['config_reloaded']}").strip()), 10, "the reload")
    assert node.main_pid() == before


def test_with_a_bad_configuration_it_fails_once_and_says_why(own_node: Node) -> None:
    node = own_node
    node.machine.write(BAD_CONFIG, "interval: soon\n")
    assert node.machine.run("systemctl", "restart", UNIT).returncode != 0
    assert node.machine.show(UNIT, "ActiveState", "ExecMainStatus", "NRestarts") == ["failed", "78", "0"]
    assert BAD_CONFIG in node.journal()


def listing(node: Node) -> set[str]:
    """Return all that a package could leave: its own places, and anything else in the system's directories."""
    places = ("/usr", "/etc", "/var/lib", "/var/cache", "/run/gpu-nodeagent", "/opt")
    names = node.machine.run("find", *places, "-path", "/var/lib/rpm", "-prune", "-o", "-print").stdout.splitlines()
    return set(names)


def test_removed_it_leaves_only_its_data(install: Install) -> None:
    with install() as node:
        node.machine.ok(*RPM, "-e", UNIT)
        before = listing(node)
        node.machine.ok(*RPM, "-i", *_package(node))
        node.configure()
        node.enable()
        node.until_active()
        assert node.command("exec", "--", "true").returncode == 0
        main = node.main_pid()
        node.machine.ok(*RPM, "-e", UNIT)
        assert node.machine.run("test", "-e", f"/proc/{main}").returncode != 0
        assert node.machine.run("systemctl", "status", UNIT).returncode == 4  # no such unit
        ours = ("/etc/gpu-nodeagent/conf.d/site.yaml", "/etc/systemd/system/gpu-nodeagent.service.d/site.conf")
        node.machine.ok("rm", *ours)
        node.machine.ok("find", *(name.rpartition("/")[0] for name in ours), "-type", "d", "-empty", "-delete")
        left = {name for name in listing(node) - before if not name.startswith("/var/lib/gpu-nodeagent")}
        assert left <= {"/etc/gpu-nodeagent"}, left
        assert node.machine.run("ls", "-A", "/etc/gpu-nodeagent").stdout == ""


def test_an_upgrade_keeps_the_configuration_and_runs_the_new_release(
    own_node: Node, source: Path, tmp_path: Path, package: Path
) -> None:
    node = own_node
    newer = shutil.copytree(source, tmp_path / "newer")
    (newer / "nodeagent" / "version.py").write_text('"""A later release."""\n\nVERSION = "999.1"\n')
    (newer / "nodeagent" / "later").mkdir()
    (newer / "nodeagent" / "later" / "__init__.py").write_text('"""Only in this release."""\n')
    with (newer / "rpm" / "config.yaml").open("a") as file:
        file.write("# A later release says more.\n")
    later = build(newer, package.parent)  # the directory that the machine sees
    node.machine.ok("sed", "-i", "s/^#log:/log:/; s/^#  level: info/  level: debug/", "/etc/gpu-nodeagent/config.yaml")
    before = node.main_pid()

    node.machine.ok(*RPM, "-U", f"/mnt/package/{later.name}")
    node.until_active()
    assert node.main_pid() != before
    assert node.command("--version").stdout == "gpu-nodeagent 999.1\n"
    assert "log.level = debug" in node.command("config", "show").stdout
    node.machine.ok("test", "-e", "/etc/gpu-nodeagent/config.yaml.rpmnew")
    names = python_names(node)
    assert f"{LIBRARY}/nodeagent/later/__init__" in names["compiled"] and names["sources"] == names["compiled"]

    node.machine.ok(*RPM, "-U", "--oldpackage", *_package(node))
    node.until_active()
    assert node.machine.run("test", "-e", f"{LIBRARY}/nodeagent/later").returncode != 0
    names = python_names(node)
    assert names["sources"] == names["compiled"]


def _package(node: Node) -> list[str]:
    """Return the package as the machine sees it."""
    found = node.machine.ok("ls", "/mnt/package").split()
    return [f"/mnt/package/{name}" for name in found if "999.1" not in name]


def test_the_hooks_need_no_agent(install: Install) -> None:
    with install() as node:
        job = {"SLURM_JOB_ID": "4712", "SLURM_JOB_GPUS": "0"}
        assert node.machine.run(f"{HOOKS}/prolog/slurm", env=job).returncode == 0
        assert node.machine.run(f"{HOOKS}/epilog/slurm", env=job).returncode == 0
        assert node.machine.ok("stat", "-c", "%A %U:%G", "/run/gpu-nodeagent").strip() == "drwxr-xr-x root:root"
