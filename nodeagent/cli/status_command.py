"""`gpu-nodeagent status`: what the agent knows, with locks and retirements as they are now."""

from __future__ import annotations

import argparse
from typing import Any

from nodeagent.cli.context import loaded, open_state, print_json, status_of, table
from nodeagent.cli.main import STATE_EXIT, Exit, say
from nodeagent.report import maintenance_line


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(options: argparse.Namespace) -> int:
    """Print the status; exit 0 OK, 1 degraded, 2 failed, 3 unknown (also: no agent)."""
    config = loaded(options).config
    try:
        state = open_state(config)
    except FileNotFoundError:
        state = None
    document = status_of(config, state)
    if options.json:
        print_json(document)
    else:
        say(_text(document))
    return _exit(document)


def _exit(document: dict[str, Any]) -> int:
    states = [document["node_verdict"], *(gpu["verdict"] for gpu in document["gpus"])]
    return int(max((STATE_EXIT[state] for state in states), key=_RANK.index))


_RANK = (Exit.OK, Exit.DEGRADED, Exit.UNKNOWN, Exit.FAILED)


def _text(document: dict[str, Any]) -> str:
    agent = document["agent"]
    head = f"{document['node']}: "
    if agent["fresh"]:
        head += f"agent {agent['pid']}, looked {agent['age_s']:.0f} s ago, node {document['node_verdict']}"
    elif agent["pid"] is None:
        head += "no agent has looked since boot; is gpu-nodeagent.service running?"
    else:
        head += f"the agent's last word is {agent['age_s']:.0f} s old; is gpu-nodeagent.service running?"
    lines = [head]
    if document["drained"]:
        lines.append(f"drained: {document['drained']}")
    if document["drain_waits"]:
        lines.append(f"ought to be drained; {document['drain_waits']}")
    if document["maintenance"]:
        lines.append(maintenance_line(document["maintenance"]))
    released = document.get("driver_released")
    if released:
        by = released["by"] or "somebody"
        lines.append(f"driver released until {released['until']} by {by}: no GPU is looked at until then")
    if document["history_problem"]:
        lines.append(f"history is not being written: {document['history_problem']}")
    if document.get("scheduler_problem"):
        lines.append(f"the scheduler cannot be asked: {document['scheduler_problem']}")
    lines += [f"{finding['severity']}: {finding['evidence']}" for finding in document["node_findings"]]
    if document["gpus"]:
        lines.append(table([_HEAD, *map(_row, document["gpus"])]))
    return "\n".join(lines)


_HEAD = ("GPU", "BUS", "MODEL", "VERDICT", "SINCE", "HELD BY", "WHY")


def _row(gpu: dict[str, Any]) -> tuple[str, ...]:
    holders = ", ".join(
        f"{holder['scheduler']} {holder['job'] or '-'}" + (f" ({holder['user']})" if holder["user"] else "")
        for holder in gpu["holders"]
    )
    slots = gpu.get("slots", 1)  # an older agent does not say
    if slots != 1:
        holders = f"{len(gpu['holders'])} of {slots}" + (f": {holders}" if holders else "")
    why = "; ".join(reason["evidence"] for reason in gpu["reasons"])
    if gpu["retired"]:
        who = gpu["retired"].get("who", "")
        why = f"retired{f' by {who}' if who else ''}: {gpu['retired'].get('reason', '')}"
    index = "-" if gpu["index"] is None else str(gpu["index"])
    return (index, gpu["bus_id"], gpu["model"], gpu["verdict"], gpu["since"], holders or "-", why or "-")
