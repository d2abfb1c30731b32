"""Slurm through its own commands: scontrol, sinfo, slurmd -G."""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager

from nodeagent.config.model import Config, Slurm
from nodeagent.errors import CommandFailed
from nodeagent.lock.evidence import steps
from nodeagent.lock.record import Owner
from nodeagent.scheduler import slurm_drain
from nodeagent.scheduler.command import Asked, Conversation, Converse, Runner, run
from nodeagent.scheduler.port import Fleet, NodeState
from nodeagent.scheduler.reason import is_ours
from nodeagent.scheduler.slurm_holder import SlurmHolders
from nodeagent.scheduler.slurm_job import granted_indices
from nodeagent.scheduler.slurm_turn import SlurmTurn, lately_drained
from nodeagent.scheduler.turn import Turn
from nodeagent.state.hook_conf import Gres

_MARK = "@@"
_FINAL = (
    *("unknown", "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE"),
    *("OUT_OF_MEMORY", "PENDING"),  # PENDING: it was requeued, and holds nothing on any node
)
_LASTING = {"4294967291", "4294967292", "batch", "extern"}
"""Steps that begin and end with their job: slurm.h's SLURM_BATCH_SCRIPT and SLURM_EXTERN_CONT."""
_SOCKETS = ("/usr/bin/find", "-maxdepth", "1", "-type", "s", "-printf", "%f %T@\n")
_OURS = ("drain", "reboot")  # states in which our reason may stand: `reboot` while one that we asked for is made
_GRES = re.compile(r"Gres Name=(\S+) .*?Count=(\d+)(?: .*?File=(\S+))?")
_SHARED = ("shard", "mps")
_CAPS = "/nvidia-caps/"
_TYPE = re.compile(r"Gres Name=(\S+) Type=(\S+)")
_BRACKETS = re.compile(r"(.*)\[([\d,-]+)\](.*)")


def slurm_environment(slurm: Slurm) -> dict[str, str]:
    """Return what Slurm's commands need to find their cluster; nothing of the caller's environment."""
    return {"SLURM_CONF": slurm.conf} if slurm.conf else {}


