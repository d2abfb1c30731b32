"""Grid Engine's prolog and epilog, run as `root@`: the lock decides which GPUs a job gets. Lean."""

import os

from nodeagent.errors import BadRequest, NotIsolated, UnitsUnavailable, UntrustedFile
from nodeagent.hook import emit, epilog, isolation, prolog
from nodeagent.hook.boundary import SGE_RERUN, SGE_USER_ERROR, guarded
from nodeagent.hook.node import Node, open_node, open_state, tell_user
from nodeagent.hook.sge_job import BadAmount, JobFile, UnknownJobFile, job_file, read_job
from nodeagent.hook.sge_login import remember_spool
from nodeagent.hook.sge_shepherd import LONGEST_LINE, OUTSIDE_ARRAYS, with_the_shepherds_word
from nodeagent.lock.model import is_pattern
from nodeagent.lock.record import Owner
from nodeagent.state import reruns
from nodeagent.state.files import check_parents, judge_own, read_trusted_bytes
from nodeagent.state.hook_conf import HookConf
from nodeagent.state.processes import parent
from nodeagent.state.verdict_file import FAILED, UnitLine, VerdictFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from nodeagent.hook.ends import Evidence

DEFAULT_COMPLEX = "gpu"
_QSTAT_TIMEOUT = 1.5


def job_and_task(environ: "Mapping[str, str]") -> "tuple[str, str]":
    """Return the ids of a job and of its task (empty outside arrays).

    Raises:
        BadRequest: this is not called by Grid Engine's shepherd.

    """
    job, task = environ.get("JOB_ID", ""), environ.get("SGE_TASK_ID", OUTSIDE_ARRAYS)
    if not (job.isascii() and job.isdigit() and len(job) <= 10):  # noqa: PLR2004
        raise BadRequest("JOB_ID", job, "a job id")
    if task != OUTSIDE_ARRAYS and not (task.isascii() and task.isdigit()):
        raise BadRequest("SGE_TASK_ID", task, "a task id")
    return job, "" if task == OUTSIDE_ARRAYS else task


class Job:
    """The job as Grid Engine's own files tell it: `job`, `task` (empty outside arrays), spool directories, owner.

    `place` is where the environment is that will be the job's: its spool directory, or that of one of its slave tasks.
    """

    __slots__ = ("admin_uids", "directory", "job", "place", "spool", "task")

    def __init__(self, conf: "HookConf | None", environ: "Mapping[str, str]") -> None:
        """Find the job's spool directory.

        It is believed only if root or Grid Engine's administrator owns it and all above it.

        Raises:
            BadRequest, UntrustedFile, OSError: this is not called by Grid Engine's shepherd.

        """
        self.job, self.task = job_and_task(environ)
        self.directory = environ.get("SGE_JOB_SPOOL_DIR", "")
        if not self.directory.endswith(f"/active_jobs/{self.job}.{self.task or '1'}"):
            raise BadRequest("SGE_JOB_SPOOL_DIR", self.directory, "this job's active_jobs directory")
        self.place = self.directory
        self.spool = self.directory.rpartition("/active_jobs/")[0]
        if conf is not None:
            self.admin_uids = tuple(int(uid) for uid in conf.text("scheduler.sge.admin_uids").split())
        else:  # who administers Grid Engine is not known: whoever owns the spool directory that it named
            self.admin_uids = (os.stat(self.spool).st_uid,)
        check_parents(f"{self.directory}/environment", self.admin_uids)

    def file(self) -> JobFile:
        """Return what the exec daemon's own file says of this job.

        Raises:
            UnknownJobFile, UntrustedFile, OSError: it is missing, of another form, too large, or not to be believed.

        """
        path = job_file(self.spool, self.job, self.task)
        return read_job(path, read_trusted_bytes(path, self.admin_uids)[0])

    def slots(self) -> "list[tuple[str, int]]":
        """Return (host, slots), master host first, from the pe_hostfile that the exec daemon writes for every job."""
        data, _ = read_trusted_bytes(f"{self.directory}/pe_hostfile", self.admin_uids)
        rows = (line.split() for line in data.decode("utf-8", "replace").split("\n"))
        return [(fields[0], int(fields[1])) for fields in rows if len(fields) > 1 and fields[1].isdigit()]

    def shepherd(self) -> int:
        """Return the process that this hook is started by, and that is going to start the job: the exec daemon's word.

        Raises:
            NotIsolated, UntrustedFile, OSError: it is not known, or no process above this one.

        """
        data, _ = read_trusted_bytes(f"{self.directory}/pid", self.admin_uids)
        pid = os.getpid()
        while (pid := parent("/proc", pid)) > 1:
            if str(pid).encode() == data.strip():
                return pid
        raise NotIsolated("", f"{self.directory}/pid names no process above this hook: {data[:20]!r}")

    def export(self, pairs: "Iterable[tuple[str, str]]") -> None:
        """Append to the environment that the job will get; the last line of a name wins over the user's own."""
        data = "".join(f"{name}={value}\n" for name, value in pairs).encode("utf-8", "surrogateescape")
        path = f"{self.place}/environment"
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            judge_own(path, os.fstat(fd), self.admin_uids)
            if os.write(fd, data) != len(data):
                raise OSError(28, "no space for the job's environment", path)
        finally:
            os.close(fd)


