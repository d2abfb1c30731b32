"""Where benches work: the library as a package installs it, in a directory on the kind of file system that /run is."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "/usr/bin/python3"


def compiled_library(directory: Path) -> Path:
    """Copy library and hooks there, byte-compiled and linked for the hooks' interpreter; returns the directory."""
    for name in ("nodeagent", "prolog", "epilog"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    compiler = [PYTHON, "-m", "compileall", "-q", str(directory / "nodeagent")]
    for command in (compiler, [PYTHON, "-IS", str(directory / "nodeagent/link.py")]):
        subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, check=True, timeout=120)
    return directory


@contextmanager
def in_memory() -> Iterator[Path]:
    """Yield a directory on a tmpfs where there is one, that every user can pass through; it is removed at the end."""
    memory = Path("/dev/shm")  # noqa: S108  a tmpfs, as /run is; the directory made there is this user's alone
    mask = os.umask(0o022)
    directory = Path(
        tempfile.mkdtemp(prefix="gpu-nodeagent-bench-", dir=memory if os.access(memory, os.W_OK) else None)
    )
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        os.umask(mask)
        shutil.rmtree(directory, ignore_errors=True)
