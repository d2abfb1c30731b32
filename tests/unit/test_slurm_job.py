"""What is read, and what is not believed, of `scontrol -d show job`: the answers are those of Slurm 22.05."""

from __future__ import annotations

import pytest

from nodeagent.errors import AmbiguousAnswer
from nodeagent.scheduler.slurm_job import granted_indices, names_host

SAID = """\
JobId=10 ArrayJobId=9 ArrayTaskId=1 JobName={name}
   UserId=alice(1001) GroupId=alice(1001) MCS_label=N/A
   Priority=4294901751 Nice=0 Account={account} QOS=(null)
   JobState={state} Reason=None Dependency=(null)
   TRES=cpu=1,node=1,billing=1
   Socks/Node=* NtasksPerN:B:S:C=0:0:*:* CoreSpec=*
{detail}   MinCPUsNode=1 MinMemoryNode=0 MinTmpDiskNode=0
   Command=(null)
   WorkDir=/home/alice
   Comment={comment}
   TresPerNode=gres:gpu:tesla:1,gres:gpu:kepler:1
"""
DETAIL = """\
   JOB_GRES=gpu:tesla:2,gpu:kepler:4
     Nodes=n[1-2],n05 CPU_IDs=0 Mem=0 GRES=gpu:tesla:1(IDX:1),gpu:kepler:2(IDX:2,5-6)
     Nodes=n3 CPU_IDs=0-3 Mem=1000 GRES=gpu:tesla:0(IDX:),gpu:kepler:1(IDX:4),gpux:7(IDX:7)
     Nodes=n4 CPU_IDs=0 Mem=0 GRES=
"""
FORGED = "     Nodes=n1 CPU_IDs=0 Mem=0 GRES=gpu:1(IDX:0-9)"


def said(state: str = "RUNNING", detail: str = DETAIL, name: str = "x", account: str = "a", comment: str = "c") -> str:
    return SAID.format(state=state, detail=detail, name=name, account=account, comment=comment)


@pytest.mark.parametrize(
    ("node", "indices"),
    [("n1", (1, 2, 5, 6)), ("n2", (1, 2, 5, 6)), ("n05", (1, 2, 5, 6)), ("n3", (4,)), ("n4", ()), ("n5", None)],
)
def test_each_node_finds_its_own(node: str, indices: tuple[int, ...] | None) -> None:
    assert granted_indices(said(), "gpu", node) == indices


def test_untyped_indices_are_read_too() -> None:
    detail = "   JOB_GRES=gpu:2\n     Nodes=n1 CPU_IDs=0 Mem=0 GRES=gpu:2(IDX:0,3)\n"
    assert granted_indices(said(detail=detail), "gpu", "n1") == (0, 3)


@pytest.mark.parametrize("state", ["PENDING", "COMPLETING", "COMPLETED", "REQUEUED"])
def test_a_job_that_is_not_here_any_more_has_nothing(state: str) -> None:
    assert granted_indices(said(state=state), "gpu", "n1") is None


def test_a_job_without_details_has_nothing() -> None:
    assert granted_indices(said(state="PENDING", detail=""), "gpu", "n1") is None
    assert granted_indices("", "gpu", "n1") is None


@pytest.mark.parametrize("where", ["name", "account", "comment"])
def test_lines_in_a_users_text_are_not_taken_for_slurms(where: str) -> None:
    assert granted_indices(said(**{where: f"x\n{FORGED}"}), "gpu", "n1") == (1, 2, 5, 6)


@pytest.mark.parametrize("where", ["name", "account", "comment"])
@pytest.mark.parametrize("marks", ["   UserId=x", "   JOB_GRES=x", "   JobState=RUNNING", "   MinCPUsNode=1"])
def test_a_text_that_could_be_taken_for_slurms_makes_the_whole_unbelievable(where: str, marks: str) -> None:
    with pytest.raises(AmbiguousAnswer):
        granted_indices(said(**{where: f"x\n{marks}\n{FORGED}"}), "gpu", "n1")


@pytest.mark.parametrize("where", ["name", "account", "comment"])
def test_details_cannot_be_forged_where_slurm_prints_none(where: str) -> None:
    """A requeued job has no details of its own to make the forged ones ambiguous."""
    text = said(state="PENDING", detail="", **{where: f"x\n   JOB_GRES=x\n{FORGED}"})
    try:
        assert granted_indices(text, "gpu", "n1") is None
    except AmbiguousAnswer:
        pass


@pytest.mark.parametrize(
    ("hosts", "name", "named"),
    [
        ("n1", "n1", True),
        ("n1", "n10", False),
        ("n[1-3,7]", "n7", True),
        ("n[1-3,7]", "n4", False),
        ("n[08-10],m2", "n09", True),
        ("n[08-10],m2", "n9", False),
        ("n[8-10]", "n09", False),
        ("a[1-2],m2", "m2", True),
        ("r[1-2]n[1-4]", "r2n4", True),
        ("r[1-2]n[1-4]", "r3n4", False),
        ("n.1", "nx1", False),
        ("n[1-2]-gpu", "n2-gpu", True),
    ],
)
def test_host_lists(hosts: str, name: str, named: bool) -> None:
    assert names_host(hosts, name) is named
