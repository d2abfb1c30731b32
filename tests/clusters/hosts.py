"""Several hosts on one kernel: each a network, mount and host name namespace of its own, all on one bridge.

The namespaces live as long as a process of ours in them: the nursery ends those, and with them go bridge, links and
mounts. Nothing outside is touched: the machine's own network neither has nor sees a link to them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.clusters import process
from tests.clusters.process import ClusterError, Daemon, Nursery, wait_for

NETWORK = "10.99.0"
_INSIDE = """\
set -e
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
mount --bind "$2/tmp-$1" "$2/tmp"
ip link set lo up
touch "$2/up-$1"
exec sleep 1000000
"""


class Hosts:
    """Hosts that know each other by name; `directory` holds /etc/hosts for them and a `tmp` that each has its own of.

    The first one carries the bridge. They share processes, users and all other files.
    """

    def __init__(self, nursery: Nursery, directory: Path, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._nursery = nursery
        self._directory = directory
        self._holders: dict[str, Daemon] = {}

    def start(self, timeout: float = 10) -> None:
        """Make them; raises ClusterError where this machine gives no namespaces, with the kernel's own words."""
        addresses = {name: f"{NETWORK}.{at}" for at, name in enumerate(self.names, 1)}
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in addresses.items())]
        (self._directory / "hosts").write_text("\n".join(lines) + "\n")
        for name in self.names:
            self._hold(name, timeout)
        first, *others = self.names
        self._ip(first, "link add bridge type bridge")
        self._ip(first, f"addr add {addresses[first]}/24 dev bridge")
        self._ip(first, "link set bridge up")
        for at, name in enumerate(others):
            self._ip(first, f"link add port{at} type veth peer name eth0 netns {self._holders[name].pid}")
            self._ip(first, f"link set port{at} master bridge up")
            self._ip(name, f"addr add {addresses[name]}/24 dev eth0")
            self._ip(name, "link set eth0 up")

    def enter(self, name: str, cwd: Path | str = "/") -> list[str]:
        """The words before a command that run it there, as the process that they are given to."""
        holder = str(self._holders[name].pid)
        inside = [process.program("nsenter"), "--target", holder, "--net", "--mount", "--uts", "--"]
        return [*inside, process.program("env"), f"--chdir={cwd}"]

    def _hold(self, name: str, timeout: float) -> None:
        own = self._directory / f"tmp-{name}"
        own.mkdir(exist_ok=True)
        own.chmod(0o1777)
        up = self._directory / f"up-{name}"
        up.unlink(missing_ok=True)
        words = [process.program("unshare"), "--net", "--mount", "--uts", "/bin/sh", "-c", _INSIDE, "sh", name]
        holder = self._nursery.start(f"host-{name}", [*words, str(self._directory)], {"PATH": process.SYSTEM_PATH})
        self._holders[name] = holder
        wait_for(lambda: up.exists() or holder.status() is not None, timeout, f"the namespaces of {name}")
        if not up.exists():
            raise ClusterError(f"no namespaces for host {name}: {process.tail(holder.log)}")

    def _ip(self, name: str, words: str) -> None:
        argv = [*self.enter(name), process.program("ip"), *words.split()]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"ip {words} on {name}: {done.stderr.strip()}")
