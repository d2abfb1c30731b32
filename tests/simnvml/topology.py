"""Where the GPUs of a node sit and how they are linked: three shapes that cover most HPC nodes."""

from dataclasses import dataclass

from .models import Model

CPUS_PER_NUMA_NODE = 32


@dataclass(frozen=True)
class Place:
    """One GPU's place: bus id as NVML writes it, NUMA node, PCIe switch, host bridge."""

    bus_id: str
    numa_node: int
    pcie_switch: int
    host_bridge: int


@dataclass
class Link:
    """One NVLink of a GPU. `kind` is `gpu` or `switch`; errors: replay, recovery, CRC flit, CRC data, ECC data."""

    kind: str
    remote: str
    up: bool = True
    errors: tuple[int, ...] = (0, 0, 0, 0, 0)


class UnknownTopology(Exception):
    """The name is none of TOPOLOGIES, or the topology does not have so many GPUs: (name, GPUs)."""


# A bus number for each GPU; beyond those of the real machine the list goes on in its spirit.
_BUSES: dict[str, list[int]] = {
    "nvswitch": [0x1B, 0x43, 0x52, 0x61, 0x9D, 0xC3, 0xD1, 0xDF, 0x23, 0x4B, 0x5A, 0x69, 0xA5, 0xCB, 0xD9, 0xE7],
    "cube-mesh": [0x06, 0x07, 0x0A, 0x0B, 0x85, 0x86, 0x89, 0x8A],
    "pcie": [0x17, 0x18, 0x25, 0x26, 0x31, 0x32, 0x3B, 0x3C, 0x98, 0x99, 0xA5, 0xA6, 0xB1, 0xB2, 0xCA, 0xCB],
}
TOPOLOGIES = tuple(_BUSES)

# The eight-V100 machine: two quads and four links between them; (GPU, GPU, number of NVLinks).
_CUBE_MESH = (
    *((0, 1, 1), (0, 2, 1), (0, 3, 2), (0, 4, 2), (1, 2, 2), (1, 3, 1), (1, 5, 2), (2, 3, 2)),
    *((2, 6, 1), (3, 7, 1), (4, 5, 1), (4, 6, 1), (4, 7, 2), (5, 6, 2), (5, 7, 1), (6, 7, 2)),
)


def places(topology: str, gpus: int) -> list[Place]:
    """Return the places of `gpus` GPUs: the first half on NUMA node 0, the second on node 1, two switches each.

    On an NVSwitch machine each GPU has a PCIe switch and a host bridge of its own.
    Raises UnknownTopology.
    """
    if topology not in _BUSES or not 0 <= gpus <= len(_BUSES[topology]):
        raise UnknownTopology(topology, gpus)
    half = (gpus + 1) // 2
    quarter = (half + 1) // 2
    found = []
    buses = _BUSES[topology]
    if topology == "pcie" and gpus <= len(buses) // 2:
        buses = buses[:half] + buses[8:]  # so that the two NUMA nodes' buses are apart, as in a real machine
    buses = sorted(buses[:gpus])  # NVML enumerates by bus id
    for slot in range(gpus):
        numa = 0 if slot < half else 1
        switch = slot if topology == "nvswitch" else 2 * numa + (slot - numa * half) // quarter
        found.append(Place(f"00000000:{buses[slot]:02X}:00.0", numa, switch, switch))
    return found


def links(topology: str, model: Model, where: list[Place]) -> list[list[Link]]:
    """Return the NVLinks of each GPU; none where the model or the topology has none."""
    if model.nvlinks == 0 or topology == "pcie":
        return [[] for _ in where]
    if topology == "nvswitch":
        switches = 6 if model.nvlinks == 12 else 4
        remotes = [f"00000000:{0x05 + n % switches:02X}:00.0" for n in range(model.nvlinks)]
        return [[Link("switch", remote) for remote in remotes] for _ in where]
    found: list[list[Link]] = [[] for _ in where]
    for one, two, count in _CUBE_MESH:
        if one < len(where) and two < len(where):
            found[one] += [Link("gpu", where[two].bus_id) for _ in range(count)]
            found[two] += [Link("gpu", where[one].bus_id) for _ in range(count)]
    return found
