"""Slurm's holders: allocations of root's in a hidden partition, suspended, each with one faulty GPU of this node.

A suspended job gives its CPU back and keeps its GPU. The allocation has no step, so nothing of it runs on the node.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nodeagent.config.model import Slurm
from nodeagent.errors import CommandFailed
from nodeagent.scheduler.reason import PREFIX
from nodeagent.scheduler.slurm_job import granted_indices, names_host

JOB_NAME = "gpu-hold"
RUNNING, SUSPENDED, CONFIGURING = "RUNNING", "SUSPENDED", "CONFIGURING"
_ENDING = "COMPLETING"
_ANSWER = 0.6
"""Seconds in which Slurm says whether it has a GPU free, several times what that takes."""
_COMMENT = re.compile(r"gpu-nodeagent/\d+: (\S+) (\S+)")
_OUT = ("DOWN", "DRAIN", "FAIL", "ERROR", "INVAL", "MAINT", "REBOOT", "POWER", "RESERVED", "UNKNOWN", "FUTURE", "*")
_NO_PREEMPTION = ("preempt/none", "(null)")  # as 22.05 says it, and 24.11
_WANTED = {
    **{"Hidden": "YES", "RootOnly": "YES", "State": "UP", "OverSubscribe": "NO", "MaxTime": "UNLIMITED"},
    **{"ExclusiveUser": "NO", "DisableRootJobs": "NO"},
}


@dataclass(frozen=True)
class Holder:
    """One holder of this node as Slurm has it now: `unit` is what it was made for, `indices` what it got (GRES).

    `partition` and `uid` are Slurm's word on where and whose it is; `state` is Slurm's word in full.
    """

    job: str
    unit: str
    state: str
    indices: tuple[int, ...]
    partition: str
    uid: str


@dataclass(frozen=True)
class Unsafe:
    """Why a holder would not be safe on this node, and what makes it so."""

    why: str
    remedy: str


class HolderPort(Protocol):
    """What the agent asks about holders. Each method may raise CommandFailed and ends within its time-out."""

    usable: bool
    """Whether a GPU is spared by a holder now: what the adapter's `spares_units` says."""
    partition: str

    def unsafe(self) -> Unsafe | None:
        """Return why holders are not safe here; None if they are."""

    def found(self) -> list[Holder]:
        """Return the holders of this node, those of an earlier agent too; not those that are ending."""

    def place(self, unit: str, gpus: int, patient: bool = False) -> None:
        """Ask for so many GPUs of this node on behalf of that unit; which ones they are, `found` tells.

        At once or not at all; a `patient` one stands at the head of Slurm's queue until Slurm has gone through that,
        and so gets a GPU that a job just leaves.
        """

    def suspend(self, job: str) -> None:
        """Suspend a holder."""

    def cancel(self, job: str) -> None:
        """End a holder."""

    def obstacle(self) -> str:
        """Return what keeps any job from a GPU of this node now; empty if nothing does."""


class SlurmHolders:
    """See HolderPort. `run` runs a command of Slurm's by its name; `settings` is what `scontrol show config` says."""

    def __init__(
        self, slurm: Slurm, node: str, run: Callable[..., str], settings: Callable[[], Mapping[str, str]]
    ) -> None:
        self.partition = slurm.hold_partition
        self.usable = slurm.retire == "holder"
        self._gres = slurm.gres
        self._node = node
        self._run = run
        self._settings = settings

    def unsafe(self) -> Unsafe | None:
        """See HolderPort."""
        partitions = parse_partitions(self._run("scontrol", "-a", "-o", "show", "partition"))
        return why_unsafe(self._settings(), partitions, self.partition, self._node)

    def found(self) -> list[Holder]:
        """See HolderPort. Slurm itself selects root's jobs, so a long queue costs the controller nothing."""
        said = self._run("squeue", "-h", "-a", "-u", "0", "-n", JOB_NAME, "-o", "%A|%T|%U|%P|%k")
        return [
            Holder(job, unit, state, self._indices(job), partition, uid)
            for job, state, uid, partition, unit in parse_queue(said, self._node)
        ]

    def _indices(self, job: str) -> tuple[int, ...]:
        return granted_indices(self._run("scontrol", "-d", "show", "job", job), self._gres, self._node) or ()

    def place(self, unit: str, gpus: int, patient: bool = False) -> None:
        """See HolderPort: what does not start in time the command withdraws by itself.

        Once it has the GPUs it waits for the prolog, some seconds long. It is not waited for: killed, it leaves the
        allocation as it is, and `found` tells what that is.
        """
        asked = ("-w", self._node, "-N", "1", "-n", "1", f"--gres={self._gres}:{gpus}", "--mem=1M")
        called = ("-J", JOB_NAME, f"--comment={PREFIX}{self._node} {unit}")
        first = ("-p", self.partition, "--priority=TOP", "--time=UNLIMITED")
        patience = time_to_schedule(self._settings()) if patient else 0
        words = ("--no-shell", f"--immediate={max(1, patience)}", *first, *asked, *called)
        try:
            self._run("salloc", *words, timeout=patience + _ANSWER)
        except CommandFailed as error:
            if error.status is not None:
                raise

    def suspend(self, job: str) -> None:
        """See HolderPort."""
        self._run("scontrol", "suspend", job)

    def cancel(self, job: str) -> None:
        """See HolderPort."""
        self._run("scancel", job)

    def obstacle(self) -> str:
        """See HolderPort."""
        return why_busy(self._run("scontrol", "-o", "show", "node", self._node), self._gres)


