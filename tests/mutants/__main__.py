"""`make mutants`: small faults put into nodeagent/health one by one; fails where too many of them pass its tests.

`make mutants MUTANTS='nodeagent.health.verdict.*'` tries the mutants of those names alone.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.mutants import result, specimen

PLACE = specimen.TREE / "build" / "mutants"


def main(wanted: list[str]) -> int:
    """Make the mutants, try them, print what came of it; 1 where too few were caught."""
    if importlib.util.find_spec("mutmut") is None:
        print("mutmut is not installed; it needs Python 3.10 or later (see requirements-mutants.txt)", file=sys.stderr)
        return 1
    begun = time.monotonic()
    specimen.make(PLACE)
    if not _run(PLACE, wanted):
        return 1
    modules = result.read(PLACE / "mutants", wanted)
    print("\n".join(result.render(modules)))
    print(f"{time.monotonic() - begun:.0f} s; a mutant is shown by: cd {PLACE} && {sys.executable} -m mutmut show NAME")
    return 0 if result.enough(modules) else 1


def _run(place: Path, wanted: list[str]) -> bool:
    """Let mutmut try the mutants with a process a core. Its talk goes to a file, whose end is shown where it fails."""
    log = place / "mutmut.log"
    print(f"trying the mutants, for minutes; how far it is: tail -c 200 {log}", flush=True)
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(len(os.sched_getaffinity(0))), *wanted]
    with log.open("wb") as out:
        done = subprocess.run(command, cwd=place, stdout=out, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        print(f"mutmut failed (exit status {done.returncode}):", log.read_text(errors="replace")[-3000:], sep="\n")
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
