"""What schedulers are told: complete, ready to paste, the site's own names in it."""

from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.config.model import Config, Scheduler, Sge
from nodeagent.discover.advice import Site
from nodeagent.discover.registry import ADVISERS
from tests.support import LaidOutNode


def texts(site: Site) -> dict[str, str]:
    return {piece.name: piece.text for piece in ADVISERS["sge"](site)}


SITE = Site(Config(scheduler=Scheduler(kind="sge")), "n1")


@pytest.mark.parametrize(("placement", "formula"), [("bundle", "gpu"), ("spread", "1000-gpu")])
def test_grid_engine_takes_hosts_in_ascending_order_of_the_formula(placement: str, formula: str) -> None:
    lines = texts(replace(SITE, placement=placement))["scheduler"].splitlines()
    assert lines == ["queue_sort_method load", f"load_formula {formula}", "job_load_adjustments NONE"]


def test_hooks_are_where_they_were_installed_and_told_of_another_configuration() -> None:
    assert "prolog root@/usr/libexec/gpu-nodeagent/prolog/sge\n" in texts(SITE)["queue"]
    other = replace(SITE, hooks="/opt/hooks", config_path="/etc/other.yaml")
    assert texts(other)["queue"].splitlines()[1] == "epilog root@/opt/hooks/epilog/sge --config /etc/other.yaml"
    assert texts(other)["shepherd"] == "shepherd_cmd /opt/hooks/prolog/sge-shepherd"


def test_the_sites_own_name_of_the_complex_and_its_number_of_gpus(tmp_path: Path) -> None:
    config = Config(scheduler=Scheduler(kind="sge", sge=Sge(complex="graphics")))
    found = texts(replace(SITE, config=config))
    assert texts(replace(SITE, units=LaidOutNode(tmp_path, "sge").units()))["host"].endswith(" gpu=4 n1")
    assert found["complexes"].splitlines()[0] == "graphics graphics INT <= YES YES 0 0"
    assert found["host"] == "qconf -mattr exechost complex_values graphics=NUMBER n1"
    assert "load_formula graphics\n" in found["scheduler"]


def test_each_piece_says_where_it_goes_and_why() -> None:
    for adviser in ADVISERS.values():
        pieces = adviser(SITE)
        assert all(piece.where and piece.why and piece.text for piece in pieces)
        assert len({piece.name for piece in pieces}) == len(pieces)
