#!/usr/bin/python3
"""Install what the demonstration or the tests need from this machine's Debian registry, and say what is missing.

    provision.py demo [--check]    build tools for the Python environment
    provision.py test [--check]    as well: schedulers, RPM and systemd tools, and two ordinary users

Standard library only, so that it runs before any virtual environment exists. Where it cannot install (no root, no
apt) it names what is missing and leaves with 0: tests then skip the parts that need it, see `missing`. With `--check`
it changes nothing and leaves with 1 if something is missing. No service that it installs is started, now or at boot.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

DEMO_PACKAGES = ("libsystemd-dev", "pkg-config", "gcc", "python3-dev", "python3-venv")
TEST_PACKAGES = (
    *("slurmctld", "slurmd", "slurm-client", "munge"),
    *("gridengine-master", "gridengine-exec", "gridengine-client"),
    *("rpm", "cpio", "rpmlint", "createrepo-c", "dnf", "debootstrap", "systemd", "systemd-container"),
    *("hyperfine", "strace", "prometheus", "iproute2", "procps", "util-linux"),
)
SERVICES = {
    "slurmctld": ("slurmctld",),
    "slurmd": ("slurmd",),
    "munge": ("munge",),
    "gridengine-master": ("gridengine-master",),
    "gridengine-exec": ("gridengine-exec",),
    "prometheus": ("prometheus",),
    "prometheus-node-exporter": ("prometheus-node-exporter",),
}
"""The units that a package would start at boot. A machine that runs tests has no use for them."""

TEST_USERS = ("alice", "bob")
SYSTEM_PYTHON = Path("/usr/bin/python3")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
GRIDENGINE_BINARIES = Path("/usr/lib/gridengine")
POLICY = Path("/usr/sbin/policy-rc.d")
LOCK = Path("/run/gpu-nodeagent-provision.lock")

COMPONENTS: Mapping[str, tuple[str, ...]] = {
    "slurm": ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo", "munged", "setpriv"),
    "gridengine": ("sge_qmaster", "sge_execd", "sge_shepherd", "qsub", "qconf", "setpriv"),
    "rpm": ("rpmbuild", "rpm", "rpm2cpio", "cpio"),
    "rpmlint": ("rpmlint",),
    "dnf": ("dnf", "createrepo_c"),
    "systemd": ("systemd-nspawn", "systemd-analyze", "debootstrap", "nsenter", "setpriv", "tar", "gzip"),
    "systemd-analyze": ("systemd-analyze",),
    "promtool": ("promtool",),
    "hyperfine": ("hyperfine",),
    "strace": ("strace",),
    "iproute2": ("ip",),
    "namespaces": ("ip", "mount", "nsenter", "unshare"),
    "trees": ("debootstrap", "dpkg-deb", "tar", "gzip"),
}
"""What a test may ask for, and the programs that make it up."""

NEEDS_ROOT = frozenset({"slurm", "gridengine", "systemd", "dnf", "namespaces", "trees"})
NEEDS_USERS = frozenset({"slurm", "gridengine"})


def find_program(name: str) -> str | None:
    """The absolute path of a program in the system's directories, or None. The caller's PATH is not asked."""
    return shutil.which(name, path=f"{SYSTEM_PATH}:{GRIDENGINE_BINARIES}")


def missing(component: str) -> str | None:
    """Why tests of `component` cannot run here, as a sentence for a skip message; None if they can.

    Raises KeyError for a component that `COMPONENTS` does not list: a misspelt name must not become a silent skip.
    """
    programs = [name for name in COMPONENTS[component] if find_program(name) is None]
    if programs:
        return f"{component}: {', '.join(programs)} not installed (run tests/provision.py test as root)"
    if component in NEEDS_ROOT and os.geteuid() != 0:
        return f"{component}: only root can start it"
    if component in NEEDS_USERS:
        users = [name for name in TEST_USERS if not _user_exists(name)]
        if users:
            return f"{component}: no user {', '.join(users)} to run jobs (run tests/provision.py test as root)"
    return None


def installed(packages: Iterable[str]) -> set[str]:
    """Those of `packages` that dpkg reports as fully installed; none where there is no dpkg."""
    query = find_program("dpkg-query")
    if query is None:
        return set()
    form = "${Package} ${db:Status-Status}\n"
    result = subprocess.run([query, "-W", "-f", form, *packages], capture_output=True, text=True, check=False)
    rows = (line.split() for line in result.stdout.splitlines())
    return {row[0] for row in rows if row[1:] == ["installed"]}


def missing_packages(purpose: str) -> list[str]:
    """The Debian packages that `purpose` (demo or test) still needs, in a fixed order."""
    wanted = DEMO_PACKAGES + (TEST_PACKAGES if purpose == "test" else ())
    present = installed(wanted)
    return [name for name in wanted if name not in present and not _provided_otherwise(name)]


def missing_users(purpose: str) -> list[str]:
    """The ordinary users that tests need and that do not exist."""
    return [name for name in TEST_USERS if not _user_exists(name)] if purpose == "test" else []


def _user_exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _provided_otherwise(package: str) -> bool:
    """Whether what a build needs is there although its Debian package is not."""
    if package == "gcc":
        return any(find_program(name) for name in ("gcc", "cc"))
    if package == "pkg-config":
        return find_program("pkg-config") is not None
    if package == "python3-dev":
        header = "sysconfig.get_paths()['include'] + '/Python.h'"
        return _python_says(f"import os, sysconfig; assert os.path.exists({header})")
    if package == "python3-venv":
        return _python_says("import ensurepip, venv")
    if package == "libsystemd-dev":
        tool = find_program("pkg-config")
        return tool is not None and _succeeds([tool, "--exists", "libsystemd"])
    return False


def _python_says(statement: str) -> bool:
    return SYSTEM_PYTHON.exists() and _succeeds([str(SYSTEM_PYTHON), "-I", "-S", "-c", statement])


def _succeeds(argv: list[str]) -> bool:
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let one provisioning run at a time: the service policy is one file, saved and put back by each."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _no_daemon_starts() -> Iterator[None]:
    """Forbid package scripts to start services, and put back whatever policy was in force before."""
    before = (POLICY.read_bytes(), POLICY.stat().st_mode) if POLICY.exists() else None
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        if before is None:
            POLICY.unlink()
        else:
            POLICY.write_bytes(before[0])
            POLICY.chmod(before[1] & 0o7777)


def _apt(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": SYSTEM_PATH, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", "HOME": "/root"}
    environment.update({k: v for k, v in os.environ.items() if k.lower().endswith("_proxy")})
    options = ["-q", "-y", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Options::=--force-confold"]
    return subprocess.run(
        ["/usr/bin/apt-get", *options, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def _available(packages: list[str]) -> list[str]:
    """Those of `packages` that the registry can deliver."""
    argv = ["/usr/bin/apt-cache", "policy", *packages]
    environment = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"}
    result = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    known: set[str] = set()
    current = ""
    for line in result.stdout.splitlines():
        if not line.startswith(" "):
            current = line.rstrip(":")
        elif line.strip().startswith("Candidate:") and "(none)" not in line:
            known.add(current)
    return [name for name in packages if name in known]


def _preseed_gridengine() -> None:
    """Answer the questions of Grid Engine's packages: default cell, this host as the master."""
    answers = (
        "gridengine-common shared/gridengineconfig boolean true\n"
        "gridengine-common shared/gridenginecell string default\n"
        f"gridengine-common shared/gridenginemaster string {socket.gethostname()}\n"
    )
    subprocess.run(["/usr/bin/debconf-set-selections"], input=answers, text=True, check=True)


