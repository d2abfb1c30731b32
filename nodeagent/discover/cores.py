"""Which cores, as Slurm numbers them, belong to which NUMA node: from /sys."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence


def cores_of_numa_nodes(sys: str) -> dict[int, list[int]]:
    """Return NUMA node → its cores; empty where the kernel does not tell.

    Slurm counts cores, not hardware threads, through all sockets: socket by socket, in the order of the kernel's ids.
    """
    cores: dict[int, tuple[int, int]] = {}
    for path in glob.glob(f"{sys}/devices/system/cpu/cpu[0-9]*/topology"):
        package, core = _number(f"{path}/physical_package_id"), _number(f"{path}/core_id")
        cpu = re.search(r"/cpu(\d+)/topology$", path)
        if cpu and package is not None and core is not None:
            cores[int(cpu.group(1))] = (package, core)
    numbers = {core: at for at, core in enumerate(sorted(set(cores.values())))}
    found = {}
    for path in glob.glob(f"{sys}/devices/system/node/node[0-9]*/cpulist"):
        node = re.search(r"/node(\d+)/cpulist$", path)
        mine = sorted({numbers[cores[cpu]] for cpu in _cpus(_text(path)) if cpu in cores})
        if node and mine:
            found[int(node.group(1))] = mine
    return found


def ranges(numbers: Sequence[int]) -> str:
    """Write sorted numbers as Slurm does: `0-3,8`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _cpus(text: str) -> Iterable[int]:
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        yield from range(int(first), int(last or first) + 1)


def _number(path: str) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
