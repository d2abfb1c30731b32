"""What `discover sge` prints, from what the agent saw."""

from __future__ import annotations

from nodeagent.config.model import Config
from nodeagent.discover.advice import Site
from nodeagent.discover.sge import advise
from nodeagent.state.verdict_file import OK, UnitLine


def unit(index: int, slots: int = 1) -> UnitLine:
    return UnitLine(f"GPU-{index}", index, index, "", "H100", 0, (), OK, slots=slots)


def pieces(*units: UnitLine) -> dict[str, str]:
    return {piece.name: piece.text for piece in advise(Site(Config(), "n1", units))}


def test_a_host_offers_a_gpu_as_often_as_jobs_may_share_it() -> None:
    assert "complex_values gpu=9 n1" in pieces(unit(0, 4), unit(1, 4), unit(2))["host"]
    assert "complex_values gpu=0 n1" in pieces()["host"]


def test_the_exec_daemons_unit_is_told_to_delegate() -> None:
    assert pieces()["unit"] == "[Service]\nDelegate=yes"
