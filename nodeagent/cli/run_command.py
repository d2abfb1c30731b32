"""`gpu-nodeagent run`: builds the agent from its real parts and serves until told to stop."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from nodeagent.agent.actions import Actions
from nodeagent.agent.capacity import Capacity, LoweredFile
from nodeagent.agent.cycle import Cycle
from nodeagent.agent.decider import ASK_AGAIN
from nodeagent.agent.errand import Beside, Errands
from nodeagent.agent.journal import Log, open_log
from nodeagent.agent.loop import Agent
from nodeagent.agent.notify import Notifier
from nodeagent.agent.ports import Ports
from nodeagent.agent.records import Records
from nodeagent.cli.context import status_of
from nodeagent.cli.main import Exit
from nodeagent.clock import SystemClock
from nodeagent.config.compile import compile_hook_conf
from nodeagent.config.load import load
from nodeagent.config.model import Config, Loaded
from nodeagent.errors import AlreadyRunning, ConfigError, NoHookConf, UnknownFormat, UntrustedFile
from nodeagent.gpu.probe import ProbeProcess
from nodeagent.history.store import Store as HistoryStore
from nodeagent.history.writer import Writer
from nodeagent.lock.record import Owner
from nodeagent.lock.store import LOCKS, Store
from nodeagent.metrics.server import MetricsServer, directory_version
from nodeagent.scheduler.registry import node_name, scheduler_of
from nodeagent.scheduler.sge_capacity import SgeCapacity
from nodeagent.scheduler.slurm import SlurmScheduler
from nodeagent.snapshot import Snapshot
from nodeagent.state.boot import boot_id
from nodeagent.state.files import Directory
from nodeagent.state.hook_conf import HOOK_CONF, TYPED_GRES, read_hook_conf
from nodeagent.version import VERSION

_RUNNING = "agent.lock"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""


def run(options: argparse.Namespace) -> int:
    """Serve; exit 0 when told to stop."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    found = load(options.config)
    log = open_log(found.config.log.level)
    state = Directory(found.config.state_dir, create=True)
    _be_the_only_one(state)
    compiler = HookConfCompiler(found, state, log)
    try:
        compiler()
    except OSError as error:  # a full state directory: hooks work with what they have, the agent without
        log.error("hook_conf_failed", why=str(error))
    source = ProbeProcess(found.config)
    records = Records(found.config.data_dir)
    lowered = LoweredFile(Directory(found.config.data_dir))
    changes = Beside(log)
    kept = found.config.history
    history = Writer(lambda: HistoryStore(found.config.data_dir), kept.max_age, kept.max_size, log)
    history.start()
    errands, holder_errands = Beside(log), Beside(log)

    def ports(config: Config, compiler: HookConfCompiler) -> Ports:
        boot = boot_id(config.roots.proc)
        scheduler = scheduler_of(config)
        actions = Actions(Store(state), records, scheduler, config.limits.max_drained, boot, history.record)
        holders = scheduler.holders if isinstance(scheduler, SlurmScheduler) else None
        capacity = capacity_of(config, lowered, changes, log)
        return Ports(
            *(state, source, scheduler, actions, SystemClock(), log, compiler, history, errands),
            holders=holders,
            holder_errands=holder_errands,
            capacity=capacity,
        )

    def reload(old: Cycle) -> Cycle:
        again = load(options.config)
        _same_place(found, again)
        compiler = HookConfCompiler(again, state, log)
        new = old.successor(again.config, ports(again.config, compiler))
        compiler(may_open_driver=not old.is_out)  # last: hooks and agent change together or not at all
        source.configure(again.config)
        history.max_age, history.max_size = again.config.history.max_age, again.config.history.max_size
        return new

    cycle = Cycle(found.config, node_name(found.config), VERSION, ports(found.config, compiler))
    agent = Agent(cycle, SystemClock(), log, Notifier(), reload)
    if found.config.listen != "none":
        agent.page = MetricsServer(found.config.listen, _Page(agent, found.config.state_dir))
    agent.run()
    return Exit.OK


def capacity_of(config: Config, file: LoweredFile, errands: Errands, log: Log) -> Capacity | None:
    """Return the hand on what a Grid Engine host offers, also where it only gives back what it once took."""
    if config.scheduler.kind != "sge":
        return None
    offer = SgeCapacity(config, node_name(config))
    may_lower = config.scheduler.sge.retire == "complex_values" and not config.policy.dry_run
    return Capacity(offer, file, ASK_AGAIN * config.interval, SystemClock(), log, errands, may_lower)


def _same_place(old: Loaded, new: Loaded) -> None:
    """Refuse a reload of what is fixed while the agent runs.

    Raises:
        ConfigError: such a setting was changed.

    """
    fixed = ("state_dir", "data_dir", "node_name", "listen", "roots", "log")
    changed = [key for key in fixed if getattr(old.config, key) != getattr(new.config, key)]
    if changed:
        raise ConfigError([f"{new.path}: {key}: cannot change while the agent runs; restart it" for key in changed])


def _be_the_only_one(state: Directory) -> None:
    """Hold a lock for the life of this process.

    Raises:
        AlreadyRunning: another agent has it.

    """
    fd = os.open(_RUNNING, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=state.fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise AlreadyRunning(state.path) from error


class HookConfCompiler:
    """Writes hook.conf; called again as long as the scheduler has not told all that hooks need."""

    def __init__(self, found: Loaded, state: Directory, log: Log) -> None:
        self._found = found
        self._state = state
        self._log = log
        self._said: list[str] = []
        self.complete = False

    def __call__(self, may_open_driver: bool = True) -> None:
        """Compile and write. What Slurm does not tell now is kept as it was told before."""
        conf, problems = compile_hook_conf(self._found, may_open_driver)
        if problems and not conf.gres:
            try:
                before = read_hook_conf(self._state)
                conf.gres.update(before.gres)
                conf.settings.setdefault(TYPED_GRES, before.settings.get(TYPED_GRES, "no"))
            except (NoHookConf, UnknownFormat, UntrustedFile):
                pass
        self._state.replace(HOOK_CONF, conf.encode())
        for problem in problems:
            if problem not in self._said:
                self._log.warning("hook_conf_incomplete", why=problem)
        self._said = problems
        self.complete = not problems


class _Page:
    """What the metrics server asks for (see Provider). Called from its threads; opens the state anew each time."""

    def __init__(self, agent: Agent, state_dir: str) -> None:
        self._agent = agent
        self._state_dir = state_dir

    def snapshot(self) -> Snapshot | None:
        return self._agent.cycle.snapshot

    def owners(self) -> Mapping[str, Owner]:
        state = Directory(self._state_dir)
        try:
            return Store(state).owners()
        finally:
            state.close()

    def locks_version(self) -> object:
        return directory_version(f"{self._state_dir}/{LOCKS}")

    def status(self) -> Mapping[str, Any] | None:
        cycle = self._agent.cycle
        if cycle.snapshot is None:
            return None
        state = Directory(self._state_dir)
        try:
            return status_of(cycle.config, state)
        finally:
            state.close()

    def monotonic(self) -> float:
        return time.monotonic()
