"""Son of Grid Engine through its own binaries: qmod, qselect, qconf."""

from __future__ import annotations

from nodeagent.config.model import Config, Sge
from nodeagent.errors import CommandFailed
from nodeagent.scheduler.command import Runner, run
from nodeagent.scheduler.port import Fleet, NodeState


def sge_environment(sge: Sge) -> dict[str, str]:
    """Return what Grid Engine's binaries need to find their cell; nothing of the caller's environment."""
    environment = {"SGE_ROOT": sge.root, "SGE_CELL": sge.cell, "SGE_ARCH": sge.arch}
    if sge.qmaster_port:
        environment["SGE_QMASTER_PORT"] = str(sge.qmaster_port)
    if sge.execd_port:
        environment["SGE_EXECD_PORT"] = str(sge.execd_port)
    return environment


class SgeScheduler:
    """One exec host. A single GPU is spared through the load sensor, so the host itself rarely has to go."""

    name = "sge"
    spares_units = True

    def __init__(self, config: Config, node: str, runner: Runner = run) -> None:
        self._sge = config.scheduler.sge
        self._timeout = config.scheduler.command_timeout
        self._node = node
        self._runner = runner

    def _run(self, program: str, *arguments: str) -> str:
        return self._runner((f"{self._sge.bin_dir}/{program}", *arguments), sge_environment(self._sge), self._timeout)

    def _hosts(self, *selection: str) -> set[str]:
        """Return the hosts of the queue instances that `qselect` finds; it leaves with 1 and no word where none is."""
        try:
            said = self._run("qselect", *selection)
        except CommandFailed as error:
            if error.status == 1 and not error.output:
                return set()
            raise
        return {line.partition("@")[2].strip() for line in said.splitlines() if "@" in line}

    def node_state(self) -> NodeState:
        """See Scheduler. Grid Engine keeps no reason for a disabled queue."""
        return NodeState(bool(self._hosts("-qs", "d", "-q", f"*@{self._node}")), None)

    def fleet(self) -> Fleet:
        """See Scheduler: every host with a disabled queue counts as ours, as Grid Engine does not say whose it is."""
        return Fleet(len(self._hosts()), len(self._hosts("-qs", "d")))

    def drain(self, reason: str) -> None:
        """See Scheduler: disable every queue instance of the host; the agent and the load sensor keep the reason."""
        self._run("qmod", "-d", f"*@{self._node}")

    def resume(self) -> None:
        """See Scheduler."""
        self._run("qmod", "-e", f"*@{self._node}")

    def gres_minors(self) -> dict[int, int]:
        """See Scheduler."""
        return {}
