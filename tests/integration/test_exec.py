"""The form without a scheduler: `gpu-nodeagent exec`, with and without an agent, as root and as an ordinary user."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from nodeagent.isolation.cgroup import PREFIX, directory_of
from tests.clusters.process import open_directory
from tests.contract.isolation_scene import CONTROLLER, NUMBERS, VERSIONS, make_node
from tests.integration.support import install_tree, require, unavailable, variables
from tests.simulated_node import ROOT, SimulatedNode, running, until


@pytest.fixture
def directory() -> Iterator[Path]:
    with open_directory("gna-exec-") as directory:
        yield directory


@pytest.fixture
def node(directory: Path) -> SimulatedNode:
    return SimulatedNode(directory, gpus=4, settings="interval: 1s\nhealth: {recover: 2}\n")


class Job:
    """An `exec` that runs until its gate exists."""

    def __init__(self, node: SimulatedNode, name: str, gpus: int) -> None:
        self.gate = node.directory / f"{name}.gate"
        self.log = node.directory / f"{name}.out"
        body = f"env; echo pid=$$; echo begun=yes; until [ -e {self.gate} ]; do sleep 0.05; done"
        self.context = running(
            node.argv("exec", "-n", str(gpus), "--", "/bin/sh", "-c", body), node.environment, self.log
        )

    def __enter__(self) -> Job:
        self.process = self.context.__enter__()
        until(lambda: "begun=yes" in self.log.read_text() or self.process.poll() is not None, "the command begins")
        return self

    def __exit__(self, *error: object) -> None:
        self.gate.touch()
        self.context.__exit__(None, None, None)

    @property
    def seen(self) -> dict[str, str]:
        return variables(self.log.read_text())

    def end(self) -> int:
        self.gate.touch()
        return self.process.wait(timeout=20)


def test_without_an_agent_commands_at_once_never_share(node: SimulatedNode) -> None:
    with Job(node, "one", 2) as one, Job(node, "two", 2) as two:
        assert {one.seen["CUDA_VISIBLE_DEVICES"], two.seen["CUDA_VISIBLE_DEVICES"]} == {"0,1", "2,3"}
        assert one.seen["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        assert one.seen["APPTAINERENV_CUDA_VISIBLE_DEVICES"] == one.seen["CUDA_VISIBLE_DEVICES"]
        refused = node.call("exec", "-n", "1", "--", "true")
        assert refused.returncode == 69
        assert refused.stderr == (
            "gpu-nodeagent: 1 GPUs asked for; this node has 4, of which 4 are in service and 0 of those are free\n"
        )
        waiting = subprocess.Popen(node.argv("exec", "-n", "2", "--wait", "20s", "--", "true"), env=node.environment)
        assert one.end() == 0
        assert waiting.wait(timeout=20) == 0
    assert json.loads(node.ask("locks", "--json"))["locks"] == []


def test_a_fault_takes_the_gpu_out_and_its_end_brings_it_back(node: SimulatedNode) -> None:
    with node.agent():
        with Job(node, "job", 2) as job:
            assert job.seen["CUDA_VISIBLE_DEVICES"] == "0,1"
            with node.scenario.edit():
                node.scenario.xid(0, 79)
                node.scenario.lose(0)
            until(lambda: node.retired() == [0], "GPU 0 retired")
            [record] = [gpu["retired"] for gpu in node.status()["gpus"] if gpu["retired"]]
            assert "GPU 0" in record["reason"] and "79" in record["reason"] and record["action"] == "reboot_node"
            assert node.call("status").returncode == 2
            assert node.call("exec", "-n", "3", "--", "true").returncode == 69
        with Job(node, "next", 3) as following:
            assert following.seen["CUDA_VISIBLE_DEVICES"] == "1,2,3"
        with node.scenario.edit():
            node.scenario.heal(0)
            node.scenario.reinitialise(0)
        until(lambda: node.retired() == [], "GPU 0 back")
        assert node.call("exec", "-n", "4", "--", "true").returncode == 0


def test_the_commands_own_status_is_passed_on(node: SimulatedNode) -> None:
    assert node.call("exec", "--", "sh", "-c", "exit 7").returncode == 7
    assert node.call("exec", "--", "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM
    assert node.call("exec", "--", "/no/such/command").returncode == 127
    assert node.call("exec", "--", str(node.config)).returncode == 126
    assert json.loads(node.ask("locks", "--json"))["locks"] == []


def test_commands_share_where_they_may_and_see_the_gpu(directory: Path) -> None:
    (directory / "shared").mkdir(mode=0o755)
    settings = "sharing: {slots: 2, mps: {enabled: true}}\n"
    node = SimulatedNode(directory / "shared", gpus=1, settings=settings, model="A100-80GB")
    script = "echo $CUDA_VISIBLE_DEVICES $CUDA_MPS_ACTIVE_THREAD_PERCENTAGE $CUDA_MPS_PINNED_DEVICE_MEM_LIMIT; read x"
    argv = node.argv("exec", "--model", "a100", "--", "sh", "-c", script)
    two = [
        subprocess.Popen(argv, env=node.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in two:
        assert process.stdout is not None
        assert process.stdout.readline().split() == [node.scenario.uuid(0), "50", "0=40960M"]
    locks = json.loads(node.ask("locks", "--json"))["locks"]
    assert [lock["unit"] for lock in locks] == [f"{node.scenario.uuid(0)}@{k}" for k in (0, 1)]
    assert node.call("exec", "--", "true").returncode == 69
    for process in two:
        process.communicate("\n")
        assert process.returncode == 0
    assert json.loads(node.ask("locks", "--json"))["locks"] == []


def test_a_signal_reaches_the_command_and_the_lock_goes(node: SimulatedNode) -> None:
    with Job(node, "job", 1) as job:
        job.process.send_signal(signal.SIGTERM)
        assert job.process.wait(timeout=20) == 128 + signal.SIGTERM
    assert json.loads(node.ask("locks", "--json"))["locks"] == []


def test_a_lock_lives_as_long_as_its_command_whoever_waits_for_it(node: SimulatedNode) -> None:
    with Job(node, "job", 4) as job:
        job.process.kill()
        job.process.wait(timeout=20)
        assert node.call("exec", "--", "true").returncode == 69
        pid = int(job.seen["pid"])
        os.kill(pid, signal.SIGKILL)
        until(lambda: node.call("exec", "-n", "4", "--", "true").returncode == 0, "the lock freed")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["exec", "-n", "5", "--", "true"], 69, "5 GPUs asked for; this node has 4"),
        (["exec", "-n", "3", "--model", "V100", "--", "true"], 69, "3 GPUs of model V100 asked for; this node has 0"),
        (["exec", "--model", "[AH]100", "--", "true"], 64, "--model: '[AH]100' is not a word"),
        (["exec", "-n", "0", "--", "true"], 64, "-n: '0' is not 1 or more"),
        (["exec", "-n", "x", "--", "true"], 64, "invalid int value"),
        (["exec", "-n", "1"], 64, "command"),
        (["exec", "--wait", "soon", "--", "true"], 64, "--wait"),
        (["locks", "release", "GPU-none"], 64, "no such GPU"),
        (["retire", "9"], 64, "no such GPU"),
        (["nonsense"], 64, "invalid choice"),
        ([], 64, "required"),
    ],
)
def test_bad_input_is_told_in_a_line_and_locks_nothing(
    node: SimulatedNode, words: list[str], status: int, said: str
) -> None:
    done = node.call(*words)
    assert done.returncode == status
    assert said in done.stderr.splitlines()[-1] and done.stdout == ""
    assert json.loads(node.ask("locks", "--json"))["locks"] == []


def test_a_missing_library_is_told_and_locks_nothing(node: SimulatedNode, directory: Path) -> None:
    node.environment["LD_LIBRARY_PATH"] = str(directory)
    done = node.call("exec", "-n", "1", "--", "true")
    assert done.returncode == 69 and len(done.stderr.splitlines()) == 1
    assert "libnvidia-ml.so.1" in done.stderr
    checked = node.call("check", "--json")
    assert checked.returncode == 2
    document = json.loads(checked.stdout)
    assert (document["schema"], document["verdict"]) == ("gpu-nodeagent/check/1", "FAILED")


def test_a_bad_configuration_is_told_with_file_line_and_key(node: SimulatedNode) -> None:
    node.write_config("intervall: 3\n")
    for words in (["config", "check"], ["status"], ["run"], ["exec", "--", "true"]):
        done = node.call(*words)
        assert done.returncode == 78
        assert len(done.stderr.splitlines()) == 1 and "intervall: unknown key" in done.stderr
    node.write_config()
    node.config.chmod(0o666)
    done = node.call("status")
    assert done.returncode == 78 and "others can write it" in done.stderr


def test_the_metrics_of_a_running_agent_name_the_job_and_are_well_formed(node: SimulatedNode) -> None:
    require("promtool")
    with node.agent(), Job(node, "job", 2) as job:
        with urllib.request.urlopen(f"{node.url()}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        uuids = {gpu["uuid"] for gpu in node.status()["gpus"] if gpu["holders"]}
        infos = [line for line in text.splitlines() if line.startswith("gpu_nodeagent_gpu_job_info{")]
        assert {line.partition('uuid="')[2].partition('"')[0] for line in infos} == uuids
        assert all(f'job="{job.seen["pid"]}"' in line and 'scheduler="local"' in line for line in infos)
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
        with urllib.request.urlopen(f"{node.url()}/api/v1/status", timeout=10) as answer:
            served = json.loads(answer.read())
        assert served["schema"] == "gpu-nodeagent/status/1"
        assert [gpu["holders"] for gpu in served["gpus"]] == [gpu["holders"] for gpu in node.status()["gpus"]]


def test_sigterm_ends_the_agent_and_its_probe(node: SimulatedNode) -> None:
    with node.agent() as agent:
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        assert children
        agent.terminate()
        assert agent.wait(timeout=20) == 0
        until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), "the probe gone")
    assert "agent_stopping" in node.log.read_text()


def test_two_agents_on_one_state_directory(node: SimulatedNode) -> None:
    with node.agent():
        done = node.call("run")
        assert done.returncode == 69 and "another agent is running" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="changes to another user, which only root can")
def test_an_ordinary_user_with_a_state_directory_of_their_own(node: SimulatedNode, directory: Path) -> None:
    # The checkout may lie where only root can look: the user gets copies, and the system's interpreter.
    tree = install_tree(directory)
    site = Path(yaml.__file__).parent.parent
    for name in ("yaml", "structlog", "prometheus_client"):
        shutil.copytree(site / name, tree / name)
    shutil.copy(site / "pynvml.py", tree)
    shutil.copytree(node.environment["LD_LIBRARY_PATH"], directory / "lib")
    for path in (directory, node.config, node.scenario.path):
        os.chown(path, 65534, 65534)
    done = subprocess.run(
        [
            *("/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
            *("/usr/bin/python3", "-m", "nodeagent.cli.main", "--config", str(node.config), "exec", "-n", "2", "env"),
        ],
        env={**node.environment, "PYTHONPATH": str(tree), "LD_LIBRARY_PATH": str(directory / "lib")},
        check=False,
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    assert variables(done.stdout)["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert (directory / "state" / "lock").stat().st_uid == 65534


def test_the_demonstration(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.demo"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("job-1: exec -n 2 got GPUs 0,1", "XID 79", "retired", "job-3: exec -n 3 got GPUs 4,5,6", "/metrics"):
        assert words in done.stdout
    assert "nothing is locked" in done.stdout


# -- isolation --------------------------------------------------------------------------------------------------------

TRIES = (
    "import errno, os, sys\n"
    "for path in sys.argv[1:]:\n"
    "    try:\n"
    "        os.close(os.open(path, os.O_RDWR))\n"
    "        print('opens')\n"
    "    except OSError as error:\n"
    "        print(errno.errorcode[error.errno])\n"
)


def isolated(directory: Path, setting: str) -> SimulatedNode:
    node = SimulatedNode(directory, gpus=4, settings=f"isolation: {setting}\n")
    for index, (major, minor) in enumerate(NUMBERS):  # an NVIDIA device file opens only where there is a driver
        make_node(node.roots["dev"] / f"nvidia{index}", major, minor)
    return node


def opened(node: SimulatedNode, *before: str) -> subprocess.CompletedProcess[str]:
    devices = [str(node.roots["dev"] / f"nvidia{index}") for index in range(4)]
    return node.call("exec", "-n", "2", "--", *before, sys.executable, "-ISc", TRIES, *devices)


def confinements(node: SimulatedNode, method: str) -> list[str]:
    """Return what is left of confinements: records, and cgroups below this process's own."""
    records = node.state_dir / "isolation"
    above = directory_of("/proc", os.getpid(), CONTROLLER[method])
    grants = os.listdir(records) if records.exists() else []
    return grants + [name for name in os.listdir(above) if name.startswith(PREFIX)]


