"""`check --record` with the real NVML binding over the stand-in library, and `replay` of what it wrote."""

from __future__ import annotations

import json
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.cli.main import main
from nodeagent.replay.recording import Header, Recorded, read_recording
from tests.corpus.recorded import PLAYS, record
from tests.simulated_node import SimulatedNode, until


def test_what_happened_while_it_was_recorded_is_found_in_the_replay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    play = replace(PLAYS["b200-xid-95"], before=2, after=3)
    path = record(play, tmp_path)
    header, *entries = read_recording(path.read_text().splitlines(keepends=True), "recording")
    assert isinstance(header, Header) and (header.node, header.started, header.anonymous) == ("node", "", True)
    sweeps = [one for one in entries if isinstance(one, Recorded)]
    assert [event.xid for one in sweeps for event in one.facts.xids] == [95]
    assert {gpu.name for one in sweeps for gpu in one.facts.gpus} == {"NVIDIA B200"}
    gaps = [later.at - sooner.at for sooner, later in zip(sweeps, sweeps[1:])]
    assert all(0.3 < gap < 5.0 for gap in gaps), f"two sweeps a second: {gaps}"
    assert "demo" not in path.read_text(), "the node's name"
    assert main(["replay", str(path), "--json", "--config", str(tmp_path / "config.yaml")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["score"]["recall"], document["score"]["false_actions"]) == (1.0, 0)
    assert [one["decision"] for one in document["decisions"]] == ["retire"]


def test_one_look_is_recorded_as_it_was_read(tmp_path: Path) -> None:
    node = SimulatedNode(tmp_path, gpus=2, node="n17")
    node.scenario.lose(1)
    path = tmp_path / "one.jsonl"
    looked = node.call("check", "--record", str(path), "--json")
    assert looked.returncode == 2 and json.loads(looked.stdout)["verdict"] == "FAILED"
    header, sweep = read_recording(path.read_text().splitlines(keepends=True), "one")
    assert isinstance(header, Header) and (header.node, header.anonymous) == ("n17", False)
    assert isinstance(sweep, Recorded)
    assert [gpu.error for gpu in sweep.facts.gpus] == [None, 15]
    assert sweep.facts.gpus[0].uuid == node.scenario.uuid(0)
    assert stat.S_ISREG(path.stat().st_mode)
    before = path.read_bytes()
    again = node.call("check", "--record", str(path))
    assert (again.returncode, path.read_bytes()) == (69, before), "what was recorded is not written over"
    assert str(path) in again.stderr
    replayed = node.call("replay", str(path))
    assert replayed.returncode == 2 and "is lost" in replayed.stdout


def test_a_recorder_that_is_killed_leaves_what_it_had_seen(tmp_path: Path) -> None:
    node = SimulatedNode(tmp_path, gpus=1)
    path = tmp_path / "cut.jsonl"
    words = node.argv("check", "--record", str(path), "--for", "1h", "--interval", "100ms")
    recorder = subprocess.Popen(words, env=node.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: path.exists() and path.read_bytes().count(b"\n") > 2, "two sweeps")
    finally:
        recorder.kill()
        recorder.wait()
    replayed = node.call("replay", str(path), "--json")
    assert (replayed.returncode, json.loads(replayed.stdout)["sweeps"] >= 2) == (0, True)
