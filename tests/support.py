"""A node laid out in a directory: state, compiled configuration and verdict, as an agent would have left them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from nodeagent.config.compile import hook_settings
from nodeagent.config.load import load
from nodeagent.lock.record import Owner
from nodeagent.lock.store import Store
from nodeagent.state.boot import boot_id
from nodeagent.state.files import Directory
from nodeagent.state.hook_conf import HOOK_CONF, Gres, HookConf
from nodeagent.state.verdict_file import OK, VERDICT, UnitLine, VerdictFile


def uuid(index: int) -> str:
    """Return the UUID of the laid-out node's GPU of that index."""
    return f"GPU-0000000{index:x}-0000-4000-8000-000000000000"


class LaidOutNode:
    """A configuration file with a state directory beside it. `config` is the path that hooks are given."""

    def __init__(self, directory: Path, kind: str, gpus: int = 4, settings: str = "") -> None:
        directory.chmod(0o755)
        self.config = directory / "config.yaml"
        self.state_dir = directory / "state"
        self.gpus = gpus
        self.config.write_text(
            f"state_dir: {self.state_dir}\ndata_dir: {directory}/data\nnode_name: n1\nscheduler: {{kind: {kind}}}\n"
            + ("" if "isolation:" in settings else "isolation: none\n")
            + settings
        )
        self.state = Directory(str(self.state_dir), create=True)
        self.store = Store(self.state)
        self.compile()
        self.write_verdict()

    def compile(self, gres: Mapping[int, int | Gres] | None = None, **extra: str) -> None:
        """Write hook.conf without asking any scheduler; a GRES index may be given as its device's minor."""
        loaded = load(self.config)
        settings = hook_settings(loaded.config)
        settings["scheduler.slurm.constrains_devices"] = "no"
        settings["scheduler.sge.admin_uids"] = "0"
        settings.update(extra)
        means: Mapping[int, int | Gres] = {index: index for index in range(self.gpus)} if gres is None else gres
        conf = HookConf(settings, (), {at: Gres(one) if isinstance(one, int) else one for at, one in means.items()})
        self.state.replace(HOOK_CONF, conf.encode())

    def units(self, states: Mapping[int, str] | None = None) -> tuple[UnitLine, ...]:
        """Return the units, all OK but for `states`."""
        return tuple(
            UnitLine(uuid(i), i, i, f"0000:{i:02x}:00.0", "H100", 0, (1,) * self.gpus, (states or {}).get(i, OK), "")
            for i in range(self.gpus)
        )

    def write_verdict(self, states: Mapping[int, str] | None = None, age: float = 0.0, **fields: object) -> None:
        """Leave a verdict `age` seconds old."""
        file = VerdictFile(boot_id("/proc"), time.monotonic() - age, self.units(states), interval=10.0)
        for name, value in fields.items():
            setattr(file, name, value)
        self.state.replace(VERDICT, file.encode())

    def hold(self, indices: Sequence[int], scheduler: str = "slurm", job: str = "7", task: str = "") -> Owner:
        """Lock units for a job, as another hook would have."""
        owner = Owner(
            scheduler,
            job=job,
            task=task,
            node="n1",
            grant=f"grant{job}",
            boot_id=boot_id("/proc"),
            units=tuple(uuid(i) for i in indices),
        )
        with self.store.exclusive():
            self.store.claim(owner)
        return owner

    def held(self) -> dict[int, str]:
        """Return index → job for each held unit."""
        names = {uuid(i): i for i in range(self.gpus)}
        return {names[unit]: owner.job for unit, owner in self.store.owners().items()}
