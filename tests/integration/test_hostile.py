"""Hostile users of real schedulers: forged environments, names and requests, against the lock of another's job."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nodeagent.hook.sge_shepherd import LONGEST_LINE
from tests.clusters.process import CommandFailed, open_directory
from tests.integration import test_gridengine, test_slurm
from tests.integration.support import executable, require
from tests.simulated_node import SimulatedNode, until

SHELL_TEXT = "x; touch /; `id` $(id) && \"q\" 'q' | a=b %s %0A"
LONG = "x" * 100_000
LINES = "a\nCUDA_VISIBLE_DEVICES=0,1,2,3\nexport CUDA_VISIBLE_DEVICES=0,1,2,3\nJOB_ID=1\n"
PRELOADED = """#include <fcntl.h>
#include <unistd.h>
__attribute__((constructor)) static void begin(void) {
    if (geteuid() == 0) close(open(CANARY, O_CREAT | O_WRONLY, 0644));
}
"""


class Bait:
    """Programs, modules and a library of a user's. Each leaves the canary if root runs it, and does no harm else."""

    def __init__(self, directory: Path) -> None:
        self.canary = directory / "canary"
        self.place = directory / "bait"
        self.place.mkdir(mode=0o755)
        for name in ("python3", "sh", "env", "scontrol", "scancel", "qstat", "logger"):
            mark = f'[ "$(/usr/bin/id -u)" != 0 ] || : >{self.canary}'
            executable(self.place / name, f'{mark}\nexec /usr/bin/{name} "$@"')
        for name in ("sitecustomize", "usercustomize", "nodeagent", "fcntl"):
            text = f"import posix\nif posix.geteuid() == 0:\n    posix.open({str(self.canary)!r}, 0o101)\n"
            (self.place / f"{name}.py").write_text(text)
        self.library = self.place / "preloaded.so"
        argv = ["cc", "-shared", "-fPIC", f'-DCANARY="{self.canary}"', "-xc", "-", "-o", str(self.library)]
        subprocess.run(argv, input=PRELOADED, text=True, check=True)
        subprocess.run(["/bin/true"], env={"LD_PRELOAD": str(self.library)}, check=True)
        self.canary.unlink()  # it works

        here = str(self.place)
        variables = {"PYTHONPATH": here, "PYTHONSTARTUP": f"{here}/fcntl.py", "PYTHONUSERBASE": here, "BASH_ENV": here}
        variables |= {"LD_PRELOAD": str(self.library), "PATH": f"{here}:/usr/bin:/bin"}
        self.given = ",".join(f"{name}={value}" for name, value in variables.items())
        """What a careless program of root's would run or load something by, as submitting commands take it."""


def check_log(node: SimulatedNode) -> None:
    """Each line of the agent's log begins as a line of its own does."""
    lines = node.log.read_text().splitlines()
    assert [line for line in lines if not re.match(r"\d{4}-\d\d-\d\dT\S+ (debug|info|warning|error)", line)] == []


@contextmanager
def untouched(node: SimulatedNode, job: str) -> Iterator[list[int]]:
    """Make sure that a job's locks are the very same ones afterwards; the block gets its GPUs."""

    def account() -> list[tuple[object, ...]]:
        owners = [path for path in node.state_dir.glob("locks/*/owner") if f"\njob={job}\n" in path.read_text()]
        return sorted(
            (str(path), path.stat().st_ino, path.stat().st_mtime_ns, path.parent.stat().st_ino, path.read_bytes())
            for path in owners
        )

    before = account()
    assert before
    yield [gpu for gpu, holder in node.holders().items() if holder == job]
    assert account() == before


# -- Grid Engine ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gridengine() -> Iterator[test_gridengine.Lab]:
    """Grid Engine with one host of four GPUs."""
    require("gridengine")
    with open_directory("gna-hostile-") as directory, ExitStack() as stack:
        yield test_gridengine.Lab(directory, stack)


def overlong(name: str, start: str, *forged: str) -> str:
    """Return a variable's value after which the shepherd reads further lines."""
    value = start.ljust(LONGEST_LINE + 1 - len(name) - 1, "x")
    for line in forged[:-1]:
        value += line.ljust(LONGEST_LINE + 1, "x")
    return value + forged[-1]


