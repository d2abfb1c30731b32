"""Grid Engine's `shepherd_cmd`: the tasks of a parallel job, and its slave hosts, where no prolog runs. Lean.

The exec daemon starts it for each job and each task of a parallel job, in the spool directory of that job or task, as
root or with root's real and its administrator's effective uid. The first task on a slave host locks what the job was
granted there, every task is told of it, and then this process is the shepherd, whatever happened before. The lock goes
like every lock that no epilog comes for: when the exec daemon has removed the job's spool directory.
"""

import os

from nodeagent.errors import BadRequest, NodeAgentError, UnitsUnavailable
from nodeagent.hook import emit, isolation, prolog, sge
from nodeagent.hook.node import Node, complain, open_node, open_state
from nodeagent.hook.sge_job import ONCE_A_JOB
from nodeagent.lock.record import new_grant
from nodeagent.state.files import read_trusted_bytes
from nodeagent.state.hook_conf import HookConf, read_hook_conf
from nodeagent.state.verdict_file import UnitLine, VerdictFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SHEPHERD = "sge_shepherd"
GRANT_LINK = "gpu-nodeagent"
_GRANT_LENGTH = 16


class Task(sge.Job):
    """A task of a parallel job; `environ` is what it has so far, `is_slave` says that another host has the master."""

    __slots__ = ("environ", "is_slave")

    def __init__(self, conf: "HookConf | None", place: str) -> None:
        """Read the environment that the exec daemon has made for the task in its spool directory `place`.

        Which job it is of is said by the directory alone; the environment only says whether the job is an array.

        Raises:
            BadRequest, UntrustedFile, OSError: this is no such directory.

        """
        directory = place.rpartition("/")[0]
        data = read_trusted_bytes(f"{place}/environment", (os.stat(directory).st_uid,))[0]
        lines = data.decode("utf-8", "surrogateescape").split("\n")
        self.environ = dict(line.split("=", 1) for line in lines if "=" in line)  # the last line of a name wins
        job, _, task = directory.rpartition("/")[2].partition(".")
        array = task if self.environ.get("SGE_TASK_ID") == task else "undefined"
        super().__init__(conf, {"JOB_ID": job, "SGE_TASK_ID": array, "SGE_JOB_SPOOL_DIR": directory})
        self.place = place
        self.is_slave = not os.path.lexists(f"{directory}/config")

    def slots(self) -> "list[tuple[str, int]]":
        """Return the slots on this host; there is no pe_hostfile on slave hosts."""
        return [("", int(self.environ.get("NSLOTS", "1")))]

    def grant(self) -> "tuple[str, bool]":
        """Return the name of the grant that all tasks of the job share on this slave host, and whether it is new.

        It is a link in the job's spool directory: made at once and complete by the first task, gone with this run.
        """
        path = f"{self.directory}/{GRANT_LINK}"
        first = True
        try:
            os.symlink(new_grant(), path)
        except FileExistsError:
            first = False
        name = os.readlink(path)
        if len(name) != _GRANT_LENGTH or not name.isalnum():
            raise BadRequest(path, name, "the name of a grant")
        return name, first


def become_shepherd(arguments: "Sequence[str]", environ: "Mapping[str, str]") -> None:
    """Prepare the task in whose spool directory this is, then exec the shepherd; returns only if there is none.

    Args:
        arguments: `--config PATH` or nothing, then whatever the shepherd is to be told besides `-bg`.
        environ: the exec daemon's own, which no user can set.

    """
    split = 2 if arguments[:1] == ["--config"] else 0
    places = [f"{environ.get('SGE_ROOT')}/bin/{environ.get('SGE_ARCH')}", "/usr/lib/gridengine"]
    uid, gid, umask = os.geteuid(), os.getegid(), os.umask(0o022)
    try:
        if os.getuid() == 0:
            os.seteuid(0)
            os.setegid(0)
        places[:0] = _prepare(arguments[:split], os.getcwd())
    except Exception as error:  # noqa: BLE001  a hook's boundary: the task starts, without GPUs
        complain(f"sge shepherd: {error if isinstance(error, (NodeAgentError, OSError)) else repr(error)}")
    finally:
        os.setegid(gid)
        os.seteuid(uid)
        os.umask(umask)
        _restore_signals()
    _exec(places, arguments[split:])