class SlurmScheduler:
    """One node of a Slurm cluster. A single GPU is spared where a holder can have it (see docs/decisions)."""

    name = "slurm"

    def __init__(self, config: Config, node: str, runner: Runner = run, converse: Converse = Conversation) -> None:
        self._bin = config.scheduler.slurm.bin_dir
        self._sbin = config.scheduler.slurm.sbin_dir
        self._environment = slurm_environment(config.scheduler.slurm)
        self._gres = config.scheduler.slurm.gres
        self._timeout = config.scheduler.command_timeout
        self._limits = config.limits
        self._node = node
        self._runner = runner
        self._converse = converse
        self._slurmd_said = ""
        self._spool = ""
        self._lasting: set[str] = set()
        self.holders = SlurmHolders(config.scheduler.slurm, node, self._command, self.settings)

    @property
    def spares_units(self) -> bool:
        """See Scheduler: while holders have what is retired."""
        return self.holders.usable

    def _command(self, name: str, *arguments: str, timeout: float | None = None) -> str:
        return self._run(f"{self._bin}/{name}", *arguments, timeout=timeout)

    def _run(self, *argv: str, complaints: bool = False, timeout: float | None = None) -> str:
        return self._runner(argv, self._environment, self._timeout if timeout is None else timeout, complaints)

    def _scontrol(self, *arguments: str) -> str:
        return self._command("scontrol", *arguments)

    def node_state(self) -> NodeState:
        """See Scheduler. Read with the reason last, because a reason may hold newlines."""
        argv = (f"{self._bin}/sinfo", "-N", "-h", "-a", "-n", self._node, "-o", f"{_MARK}%T|%E")
        for state, reason in _records(self._run(*argv), 2):
            out = any(word in state.lower() for word in slurm_drain.OUT)
            return NodeState(out, "" if reason == "none" else reason)
        raise CommandFailed(argv, 0, f"no node {self._node!r} is known; set node_name")

    def fleets(self) -> tuple[Fleet, ...]:
        """See Scheduler: each of this node's partitions but that of holders, or all nodes."""
        said = self._run(f"{self._bin}/sinfo", "-N", "-h", "-a", "-o", f"{_MARK}%R|%N|%T|%E")
        out = lately_drained(self._scontrol, self._limits.window)
        fleets: dict[str, set[str]] = {}
        for partition, node, state, reason in _records(said, 4):
            if partition == self.holders.partition:
                continue
            name = f"partition {partition}" if self._limits.per == "partition" else Fleet.name
            fleets.setdefault(name, set()).add(node)
            if any(word in state.lower() for word in _OURS) and is_ours(reason):
                out.add(node)
        out.discard(self._node)
        return tuple(Fleet(len(nodes), len(nodes & out), name) for name, nodes in fleets.items() if self._node in nodes)

    def turn(self) -> Turn:
        """See Scheduler."""
        return SlurmTurn(self._scontrol, self._node, self._limits.window, self._timeout)

    def drain_scope(self) -> str:
        """See Scheduler."""
        return "node"

    def drain(self, reason: str, scope: str) -> str:
        """See Scheduler."""
        slurm_drain.drain(self._talk, self._node, reason, self._put_back)
        return scope

    def resume(self, scope: str) -> None:
        """See Scheduler."""
        slurm_drain.resume(self._talk, self._node, self._put_back)

    def _put_back(self, reason: str) -> None:
        self._scontrol("update", f"nodename={self._node}", "state=drain", f"reason={reason}")

    def _talk(self) -> AbstractContextManager[Asked]:
        environment = {**self._environment, **slurm_drain.WIDE}
        return self._converse((f"{self._bin}/scontrol",), slurm_drain.PROMPT, environment, self._timeout)

    def reboot(self, reason: str) -> None:
        """See Reboots: the controller has slurmd run RebootProgram when no job is left."""
        words = ("ASAP", "nextstate=resume", f"reason={reason}")
        self._scontrol("reboot", *words, self._node)

    def gres(self) -> dict[int, Gres]:
        """See Scheduler: from what `slurmd -G` says of this node, records in the order in which it says them."""
        return parse_gres(self._slurmd_says(), self._gres)

    def typed_gres(self) -> bool:
        """Say whether this node's GRES are of several types: then a prolog is told of one type only."""
        return len({kind for name, kind in _TYPE.findall(self._slurmd_says()) if name == self._gres}) > 1

    def _slurmd_says(self) -> str:
        if not self._slurmd_said:
            self._slurmd_said = self._run(f"{self._sbin}/slurmd", "-G", "-N", self._node, complaints=True)
        return self._slurmd_said

    def ended_here(self, owners: Iterable[Owner]) -> dict[str, str]:
        """See Scheduler: a step that lives as long as its job was seen here, and now the job has none.

        That is the batch step on its host, and everywhere the extern step where there is one. A job without either
        (`salloc`, the further hosts of a batch job) shows nothing by having no step: only the controller knows it. A
        step that began before the grant is of an earlier run, whose job id this one has again.
        """
        mine = [owner for owner in owners if owner.scheduler == self.name]
        self._lasting &= {owner.grant for owner in mine}
        if not mine:
            return {}
        if not self._spool:
            self._spool = spool_directory(self.settings(), self._node)
        # Another process looks: nobody keeps a site from putting it on a file server.
        said = self._runner((*_SOCKETS[:1], self._spool, *_SOCKETS[1:]), None, self._timeout)
        sockets = [line.split() for line in said.splitlines() if len(line.split()) == 2]  # noqa: PLR2004
        running = steps(name for name, _ in sockets)
        for owner in mine:
            later = steps(name for name, began in sockets if float(began) >= owner.since)
            if not _LASTING.isdisjoint(later.get(owner.job, ())):
                self._lasting.add(owner.grant)
        return {
            owner.grant: f"the step that lasted as long as job {owner.job} is over"
            for owner in mine
            if owner.grant in self._lasting and owner.job not in running
        }

    def ended(self, owners: Iterable[Owner]) -> dict[str, str]:
        """See Scheduler: the controller does not know the job any more, or has it in a state that no job leaves.

        A job that still completes (its epilog runs) is in neither.
        """
        mine = [owner for owner in owners if owner.scheduler == self.name]
        if not mine:
            return {}
        said = self._run(f"{self._bin}/squeue", "-h", "-a", "-t", "all", "-w", self._node, "-o", "%A %T")
        states = dict(line.split()[:2] for line in said.splitlines() if len(line.split()) > 1)
        return {
            owner.grant: f"Slurm has job {owner.job} as {states.get(owner.job, 'unknown')}"
            for owner in mine
            if states.get(owner.job, "unknown") in _FINAL
        }

    def granted(self, owner: Owner) -> tuple[int, ...] | None:
        """See Scheduler: from the controller, for a prolog sees one type only of a job's typed GRES."""
        if owner.scheduler != self.name:
            return None
        try:
            said = self._details(owner.job)
            if "\nJobId=" in said:
                said = self._details(self._own_name(owner.job))
        except CommandFailed as error:
            if "Invalid job id" in str(error):  # ended long ago: the controller works, and knows nothing of it
                return None
            raise
        return granted_indices(said, self._gres, self._node)

    def _details(self, job: str) -> str:
        return self._scontrol("-d", "show", "job", job)

    def _own_name(self, job: str) -> str:
        """Return the name that means this job alone: by its number an array, or a job of components, is all of them."""
        said = self._run(f"{self._bin}/squeue", "-h", "-a", "-t", "all", "-j", job, "-o", f"{_MARK}%A|%i")
        names = [name for number, name in _records(said, 2) if number == job]
        return names[0] if len(names) == 1 and names[0].replace("_", "").replace("+", "").isdigit() else job

    def constrains_devices(self) -> bool:
        """Say whether Slurm itself keeps jobs off other GPUs."""
        return constrains_devices(self.settings())

    def settings(self) -> dict[str, str]:
        """Return what `scontrol show config` says."""
        rows = (line.partition("=") for line in self._scontrol("show", "config").splitlines())
        return {name.strip(): value.strip() for name, equals, value in rows if equals}


