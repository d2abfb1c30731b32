"""Makes the recordings beside it: `check --record` on a node with the stand-in NVML library, while something happens.

    python -m tests.corpus.recorded [NAME ...]

Each is kept in `recordings/`, with the truth at its end, and read again by each later release.
"""

from __future__ import annotations

import gzip
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nodeagent.health.checks import driver_unresponsive, ecc_uncorrected, gpu_lost, reset_required, xid
from nodeagent.replay.recording import Recorded, Truth, line_of, read_recording
from tests.simulated_node import SimulatedNode, until

RECORDINGS = Path(__file__).resolve().parent / "recordings"
INTERVAL = 0.5
SLOT = 1


@dataclass(frozen=True)
class Play:
    """What happens to a node: `act` after `before` sweeps, before `after` more. Without a `check` it is no fault."""

    model: str
    act: Callable[[SimulatedNode], object]
    check: str = ""
    gpus: int = 4
    before: int = 4
    after: int = 12


PLAYS = {
    "h100-falls-off-the-bus": Play("H100-80GB", lambda node: node.scenario.lose(SLOT), gpu_lost.NAME),
    "b200-xid-95": Play("B200", lambda node: node.scenario.xid(SLOT, 95), xid.NAME),
    "a100-uncorrected-ecc": Play(
        "A100-80GB", lambda node: node.scenario.ecc(SLOT, uncorrected=2), ecc_uncorrected.NAME
    ),
    "h100-asks-for-a-reset": Play("H100-80GB", lambda node: node.scenario.recover(SLOT, 1), reset_required.NAME),
    "l40s-hangs": Play("L40S", lambda node: node.scenario.hang(SLOT), driver_unresponsive.NAME, after=6),
    "v100-users-xid-31": Play("V100-32GB", lambda node: node.scenario.xid(SLOT, 31)),
    "a100-set-up-for-mig": Play("A100-40GB", lambda node: node.scenario.mig(SLOT, ["3g.20gb", "3g.20gb"])),
}


def record(play: Play, directory: Path) -> Path:
    """Return a recording of that play, with its truth, made on a node in that directory."""
    settings = "probe_timeout: 1s\nhealth: {recover: 3}\n"
    node = SimulatedNode(directory, gpus=play.gpus, model=play.model, settings=settings)
    path = directory / "recording.jsonl"
    words = ("check", "--record", str(path), "--for", "1h", "--interval", f"{INTERVAL}s", "--anonymize")
    recorder = subprocess.Popen(
        node.argv(*words), env=node.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        _wait_for(path, play.before, recorder)
        play.act(node)
        acted = _wait_for(path, play.before + play.after, recorder)
    finally:
        recorder.send_signal(signal.SIGINT)
        _, said = recorder.communicate(timeout=30)
    if recorder.returncode not in (0, 1, 2, 3):
        raise RuntimeError(f"exit {recorder.returncode}: {said.decode()}")
    if play.check:
        uuid = next(gpu.uuid for gpu in acted[0].facts.gpus if gpu.index == SLOT)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line_of(Truth(uuid, play.check, acted[play.before - 1].at))}\n")
    return path


def _wait_for(path: Path, count: int, recorder: subprocess.Popen[bytes]) -> list[Recorded]:
    """Return the sweeps, as soon as so many are written."""

    def written() -> list[Recorded] | None:
        if recorder.poll() is not None:
            raise RuntimeError(f"the recorder ended: {recorder.returncode}")
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if not text:
            return None
        found = [
            one for one in read_recording(text.splitlines(keepends=True), "recording") if isinstance(one, Recorded)
        ]
        return found if len(found) >= count else None

    return until(written, f"{count} sweeps")


def main() -> None:
    """Make the recordings of these names, or all."""
    RECORDINGS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or PLAYS:
        with tempfile.TemporaryDirectory() as directory:
            text = record(PLAYS[name], Path(directory)).read_bytes()
        target = RECORDINGS / f"{name}.jsonl.gz"
        target.write_bytes(gzip.compress(text, mtime=0))
        print(f"{target.name}: {len(text)} bytes, {target.stat().st_size} in the archive")


if __name__ == "__main__":
    main()
