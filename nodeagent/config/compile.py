"""`Config` → `hook.conf`: what hooks need, as lines that a bare interpreter reads in microseconds."""

from __future__ import annotations

import hashlib
import os
import pwd

from nodeagent.config.load import flatten
from nodeagent.config.model import Config, Loaded
from nodeagent.errors import CommandFailed
from nodeagent.scheduler.registry import node_name
from nodeagent.scheduler.slurm import SlurmScheduler, constrains_devices, gives_gpus_to_one_job, spool_directory
from nodeagent.state.hook_conf import TYPED_GRES, Gres, HookConf, Source


def compile_hook_conf(loaded: Loaded, may_open_driver: bool = True) -> tuple[HookConf, list[str]]:
    """Return hook.conf for a configuration and what could not be learned from the scheduler (one line each).

    Asks Slurm for what the configuration leaves to it, within the command time-out. Without an answer there is no GRES
    map: hooks then lock nothing for Slurm's jobs, and say so. `slurmd -G`, which tells it, opens NVML where gres.conf
    has AutoDetect: it is run only if it `may_open_driver`.
    """
    config = loaded.config
    settings = hook_settings(config)
    problems: list[str] = []
    gres: dict[int, Gres] = {}
    if config.scheduler.kind == "slurm":
        gres = _slurm(config, settings, problems, may_open_driver)
    if config.scheduler.kind == "sge":
        sge = config.scheduler.sge
        uids = _admin_uids(sge.admin_user, sge.root, sge.cell)
        settings["scheduler.sge.admin_uids"] = " ".join(map(str, uids))
    sources = [
        Source(os.fspath(path), mtime_ns, len(data), hashlib.sha256(data).hexdigest())
        for path, mtime_ns, data in loaded.sources
    ]
    try:  # a file that is put there later changes the directory's time
        directory = loaded.path.parent / "conf.d"
        status = directory.stat()
        sources.append(Source(os.fspath(directory), status.st_mtime_ns, status.st_size, ""))
    except FileNotFoundError:
        pass
    return HookConf(settings, tuple(sources), gres), problems


def hook_settings(config: Config) -> dict[str, str]:
    """Return the settings that hooks read, without asking anybody."""
    settings = {key: _text(value) for key, value in flatten(config, hook_only=True)}
    settings["node_name"] = node_name(config)
    return settings


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _slurm(config: Config, settings: dict[str, str], problems: list[str], ask_slurmd: bool) -> dict[int, Gres]:
    scheduler = SlurmScheduler(config, settings["node_name"])
    constrains = config.scheduler.slurm.constrains_devices
    settings["scheduler.slurm.spool"] = ""
    try:
        said = scheduler.settings()
        if constrains == "auto":
            constrains = "yes" if constrains_devices(said) else "no"
        if gives_gpus_to_one_job(said):
            settings["scheduler.slurm.spool"] = spool_directory(said, settings["node_name"])
    except CommandFailed as error:
        problems.append(str(error))
    gres: dict[int, Gres] = {}
    try:
        if ask_slurmd:
            gres = scheduler.gres()
        settings[TYPED_GRES] = "yes" if scheduler.typed_gres() else "no"
        if not ask_slurmd:
            problems.append("slurmd -G is not asked while the driver is released")
        elif not gres:
            problems.append(f"slurmd -G names no {config.scheduler.slurm.gres} device files for this node")
    except CommandFailed as error:
        problems.append(str(error))
        gres = {}
    settings["scheduler.slurm.constrains_devices"] = constrains
    return gres


def bootstrap_admin_user(root: str, cell: str) -> str:
    """Return the user that Grid Engine's daemons work as, by the cell's bootstrap file; empty where it says none."""
    try:
        with open(f"{root}/{cell}/common/bootstrap", encoding="utf-8", errors="replace") as file:
            return next((line.split()[1] for line in file if line.split()[:1] == ["admin_user"]), "")
    except (OSError, IndexError):
        return ""


def _admin_uids(admin_user: str, root: str, cell: str) -> list[int]:
    """Return the uids that may own the exec daemon's spool: root's and the admin user's (from the cell's bootstrap)."""
    name = (bootstrap_admin_user(root, cell) or "root") if admin_user == "auto" else admin_user
    try:
        return sorted({0, pwd.getpwnam(name).pw_uid})
    except KeyError:
        return [0]
