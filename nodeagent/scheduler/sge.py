"""Son of Grid Engine through its own binaries: qmod, qselect, qconf."""

from __future__ import annotations

from collections.abc import Iterable

from nodeagent.config.model import Config, Sge
from nodeagent.errors import CommandFailed
from nodeagent.lock.evidence import is_run
from nodeagent.lock.record import Owner
from nodeagent.scheduler.command import Runner, run
from nodeagent.scheduler.port import Fleet, NodeState
from nodeagent.state.hook_conf import Gres

_RUN = "/active_jobs/"


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
        self._proc = config.roots.proc
        self._node = node
        self._runner = runner

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

    def fleet(self) -> Fleet:
        """See Scheduler: every host with a disabled queue counts as ours, as Grid Engine does not say whose it is."""
        return Fleet(len(_hosts(self._queues())), len(_hosts(self._queues("-qs", "d"))))

    def drain_scope(self) -> str:
        """See Scheduler: the queue instances of the host that are enabled now."""
        return " ".join(sorted(self._open()))

    def drain(self, reason: str, scope: str) -> None:
        """See Scheduler: disable those queue instances; the agent and the load sensor keep the reason."""
        if scope:
            self._run("qmod", "-d", *scope.split())

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
