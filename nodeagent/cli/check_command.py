"""`gpu-nodeagent check`: one look at the GPUs now, without the agent, in one screen."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

from nodeagent.cli import advice, recorder
from nodeagent.cli.context import loaded, maintenance_of, print_json
from nodeagent.cli.looker import look, watch
from nodeagent.cli.main import STATE_EXIT, complain, say
from nodeagent.clock import SystemClock
from nodeagent.gpu.facts import NodeFacts
from nodeagent.health.finding import RecoveryAction, Severity
from nodeagent.health.verdict import UnitVerdict, Verdict
from nodeagent.report import check_document, maintenance_line
from nodeagent.scheduler.registry import node_name
from nodeagent.state.verdict_file import OK

_MOST_SHOWN = 4
"""GPUs, and findings of each, that are told at length: on a node that is all broken the first few say why."""
_GRAVITY = ("FAILED", "UNKNOWN", "DEGRADED")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--json", action="store_true", help="one JSON object")
    recorder.arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Print the findings, of the last look if there are several; exit 0 OK, 1 degraded, 2 failed, 3 unknown."""
    config = loaded(options).config
    wish = recorder.wish_of(options, config)
    if wish is None:
        verdict, facts = look(config)
    else:
        verdict, facts, sweeps = watch(config, lambda read: recorder.record(read, config, wish))
        complain(f"{wish.path}: {sweeps} sweeps recorded")
    clock = SystemClock()
    document = check_document(verdict, clock.wall() - clock.monotonic(), maintenance_of(config))
    if options.json:
        print_json(document)
    else:
        say("\n".join(screen(document["verdict"], node_name(config), verdict, facts, clock)))
        if document["maintenance"]:
            say(maintenance_line(document["maintenance"]))
    return int(STATE_EXIT[document["verdict"]])


def screen(state: str, node: str, verdict: Verdict, facts: NodeFacts, clock: SystemClock) -> Iterator[str]:
    """Yield the lines: what is wrong, since when, on which slot and serial, what to do; the worst first."""
    since = clock.wall() - clock.monotonic()
    driver = f", driver {facts.driver}" if facts.driver else ""
    yield f"{state}: {node}, {len(verdict.units)} GPUs{driver}, {_moment(clock.wall())}"
    yield from _of_node(verdict)
    sick = sorted((unit for unit in verdict.units if unit.state != OK), key=lambda unit: _GRAVITY.index(unit.state))
    for unit in sick[:_MOST_SHOWN]:
        yield from _of_unit(unit, since, clock.monotonic())
    if len(sick) > _MOST_SHOWN:
        yield f"{len(sick) - _MOST_SHOWN} more, told by --json: {', '.join(map(_name, sick[_MOST_SHOWN:]))}"
    well = [unit for unit in verdict.units if unit.state == OK]
    for unit in well:
        yield from (f"{_name(unit)}: {finding.evidence}" for finding in unit.reasons)
    if well:
        yield f"OK: {', '.join(map(_name, well))}"


def _of_node(verdict: Verdict) -> Iterator[str]:
    grave = [one for one in verdict.node_findings if one.severity is not Severity.INFO]
    for finding in verdict.node_findings:
        yield f"node: {finding.evidence}" + (f" [{finding.check}]" if finding in grave else "")
    todo = advice.for_node(max((one.action for one in grave), default=RecoveryAction.NONE))
    if todo:
        yield f"  to do: {todo}"


def _of_unit(unit: UnitVerdict, offset: float, now: float) -> Iterator[str]:
    age = "found now" if unit.since >= now - 1.0 else f"since {_moment(offset + unit.since)}"
    yield f"{_name(unit)} {unit.state}, {age}: {unit.model or 'GPU'} {advice.place(unit)} ({unit.uuid})"
    for finding in unit.reasons[:_MOST_SHOWN]:
        yield f"  {finding.evidence} [{finding.check}]"
    if len(unit.reasons) > _MOST_SHOWN:
        yield f"  and {len(unit.reasons) - _MOST_SHOWN} more"
    yield f"  to do: {advice.for_unit(unit)}"


def _name(unit: UnitVerdict) -> str:
    return f"GPU {unit.index}" if unit.index >= 0 else f"GPU {unit.bus_id or unit.uuid}"


def _moment(wall: float) -> str:
    """A moment as a person at the node reads it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall))
