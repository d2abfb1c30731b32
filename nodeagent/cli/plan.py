"""What a command would do, in words: the real deeds rehearsed, and what the agent makes of it. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nodeagent.agent.actions import DrainRefused
from nodeagent.cli.context import open_state, status_of
from nodeagent.cli.deed import Deed, command_line
from nodeagent.cli.login import login
from nodeagent.cli.main import Exit
from nodeagent.cli.rehearsed import rehearsed
from nodeagent.cli.sge_sensor_command import values_of
from nodeagent.config.model import Config
from nodeagent.errors import NodeAgentError
from nodeagent.health.finding import RecoveryAction
from nodeagent.health.verdict import Verdict
from nodeagent.policy.decide import BY_ADMIN, BY_AGENT, wanted_drain
from nodeagent.policy.limits import most_drained
from nodeagent.report import iso
from nodeagent.scheduler.registry import node_name
from nodeagent.state.maintenance import Maintenance
from nodeagent.state.verdict_file import FAILED, UNKNOWN

Retired = Mapping[str, Mapping[str, str]]
_OUT = (FAILED, UNKNOWN)


class Stage:
    """The node, as one on which deeds are only rehearsed."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.node = node_name(config)
        self.actions, self._rehearsal = rehearsed(config)
        try:
            state = open_state(config)
        except FileNotFoundError:
            state = None
        self.gpus: list[dict[str, Any]] = status_of(config, state)["gpus"]

    @property
    def retired(self) -> Retired:
        """What is retired now."""
        return self.actions.retired()

    def gpu(self, unit: str) -> dict[str, Any]:
        """Return a GPU as `status` has it; of one that the agent does not know its name alone."""
        return next((gpu for gpu in self.gpus if gpu["uuid"] == unit), {"uuid": unit, "holders": []})

    def told_by(self, deed: Callable[[], object]) -> tuple[list[tuple[str, ...]], str]:
        """Return what the scheduler would be told by a deed, and why it would be refused, empty if it is not."""
        already = len(self._rehearsal.told)
        try:
            deed()
        except DrainRefused as error:
            return [], error.why
        return self._rehearsal.told[already:], ""

    def plan(self, deed: str, unit: str = "", reason: str = "") -> Deed:
        """Return the beginning of a plan."""
        return Deed(deed, self.node, dry_run=True, gpu=self.gpu(unit) if unit else {}, reason=reason)


def retire(config: Config, unit: str, reason: str) -> Deed:
    """Say what `retire` would do."""
    stage = Stage(config)
    plan = stage.plan("retire", unit, reason)
    plan.add(f"would retire {_name(plan.gpu)}: granted to nobody from then on, also after a reboot")
    plan.add(f'  reason "{reason}", by {login()}')
    known = stage.retired.get(unit)
    if known is not None:
        plan.add(f"  it is retired already, {_of(known)}: that would be replaced")
    plan.add(*_holders([plan.gpu]))
    record = {"reason": reason, "action": RecoveryAction.NONE.word, "by": BY_ADMIN}
    _scheduler(stage, plan, {**stage.retired, unit: record})
    plan.add(
        f"the agent does not bring it back, however well it looks; you do: gpu-nodeagent restore {_short(plan.gpu)}"
    )
    return plan


def restore(config: Config, unit: str) -> Deed:
    """Say what `restore` would do."""
    stage = Stage(config)
    plan = stage.plan("restore", unit)
    known = stage.retired.get(unit)
    if known is None:
        plan.refused = f"{unit}: is not retired"
        return plan
    plan.add(f"would restore {_name(plan.gpu)}: jobs can get it again at once")
    plan.add(f"  it was retired {_of(known)}")
    plan.add("  the agent forgets the XIDs that it holds against it; what it finds anew retires it again")
    if plan.gpu.get("verdict") in _OUT:
        why = "; ".join(one["evidence"] for one in plan.gpu["reasons"])
        plan.add(
            f"  it is {plan.gpu['verdict']} now ({why}): unless an XID is all there is, the agent retires it again"
        )
    rest = {name: record for name, record in stage.retired.items() if name != unit}
    _scheduler(stage, plan, rest)
    return plan


