"""The GPUs of this node as a GpuSource: a probe process that may hang or crash, and the kernel log beside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from nodeagent.clock import Clock, SystemClock
from nodeagent.config.model import Config
from nodeagent.gpu.device_files import with_device_files
from nodeagent.gpu.facts import GpuFacts, NodeFacts, Tended, XidEvent
from nodeagent.gpu.kernel_log import KernelLog
from nodeagent.gpu.probe_worker import Gone, Kill, Worker, kill
from nodeagent.gpu.sweep import Spot, Sweep, located
from nodeagent.gpu.xids import XidQueue
from nodeagent.state.boot import boot_id

MAX_STUCK = 2
"""Probe processes in state D beside which no further one is started: the first, and the one that took its place."""
RELEASE_TIMEOUT = 3.0
PATIENCE = 4
"""How many times `probe_timeout` a sweep may take that makes progress all the while."""
RETRIED = (None, 9, 12)
"""NVML's answers with which a probe process is kept: none bad, no driver yet, no library yet. After any other (18: the
driver was replaced) a fresh process is needed, which loads the library that is there now."""


class ProbeProcess:
    """Reads GPUs through a probe process; see facts.GpuSource for the contract.

    A sample ends `probe_timeout` after the probe's last sign of life, PATIENCE times that at most, and half a second
    later where the probe has to be killed. A GPU at which it
    hung or crashed is read last from then on, until it answers. A probe that even SIGKILL does not end (state D) is
    left behind, and as long as it is there its GPU is not asked again but reported as hung.

    Args:
        config: `probe_timeout`, for the start of the process and for each GPU, and `roots`.
        env: the probe's environment, by default ours; of it the loader takes LD_LIBRARY_PATH.
        clock: the time.
        kernel_log: the second witness; by default `<dev>/kmsg` from now on.
        kill: how a process is killed; for tests of what cannot be killed.

    To be used from one thread, one that lives as long as the source: the probe dies with the thread that started it.

    """

    def __init__(
        self,
        config: Config,
        *,
        env: Mapping[str, str] | None = None,
        clock: Clock | None = None,
        kernel_log: KernelLog | None = None,
        kill: Kill = kill,
    ) -> None:
        self.timeouts = 0
        """Samples that ended without an answer in time."""
        self.crashes = 0
        """Probe processes that ended by themselves."""
        self.abandoned = 0
        """Probe processes that could not be killed and were left behind, since the start."""
        self._roots = config.roots
        self._env = env
        self._clock = clock or SystemClock()
        self._kill = kill
        self._boot_id = boot_id(config.roots.proc)
        self._worker: Worker | None = None
        self._stuck: list[tuple[Worker, Spot | None]] = []
        self._suspects: list[Spot] = []
        self._known: dict[int, tuple[str, str]] = {}
        self._lends = False
        self._xids = XidQueue(kernel_log or KernelLog(f"{config.roots.dev}/kmsg", clock=self._clock.monotonic))
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Take another configuration into use, but for the roots."""
        self.timeout = config.probe_timeout
        """Seconds for a sample."""
        self._confines_by_files = config.isolation == "device-files"

    @property
    def stuck(self) -> int:
        """How many probe processes are in state D now."""
        self._stuck = [(worker, spot) for worker, spot in self._stuck if not worker.is_gone()]
        return len(self._stuck)

    @property
    def pid(self) -> int | None:
        """The probe process's id, None while there is none."""
        return None if self._worker is None else self._worker.pid

    # ---- GpuSource -------------------------------------------------------------------------------------------

    def sample(self) -> NodeFacts:
        """Read every GPU once; see GpuSource."""
        started = self._clock.monotonic()
        sweep = Sweep()
        old = self._worker
        why = self._start()
        crashed = self._attempt(sweep, started + self.timeout)
        if crashed is not None and old is not None and not sweep.heard:  # it had died before it was asked
            why = self._start()
            crashed = self._attempt(sweep, started + self.timeout)
        now = self._clock.monotonic()
        facts = sweep.facts(self._boot_id, now, now - started)
        self._learn(sweep, facts)
        self._xids.read_kernel()
        if facts.nvml_error not in RETRIED:
            self._drop_worker(None)
        if why:
            facts = replace(facts, nvml_error_text=why)
        if self._confines_by_files:  # then mode and owner of device files are ours to change
            facts = replace(facts, device_rule=None)
        passed_over = [spot for _, spot in self._stuck]
        facts = located(with_device_files(facts, self._roots.dev), sweep, crashed, passed_over, self._worker is None)
        if self._lends:
            self.release()
        return facts

    def take_xids(self) -> tuple[XidEvent, ...]:
        """Return the XIDs since the last call; see GpuSource."""
        self._hear()
        self._xids.read_kernel()
        return self._xids.take()

    @property
    def kernel_sequence(self) -> int | None:
        """The kernel's last log record that was taken up; see GpuSource."""
        return self._xids.kernel_sequence

    def resume(self, boot_id: str, sequence: int) -> None:
        """Take up what the kernel logged while nobody listened; see GpuSource."""
        if boot_id == self._boot_id:
            self._xids.resume(sequence)

    def fileno(self) -> int:
        """Return the descriptor that XIDs make readable; the same as long as the source lives."""
        return self._xids.fileno()

    def close(self) -> None:
        """End the probe process and close what was opened."""
        self._drop_worker(None)
        self._xids.close()

    @property
    def overruns(self) -> int:
        """How often the kernel overwrote records of its log, XIDs among them perhaps, before they were read."""
        return self._xids.overruns

    @property
    def has_kernel_log(self) -> bool:
        """Whether the kernel log can be read; see GpuSource."""
        return self._xids.has_kernel_log

    def lend(self, between: bool) -> None:
        """Let NVML go after each sample, look and tend, or keep it open in between; see GpuSource."""
        if between and not self._lends:
            self.release()
        self._lends = between

    def leave(self) -> int:
        """End the probe process; see GpuSource. Takes as long as `release`, and half a second more."""
        self.release()
        self._drop_worker(None)
        return self.stuck

    def release(self) -> None:
        """Let NVML go, so that a GPU can be reset; the next sample opens it again.

        Till then only the kernel log tells of XIDs. Takes at most RELEASE_TIMEOUT, and ends the probe process where it
        does not let go by itself.
        """
        worker = self._worker
        if worker is None:
            return
        deadline = self._clock.monotonic() + RELEASE_TIMEOUT
        try:
            worker.request(op="release")
            while (left := deadline - self._clock.monotonic()) > 0:
                worker.wait_readable(left)
                if any([self._take(message, None) for message in worker.messages()]):
                    return
        except Gone:
            self._crashed(None)
            return
        self._drop_worker(None)  # it lets go by its end

    def look(self, uuids: Collection[str]) -> tuple[GpuFacts, ...]:
        """Read who uses some GPUs; see GpuSource. Takes as long as a sample, where the probe hangs."""
        hanging = {_name(spot) for _, spot in self._stuck if spot is not None} if self.stuck else set()
        asked = [uuid for uuid in uuids if uuid not in hanging]
        sweep = self._short(op="look", gpus=asked) if asked else None
        return () if sweep is None else sweep.facts(self._boot_id, self._clock.monotonic(), 0.0).gpus

    def tend(self, uuid: str, wish: Mapping[str, str]) -> Tended | None:
        """Bring a GPU's modes to what is wished; see GpuSource."""
        sweep = self._short(op="tend", gpus=[uuid], wish=dict(wish))
        if sweep is None or sweep.tended is None or "error" in sweep.tended:
            return None
        changed = {name: (before, after) for name, (before, after) in sweep.tended["changed"].items()}
        return Tended(changed, sweep.tended["refused"])

    def _short(self, **request: Any) -> Sweep | None:
        """Have something short done; None where it did not come to its end."""
        sweep = Sweep()
        if self._start():
            return None
        self._attempt(sweep, self._clock.monotonic() + self.timeout, request)
        if self._lends:
            self.release()
        return sweep if sweep.ended else None

    # ---- the probe process -----------------------------------------------------------------------------------

    def _start(self) -> str:
        """See that a worker runs, if one may; returns why not where that failed."""
        if self._worker is not None and self._worker.is_gone():
            while self._worker is not None:
                self._hear()
        stuck = self.stuck  # asked in any case: a GPU whose process has come back is to be asked again
        if self._worker is not None or stuck >= MAX_STUCK:
            return ""
        try:
            self._worker = Worker(self._roots.proc, self._roots.sys, self._env)
        except OSError as error:
            return f"the probe process cannot be started: {error.strerror or error}"
        self._xids.watch(self._worker.fileno())
        return ""

    def _hear(self) -> None:
        """Take what the worker has said unasked; one that has ended is dropped once all is heard."""
        if self._worker is None:
            return
        try:
            for message in self._worker.messages():
                self._take(message, None)
        except Gone:
            self._crashed(None)

    def _attempt(self, sweep: Sweep, deadline: float, request: Mapping[str, Any] | None = None) -> int | None:
        """Have the worker, if there is one, do what is requested (a sample); returns by which signal it ended."""
        if self._worker is None:
            return None
        try:
            self._ask(self._worker, sweep, deadline, request or self._sample())
        except Gone as gone:
            self._crashed(sweep.at)
            return max(0, -gone.status)
        if not sweep.ended:
            self.timeouts += 1
            self._drop_worker(sweep.at)
        return None

    def _sample(self) -> dict[str, Any]:
        """Return the request for a sample. A GPU that was never read has told its UUID to a process that is gone."""
        told = {uuid for uuid, _ in self._known.values()}

        def name(spot: Spot) -> str | int:
            return spot[0] if spot[0] in told else spot[1]

        return {
            "op": "sample",
            "watch": not self._lends,
            "known": [[index, uuid, bus_id] for index, (uuid, bus_id) in self._known.items()],
            "last": [name(spot) for spot in self._suspects],
            "skip": [name(spot) for _, spot in self._stuck if spot is not None],
        }

    def _ask(self, worker: Worker, sweep: Sweep, deadline: float, request: Mapping[str, Any]) -> None:
        """Have one sweep made and take what comes until its end or the deadline; raises Gone.

        Each word of the worker's is a sign of life and moves the deadline, up to PATIENCE times the whole: eight cold
        GPUs that answer slowly are not one that hangs.
        """
        last = deadline + (PATIENCE - 1) * self.timeout
        worker.request(**request)
        while not sweep.ended and (left := deadline - self._clock.monotonic()) > 0:
            # Before the first sweep nobody knows which GPU a bus id of the kernel's is: the log can wait.
            worker.wait_readable(left, self._xids.kernel_fileno() if self._xids.uuids else -1)
            messages = worker.messages()
            if messages:
                deadline = min(last, self._clock.monotonic() + self.timeout)
            for message in messages:
                self._take(message, sweep)
            if self._xids.uuids:
                self._xids.read_kernel()

    def _crashed(self, spot: Spot | None) -> None:
        self.crashes += 1
        self._drop_worker(spot)

    def _drop_worker(self, spot: Spot | None) -> None:
        """End the worker, which was at `spot`; leave it behind if it does not die."""
        worker, self._worker = self._worker, None
        if spot is not None:
            self._suspects = [other for other in self._suspects if _name(other) != _name(spot)] + [spot]
        if worker is None:
            return
        if not worker.end(self._kill):
            self.abandoned += 1
            self._stuck.append((worker, spot))

    def _learn(self, sweep: Sweep, facts: NodeFacts) -> None:
        """Remember who is where, and clear the suspects that answered."""
        named = {gpu.index: (gpu.uuid, gpu.bus_id) for gpu in facts.gpus if gpu.index is not None and gpu.uuid}
        if sweep.ended and facts.nvml_error is None and not self._stuck:
            self._known = named
        else:
            self._known = {index: who for index, who in self._known.items() if who not in named.values()} | named
        self._xids.uuids.update({bus_id: uuid for uuid, bus_id in named.values() if bus_id})
        answered = {_name(spot) for spot in sweep.read} | {index for _, index in sweep.read}
        self._suspects = [spot for spot in self._suspects if _name(spot) not in answered]

    def _take(self, message: dict[str, Any], sweep: Sweep | None) -> bool:
        """Take up one message of the worker; returns whether it says that NVML has been let go."""
        if "xid" in message:
            self._xids.from_probe(message["xid"])
        elif sweep is not None:
            sweep.take(message)
        return "released" in message


def _name(spot: Spot) -> str | int:
    """What the worker calls a GPU: its UUID, or its index if that is all one knows."""
    return spot[0] or spot[1]
