"""Where these tests run: on a node whose NVML answers for a GPU, or nowhere.

The PCI bus decides whether NVML is asked at all: it takes no driver's word, and NVML that is asked on a node without a
driver leaves a device file behind. `GPU_NODEAGENT_HARDWARE_ROOTS` names a directory with a `proc`, a `sys` and a `dev`
in place of the machine's: that is how the suite itself is tried on the stand-in library.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodeagent.config.model import Roots
from nodeagent.gpu.procfs import PciBus

ROOT = Path(__file__).resolve().parents[2]
ROOTS = "GPU_NODEAGENT_HARDWARE_ROOTS"
PATIENCE = 120.0
"""Seconds for a child that asks NVML: without persistence mode the first call wakes each GPU, which takes seconds."""


@dataclass(frozen=True)
class Place:
    """A node with GPUs. `real` is false on the stand-in library."""

    roots: Roots
    gpus: int
    real: bool


@dataclass(frozen=True)
class Nowhere:
    """A machine on which these tests make no sense, and why."""

    why: str


@functools.cache
def place() -> Place | Nowhere:
    """Look where we are; once a process."""
    given = os.environ.get(ROOTS, "")
    roots = Roots(*(f"{given}/{name}" for name in ("proc", "sys", "dev"))) if given else Roots()
    on_bus = len(PciBus(roots.sys).gpus() or {})
    if not on_bus:
        return Nowhere("there is no NVIDIA GPU on the PCI bus")
    try:
        counted = ask("count")
    except ChildFailed as error:
        return Nowhere(f"{on_bus} NVIDIA GPUs on the PCI bus, but NVML does not answer: {error}")
    return Place(roots, counted, not given) if counted else Nowhere(f"NVML sees none of {on_bus} GPUs on the PCI bus")


class ChildFailed(Exception):
    """A child that was to ask NVML did not come to its end; the argument is what it said last."""


def ask(question: str, *words: str, env: dict[str, str] | None = None) -> Any:
    """Have a child process ask NVML (see ask_nvml.py) and return its answer.

    Raises:
        ChildFailed: it did not answer.

    """
    argv = [sys.executable, "-m", "tests.hardware.ask_nvml", question, *words]
    try:
        done = subprocess.run(
            argv,
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise ChildFailed(f"no answer in {PATIENCE:g} s") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines()
        raise ChildFailed(said[-1] if said else f"exit status {error.returncode}") from error
    return json.loads(done.stdout)
