"""`gpu-nodeagent restore UNIT`: grant a retired GPU again, and let the agent forget the XIDs it holds against it."""

from __future__ import annotations

import argparse

from nodeagent.agent.cycle import RESTORED_BY_HAND
from nodeagent.cli.context import actions_of, loaded, open_state, unit_named
from nodeagent.cli.main import Exit, complain, say
from nodeagent.policy.decide import BY_ADMIN
from nodeagent.state import events


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("unit", help="UUID, index or bus id")


def run(options: argparse.Namespace) -> int:
    """Restore the unit; exit 1 if it was not retired. A fault that persists retires it again."""
    config = loaded(options).config
    actions = actions_of(config)
    unit = unit_named(config, options.unit, actions.retired())
    # Told first: an agent that has not forgotten what it held against the unit would retire it again.
    if not events.append(open_state(config), RESTORED_BY_HAND, units=unit):
        complain("the agent could not be told: it may retire the unit again (is the state directory full?)")
    restored = actions.restore(unit, BY_ADMIN)
    if restored:
        say(f"restored {unit}")
        return Exit.OK
    complain(f"{unit}: was not retired")
    return Exit.DEGRADED
