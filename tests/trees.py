"""A small Debian with systemd and rpm to install into: made once by debootstrap, kept as a file, unpacked for a run."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUITE = "bookworm"
PACKAGES = ("systemd", "systemd-sysv", "dbus", "procps", "python3", "python3-systemd", "rpm")
NOT_KEPT = ("./dev/*", "./debootstrap", "./var/cache/apt/*", "./var/lib/apt/lists/*", "./usr/share/doc/*")
"""Not in the kept file; systemd-nspawn makes /dev itself, so no device node lies about in a checkout."""


class NoTree(Exception):
    """The tree cannot be made here; says why."""


def kept(cache: Path) -> Path:
    """Return the tree as a compressed tar file, made now unless it is there.

    Raises:
        NoTree: debootstrap did not succeed, most likely for want of a registry.

    """
    recipe = " ".join((SUITE, *PACKAGES, *NOT_KEPT))
    file = cache / f"{SUITE}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.tar.gz"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="gpu-nodeagent-tree.") as place:
            _debootstrap(Path(place, "tree"))
            _pack(Path(place, "tree"), file)
    return file


@contextmanager
def unpacked(file: Path) -> Iterator[Path]:
    """Unpack the tree for the time of the context."""
    with tempfile.TemporaryDirectory(prefix="gpu-nodeagent-tree.") as place:
        tree = Path(place, "tree")
        tree.mkdir(mode=0o755)
        subprocess.run(["tar", "-C", tree, "--numeric-owner", "-xpzf", file], check=True)
        yield tree


def _debootstrap(tree: Path) -> None:
    argv = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(tree), *_registry()]
    environment = {**os.environ, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise NoTree(f"debootstrap {SUITE}: {said[-1] if said else f'status {done.returncode}'}")


def _registry() -> list[str]:
    """Where this machine gets that suite from, if apt is set up for it; else debootstrap's own default."""
    if shutil.which("apt-get") is None:
        return []
    argv = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Codename: {SUITE}"]
    said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.split()
    return said[:1]


def _pack(tree: Path, file: Path) -> None:
    """Write the file under another name first, so that what bears its own name is whole."""
    unfinished = file.with_suffix(f".{os.getpid()}")
    argv = ["tar", "-C", str(tree), "--numeric-owner", *(f"--exclude={pattern}" for pattern in NOT_KEPT)]
    try:
        subprocess.run([*argv, "-I", "gzip -1", "-cf", str(unfinished), "."], check=True)
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)
