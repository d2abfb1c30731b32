"""The configuration: frozen dataclasses with every default; `load.py` fills them from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nodeagent.config import values
from nodeagent.config.declare import section, setting
from nodeagent.config.policy_rules import DEEDS, IDLE, NOW, Rule, SiteCommand, rules, site_commands
from nodeagent.config.programs import command
from nodeagent.config.site_checks import SiteCheck, site_checks
from nodeagent.config.thresholds import (
    Expect,
    Infiniband,
    MemoryErrors,
    Nvlink,
    Pcie,
    Rogue,
    Stuck,
    Sustained,
    Temperature,
)
from nodeagent.state.hook_conf import DEFAULT_STATE_DIR


@dataclass(frozen=True)
class Roots:
    """Where the kernel's trees are; other places only for tests and containers."""

    proc: str = setting("/proc", values.absolute_path, hook=True)
    sys: str = setting("/sys", values.absolute_path, hook=True)
    dev: str = setting("/dev", values.absolute_path, hook=True)


@dataclass(frozen=True)
class Slurm:
    """How Slurm is reached. `conf` (empty: Slurm's own default) becomes SLURM_CONF of each command we start.

    `retire` is how one GPU is taken out of a node of Slurm's: `drain` the node, or have a `holder` keep that GPU, a
    suspended job of root's in the hidden partition `hold_partition` (docs/slurm.md).
    """

    bin_dir: str = setting("/usr/bin", values.absolute_path, hook=True)
    sbin_dir: str = setting("/usr/sbin", values.absolute_path, hook=True)
    conf: str = setting("", values.absolute_path_or_empty, hook=True)
    gres: str = setting("gpu", values.name, hook=True)
    constrains_devices: str = setting("auto", values.one_of("auto", "yes", "no"))
    retire: str = setting("drain", values.one_of("drain", "holder"))
    hold_partition: str = setting("gpuhold", values.name, hook=True)


@dataclass(frozen=True)
class Sge:
    """How Grid Engine is reached and what the GPU complex is called there.

    `model_complex` is the complex by which jobs ask for a GPU model (empty: they do not).
    `admin_user` owns the exec daemon's spool directories; `auto` reads it from the cell's bootstrap file.
    `retire` is how jobs are kept off a GPU that is out of service while the host stays in: `sensor`, the load sensor
    reports fewer; `complex_values`, the agent lowers the host's own number (which takes a manager's rights, and a
    `data_dir` that outlives a reboot); `drain`, neither, the host is drained.
    """

    root: str = setting("/var/lib/gridengine", values.absolute_path, hook=True)
    cell: str = setting("default", values.name, hook=True)
    bin_dir: str = setting("/usr/lib/gridengine", values.absolute_path, hook=True)
    arch: str = setting("lx-amd64", values.name, hook=True)
    qmaster_port: int = setting(0, values.port, hook=True)
    execd_port: int = setting(0, values.port, hook=True)
    complex: str = setting("gpu", values.name, hook=True)
    model_complex: str = setting("", values.name_or_empty, hook=True)
    admin_user: str = setting("auto", values.name)
    retire: str = setting("sensor", values.one_of("sensor", "complex_values", "drain"))


@dataclass(frozen=True)
class Scheduler:
    """Which scheduler runs jobs on this node."""

    kind: str = setting("local", values.one_of("slurm", "sge", "local"), hook=True)
    command_timeout: float = setting(5.0, values.positive_duration)
    slurm: Slurm = section(Slurm)
    sge: Sge = section(Sge)


@dataclass(frozen=True)
class Hooks:
    """What hooks do when things are not normal (DESIGN: outcomes of hooks)."""

    on_internal_error: str = setting("allow", values.one_of("allow", "refuse"), hook=True)
    wait_for_units: float = setting(30.0, values.duration, hook=True)
    verdict_max_age: float = setting(60.0, values.positive_duration, hook=True)
    max_reruns: int = setting(3, values.count, hook=True)
    cuda_visible_devices: str = setting("auto", values.one_of("auto", "uuid", "index"), hook=True)


@dataclass(frozen=True)
class Mps:
    """What a job on a share is told of the site's MPS server; nothing unless `enabled`.

    `threads` and `memory`: `share` tells it to keep to its part of the GPU, `all` does not. A job can undo both.
    """

    enabled: bool = setting(False, values.boolean, hook=True)
    pipe_directory: str = setting("/tmp/nvidia-mps", values.absolute_path, hook=True)  # noqa: S108  CUDA's own default
    threads: str = setting("share", values.one_of("share", "all"), hook=True)
    memory: str = setting("share", values.one_of("share", "all"), hook=True)