def parse_queue(said: str, node: str) -> list[tuple[str, str, str, str, str]]:
    """Return (job, state, uid, partition, unit) of that node's holders from lines of `squeue -o '%A|%T|%U|%P|%k'`."""
    found = []
    for line in said.splitlines():
        job, state, uid, partition, comment = (line.split("|", 4) + [""] * 4)[:5]
        match = _COMMENT.fullmatch(comment.strip())
        if match and match.group(1) == node and state != _ENDING:
            found.append((job, state, uid, partition, match.group(2)))
    return found


def parse_partitions(said: str) -> dict[str, dict[str, str]]:
    """Return partition → its words, from `scontrol -o show partition`."""
    rows = (dict(word.split("=", 1) for word in line.split() if "=" in word) for line in said.splitlines())
    return {row["PartitionName"]: row for row in rows if "PartitionName" in row}


def time_to_schedule(settings: Mapping[str, str]) -> int:
    """Return in how many seconds Slurm goes through its queue when a job has come or gone: 2 to 10.

    slurm.conf(5), SchedulerParameters: batch_sched_delay, 3 by default. With `defer` no job starts sooner.
    """
    found = re.search(r"(?:^|,)batch_sched_delay=(\d+)", settings.get("SchedulerParameters", ""))
    return min(10, max(2, 1 + (int(found.group(1)) if found else 3)))


def partition_line(partition: str, nodes: str) -> str:
    """Return the line of slurm.conf that makes the hidden partition."""
    return (
        f"PartitionName={partition} Nodes={nodes} Hidden=YES RootOnly=YES OverSubscribe=NO PriorityTier=65533"
        " MaxTime=INFINITE State=UP"
    )


def why_unsafe(
    settings: Mapping[str, str], partitions: Mapping[str, Mapping[str, str]], hold: str, node: str
) -> Unsafe | None:
    """Return the first thing that makes holders unsafe, or useless, on a node; None if there is none.

    `settings` are Slurm's own (`scontrol show config`), `partitions` all of its partitions.
    """
    line = f"put into slurm.conf (with all nodes that have GPUs): {partition_line(hold, node)}"
    line += f"; then scontrol reconfigure; {_THEN}"
    mine = partitions.get(hold)
    if mine is None:
        return Unsafe(f"there is no partition {hold}", line)
    if not names_host(mine.get("Nodes", ""), node):
        return Unsafe(f"partition {hold} does not have {node}", line)
    for word, value in _WANTED.items():
        if mine.get(word, value) != value:
            return Unsafe(f"partition {hold} has {word}={mine[word]}", line)
    others = {
        name: words for name, words in partitions.items() if name != hold and names_host(words.get("Nodes", ""), node)
    }
    if any(_number(words.get("PriorityTier")) > _number(mine.get("PriorityTier")) for words in others.values()):
        return Unsafe(f"another partition of {node} has a higher PriorityTier than {hold}", line)
    return _unsafe_settings(settings) or _useless(settings, mine, others)


_THEN = "then reload the agent"
_DRAIN = "leave scheduler.slurm.retire at drain"


