"""`gpu-nodeagent locks`: who holds what; release a grant, or hold a GPU, by hand."""

from __future__ import annotations

import argparse
import os

from nodeagent.cli.context import loaded, open_state, print_json, table, unit_named
from nodeagent.cli.login import login
from nodeagent.cli.main import Exit, complain, config_anywhere, say
from nodeagent.errors import BadRequest, UnitHeld
from nodeagent.hook.node import Node
from nodeagent.lock.record import HOLD, Owner
from nodeagent.lock.store import Store
from nodeagent.report import lock_entry, locks_document
from nodeagent.state import events
from nodeagent.state.boot import boot_id


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--json", action="store_true", default=False, help="one JSON object")
    parser.set_defaults(action="list")
    actions = parser.add_subparsers(metavar="ACTION", dest="action")
    listing = actions.add_parser("list", help="who holds what (the default)")
    listing.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one JSON object")
    release = actions.add_parser("release", help="free a whole grant, whoever holds it")
    release.add_argument("what", help="a unit (UUID, index, bus id), or a job as [CLUSTER:]ID[.TASK] with --job")
    release.add_argument("--job", action="store_true", help="WHAT is a job id")
    hold = actions.add_parser("hold", help="keep a free GPU from every job")
    hold.add_argument("units", nargs="+", metavar="UNIT", help="UUID, index or bus id")
    hold.add_argument("--reason", default="", help="for people")
    for action in (listing, release, hold):
        config_anywhere(action)


def run(options: argparse.Namespace) -> int:
    """Do what the action says; exit 1 when there was nothing to release."""
    if options.action in (None, "list"):
        return _list(options)
    return _release(options) if options.action == "release" else _hold(options)


def _list(options: argparse.Namespace) -> int:
    config = loaded(options).config
    try:
        owners = Store(open_state(config)).owners()
    except FileNotFoundError:
        owners = {}
    if options.json:
        print_json(locks_document(owners))
        return Exit.OK
    entries = [lock_entry(unit, owner) for unit, owner in owners.items()]
    columns = ("unit", "state", "scheduler", "job", "task", "user", "since")
    rows = [tuple(str(entry[column] or "-") for column in columns) for entry in entries]
    say(table([tuple(column.upper() for column in columns), *rows]) if rows else "nothing is locked")
    return Exit.OK


def job_matches(what: str, owner: Owner) -> bool:
    """Say whether a job id as a person writes it, `[CLUSTER:]ID[.TASK]`, means this owner's job."""
    cluster, colon, rest = what.rpartition(":")
    job, _, task = rest.partition(".")
    return (
        bool(job) and owner.job == job and (not task or owner.task == task) and (not colon or owner.cluster == cluster)
    )


def _release(options: argparse.Namespace) -> int:
    config = loaded(options).config
    state = open_state(config, create=True)
    store = Store(state)
    if options.job and not options.what.strip(":."):
        raise BadRequest("--job", options.what, "a job id")
    unit = "" if options.job else unit_named(config, options.what, store.owners())
    with store.exclusive():
        store.sweep()
        owners = store.owners()
        # A grant is freed as a whole: a part of it would look like the leavings of a crash.
        grants = {
            owner.grant
            for name, owner in owners.items()
            if (job_matches(options.what, owner) if options.job else name == unit or name.partition("@")[0] == unit)
        }
        freed = store.release(lambda owner: owner.grant in grants)
    for name, owner in freed.items():
        say(f"released {name} of {owner}")
    if freed:
        events.append(state, "released_by_hand", units=" ".join(freed), user=login())
        return Exit.OK
    complain(f"{options.what}: holds nothing")
    return Exit.DEGRADED


def _hold(options: argparse.Namespace) -> int:
    config = loaded(options).config
    state = open_state(config, create=True)
    node = Node(state, boot_id(config.roots.proc))
    owner = node.owner(HOLD, "", user=login(), uid=str(os.getuid()), run=options.reason)
    owner.units = tuple(dict.fromkeys(unit_named(config, name) for name in options.units))
    if not owner.units:
        raise BadRequest("units", "", "at least one GPU")
    store = Store(state)
    with store.exclusive():
        store.sweep()
        for unit, held in store.owners().items():  # a share, or an instance: its name is not the GPU's
            if held.gpu_of(unit) in owner.units:
                raise UnitHeld(unit, str(held))
        store.claim(owner)
    say(f"held {' '.join(owner.units)}; free with `gpu-nodeagent locks release {owner.units[0]}`")
    return Exit.OK
