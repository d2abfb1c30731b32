"""The package, built once a session; a tree to install it into; machines booted from that tree."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests import trees
from tests.integration.support import require, unavailable
from tests.packaging.machine import Machine, boot, left_over, until
from tests.simnvml import Scenario, fake_roots, log_xid

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
BUILD_UNAVAILABLE = 69
GPUS = 8
PORT = 9836
RPM = ("rpm", "--dbpath=/var/lib/rpm", "--force-debian", "--nodeps")
"""Debian's rpm in a Debian tree: dpkg knows what is required, rpm's own database does not."""

Install = Callable[[], AbstractContextManager["Node"]]


@functools.cache  # once: somebody may commit between two builds
def last_commit() -> str:
    argv = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "1700000000"


def snapshot(place: Path) -> Path:
    """Copy what the package is made from: nobody's edit comes between two builds of it."""
    for part in ("nodeagent", "prolog", "epilog", "systemd", "rpm", "docs/examples"):
        shutil.copytree(ROOT / part, place / part, ignore=shutil.ignore_patterns("__pycache__"))
    for document in ("LICENSE", "README.md", "CHANGELOG.md"):
        if (ROOT / document).exists():
            shutil.copy(ROOT / document, place / document)
    return place


def build(source: Path, out: Path, **environment: str) -> Path:
    """Run rpm/build; returns the package."""
    argv = [sys.executable, str(source / "rpm" / "build"), str(out), "--cache", str(CACHE / "rpm")]
    settings = {**os.environ, "SOURCE_DATE_EPOCH": last_commit(), **environment}
    done = subprocess.run(argv, env=settings, capture_output=True, text=True, check=False)
    if done.returncode == BUILD_UNAVAILABLE:
        unavailable(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return snapshot(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def package(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("rpm")
    return build(source, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def tree() -> Iterator[Path]:
    """A Debian tree for machines to boot from; all of them are gone when it goes."""
    require("systemd")
    try:
        file = trees.kept(trees.MACHINE)
    except trees.NoTree as error:
        unavailable(str(error))
    with trees.unpacked(file) as place:
        yield place
        assert not left_over(place)


class Node:
    """A machine with the package installed, eight stand-in GPUs and a configuration that looks at them each second."""

    def __init__(self, machine: Machine, scenario: Scenario, roots: Path) -> None:
        self.machine = machine
        self.scenario = scenario
        self._roots = roots
        self.env = {"LD_LIBRARY_PATH": "/mnt/nvml", "SIMNVML_SCENARIO": "/mnt/gpus/scenario"}

    def log_xid(self, gpu: int, number: int) -> None:
        """Have the kernel log an XID."""
        log_xid({name: self._roots / name for name in ("proc", "sys", "dev")}, self.scenario, gpu, number)  # type: ignore[arg-type]

    def configure(self, settings: str = "interval: 1s\n", drop_in: str = "") -> None:
        """Write the site's configuration and the drop-in that shows the stand-in to the service."""
        roots = ", ".join(f"{name}: /mnt/gpus/roots/{name}" for name in ("proc", "sys", "dev"))
        self.machine.write("/etc/gpu-nodeagent/conf.d/site.yaml", f"roots: {{{roots}}}\n{settings}")
        environment = "".join(f"Environment={name}={value}\n" for name, value in self.env.items())
        self.machine.write(
            "/etc/systemd/system/gpu-nodeagent.service.d/site.conf", f"[Service]\n{environment}{drop_in}"
        )
        self.machine.ok("systemctl", "daemon-reload")

    def enable(self) -> None:
        self.machine.ok("systemctl", "enable", "--now", "gpu-nodeagent")

    def command(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run `gpu-nodeagent …` as an administrator does."""
        return self.machine.run("gpu-nodeagent", *argv, env=self.env)

    def main_pid(self) -> int:
        return int(self.machine.show("gpu-nodeagent", "MainPID")[0])

    def until_active(self, seconds: float = 20) -> None:
        until(
            lambda: self.machine.show("gpu-nodeagent", "ActiveState", "StatusText") == ["active", f"{GPUS} OK"],
            seconds,
            f"gpu-nodeagent active with {GPUS} GPUs",
        )

    def journal(self, *fields: str) -> str:
        return self.machine.ok("journalctl", "--no-pager", "--output=cat", "--unit=gpu-nodeagent", *fields)


@pytest.fixture(scope="session")
def install(tree: Path, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """What boots a machine with the package installed and not yet enabled."""

    @contextmanager
    def installed() -> Iterator[Node]:
        place = tmp_path_factory.mktemp("gpus")
        place.chmod(0o755)
        scenario = Scenario(place / "scenario", gpus=GPUS)
        fake_roots(place / "roots", scenario)
        library = Path(scenario.env["LD_LIBRARY_PATH"])
        binds = {place: "/mnt/gpus", library: "/mnt/nvml", package.parent: "/mnt/package"}
        with boot(tree, place / "console.log", binds) as machine:
            machine.ok(*RPM, "-i", f"/mnt/package/{package.name}")
            yield Node(machine, scenario, place / "roots")

    return installed


@pytest.fixture(scope="module")
def node(install: Install) -> Iterator[Node]:
    """One running node for all tests that leave it as it is."""
    with install() as found:
        found.configure()
        found.enable()
        found.until_active()
        yield found


@pytest.fixture
def own_node(install: Install) -> Iterator[Node]:
    """A running node for one test alone."""
    with install() as found:
        found.configure()
        found.enable()
        found.until_active()
        yield found