def _unsafe_settings(settings: Mapping[str, str]) -> Unsafe | None:
    """Return what could take a GPU from a holder, give it to others besides, or end a job for it."""
    if settings.get("SelectType") != "select/cons_tres":
        return Unsafe(f"SelectType is {settings.get('SelectType')}, not select/cons_tres", _DRAIN)
    if settings.get("PreemptType") not in _NO_PREEMPTION or settings.get("PreemptMode") != "OFF":
        return Unsafe("jobs are preempted here: a holder could end a job, or be resumed", _DRAIN)
    if {"shard", "mps"} & set(settings.get("GresTypes", "").split(",")):
        return Unsafe("GPUs are shared out by shard or mps, also beside a job that has one whole", _DRAIN)
    if settings.get("DisableRootJobs", "NO").upper() == "YES":
        return Unsafe("DisableRootJobs is set: root cannot have a job", _DRAIN)
    return None


def _useless(
    settings: Mapping[str, str], mine: Mapping[str, str], others: Mapping[str, Mapping[str, str]]
) -> Unsafe | None:
    """Return what would keep users' jobs from the node for as long as a holder is on it."""
    tracked = "MEMORY" in (settings.get("SelectTypeParameters", "") + mine.get("SelectTypeParameters", "")).upper()
    for name, words in others.items():
        if "EXCLUSIVE" in words.get("OverSubscribe", "") or "YES" in map(words.get, ("ExclusiveUser", "ExclusiveTopo")):
            return Unsafe(f"jobs of partition {name} have nodes for themselves: none starts beside a holder", _DRAIN)
        default = (settings.get("DefMemPerNode"), words.get("DefMemPerNode"))
        if tracked and default == ("UNLIMITED", "UNLIMITED") and "DefMem" not in words.get("JobDefaults", ""):
            why = f"jobs of partition {name} get all memory of a node unless they ask for less, and a holder has 1 MiB"
            return Unsafe(why, f"set DefMemPerCPU or DefMemPerGPU in slurm.conf; {_THEN}")
    return None


def _number(word: str | None) -> int:
    return int(word) if word and word.isdigit() else 0


def why_busy(said: str, gres: str) -> str:
    """Return why no job could be given a GPU of a node now, from `scontrol -o show node`; empty if one could."""
    words: dict[str, str] = {}
    for word in said.split():
        key, equals, value = word.partition("=")
        if equals:
            words.setdefault(key, value)  # what people write (Reason, Comment) comes after
    state = words.get("State", "UNKNOWN")
    if any(out in state for out in _OUT):
        return f"the node is {state}"
    if "COMPLETING" in state:
        return "a job is ending on the node"
    if _number(words.get("CPUAlloc")) >= _number(words.get("CPUEfctv", words.get("CPUTot"))):
        return "no CPU is free"
    if _number(words.get("AllocMem")) >= _number(words.get("RealMemory")):
        return "no memory is free"
    if _count(words.get("GresUsed", ""), gres) >= _count(words.get("Gres", ""), gres):
        return "jobs have all its GPUs"
    return ""


def _count(records: str, gres: str) -> int:
    """Return how many of a GRES there are in `gpu:tesla:2(S:0),gpu:kepler:1(IDX:3)`."""
    return sum(map(int, re.findall(rf"(?:^|,){re.escape(gres)}(?::[^:(,]+)?:(\d+)(?=[(,]|$)", records)))


@dataclass(frozen=True)
class Plan:
    """What is to be done with holders: `kept` index → job; jobs to `suspend`, jobs to `cancel`, indices to place."""

    kept: Mapping[int, str]
    suspend: Sequence[str]
    cancel: Sequence[str]
    missing: Sequence[int]


def plan(found: Iterable[Holder], wanted: Mapping[int, str], partition: str) -> Plan:
    """Compare the holders that there are with the indices (and their units) that are to be held. Pure.

    One is kept if it is root's, in the right partition, made for a unit that is still wanted, and has one index alone,
    which is wanted and not held by another. It is suspended if it is not, once its prolog is over. All others go.
    """
    kept: dict[int, str] = {}
    suspend, cancel = [], []
    for one in found:
        right = one.uid == "0" and one.partition == partition and one.unit in wanted.values()
        index = one.indices[0] if len(one.indices) == 1 else -1
        if not right or index not in wanted or index in kept or one.state not in (RUNNING, SUSPENDED, CONFIGURING):
            cancel.append(one.job)
            continue
        kept[index] = one.job
        if one.state == RUNNING:
            suspend.append(one.job)
    return Plan(kept, suspend, cancel, sorted(wanted.keys() - kept.keys()))
