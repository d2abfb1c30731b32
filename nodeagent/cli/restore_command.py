"""`gpu-nodeagent restore UNIT`: grant a retired GPU again, and let the agent forget the XIDs it holds against it."""

from __future__ import annotations

import argparse

from nodeagent.agent.cycle import RESTORED_BY_HAND
from nodeagent.cli import deed, plan
from nodeagent.cli.context import actions_of, loaded, open_state, unit_named
from nodeagent.cli.deed import Deed
from nodeagent.cli.main import complain
from nodeagent.cli.rehearsed import rehearsed
from nodeagent.policy.decide import BY_ADMIN
from nodeagent.scheduler.registry import node_name
from nodeagent.state import events


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("unit", metavar="GPU", help="UUID, index or bus id")
    deed.arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Restore the unit; exit 1 if it was not retired. A fault that persists retires it again."""
    config = loaded(options).config
    if options.dry_run:
        unit = unit_named(config, options.unit, rehearsed(config)[0].retired())
        return deed.answer(plan.restore(config, unit), options.json)
    actions = actions_of(config)
    unit = unit_named(config, options.unit, actions.retired())
    # Told first: an agent that has not forgotten what it held against the unit would retire it again.
    if not events.append(open_state(config), RESTORED_BY_HAND, units=unit):
        complain("the agent could not be told: it may retire the unit again (is the state directory full?)")
    done = Deed("restore", node_name(config), gpu={"uuid": unit}, lines=[f"restored {unit}"])
    if not actions.restore(unit, BY_ADMIN):
        done.lines, done.refused = [], f"{unit}: was not retired"
    return deed.answer(done, options.json)