@dataclass(frozen=True)
class Sharing:
    """How many jobs may share a GPU: `slots`, or by model (the first pattern that matches); 1: none do.

    A GPU in MIG mode is granted by instance, and an instance is not shared.
    """

    slots: int = setting(1, values.slots)
    models: Mapping[str, int] = setting({}, values.mapping(values.model_pattern, values.slots))
    mps: Mps = section(Mps)


@dataclass(frozen=True)
class Health:
    """When findings become a verdict and when a verdict is taken back.

    `expected_gpus` (-1: not checked) is the node's number of GPUs. `strikes` is how many cycles in a row a finding
    must stand before it counts, or in how many of a time it must have been found, by check; `default_strikes` for the
    rest. `dwell` is for how many seconds it must have stood besides. `recover` is how many clean cycles in a row bring
    a unit back, `recover_after` for how many seconds it must have been clean besides, by check. Within `settle` seconds
    of the boot nothing counts but events: drivers and links are still coming up. `xid_actions` overrides the table, XID
    -> recovery action, `sxid_reach` that of NVSwitches, SXid -> none, link or fabric. `services` are systemd's units
    that ought to run where they are enabled, `state_space` the bytes that are to be left in the state directory.
    """

    expected_gpus: int = setting(-1, values.count)
    default_strikes: int = setting(1, values.positive_count)
    strikes: Mapping[str, int | values.Within] = setting(
        {
            **{"kernel-module": 3, "driver-init": 3, "driver-unresponsive": 2, "probe-crashed": 2},
            **{"rogue-process": 2, "services": 2},
        },
        values.mapping(values.name, values.strikes),
    )
    dwell: Mapping[str, float] = setting({}, values.mapping(values.name, values.duration))
    recover: int = setting(3, values.positive_count)
    recover_after: Mapping[str, float] = setting({}, values.mapping(values.name, values.duration))
    settle: float = setting(60.0, values.duration)
    uncorrected_ecc_per_hour: float = setting(0.0, values.number)
    xid_actions: Mapping[int, str] = setting({}, values.mapping(values.xid, values.recovery_action))
    sxid_reach: Mapping[int, str] = setting({}, values.mapping(values.xid, values.one_of("none", "link", "fabric")))
    sustained: Sustained = section(Sustained)
    memory_errors: MemoryErrors = section(MemoryErrors)
    temperature: Temperature = section(Temperature)
    pcie: Pcie = section(Pcie)
    nvlink: Nvlink = section(Nvlink)
    stuck: Stuck = section(Stuck)
    expect: Expect = section(Expect)
    infiniband: Infiniband = section(Infiniband)
    rogue: Rogue = section(Rogue)
    services: tuple[str, ...] = setting(("nvidia-fabricmanager", "nvidia-persistenced"), values.names)
    state_space: int = setting(16 << 20, values.size)


@dataclass(frozen=True)
class Policy:
    """What is done about a finding: by the first rule that it fits, else by the recovery action that it asks for.

    `retire` becomes a drain where the scheduler cannot spare one GPU and keep the node. A GPU of which nothing is known
    for longer than `unknown_after` is treated as one that asks for reset_gpu: a dying one often has no better answer.
    `drain_when` is when a drain is made: now, while jobs run that are left to end, or only when no job holds a GPU.
    With `dry_run` every decision is logged and counted, and nothing is done. `rules` and the `commands` that they may
    run are described in policy_rules.py.

    With `reset` on, a GPU that was retired because it asks for reset_gpu is reset by `reset_command` (`{uuid}` is the
    GPU's) when nobody has it and the agent has let go of the driver: at most `reset_tries` times a retirement and boot,
    each ended after `reset_timeout`. `reboot` is for a node that the agent drained because reboot_node is asked for,
    when no job holds a unit of it: by the `scheduler`, or by the command of `commands` that `reboot_command` names, at
    most `reboot_tries` times a day.
    """

    restart_application: str = setting("tell", values.one_of(*DEEDS))
    reset_gpu: str = setting("retire", values.one_of(*DEEDS))
    reboot_node: str = setting("retire", values.one_of(*DEEDS))
    inspect_hardware: str = setting("retire", values.one_of(*DEEDS))
    unknown_after: float = setting(600.0, values.positive_duration)
    drain_when: str = setting(NOW, values.one_of(NOW, IDLE))
    dry_run: bool = setting(False, values.boolean, hook=True)
    rules: tuple[Rule, ...] = setting((), rules)
    commands: Mapping[str, SiteCommand] = setting({}, site_commands)
    reset: str = setting("off", values.one_of("off", "on"))
    reset_command: tuple[str, ...] = setting(("/usr/bin/nvidia-smi", "--gpu-reset", "-i", "{uuid}"), command)
    reset_timeout: float = setting(120.0, values.positive_duration)
    reset_tries: int = setting(2, values.positive_count)
    reboot: str = setting("off", values.one_of("off", "scheduler", "command"))
    reboot_command: str = setting("", values.name_or_empty)
    reboot_tries: int = setting(2, values.positive_count)