def constrains_devices(settings: Mapping[str, str]) -> bool:
    """Say whether Slurm itself keeps jobs off other GPUs (ConstrainDevices in cgroup.conf)."""
    return settings.get("ConstrainDevices", "").lower() == "yes"


def spool_directory(settings: Mapping[str, str], node: str) -> str:
    """Return a node's SlurmdSpoolDir, `%n` and `%h` replaced; empty where it is not said."""
    place = settings.get("SlurmdSpoolDir", "")
    return place.replace("%n", node).replace("%h", socket.gethostname().partition(".")[0])


def gives_gpus_to_one_job(settings: Mapping[str, str]) -> bool:
    """Say whether Slurm never gives a GPU to a job while another has it: no shares, and none of a suspended job's."""
    shared = {"shard", "mps"} & set(settings.get("GresTypes", "shard").split(","))
    mode = settings.get("PreemptMode", "GANG").upper()
    return not shared and "GANG" not in mode and "SUSPEND" not in mode


def _records(said: str, columns: int) -> Iterator[tuple[str, ...]]:
    for record in said.split(_MARK)[1:]:
        fields = record.rstrip("\n").split("|", columns - 1)
        if len(fields) == columns:
            yield tuple(fields)


def parse_gres(said: str, name: str) -> dict[int, Gres]:
    """Return what each GRES index means, from the lines of `slurmd -G`.

    Indices run over the records in their order, a record without File takes its count of them. The minor is the
    device file's own (so a renamed node is right too) or, where it cannot be read, the number at the end of its name.
    `MultipleFiles` of a MIG instance come as its GPU's file and then those in nvidia-caps, all of one index. Shards
    and MPS say how many jobs may have the GPU of that file.
    """
    found: dict[int, Gres] = {}
    slots: dict[int, int] = {}
    index = 0
    for kind, count, files in _GRES.findall(said):
        paths = list(_expand(files)) if files and files != "(null)" else []
        if kind in _SHARED:
            for minor in map(_minor, paths):
                if minor is not None:
                    slots[minor] = max(slots.get(minor, 1), -(-int(count) // len(paths)))
        elif kind == name:
            index = _add_record(found, index, int(count), paths)
    return {at: Gres(gres.minor, gres.caps, slots.get(gres.minor, 1)) for at, gres in found.items()}


def _add_record(found: dict[int, Gres], index: int, count: int, paths: list[str]) -> int:
    """Take up a record whose first index is `index`; return the next record's."""
    devices = 0
    for path in paths:
        minor = _minor(path)
        if _CAPS in path:
            last = found.get(index + devices - 1)
            if last is not None and minor is not None:
                last.caps += (minor,)
            continue
        if minor is not None:
            found[index + devices] = Gres(minor)
        devices += 1
    return index if paths and not devices else index + max(count, devices)


def _expand(files: str) -> Iterator[str]:
    """Yield the names of a host-list expression such as /dev/nvidia[0-3,6]."""
    match = _BRACKETS.fullmatch(files)
    if match is None:
        yield from files.split(",")
        return
    before, inside, after = match.groups()
    for part in inside.split(","):
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield f"{before}{number}{after}"


def _minor(path: str) -> int | None:
    try:
        status = os.stat(path)
        if stat.S_ISCHR(status.st_mode):
            return os.minor(status.st_rdev)
    except OSError:
        pass
    digits = re.search(r"(\d+)$", path)
    return int(digits.group(1)) if digits else None
