"""`gpu-nodeagent maintenance on|off`: for a while the agent takes nothing out and brings nothing back."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from nodeagent.agent.actions import Actions, DrainRefused
from nodeagent.cli import deed, plan
from nodeagent.cli.context import actions_of, loaded, with_scheduler
from nodeagent.cli.deed import Deed
from nodeagent.cli.drain_command import carry_out
from nodeagent.cli.login import login
from nodeagent.cli.main import complain
from nodeagent.cli.rehearsed import rehearsed
from nodeagent.config.model import Config
from nodeagent.config.values import positive_duration
from nodeagent.errors import BadRequest
from nodeagent.policy.decide import BY_ADMIN
from nodeagent.report import maintenance_line, plain_maintenance
from nodeagent.scheduler.reason import PREFIX
from nodeagent.scheduler.registry import node_name
from nodeagent.state.maintenance import Maintenance

ON, OFF = "on", "off"
_WHY = "maintenance by an administrator"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("word", choices=(ON, OFF), help="said again, `on` takes the new reason and time")
    parser.add_argument("--reason", default=_WHY, help="for people")
    parser.add_argument(
        "--for",
        dest="seconds",
        type=_duration,
        metavar="TIME",
        help="2h, 1d: it ends by itself then, by the wall clock",
    )
    parser.add_argument("--drain", action="store_true", help="drain the node for it; `off` resumes what this drained")
    deed.arguments(parser)


def _duration(word: str) -> float:
    try:
        return positive_duration(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{word!r} {error}") from error


def run(options: argparse.Namespace) -> int:
    """Begin it, or end it; exit 1 if there was none to end."""
    config = loaded(options).config
    if options.word == OFF and (options.seconds or options.drain or options.reason != _WHY):
        raise BadRequest("maintenance off", "--reason, --for or --drain", "an option of `off`")
    return _off(config, options) if options.word == OFF else _on(config, options)


def _on(config: Config, options: argparse.Namespace) -> int:
    if options.drain:
        with_scheduler(config)
    now = time.time()
    until = now + options.seconds if options.seconds else 0.0
    wish = Maintenance(login(), " ".join(options.reason.split()), now, until)
    if options.dry_run:
        planned = plan.maintenance_on(config, wish, lambda stage: begin(stage.actions, wish, options.drain))
        return deed.answer(planned, options.json)
    one = begin(actions_of(config), wish, options.drain)
    line = maintenance_line(plain_maintenance(one) or {})
    done = Deed("maintenance", node_name(config), reason=wish.why, lines=[line])
    if one.drained:
        done.add("drained for it; " + ("when its time is over: gpu-nodeagent resume" if until else "`off` resumes it"))
    return deed.answer(done, options.json)


def begin(actions: Actions, wish: Maintenance, drain: bool) -> Maintenance:
    """Begin maintenance, or go on with one that stands, and return it.

    Drained first: if that fails, it has not begun. A node that is out already is left as it is, and will be.
    """
    before = actions.maintenance()
    if before is not None:
        wish = replace(wish, since=before.since or wish.since, drained=before.drained)
    if drain and not wish.drained:
        node = actions.scheduler.node_state()
        if node.drained:
            complain(
                f"the node is out of service already, and `off` will leave it so: {node.reason or 'no reason given'}"
            )
        else:
            wish = replace(wish, drained=f"{PREFIX}maintenance: {wish.why}")
            carry_out(actions, wish.drained)
    actions.begin_maintenance(wish)
    return wish


def _off(config: Config, options: argparse.Namespace) -> int:
    none = Deed("maintenance", node_name(config), dry_run=options.dry_run, refused="there is no maintenance to end")
    if rehearsed(config)[0].records.maintenance() is None:
        return deed.answer(none, options.json)
    if options.dry_run:
        return deed.answer(plan.maintenance_off(config, lambda stage: end(stage.actions)), options.json)
    resumed = end(actions_of(config))
    lines = ["maintenance is over; what became due is done in the agent's next cycle"]
    lines += ["resumed"] if resumed else []
    return deed.answer(Deed("maintenance", node_name(config), lines=lines), options.json)


def end(actions: Actions) -> bool:
    """End maintenance; True if the node was drained for it, still is, and was given back.

    Resumed first: if that fails it still stands, and `off` is said again.
    """
    one, record = actions.records.maintenance(), actions.records.drain()
    resumed = False
    if one is not None and one.drained and record is not None and (record.by, record.reason) == (BY_ADMIN, one.drained):
        reason = actions.scheduler.node_state().reason
        if reason in (None, "", one.drained):
            try:
                actions.resume(BY_ADMIN)
                resumed = True
            except DrainRefused as error:
                complain(str(error))
        else:
            complain(f"the node has another reason by now, and stays as it is: {reason}")
    actions.end_maintenance("ended by an administrator", BY_ADMIN)
    return resumed
