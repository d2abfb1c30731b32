"""The probe process with a meter in it: how long it spends in NVML's calls, and how long in a sweep as a whole.

Runs in place of nodeagent.gpu.worker's `main`. NVML's functions are those of pynvml, timed from the outside, so that
the binding's own work counts as NVML's: whoever calls NVML from Python pays it. The meter's own 0.3 us a call counts as
ours.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import pynvml

from nodeagent.gpu import worker
from nodeagent.gpu.output import Output
from nodeagent.gpu.worker import Sweeper

METER = "GPU_NODEAGENT_BENCH_METER"
"""The environment variable that names the meter's file."""
BOOT = "import sys; sys.path += sys.argv[4:]; from bench.metered import main; main(sys.argv[1:4])"
_FORMAT = "qqq"
_EMPTY = bytes(struct.calcsize(_FORMAT))


@dataclass(frozen=True)
class Metered:
    """Since the probe began: NVML's calls, the nanoseconds in them, the nanoseconds in sweeps."""

    calls: int = 0
    calls_ns: int = 0
    sweeps_ns: int = 0

    def __sub__(self, before: Metered) -> Metered:
        return Metered(self.calls - before.calls, self.calls_ns - before.calls_ns, self.sweeps_ns - before.sweeps_ns)


class Meter:
    """The figures of one probe process, in a file that both sides have mapped."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(_EMPTY)
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), len(_EMPTY))

    def read(self) -> Metered:
        """Return what has been metered up to now."""
        return Metered(*struct.unpack(_FORMAT, self._shared[: len(_EMPTY)]))

    def write(self, metered: Metered) -> None:
        """Leave the figures."""
        struct.pack_into(_FORMAT, self._shared, 0, *astuple(metered))


class _Clockwork:
    """Times pynvml's functions; one that calls another is one call."""

    def __init__(self) -> None:
        self.spent = 0
        self.calls = 0
        self.began = 0
        self._inside = False

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        clock = time.perf_counter_ns

        def timed(*args: Any) -> Any:
            if self._inside:
                return function(*args)
            self._inside = True
            began = clock()
            try:
                return function(*args)
            finally:
                self.spent += clock() - began
                self.calls += 1
                self._inside = False

        return timed


class MeteredSweeper(Sweeper):
    """The probe's sweeper, with a clock beside it."""

    clockwork: _Clockwork

    def sweep(self, request: dict[str, Any]) -> None:
        """Answer one request for a sample."""
        self.clockwork.began = time.perf_counter_ns()
        super().sweep(request)


class MeteredOutput(Output):
    """The probe's output: before the last word of a sweep it leaves what the sweep took."""

    meter: Meter
    clockwork: _Clockwork

    def send(self, **message: Any) -> None:
        """Send one message."""
        if "end" in message:
            took = time.perf_counter_ns() - self.clockwork.began
            before = self.meter.read()
            figures = (self.clockwork.calls, self.clockwork.spent, before.sweeps_ns + took)
            self.meter.write(Metered(*figures))
        super().send(**message)


def main(argv: list[str]) -> None:
    """Serve the parent as the probe process does."""
    clockwork = _Clockwork()
    MeteredOutput.meter = Meter(Path(os.environ[METER]))
    MeteredOutput.clockwork = MeteredSweeper.clockwork = clockwork
    for name, function in list(vars(pynvml).items()):
        # Not the wait for events: it is the other thread's, and lasts as long as it is told to.
        if name.startswith("nvml") and isinstance(function, FunctionType) and "EventSetWait" not in name:
            setattr(pynvml, name, clockwork.around(function))
    worker.Sweeper = MeteredSweeper  # type: ignore[misc]
    worker.Output = MeteredOutput  # type: ignore[attr-defined]
    worker.main(argv)
