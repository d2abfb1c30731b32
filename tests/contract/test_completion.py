"""Completion in a real bash: the function as bash calls it, and a line typed at a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shlex
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.cli.completion import split
from nodeagent.cli.main import SUBCOMMANDS
from nodeagent.lock.record import Owner
from nodeagent.lock.store import Store
from nodeagent.state.boot import boot_id
from nodeagent.state.files import Directory
from tests.clusters.process import open_directory
from tests.simulated_node import ROOT, SimulatedNode

SCRIPT = ROOT / "rpm" / "gpu-nodeagent.completion"
BREAKS = " \t\n\"'><=;|&(:"
"""Bash's own COMP_WORDBREAKS, all but the at sign."""


class Shell:
    """A node, and a bash in which `gpu-nodeagent` is its command."""

    def __init__(self, node: SimulatedNode, place: Path) -> None:
        self.node = node
        program = place / "gpu-nodeagent"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m nodeagent.cli.main "$@"\n')
        program.chmod(0o755)
        self.environment = {**node.environment, "PATH": f"{place}:{os.environ['PATH']}"}

    def complete(self, typed: str, breaks: str = BREAKS) -> list[str]:
        """Return what bash would offer after a line, `gpu-nodeagent` and --config before it."""
        line = f"gpu-nodeagent --config {self.node.config} {typed}"
        words = [*line.split(), ""] if line.endswith(" ") else line.split()
        script = (
            f"COMP_WORDBREAKS={shlex.quote(breaks)}; source {SCRIPT}; COMP_LINE={shlex.quote(line)}; "
            f"COMP_POINT={len(line)}; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
            f"_gpu_nodeagent gpu-nodeagent {shlex.quote(words[-1])} {shlex.quote(words[-2])}; "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        argv = ["bash", "--norc", "--noprofile", "-c", script]
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, timeout=60, check=True)
        assert done.stderr == ""
        return done.stdout.split("\n")[:-1] if done.stdout.strip() else []

    def type(self, line: str, until: str) -> None:
        """Type a line with a tabulator at its end into an interactive bash, until the terminal shows what is wanted."""
        argv = ["bash", "--norc", "--noprofile", "-i"]
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 500, 0, 0))  # lines that need no scrolling
        with subprocess.Popen(
            argv, env={**self.environment, "PS1": "$ ", "TERM": "dumb"}, stdin=slave, stdout=slave, stderr=slave
        ) as bash:
            os.close(slave)
            try:
                hello = f"source {SCRIPT}; bind 'set enable-bracketed-paste off'; echo re''ady\n"
                os.write(master, hello.encode())
                self._read(master, "ready")
                os.write(master, f"{line}\t".encode())
                self._read(master, until)
            finally:
                bash.kill()
        os.close(master)

    @staticmethod
    def _read(master: int, until: str) -> None:
        shown, deadline = "", time.monotonic() + 60
        while until not in shown and time.monotonic() < deadline:
            if select.select([master], [], [], 0.1)[0]:
                shown += os.read(master, 4096).decode(errors="replace")
        assert until in shown, shown


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    with open_directory("gna-tab-") as directory:
        (directory / "node").mkdir(mode=0o755)
        node = SimulatedNode(directory / "node", gpus=4, settings="interval: 1s\n")
        with node.agent():
            assert node.call("retire", "2", "--reason", "a test").returncode == 0
            assert node.call("locks", "hold", "1", "--reason", "a test").returncode == 0
            yield Shell(node, directory)


def names(shell: Shell, *indices: int) -> set[str]:
    gpus = shell.node.status()["gpus"]
    return {str(gpus[at][key]) for at in indices for key in ("index", "bus_id", "uuid")}


def test_subcommands_and_their_beginnings(shell: Shell) -> None:
    assert set(shell.complete("")) == set(SUBCOMMANDS)
    assert shell.complete("re") == ["release-driver", "replay", "restore", "resume", "retire"]
    assert shell.complete("_c") == [], "what is hidden is not offered"
    assert shell.complete("nonsense") == []


