"""The GPU models the stand-in library can play, and what each says about itself when idle and well.

Sizes, limits and identifiers are those of the vendor's data sheets and of `nvidia-smi -q` on such boards; where boards
differ (temperatures, firmware versions) one plausible value stands for all.
"""

from dataclasses import dataclass
from typing import Optional, Union

Value = Union[int, str, None]
"""A value of the scenario; None is written as `none`, and NVML then answers NOT_SUPPORTED."""

MIB = 1 << 20


@dataclass(frozen=True)
class Model:
    """One GPU model. Memory is in MiB, power in W, clocks in MHz, temperatures in °C, link speed in MB/s."""

    name: str
    pci_device: int
    brand: int
    architecture: int
    compute_capability: tuple[int, int]
    memory: int
    memory_gb: int
    reserved: int
    power: tuple[int, int, int]
    """Idle, least limit, greatest limit."""
    temperatures: tuple[int, int, int, Optional[int]]
    """Shutdown, slowdown, greatest in operation, and the memory's limit if it has a sensor."""
    clocks: tuple[int, int, int]
    """Greatest graphics (and SM), memory and video clock."""
    pcie_generation: int
    nvlinks: int = 0
    nvlink_version: Optional[int] = None
    nvlink_speed: Optional[int] = None
    mig_slice_multiprocessors: int = 0
    """Multiprocessors of one MIG slice; 0 where the model has no MIG."""
    remaps_rows: bool = True
    counts_energy: bool = True
    has_gsp: bool = True


_BRAND_TESLA, _BRAND_NVIDIA = 2, 14
_PASCAL, _VOLTA, _TURING, _AMPERE, _ADA, _HOPPER, _BLACKWELL = 4, 5, 6, 7, 8, 9, 10

MODELS: dict[str, Model] = {
    "B200": Model(
        "NVIDIA B200", 0x2901, _BRAND_NVIDIA, _BLACKWELL, (10, 0), 183359, 180, 828,
        (140, 200, 1000), (95, 92, 90, 95), (1965, 3996, 1965), 5,
        nvlinks=18, nvlink_version=7, nvlink_speed=53125, mig_slice_multiprocessors=18,
    ),
    "H100-80GB": Model(
        "NVIDIA H100 80GB HBM3", 0x2330, _BRAND_NVIDIA, _HOPPER, (9, 0), 81559, 80, 551,
        (70, 200, 700), (92, 89, 87, 95), (1980, 2619, 1545), 5,
        nvlinks=18, nvlink_version=6, nvlink_speed=26562, mig_slice_multiprocessors=16,
    ),
    "A100-80GB": Model(
        "NVIDIA A100-SXM4-80GB", 0x20B2, _BRAND_NVIDIA, _AMPERE, (8, 0), 81920, 80, 617,
        (62, 100, 400), (92, 89, 85, 95), (1410, 1593, 1290), 4,
        nvlinks=12, nvlink_version=4, nvlink_speed=25000, mig_slice_multiprocessors=14,
    ),
    "A100-40GB": Model(
        "NVIDIA A100-SXM4-40GB", 0x20B0, _BRAND_NVIDIA, _AMPERE, (8, 0), 40960, 40, 423,
        (52, 100, 400), (92, 89, 85, 95), (1410, 1215, 1290), 4,
        nvlinks=12, nvlink_version=4, nvlink_speed=25000, mig_slice_multiprocessors=14,
    ),
    "V100-32GB": Model(
        "Tesla V100-SXM2-32GB", 0x1DB5, _BRAND_TESLA, _VOLTA, (7, 0), 32768, 32, 262,
        (42, 150, 300), (90, 87, 83, 85), (1530, 877, 1372), 3,
        nvlinks=6, nvlink_version=2, nvlink_speed=25781, remaps_rows=False, has_gsp=False,
    ),
    "L40S": Model(
        "NVIDIA L40S", 0x26B9, _BRAND_NVIDIA, _ADA, (8, 9), 46068, 48, 600,
        (35, 100, 350), (101, 98, 92, None), (2520, 9001, 1965), 4,
    ),
    "T4": Model(
        "Tesla T4", 0x1EB8, _BRAND_TESLA, _TURING, (7, 5), 15360, 16, 449,
        (10, 60, 70), (96, 93, 85, None), (1590, 5001, 1470), 3, remaps_rows=False,
    ),
    "P100-16GB": Model(
        "Tesla P100-PCIE-16GB", 0x15F8, _BRAND_TESLA, _PASCAL, (6, 0), 16384, 16, 109,
        (28, 125, 250), (85, 82, 80, None), (1328, 715, 1189), 3,
        remaps_rows=False, counts_energy=False, has_gsp=False,
    ),
}  # fmt: skip


