"""`gpu-nodeagent resume`: give this node back to the scheduler, if the drain is ours."""

from __future__ import annotations

import argparse

from nodeagent.cli.context import actions_of, loaded, with_scheduler
from nodeagent.cli.main import Exit, say
from nodeagent.policy.decide import BY_ADMIN


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""


def run(options: argparse.Namespace) -> int:
    """Resume the node. The agent drains it again only if a fault shows again."""
    actions_of(with_scheduler(loaded(options).config)).resume(BY_ADMIN)
    say("resumed")
    return Exit.OK