def read_request(node: Node, job: Job) -> JobFile:
    """Return what the job asked for: from the exec daemon's file, else from the qmaster.

    Raises:
        NodeAgentError, OSError: neither could be read.

    """
    try:
        return job.file()
    except (UnknownJobFile, UntrustedFile, OSError) as error:
        node.event("job_file_unknown", job=job.job, task=job.task, why=str(error))
        if node.conf is None:
            raise
        return _ask_qmaster(node.conf, job)


def _ask_qmaster(conf: HookConf, job: Job) -> JobFile:
    """Return what `qstat -xml` knows: the binary itself, a time-out, a clean environment."""
    from xml.etree import ElementTree

    from nodeagent.scheduler.command import run

    environment = {f"SGE_{key.upper()}": conf.text(f"scheduler.sge.{key}") for key in ("root", "cell", "arch")}
    for key in ("qmaster_port", "execd_port"):
        if conf.text(f"scheduler.sge.{key}") != "0":
            environment[f"SGE_{key.upper()}"] = conf.text(f"scheduler.sge.{key}")
    said = run((f"{conf.text('scheduler.sge.bin_dir')}/qstat", "-xml", "-j", job.job), environment, _QSTAT_TIMEOUT)
    # qstat prints control characters of a user's variables as they are, which no XML parser takes
    clean = "".join(c for c in said if c.isprintable() or c in "\t\n")
    try:
        root = ElementTree.fromstring(clean)  # noqa: S314  Grid Engine's own binary wrote it, user texts are escaped
    except ElementTree.ParseError as error:
        raise UnknownJobFile(f"qstat -xml -j {job.job}", str(error)) from error
    if root.find(".//JB_job_number") is None:
        raise UnknownJobFile(f"qstat -xml -j {job.job}", "the qmaster does not know the job")
    requests = {
        request.findtext("CE_name", ""): (
            float(request.findtext("CE_doubleval", "0")),
            int(request.findtext("CE_consumable", "1")),
        )
        for request in root.iterfind(".//JB_hard_resource_list/qstat_l_requests")
    }
    texts = {
        request.findtext("CE_name", ""): request.findtext("CE_stringval", "")
        for request in root.iterfind(".//JB_hard_resource_list/qstat_l_requests")
    }
    owner, uid = root.findtext(".//JB_owner", ""), int(root.findtext(".//JB_uid", "-1"))
    return JobFile(owner, uid, requests, job.slots(), texts)


@guarded("sge prolog", on_error=SGE_RERUN)
def run_prolog(arguments: "Sequence[str]", environ: "Mapping[str, str]") -> int:
    """Choose, lock and export the job's GPUs; a job without any is told to see none."""
    node = open_node(arguments)
    environ = with_the_shepherds_word(environ)
    job = Job(node.conf, environ)
    remember_spool(node.state, job.spool)
    request = read_request(node, job)
    conf = node.conf
    name, host = DEFAULT_COMPLEX, ""
    if conf is not None:
        name, host = conf.text("scheduler.sge.complex"), conf.text("node_name")
    try:
        count = request.units(name, host)
        model = model_of(conf, request)
    except (BadAmount, BadRequest) as error:
        node.event("malformed_request", job=job.job, task=job.task, user=request.owner, why=str(error))
        tell_user(str(error))
        return SGE_USER_ERROR
    owner = node.owner(
        "sge",
        job.job,
        task=job.task,
        cluster=conf.text("scheduler.sge.cell") if conf is not None else "",
        node=host,
        run=job.directory,
        user=request.owner,
        uid=str(request.uid),
    )
    if not count:
        if conf is not None:
            isolation.begin(node, conf, owner, (), job.shepherd)
        job.export(emit.gpu_environment(emit.NO_DEVICES))
        return 0
    if conf is None or node.verdict is None:
        return SGE_RERUN
    return _grant(node, conf, node.verdict, job, owner, count, environ, model)


