"""Advice for Grid Engine: complexes, hooks, load sensor, and what makes it bundle or spread."""

from __future__ import annotations

from nodeagent.discover.advice import BUNDLE, Piece, Site


def advise(site: Site) -> list[Piece]:
    """Return what to set in Grid Engine; see Adviser."""
    return [_complexes(site), _host(site), _queue(site), _sensor(site), _shepherd(site), _unit(site), _scheduler(site)]


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
    why = (
        f"{gpu} is what jobs ask for, the rest what the load sensor tells: "
        f"with -l {gpu}=4,gpu_linked=4 a job waits for four GPUs that are all linked"
    )
    return Piece("complexes", "qconf -mc", text, why)


def _host(site: Site) -> Piece:
    offered = f"{site.config.scheduler.sge.complex}={sum(unit.slots for unit in site.units)}"
    why = "what this host offers. A host without GPUs is to offer 0, or it cannot be compared with the others"
    return Piece("host", "once a host", f"qconf -mattr exechost complex_values {offered} {site.node}", why)


def _queue(site: Site) -> Piece:
    text = f"prolog root@{site.hook('prolog/sge')}\nepilog root@{site.hook('epilog/sge')}"
    return Piece("queue", "qconf -mq QUEUE", text, "locks a job's GPUs before it starts, frees them when it has ended")


def _sensor(site: Site) -> Piece:
    why = "keeps jobs off faulty GPUs, tells how many are free and linked"
    return Piece("sensor", "qconf -mconf", f"load_sensor {site.hooks}/sge-sensor", why)


def _shepherd(site: Site) -> Piece:
    why = "the same on the slave hosts of parallel jobs, where Grid Engine runs no prolog; it takes no arguments"
    if site.config_path:
        why += f", so point it to a script of two lines that calls it with --config {site.config_path}"
    return Piece("shepherd", "qconf -mconf", f"shepherd_cmd {site.hooks}/prolog/sge-shepherd", why)


def _unit(site: Site) -> Piece:
    text = "[Service]\nDelegate=yes"
    why = "where systemd starts the exec daemon: only so can a job be kept off other GPUs by cgroup v2; then restart it"
    return Piece("unit", "systemctl edit EXECD-UNIT", text, why)


def _scheduler(site: Site) -> Piece:
    """Hosts are taken in ascending order of the formula, in which the consumable is what is left of it just now."""
    gpu = site.config.scheduler.sge.complex
    bundle = site.placement == BUNDLE
    # The manual's grammar has no sign in front; no host has this many GPUs.
    formula = gpu if bundle else f"1000-{gpu}"
    text = f"queue_sort_method load\nload_formula {formula}\njob_load_adjustments NONE"
    why = "small jobs fill hosts, whole ones stay free for large jobs" if bundle else "jobs go where most GPUs are free"
    return Piece("scheduler", "qconf -msconf", text, f"{site.placement}: {why}")
