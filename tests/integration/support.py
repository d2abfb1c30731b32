"""What the integration tests share: the component rule, an installed tree, jobs that wait to be told to end."""

from __future__ import annotations

import compileall
import os
import shutil
from pathlib import Path

import pytest

from tests import provision
from tests.simulated_node import ROOT


def require(component: str) -> None:
    """Skip where a component is missing; under CI=true its absence is a failure."""
    reason = provision.missing(component)
    if reason:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


def install_tree(directory: Path) -> Path:
    """Copy library and hooks to where every user can read them, byte-compiled as an RPM leaves them."""
    tree = directory / "libexec"
    for name in ("nodeagent", "prolog", "epilog"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(str(tree / "nodeagent"), quiet=2)
    return tree


def executable(path: Path, body: str) -> Path:
    """Write an sh script."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def variables(text: str) -> dict[str, str]:
    """Return the output of `env` as a mapping."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def gate_script(gate: Path) -> str:
    """Return a job's script that shows its environment and stays until the file `gate` exists."""
    return f"env\necho begun=yes\nuntil [ -e {gate} ]; do sleep 0.1; done\n"
