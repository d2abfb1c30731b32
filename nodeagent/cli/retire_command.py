"""`gpu-nodeagent retire UNIT`: grant a GPU to nobody until it is restored, also after a reboot."""

from __future__ import annotations

import argparse

from nodeagent.cli.context import actions_of, loaded, unit_named
from nodeagent.cli.main import Exit, say
from nodeagent.health.finding import RecoveryAction
from nodeagent.policy.decide import BY_ADMIN


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("unit", help="UUID, index or bus id")
    parser.add_argument("--reason", default="retired by an administrator", help="for people")


def run(options: argparse.Namespace) -> int:
    """Retire the unit."""
    config = loaded(options).config
    unit = unit_named(config, options.unit)
    actions_of(config).retire(unit, options.reason, "administrator", RecoveryAction.NONE, BY_ADMIN)
    say(f"retired {unit}")
    return Exit.OK
