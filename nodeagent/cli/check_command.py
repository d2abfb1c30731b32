"""`gpu-nodeagent check`: one look at the GPUs now, without the agent."""

from __future__ import annotations

import argparse
from typing import Any

from nodeagent.cli import recorder
from nodeagent.cli.context import loaded, look, print_json, table, watch
from nodeagent.cli.main import STATE_EXIT, complain, say
from nodeagent.report import check_document


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--json", action="store_true", help="one JSON object")
    recorder.arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Print the findings, of the last look if there are several; exit 0 OK, 1 degraded, 2 failed, 3 unknown."""
    config = loaded(options).config
    wish = recorder.wish_of(options, config)
    if wish is None:
        verdict, _ = look(config)
    else:
        verdict, sweeps = watch(config, lambda source: recorder.record(source, config, wish))
        complain(f"{wish.path}: {sweeps} sweeps recorded")
    document = check_document(verdict)
    if options.json:
        print_json(document)
    else:
        say(_text(document))
    return int(STATE_EXIT[document["verdict"]])


def _text(document: dict[str, Any]) -> str:
    lines = [f"{document['verdict']}: {len(document['gpus'])} GPUs"]
    lines += [f"node: {finding['evidence']}" for finding in document["node_findings"]]
    if document["gpus"]:
        rows = [
            (
                "-" if gpu["index"] is None else str(gpu["index"]),
                gpu["uuid"],
                gpu["verdict"],
                "; ".join(finding["evidence"] for finding in gpu["findings"]) or "-",
            )
            for gpu in document["gpus"]
        ]
        lines.append(table([("GPU", "UUID", "VERDICT", "WHY"), *rows]))
    return "\n".join(lines)
