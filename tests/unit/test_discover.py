"""What schedulers are told: complete, ready to paste, the site's own names in it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.cli.main import main
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
    assert found["host"] == "qconf -mattr exechost complex_values graphics=0 n1"
    assert "load_formula graphics\n" in found["scheduler"]


def test_the_command_prints_pieces_to_paste_and_one_object_for_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = LaidOutNode(tmp_path, "sge")
    words = ["discover", "--config", str(node.config), "--placement", "spread"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "# qconf -msconf: spread: " in text and "\nload_formula 1000-gpu\n" in text
    assert f"prolog/sge --config {node.config}\n" in text
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["scheduler"]) == ("gpu-nodeagent/discover/1", "sge")
    assert all(piece["text"] in text for piece in document["pieces"])


def test_without_a_scheduler_there_is_nothing_to_be_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["discover", "--config", str(LaidOutNode(tmp_path, "local").config)]) == 64
    assert "scheduler.kind" in capsys.readouterr().err


def test_each_piece_says_where_it_goes_and_why() -> None:
    for adviser in ADVISERS.values():
        pieces = adviser(SITE)
        assert all(piece.where and piece.why and piece.text for piece in pieces)
        assert len({piece.name for piece in pieces}) == len(pieces)
