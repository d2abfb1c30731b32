"""The thresholds of single health checks, a part each; every default says where it is from."""

from __future__ import annotations

from dataclasses import dataclass

from nodeagent.config import values
from nodeagent.config.declare import setting


@dataclass(frozen=True)
class Sustained:
    """What counts as lasting: a state that stood for `share` of `window` seconds (gpud: 0.6 of 10 minutes)."""

    window: float = setting(600.0, values.positive_duration)
    share: float = setting(0.6, values.share)


@dataclass(frozen=True)
class Temperature:
    """Degrees below the limits that NVML names for this GPU and its memory; `fallback` where it names none."""

    margin: float = setting(0.0, values.number)
    memory_margin: float = setting(0.0, values.number)
    fallback: float = setting(93.0, values.number)


@dataclass(frozen=True)
class Pcie:
    """The link to the host: lanes and generation that it is to have, 0: the most that NVML thinks possible here.

    8 replays a minute are the most that NVIDIA recommends (DCGM_LIMIT_MAX_PCIREPLAY_RATE).
    """

    width: int = setting(0, values.count)
    generation: int = setting(0, values.count)
    replays_per_minute: float = setting(8.0, values.number)


@dataclass(frozen=True)
class Nvlink:
    """Links that are to be up, 0: as many as there were, or as comparable GPUs have; errors on them.

    CRC errors matter from 100 a second on (DCGM_LIMIT_MAX_NVLINK_CRC_ERROR), any recovery does (…_NVLINK_ERROR 1).
    """

    links: int = setting(0, values.count)
    errors_per_second: float = setting(100.0, values.number)
    recoveries_per_hour: float = setting(0.0, values.number)


@dataclass(frozen=True)
class Expect:
    """How the site wants its GPUs; `any` and an empty list: not checked.

    `drivers` and `vbios` are versions that are right, `*` for anything; `gpus` the serials or UUIDs of this node's.
    """

    persistence: str = setting("any", values.one_of("any", "on", "off"))
    compute_mode: str = setting("any", values.one_of("any", "default", "exclusive_process", "prohibited"))
    ecc: str = setting("any", values.one_of("any", "on", "off"))
    mig: str = setting("any", values.one_of("any", "on", "off"))
    drivers: tuple[str, ...] = setting((), values.texts)
    vbios: tuple[str, ...] = setting((), values.texts)
    gpus: tuple[str, ...] = setting((), values.texts)


@dataclass(frozen=True)
class Stuck:
    """What a GPU that works is to show: under full load at least this share of its greatest SM clock.

    Half of it is far below what any model does without naming a reason; `held_memory` is that of `cleanup`.
    """

    clock: float = setting(0.5, values.share)
    held_memory: int = setting(512 << 20, values.size)


@dataclass(frozen=True)
class MemoryErrors:
    """What a GPU's memory may do before somebody looks at it.

    `corrected_per_hour` and `corrected_total` (in the board's life) count corrected ECC errors: other sites' checks let
    10 to 50 million pass. `uncorrected_total` (0: not checked) counts those that were not. `retired_pages`: at 60
    NVIDIA takes a board back (DCGM_LIMIT_MAX_RETIRED_PAGES).
    """

    corrected_per_hour: float = setting(10_000_000.0, values.number)
    corrected_total: int = setting(50_000_000, values.count)
    uncorrected_total: int = setting(0, values.count)
    retired_pages: int = setting(60, values.positive_count)


@dataclass(frozen=True)
class Infiniband:
    """How many active ports of which rate (Gbit/s) the node is to have, 0: not checked; what is no fault yet.

    A port may be `down` for so many seconds of ten minutes, and lose its link so often (gpud: 4 minutes, 3 times).
    """

    ports: int = setting(0, values.count)
    rate: float = setting(0.0, values.number)
    down: float = setting(240.0, values.positive_duration)
    flaps_per_hour: float = setting(2.0, values.number)


@dataclass(frozen=True)
class Rogue:
    """Who may use a GPU without a grant: uids below `from_uid` (login.defs: UID_MIN), and these `users`."""

    from_uid: int = setting(1000, values.count)
    users: tuple[str, ...] = setting((), values.texts)
