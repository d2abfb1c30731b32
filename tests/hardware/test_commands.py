"""The commands that a site runs first, on the GPUs that are here: look at them, record them, replay the recording."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.hardware.place import PATIENCE, ROOT, Place
from tests.hardware.record import record, write_config


def command(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "nodeagent.cli.main", "--config", str(config), *words]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE)


@pytest.fixture
def config(here: Place, tmp_path: Path) -> Path:
    return write_config(here, tmp_path)


def test_check_finds_the_gpus_well(here: Place, config: Path, facts: dict[str, Any]) -> None:
    began = time.monotonic()
    done = command(config, "check", "--json")
    facts["check_s"] = round(time.monotonic() - began, 3)
    document = json.loads(done.stdout)
    facts["check"] = {key: document[key] for key in ("verdict", "node_findings")}
    assert (done.returncode, document["verdict"]) == (0, "OK"), done.stdout
    assert len(document["gpus"]) == here.gpus


def test_a_recording_names_nobody_and_is_judged_alike(here: Place, config: Path, tmp_path: Path) -> None:
    named = json.loads(command(config, "check", "--json").stdout)
    path = tmp_path / "recording.jsonl"
    record(here, path, "3s", "1s")
    text = path.read_text(encoding="utf-8")
    assert [gpu["uuid"] for gpu in named["gpus"] if gpu["uuid"] in text] == []
    assert text.count('"serial"') == text.count('"serial":"1000000')
    replayed = command(config, "replay", str(path))
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
