"""`gpu-nodeagent run`: builds the agent from its real parts and serves until told to stop."""

from __future__ import annotations

import argparse
import fcntl
import os

from nodeagent.agent.actions import Actions, Records
from nodeagent.agent.cycle import Cycle, Ports
from nodeagent.agent.journal import Log, open_log
from nodeagent.agent.loop import Agent
from nodeagent.agent.notify import Notifier
from nodeagent.cli.main import Exit
from nodeagent.clock import SystemClock
from nodeagent.config.compile import compile_hook_conf
from nodeagent.config.load import load
from nodeagent.config.model import Loaded
from nodeagent.errors import AlreadyRunning, ConfigError
from nodeagent.gpu.probe import ProbeProcess
from nodeagent.lock.store import Store
from nodeagent.metrics.server import MetricsServer, Provider
from nodeagent.scheduler.registry import node_name, scheduler_of
from nodeagent.state.files import Directory
from nodeagent.state.hook_conf import HOOK_CONF
from nodeagent.version import VERSION

_RUNNING = "agent.lock"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""


def run(options: argparse.Namespace) -> int:
    """Serve; exit 0 when told to stop."""
    found = load(options.config)
    log = open_log(found.config.log.level)
    state = Directory(found.config.state_dir, create=True)
    _be_the_only_one(state)
    cycle = _build(found, state, log)
    agent: Agent

    def reload(old: Cycle) -> Cycle:
        again = load(options.config)
        _same_place(found, again)
        ports = _ports(again, state, log)
        _compile(again, state, log)
        old.end()
        return old.successor(again.config, ports)

    page = None
    if found.config.listen != "none":
        page = MetricsServer(found.config.listen, _Page(lambda: agent.cycle, state))
    agent = Agent(cycle, SystemClock(), log, Notifier(), reload, page)
    agent.run()
    return Exit.OK


def _same_place(old: Loaded, new: Loaded) -> None:
    """Refuse a reload of what is fixed while the agent runs."""
    fixed = ("state_dir", "data_dir", "node_name", "listen")
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


def _ports(found: Loaded, state: Directory, log: Log) -> Ports:
    scheduler = scheduler_of(found.config)
    actions = Actions(Store(state), Records(found.config.data_dir), scheduler, found.config.limits.max_drained)
    return Ports(state, ProbeProcess(found.config), scheduler, actions, SystemClock(), log)


def _compile(found: Loaded, state: Directory, log: Log) -> None:
    conf, problems = compile_hook_conf(found)
    state.replace(HOOK_CONF, conf.encode())
    for problem in problems:
        log.warning("hook_conf_incomplete", why=problem)


def _build(found: Loaded, state: Directory, log: Log) -> Cycle:
    _compile(found, state, log)
    return Cycle(found.config, node_name(found.config), VERSION, _ports(found, state, log))


class _Page(Provider):
    """What the metrics server asks for."""
