"""`gpu-nodeagent doctor`: what of this node's set-up is not as it should be, and what to type."""

from __future__ import annotations

import argparse
import os
import pwd
from collections.abc import Callable, Sequence
from dataclasses import asdict

from nodeagent.cli.context import loaded, print_json
from nodeagent.cli.main import Exit, say
from nodeagent.config.model import Config
from nodeagent.doctor.line import FAIL, STATES, WARN, Look
from nodeagent.doctor.registry import examine
from nodeagent.isolation.confine import methods
from nodeagent.report import schema
from nodeagent.scheduler.command import run as run_process
from nodeagent.scheduler.registry import node_name
from nodeagent.scheduler.sge import sge_environment
from nodeagent.scheduler.slurm import SlurmScheduler, slurm_environment
from nodeagent.state.processes import named

_EXIT = {WARN: Exit.DEGRADED, FAIL: Exit.FAILED}
_EXEC_DAEMON = "sge_execd"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(options: argparse.Namespace) -> int:
    """Print a line a check; exit 0 if all is well, 1 with a warning, 2 with a failure."""
    config = loaded(options).config
    node = node_name(config)
    lines = examine(_look(config, node))
    if options.json:
        print_json({**schema("doctor"), "node": node, "lines": [asdict(line) for line in lines]})
    else:
        for line in lines:
            say(f"{line.state:4}  {line.name}: {line.evidence}")
            if line.remedy:
                say(f"      {line.remedy}")
    worst = max((line.state for line in lines), key=STATES.index, default=STATES[0])
    return _EXIT.get(worst, Exit.OK)


def _look(config: Config, node: str) -> Look:
    starter, name = os.getpid(), "gpu-nodeagent exec"
    if config.scheduler.kind == "sge":
        daemons = named("/proc", _EXEC_DAEMON)
        starter, name = (daemons[0], _EXEC_DAEMON) if daemons else (starter, f"{_EXEC_DAEMON} (which does not run)")
    slurm = SlurmScheduler(config, node)
    uid = os.geteuid()
    user = pwd.getpwuid(uid).pw_name
    ways = methods(config.roots.proc)

    def no_holder() -> tuple[str, str]:
        unsafe = slurm.holders.unsafe()
        return (unsafe.why, unsafe.remedy) if unsafe is not None else ("", "")

    asking = _asking(config)
    return Look(config, starter, name, slurm.constrains_devices, ways, uid == 0, node, user, asking, no_holder)


def _asking(config: Config) -> Callable[[Sequence[str]], str]:
    """Return what runs the scheduler's commands, in the environment that they need."""
    settings = config.scheduler
    environment = sge_environment(settings.sge) if settings.kind == "sge" else slurm_environment(settings.slurm)
    return lambda argv: run_process(argv, environment, settings.command_timeout)
