"""Son of Grid Engine through its own binaries: qmod, qselect, qconf."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nodeagent.config.model import Config, Sge
from nodeagent.errors import CommandFailed, NodeTaken
from nodeagent.lock.evidence import is_run
from nodeagent.lock.record import Owner
from nodeagent.scheduler.command import Runner, run
from nodeagent.scheduler.port import Fleet, NodeState
from nodeagent.scheduler.sge_groups import Groups
from nodeagent.scheduler.sge_turn import Seen, SgeTurn, lately_drained
from nodeagent.scheduler.turn import Turn
from nodeagent.state.hook_conf import Gres

_RUN = "/active_jobs/"
_CHANGED = re.compile(r'changed state of "([^"]+)" \(disabled\)')


def sge_environment(sge: Sge) -> dict[str, str]:
    """Return what Grid Engine's binaries need to find their cell; nothing of the caller's environment."""
    environment = {"SGE_ROOT": sge.root, "SGE_CELL": sge.cell, "SGE_ARCH": sge.arch}
    if sge.qmaster_port:
        environment["SGE_QMASTER_PORT"] = str(sge.qmaster_port)
    if sge.execd_port:
        environment["SGE_EXECD_PORT"] = str(sge.execd_port)
    return environment


class SgeScheduler:
    """One exec host. A single GPU is spared (`scheduler.sge.retire`), so the host itself rarely has to go."""

    name = "sge"

    def __init__(self, config: Config, node: str, runner: Runner = run) -> None:
        self._sge = config.scheduler.sge
        self.spares_units = self._sge.retire != "drain"
        self._timeout = config.scheduler.command_timeout
        self._limits = config.limits
        self._proc = config.roots.proc
        self._node = node
        self._runner = runner
        self._groups = Groups(self._qconf)
        self._seen = Seen()

    def _qconf(self, *arguments: str) -> str:
        return self._run("qconf", *arguments)

    def _run(self, program: str, *arguments: str) -> str:
        return self._runner((f"{self._sge.bin_dir}/{program}", *arguments), sge_environment(self._sge), self._timeout)

    def _queues(self, *selection: str) -> set[str]:
        """Return the queue instances that `qselect` finds; it leaves with 1 and no word where none is."""
        try:
            said = self._run("qselect", *selection)
        except CommandFailed as error:
            if error.status == 1 and not error.output:
                return set()
            raise
        return {line.strip() for line in said.splitlines() if "@" in line}

    def _open(self) -> set[str]:
        mine = ("-q", f"*@{self._node}")
        return self._queues(*mine) - self._queues("-qs", "d", *mine)

    def node_state(self) -> NodeState:
        """See Scheduler: drained when no queue instance of the host is enabled. No reason is kept for that."""
        return NodeState(not self._open(), None)

    def granted(self, owner: Owner) -> tuple[int, ...] | None:
        """See Scheduler."""
        return None

    def fleets(self) -> tuple[Fleet, ...]:
        """See Scheduler: every host with a disabled queue counts as ours, as Grid Engine does not say whose it is."""
        hosts, out = _hosts(self._queues()), _hosts(self._queues("-qs", "d"))
        out |= lately_drained(self._qconf, self._limits.window)
        out.discard(self._node)
        groups = self._groups.of(self._node) if self._limits.per == "hostgroup" else {}
        fleets = {f"host group {name}": hosts & members for name, members in groups.items()} or {Fleet.name: hosts}
        return tuple(Fleet(len(members), len(members & out), name) for name, members in fleets.items())

    def turn(self) -> Turn:
        """See Scheduler."""
        return SgeTurn(self._qconf, self._node, self._limits.window, self._timeout, self._seen)

    def drain_scope(self) -> str:
        """See Scheduler: the queue instances of the host that are enabled now."""
        return " ".join(sorted(self._open()))

    def drain(self, reason: str, scope: str) -> str:
        """See Scheduler: disable those queue instances; the agent and the load sensor keep the reason.

        Of each the qmaster says whether it changed it, or somebody else had disabled it already: it stays theirs then.
        """
        changed = _CHANGED.findall(self._run("qmod", "-d", *scope.split())) if scope else []
        if not changed:
            raise NodeTaken("")
        return " ".join(sorted(changed))

    def resume(self, scope: str) -> None:
        """See Scheduler: what an administrator disabled stays disabled."""
        if scope:
            self._run("qmod", "-e", *scope.split())

    def ended_here(self, owners: Iterable[Owner]) -> dict[str, str]:
        """See Scheduler: the exec daemon removes a run's spool directory when it has reaped its shepherd.

        Evidence is only that the run is missing from a directory that was listed, never that nothing could be seen:
        a spool may be on a file server, so another process looks at it. A shepherd that is left is the contrary.
        """
        mine = [owner for owner in owners if owner.scheduler == self.name and _RUN in owner.run]
        listed = {
            parent: self._runner(("/bin/ls", "-1", "--", parent), None, self._timeout).split()
            for parent in {owner.run.rpartition("/")[0] for owner in mine}
        }
        return {
            owner.grant: f"the exec daemon has removed {owner.run}"
            for owner in mine
            if owner.run.rpartition("/")[2] not in listed[owner.run.rpartition("/")[0]]
            and not is_run(self._proc, owner)
        }

    def ended(self, owners: Iterable[Owner]) -> dict[str, str]:
        """See Scheduler: the qmaster knows no more than the node, and hears it later."""
        return {}

    def gres(self) -> dict[int, Gres]:
        """See Scheduler."""
        return {}


def _hosts(queues: set[str]) -> set[str]:
    return {queue.partition("@")[2] for queue in queues}
