"""`gpu-nodeagent sge-sensor`: Grid Engine's load sensor: a report for each line of input, until `quit`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence

from nodeagent.cli.context import loaded, open_state
from nodeagent.cli.main import Exit
from nodeagent.config.model import Config
from nodeagent.errors import NodeAgentError
from nodeagent.gpu.topology import largest_linked
from nodeagent.hook.node import last_word
from nodeagent.lock.cleaning import in_cleaning
from nodeagent.lock.occupancy import Occupancy, usable, vanished
from nodeagent.lock.record import HOLD, MAINTENANCE, UNREADABLE, Owner
from nodeagent.lock.store import Store
from nodeagent.scheduler.registry import node_name
from nodeagent.state.boot import boot_id
from nodeagent.state.verdict_file import FAILED, OK, UnitLine

_LONGEST_REASON = 200


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""


def report(
    units: tuple[UnitLine, ...],
    retired: Mapping[str, Mapping[str, str]],
    owners: Mapping[str, Owner],
    complex_name: str,
    trouble: str = "",
    unfit: str = "",
) -> Iterator[str]:
    """Yield `name:value` of one report.

    `gpu` (`complex_name`; nothing is said of it without one) is the number of units while all are in service: Grid
    Engine itself subtracts what is in use, so the end of a job counts at once. As soon as one is retired (and be it
    gone), failed, unknown or held by hand it is the number of free healthy ones (those in cleaning among them: a job
    that comes now waits for them, and that is milliseconds): the smaller of this and capacity minus use is what jobs
    are placed by. A shared GPU counts as often as jobs may share it. Without any word of the agent's nothing is
    offered or withheld; `trouble` is what is amiss with that word. A node that is `unfit` as a whole offers none.
    `gpu_free` is how many are healthy and free, `gpu_linked` how many GPUs, free as a whole, are all linked with one
    another: for jobs to ask for.
    """
    if unfit:
        if complex_name:
            yield f"{complex_name}:0"
        yield f"gpu_faulty:{max(1, len(units))}"
        yield f"gpu_reason:{one_word_line(unfit)}"
        yield "gpu_free:0"
        yield "gpu_linked:0"
        return
    faulty = [unit for unit in units if not usable(unit, retired)]
    out = {u.unit: (retired.get(u.unit) or retired.get(u.gpu) or {}).get("reason", u.why) for u in faulty}
    if units:
        out.update({name: retired[name].get("reason", "retired") for name in vanished(retired, units)})
    blocked = [unit for unit, owner in owners.items() if owner.scheduler in (HOLD, MAINTENANCE, UNREADABLE)]
    cleaning = in_cleaning(owners)
    occupied = Occupancy({unit: owner for unit, owner in owners.items() if unit not in cleaning}, units)
    well = [unit for unit in units if unit.unit not in out]
    free = sum(map(occupied.free, well))
    if complex_name and (out or blocked):
        yield f"{complex_name}:{free}"
    elif complex_name and units:
        yield f"{complex_name}:{sum(unit.slots for unit in units)}"
    yield f"gpu_faulty:{len(out)}"
    yield f"gpu_reason:{one_word_line('; '.join(filter(None, [trouble, *out.values()])))}"
    if units:
        yield f"gpu_free:{free}"
        yield f"gpu_linked:{_linked(units, [unit for unit in well if occupied.free(unit) == unit.slots])}"


def _linked(units: Sequence[UnitLine], free: Sequence[UnitLine]) -> int:
    """Return the size of the largest linked set of whole free GPUs."""
    column = {unit.unit: at for at, unit in enumerate(units)}
    whole = [unit for unit in free if unit.unit == unit.gpu]
    places = [column[unit.unit] for unit in whole]
    return largest_linked([[u.links[at] if at < len(u.links) else 0 for at in places] for u in whole])


def models(units: tuple[UnitLine, ...]) -> str:
    """Return the models of a node as one word, so that a job's pattern finds each: `A100-SXM4-80GB+H100-PCIe`."""
    names = {unit.model.removeprefix("NVIDIA ").removeprefix("Tesla ") for unit in units}
    return "+".join("-".join(one_word_line(name).split()) for name in sorted(names)) or "none"


def one_word_line(words: str) -> str:
    """Return a reason without colons and commas, which separate fields of a report; `none` for nothing."""
    clean = "".join(c if c.isprintable() and c not in ":," else " " for c in words)
    return " ".join(clean.split())[:_LONGEST_REASON] or "none"


def values_of(config: Config, retired: Mapping[str, Mapping[str, str]] | None = None) -> list[str]:
    """Return `name:value` of the report of this moment, or of one in which just these units are `retired`."""
    state = open_state(config)
    try:
        verdict, fresh, trouble = last_word(state, boot_id(config.roots.proc), config.hooks.verdict_max_age)
        store = Store(state)
        units = verdict.units if verdict is not None else ()
        bad = (
            verdict is not None and fresh and (verdict.node_state == FAILED or (not units and verdict.node_state != OK))
        )
        unfit = (verdict.node_why or verdict.node_state) if bad and verdict is not None else ""
        sge = config.scheduler.sge
        offered = sge.complex if sge.retire == "sensor" else ""
        out = store.retired() if retired is None else retired
        said = list(report(units, out, store.owners(), offered, trouble, unfit))
        return [*said, f"{sge.model_complex}:{models(units)}"] if sge.model_complex and units else said
    finally:
        state.close()


def run(options: argparse.Namespace) -> int:
    """Answer until `quit` or the end of input. A report that cannot be made says so in gpu_reason."""
    config = loaded(options).config
    node = node_name(config)
    for line in sys.stdin:
        if line.strip() == "quit":
            break
        try:
            values = values_of(config)
        except (NodeAgentError, OSError) as error:
            values = [f"gpu_reason:{one_word_line(str(error))}"]
        sys.stdout.write("".join(["begin\n", *(f"{node}:{value}\n" for value in values), "end\n"]))
        sys.stdout.flush()
    return Exit.OK
