"""What `discover slurm` prints, from what the agent saw; integration/test_slurm_placement.py tells it to a Slurm."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from nodeagent.config.model import Config, Roots, Scheduler, Slurm
from nodeagent.discover.advice import BUNDLE, SPREAD, Site
from nodeagent.discover.cores import cores_of_numa_nodes, ranges
from nodeagent.discover.slurm import advise, gres_type
from nodeagent.state.verdict_file import OK, UnitLine

H100, V100 = "NVIDIA H100 80GB HBM3", "Tesla V100-SXM2-16GB"


def gpu(minor: int, model: str = H100, links: Sequence[int] = (), numa: int = 0, instance: str = "") -> UnitLine:
    uuid = f"GPU-{minor}"
    return UnitLine(instance or uuid, minor, minor, "0000:00:00.0", model, numa, tuple(links), OK, "", uuid)


def pieces(
    units: Sequence[UnitLine] = (),
    node: str = "n07",
    placement: str = BUNDLE,
    path: str = "",
    gres: str = "gpu",
    sys: str = "/nowhere",
) -> dict[str, str]:
    config = Config(scheduler=Scheduler(slurm=Slurm(gres=gres)), roots=Roots(sys=sys))
    return {piece.name: piece.text for piece in advise(Site(config, node, units, path, placement=placement))}


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (H100, "h100"),
        (V100, "v100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx_6000"),
        ("NVIDIA GeForce RTX 4090", "rtx_4090"),
        ("NVIDIA Graphics Device", ""),
        ("", ""),
    ],
)
def test_a_model_has_a_short_name_that_is_part_of_the_one_that_slurm_would_find(model: str, kind: str) -> None:
    assert gres_type(model) == kind
    assert kind in model.lower().replace(" ", "_")


def test_each_gpu_has_a_line_in_the_order_of_its_device_files() -> None:
    text = pieces([gpu(1), gpu(0, V100), gpu(2, "", instance="MIG-x"), gpu(3, "")])["gres"]
    assert text.splitlines() == [
        "NodeName=n07 Name=gpu Type=v100 File=/dev/nvidia0",
        "NodeName=n07 Name=gpu Type=h100 File=/dev/nvidia1",
        "NodeName=n07 Name=gpu File=/dev/nvidia3",
    ]


def test_links_are_told_where_there_are_nvlinks_and_each_line_leaves_itself_out() -> None:
    links = [(0, 4002, 5), (4002, 0, 8005), (5, 8005, 0)]
    text = pieces([gpu(at, links=row) for at, row in enumerate(links)])["gres"]
    assert [line.partition("Links=")[2] for line in text.splitlines()] == ["-1,4,0", "4,-1,8", "0,8,-1"]
    assert "Links" not in pieces([gpu(0, links=(0, 5)), gpu(1, links=(5, 0))])["gres"], "PCIe is told by Cores"


def test_without_gpus_it_says_so_and_nothing_else_changes() -> None:
    found = pieces()
    assert found["gres"].startswith("# none") and found["node"] == "NodeName=n07 Weight=1007"


def test_the_node_offers_what_there_is_by_type() -> None:
    assert pieces([gpu(0), gpu(1), gpu(2, V100)])["node"] == "NodeName=n07 Gres=gpu:h100:2,gpu:v100:1 Weight=1007"
    assert pieces([gpu(0, "")], gres="accel")["node"] == "NodeName=n07 Gres=accel:1 Weight=1007"


def test_bundling_is_a_weight_of_its_own_and_spreading_one_weight_and_the_least_load() -> None:
    assert [pieces(node=node)["node"].split()[-1] for node in ("n1", "n12", "login")] == [
        "Weight=1001",
        "Weight=1012",
        "Weight=1000",
    ]
    assert {pieces(node=node, placement=SPREAD)["node"].split()[-1] for node in ("n1", "n12")} == {"Weight=1000"}
    assert pieces()["partition"] == "LLN=NO" and pieces(placement=SPREAD)["partition"] == "LLN=YES"


def test_the_partition_of_holders_is_printed_and_what_it_is_for() -> None:
    assert pieces()["hold"] == (
        "PartitionName=gpuhold Nodes=n07 Hidden=YES RootOnly=YES OverSubscribe=NO PriorityTier=65533"
        " MaxTime=INFINITE State=UP"
    )
    [why] = [piece.why for piece in advise(Site(Config(), "n07")) if piece.name == "hold"]
    assert "retire: holder" in why and "Name all nodes with GPUs" in why


def test_the_hooks_are_the_installed_ones() -> None:
    lines = pieces()["global"].splitlines()
    assert "Prolog=/usr/libexec/gpu-nodeagent/prolog/slurm" in lines
    assert "TaskProlog=/usr/libexec/gpu-nodeagent/prolog/slurm-task" in lines
    assert "Epilog=/usr/libexec/gpu-nodeagent/epilog/slurm" in lines
    assert "PrologFlags=Alloc" in lines and "wrappers" not in pieces()


def test_another_configuration_is_carried_by_scripts_for_slurm_takes_no_arguments() -> None:
    found = pieces(path="/srv/it's/gna.yaml")
    assert all("--config" not in line for line in found["global"].splitlines())
    for line in found["wrappers"].splitlines():
        words = shlex.split(line)
        assert words[:3] == ["printf", "%s\\n", "#!/bin/sh"]
        exec_, hook, option, path = shlex.split(words[3])
        assert (exec_, option, path) == ("exec", "--config", "/srv/it's/gna.yaml")
        assert hook.startswith("/usr/libexec/gpu-nodeagent/")
        assert f"={words[5]}" in found["global"]


def topology(sys: Path, cpus: Sequence[tuple[int, int]], nodes: Sequence[str]) -> None:
    """Lay out CPUs as (package, core), and the lists of CPUs of NUMA nodes."""
    for at, (package, core) in enumerate(cpus):
        place = sys / f"devices/system/cpu/cpu{at}/topology"
        place.mkdir(parents=True)
        (place / "physical_package_id").write_text(f"{package}\n")
        (place / "core_id").write_text(f"{core}\n")
    for at, cpulist in enumerate(nodes):
        place = sys / f"devices/system/node/node{at}"
        place.mkdir(parents=True)
        (place / "cpulist").write_text(f"{cpulist}\n")


def test_cores_are_counted_through_all_sockets_and_threads_are_not_cores(tmp_path: Path) -> None:
    """Two sockets of two cores with two threads each; the kernel numbers second threads last, and leaves ids out."""
    cores = [(0, 0), (0, 8), (1, 0), (1, 8)]
    topology(tmp_path, [*cores, *cores], ["0-1,4-5", "2-3,6-7"])
    assert cores_of_numa_nodes(str(tmp_path)) == {0: [0, 1], 1: [2, 3]}
    text = pieces([gpu(0, numa=1), gpu(1, numa=0), gpu(2, numa=-1)], sys=str(tmp_path))["gres"]
    assert [line.partition("Cores=")[2] for line in text.splitlines()] == ["2-3", "0-1", ""]


def test_one_numa_node_or_none_needs_no_cores(tmp_path: Path) -> None:
    assert cores_of_numa_nodes(str(tmp_path)) == {}
    topology(tmp_path, [(0, 0), (0, 1)], ["0-1"])
    assert "Cores" not in pieces([gpu(0)], sys=str(tmp_path))["gres"]


def test_ranges() -> None:
    assert ranges([]) == "" and ranges([3]) == "3" and ranges([0, 1, 2, 8, 10, 11]) == "0-2,8,10-11"
