"""NVIDIA's XIDs: what each number means and which recovery it asks for.

Names and actions follow NVIDIA's own catalogue ("Analyzing Xid Errors with the Xid Catalog", state of October 2025,
column "Immediate Action"): RESET_GPU, RESTART_BM (reboot), RESTART_VM, RESTART_APP, IGNORE, CHECK_MECHANICALS. That
table is milder than most tools', so a program that runs past the end of an array (13, 31, 43, 45) takes no node away.

Where the catalogue has a work flow instead of an action, `source` says what was chosen:
- 48 and 74: its text says that a reset or reboot is needed to clear the error: reset_gpu.
- 45: a consequence of another XID or of a program that ended: none.
- 144 to 150: decided by bits that no event carries; drivers that send them announce the action in field value 230:
  none.
- 151: the virtual machine is to be restarted; for its agent that is the node: reboot_node.
- 154: announces that field value 230 changed; the `reset-required` check reads that field: none.
Sites override single numbers with `health.xid_actions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nodeagent.health.finding import RecoveryAction

NONE = RecoveryAction.NONE
RESTART = RecoveryAction.RESTART_APPLICATION
RESET = RecoveryAction.RESET_GPU
REBOOT = RecoveryAction.REBOOT_NODE
INSPECT = RecoveryAction.INSPECT_HARDWARE

CATALOGUE = "NVIDIA XID catalogue 2025-10"
WORKFLOW = "NVIDIA XID catalogue 2025-10, work flow"
UNLISTED = "not in the table"
OVERRIDE = "health.xid_actions"


@dataclass(frozen=True)
class Xid:
    """One number: its meaning, the recovery it asks for and who says so."""

    number: int
    name: str
    action: RecoveryAction
    source: str = CATALOGUE


def _table(*rows: Xid) -> dict[int, Xid]:
    return {row.number: row for row in rows}


_SINGLE = _table(
    Xid(8, "GPU stopped processing: idle timeout", RESTART),
    Xid(11, "invalid or corrupted push buffer stream", RESTART),
    Xid(13, "graphics engine exception", RESTART),
    Xid(25, "illegal push buffer stream", RESTART),
    Xid(31, "GPU memory page fault", RESTART),
    Xid(32, "corrupted push buffer: PBDMA error", RESTART),
    Xid(37, "driver firmware: unimplemented method", NONE),
    Xid(38, "driver firmware: watchdog timeout", NONE),
    Xid(43, "GPU stopped processing: channel reset after a program's fault", NONE),
    Xid(44, "graphics engine fault during context switch", NONE),
    Xid(45, "preemptive cleanup of a program's channels", NONE, WORKFLOW),
    Xid(46, "GPU stopped processing: GPU timeout", RESET),
    Xid(48, "double bit ECC error", RESET, WORKFLOW),
    Xid(54, "auxiliary power is not connected", INSPECT),
    Xid(60, "video processor exception", RESTART),
    Xid(62, "internal micro-controller halt", RESET),
    Xid(63, "GPU memory remapping event", NONE),
    Xid(64, "GPU memory remapping failure", RESET),
    Xid(66, "illegal access by driver", NONE),
    Xid(67, "illegal access by driver: verification", NONE),
    Xid(68, "NVDEC0 exception", RESTART),
    Xid(69, "graphics engine class error", RESTART),
    Xid(74, "NVLink error", RESET, WORKFLOW),
    Xid(79, "GPU has fallen off the bus", REBOOT),
    Xid(80, "corrupted data sent to GPU", RESTART),
    Xid(86, "optical flow accelerator exception", RESTART),
    Xid(92, "high rate of single bit ECC errors", NONE),
    Xid(93, "infoROM wear limit, not fatal", NONE),
    Xid(94, "contained memory error", RESTART),
    Xid(95, "uncontained memory error", RESET),
    Xid(109, "context switch timeout", RESET),
    Xid(110, "security fault", RESET),
    Xid(119, "GSP RPC timeout", RESET),
    Xid(120, "GSP error", RESET),
    Xid(121, "C2C link error, corrected", NONE),
    Xid(136, "link training failed", RESET),
    Xid(137, "NVLink privilege error: illegal peer access", NONE),
    Xid(139, "OFA1 error", RESTART),
    Xid(140, "unrecovered ECC error", RESET),
    Xid(141, "CUDA fast path error", NONE),
    Xid(143, "GPU initialisation error", RESET),
    Xid(144, "NVLink 5: SAW error", NONE, WORKFLOW),
    Xid(145, "NVLink 5: RLW error", NONE, WORKFLOW),
    Xid(146, "NVLink 5: TLW error", NONE, WORKFLOW),
    Xid(147, "NVLink 5: TREX error", NONE, WORKFLOW),
    Xid(148, "NVLink 5: NVLPW_CTRL error", NONE, WORKFLOW),
    Xid(149, "NVLink 5: NETIR error", NONE, WORKFLOW),
    Xid(150, "NVLink 5: MSE error", NONE, WORKFLOW),
    Xid(151, "key rotation error", REBOOT, WORKFLOW),
    Xid(154, "GPU recovery action changed", NONE, WORKFLOW),
    Xid(155, "NVLink: error defined by software", RESET),
    Xid(156, "resource retirement event", RESET),
    Xid(157, "resource retirement failure", NONE),
    Xid(158, "GPU fatal timeout", RESET),
    Xid(160, "channel retirement event", NONE),
    Xid(161, "channel retirement failure", NONE),
    Xid(171, "uncorrectable DRAM error (detail of XID 48)", NONE),
    Xid(172, "uncorrectable SRAM error (detail of XID 48)", NONE),
)
_COPY_ENGINES = (39, 40, 41, 70, 71, 72, 75, 76, 77, 85, *range(126, 136))
_VIDEO_ENGINES = {82: "NVJPG0", 83: "NVDEC1", 84: "NVDEC2", 88: "NVDEC3", 89: "NVDEC4"}
_VIDEO_ENGINES.update({96 + k: f"NVDEC{5 + k}" for k in range(3)})
_VIDEO_ENGINES.update({99 + k: f"NVJPG{1 + k}" for k in range(7)})

TABLE: Mapping[int, Xid] = {
    **_SINGLE,
    **{n: Xid(n, f"copy engine {k} error", RESTART) for k, n in enumerate(_COPY_ENGINES)},
    **{n: Xid(n, f"{engine} error", RESTART) for n, engine in _VIDEO_ENGINES.items()},
}


def look_up(number: int, overrides: Mapping[int, str]) -> Xid:
    """Return what is known of this XID; `overrides` (XID -> recovery action's word) has the last word on the action.

    A number that is in neither asks for nothing: it is told, and nobody acts on it.
    """
    known = TABLE.get(number, Xid(number, "meaning unknown", NONE, UNLISTED))
    if number not in overrides:
        return known
    return Xid(number, known.name, RecoveryAction.of(overrides[number]), OVERRIDE)


def latches(known: Xid) -> bool:
    """Say whether the fault outlives its event: until the GPU is initialised anew, not until the next quiet cycle."""
    return known.action >= RESET
