"""One cycle as the agent publishes it: facts, verdict, retirements and counters, for metrics, page and `status`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nodeagent.gpu.facts import NodeFacts
from nodeagent.health.verdict import Verdict
from nodeagent.history.entry import Keeping
from nodeagent.state.maintenance import Maintenance


@dataclass(frozen=True)
class Counters:
    """What has been counted since the agent started; keys are label values."""

    xids: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """(uuid, xid) -> how often."""
    hook_events: Mapping[str, int] = field(default_factory=dict)
    """event kind -> how often hooks reported it."""
    hook_events_dropped: int = 0
    decisions: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(retire|restore|drain|resume|run_command, done|refused|waiting|failed|dry-run|waits) -> how often."""
    probe_timeouts: int = 0
    probe_crashes: int = 0
    probes_abandoned: int = 0
    """Probe processes that could not be ended because they are in state D."""
    kernel_log_overruns: int = 0
    """How often the kernel overwrote records of its log before they were read: XIDs may be missing."""
    site_checks: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(check of the site's, ended|failed|hung|broken|stopped|abandoned) -> how often."""
    site_commands: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(command of the policy's, ended|failed|hung|broken|abandoned) -> how often."""


@dataclass(frozen=True)
class Released:
    """The driver has been let go, so that somebody can reset a GPU: no GPU is asked `until` then (monotonic seconds).

    `by` is who wanted it, `request` the token of that request. `still_open` counts the agent's processes that may have
    it open all the same. Without a `kernel_log` XIDs are not seen meanwhile.
    """

    until: float
    by: str = ""
    request: str = ""
    still_open: int = 0
    kernel_log: bool = True


@dataclass(frozen=True)
class Snapshot:
    """What one cycle found and did. `monotonic` and `wall` are when it ended, `drain_reason` is ours, if drained.

    `drain_waits` says why a drain that is wanted is put off.
    """

    node: str
    pid: int
    interval: float
    monotonic: float
    wall: float
    facts: NodeFacts
    verdict: Verdict
    retired: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    drain_reason: str = ""
    slots: Mapping[str, int] = field(default_factory=dict)
    """GPU → how many jobs may have it at a time: its shares or its instances."""
    counters: Counters = field(default_factory=Counters)
    history: Keeping = field(default_factory=Keeping)
    released: Released | None = None
    scheduler_problem: str = ""
    """Why the scheduler could not be asked when it was asked last, and what to do."""
    drain_waits: str = ""
    maintenance: Maintenance | None = None
    cycle_seconds: float = 0.0
    version: str = ""
