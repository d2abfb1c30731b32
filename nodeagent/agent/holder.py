"""Keeps each retired GPU of a Slurm node in the hands of a suspended job, and lets go of it when it is restored.

What Slurm has is looked at anew each time, so it makes no difference who was restarted meanwhile: this agent, a daemon
of Slurm's, or the node. Until a holder has its GPU the prolog's refusal keeps jobs off it; a running job is let be.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from math import inf

from nodeagent.agent.decider import ASK_AGAIN
from nodeagent.agent.errand import Errands
from nodeagent.agent.journal import Log
from nodeagent.clock import Clock
from nodeagent.config.model import Config
from nodeagent.errors import NodeAgentError, NoHookConf
from nodeagent.hook.node import Node
from nodeagent.hook.slurm import units_of
from nodeagent.lock.occupancy import named
from nodeagent.lock.store import Store
from nodeagent.lock.unit import device
from nodeagent.scheduler.holder_placing import Outcome, hold
from nodeagent.scheduler.slurm_holder import HolderPort, Unsafe
from nodeagent.state.hook_conf import read_hook_conf
from nodeagent.state.verdict_file import UnitLine, read_verdict

_RARELY = 360
"""Cycles between two looks at Slurm's settings."""
_LONGEST_PAUSE = 12
"""Cycles between two tries to place a holder, at the most: each asks some commands of the controller."""
MOST_CYCLES = 30
"""Cycles in which a holder ought to have its GPU, where nothing is known to keep it from that: then the node goes."""