def _exec(places: "Sequence[str]", arguments: "Sequence[str]") -> None:
    """Be the shepherd, as the exec daemon starts its own: with `-bg`, and the job's number in its name for `ps`."""
    job = os.getcwd().rpartition("/active_jobs/")[2].partition(".")[0]
    for place in places:
        try:
            os.execv(f"{place}/{SHEPHERD}", [f"{SHEPHERD}-{job}", "-bg", *arguments])  # noqa: S606  its wrapper
        except OSError:
            continue


def _restore_signals() -> None:
    """Undo what Python does at its start: what is ignored stays so in the shepherd, and in the job."""
    import _signal  # type: ignore[import-not-found]  # part of the interpreter, which no stubs describe

    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)


def _prepare(arguments: "Sequence[str]", place: str) -> "list[str]":
    """Tell the task that is about to start in `place` of its GPUs; return where the shepherd is.

    A job itself is its prolog's business. On a failure of ours a task is told that it has none.

    Raises:
        NodeAgentError, OSError: what failed.

    """
    if "/active_jobs/" not in place.rpartition("/")[0]:
        return [read_hook_conf(open_state(arguments)).text("scheduler.sge.bin_dir")]
    try:
        node = open_node(arguments)
        task = Task(node.conf, place)
        pairs = list(emit.gpu_environment(emit.NO_DEVICES))
        if node.conf is not None and node.verdict is not None:
            units = (_take if task.is_slave else _of_the_job)(node, node.conf, node.verdict, task)
            constrained = _confine(node, node.conf, task, units)
            if units:
                pairs = sge.environment(node, node.conf, units, task.environ, constrained)
        task.export(pairs)
    except Exception:
        _blind(place)
        raise
    return [node.conf.text("scheduler.sge.bin_dir")] if node.conf is not None else []


def _confine(node: Node, conf: HookConf, task: Task, units: "Sequence[UnitLine]") -> bool:
    """Keep the task's shepherd, which this process is going to be, off other GPUs, and with it all that it starts.

    Each task is confined by itself, under a name of its own, which is over with its shepherd. With device-files the
    job is: on the master host by its prolog, on a slave host by each task in the same way.

    Raises:
        NodeAgentError: the task is not confined.

    """
    owner = node.owner("sge", task.job, task=task.task, cluster=conf.text("scheduler.sge.cell"), run=task.directory)
    if conf.settings.get("isolation") == "device-files":
        if not task.is_slave:
            return True
        owner.grant = task.grant()[0]
        owner.uid = str(sge.read_request(node, task).uid)
    return isolation.begin(node, conf, owner, units, os.getpid)


def _blind(place: str) -> None:
    """Let the task see no GPU, whatever its environment is like."""
    fd = os.open(f"{place}/environment", os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        lines = "".join(f"{name}={value}\n" for name, value in emit.gpu_environment(emit.NO_DEVICES))
        os.write(fd, lines.encode())
    finally:
        os.close(fd)


def _of_the_job(node: Node, conf: HookConf, verdict: VerdictFile, task: Task) -> "list[UnitLine]":
    """Return what the prolog has locked: the job's master is on this host too."""
    cluster = conf.text("scheduler.sge.cell")
    owners = node.store.owners()
    return prolog.lines_of(verdict, [u for u in owners if owners[u].is_job("sge", cluster, task.job, task.task)])


def _take(node: Node, conf: HookConf, verdict: VerdictFile, task: Task) -> "list[UnitLine]":
    """Lock what the job was granted on this host, unless another of its tasks has done so; return it."""
    request = sge.read_request(node, task)
    name, host = conf.text("scheduler.sge.complex"), conf.text("node_name")
    if request.requests.get(name, (0, 0))[1] == ONCE_A_JOB:  # booked on the master host only
        return []
    count = request.units(name, host)
    if not count:
        return []
    owner = node.owner(
        "sge",
        task.job,
        task=task.task,
        cluster=conf.text("scheduler.sge.cell"),
        node=host,
        run=task.directory,
        user=request.owner,
        uid=str(request.uid),
    )
    owner.grant, first = task.grant()
    try:
        wait, model = conf.number("hooks.wait_for_units"), sge.model_of(conf, request)
        units = prolog.take(node, verdict, owner, count, wait, model, sge.evidence_of(node, task))
    except UnitsUnavailable as error:
        node.event("slave_without_units", owner, why=str(error))
        return []
    if first:
        node.event("grant", owner, units=" ".join(owner.units))
    return units
