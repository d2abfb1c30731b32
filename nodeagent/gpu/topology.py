"""How well pairs of GPUs are connected: one integer a pair, for placement. Pure.

The scale, more is better; only its order and the distances between its bands matter:

    NVLink              1000 x generation x links, plus what PCIe gives
    same board           6   NVML's level 0 (two GPUs behind the board's own bridge)
    one PCIe switch      5   level 10
    several switches     4   level 20
    host bridge          3   level 30
    same NUMA node       2   level 40
    other                1   level 50
    unknown              0

1000 keeps the bands apart also in sums: the 120 pairs of 16 GPUs give at most 720 by PCIe. The generation is the
number that NVML gives the NVLink version (nvml.h, NVML_NVLINK_VERSION_*: 1, 2, 3 for 2.2, 4 for 3.0 … 7 for 5.0): it
rises with the bandwidth of a link. GPUs on NVSwitches reach each other with all their links: each pair has the smaller
number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

NVLINK = 1000
ANCESTOR_QUALITY = {0: 6, 10: 5, 20: 4, 30: 3, 40: 2, 50: 1}
"""NVML's nvmlGpuTopologyLevel_t -> quality."""
_HOST_BRIDGE = ANCESTOR_QUALITY[30]
TO_GPU = 0
TO_SWITCH = 2
"""NVML's nvmlIntNvLinkDeviceType_t."""


@dataclass(frozen=True)
class NvLink:
    """One link that is up: NVML's number of its version, what is at its other end (0 a GPU, 2 a switch), and where."""

    version: int
    remote_type: int
    remote_bus_id: str


@dataclass(frozen=True)
class Place:
    """One GPU's connections: its NVLinks that are up, and NVML's common ancestor level with other GPUs by bus id."""

    nvlinks: Sequence[NvLink] = ()
    ancestors: Mapping[str, int] = field(default_factory=dict)


class _End:
    """One GPU's end of its links: what they give together to each other GPU by bus id, and to NVSwitches."""

    __slots__ = ("ancestors", "direct", "switched")

    def __init__(self, place: Place) -> None:
        self.ancestors = place.ancestors
        self.direct: dict[str, int] = {}
        self.switched = 0
        for link in place.nvlinks:
            strength = max(1, link.version)
            self.direct[link.remote_bus_id] = self.direct.get(link.remote_bus_id, 0) + strength
            if link.remote_type == TO_SWITCH:
                self.switched += strength


def link_quality(here_id: str, here: Place, there_id: str, there: Place) -> int:
    """Return the quality of the connection of two GPUs, on the scale above; the same whichever is named first."""
    return _quality(here_id, _End(here), there_id, _End(there))


def _quality(here_id: str, here: _End, there_id: str, there: _End) -> int:
    """NVLink as the weaker of the two ends sees it (a link counts if both say that it is up), and PCIe."""
    levels = [level for level in (here.ancestors.get(there_id), there.ancestors.get(here_id)) if level is not None]
    pcie = ANCESTOR_QUALITY.get(min(levels), 0) if levels else 0
    direct = min(here.direct.get(there_id, 0), there.direct.get(here_id, 0))
    return NVLINK * (direct + min(here.switched, there.switched)) + pcie


def largest_linked(links: Sequence[Sequence[int]]) -> int:
    """Return how many of these GPUs, at most, are all linked with one another; 0 of none, 1 where nothing is linked.

    `links` is n x n, the quality of each pair. Linked is what has NVLink between it; where no pair has, what shares a
    PCIe host bridge. Exact; a node's GPUs fall into few groups, so the search is short.
    """
    n = len(links)
    best = max((links[i][j] for i in range(n) for j in range(i)), default=0)
    enough = NVLINK if best >= NVLINK else _HOST_BRIDGE
    near = [{j for j in range(n) if j != i and links[i][j] >= enough} for i in range(n)]

    def grow(size: int, candidates: set[int], found: int) -> int:
        for i in sorted(candidates):
            if size + len(candidates) <= found:
                break
            candidates = candidates - {i}
            found = grow(size + 1, candidates & near[i], max(found, size + 1))
        return found

    return grow(0, set(range(n)), 0)


def link_qualities(places: Mapping[str, Place]) -> dict[str, dict[str, int]]:
    """Return for each GPU, by bus id, the quality of its connection to each other one. Symmetric."""
    ids = sorted(places)
    ends = {bus_id: _End(places[bus_id]) for bus_id in ids}
    table: dict[str, dict[str, int]] = {bus_id: {} for bus_id in ids}
    for at, here in enumerate(ids):
        for there in ids[at + 1 :]:
            quality = _quality(here, ends[here], there, ends[there])
            table[here][there] = table[there][here] = quality
    return table