@dataclass(frozen=True)
class Cleanup:
    """What happens to a GPU between two jobs.

    Without `enabled` an epilog frees its job's GPUs and does no more; without `kill` it ends no process. The agent
    frees a GPU when nothing of the job is left on it and at most `leftover_memory` (bytes) is in use by nobody;
    what is not so after `patience` is retired. The others are the site's wish for a GPU that nobody uses, `keep`: not
    touched. 512 MiB lies above what a driver holds for itself on an idle GPU (it is not in NVML's `used` since 510,
    some hundred MB on a large GPU before) and below a CUDA context with anything in it.
    """

    enabled: bool = setting(True, values.boolean, hook=True)
    kill: bool = setting(True, values.boolean, hook=True)
    leftover_memory: int = setting(512 << 20, values.size)
    patience: float = setting(10.0, values.positive_duration)
    compute_mode: str = setting("keep", values.one_of("keep", "default", "exclusive_process", "prohibited"))
    persistence: str = setting("keep", values.one_of("keep", "on", "off"))
    power_limit: str = setting("keep", values.power_limit)
    application_clocks: str = setting("keep", values.application_clocks)


@dataclass(frozen=True)
class Limits:
    """How much of the cluster this product may take out: nodes (`4`) or a share of them (`10%`), at least one.

    `per` says of what: of each partition that has the node (Slurm), of each host group that has the host (Grid Engine),
    or of all nodes; what the scheduler does not have is all nodes too. A drained node counts until it is resumed, and
    for `window` seconds from its drain at least. An administrator's `drain` is counted and never refused.
    """

    max_drained: str = setting("10%", values.count_or_percent)
    per: str = setting("partition", values.one_of("partition", "hostgroup", "cluster"))
    window: float = setting(0.0, values.duration)


@dataclass(frozen=True)
class History:
    """How much of what happened is kept in `data_dir/history.db`, by age (seconds) and size (bytes)."""

    max_age: float = setting(90 * 86400.0, values.positive_duration)
    max_size: int = setting(64 << 20, values.history_size)


@dataclass(frozen=True)
class Drivers:
    """One site driver set: a path with `{version}`, bound at `bin` and `lib` in containers. Empty path: none."""

    path: str = setting("", values.driver_path)
    bin: str = setting("/nvbin", values.bindable_path)
    lib: str = setting("/nvlib", values.bindable_path)
    timeout: float = setting(2.0, values.positive_duration)


@dataclass(frozen=True)
class Log:
    """The agent's log."""

    level: str = setting("info", values.one_of("debug", "info", "warning", "error"))


@dataclass(frozen=True)
class Config:
    """Everything that an administrator can set.

    `placement` decides between sets that are equally good for a job: `pack` leaves well-linked units together, `spread`
    takes units where most is free (lock/placement.py). `isolation` is how jobs are kept off GPUs that are not theirs,
    where the scheduler does not do it: Grid Engine and `exec` (docs/isolation.md).
    """

    state_dir: str = setting(DEFAULT_STATE_DIR, values.absolute_path, hook=True)
    data_dir: str = setting("/var/lib/gpu-nodeagent", values.absolute_path)
    node_name: str = setting("", values.name, hook=True)
    listen: str = setting(":9836", values.listen_address)
    interval: float = setting(10.0, values.positive_duration)
    probe_timeout: float = setting(5.0, values.positive_duration)
    placement: str = setting("pack", values.one_of("pack", "spread"), hook=True)
    sharing: Sharing = section(Sharing)
    isolation: str = setting("auto", values.one_of("auto", "none", "cgroup-v1", "cgroup-v2", "device-files"), hook=True)
    roots: Roots = section(Roots)
    scheduler: Scheduler = section(Scheduler)
    hooks: Hooks = section(Hooks)
    health: Health = section(Health)
    checks: Mapping[str, SiteCheck] = setting({}, site_checks)
    policy: Policy = section(Policy)
    cleanup: Cleanup = section(Cleanup)
    limits: Limits = section(Limits)
    history: History = section(History)
    drivers: Drivers = section(Drivers)
    log: Log = section(Log)


@dataclass(frozen=True)
class Loaded:
    """A configuration with the files it came from, in the order in which they were read: (path, mtime_ns, bytes)."""

    config: Config
    path: Path
    sources: tuple[tuple[Path, int, bytes], ...]