def model_of(conf: "HookConf | None", request: JobFile) -> str:
    """Return the model that the job asks for; empty if it takes any.

    Raises:
        BadRequest: it is an expression that only Grid Engine can judge.

    """
    name = conf.settings.get("scheduler.sge.model_complex", "") if conf is not None else ""
    model = request.texts.get(name, "") if name else ""
    if model and not is_pattern(model):
        raise BadRequest(name, model, "a model: a word of its name, with '*' for anything and '|' for alternatives")
    return model


def _grant(
    node: Node,
    conf: HookConf,
    verdict: VerdictFile,
    job: Job,
    owner: Owner,
    count: int,
    environ: "Mapping[str, str]",
    model: str,
) -> int:
    """Take the units, or say by the status what becomes of the job (DESIGN: outcomes of hooks)."""
    unfit = ""
    if node.fresh and verdict.node_state == FAILED:
        unfit = f"node: {verdict.node_why}"
    elif not node.fresh and conf.text("hooks.on_internal_error") == "refuse":
        unfit = "the agent is not running, and on_internal_error is refuse"
    if unfit:
        node.event("gave_back", owner, why=unfit)
        return SGE_RERUN
    try:
        wait = conf.number("hooks.wait_for_units")
        units = prolog.take(node, verdict, owner, count, wait, model, evidence_of(node, job))
    except prolog.UnitsRetired as error:
        return _give_back(node, conf, owner, error)
    except prolog.UnitsBusy as error:
        node.event("gave_back", owner, why=str(error))
        return SGE_RERUN
    except UnitsUnavailable as error:
        node.event("malformed_request", owner, why=str(error))
        tell_user(str(error))
        return SGE_USER_ERROR
    try:
        constrained = isolation.begin(node, conf, owner, units, job.shepherd)
        job.export(environment(node, conf, units, environ, constrained))
        reruns.forget(node.state, owner.job, owner.task)
    except BaseException:  # it goes on to the boundary; nothing stays locked for a job that will not start
        epilog.release(node.state, "sge", owner.cluster, owner.job, owner.task)
        raise
    node.event("grant", owner, units=" ".join(owner.units))
    return 0


def evidence_of(node: Node, job: Job) -> "Evidence":
    """Return what asks the spool directory of this job's host which grants are over."""

    def look(owners: "Mapping[str, Owner]") -> "Mapping[str, str]":
        from nodeagent.hook.ends import grid_engine

        return grid_engine(node, job.directory, owners)

    return look


def environment(
    node: Node, conf: HookConf, units: "Sequence[UnitLine]", environ: "Mapping[str, str]", constrained: bool
) -> "list[tuple[str, str]]":
    """Return what a job with these units gets; `environ` is what it has so far."""
    # With a list of the user's that is too long the shepherd would read a second line, after all others.
    pairs = emit.bind_environment(emit.driver_binds(conf, node.verdict), environ)
    binds = [(name, value) for name, value in pairs if len(os.fsencode(f"{name}={value}")) <= LONGEST_LINE]
    devices = emit.gpu_environment(emit.visible_devices(conf, units, constrained))
    return [*devices, *emit.share_environment(conf, units), *binds]


def _give_back(node: Node, conf: HookConf, owner: Owner, error: UnitsUnavailable) -> int:
    """Send the job elsewhere, at most `max_reruns` times from this node; then it waits for somebody to look."""
    runs = reruns.count(node.state, owner.job, owner.task)
    node.event("gave_back", owner, why=str(error), reruns=str(runs))
    if runs >= conf.number("hooks.max_reruns"):
        reruns.forget(node.state, owner.job, owner.task)
        tell_user(f"{error}; this job was sent back {runs} times, so it now waits: ask your administrator")
        return SGE_USER_ERROR
    reruns.add(node.state, owner.job, owner.task)
    return SGE_RERUN


@guarded("sge epilog")
def run_epilog(arguments: "Sequence[str]", environ: "Mapping[str, str]") -> int:
    """Give back what this job holds on this node, by the lock's record alone, and end what it left running there."""
    job, task = job_and_task(with_the_shepherds_word(environ))
    epilog.end(open_state(arguments), "sge", "", job, task)
    return 0
