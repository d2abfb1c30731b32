"""`gpu-nodeagent drain REASON`: take this node out of the scheduler; the agent will not give it back by itself."""

from __future__ import annotations

import argparse

from nodeagent.cli.context import actions_of, loaded, with_scheduler
from nodeagent.cli.main import Exit, say
from nodeagent.health.finding import RecoveryAction
from nodeagent.policy.decide import BY_ADMIN
from nodeagent.scheduler.reason import PREFIX


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("reason", help="what people will read")


def run(options: argparse.Namespace) -> int:
    """Drain the node, whatever the limit says; another's reason still stands above ours."""
    reason = PREFIX + " ".join(options.reason.split())
    actions = actions_of(with_scheduler(loaded(options).config))
    actions.drain(reason, RecoveryAction.NONE, BY_ADMIN, force=True)
    say(f"drained: {reason}")
    return Exit.OK
