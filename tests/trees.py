"""Small Debian trees: made once by debootstrap, kept as a file, unpacked for a run."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "trees"
_NOT_KEPT = ("./dev/*", "./debootstrap", "./var/cache/apt/*", "./var/lib/apt/lists/*", "./usr/share/doc/*")
"""Not in any kept file; systemd-nspawn makes /dev itself, so no device node lies about in a checkout."""


class NoTree(Exception):
    """The tree cannot be made here; says why."""


@dataclass(frozen=True)
class Recipe:
    """What a tree is made of.

    A tree to boot or to live in is `configured`: its packages' scripts have run. One that only gives files away need
    not be, which takes half the time. `left_out` are tar's patterns of what nobody needs.
    """

    suite: str
    packages: tuple[str, ...]
    configured: bool = True
    left_out: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The suite, and a digest of all the rest."""
        words = " ".join((self.suite, *self.packages, str(self.configured), *self.left_out, *_NOT_KEPT))
        return f"{self.suite}-{hashlib.sha256(words.encode()).hexdigest()[:12]}"


MACHINE = Recipe("bookworm", ("systemd", "systemd-sysv", "dbus", "procps", "python3", "python3-systemd", "rpm"))
"""A machine to install our package into, and to boot."""


def kept(recipe: Recipe) -> Path:
    """Return the tree as a compressed tar file in `CACHE`, made now unless it is there.

    Raises:
        NoTree: debootstrap did not succeed, most likely for want of a registry.

    """
    file = CACHE / f"{recipe.name}.tar.gz"
    if not file.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="gpu-nodeagent-tree.") as place:
            _debootstrap(Path(place, "tree"), recipe)
            _pack(Path(place, "tree"), file, recipe)
    return file


@contextmanager
def unpacked(file: Path) -> Iterator[Path]:
    """Unpack the tree for the time of the context."""
    with tempfile.TemporaryDirectory(prefix="gpu-nodeagent-tree.") as place:
        tree = Path(place, "tree")
        tree.mkdir(mode=0o755)
        subprocess.run(["tar", "-C", tree, "--numeric-owner", "-xpzf", file], check=True)
        yield tree


def _debootstrap(tree: Path, recipe: Recipe) -> None:
    words = ["--variant=minbase", f"--include={','.join(recipe.packages)}"]
    words += [] if recipe.configured else ["--download-only"]
    argv = ["debootstrap", *words, recipe.suite, str(tree), *_registry(recipe.suite)]
    environment = {**os.environ, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise NoTree(f"debootstrap {recipe.suite}: {said[-1] if said else f'status {done.returncode}'}")
    for package in () if recipe.configured else sorted(tree.glob("var/cache/apt/archives/*.deb")):
        subprocess.run(["dpkg-deb", "--extract", package, tree], check=True)


def _registry(suite: str) -> list[str]:
    """Where this machine gets that suite from, or else its own: Debian's registries have all suites.

    Where apt is not set up, debootstrap's own default.
    """
    if shutil.which("apt-get") is None:
        return []
    argv = ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"]
    said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    known = [line.split() for line in said.splitlines()]
    same = [uri for codename, uri in known if codename == suite]
    return [*same, *(uri for _, uri in known if uri.rstrip("/").endswith("/debian"))][:1]


def _pack(tree: Path, file: Path, recipe: Recipe) -> None:
    """Write the file under another name first, so that what bears its own name is whole."""
    unfinished = file.with_suffix(f".{os.getpid()}")
    left_out = (*_NOT_KEPT, *recipe.left_out)
    argv = ["tar", "-C", str(tree), "--numeric-owner", *(f"--exclude={pattern}" for pattern in left_out)]
    try:
        subprocess.run([*argv, "-I", "gzip -1", "-cf", str(unfinished), "."], check=True)
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)
