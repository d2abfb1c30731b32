"""`gpu-nodeagent discover [sge|slurm]`: what the scheduler is to be told, ready to paste."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from nodeagent.cli.context import loaded, open_state, print_json
from nodeagent.cli.main import Exit, say
from nodeagent.config.model import Config
from nodeagent.discover.advice import BUNDLE, HOOKS, PLACEMENTS, Piece, Site
from nodeagent.discover.registry import ADVISERS
from nodeagent.errors import BadRequest, NodeAgentError
from nodeagent.report import schema
from nodeagent.scheduler.registry import node_name
from nodeagent.state.verdict_file import UnitLine, read_verdict


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("scheduler", nargs="?", choices=sorted(ADVISERS), help="default: the configured one")
    parser.add_argument("--placement", choices=PLACEMENTS, default=BUNDLE, help="fill hosts, or use all evenly")
    parser.add_argument("--hooks", default=HOOKS, metavar="DIRECTORY", help=f"where hooks are installed ({HOOKS})")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(options: argparse.Namespace) -> int:
    """Print the advice; nothing is asked of the scheduler and nothing is changed."""
    config = loaded(options).config
    kind = options.scheduler or config.scheduler.kind
    if kind not in ADVISERS:
        raise BadRequest("scheduler.kind", kind, " or ".join(sorted(ADVISERS)))
    path = str(options.config.absolute()) if options.config else ""
    site = Site(config, node_name(config), _units(config), path, options.hooks, options.placement)
    pieces = ADVISERS[kind](site)
    if options.json:
        document = {"scheduler": kind, "placement": options.placement, "node": site.node}
        print_json({**schema("discover"), **document, "pieces": [asdict(piece) for piece in pieces]})
    else:
        say("\n\n".join(map(_paragraph, pieces)))
    return Exit.OK


def _paragraph(piece: Piece) -> str:
    return f"# {piece.where}: {piece.why}\n{piece.text}"


def _units(config: Config) -> tuple[UnitLine, ...]:
    """Return the units of the agent's last word; none where it never spoke or may not be read."""
    try:
        return read_verdict(open_state(config)).units
    except (NodeAgentError, OSError):
        return ()
