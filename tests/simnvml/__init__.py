"""A stand-in `libnvidia-ml.so.1`: the real pynvml reads GPUs, faults and events from a scenario file.

`Scenario` writes the file, `build` compiles the library, `fake_roots` lays out /proc, /sys and /dev to match.
The product knows nothing of it: the library is found through LD_LIBRARY_PATH, set before exec. See README.md.
"""

from .build import CompilerMissing, build
from .models import MODELS
from .roots import Roots, fake_roots, log_xid
from .scenario import Process, Scenario, UnknownGpu, UnknownKey, UnknownModel, UnknownProfile
from .topology import TOPOLOGIES, UnknownTopology

__all__ = [
    "MODELS",
    "TOPOLOGIES",
    "CompilerMissing",
    "Process",
    "Roots",
    "Scenario",
    "UnknownGpu",
    "UnknownKey",
    "UnknownModel",
    "UnknownProfile",
    "UnknownTopology",
    "build",
    "fake_roots",
    "log_xid",
]
