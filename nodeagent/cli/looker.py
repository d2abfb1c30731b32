"""A look at the GPUs without the agent: read now, judged with what an agent remembers of this boot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from nodeagent.agent.surroundings import Surroundings
from nodeagent.cli.context import open_state
from nodeagent.clock import SystemClock
from nodeagent.config.model import Config
from nodeagent.errors import NodeAgentError
from nodeagent.gpu.facts import NodeFacts, SiteResult
from nodeagent.gpu.probe import ProbeProcess
from nodeagent.health.memory import Memory, from_plain
from nodeagent.health.verdict import Verdict, judge
from nodeagent.lock.store import Store
from nodeagent.state.documents import MEMORY, read_document
from nodeagent.state.files import Directory
from nodeagent.state.verdict_file import UNKNOWN

_PATIENCE = 1.0
"""Seconds that the one look waits for systemd."""


class Looker:
    """Reads with a probe process of its own, which ends with `close`.

    The site's own checks are not run: what an agent knows of them stands.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._source = ProbeProcess(config)
        state = _state_of(config)
        around = replace(config, checks={})
        self._surroundings = None if state is None else Surroundings(around, Store(state), SystemClock())
        self._memory = Memory() if state is None else _remembered(state)

    def read(self) -> NodeFacts:
        """Return what is read now, with the XIDs that came since the last time."""
        facts = self._source.sample()
        facts = replace(facts, xids=self._source.take_xids())
        if self._surroundings is not None:
            facts = self._surroundings.complete(facts, _PATIENCE)
        return replace(facts, site=tuple(SiteResult(name) for name in self._config.checks))

    def judge(self, facts: NodeFacts) -> Verdict:
        """Return the verdict on that; as one look is all there is, every finding counts at once."""
        settings = replace(self._config.health, default_strikes=1, strikes={}, dwell={}, settle=0.0)
        verdict, self._memory = judge(self._memory, facts, settings)
        return verdict

    def close(self) -> None:
        """End what was started."""
        self._source.close()


def look(config: Config) -> tuple[Verdict, NodeFacts]:
    """Look once."""
    looker = Looker(config)
    try:
        facts = looker.read()
        return looker.judge(facts), facts
    finally:
        looker.close()


def watch(
    config: Config, looks: Callable[[Callable[[], NodeFacts]], Iterator[NodeFacts]]
) -> tuple[Verdict, NodeFacts, int]:
    """Look as often as `looks` does with the reader that it is given, or until the user interrupts.

    Returns the last verdict, what it is about, and how often there was one.
    """
    looker = Looker(config)
    facts = NodeFacts("", 0.0)
    verdict, count = Verdict("", 0.0, node_state=UNKNOWN), 0
    try:
        for facts in looks(looker.read):
            verdict = looker.judge(facts)
            count += 1
    except KeyboardInterrupt:
        if not count:
            raise
    finally:
        looker.close()
    return verdict, facts, count


def _state_of(config: Config) -> Directory | None:
    try:
        return open_state(config)
    except (NodeAgentError, OSError):  # nobody has made it, or it is not to be believed: then there are no locks either
        return None


def _remembered(state: Directory) -> Memory:
    """What an agent remembers of this boot; nothing where that cannot be read."""
    try:
        plain = read_document(state, MEMORY)
        return Memory() if plain is None else from_plain(plain)
    except (NodeAgentError, OSError):
        return Memory()
