"""The site's own checks: which is due, which runs, what each said last. Never blocks."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nodeagent.clock import Clock
from nodeagent.config.site_checks import SiteCheck
from nodeagent.errors import NodeAgentError
from nodeagent.external.child import Outcome, Run
from nodeagent.gpu.facts import BROKEN, HUNG, SiteResult

_GRACE = 2.0
"""Seconds that the agent's end waits for checks to be gone."""
_LATE = 5.0
"""Seconds beyond its time-out after which a run that is not over counts as hung: its start hangs, or its end."""


@dataclass
class _Slot:
    """One check: its run, its last result, when it was started last."""

    check: SiteCheck
    run: Run | None = None
    result: SiteResult | None = None
    started: float = float("-inf")
    late: bool = False
    stuck: subprocess.Popen[bytes] | None = None


class SiteChecks:
    """Runs each check in its interval, at most one process of each at a time.

    A check that is only for an idle node is ended, without a result, as soon as the node is not; it is due again when
    the node is idle. One that even SIGKILL does not end is left behind and counted, and not started again beside it.
    """

    def __init__(self, clock: Clock) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        """(check, ended | failed | hung | broken | stopped | abandoned) -> how often."""
        self._clock = clock
        self._checks: Mapping[str, SiteCheck] = {}
        self._slots: dict[str, _Slot] = {}
        self._leaving: list[Run] = []

    def again(self) -> None:
        """Forget what the checks said and have each run again: somebody has mended something."""
        for slot in self._slots.values():
            slot.result, slot.started = None, float("-inf")

    def step(
        self, checks: Mapping[str, SiteCheck], is_busy: Callable[[], bool], resting: bool = False
    ) -> tuple[SiteResult, ...]:
        """Take up what has ended, start what is due, and return what each check said last, in the order of names.

        `is_busy` says whether a unit of the node is held; where that cannot be told it is. Of checks that are described
        as before the results stay. While `resting` none may run: what does is ended, as where the node is not idle.
        """
        if checks is not self._checks:
            self._configure(checks)
        now = self._clock.monotonic()
        busy = any(check.only_when_idle for check in checks.values()) and _held(is_busy)
        for run in [run for run in self._leaving if run.is_over()]:
            self._leaving.remove(run)
            run.close()
        for name, slot in self._slots.items():
            self._see(name, slot, now)
            wanted = not resting and not (busy and slot.check.only_when_idle)
            if slot.run is not None and not wanted:
                slot.run.stop()
            due = now - slot.started >= slot.check.interval
            if slot.run is None and slot.stuck is None and due and wanted:
                slot.started = now
                slot.late = False
                slot.run = Run(slot.check)
                slot.run.begin()
        return tuple(slot.result or _not_yet(name, slot.check) for name, slot in sorted(self._slots.items()))

    def left(self) -> tuple[int, int]:
        """Return how many runs are in progress, and how many processes were left behind because nothing ends them."""
        running = len(self._leaving) + sum(slot.run is not None for slot in self._slots.values())
        return running, sum(slot.stuck is not None for slot in self._slots.values())

    def close(self) -> None:
        """End what runs."""
        runs = [*self._leaving, *(slot.run for slot in self._slots.values() if slot.run is not None)]
        for run in runs:
            run.stop()
        deadline = self._clock.monotonic() + _GRACE
        for run in runs:
            run.stop(max(0.0, deadline - self._clock.monotonic()))

    def _configure(self, checks: Mapping[str, SiteCheck]) -> None:
        old, self._slots = self._slots, {}
        for name, check in checks.items():
            slot = old.get(name)
            self._slots[name] = old.pop(name) if slot is not None and slot.check == check else _Slot(check)
        for slot in old.values():
            if slot.run is not None:
                slot.run.stop()
                self._leaving.append(slot.run)
        self._checks = checks

    def _see(self, name: str, slot: _Slot, now: float) -> None:
        """Take note of what has become of a check's run."""
        if slot.stuck is not None and slot.stuck.poll() is not None:
            slot.stuck = None
        if slot.run is None:
            return
        if slot.run.is_over():
            self._take(name, slot, slot.run, now)
        elif not slot.late and now - slot.started > slot.check.timeout + _LATE:
            slot.late = True
            self._note(name, slot, now, Outcome(HUNG))

    def _take(self, name: str, slot: _Slot, run: Run, now: float) -> None:
        slot.run = None
        run.close()
        if run.abandoned is not None:
            slot.stuck = run.abandoned
            self.counts[name, "abandoned"] += 1
        if run.outcome is None and run.stopped:
            self.counts[name, "stopped"] += 1
            slot.started = float("-inf")
        elif not slot.late:
            self._note(name, slot, now, run.outcome or Outcome(BROKEN, why="ended without a word of how"))

    def _note(self, name: str, slot: _Slot, now: float, outcome: Outcome) -> None:
        word = outcome.kind if outcome.kind in (HUNG, BROKEN) or outcome.status == 0 else "failed"
        self.counts[name, word] += 1
        if slot.started != float("-inf"):  # else `again` came while it ran: what it saw may be of before
            check = slot.check
            slot.result = SiteResult(
                *(name, outcome.kind, now, outcome.status, outcome.output, outcome.why),
                *(check.severity, check.action, check.unit_from, check.timeout),
            )


def _held(is_busy: Callable[[], bool]) -> bool:
    try:
        return is_busy()
    except (NodeAgentError, OSError):  # the cleaner, which reads the same locks, says it in the log
        return True


def _not_yet(name: str, check: SiteCheck) -> SiteResult:
    return SiteResult(name, severity=check.severity, action=check.action, unit_from=check.unit_from)
