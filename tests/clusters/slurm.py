"""A real Slurm on loopback: munge, one controller, a few node daemons, each node with GPU device files of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.clusters import process
from tests.clusters.cluster import Cluster
from tests.clusters.process import ClusterError, CommandFailed, Daemon, wait_for
from tests.clusters.slurm_conf import Hook, SlurmConf, checked_hooks, slurm_user
from tests.clusters.slurm_release import Release

NVIDIA_MAJOR = 195
CGROUPS = Path("/sys/fs/cgroup")
QUIET = 0.1
"""Seconds without a new line after which a daemon has done what it was logging about."""

FINISHED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"})
"""The states that a job does not leave any more."""


@dataclass(frozen=True)
class NodeState:
    """What `sinfo` says of one node: state as `%T`; who set which reason and when, empty where there is none."""

    state: str
    user: str
    since: str
    reason: str

    @property
    def drained(self) -> bool:
        """Whether the node takes no new job; jobs may still run on it."""
        return self.state.startswith("drain")


class SlurmCluster(Cluster):
    """One Slurm cluster.

    Each node gets `gpus` character devices `dev-NODE/nvidia0…` and offers them as GRES `gpu`. Hooks (keys of
    `HOOKS`) are paths: slurm.conf takes no arguments for them. `extra_conf` is appended to slurm.conf; `gres`
    and `gres_conf` replace the plain GRES definition (`gres` may differ by node); for `node_words` and
    `partition_words` see SlurmConf. With `cgroups` the steps are tracked and their devices constrained by cgroup v1:
    one such cluster at a time. With `usr` it is the Slurm of that tree (see slurm_release.py), not this machine's.
    """

    def __init__(
        self,
        directory: Path,
        nodes: Sequence[str] = ("n1", "n2"),
        gpus: int = 4,
        prolog: Hook = None,
        epilog: Hook = None,
        task_prolog: Hook = None,
        extra_conf: str = "",
        *,
        cluster: str = "lab",
        cpus: int = 8,
        gres: str | Mapping[str, str] | None = None,
        gres_conf: str | None = None,
        cgroups: bool = False,
        node_words: Mapping[str, str] | None = None,
        partition_words: str = "",
        usr: Path | None = None,
        **hooks: Hook,
    ) -> None:
        super().__init__(directory)
        self.nodes = tuple(nodes)
        self.conf = directory / "slurm.conf"
        if gres is None:
            gres = f"gpu:{gpus}" if gpus else ""
        named = {"prolog": prolog, "epilog": epilog, "task_prolog": task_prolog}
        self._conf = SlurmConf(
            directory=directory,
            nodes=self.nodes,
            gpus=gpus,
            cluster=cluster,
            cpus=cpus,
            gres=gres,
            gres_text=gres_conf,
            cgroups=cgroups,
            extra=extra_conf,
            hooks=checked_hooks({**named, **hooks}),
            node_words=node_words or {},
            partition_words=partition_words,
        )
        self._release = Release(self._nursery, directory, usr) if usr else None
        self._controller: Daemon | None = None
        self._slurmd: dict[str, Daemon] = {}
        self._cgroups_before: set[Path] = set()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make a client command one of this cluster."""
        return {"SLURM_CONF": str(self.conf)}

    @property
    def settings(self) -> str:
        """What an agent's `scheduler.slurm` needs, as YAML without braces."""
        own = f"conf: {self.conf}"
        return (
            own
            if self._release is None
            else f"{own}, bin_dir: {self._release.bin_dir}, sbin_dir: {self._release.bin_dir}"
        )

    def _entrance(self, cwd: Path) -> list[str]:
        return [*self._release.enter(), process.program("env"), f"--chdir={cwd}"] if self._release else []

    def stop(self) -> None:
        """End every process of the cluster, steps and their leftovers included. Harmless when repeated."""
        super().stop()
        self._slurmd.clear()
        self._controller = None
        for top in set(CGROUPS.glob("*/slurm*")) - self._cgroups_before:
            below = [path for path in top.rglob("*") if path.is_dir()]
            for path in (*sorted(below, key=lambda path: -len(path.parts)), top):
                with contextlib.suppress(OSError):
                    path.rmdir()

    # daemons

    def start_slurmctld(self, timeout: float = 10) -> None:
        """Start the controller, which takes up the state it saved; returns when it answers."""
        controller = self._controller = self._launch("slurmctld", "slurmctld", "-D", "-f", str(self.conf))
        wait_for(lambda: self._answers(controller, "scontrol", "ping"), timeout, "slurmctld", self.log_tails)

    def kill_slurmctld(self, sig: int = signal.SIGKILL) -> None:
        """End the controller with a signal; SIGSTOP freezes it instead, SIGCONT wakes it."""
        self._signal(self._controller, sig)

    def slurmd(self, node: str) -> Daemon:
        """The node's daemon."""
        return self._slurmd[node]

    def start_slurmd(self, node: str, timeout: float = 15, *, rebooted: bool = False) -> None:
        """Start a node's daemon, with `rebooted` as after a boot; returns when it has registered."""
        self._launch_slurmd(node, timeout, *(["-b"] if rebooted else []))
        self.wait_node(node, lambda seen: not seen.state.startswith(("down", "unk")) and seen.state[-1] != "*", timeout)

    def kill_slurmd(self, node: str, sig: int = signal.SIGKILL) -> None:
        """End a node's daemon, its steps go on; SIGSTOP freezes it instead, SIGCONT wakes it."""
        self._signal(self._slurmd[node], sig)

    def restart_slurmd(self, node: str, sig: int = signal.SIGTERM) -> None:
        """End a node's daemon with `sig` and start it again."""
        self.kill_slurmd(node, sig)
        self.start_slurmd(node)

    def reconfigure(self, extra_conf: str | None = None, timeout: float = 10, **hooks: Hook) -> None:
        """Set hooks (keys of `HOOKS`, None removes) and the appended lines of slurm.conf.

        Returns when every daemon that runs has taken them up.
        """
        self._conf.hooks.update(checked_hooks(hooks))
        if extra_conf is not None:
            self._conf.extra = extra_conf
        self._conf.write()
        up = [node for node in self.nodes if self._slurmd[node].status() is None]
        before = {node: self._times_configured(node) for node in up}
        self.scontrol("reconfigure")
        for node in up:
            self._wait_configured(node, before[node], timeout)

    # jobs

    def submit(
        self, user: str, args: Sequence[str] = (), script: str = "exit 0\n", env: Mapping[str, str] | None = None
    ) -> str:
        """Submit a batch job as `user` from that user's `work` directory; returns its id.

        A script without a `#!` line is run by sh. Raises CommandFailed if the job is refused.
        """
        text = script if script.startswith("#!") else f"#!/bin/sh\n{script}"
        argv = ["sbatch", "--parsable", *args]
        result = self.command(user, argv, stdin=text, env=env)
        if result.returncode:
            raise CommandFailed(argv, result)
        return result.stdout.strip().split(";")[0]

    def run(
        self, user: str, args: Sequence[str], timeout: float = 60, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`srun` as `user`, to its end; the status is the caller's to judge."""
        return self.command(user, ["srun", *args], env=env, timeout=timeout)

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job -d` says, by key (the last one where a key repeats); empty for an unknown job."""
        result = self.command("root", ["scontrol", "-o", "-d", "show", "job", job])
        return dict(re.findall(r"(?:^|\s)([A-Z][\w/:]*)=(.*?)(?=\s+[A-Z][\w/:]*=|\s*$)", result.stdout))

    def state(self, job: str) -> str:
        """The job's state in full, such as COMPLETED; empty for an unknown job."""
        return self.job(job).get("JobState", "")

    def wait_state(self, job: str, states: Collection[str] = FINISHED, timeout: float = 30) -> str:
        """Wait until the job is in one of `states` and return it.

        RUNNING is the controller's word: the node may still be in its prolog. Wait for `output` to know that the
        script itself has begun.
        """

        def reached() -> str:
            state = self.state(job)
            return state if state in states else ""

        return wait_for(reached, timeout, f"job {job} to be {'|'.join(sorted(states))}", lambda: str(self.job(job)))

    def output(self, job: str) -> str:
        """What the batch job has written to its output file so far."""
        path = Path(self.job(job)["StdOut"])
        return path.read_text() if path.exists() else ""

    # administration

    def scontrol(self, *args: str) -> str:
        """`scontrol` as root; returns its output, raises CommandFailed."""
        return self.checked("scontrol", *args)

    def sinfo(self, *args: str) -> str:
        """`sinfo` as root; returns its output, raises CommandFailed."""
        return self.checked("sinfo", *args)

    def squeue(self, *args: str) -> str:
        """`squeue` as root; returns its output, raises CommandFailed."""
        return self.checked("squeue", *args)

    def scancel(self, *args: str) -> str:
        """`scancel` as root; returns its output, raises CommandFailed."""
        return self.checked("scancel", *args)

    def node(self, node: str) -> NodeState:
        """The node's state, and the reason if it has one."""
        text = self.sinfo("-N", "-h", "-p", "main", "-n", node, "-o", "%T|%u|%H|%E")
        state, user, since, reason = text.rstrip("\n").split("|", 3)
        return NodeState(state, "", "", "") if reason == "none" else NodeState(state, user, since, reason)

    def wait_node(self, node: str, predicate: Callable[[NodeState], bool], timeout: float = 20) -> NodeState:
        """Wait until `predicate` is true of the node's state and return that state."""

        def matching() -> tuple[NodeState, ...]:
            seen = self.node(node)
            return (seen,) if predicate(seen) else ()

        return wait_for(matching, timeout, f"a state of {node}", lambda: str(self.node(node)))[0]

    def device(self, node: str, index: int) -> Path:
        """The device file of a node's GPU."""
        return self.directory / f"dev-{node}" / f"nvidia{index}"

    def spool(self, node: str) -> Path:
        """The node's SlurmdSpoolDir."""
        return self.directory / f"spool-{node}"

    # inside

    def _start(self, timeout: float) -> None:
        self._prepare()
        if self._release:
            self._release.start(timeout)
        self._start_munge()
        self.start_slurmctld(timeout)
        for node in self.nodes:
            self._launch_slurmd(node, timeout)
        wait_for(self._all_idle, timeout, "all nodes to be idle")

    def _prepare(self) -> None:
        for name in ("log", "state", "munge", *(f"spool-{node}" for node in self.nodes)):
            (self.directory / name).mkdir(exist_ok=True)
        owner = pwd.getpwnam(slurm_user())
        for name in ("log", "state"):
            os.chown(self.directory / name, owner.pw_uid, owner.pw_gid)
        for node in self.nodes:
            (self.directory / f"dev-{node}").mkdir(exist_ok=True)
            for index in range(self._conf.gpus):
                device = self.device(node, index)
                if not device.exists():
                    os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(NVIDIA_MAJOR, index))
                    device.chmod(0o666)
        self._conf.ports = process.free_ports(1 + len(self.nodes))
        self._conf.write()
        self._cgroups_before = set(CGROUPS.glob("*/slurm*"))

    def _start_munge(self) -> None:
        """A munge of the cluster's own: another cluster's, or the machine's, is neither used nor disturbed."""
        home = self.directory / "munge"
        key = home / "key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(secrets.token_bytes(1024))
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        places = [f"--{option}={home / name}" for option, name in files.items()]
        munged = self._launch("munged", "munged", "--foreground", "--num-threads=2", *places)
        question = ("munge", "--no-input", "--socket", str(home / "socket"), "--output", "/dev/null")
        wait_for(lambda: self._answers(munged, *question), 5, "munged", self.log_tails)

    def _launch_slurmd(self, node: str, timeout: float, *words: str) -> None:
        before = self._log_of(node).count("slurmd started on")
        argv = ["-D", *words, "-N", node, "-f", str(self.conf)]
        daemon = self._slurmd[node] = self._launch(f"slurmd-{node}", "slurmd", *argv)

        def started() -> bool:
            if (status := daemon.status()) is not None:
                raise ClusterError(f"{daemon.name} ended with {status}")
            return self._log_of(node).count("slurmd started on") > before

        wait_for(started, timeout, daemon.name, self.log_tails)

    def _all_idle(self) -> bool:
        return self.sinfo("-N", "-h", "-p", "main", "-o", "%T").split() == ["idle"] * len(self.nodes)

    def _log_of(self, node: str) -> str:
        path = self.logs / f"slurmd-{node}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _times_configured(self, node: str) -> int:
        log = self._log_of(node)
        return log.count("got reconfigure request") + log.count("slurmd started on")

    def _wait_configured(self, node: str, before: int, timeout: float) -> None:
        """Wait for a node's daemon: it logs the request and then reads its files, so until its log has rested."""
        wait_for(lambda: self._times_configured(node) > before, timeout, f"slurmd of {node}", self.log_tails)
        path = self.logs / f"slurmd-{node}.log"
        wait_for(lambda: time.time() - path.stat().st_mtime > QUIET, timeout, f"the log of {node} to rest")

    def _launch(self, label: str, program: str, *arguments: str) -> Daemon:
        entrance = self._release.enter() if self._release else []
        environment = {"PATH": process.SYSTEM_PATH, "LANG": "C.UTF-8", **self.environment}
        return self._nursery.start(label, [*entrance, process.program(program), *arguments], environment)
