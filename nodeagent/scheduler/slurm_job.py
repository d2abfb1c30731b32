"""What `scontrol -d show job` says of a job's GRES on one node. Pure; users' texts in it are not believed."""

from __future__ import annotations

import re

from nodeagent.errors import AmbiguousAnswer

_HERE = ("RUNNING", "CONFIGURING", "SUSPENDED", "STOPPED")
"""States of a job that has its nodes and is not yet leaving them."""
_MARKS = ("   UserId=", "   JobState=", "   JOB_GRES=", "   MinCPUsNode=")
"""How lines begin, in their order, between which (but for the first) no text of a user's stands on lines of its own."""
_NODES = re.compile(r"     Nodes=(\S+) CPU_IDs=\S* Mem=\S* GRES=(\S*) *")
_ELEMENT = re.compile(r"(?:[^,\[]|\[[^\]]*\])+")
_BRACKETS = re.compile(r"\[([^\]]*)\]")


def granted_indices(said: str, gres: str, node: str) -> tuple[int, ...] | None:
    """Return the indices of that GRES which the job has on that node; None if it has none there now.

    Users choose the job's name, account and comment, newlines included. Those stand before or after what is read here,
    and cannot be taken for it unless they bring a line that begins like one of `_MARKS`: then nothing is believed.

    Raises:
        AmbiguousAnswer: so it is.

    """
    lines = said.split("\n")
    places = [[at for at, line in enumerate(lines) if line.startswith(mark)] for mark in _MARKS]
    if any(len(found) > 1 for found in places):
        raise AmbiguousAnswer("scontrol show job")
    at = [found[0] for found in places if found]
    if len(at) < len(_MARKS):
        return None  # a job that has no nodes, or no GRES
    if at != sorted(at):
        raise AmbiguousAnswer("scontrol show job")
    if lines[at[1]].partition("=")[2].split(" ")[0] not in _HERE:
        return None
    for line in lines[at[2] : at[3]]:
        match = _NODES.fullmatch(line)
        if match and names_host(match.group(1), node):
            return _indices(match.group(2), gres)
    return None


def _indices(records: str, gres: str) -> tuple[int, ...]:
    """Return the indices in `gpu:tesla:1(IDX:0),gpu:kepler:2(IDX:2-3)`, of that GRES."""
    found: list[int] = []
    for ranges in re.findall(rf"(?:^|,){re.escape(gres)}(?::[^(,]*)?\(IDX:([\d,-]+)\)", records):
        for part in ranges.split(","):
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
    return tuple(sorted(set(found)))


def names_host(hosts: str, name: str) -> bool:
    """Say whether a host list as Slurm writes it, such as `n[01-03,7],login`, names that host."""
    for element in _ELEMENT.findall(hosts):
        pieces = _BRACKETS.split(element)  # text, ranges, text, ranges, … text
        pattern = "".join(r"(\d+)" if at % 2 else re.escape(piece) for at, piece in enumerate(pieces))
        match = re.fullmatch(pattern, name)
        if match and all(map(_in_ranges, match.groups(), pieces[1::2])):
            return True
    return False


def _in_ranges(number: str, ranges: str) -> bool:
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        # Leading zeros count: n[08-10] is n08, n09, n10.
        if int(first) <= int(number) <= int(last or first) and number == str(int(number)).zfill(len(first)):
            return True
    return False
