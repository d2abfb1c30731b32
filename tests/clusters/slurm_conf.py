"""The configuration files of a test's Slurm, as text."""

from __future__ import annotations

import contextlib
import pwd
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Union

Hook = Union[str, Path, None]

HOOKS = {
    "prolog": "Prolog",
    "epilog": "Epilog",
    "task_prolog": "TaskProlog",
    "task_epilog": "TaskEpilog",
    "prolog_slurmctld": "PrologSlurmctld",
    "epilog_slurmctld": "EpilogSlurmctld",
    "health_check_program": "HealthCheckProgram",
}
"""The hooks that a cluster takes, and their names in slurm.conf."""

SLURM_CONF = """\
ClusterName={cluster}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={directory}/munge/socket
SlurmUser={user}
SlurmdUser=root
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/state/slurmctld.pid
SlurmdPidFile={directory}/spool-%n/slurmd.pid
SlurmctldLogFile={directory}/log/slurmctld.log
SlurmdLogFile={directory}/log/slurmd-%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=2
SlurmdTimeout=30
MinJobAge=86400
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
PropagateResourceLimits=NONE
SlurmdParameters=config_overrides
"""

WITHOUT_CGROUPS = "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n"
WITH_CGROUPS = "ProctrackType=proctrack/cgroup\nTaskPlugin=task/cgroup\n"
CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
ConstrainDevices=yes
ConstrainCores=no
ConstrainRAMSpace=no
"""


def slurm_user() -> str:
    """Who runs the controller: the package's user, or root where no package made one."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("slurm").pw_name
    return "root"


def checked_hooks(hooks: Mapping[str, Hook]) -> dict[str, Hook]:
    """`hooks`, or TypeError for one that `HOOKS` does not have."""
    unknown = set(hooks) - set(HOOKS)
    if unknown:
        raise TypeError(f"no such hook: {', '.join(sorted(unknown))}")
    return dict(hooks)


@dataclass
class SlurmConf:
    """What the configuration files of one cluster say.

    `ports` are the controller's and then one a node. `gres` is what each node offers, or what each of them does by its
    name. `node_words` are added to the lines of nodes, by their names, and `partition_words` to the partition's.
    """

    directory: Path
    nodes: Sequence[str]
    gpus: int
    cluster: str
    cpus: int
    gres: str | Mapping[str, str]
    gres_text: str | None
    cgroups: bool
    extra: str
    hooks: dict[str, Hook] = field(default_factory=dict)
    ports: list[int] = field(default_factory=list)
    node_words: Mapping[str, str] = field(default_factory=dict)
    partition_words: str = ""

    def write(self) -> None:
        """Write slurm.conf, gres.conf and cgroup.conf, each replaced at once."""
        for name, text in {"slurm": self.slurm(), "gres": self.gres_lines(), "cgroup": CGROUP_CONF}.items():
            fresh = self.directory / f"{name}.new"
            fresh.write_text(text)
            fresh.chmod(0o644)
            fresh.rename(self.directory / f"{name}.conf")

    def slurm(self) -> str:
        """The text of slurm.conf."""
        host = socket.gethostname()
        text = SLURM_CONF.format(
            cluster=self.cluster, host=host, port=self.ports[0], directory=self.directory, user=slurm_user()
        )
        text += WITH_CGROUPS if self.cgroups else WITHOUT_CGROUPS
        text += "".join(f"{HOOKS[name]}={path}\n" for name, path in self.hooks.items() if path is not None)
        offers = {node: self.gres if isinstance(self.gres, str) else self.gres[node] for node in self.nodes}
        kinds = {one.partition(":")[0] for offer in offers.values() for one in offer.split(",") if one}
        text += f"GresTypes={','.join(sorted(kinds))}\n" if kinds else ""
        text += f"NodeName=DEFAULT CPUs={self.cpus} RealMemory=1000 State=UNKNOWN\n"
        for node, port in zip(self.nodes, self.ports[1:]):
            gres = f" Gres={offers[node]}" if offers[node] else ""
            words = self.node_words.get(node, "")
            text += f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port}{gres} {words}\n"
        text += f"PartitionName=main Nodes={','.join(self.nodes)} Default=YES MaxTime=INFINITE State=UP"
        text += f" {self.partition_words}\n"
        return text + self.extra

    def gres_lines(self) -> str:
        """The text of gres.conf: each node's own device files."""
        if self.gres_text is not None:
            return self.gres_text
        files = f"nvidia[0-{self.gpus - 1}]"
        nodes = self.nodes if self.gpus else ()
        return "".join(f"NodeName={node} Name=gpu File={self.directory}/dev-{node}/{files}\n" for node in nodes)
