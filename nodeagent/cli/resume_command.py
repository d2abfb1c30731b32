"""`gpu-nodeagent resume`: give this node back to the scheduler, if the drain is ours."""

from __future__ import annotations

import argparse

from nodeagent.cli import deed, plan
from nodeagent.cli.context import actions_of, loaded, with_scheduler
from nodeagent.cli.deed import Deed
from nodeagent.policy.decide import BY_ADMIN
from nodeagent.scheduler.registry import node_name


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    deed.arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Resume the node. The agent drains it again only if a fault shows again."""
    config = with_scheduler(loaded(options).config)
    if options.dry_run:
        return deed.answer(plan.resume(config, lambda stage: stage.actions.resume(BY_ADMIN)), options.json)
    actions_of(config).resume(BY_ADMIN)
    return deed.answer(Deed("resume", node_name(config), lines=["resumed"]), options.json)
