"""Slurm's Prolog, TaskProlog and Epilog: Slurm decides which GPUs, the lock records. Lean."""

import os

from nodeagent.errors import BadRequest
from nodeagent.hook import emit, epilog, prolog
from nodeagent.hook.boundary import guarded
from nodeagent.hook.node import Node, open_node, open_state, tell_user
from nodeagent.lock.occupancy import with_slots
from nodeagent.lock.record import Owner
from nodeagent.state.hook_conf import HookConf
from nodeagent.state.verdict_file import FAILED, UnitLine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nodeagent.hook.ends import Evidence

_MOST_GPUS = 256
_COMMAND_TIMES = {"requeue": 1.0, "notify": 0.4, "scancel": 0.4}  # seconds; together below the hook's bound of 2


def parse_indices(text: str) -> "list[int]":
    """Read a list of GRES indices such as `0,2` or `0-3,6`.

    Raises:
        BadRequest: it is anything else.

    """
    indices: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        # isascii: isdigit alone takes other scripts' digits, which int() would read
        if not (_is_index(first) and _is_index(last if dash else first)):
            raise BadRequest("SLURM_JOB_GPUS", text, "a list of GPU indices such as 0,2")
        indices += range(int(first), int(last if dash else first) + 1)
        if len(indices) > _MOST_GPUS:
            raise BadRequest("SLURM_JOB_GPUS", text, f"a list of at most {_MOST_GPUS} GPUs")
    return list(dict.fromkeys(indices))


def _is_index(word: str) -> bool:
    # isdigit alone takes other scripts' digits too
    return word.isascii() and word.isdigit() and len(word) <= 4  # noqa: PLR2004


def _job_id(environ: "Mapping[str, str]") -> str:
    job = environ.get("SLURM_JOB_ID", "")
    if not (job.isascii() and job.isdigit() and len(job) <= 20):  # noqa: PLR2004
        raise BadRequest("SLURM_JOB_ID", job, "a job id")
    return job


def units_of(node: Node, indices: "Sequence[int]") -> "tuple[list[UnitLine], list[int]]":
    """Return the units that GRES indices mean on this node, and the indices that mean none.

    Index → device files as `slurmd -G` said when hook.conf was compiled, files → unit as the agent saw last. A GPU that
    Slurm shares out has as many slots as it has shards there, unless our own configuration gives it more.
    """
    assert node.conf is not None  # noqa: S101  the caller has looked
    lines = node.verdict.units if node.verdict is not None else ()
    known = {(line.minor, tuple(sorted(line.caps))): line for line in lines if line.caps or line.unit == line.gpu}
    units: dict[str, UnitLine] = {}
    unmapped = []
    for index in indices:
        gres = node.conf.gres.get(index)
        line = known.get((gres.minor, tuple(sorted(gres.caps)))) if gres is not None else None
        if gres is None or line is None:
            unmapped.append(index)
        elif line.unit not in units:
            units[line.unit] = with_slots(line, max(gres.slots, line.slots))
    return list(units.values()), unmapped


@guarded("slurm prolog")
def run_prolog(arguments: "Sequence[str]", environ: "Mapping[str, str]") -> int:
    """Prolog=: record the grant in the lock; give the job back if what it was granted is out of service."""
    node = open_node(arguments)
    job = _job_id(environ)
    granted = environ.get("SLURM_JOB_GPUS", "")
    if node.conf is None or _is_holder(node.conf, environ):
        return 0
    owner = node.owner(
        "slurm",
        job,
        cluster=environ.get("SLURM_CLUSTER_NAME", ""),
        node=node.conf.text("node_name"),
        run=environ.get("SLURM_JOB_RESTART_COUNT", ""),
        user=environ.get("SLURM_JOB_USER", ""),
        uid=environ.get("SLURM_JOB_UID", ""),
    )
    try:
        indices = parse_indices(granted) if granted else []
    except BadRequest as error:
        node.event("malformed_request", owner, why=str(error))
        return 0
    return _record(node, node.conf, owner, indices) if indices else 0


def _is_holder(conf: HookConf, environ: "Mapping[str, str]") -> bool:
    """Say whether a job is one by which the agent holds a retired GPU: it locks nothing, so nothing is freed for it.

    Both words are slurmd's own. No user has uid 0, and none but root may use that partition.
    """
    partition = conf.settings.get("scheduler.slurm.hold_partition")  # an older release compiled hook.conf without it
    return environ.get("SLURM_JOB_UID") == "0" and bool(partition) and environ.get("SLURM_JOB_PARTITION") == partition


def _record(node: Node, conf: HookConf, owner: Owner, indices: "Sequence[int]") -> int:
    """Lock what Slurm granted, or give the job back."""
    if node.fresh and node.verdict is not None and node.verdict.node_state == FAILED:
        return _give_back(node, owner, f"node: {node.verdict.node_why}")
    if not node.fresh and conf.text("hooks.on_internal_error") == "refuse":
        return _give_back(node, owner, "the agent is not running, and on_internal_error is refuse")
    units, unmapped = units_of(node, indices)
    if unmapped:
        node.event("unmapped", owner, why=f"no GPU known for GRES index {','.join(map(str, unmapped))}")
    done = prolog.record(node, owner, units, _evidence(node, owner, units))
    if done.unfit:
        return _give_back(node, owner, "; ".join(f"{unit}: {why}" for unit, why in done.unfit))
    for unit, holder in done.conflicts:
        node.event("conflict", owner, units=unit, why=f"granted by Slurm although held by {holder}")
    if done.locked:
        node.event("grant", owner, units=" ".join(done.locked))
    return 0


