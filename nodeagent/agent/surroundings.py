"""What a sweep of the GPUs is completed with: who holds and uses them, the node's services, site checks, room left."""

from __future__ import annotations

import os
from collections.abc import Mapping

from nodeagent.clock import Clock
from nodeagent.config.model import Config
from nodeagent.errors import NodeAgentError
from nodeagent.external.schedule import SiteChecks
from nodeagent.external.services import Services
from nodeagent.gpu.facts import NodeFacts, altered
from nodeagent.gpu.host import Space
from nodeagent.job.attribution import Attribution
from nodeagent.job.names import UserNames
from nodeagent.lock.record import Owner
from nodeagent.lock.store import Store
from nodeagent.state.files import Directory
from nodeagent.state.hook_conf import read_hook_conf

_SGE_ADMINS = "scheduler.sge.admin_uids"


class Surroundings:
    """Reads around the GPUs; nothing here waits for long."""

    def __init__(self, config: Config, store: Store, clock: Clock) -> None:
        self._config = config
        self._store = store
        self._names = UserNames()
        self._services = Services(clock)
        self._attribution = Attribution(config.roots.proc, _sge_admins(store.state), self._names, clock)
        self._locked = False
        self.site = SiteChecks(clock)
        """The site's own checks."""

    def successor(self, config: Config, store: Store, clock: Clock) -> Surroundings:
        """Return the one that goes on with another configuration."""
        new = Surroundings(config, store, clock)
        new._services, new._locked, new.site = self._services, self._locked, self.site
        return new

    def close(self) -> None:
        """End what runs."""
        self.site.close()

    def complete(self, facts: NodeFacts, patience: float = 0.0, resting: bool = False) -> NodeFacts:
        """Return a sweep that has just been made with what is around the GPUs.

        `patience` (seconds) is for whoever looks once and wants the services' first answer. `resting` says that nothing
        of the site's may run now.
        """
        owners = self._owners()
        if owners is not None:
            facts = self._attribution.of(facts, owners)
            self._locked = self._locked or bool(owners)
        return altered(
            facts,
            site=self.site.step(self._config.checks, lambda: owners is None or bool(owners), resting),
            services=self._services.step(self._config.health.services, patience),
            space=space_in(self._store.state),
            locked=self._locked,
        )

    def _owners(self) -> Mapping[str, Owner] | None:
        try:
            return self._store.owners()
        except (NodeAgentError, OSError):  # the cleaner, which reads the same locks, says it in the log
            return None


def space_in(state: Directory) -> Space | None:
    """Return what is left in a directory's file system; None where that cannot be told."""
    try:
        found = os.fstatvfs(state.fd)
    except OSError:
        return None
    files = found.f_favail if found.f_files else None
    return Space(found.f_bavail * found.f_frsize, files, not found.f_flag & os.ST_RDONLY)


def _sge_admins(state: Directory) -> tuple[int, ...]:
    """Who may own Grid Engine's spool directories, as hook.conf has it."""
    try:
        words = read_hook_conf(state).settings.get(_SGE_ADMINS, "0")
    except (NodeAgentError, OSError):
        words = "0"
    return tuple(int(word) for word in words.split() if word.isdigit())
