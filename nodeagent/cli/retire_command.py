"""`gpu-nodeagent retire UNIT`: grant a GPU to nobody until it is restored, also after a reboot."""

from __future__ import annotations

import argparse

from nodeagent.cli import deed, plan
from nodeagent.cli.context import actions_of, loaded, unit_named
from nodeagent.cli.deed import Deed
from nodeagent.health.finding import RecoveryAction
from nodeagent.policy.decide import BY_ADMIN
from nodeagent.scheduler.registry import node_name


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("unit", metavar="GPU", help="UUID, index or bus id")
    parser.add_argument("--reason", default="retired by an administrator", help="for people")
    deed.arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Retire the unit."""
    config = loaded(options).config
    unit = unit_named(config, options.unit)
    if options.dry_run:
        return deed.answer(plan.retire(config, unit, options.reason), options.json)
    actions_of(config).retire(unit, options.reason, "administrator", RecoveryAction.NONE, BY_ADMIN)
    done = Deed("retire", node_name(config), gpu={"uuid": unit}, reason=options.reason, lines=[f"retired {unit}"])
    return deed.answer(done, options.json)
