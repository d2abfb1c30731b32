"""Advice for Grid Engine: complexes, hooks, load sensor, and what makes it bundle or spread."""

from __future__ import annotations

from nodeagent.discover.advice import BUNDLE, Piece, Site


def advise(site: Site) -> list[Piece]:
    """Return what to set in Grid Engine; see Adviser."""
    return [_complexes(site), _host(site), _queue(site), _sensor(site), _unit(site), _scheduler(site)]


def _complexes(site: Site) -> Piece:
    gpu = site.config.scheduler.sge.complex
    rows = (
        (gpu, gpu, "INT", "<=", "YES", "YES", "0", "0"),
        ("gpu_faulty", "gpu_faulty", "INT", ">=", "YES", "NO", "0", "0"),
        ("gpu_reason", "gpu_reason", "STRING", "==", "YES", "NO", "NONE", "0"),
        ("gpu_free", "gpu_free", "INT", "<=", "YES", "NO", "0", "0"),
        ("gpu_linked", "gpu_linked", "INT", "<=", "YES", "NO", "0", "0"),
    )
    text = "\n".join(" ".join(row) for row in rows)
    why = f"{gpu} is what jobs ask for; the others are what the load sensor tells (-l gpu_linked=4: 4 with fast links)"
    return Piece("complexes", "qconf -mc", text, why)


def _host(site: Site) -> Piece:
    value = f"{site.config.scheduler.sge.complex}={sum(unit.slots for unit in site.units)}"
    command = f"qconf -mattr exechost complex_values {value} {site.node}"
    why = "what this host offers; a host without GPUs offers 0, so that the scheduler can compare it with the others"
    return Piece("host", "run once a host", command, why)


def _queue(site: Site) -> Piece:
    text = f"prolog root@{site.hook('prolog/sge')}\nepilog root@{site.hook('epilog/sge')}"
    return Piece("queue", "qconf -mq QUEUE", text, "locks a job's GPUs before it starts, frees them when it has ended")


def _sensor(site: Site) -> Piece:
    return Piece("sensor", "qconf -mconf", f"load_sensor {site.hooks}/sge-sensor", "keeps jobs off faulty GPUs")


def _unit(site: Site) -> Piece:
    text = "[Service]\nDelegate=yes"
    why = "where systemd starts the exec daemon: only so can a job be kept off other GPUs by cgroup v2; then restart it"
    return Piece("unit", "systemctl edit EXECD-UNIT", text, why)


def _scheduler(site: Site) -> Piece:
    gpu = site.config.scheduler.sge.complex
    bundle = site.placement == BUNDLE
    text = f"queue_sort_method load\nload_formula {gpu if bundle else f'-{gpu}'}\njob_load_adjustments NONE"
    why = "the host with the fewest free GPUs first" if bundle else "the host with the most free GPUs first"
    return Piece("scheduler", "qconf -msconf", text, why)