def test_a_user_of_grid_engine(gridengine: test_gridengine.Lab) -> None:
    lab, bait = gridengine, Bait(gridengine.directory)
    holder, holder_gate = lab.begin("-l", "gpu=1", user="bob")
    spool = str(lab.cluster.spool / "active_jobs" / f"{holder}.1")
    texts = {"X": SHELL_TEXT, "Y": LINES, "APPTAINER_BINDPATH": LINES}
    forged = {"JOB_ID": holder, "SGE_TASK_ID": "1", "SGE_JOB_SPOOL_DIR": spool, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    path = overlong("SGE_O_PATH", "/usr/bin:/bin:", f"LD_PRELOAD={bait.library} ", f"JOB_ID={holder}")
    binds = overlong("SINGULARITY_BINDPATH", "/data:", "CUDA_VISIBLE_DEVICES=0,1,2,3")
    jobs: list[tuple[list[str], Mapping[str, str]]] = [
        (["-V", "-v", bait.given], {**forged, **texts}),
        (["-v", f"X={LONG}", "-ac", f"JOB_ID={holder},gpu=4"], {}),
        (["-V", "-N", "a=b$(id)"], {"PATH": path}),
        (["-V"], {"SINGULARITY_BINDPATH": binds}),
    ]
    with untouched(lab.node, holder) as [theirs]:
        for words, environment in jobs:
            gate, script = lab.gates.new()
            script = f"PATH=/usr/bin:/bin\nunset LD_PRELOAD\n{script}"
            job = lab.cluster.submit("alice", ["-l", "gpu=1", *words], script, environment)
            until(lambda job=job: job in lab.node.holders().values(), f"job {job} holds a GPU")
            assert list(lab.node.holders().values()).count(job) == 1
            until(lambda job=job: "begun=yes" in lab.cluster.job_output(job), f"job {job} begins")
            [mine] = [gpu for gpu, name in lab.node.holders().items() if name == job]
            assert mine != theirs
            assert f"CUDA_VISIBLE_DEVICES={mine}\n" in lab.cluster.job_output(job)
            gate.touch()
            until(lambda: list(lab.node.holders().values()) == [holder], "its own GPU freed by its epilog, no other")
            lab.cluster.wait_job_gone(job)
        refused = [["-l", f"gpu={request}"] for request in ("1\n", "1\ngpu=4", "1;id", "-1")]
        for words in (*refused, ["-N", LINES], ["-N", LONG], ["-A", LONG]):
            with pytest.raises(CommandFailed):
                lab.cluster.submit("alice", words)
        waits = lab.cluster.submit("alice", ["-l", f"gpu={'1' * 100_000}"])
        lab.cluster.wait_job_gone(lab.cluster.submit("alice", ["-l", "gpu=1"]))  # the scheduler has seen both
        assert lab.cluster.state(waits) == "qw"
        lab.cluster.qdel(waits)
    assert not bait.canary.exists()
    lab.finish(holder, holder_gate)
    until(lambda: not lab.node.holders(), "all freed")
    check_log(lab.node)
    assert lab.cluster.queue_state() == ""


# -- Slurm ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slurm() -> Iterator[test_slurm.Lab]:
    """Slurm with two nodes of four GPUs each."""
    require("slurm")
    with open_directory("gna-hostile-") as directory, ExitStack() as stack:
        yield test_slurm.Lab(directory, stack)


def test_a_user_of_slurm(slurm: test_slurm.Lab) -> None:
    lab, bait, node = slurm, Bait(slurm.directory), slurm.nodes["n1"]
    holder, holder_gate = lab.begin("--gres=gpu:1", "-w", "n1", user="bob")
    forged = {"SLURM_JOB_ID": holder, "SLURM_JOBID": holder, "SLURM_JOB_GPUS": "0-3", "SLURM_STEP_GPUS": "0-3"}
    forged |= {"SLURM_JOB_UID": "0", "SLURM_JOB_USER": "root", "SLURMD_NODENAME": "../.."}
    forged |= {"X": SHELL_TEXT, "Y": LINES, "APPTAINER_BINDPATH": LINES, "SINGULARITY_BINDPATH": LONG}
    jobs: list[tuple[list[str], Mapping[str, str]]] = [
        ([f"--export=ALL,{bait.given},SLURM_CONF=/dev/zero"], forged),
        ([f"--export={bait.given},CUDA_VISIBLE_DEVICES=0-3,SLURM_JOB_GPUS=0-3", "-J", LONG[:1024]], {}),
        (["-J", LINES, f"--comment={SHELL_TEXT}"], {}),
        (["-J", SHELL_TEXT, f"--comment={LINES}", f"--wckey={SHELL_TEXT}"], {}),
    ]
    with untouched(node, holder) as [theirs]:
        for words, environment in jobs:
            gate, script = lab.gates.new()
            script = f"PATH=/usr/bin:/bin\nunset LD_PRELOAD\n{script}"
            job = lab.cluster.submit("alice", ["--gres=gpu:1", "-w", "n1", *words], script, environment)
            until(lambda job=job: "begun=yes" in lab.cluster.output(job), f"job {job} begins")
            [mine] = [gpu for gpu, name in node.holders().items() if name == job]
            assert mine != theirs
            assert f"\nCUDA_VISIBLE_DEVICES={mine}\n" in f"\n{lab.cluster.output(job)}"
            gate.touch()
            until(lambda: list(node.holders().values()) == [holder], "its own GPU freed by its epilog, no other")
        refused = [f"--gres=gpu:{request}" for request in ("1\n2", "1;id", "-1", "1" * 100_000)]
        for words in (*([word] for word in refused), ["-J", LONG], ["--comment", LONG]):
            with pytest.raises(CommandFailed):
                lab.cluster.submit("alice", words)
    assert not bait.canary.exists()
    lab.finish(holder, holder_gate)
    until(lab.all_free, "all freed")
    check_log(node)
    assert not lab.cluster.node("n1").drained
