"""A real Grid Engine on this host: a cell of its own, one master, one queue, one exec host or several.

The one exec host is this machine: both daemons listen on every address of it (they know no bind address), on ports
chosen for each cluster, for as long as the cluster is up. Several are namespaces of it (see `hosts.py`); the master and
client commands are on the first of them. Hooks and jobs see `SGE_ND=1` in their environment, by which the daemons stay
in the foreground.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tests.clusters import gridengine_cell as cell
from tests.clusters import process
from tests.clusters.cluster import Cluster
from tests.clusters.hosts import Hosts
from tests.clusters.process import ClusterError, CommandFailed, Daemon, wait_for

QUEUE = "all.q"


class GridEngineCluster(Cluster):
    """One Grid Engine cluster.

    `prolog` and `epilog` are the queue's attributes in full, such as `root@/path --config /other`; `load_sensor`
    is a path. Each exec host offers `gpus` of the complex `gpu`; the queue `all.q` has `slots` slots on each and the
    parallel environments `smp` (one host) and `mpi` (round robin). `complexes` are lines as `qconf -sc` writes them.
    With `hosts` there are as many exec hosts as names.
    """

    client_directories = (str(cell.BINARIES),)

    def __init__(
        self,
        directory: Path,
        prolog: str | None = None,
        epilog: str | None = None,
        gpus: int = 4,
        load_sensor: Path | str | None = None,
        complexes: Sequence[str] = cell.COMPLEXES,
        *,
        slots: int = 8,
        hosts: Sequence[str] = (),
    ) -> None:
        super().__init__(directory)
        self.root = directory / "root"
        self.hosts = tuple(hosts) or (socket.gethostname(),)
        self.host = self.hosts[0]
        self._namespaces = Hosts(self._nursery, directory, hosts) if hosts else None
        self._hooks = {"prolog": prolog or "NONE", "epilog": epilog or "NONE"}
        self._gpus = gpus
        self._load_sensor = str(load_sensor) if load_sensor else "none"
        self._complexes = tuple(complexes)
        self._slots = slots
        self._qmaster: Daemon | None = None
        self._execds: dict[str, Daemon] = {}
        self._ports = [0, 0]

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make a client command one of this cluster."""
        return {
            "SGE_ROOT": str(self.root),
            "SGE_CELL": cell.CELL,
            "SGE_ARCH": cell.ARCHITECTURE,
            "SGE_QMASTER_PORT": str(self._ports[0]),
            "SGE_EXECD_PORT": str(self._ports[1]),
        }

    @property
    def spool(self) -> Path:
        """The exec daemon's spool directory of the first host."""
        return self.spool_of(self.host)

    def spool_of(self, host: str) -> Path:
        """An exec daemon's spool directory: `jobs`, `active_jobs`, `messages`.

        The daemon names it after what the host's address resolves to, which host_aliases does not change:
        `localhost` on a machine that has only loopback.
        """
        top = self.directory / "execd"
        return top / host if self._namespaces else next(top.glob("*"), top / host)

    def enter(self, host: str, cwd: Path | str = "/") -> list[str]:
        """The words before a command that run it on that host."""
        return self._namespaces.enter(host, cwd) if self._namespaces else []

    def _entrance(self, cwd: Path) -> list[str]:
        return self.enter(self.host, cwd)

    def stop(self) -> None:
        """End every process of the cluster, jobs and their leftovers included. Harmless when repeated."""
        super().stop()
        self._qmaster = None
        self._execds.clear()

    def log_files(self) -> list[Path]:
        """The logs of all daemons."""
        spools = [self.spool_of(host) / "messages" for host in self.hosts]
        return [*super().log_files(), self.directory / "qmaster" / "messages", *spools]

    # daemons

    def start_qmaster(self, timeout: float = 20) -> None:
        """Start the master daemon; returns when it answers."""
        daemon = self._qmaster = self._launch("sge_qmaster")
        wait_for(lambda: self._answers(daemon, "qconf", "-sconf"), timeout, daemon.name, self.log_tails)

    def start_execd(self, timeout: float = 20, host: str = "") -> None:
        """Start the exec daemon (of the first host, or of another); returns when the master knows its load."""
        name = host or self.host
        daemon = self._execds[name] = self._launch("sge_execd", name)
        ping = ("qping", "-info", name, str(self._ports[1]), "execd", "1")
        wait_for(lambda: self._answers(daemon, *ping), timeout, daemon.name, self.log_tails)
        wait_for(lambda: self._answers(daemon, "qconf", "-se", name), timeout, daemon.name, self.log_tails)
        wait_for(lambda: self.qhost_values("num_proc", name), timeout, f"the load of {name}", self.log_tails)

    def kill_qmaster(self, sig: int = signal.SIGKILL) -> None:
        """End the master daemon with a signal; SIGSTOP freezes it instead, SIGCONT wakes it."""
        self._signal(self._qmaster, sig)

    def kill_execd(self, sig: int = signal.SIGKILL, host: str = "") -> None:
        """End the exec daemon with a signal, its jobs go on; SIGSTOP freezes it instead, SIGCONT wakes it.

        An exec daemon that is started again looks after such jobs once a minute: until then they stay listed as `r`.
        """
        self._signal(self._execds.get(host or self.host), sig)

    # jobs

    def submit(
        self, user: str, args: Sequence[str] = (), script: str = "exit 0\n", env: Mapping[str, str] | None = None
    ) -> str:
        """Submit a batch job for sh as `user` from that user's `work` directory; returns its id.

        Output and errors go to one file, see `job_output`; `args` may say otherwise. Raises CommandFailed if the
        job is refused.
        """
        output = f"{self.work(user)}/$JOB_ID.$TASK_ID.out"
        argv = ["qsub", "-terse", "-cwd", "-j", "y", "-S", "/bin/sh", "-o", output, *args]
        result = self.command(user, argv, stdin=script, env=env)
        if result.returncode:
            raise CommandFailed(argv, result)
        return result.stdout.strip().split(".")[0]

    def qrsh(
        self, user: str, args: Sequence[str], timeout: float = 60, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`qrsh -now no` as `user`, to its end; the status is the caller's to judge."""
        return self.command(user, ["qrsh", "-now", "no", *args], env=env, timeout=timeout)

    def states(self) -> dict[str, str]:
        """The state letters (r, qw, Eqw and so on) of all jobs that the master knows, by `JOB` or `JOB.TASK`."""
        found: dict[str, str] = {}
        for entry in ET.fromstring(self.qstat("-u", "*", "-xml")).iter("job_list"):  # noqa: S314 - our own master
            job, task = entry.findtext("JB_job_number", ""), entry.findtext("tasks", "")
            found[f"{job}.{task}" if task else job] = entry.findtext("state", "")
        return found

    def state(self, job: str) -> str:
        """The state letters of one job, of its first listed task in an array; empty once the job is gone."""
        return next((state for name, state in self.states().items() if job in {name, name.split(".")[0]}), "")

    def wait_state(self, job: str, states: Collection[str], timeout: float = 30) -> str:
        """Wait until the job's letters are one of `states` and return them."""

        def reached() -> str:
            state = self.state(job)
            return state if state in states else ""

        return wait_for(reached, timeout, f"job {job} to be {'|'.join(sorted(states))}", lambda: self._why(job))

    def wait_job_gone(self, job: str, timeout: float = 30) -> None:
        """Wait until the master does not list the job any more; fails at once when it stays in an error state."""

        def gone() -> bool:
            state = self.state(job)
            if "E" in state:
                raise ClusterError(f"job {job} is in state {state}\n{self._why(job)}")
            return not state

        wait_for(gone, timeout, f"the end of job {job}", lambda: self._why(job))

    def job_output(self, job: str, task: int | None = None) -> str:
        """What the job, or that task of an array, has written so far."""
        found = next(self.directory.glob(f"work-*/{job}.{task or 0}.out"), None)
        return found.read_text() if found else ""

    def accounting(self, job: str, timeout: float = 10) -> dict[str, str]:
        """What `qacct -j` says of a job that has ended, of its last record where there are several."""

        def record() -> str:
            return self.command("root", ["qacct", "-j", job]).stdout

        rows = (line.split(None, 1) for line in wait_for(record, timeout, f"the account of job {job}").splitlines())
        return {row[0]: row[1].strip() for row in rows if len(row) == 2}

    # administration

    def qconf(self, *args: str) -> str:
        """`qconf` as root; returns its output, raises CommandFailed."""
        return self.checked("qconf", *args)

    def qstat(self, *args: str) -> str:
        """`qstat` as root; returns its output, raises CommandFailed."""
        return self.checked("qstat", *args)

    def qmod(self, *args: str) -> str:
        """`qmod` as root; returns its output, raises CommandFailed."""
        return self.checked("qmod", *args)

    def qdel(self, *args: str) -> str:
        """`qdel` as root; returns its output, raises CommandFailed."""
        return self.checked("qdel", *args)

    def set_prolog(self, prolog: str | None, epilog: str | None = None) -> None:
        """Set both hooks of the queue, for jobs that start from now on; None removes."""
        self.set_queue(prolog=prolog or "NONE", epilog=epilog or "NONE")

    def set_queue(self, **attributes: str) -> None:
        """Set attributes of the queue, such as `load_thresholds="gpu_faulty=1"`."""
        self._modify("-Mq", attributes, self.qconf("-sq", QUEUE))

    def set_global(self, **attributes: str) -> None:
        """Set attributes of the global configuration, such as `load_report_time="00:00:05"`."""
        self._modify("-Mconf", attributes, self.qconf("-sconf"), name="global")

    def set_scheduler(self, **attributes: str) -> None:
        """Set attributes of the scheduler's configuration, such as `load_formula="gpu"`."""
        self._modify("-Msconf", attributes, self.qconf("-ssconf"))

    def set_load_sensor(self, path: Path | str | None) -> None:
        """Let the exec daemon run that load sensor; None removes it. Its first values follow after a report or two."""
        self.set_global(load_sensor=str(path) if path else "none")

    def qhost_values(self, complex_name: str, host: str = "") -> str | None:
        """The value of a complex on a host as `qhost -F` gives it, whatever its source; None where there is none."""
        text = self.checked("qhost", "-F", "-h", host or self.host)
        found = re.search(rf"^\s+\w\w:{re.escape(complex_name)}=(.*)$", text, re.MULTILINE)
        return found.group(1).strip() if found else None

    def queue_state(self, host: str = "") -> str:
        """The state letters of the queue on a host, such as E, d, a or u; empty when it is well."""
        for line in self.qstat("-f", "-q", f"{QUEUE}@{host or self.host}").splitlines():
            if line.startswith(f"{QUEUE}@"):
                fields = line.split()
                return fields[5] if len(fields) > 5 else ""
        raise ClusterError(f"no queue instance of {QUEUE}")

    def clear_error(self) -> None:
        """Clear the queue's error state."""
        self.qmod("-cq", QUEUE)

    # inside

    def _start(self, timeout: float) -> None:
        self.logs.mkdir(exist_ok=True)
        self._ports = process.free_ports(2)
        new = not self.root.exists()
        if new:
            cell.make_files(self.directory, self.hosts, self._ports[0], self._load_sensor)
        if self._namespaces:
            self._namespaces.start(timeout)
        if new:
            for argv in cell.database_commands(self.directory):
                self.checked(*argv)
        self.start_qmaster(timeout)
        if new:
            self._configure()
        for host in self.hosts:
            self.start_execd(timeout, host)
            if new and self._gpus:
                self.qconf("-aattr", "exechost", "complex_values", f"gpu={self._gpus}", host)
        if new:
            self._make_queue()

    def _configure(self) -> None:
        """Make what a new cell lacks: the hosts, complexes, parallel environments, and the scheduler's pace."""
        for at, host in enumerate(self.hosts):
            self.qconf("-ah", host)
            self.qconf("-as", host)
            if self._namespaces:
                self._from_file("-Aconf", cell.host_settings(self._ports[0], at, len(self.hosts)), host)
        plain = [line for line in self.qconf("-sc").splitlines() if not line.startswith("#")]
        self._from_file("-Mc", "".join(f"{line}\n" for line in (*plain, *self._complexes)))
        self._from_file("-Ap", cell.PARALLEL_ENVIRONMENT)
        self._from_file("-Ap", cell.replace_settings(cell.PARALLEL_ENVIRONMENT, cell.ACROSS_HOSTS))
        self._modify("-Msconf", cell.SCHEDULER_SETTINGS, self.qconf("-ssconf"))

    def _make_queue(self) -> None:
        queue = {
            "qname": QUEUE,
            "hostlist": " ".join(self.hosts),
            "slots": str(self._slots),
            "load_thresholds": "NONE",
            "pe_list": "smp mpi",
            "tmpdir": f"{self.directory}/tmp",
            **self._hooks,
        }
        self._modify("-Aq", queue, self.qconf("-sq"))
        for host in self.hosts:
            wait_for(lambda host=host: self.queue_state(host) == "", 10, f"{QUEUE} on {host}", self.log_tails)  # type: ignore[misc]

    def _launch(self, name: str, host: str = "") -> Daemon:
        """Start a daemon in the foreground, which SGE_ND asks for."""
        base = {"PATH": process.SYSTEM_PATH, "LANG": "C.UTF-8", "SGE_ND": "1"}
        argv = [*self.enter(host or self.host), str(cell.BINARIES / name)]
        label = f"{name}-{host}" if self._namespaces and host else name
        return self._nursery.start(label, argv, {**base, **self.environment})

    def _modify(self, option: str, settings: Mapping[str, str], current: str, name: str = "settings") -> None:
        self._from_file(option, cell.replace_settings(current, settings), name)

    def _from_file(self, option: str, text: str, name: str = "settings") -> None:
        """`qconf OPTION FILE`; the file's name matters to -Mconf."""
        with tempfile.TemporaryDirectory(dir=self.directory) as scratch:
            path = Path(scratch, name)
            path.write_text(text)
            self.qconf(option, str(path))

    def _why(self, job: str) -> str:
        return self.command("root", ["qstat", "-j", job]).stdout + self.log_tails()
