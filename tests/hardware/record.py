"""A recording for the corpus from the GPUs that are here, with UUIDs and serial numbers replaced.

    python -m tests.hardware.record FILE [TIME [INTERVAL]]      (10m, 10s)

FILE must not exist; read it before it is sent to anybody. Compressed (`gzip -9n`) it goes to tests/corpus/recordings/.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.hardware.place import ROOT, Nowhere, Place, place


def write_config(here: Place, directory: Path) -> Path:
    """Write a configuration that keeps all of its state in that directory."""
    roots = ", ".join(f"{name}: {getattr(here.roots, name)}" for name in ("proc", "sys", "dev"))
    config = directory / "config.yaml"
    config.write_text(
        f"state_dir: {directory}/state\ndata_dir: {directory}/data\nlisten: none\nnode_name: node\n"
        f"scheduler: {{kind: local}}\nroots: {{{roots}}}\n",
        encoding="utf-8",
    )
    return config


def record(here: Place, path: Path, duration: str, interval: str) -> int:
    """Have the product's own command record; returns its exit status, the verdict's. Raises if nothing was recorded."""
    with tempfile.TemporaryDirectory() as directory:
        config = write_config(here, Path(directory))
        words = ["check", "--record", str(path.absolute()), "--for", duration, "--interval", interval, "--anonymize"]
        argv = [sys.executable, "-m", "nodeagent.cli.main", "--config", str(config), *words]
        done = subprocess.run(argv, cwd=ROOT, check=False)
    if not path.exists():
        raise FileNotFoundError(path)
    return done.returncode


def main() -> int:
    """Record."""
    found = place()
    if isinstance(found, Nowhere):
        print(f"nothing to record: {found.why}")
        return 1
    if len(sys.argv) < 2:
        print(__doc__)
        return 64
    path, duration, interval = (*sys.argv[1:4], *("10m", "10s")[len(sys.argv) - 2 :])
    return record(found, Path(path), duration, interval)


if __name__ == "__main__":
    sys.exit(main())
