"""What most subcommands begin with: the configuration, the state directory, the store, one look at the GPUs."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Collection
from typing import Any

from nodeagent.agent.actions import Actions
from nodeagent.agent.records import Records
from nodeagent.cli.login import login
from nodeagent.cli.main import complain, say
from nodeagent.config.load import load
from nodeagent.config.model import Config, Loaded
from nodeagent.errors import BadRequest, UnitUnknown, UnknownFormat, UntrustedFile
from nodeagent.history.entry import BY_HAND, Entry, as_event
from nodeagent.lock.store import Store
from nodeagent.report import status_document
from nodeagent.scheduler.registry import node_name, scheduler_of
from nodeagent.state import events
from nodeagent.state.boot import boot_id
from nodeagent.state.documents import SNAPSHOT, read_document
from nodeagent.state.files import Directory
from nodeagent.state.maintenance import Maintenance, read_maintenance, standing


def loaded(options: argparse.Namespace) -> Loaded:
    """Return the configuration that the command line names."""
    return load(options.config)


def open_state(config: Config, create: bool = False) -> Directory:
    """Open the state directory."""
    return Directory(config.state_dir, create)


def actions_of(config: Config) -> Actions:
    """Return the means to change things; the agent is told of what is done by them."""
    state = open_state(config, create=True)
    boot = boot_id(config.roots.proc)
    scheduler, limit, who = scheduler_of(config), config.limits.max_drained, login()

    def tell(entry: Entry) -> None:
        if not events.append(state, BY_HAND, **as_event(entry, who)):
            complain("the agent could not be told: history will not have this (is the state directory full?)")

    return Actions(Store(state), Records(config.data_dir), scheduler, limit, boot, tell, who)


def with_scheduler(config: Config) -> Config:
    """Return the configuration if it names a scheduler.

    Raises:
        BadRequest: it does not: there is nothing to drain; single GPUs can be retired.

    """
    if config.scheduler.kind == "local":
        raise BadRequest("scheduler.kind", "local", "a scheduler that a node can be drained in; use `retire`")
    return config


def status_of(config: Config, state: Directory | None) -> dict[str, Any]:
    """Return the `status` document of this moment; without a state directory nothing is known."""
    store = Store(state) if state is not None else None
    try:
        published = read_document(state, SNAPSHOT) if state is not None else None
    except (UnknownFormat, UntrustedFile):  # of another release, or damaged: nothing is known
        published = None
    return status_document(
        published,
        store.owners() if store is not None else {},
        store.retired() if store is not None else {},
        time.monotonic(),
        boot_id(config.roots.proc),
        node_name(config),
        maintenance_of(config),
    )


def maintenance_of(config: Config) -> Maintenance | None:
    """Return the maintenance that stands at this moment."""
    try:
        data = Directory(config.data_dir)
    except (OSError, UntrustedFile):  # no agent has made it, or none believes it
        return None
    try:
        return standing(read_maintenance(data), time.time())
    finally:
        data.close()


def unit_named(config: Config, name: str, also: Collection[str] = ()) -> str:
    """Return the unit that a person means: a UUID, an unambiguous beginning of one, an index or a bus id.

    `also` are units that count although no GPU answers to them any more: those that are locked, or retired.

    Raises:
        UnitUnknown: none, or more than one.

    """
    if name in also:
        return name
    try:
        gpus = status_of(config, open_state(config))["gpus"]
    except FileNotFoundError:
        gpus = []
    wanted = name.lower()
    found = [
        str(gpu["uuid"])
        for gpu in gpus
        if wanted == str(gpu["index"])
        or wanted in (str(gpu["bus_id"]).lower(), str(gpu["bus_id"]).lower().partition(":")[2])
        or (len(wanted) > 4 and str(gpu["uuid"]).lower().startswith(wanted))  # noqa: PLR2004  "GPU-" alone is no name
    ]
    if len(found) == 1:
        return found[0]
    raise UnitUnknown(name)


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON object."""
    say(json.dumps(document, indent=2, default=vars))


def table(rows: list[tuple[str, ...]]) -> str:
    """Return rows as aligned columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
