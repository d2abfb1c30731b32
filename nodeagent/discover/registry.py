"""Which adviser serves which scheduler: one line a scheduler."""

from __future__ import annotations

from nodeagent.discover import sge, slurm
from nodeagent.discover.advice import Adviser

ADVISERS: dict[str, Adviser] = {"sge": sge.advise, "slurm": slurm.advise}
