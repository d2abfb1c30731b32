"""Real Grid Engine on a mixed host: two GPUs for one job each, two that jobs share, asked for by model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.clusters.process import open_directory
from tests.integration.support import require
from tests.integration.test_gridengine import Lab
from tests.simulated_node import until

MODELS = ("H100-80GB", "H100-80GB", "A100-80GB", "A100-80GB")
COMPLEXES = (
    "gpu gpu INT <= YES YES 0 0",
    "gpu_faulty gpu_faulty INT >= YES NO 0 0",
    "gpu_reason gpu_reason STRING == YES NO NONE 0",
    "gpu_model gpu_model RESTRING == YES NO NONE 0",
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The host, which offers two whole GPUs and two for two jobs each."""
    require("gridengine")
    with open_directory("gna-sge-units-") as directory, ExitStack() as stack:
        lab = Lab(
            directory,
            stack,
            offered=6,
            complexes=COMPLEXES,
            sge=", model_complex: gpu_model",
            settings="sharing: {models: {A100: 2}}\n",
            model=MODELS,
        )
        yield lab
        lab.tidy()


def held(lab: Lab) -> dict[str, set[str]]:
    """Return job -> units."""
    units: dict[str, set[str]] = {}
    for lock in json.loads(lab.node.ask("locks", "--json"))["locks"]:
        units.setdefault(lock["job"], set()).add(lock["unit"])
    return units


def test_jobs_get_the_model_they_ask_for_and_share_where_they_may(lab: Lab) -> None:
    uuids = [lab.node.scenario.uuid(index) for index in range(len(MODELS))]
    until(lambda: lab.value("gpu_model") == "A100-SXM4-80GB+H100-80GB-HBM3", "the sensor names the models")
    until(lambda: float(lab.value("gpu") or 0) == 6, "the sensor counts each share")  # noqa: PLR2004
    sharers = [lab.begin("-l", "gpu=1,gpu_model=*a100*|*A100*") for _ in range(3)]
    whole = lab.begin("-l", "gpu=2,gpu_model=*H100*")
    never = lab.cluster.submit("alice", ["-l", "gpu=1,gpu_model=*V100*"], "echo ran\n")
    assert held(lab) == {
        sharers[0][0]: {f"{uuids[2]}@0"},
        sharers[1][0]: {f"{uuids[2]}@1"},
        sharers[2][0]: {f"{uuids[3]}@0"},
        whole[0]: {uuids[0], uuids[1]},
    }
    assert [lab.finish(*job)["CUDA_VISIBLE_DEVICES"] for job in sharers] == ["2", "2", "3"]
    assert lab.finish(*whole)["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert lab.cluster.state(never) == "qw"
    lab.cluster.qdel(never)


def test_more_of_a_model_than_there_are_is_the_jobs_mistake(lab: Lab) -> None:
    job = lab.cluster.submit("bob", ["-l", "gpu=3,gpu_model=*H100*"], "echo ran\n")
    until(lambda: lab.cluster.state(job) == "Eqw", "the job in error")
    assert "3 GPUs of model *H100* asked for; this node has 2" in lab.cluster.job_output(job)
    assert held(lab) == {}
    lab.cluster.qdel(job)