def drain(config: Config, reason: str, deed: Callable[[Stage], object]) -> Deed:
    """Say what `drain` would do; `deed` does it on a stage."""
    stage = Stage(config)
    plan = stage.plan("drain", reason=reason)
    told(stage, plan, lambda: deed(stage), f"would drain {stage.node}", "there is nothing to close")
    if plan.refused:
        return plan
    most = config.limits.max_drained
    for fleet in stage.actions.scheduler.fleets():
        limit = most_drained(most, fleet.nodes)
        word = "goes past the limit" if fleet.drained_by_us >= limit else "is within the limit"
        plan.add(
            f"this {word} of {fleet.name}, which is the agent's and not yours: {fleet.drained_by_us} of {fleet.nodes}"
            f" nodes are out, limits.max_drained ({most}) allows {limit}"
        )
    plan.add(*_holders(stage.gpus), "the agent does not give the node back; you do: gpu-nodeagent resume")
    return plan


def resume(config: Config, deed: Callable[[Stage], object]) -> Deed:
    """Say what `resume` would do; `deed` does it on a stage."""
    stage = Stage(config)
    plan = stage.plan("resume")
    told(stage, plan, lambda: deed(stage), f"would give {stage.node} back", "it takes jobs already")
    if plan.refused:
        return plan
    again = wanted_drain(Verdict("", 0.0), config.policy, stage.actions.scheduler.spares_units, stage.retired)
    if again is not None:
        plan.add(f"the agent drains it again at once, for what is still retired: {again.reason}")
    sick = [_name(gpu) for gpu in stage.gpus if gpu["verdict"] in _OUT]
    if sick:
        plan.add(f"not well now: {'; '.join(sick)}")
    return plan


def maintenance_on(config: Config, wish: Maintenance, deed: Callable[[Stage], object]) -> Deed:
    """Say what `maintenance on` would do; `deed` does it on a stage."""
    stage = Stage(config)
    plan = stage.plan("maintenance", reason=wish.why)
    until = (
        f"until {iso(wish.until)}, then it ends by itself" if wish.until else "until `gpu-nodeagent maintenance off`"
    )
    plan.add(f"would begin maintenance of {stage.node}, {until}; it outlasts a reboot", f"  by {wish.who}: {wish.why}")
    plan.add("the agent judges, tells and counts as ever; it retires, restores, drains and resumes nothing meanwhile")
    plan.add("hooks go on as ever: a job is refused a GPU only if that is retired or failed")
    told(stage, plan, lambda: deed(stage), f"would drain {stage.node} for it", "the node stays as it is")
    return plan


def maintenance_off(config: Config, deed: Callable[[Stage], object]) -> Deed:
    """Say what `maintenance off` would do; `deed` does it on a stage."""
    stage = Stage(config)
    plan = stage.plan("maintenance")
    plan.add(f"would end maintenance of {stage.node}; what became due is done in the agent's next cycle")
    told(stage, plan, lambda: deed(stage), f"would give {stage.node} back", "the node stays as it is")
    retired = stage.retired
    for gpu in stage.gpus:
        if gpu["verdict"] in _OUT and not gpu["retired"]:
            plan.add(f"  it may retire {_name(gpu)}")
        elif gpu["verdict"] not in _OUT and retired.get(gpu["uuid"], {}).get("by") == BY_AGENT:
            plan.add(f"  it may restore {_name(gpu)}")
    return plan


def told(stage: Stage, plan: Deed, deed: Callable[[], object], head: str, else_why: str) -> None:
    """Add what the scheduler would be told by a deed, word for word; or nothing, and why."""
    commands, refused = stage.told_by(deed)
    plan.told = [*plan.told, *commands]
    if refused:
        plan.refused, plan.status = refused, Exit.UNAVAILABLE
    elif commands:
        plan.add(f"{head}; {stage.config.scheduler.kind} would be told:", *(f"  {command_line(c)}" for c in commands))
    else:
        plan.add(f"{stage.config.scheduler.kind} would be told nothing: {else_why}")


