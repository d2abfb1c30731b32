"""One measured figure with its limit, and the forms in which figures are given: a table and a JSON file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """A figure; without `limit` it is for information. `note` says what else belongs to it, `goal` what is aimed at."""

    bench: str
    name: str
    value: float
    unit: str
    limit: float | None = None
    goal: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        """Return pass or MISSED; empty without a limit."""
        if self.limit is None:
            return ""
        return "pass" if self.value <= self.limit else "MISSED"

    def row(self) -> tuple[str, ...]:
        """Return the figure's cells in the table."""
        limit = "" if self.limit is None else f"{self.limit:g} {self.unit}".strip()
        return (self.name, f"{self.value:.2f} {self.unit}".strip(), limit, self.verdict, self.goal, self.note)


HEAD = ("figure", "measured", "limit", "", "goal", "")


def table(figures: Sequence[Figure]) -> str:
    """Return the table of one bench."""
    rows = [HEAD, *(figure.row() for figure in figures)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


def machine() -> dict[str, object]:
    """Return what figures depend on besides the program."""
    return {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "agent_python": platform.python_version(),
        "hook_python": _hook_python(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def _hook_python() -> str:
    said = subprocess.run(["/usr/bin/python3", "-V"], capture_output=True, text=True, timeout=10, check=True)
    return said.stdout.split()[-1]


def write_report(path: Path, figures: Sequence[Figure], begun: dict[str, object]) -> None:
    """Leave all figures as JSON, with the machine's state before and after."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "schema": "gpu-nodeagent/bench/1",
        "before": begun,
        "after": machine(),
        "figures": [{**asdict(figure), "verdict": figure.verdict} for figure in figures],
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
