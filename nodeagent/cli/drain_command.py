"""`gpu-nodeagent drain`: take this node out of the scheduler; the agent will not give it back by itself."""

from __future__ import annotations

import argparse

from nodeagent.agent.actions import Actions
from nodeagent.cli import deed, plan
from nodeagent.cli.context import actions_of, loaded, with_scheduler
from nodeagent.cli.deed import Deed
from nodeagent.health.finding import RecoveryAction
from nodeagent.policy.decide import BY_ADMIN
from nodeagent.scheduler.reason import PREFIX
from nodeagent.scheduler.registry import node_name


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    reason = parser.add_mutually_exclusive_group(required=True)
    reason.add_argument("--reason", help="what people will read")
    reason.add_argument("words", nargs="?", metavar="REASON", help="the same")
    deed.arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Drain the node, whatever the limit says; another's reason still stands above ours."""
    config = with_scheduler(loaded(options).config)
    reason = PREFIX + " ".join((options.reason or options.words).split())
    if options.dry_run:
        return deed.answer(plan.drain(config, reason, lambda stage: carry_out(stage.actions, reason)), options.json)
    carry_out(actions_of(config), reason)
    return deed.answer(Deed("drain", node_name(config), reason=reason, lines=[f"drained: {reason}"]), options.json)


def carry_out(actions: Actions, reason: str) -> None:
    """Drain as an administrator does: past the limit, not past another's reason."""
    actions.drain(reason, RecoveryAction.NONE, BY_ADMIN, force=True)
