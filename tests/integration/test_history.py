"""History of a real agent on simulated GPUs: one story through deeds, restarts, kill -9 and a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clusters.process import open_directory
from tests.integration.support import unavailable
from tests.simulated_node import SimulatedNode, until


@pytest.fixture
def node() -> Iterator[SimulatedNode]:
    with open_directory("gna-history-") as directory:
        yield SimulatedNode(directory, gpus=4, settings="interval: 1s\nhealth: {recover: 2}\n")


def history(node: SimulatedNode, *words: str) -> list[dict[str, Any]]:
    answer = node.call("history", "--json", *words)
    if answer.returncode == 69:
        return []
    document = json.loads(answer.stdout)
    assert document["schema"] == "gpu-nodeagent/history/1" and document["node"] == "demo"
    entries: list[dict[str, Any]] = document["entries"]
    return entries


def kinds(entries: list[dict[str, Any]]) -> list[tuple[str, str | None, str]]:
    return [(one["kind"], one["after"], one["by"]) for one in entries]


def test_one_story_is_told_by_history_status_journal_and_metrics(node: SimulatedNode) -> None:
    with node.agent():
        until(lambda: len(history(node, "--kind", "verdict")) == 5, "the first verdicts")
        with node.scenario.edit():
            node.scenario.lose(1)
        until(lambda: history(node, "1", "--kind", "retire"), "the retirement")
        node.ask("retire", "2", "--reason", "smells of smoke")
        until(lambda: history(node, "2", "--kind", "retire"), "the administrator's")
        until(lambda: node.status()["gpus"][1]["verdict"] == "FAILED", "status")

        lost, retired = history(node, "1")[-2:]
        gpu = node.status()["gpus"][1]
        assert (lost["before"], lost["after"], lost["check"], lost["unit"]) == ("OK", "FAILED", "gpu-lost", gpu["uuid"])
        assert lost["facts"]["error"] == 15 and lost["findings"] == gpu["reasons"] and lost["serial"] == gpu["serial"]
        assert lost["at"][:17] == gpu["since"][:17]
        assert retired["evidence"] == gpu["retired"]["reason"] and retired["by"] == "agent"
        by_hand = history(node, node.scenario.uuid(2)[:12])[-1]
        assert by_hand["evidence"] == "smells of smoke" and by_hand["by"].startswith("admin ")
        assert gpu["bus_id"] in node.ask("history", "1") and "smells of smoke" in node.ask("history", "--since", "1h")

        journal = node.log.read_text()
        assert f'retire gpu_uuid={gpu["uuid"]} check=gpu-lost why="{retired["evidence"]}"' in journal
        assert "smells of smoke" in journal and "verdict_changed" in journal
        with urllib.request.urlopen(f"{node.url()}/metrics") as page:
            metrics = page.read().decode()
        assert f'gpu_nodeagent_gpu_health{{uuid="{gpu["uuid"]}",verdict="FAILED"}} 1.0' in metrics
        assert "gpu_nodeagent_history_up 1.0" in metrics and "gpu_nodeagent_history_dropped_total 0.0" in metrics
        size = next(line for line in metrics.splitlines() if line.startswith("gpu_nodeagent_history_bytes "))
        assert float(size.split()[1]) >= 4096
    assert kinds(history(node, "--kind", "agent")) == [("agent", "started", "agent"), ("agent", "stopped", "agent")]


def test_an_agent_that_is_killed_loses_nothing_and_the_next_repeats_nothing(node: SimulatedNode) -> None:
    with node.agent() as agent:
        with node.scenario.edit():
            node.scenario.lose(1)
        until(lambda: history(node, "--kind", "retire"), "the retirement")
        agent.kill()
        agent.wait()
    before = history(node)
    with node.agent() as agent:
        until(lambda: len(history(node, "--kind", "agent")) == 2, "the next start")
        node.write_config("history: {max_size: 1MiB}\n")
        node.reload(agent)
        until(lambda: "config_refused" in node.log.read_text(), "the refusal")  # commands refuse that file too
        node.write_config("history: {max_size: 8MiB}\n")
        node.reload(agent)
        until(lambda: len(history(node, "--kind", "agent")) == 4, "the reload")
        agent.send_signal(signal.SIGTERM)
        agent.wait(timeout=30)
    after = history(node)
    assert after[: len(before)] == before
    assert kinds(after[len(before) :]) == [
        ("agent", "started", "agent"),
        ("agent", "reload refused", "agent"),
        ("agent", "reloaded", "agent"),
        ("agent", "stopped", "agent"),
    ]
    assert node.log.read_text().count("verdict_changed") == 1, "the journal does not tell of a change that was none"


def test_a_full_disk_keeps_no_dying_gpu_in_service_and_is_said(node: SimulatedNode) -> None:
    data = node.directory / "data"
    data.mkdir(mode=0o755)
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=0755", "none", str(data)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        unavailable("no tmpfs to mount")
    try:
        fill(data)
        with node.agent():
            with node.scenario.edit():
                node.scenario.lose(1)
            until(lambda: node.retired() == [1], "the retirement")
            problem = node.status()["history_problem"]
            assert "full" in problem or "No space" in problem
            assert f"history is not being written: {problem}" in node.ask("status")
            with urllib.request.urlopen(f"{node.url()}/metrics") as page:
                assert "gpu_nodeagent_history_up 0.0" in page.read().decode()
        log = node.log.read_text()
        assert log.count("history_unavailable") == 1 and log.count("history_dropped") == 1
    finally:
        subprocess.run(["umount", "-l", str(data)], check=True)


def fill(directory: Path) -> None:
    with open(directory / "filler", "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"x" * 4096)


def test_only_root_reads_and_what_is_not_there_is_said(node: SimulatedNode) -> None:
    missing = node.call("history")
    assert missing.returncode == 69 and "has gpu-nodeagent.service run on this node?" in missing.stderr
    with node.agent():
        until(lambda: history(node), "the first entries")
        for words, status in (
            (("--since", "yesterday"), 64),
            (("--kind", "x"), 64),
            (("--last", "0"), 64),
            (("9",), 64),
        ):
            assert node.call("history", *words).returncode == status
        assert len(history(node, "--last", "2")) == 2
        assert history(node, "GPU-of-another-node") == []
        if os.geteuid() == 0:
            refused = subprocess.run(
                ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *node.argv("history")],
                env=node.environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert refused.returncode == 77, refused.stderr
    assert len(history(node, "--kind", "agent")) == 2, "also without an agent"