class HolderKeeper:
    """Once a cycle: `survey` before decisions are made, `run` after them. Asks seldom, and ever more seldom in vain.

    `retired` tells unit → record of all that is retired; `jitter` is a random number from 0 to 1. What asks Slurm is
    one of the `errands`: no cycle waits for it, and while one is under way nothing else here is done.
    """

    def __init__(
        self,
        config: Config,
        port: HolderPort,
        store: Store,
        retired: Callable[[], Mapping[str, object]],
        clock: Clock,
        log: Log,
        errands: Errands,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._config = config
        self._port = port
        self._store = store
        self._retired = retired
        self._clock = clock
        self._log = log
        self._errands = errands
        self._jitter = jitter
        self._chosen = config.scheduler.slurm.retire == "holder"
        self._unsafe: Unsafe | None = None
        self._survey_due = -inf
        self._may_be_some = True  # of an agent before this one
        self._seen: object = None
        self._due = -inf
        self._pause = 1
        self._kept: Mapping[int, str] = {}
        self._since: dict[str, float] = {}
        """Unit → when it was first seen without a holder, for no reason that is known."""
        self._given_up = False
        self._said = ""

    def successor(self, config: Config, port: HolderPort, retired: Callable[[], Mapping[str, object]]) -> HolderKeeper:
        """Return the one that goes on with another configuration.

        It asks Slurm anew, and believes this one till then: no node is drained or resumed for what is not known yet.
        """
        new = HolderKeeper(config, port, self._store, retired, self._clock, self._log, self._errands, self._jitter)
        new._unsafe, new._given_up, new._since = self._unsafe, self._given_up, self._since
        new._kept = self._kept
        new._tell()
        return new

    def survey(self) -> None:
        """Look whether holders are safe here; where they are not a retired GPU drains the node."""
        if self._chosen and self._clock.monotonic() >= self._survey_due and not self._errands.busy:
            self._errands.run(self._ask_settings)

    def _ask_settings(self) -> None:
        now = self._clock.monotonic()
        self._survey_due = now + self._spread(ASK_AGAIN)
        try:
            unsafe = self._port.unsafe()
        except NodeAgentError as error:
            self._say("holder_failed", str(error))
            return
        self._survey_due = now + self._spread(_RARELY)
        if unsafe is not None and unsafe != self._unsafe:
            self._log.error("holder_unsafe", why=unsafe.why, note=f"a retired GPU drains the node; {unsafe.remedy}")
        self._unsafe = unsafe
        self._tell()

    def run(self) -> None:
        """Make what Slurm has what it should have. What fails is left to a later cycle."""
        if self._config.policy.dry_run or self._errands.busy:
            return
        try:
            self._look(self._retired() if self._chosen and self._unsafe is None else {})
        except (NodeAgentError, OSError) as error:
            self._fail(error)

    def _look(self, retired: Mapping[str, object]) -> None:
        """See whether it is time to ask Slurm."""
        if not retired and not self._may_be_some and not self._given_up:
            return
        lines = self._lines() if retired else {}
        wanted = {index: name for index, line in lines.items() if (name := named(line, retired))}
        unknown = frozenset(retired.keys() - set(wanted.values()))
        held = {device(unit) for unit, owner in self._store.owners().items() if owner.scheduler == "slurm"}
        unlocked = [index for index, line in lines.items() if line.unit not in held]
        seen = (wanted, unknown, [index for index in wanted if index in unlocked])
        if seen != self._seen:
            self._pause = 1
        elif self._clock.monotonic() < self._due:
            return
        self._seen = seen
        self._errands.run(lambda: self._hold(wanted, unlocked, unknown))

    def _hold(self, wanted: Mapping[int, str], unlocked: Sequence[int], unknown: frozenset[str]) -> None:
        try:
            outcome = hold(self._port, wanted, unlocked)
        except NodeAgentError as error:
            self._fail(error)
            return
        self._report(outcome, wanted)
        self._judge(outcome, wanted, unknown)
        self._may_be_some = bool(wanted or outcome.cancelled)
        if outcome.settled:
            self._due, self._pause = self._clock.monotonic() + self._spread(ASK_AGAIN), 1
        else:
            self._later()

    def _lines(self) -> dict[int, UnitLine]:
        """Return GRES index → the unit that it means; nothing where that is not known."""
        try:
            conf = read_hook_conf(self._store.state)
        except NoHookConf:
            return {}
        node = Node(self._store.state, "", conf, read_verdict(self._store.state), fresh=True)
        return {index: line for index in sorted(conf.gres) for line in units_of(node, [index])[0]}

    def _report(self, outcome: Outcome, wanted: Mapping[int, str]) -> None:
        for index, job in outcome.kept.items():
            if self._kept.get(index) != job:
                self._log.warning("holder_placed", gpu_uuid=wanted[index], job=job, index=index)
        for job in outcome.cancelled:
            self._log.info("holder_cancelled", job=job)
        self._kept = outcome.kept
        tried = outcome.tried
        waits = [index for index in outcome.missing if index != tried]
        why = f"index {tried}: {outcome.obstacle or 'Slurm does not give it'}" if tried is not None else ""
        if waits:
            why += f"{'; ' if why else ''}index {', '.join(map(str, waits))}: a job has it"
        self._say("holder_waits", why)

    def _judge(self, outcome: Outcome, wanted: Mapping[int, str], unknown: frozenset[str]) -> None:
        """Give a unit up that nobody can hold, though no job has it and nothing is known to be in the way."""
        now, tried = self._clock.monotonic(), outcome.tried
        stuck = set(unknown) | ({wanted[tried]} if tried is not None and not outcome.obstacle else set())
        self._since = {unit: self._since.get(unit, now) for unit in stuck}
        lost = [unit for unit, since in self._since.items() if now - since >= MOST_CYCLES * self._config.interval]
        if lost and not self._given_up:
            why = "its GRES index is not known" if lost[0] in unknown else "Slurm gives it to no holder"
            self._log.error("holder_given_up", gpu_uuid=lost[0], why=why, note="the node is to be drained")
        if tried is not None and not outcome.obstacle:
            self._survey_due = -inf  # somebody may have changed the partition
        self._given_up = bool(lost)
        self._tell()

    def _tell(self) -> None:
        self._port.usable = self._chosen and self._unsafe is None and not self._given_up

    def _fail(self, error: Exception) -> None:
        self._say("holder_failed", str(error))
        self._later()

    def _later(self) -> None:
        self._due = self._clock.monotonic() + self._spread(self._pause)
        self._pause = min(_LONGEST_PAUSE, 2 * self._pause)

    def _spread(self, cycles: int) -> float:
        """Return about so many cycles in seconds, so that nodes which began at once do not ask at once."""
        return cycles * self._config.interval * (0.75 + 0.5 * self._jitter())

    def _say(self, kind: str, why: str) -> None:
        """Say it once, as long as it is the same."""
        if why and why != self._said:
            self._log.warning(kind, why=why)
        self._said = why