def _scheduler(stage: Stage, plan: Deed, retired: Retired) -> None:
    """Add what the scheduler learns when just these units are retired."""
    kind = stage.config.scheduler.kind
    if stage.config.policy.dry_run:
        plan.add("policy.dry_run is on: the agent tells the scheduler nothing, and hooks refuse no job for it")
    elif not stage.actions.scheduler.spares_units:
        plan.add(*_drain_or_return(stage, plan, retired))
    elif kind == "sge":
        plan.add("sge is told by the load sensor, in its next report:")
        try:
            plan.add(*(f"  {stage.node}:{value}" for value in values_of(stage.config, retired)))
        except (NodeAgentError, OSError) as error:
            plan.add(f"  not known: {error}")
    elif kind == "slurm":
        plan.add("slurm is told by a suspended job of root's that holds what is retired, as soon as no other job does")
    else:
        plan.add("there is no scheduler to tell; `exec` goes by it at once")


def _drain_or_return(stage: Stage, plan: Deed, retired: Retired) -> Iterator[str]:
    """Yield what the agent does about the node, where the scheduler cannot spare one GPU."""
    actions, config = stage.actions, stage.config
    kind, wanted = config.scheduler.kind, wanted_drain(Verdict("", 0.0), config.policy, False, retired)
    if actions.maintenance() is not None:
        yield "maintenance is on: the agent does the following when it ends"
    try:
        node, record = actions.scheduler.node_state(), actions.records.drain()
        if wanted is not None and node.drained:
            yield f"{kind} cannot spare one GPU; the node is out already and stays so: {node.reason or 'no reason'}"
        elif wanted is not None:
            commands, refused = stage.told_by(lambda: actions.drain(wanted.reason, wanted.action))
            plan.told = commands
            if refused:
                yield f"{kind} cannot spare one GPU, and the agent may not drain the node: {refused}"
                yield "  so jobs are still sent here, and the prolog gives those back that get this GPU"
            else:
                yield f"{kind} cannot spare one GPU: the agent drains the node within a cycle; jobs on it run on. Told:"
                yield from (f"  {command_line(command)}" for command in commands)
        elif record is not None and record.by == BY_AGENT and record.action is not RecoveryAction.INSPECT_HARDWARE:
            looks = config.health.recover
            yield f"the agent gives the node back, which it drained, when all has been well for {looks} looks. Told:"
            plan.told, _ = stage.told_by(lambda: actions.resume(BY_AGENT))
            yield from (f"  {command_line(command)}" for command in plan.told)
        elif record is not None:
            yield f"the node stays drained ({record.reason}) until: gpu-nodeagent resume"
    except NodeAgentError as error:
        yield f"{kind} does not answer, so what it would be told is not known: {error}"


def _name(gpu: Mapping[str, Any]) -> str:
    if "bus_id" not in gpu:
        return str(gpu["uuid"])
    index = "GPU" if gpu["index"] is None else f"GPU {gpu['index']}"
    return f"{index} at {gpu['bus_id']}, {gpu['model']}, {gpu['verdict']} ({gpu['uuid']})"


def _short(gpu: Mapping[str, Any]) -> str:
    index = gpu.get("index")
    return str(gpu["uuid"] if index is None else index)


def _of(record: Mapping[str, str]) -> str:
    """Return by whom, when and why, from the record of a retirement."""
    who = f"{record.get('by', 'somebody')} {record.get('who', '')}".strip()
    since = record.get("since", "")
    when = f" at {iso(min(float(since), time.time()))}" if since.isdigit() else ""
    return f"by {who}{when}: {record.get('reason', '')}"


def _holders(gpus: list[dict[str, Any]]) -> Iterator[str]:
    held = [(gpu, holder) for gpu in gpus for holder in gpu["holders"]]
    for gpu, one in held:
        job = f"{one['job'] or '-'}" + (f".{one['task']}" if one["task"] else "")
        user = f" of {one['user']}" if one["user"] else ""
        who = f"{one['scheduler']} {job}{user} since {one['since']}"
        yield f"  GPU {_short(gpu)} is held by {who}: not touched, it runs on"
    if not held:
        yield "  no job holds it" if len(gpus) == 1 else "  no job holds any of its GPUs"