def test_options_that_are_not_on_the_line_yet(shell: Shell) -> None:
    assert shell.complete("retire --") == ["--dry-run", "--help", "--json", "--reason"]
    assert shell.complete("retire --reason x --d") == ["--dry-run"]
    assert "--reason" not in shell.complete("retire --reason x --")
    assert shell.complete("maintenance on --f") == ["--for"]


def test_words_that_are_a_choice(shell: Shell) -> None:
    assert shell.complete("maintenance ") == ["off", "on"]
    assert shell.complete("maintenance of") == ["off"]
    assert "retire" in shell.complete("history --kind ")
    assert shell.complete("history --kind=retir") == ["retire"], "bash has split the word at ="
    assert shell.complete("discover slurm --placement s") == ["spread"]
    assert shell.complete("locks ") == ["hold", "list", "release"]


def test_gpus_by_index_bus_id_and_uuid(shell: Shell) -> None:
    assert set(shell.complete("retire ", breaks=" ")) == names(shell, 0, 1, 3), "what is retired is not offered"
    assert set(shell.complete("restore ", breaks=" ")) == names(shell, 2)
    assert set(shell.complete("history ", breaks=" ")) == names(shell, 0, 1, 2, 3)
    assert set(shell.complete("locks hold 0 ", breaks=" ")) >= names(shell, 3)
    uuid = shell.node.status()["gpus"][3]["uuid"]
    assert shell.complete(f"retire --dry-run {uuid[:12]}") == [uuid]
    assert shell.complete("retire 0 ") == [], "one GPU, no second"


def test_a_bus_id_goes_on_where_bash_has_split_it(shell: Shell) -> None:
    bus_id = shell.node.status()["gpus"][3]["bus_id"]
    domain, bus, rest = bus_id.split(":")
    assert shell.complete(f"retire {domain}:{bus}:") == [rest]
    assert shell.complete(f"retire {domain}:{bus}:", breaks=" ") == [bus_id], "zsh splits at spaces only"


def test_locks_and_jobs_that_can_be_released(shell: Shell) -> None:
    assert set(shell.complete("locks release ", breaks=" ")) == names(shell, 1)
    assert shell.complete("locks release --job ") == [], "a hold is no job's"
    store = Store(Directory(str(shell.node.state_dir)))
    units = (shell.node.scenario.uuid(3),)
    owner = Owner("slurm", job="4711", task="2", grant="a", boot_id=boot_id(str(shell.node.roots["proc"])), units=units)
    with store.exclusive():
        store.claim(owner)
    try:
        assert shell.complete("locks release --job 4") == ["4711.2"]
    finally:
        with store.exclusive():
            store.release(lambda held: held.grant == "a")


def test_a_node_without_an_agent_has_no_values_and_no_complaint(shell: Shell) -> None:
    assert shell.complete("--config /nowhere.yaml retire ") == []


def test_at_a_terminal(shell: Shell) -> None:
    begin = f"gpu-nodeagent --config {shell.node.config}"
    shell.type(f"{begin} maintenance of", until=f"{begin} maintenance off ")
    bus_id = shell.node.status()["gpus"][2]["bus_id"]
    shell.type(f"{begin} restore {bus_id[:-3]}", until=f"{begin} restore {bus_id} ")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("gpu-nodeagent ", ["gpu-nodeagent", ""]),
        ("gpu-nodeagent re", ["gpu-nodeagent", "re"]),
        ("gpu-nodeagent retire --reason 'a fan", ["gpu-nodeagent", "retire", "--reason", "a fan"]),
        ('gpu-nodeagent retire --reason "a fan" ', ["gpu-nodeagent", "retire", "--reason", "a fan", ""]),
        ("gpu-nodeagent retire 1\\", ["gpu-nodeagent", "retire", "1"]),
        ("", [""]),
    ],
)
def test_a_line_is_split_as_a_shell_does_it(line: str, words: list[str]) -> None:
    assert split(line) == words