@pytest.mark.parametrize("method", VERSIONS)
def test_a_command_of_roots_opens_its_own_gpus_and_no_other(directory: Path, method: str) -> None:
    if os.geteuid() != 0 or not directory_of("/proc", os.getpid(), CONTROLLER[method]):
        unavailable(f"wants root and {method}")
    node = isolated(directory, method)
    before = confinements(node, method)
    done = opened(node)
    assert done.stdout.split() == ["opens", "opens", "EPERM", "EPERM"], done.stderr
    shown = node.call("exec", "-n", "1", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES").stdout
    assert shown.startswith("GPU-")
    assert confinements(node, method) == before
    with node.agent():
        assert opened(node).stdout.split() == ["opens", "opens", "EPERM", "EPERM"]
    assert confinements(node, method) == before


@pytest.mark.parametrize("method", VERSIONS)
def test_what_an_exec_that_was_killed_has_left_is_removed_by_the_next(directory: Path, method: str) -> None:
    if os.geteuid() != 0 or not directory_of("/proc", os.getpid(), CONTROLLER[method]):
        unavailable(f"wants root and {method}")
    node = isolated(directory, method)
    before = confinements(node, method)
    with Job(node, "job", 1) as job:
        job.process.kill()
        os.kill(int(job.seen["pid"]), signal.SIGKILL)
    assert len(confinements(node, method)) == len(before) + 2  # the record and its cgroup
    assert node.call("exec", "-n", "4", "--", "true").returncode == 0
    assert confinements(node, method) == before


def test_a_method_that_cannot_be_had_is_an_error_and_auto_asks_nothing_of_a_user(directory: Path) -> None:
    users = directory / "alice"
    users.mkdir(mode=0o755)
    node = isolated(users, "device-files")  # ModifyDeviceFiles is 1 there
    refused = opened(node)
    assert (refused.returncode, refused.stdout) == (69, "") and "ModifyDeviceFiles" in refused.stderr
    assert json.loads(node.ask("locks", "--json"))["locks"] == []
    if os.geteuid() != 0:
        return
    shutil.rmtree(node.state_dir)
    subprocess.run(["/bin/chown", "-R", "alice", str(users)], check=True)
    tree = install_tree(directory)
    prefix = ["setpriv", "--reuid=alice", "--regid=alice", "--clear-groups", sys.executable, "-m", "nodeagent.cli.main"]
    environment = {**node.environment, "PYTHONPATH": f"{tree}:{os.pathsep.join(sys.path)}"}
    for setting, status, words in (("auto", 0, ""), ("cgroup-v1", 69, "isolation by cgroup-v1")):
        node.settings = f"isolation: {setting}\n"
        node.write_config()
        argv = [*prefix, "--config", str(node.config), "exec", "-n", "1", "--", "true"]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, cwd=users, check=False, timeout=30)
        assert done.returncode == status and words in done.stderr, done.stderr


def test_the_doctor_as_a_command(directory: Path) -> None:
    node = isolated(directory, "none")
    shown = node.call("doctor", "--json")
    document = json.loads(shown.stdout)
    assert document["schema"] == "gpu-nodeagent/doctor/1" and shown.returncode == 1
    [line] = document["lines"]
    assert (line["name"], line["state"]) == ("isolation", "warn") and "isolation: auto" in line["remedy"]
    node.settings = "isolation: device-files\n"
    node.write_config()
    told = node.call("doctor")
    assert told.returncode == 2
    assert "fail  device-files: " in told.stdout and "NVreg_ModifyDeviceFiles=0" in told.stdout
