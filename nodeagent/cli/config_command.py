"""`gpu-nodeagent config check|show|compile`: the configuration, before and as it is used."""

from __future__ import annotations

import argparse

from nodeagent.cli.context import loaded, open_state, print_json
from nodeagent.cli.main import Exit, complain, config_anywhere, say
from nodeagent.config.compile import compile_hook_conf
from nodeagent.config.load import flatten
from nodeagent.report import schema
from nodeagent.state.hook_conf import HOOK_CONF


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    config_anywhere(actions.add_parser("check", help="say what is wrong; exit 78 if anything is"))
    show = actions.add_parser("show", help="every setting with its value")
    show.add_argument("--json", action="store_true", help="one JSON object")
    config_anywhere(show)
    compiling = actions.add_parser(
        "compile", help="write hook.conf for the hooks (the agent does it at start and reload)"
    )
    config_anywhere(compiling)


def run(options: argparse.Namespace) -> int:
    """Do what the action says; a bad configuration is one line a mistake and status 78."""
    found = loaded(options)
    if options.action == "check":
        say("\n".join(f"{path}: ok" for path, _, _ in found.sources) or f"{found.path}: not there; all defaults")
        return Exit.OK
    if options.action == "show":
        settings = dict(flatten(found.config))
        if options.json:
            print_json({**schema("config"), "settings": settings, "files": [str(path) for path, _, _ in found.sources]})
        else:
            say("\n".join(f"{key} = {value}" for key, value in settings.items()))
        return Exit.OK
    conf, problems = compile_hook_conf(found)
    open_state(found.config, create=True).replace(HOOK_CONF, conf.encode())
    for problem in problems:
        complain(problem)
    say(f"{found.config.state_dir}/{HOOK_CONF}: written")
    return Exit.DEGRADED if problems else Exit.OK
