"""Which adapter serves `scheduler.kind`: one line a scheduler."""

from __future__ import annotations

import socket

from nodeagent.config.model import Config
from nodeagent.scheduler.command import Conversation, Converse, Runner, run
from nodeagent.scheduler.local import LocalScheduler
from nodeagent.scheduler.port import Scheduler
from nodeagent.scheduler.sge import SgeScheduler
from nodeagent.scheduler.slurm import SlurmScheduler


def node_name(config: Config) -> str:
    """Return the name by which the scheduler knows this node: as configured, else the host's own short name.

    Grid Engine knows hosts by the name they have themselves, domain included.
    """
    own = socket.gethostname()
    return config.node_name or (own if config.scheduler.kind == "sge" else own.partition(".")[0])


def scheduler_of(config: Config, runner: Runner = run, converse: Converse = Conversation) -> Scheduler:
    """Return the adapter of the configured scheduler."""
    node = node_name(config)
    if config.scheduler.kind == "slurm":
        return SlurmScheduler(config, node, runner, converse)
    if config.scheduler.kind == "sge":
        return SgeScheduler(config, node, runner)
    return LocalScheduler()
