"""Why a scheduler's command failed, on what Slurm 22.05 and Son of Grid Engine 8.1.9 really said."""

from __future__ import annotations

import pytest

from nodeagent.errors import CommandFailed, LockBusy
from nodeagent.scheduler.trouble import diagnose

MUNGE_GONE = """\
sinfo: error: If munged is up, restart with --num-threads=10
sinfo: error: Munge encode failed: Failed to access "/run/m/socket": No such file or directory (Did you start munged?)
sinfo: error: slurm_send_node_msg: auth_g_create: REQUEST_PARTITION_INFO has authentication error
slurm_load_partitions: Protocol authentication error
"""


@pytest.mark.parametrize(
    ("status", "said", "kind", "remedy"),
    [
        (127, "No such file or directory", "missing", "bin_dir"),
        (None, "", "silent", "command_timeout"),
        (None, "sinfo: error: ClusterName needs to be specified\n", "configuration", "scheduler.slurm.conf"),
        (1, MUNGE_GONE, "authentication", "munged"),
        (1, "slurm_update error: Invalid user id", "permission", "SlurmUser"),
        (1, "slurm_update error: Invalid node name specified", "unknown-node", "node_name"),
        (1, "Node n9 not found", "unknown-node", "node_name"),
        (0, "no node 'n9' is known; set node_name", "unknown-node", "node_name"),
        (1, "slurm_load_node error: Socket timed out on send/recv operation", "silent", "hangs"),
        (1, "slurm_load_partitions: Unable to contact slurm controller (connect failure)", "unreachable", "slurmctld"),
        (
            1,
            "scontrol: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host\n"
            "scontrol: error: fetch_config: DNS SRV lookup failed\n"
            "scontrol: fatal: Could not establish a configuration source\n",
            "configuration",
            "scheduler.slurm.conf",
        ),
        (
            1,
            "sinfo: error: s_p_parse_file: cannot stat file /nowhere: No such file or directory, retrying in 1sec\n"
            "sinfo: fatal: Unable to process configuration file\n",
            "configuration",
            "scheduler.slurm.conf",
        ),
        (
            1,
            "error: commlib error: got select error (Connection refused)\n"
            'error: unable to send message to qmaster using port 53543 on host "vm": got send error\n',
            "unreachable",
            "sge_qmaster",
        ),
        (1, 'nobody - you have no permission to modify queue "all.q@vm"', "permission", "manager"),
        (1, 'error: SGE_ROOT directory "/nowhere" doesn\'t exist', "configuration", "scheduler.sge.root"),
        (1, "the moon is full", "other", "said"),
    ],
)
def test_each_trouble_has_its_name_and_what_to_do(status: int | None, said: str, kind: str, remedy: str) -> None:
    trouble = diagnose(CommandFailed(["/usr/bin/x"], status, said))
    assert trouble.kind == kind and remedy in trouble.remedy


def test_what_is_no_command_has_no_name() -> None:
    assert diagnose(LockBusy("/run/x", 2.0)).kind == "other"