def _disable_at_boot(packages: Iterable[str]) -> None:
    systemctl = find_program("systemctl")
    units = [unit for package in packages for unit in SERVICES.get(package, ())]
    for unit in units if systemctl else ():
        subprocess.run([str(systemctl), "disable", unit], capture_output=True, check=False)


def install(packages: list[str]) -> str | None:
    """Install `packages`; returns what went wrong as text, None if all are there afterwards."""
    with _alone(), _no_daemon_starts():
        update = _apt("update")
        offered = _available(packages)
        if any(name.startswith("gridengine") for name in offered):
            _preseed_gridengine()
        before = installed(SERVICES)
        result = _apt("install", "--no-install-recommends", *offered)
        _disable_at_boot(installed(SERVICES) - before)
    absent = [name for name in packages if name not in installed(packages)]
    if not absent:
        return None
    detail = result if result.returncode else update
    return f"could not install {', '.join(absent)}\n{_tail(detail.stdout + detail.stderr)}"


def _tail(text: str, lines: int = 15) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


def _obstacle() -> str | None:
    if os.geteuid() != 0:
        return "not root"
    if not Path("/usr/bin/apt-get").exists():
        return "no apt-get on this machine"
    return None


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Returns the exit status: 0 done or not possible here, 1 missing (`--check`) or an install failed.
    """
    parser = argparse.ArgumentParser(description="Install what the demonstration or the tests need.")
    parser.add_argument("purpose", choices=("demo", "test"))
    parser.add_argument("--check", action="store_true", help="only say what is missing; exit 1 if anything is")
    options = parser.parse_args(arguments)

    packages, users = missing_packages(options.purpose), missing_users(options.purpose)
    if not packages and not users:
        if options.check:
            print(f"{options.purpose}: nothing is missing")
        return 0
    wanted = ", ".join(packages + [f"user {name}" for name in users])
    obstacle = _obstacle()
    if options.check or obstacle:
        print(f"{options.purpose}: missing: {wanted}" + (f" ({obstacle}: cannot install)" if obstacle else ""))
        return 1 if options.check else 0
    print(f"{options.purpose}: installing {wanted}", flush=True)
    problem = install(packages) if packages else None
    for name in users:
        subprocess.run(["/usr/sbin/useradd", "--create-home", "--shell", "/bin/bash", name], check=True)
    if problem:
        print(problem, file=sys.stderr)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