def idle_values(model: Model, driver: str) -> dict[str, Value]:
    """Every key of the scenario for one idle, healthy GPU, without identity and place."""
    idle, least, most = model.power
    shutdown, slowdown, highest, memory_limit = model.temperatures
    graphics, memory_clock, video = model.clocks
    zero_if_remapping = 0 if model.remaps_rows else None
    mig = 0 if model.mig_slice_multiprocessors else None
    return dict(
        name=model.name, brand=model.brand, architecture=model.architecture,
        cc_major=model.compute_capability[0], cc_minor=model.compute_capability[1],
        pci_device_id=model.pci_device << 16 | 0x10DE, pci_subsystem_id=0x16C1 << 16 | 0x10DE,
        vbios="96.00.61.00.01", inforom="G520.0200.00.05", part_number="692-2G520-0200-000",
        firmware=driver if model.has_gsp else None,
        memory_total=model.memory * MIB, memory_reserved=model.reserved * MIB, memory_used=0,
        bar1_total=2 * model.memory_gb * 1024 * MIB, bar1_used=2 * MIB,
        gpu_util=0, memory_util=0, encoder_util=0, decoder_util=0,
        temperature=34, memory_temperature=None if memory_limit is None else 38,
        shutdown_temperature=shutdown, slowdown_temperature=slowdown,
        memory_max_temperature=memory_limit, gpu_max_temperature=highest,
        power_mw=idle * 1000, power_limit_mw=most * 1000, power_enforced_mw=most * 1000,
        power_min_mw=least * 1000, power_max_mw=most * 1000, power_default_mw=most * 1000,
        energy_mj=0 if model.counts_energy else None,
        pcie_replay=0, pcie_replay_rate=0, pcie_tx_kib=0, pcie_rx_kib=0,
        pcie_tx_bytes=0, pcie_rx_bytes=0,
        nvlink_kib=0 if model.nvlinks else None, nvlink_kib_rate=0,
        violation_power_ns=0, violation_thermal_ns=0,
        graphics_clock=345, sm_clock=345, memory_clock=memory_clock, video_clock=765,
        graphics_clock_max=graphics, sm_clock_max=graphics,
        memory_clock_max=memory_clock, video_clock_max=video,
        app_graphics_clock=graphics, app_graphics_default=graphics,
        app_memory_clock=memory_clock, app_memory_default=memory_clock,
        clock_reasons=1, pstate=0, persistence=1, compute_mode=0, ecc_mode=1, ecc_pending=1,
        ecc_corrected_volatile=0, ecc_corrected_aggregate=0,
        ecc_uncorrected_volatile=0, ecc_uncorrected_aggregate=0,
        sram_corrected_volatile=0, sram_corrected_aggregate=0,
        sram_uncorrected_volatile=0, sram_uncorrected_aggregate=0,
        sram_threshold=zero_if_remapping,
        remapped_correctable=zero_if_remapping, remapped_uncorrectable=zero_if_remapping,
        remapped_pending=zero_if_remapping, remapped_failure=zero_if_remapping,
        remap_exhausted=zero_if_remapping,
        retired_pending=None if model.remaps_rows else 0,
        pcie_generation=model.pcie_generation, pcie_generation_max=model.pcie_generation,
        pcie_width=16, pcie_width_max=16,
        mig_mode=mig, mig_pending=mig, mig_max=7 if mig == 0 else 0,
        recovery_action=0, reset_status=0, drain_and_reset_status=0,
        fabric_state=0, fabric_status=0, fabric_clique=0, fabric_health=0, fabric_summary=0,
        event_types=0x809F,
    )  # fmt: skip
