"""Advice for Slurm: gres.conf from the GPUs seen, hooks, devices kept apart, and what makes it bundle or spread."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable

from nodeagent.discover.advice import BUNDLE, Piece, Site
from nodeagent.discover.cores import cores_of_numa_nodes, ranges
from nodeagent.gpu.topology import NVLINK
from nodeagent.scheduler.slurm_holder import partition_line
from nodeagent.state.verdict_file import UnitLine

HOOKS = {"Prolog": "prolog/slurm", "TaskProlog": "prolog/slurm-task", "Epilog": "epilog/slurm"}
_FIRST_WEIGHT = 1000
_CGROUPS = "without these cgroup.conf has no effect"
_MAKERS = ("nvidia", "tesla", "geforce", "quadro")


def advise(site: Site) -> list[Piece]:
    """Return what to set in Slurm; see Adviser."""
    gpus = sorted((unit for unit in site.units if unit.unit == unit.gpu and unit.minor >= 0), key=lambda u: u.minor)
    return [
        _gres(site, gpus),
        _node(site, gpus),
        _partition(site),
        _hold(site),
        *_wrappers(site),
        _global(site),
        Piece(
            "plugins", "slurm.conf", "ProctrackType=proctrack/cgroup\nTaskPlugin=task/affinity,task/cgroup", _CGROUPS
        ),
        Piece("cgroup", "cgroup.conf", "ConstrainDevices=yes", "a job cannot open the device of another's GPU"),
    ]


def gres_type(model: str) -> str:
    """Return a short name for a model that is a part of the name `AutoDetect=nvml` would give it; empty for none.

    `NVIDIA H100 80GB HBM3` is h100, `Tesla V100-SXM2-16GB` v100, `NVIDIA RTX 6000 Ada Generation` rtx_6000.
    """
    words = [word for word in re.split(r"[\s-]+", model.lower()) if word and word not in _MAKERS]
    for at, word in enumerate(words):
        if re.fullmatch(r"[a-z]+\d+[a-z]*", word):
            return word
        if at and word.isascii() and word.isdigit():
            return f"{words[at - 1]}_{word}"
    return ""


def _gres(site: Site, gpus: list[UnitLine]) -> Piece:
    cores = cores_of_numa_nodes(site.config.roots.sys)
    places = [list(site.units).index(gpu) for gpu in gpus]
    linked = any(quality >= NVLINK for gpu in gpus for quality in gpu.links)
    lines = []
    for gpu in gpus:
        kind = gres_type(gpu.model)
        words = [f"NodeName={site.node} Name={site.config.scheduler.slurm.gres}"]
        if kind:
            words.append(f"Type={kind}")
        words.append(f"File={site.config.roots.dev}/nvidia{gpu.minor}")
        if gpu.numa in cores and len(cores) > 1:
            words.append(f"Cores={ranges(cores[gpu.numa])}")
        if linked:
            words.append(f"Links={_links(gpu, gpus, places)}")
        lines.append(" ".join(words))
    why = "the GPUs that the agent saw; compare Cores with `slurmd -C` and lstopo"
    if len({gres_type(gpu.model) for gpu in gpus}) > 1:
        why += "; with several types Slurm tells its prolog a part of a job's, and the agent asks for the rest"
    if not lines:
        return Piece("gres", "gres.conf", "# none: is the agent running here?", "no GPU was seen")
    return Piece("gres", "gres.conf", "\n".join(lines), why)


def _links(gpu: UnitLine, gpus: Iterable[UnitLine], places: list[int]) -> str:
    """Return what Slurm takes as numbers of NVLinks: only their order matters, so a faster generation counts more."""
    return ",".join(
        "-1" if other is gpu else str(gpu.links[at] // NVLINK if at < len(gpu.links) else 0)
        for other, at in zip(gpus, places)
    )


def _node(site: Site, gpus: list[UnitLine]) -> Piece:
    kinds = Counter(gres_type(gpu.model) for gpu in gpus)
    name = site.config.scheduler.slurm.gres
    gres = ",".join(f"{name}:{kind}:{count}" if kind else f"{name}:{count}" for kind, count in kinds.items())
    number = re.search(r"(\d+)\D*$", site.node)
    bundle = site.placement == BUNDLE
    weight = _FIRST_WEIGHT + (int(number.group(1)) if bundle and number else 0)
    text = f"NodeName={site.node}" + (f" Gres={gres}" if gres else "") + f" Weight={weight}"
    why = "add to this node's line (`slurmd -C` prints the rest); "
    if bundle:
        why += "a weight of its own for each node with GPUs: Slurm fills the lowest first, whatever CPUs are in use"
    else:
        why += "one weight for all nodes with GPUs: a different one would go before the load"
    why += "; above that of nodes without GPUs, so that CPU jobs go there first"
    return Piece("node", "slurm.conf", text, why)


def _partition(site: Site) -> Piece:
    bundle = site.placement == BUNDLE
    why = "add to the line of each partition with GPUs; "
    why += "nodes by weight" if bundle else "the node with the most idle CPUs first (Slurm does not count GPUs in it)"
    return Piece("partition", "slurm.conf", f"LLN={'NO' if bundle else 'YES'}", why)


def _hold(site: Site) -> Piece:
    why = (
        "for scheduler.slurm.retire: holder. A suspended job of root's in it keeps a retired GPU from all other jobs, "
        "and the node stays in service; users neither see this partition nor can submit to it. "
        "Name all nodes with GPUs in it; `gpu-nodeagent doctor` says whether it will do"
    )
    return Piece("hold", "slurm.conf", partition_line(site.config.scheduler.slurm.hold_partition, site.node), why)


def _wrapper(name: str) -> str:
    return f"/etc/slurm/gpu-nodeagent-{name}"


def _wrappers(site: Site) -> list[Piece]:
    """Slurm's Prolog= takes a path and no arguments: another configuration needs scripts that carry it."""
    if not site.config_path:
        return []
    lines = []
    for name, hook in HOOKS.items():
        path = _wrapper(name.lower())
        body = f"exec {shlex.quote(f'{site.hooks}/{hook}')} --config {shlex.quote(site.config_path)}"
        lines.append(f"printf '%s\\n' '#!/bin/sh' {shlex.quote(body)} > {path} && chmod 755 {path}")
    return [Piece("wrappers", "run once a node, as root", "\n".join(lines), "hooks with another configuration")]


def _global(site: Site) -> Piece:
    hooks = {name: _wrapper(name.lower()) if site.config_path else site.hook(hook) for name, hook in HOOKS.items()}
    lines = [
        f"GresTypes={site.config.scheduler.slurm.gres}",
        "SelectType=select/cons_tres",
        *(f"{name}={path}" for name, path in hooks.items()),
        "PrologFlags=Alloc",
        "PrologEpilogTimeout=60",
    ]
    why = "Alloc: the prolog runs on each node when a job gets it, not with its first step there (Contain includes it)"
    return Piece("global", "slurm.conf", "\n".join(lines), why)
