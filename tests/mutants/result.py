"""What became of each mutant, by module, and whether enough of them were caught. Pure but for the reading of files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

LEAST = 90
"""Per cent of the mutants that have to be caught."""
_FAILED, _CRASHED = 1, 3
"""pytest's: a test failed; pytest itself did."""
_TIMED_OUT = (24, 36, 152, 255)
"""mutmut's: it used up its time."""
_SURVIVED, _UNTESTED = 0, (5, 33)
"""pytest's: every test passed; there was none (mutmut's 33: none that calls the function)."""


@dataclass
class Module:
    """The mutants of one module. `survivors` are named as mutmut names them, `untried` have no result."""

    name: str
    caught: int = 0
    survivors: list[str] = field(default_factory=list)
    untried: list[str] = field(default_factory=list)

    @property
    def mutants(self) -> int:
        """How many were tried."""
        return self.caught + len(self.survivors)


def read(place: Path, wanted: Sequence[str] = ()) -> list[Module]:
    """Return what mutmut has written in its directory, of all mutants or of those whose names fit a pattern."""
    found = []
    for path in sorted(place.rglob("*.py.meta")):
        results = json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
        name = str(path.relative_to(place))[: -len(".py.meta")].replace("/", ".")
        chosen = {key: code for key, code in results.items() if not wanted or _fits(key, wanted)}
        if chosen:
            found.append(count(name, chosen))
    return found


def _fits(name: str, wanted: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in wanted)


def count(name: str, results: Mapping[str, int | None]) -> Module:
    """Return the count of one module from mutmut's exit codes.

    A mutant that hangs or dies of a signal is caught: no test run would end well. One that no test calls is not. What
    was broken off, or never begun, is neither.
    """
    module = Module(name)
    for mutant, code in results.items():
        if code == _SURVIVED or code in _UNTESTED:
            module.survivors.append(mutant + (" (no test)" if code else ""))
        elif code in (_FAILED, _CRASHED, *_TIMED_OUT) or (code is not None and code < 0):
            module.caught += 1
        else:
            module.untried.append(mutant)
    return module


def enough(modules: Sequence[Module]) -> bool:
    """Say whether there were mutants, all of them were tried, and the share that was caught reaches the limit."""
    whole, caught = sum(one.mutants for one in modules), sum(one.caught for one in modules)
    return whole > 0 and not any(one.untried for one in modules) and 100 * caught >= LEAST * whole


def render(modules: Sequence[Module]) -> Iterator[str]:
    """Yield the lines of the report: a row a module with its survivors below it, then all together."""
    total = Module("all")
    yield f"{'module':44} {'mutants':>7} {'caught':>7} {'share':>7}"
    for one in modules:
        yield _row(one)
        yield from (f"    {survivor}" for survivor in one.survivors)
        total.caught += one.caught
        total.survivors += one.survivors
        total.untried += one.untried
    yield f"{_row(total)} (limit {LEAST} %)"
    if total.untried:
        yield f"{len(total.untried)} were not tried, such as {total.untried[0]}"


def _row(one: Module) -> str:
    share = f"{1000 * one.caught // one.mutants / 10:.1f} %" if one.mutants else "-"
    return f"{one.name:44} {one.mutants:7} {one.caught:7} {share:>7}"