def _evidence(node: Node, owner: Owner, units: "Sequence[UnitLine]") -> "Evidence":
    """Return how it is seen that those are over whose units Slurm has given to this job."""
    granted = {name for unit in units for name in (unit.unit, unit.gpu)}

    def look(owners: "Mapping[str, Owner]") -> "Mapping[str, str]":
        from nodeagent.hook.ends import slurm

        return slurm(node, owner.cluster, {unit: held for unit, held in owners.items() if unit in granted})

    return look


def _give_back(node: Node, owner: Owner, why: str) -> int:
    """Requeue the job; one that Slurm refuses to requeue (interactive, --no-requeue) is told why and cancelled.

    A controller that does not answer in time may still requeue the job later, so then nothing more is done to it.
    """
    node.event("gave_back", owner, why=why)
    words = f"gpu-nodeagent: job {owner.job} was sent away from {owner.node}: {why}"
    if _command(node, "scontrol", "requeue", owner.job) is False:
        _command(node, "scontrol", "notify", owner.job, " ".join(words.split())[:300])
        if not _command(node, "scancel", owner.job):
            node.event("give_back_failed", owner, why=why)
    return 0


def _command(node: Node, program: str, *arguments: str) -> "bool | None":
    """Run one of Slurm's commands: True done, False refused, None no answer in time. Abnormal rows only."""
    from nodeagent.errors import CommandFailed
    from nodeagent.scheduler.command import run

    assert node.conf is not None  # noqa: S101  _give_back is reached only with one
    conf = node.conf.text("scheduler.slurm.conf")
    argv = (f"{node.conf.text('scheduler.slurm.bin_dir')}/{program}", *arguments)
    timeout = _COMMAND_TIMES["scancel" if program == "scancel" else arguments[0]]
    try:
        run(argv, {"SLURM_CONF": conf} if conf else {}, timeout)
    except CommandFailed as error:
        node.event("command_failed", why=str(error))
        return None if error.status is None else False
    return True


@guarded("slurm epilog")
def run_epilog(arguments: "Sequence[str]", environ: "Mapping[str, str]") -> int:
    """Epilog=: give back what this job holds on this node, and end what it left running there."""
    epilog.end(open_state(arguments), "slurm", environ.get("SLURM_CLUSTER_NAME", ""), _job_id(environ))
    return 0


@guarded("slurm-task prolog", as_user=True)
def run_task_prolog(arguments: "Sequence[str]", environ: "Mapping[str, str]") -> int:
    """TaskProlog=: print what is to be added to the task's environment; runs as the job's user.

    Slurm's own binding of the step is never widened: CUDA_VISIBLE_DEVICES stays as it is, or its very devices are
    named differently. A job whose request makes no sense fails here, with a message, rather than draining a node.
    """
    node = open_node(arguments)
    if node.conf is None:
        return 0
    try:
        for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS"):
            parse_indices(environ.get(name) or "0")
    except BadRequest as error:
        tell_user(str(error))
        return 1
    visible = environ.get("CUDA_VISIBLE_DEVICES", "")
    out: list[tuple[str, str]] = []
    if not _has_gpus(environ):
        if node.conf.text("scheduler.slurm.constrains_devices") == "no":
            out += emit.gpu_environment(emit.NO_DEVICES)
    else:
        if visible and visible.isprintable():
            out += emit.gpu_environment(_translate(node, visible))
        out += emit.bind_environment(emit.driver_binds(node.conf, node.verdict), environ)
    data = "".join(f"export {name}={value}\n" for name, value in out)
    os.write(1, data.encode("utf-8", "surrogateescape"))
    return 0


def _has_gpus(environ: "Mapping[str, str]") -> bool:
    """Say whether Slurm gave this job anything of a GPU: whole, shard or MPS.

    CUDA_VISIBLE_DEVICES says nothing about that: `--gpu-bind=none` leaves it unset, and a user's own may have come
    along from the submission host.
    """
    lists = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")
    counts = ("SLURM_GPUS_ON_NODE", "SLURM_SHARDS_ON_NODE")
    return any(environ.get(name) for name in lists) or any(environ.get(name, "0") != "0" for name in counts)


def _translate(node: Node, visible: str) -> str:
    """Return the same devices as CUDA counts them.

    Where Slurm constrains devices its numbers are already relative to what the task sees. Elsewhere they are GRES
    indices, which differ from CUDA's when the device files do not begin at 0 or a GPU has fallen off the bus.
    """
    assert node.conf is not None  # noqa: S101  the caller has looked
    if node.conf.text("scheduler.slurm.constrains_devices") != "no" or not visible.replace(",", "").isdigit():
        return visible
    units, unmapped = units_of(node, parse_indices(visible))
    if unmapped:
        return visible
    if any(unit.unit != unit.gpu for unit in units):  # CUDA knows an instance by its UUID only
        return emit.visible_devices(node.conf, units)
    if any(unit.index < 0 for unit in units):
        return visible
    if node.conf.text("hooks.cuda_visible_devices") == "uuid":
        return emit.visible_devices(node.conf, units)
    return ",".join(str(unit.index) for unit in units)
