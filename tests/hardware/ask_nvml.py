"""Asks NVML in a process of its own and prints one JSON document. It changes nothing: it only calls getters.

python -m tests.hardware.ask_nvml count             how many GPUs NVML enumerates
python -m tests.hardware.ask_nvml sweeps PROC SYS N the calls that N sweeps of the probe are made of
python -m tests.hardware.ask_nvml abi               versions of structures, size queries, exports
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import pynvml

from nodeagent.gpu.worker import Output, Sweeper

SOURCES = Path(__file__).resolve().parents[1] / "simnvml"
EXPORTED = re.compile(r"^(?:EXPORT [\w *]*?|\w*GETTER\()(nvml\w+)\b", re.MULTILINE)
VERSIONED = {
    "nvmlDeviceGetMemoryInfo_v2": ("c_nvmlMemory_v2_t", 2),
    "nvmlDeviceGetTemperatureV": ("c_nvmlTemperature_v1_t", 1),
    "nvmlDeviceGetMarginTemperature": ("c_nvmlMarginTemperature_v1_t", 1),
    "nvmlDeviceGetSramEccErrorStatus": ("c_nvmlEccSramErrorStatus_v1_t", 1),
    "nvmlDeviceGetGpuFabricInfoV": ("c_nvmlGpuFabricInfo_v2_t", 2),
}
"""Calls whose structure says its own size and version: the binding's structure, the version."""
LISTS = ("Compute", "Graphics", "MPSCompute")


def exports() -> list[str]:
    """Return the functions that the stand-in's sources export."""
    return sorted({name for source in SOURCES.glob("*.c") for name in EXPORTED.findall(source.read_text())})


class Witness:
    """Notes each call of pynvml's functions: its name, the code it gave (-1: it raised something else), how long."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, float]] = []
        self._inside = False

    def watch_all(self) -> None:
        """Stand before all of pynvml's functions but the wait for events, which is another thread's."""
        for name, function in list(vars(pynvml).items()):
            if name.startswith("nvml") and isinstance(function, FunctionType) and "EventSetWait" not in name:
                setattr(pynvml, name, self._before(name, function))

    def _before(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any) -> Any:
            if self._inside:
                return function(*args)
            self._inside, code, began = True, 0, time.perf_counter()
            try:
                return function(*args)
            except pynvml.NVMLError as error:
                code = int(error.value)
                raise
            except Exception:
                code = -1
                raise
            finally:
                self.calls.append((name, code, time.perf_counter() - began))
                self._inside = False

        return watched


def count() -> int:
    """Ask how many GPUs there are."""
    pynvml.nvmlInit()
    return int(pynvml.nvmlDeviceGetCount())


def sweeps(proc: str, sys_root: str, number: str) -> list[list[tuple[str, int, float]]]:
    """Make sweeps as the probe process makes them and return the calls of each."""
    witness = Witness()
    witness.watch_all()
    sweeper = Sweeper(Output(os.open(os.devnull, os.O_WRONLY)), proc, sys_root)
    found = []
    for _ in range(int(number)):
        witness.calls = []
        sweeper.sweep({"op": "sample"})
        found.append(witness.calls)
    return found


def abi() -> dict[str, Any]:
    """Call the library itself, without the binding's help, and say what it answers."""
    pynvml.nvmlInit()
    library = pynvml.nvmlLib
    gpus = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    return {
        "missing": [name for name in exports() if not hasattr(library, name)],
        "names": [pynvml.nvmlDeviceGetName(gpu) for gpu in gpus],
        "versions": {name: _versions(library, gpus[0], name) for name in VERSIONED},
        "lists": [[_size_query(library, gpu, kind) for kind in LISTS] for gpu in gpus],
    }


def _versions(library: Any, gpu: Any, name: str) -> dict[str, int] | None:
    """The codes for a structure as the binding lays it out, and for one that says it is of no version."""
    shape = getattr(pynvml, VERSIONED[name][0], None)
    if shape is None or not hasattr(library, name):
        return None
    right, wrong = shape(), shape()
    right.version = VERSIONED[name][1] << 24 | ctypes.sizeof(shape)
    wrong.version = 0
    return {
        "size": ctypes.sizeof(shape),
        "right": getattr(library, name)(gpu, ctypes.byref(right)),
        "wrong": getattr(library, name)(gpu, ctypes.byref(wrong)),
    }


def _size_query(library: Any, gpu: Any, kind: str) -> tuple[int, int]:
    """The code for a list of no room, and how many entries it then says there are."""
    room = ctypes.c_uint(0)
    code = getattr(library, f"nvmlDeviceGet{kind}RunningProcesses_v3")(gpu, ctypes.byref(room), None)
    return code, room.value


def main() -> None:
    """Answer one question."""
    questions: dict[str, Callable[..., Any]] = {"count": count, "sweeps": sweeps, "abi": abi}
    sys.stdout.write(json.dumps(questions[sys.argv[1]](*sys.argv[2:])))
    sys.stdout.flush()
    os._exit(0)  # not through the interpreter's end: the event thread sits in NVML


if __name__ == "__main__":
    main()
