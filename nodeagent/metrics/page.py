"""The status page: one table, plain HTML, nothing loaded from elsewhere. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from nodeagent.gpu.facts import GpuFacts
from nodeagent.health.verdict import UnitVerdict
from nodeagent.lock.record import Owner
from nodeagent.metrics.native import gpu_of, is_stale
from nodeagent.snapshot import Snapshot

_STYLE = (
    "body{font-family:sans-serif;margin:2em}table{border-collapse:collapse}"
    "td,th{border:1px solid #999;padding:.3em .6em;text-align:left}td.n{text-align:right}"
    ".OK{background:#dfd}.DEGRADED{background:#ffd}.FAILED{background:#fdd}.UNKNOWN{background:#ddd}"
)
_HEAD = ("GPU", "UUID", "bus id", "model", "verdict", "why", "held by", "temperature", "utilisation")


def render_page(snapshot: Snapshot | None, owners: Mapping[str, Owner], now: float) -> bytes:
    """Return the page; `owners` are the held units, `now` monotonic seconds."""
    if snapshot is None:
        return _document("gpu-nodeagent", "<p>No verdict yet: the first cycle has not ended.</p>")
    verdict = snapshot.verdict
    old = is_stale(snapshot, now)
    facts = {} if old else {gpu.uuid: gpu for gpu in snapshot.facts.gpus if gpu.error is None}
    holders = _holders(snapshot, owners)
    head = "".join(f"<th>{escape(word)}</th>" for word in _HEAD)
    rows = "".join(_row(snapshot, unit, facts.get(unit.uuid), holders.get(unit.uuid, ())) for unit in verdict.units)
    rests = "<p>Maintenance: the agent takes nothing out and brings nothing back.</p>" if snapshot.maintenance else ""
    lent = "<p>The driver is released: no GPU is looked at.</p>" if snapshot.released is not None else ""
    warning = "<p><strong>These facts are old: the agent's loop is late.</strong></p>" if old else ""
    node = "; ".join(finding.evidence for finding in verdict.node_findings)
    drain = f"<p>Drained by gpu-nodeagent: {escape(snapshot.drain_reason)}</p>" if snapshot.drain_reason else ""
    return _document(
        f"GPUs of {snapshot.node}",
        f"<p>Node: <span class={verdict.node_state}>{verdict.node_state}</span> {escape(node)}</p>{drain}{rests}{lent}"
        f"<p>{max(0.0, now - snapshot.monotonic):.0f} s old; gpu-nodeagent {escape(snapshot.version)}</p>{warning}"
        f"<table><tr>{head}</tr>{rows}</table>"
        '<p><a href="metrics">metrics</a> <a href="api/v1/status">status as JSON</a></p>',
    )


def _holders(snapshot: Snapshot, owners: Mapping[str, Owner]) -> dict[str, list[str]]:
    parents = {mig.uuid: gpu.uuid for gpu in snapshot.facts.gpus for mig in gpu.mig}
    holders: dict[str, list[str]] = {}
    for unit, owner in sorted(owners.items()):
        named = holders.setdefault(gpu_of(unit, owner, parents), [])
        if str(owner) not in named:
            named.append(str(owner))
    return holders


def _row(snapshot: Snapshot, unit: UnitVerdict, gpu: GpuFacts | None, holders: list[str] | tuple[()]) -> str:
    why = [finding.evidence for finding in unit.reasons]
    if unit.uuid in snapshot.retired:
        why.insert(0, "retired: " + snapshot.retired[unit.uuid].get("reason", ""))
    temperature = "" if gpu is None or gpu.temperature is None else f"{gpu.temperature:.0f} °C"
    utilisation = "" if gpu is None or gpu.utilization is None else f"{100 * gpu.utilization:.0f} %"
    texts = ("" if unit.index < 0 else str(unit.index), unit.uuid, unit.bus_id, unit.model)
    return (
        "<tr>"
        + "".join(f"<td>{escape(text)}</td>" for text in texts)
        + f"<td class={unit.state}>{unit.state}</td>"
        + f"<td>{escape('; '.join(why))}</td><td>{escape(', '.join(holders))}</td>"
        + f"<td class=n>{temperature}</td><td class=n>{utilisation}</td></tr>"
    )


def _document(title: str, body: str) -> bytes:
    return (
        f"<!DOCTYPE html><html lang=en><head><meta charset=utf-8><title>{escape(title)}</title>"
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    ).encode()
