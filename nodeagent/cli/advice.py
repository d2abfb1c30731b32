"""What a person is to do about a GPU or a node, by the recovery action that its findings ask for. Pure."""

from __future__ import annotations

from nodeagent.health.finding import RecoveryAction
from nodeagent.health.verdict import UnitVerdict
from nodeagent.state.verdict_file import UNKNOWN


def for_unit(unit: UnitVerdict) -> str:
    """Return what to do about a GPU that is not well, in one line."""
    name = str(unit.index) if unit.index >= 0 else unit.uuid
    if unit.action is RecoveryAction.RESET_GPU:
        return (
            f"reset it when no job is on it: gpu-nodeagent retire {name} --reason …; gpu-nodeagent release-driver; "
            f"nvidia-smi --gpu-reset -i {unit.bus_id or name}"
        )
    if unit.action is RecoveryAction.REBOOT_NODE:
        return "reboot the node when its jobs have ended: gpu-nodeagent drain --reason …; if it comes again: hardware"
    if unit.action is RecoveryAction.INSPECT_HARDWARE:
        return f"have the board {place(unit)} looked at: gpu-nodeagent retire {name} --reason …"
    if unit.action is RecoveryAction.RESTART_APPLICATION:
        return "start the job's program again; the GPU itself is well"
    if unit.state == UNKNOWN:
        return "nothing yet: nobody could judge it; if that lasts, dmesg and `nvidia-smi` may tell why"
    return "nothing at the GPU; see what is said"


def for_node(action: RecoveryAction) -> str:
    """Return what to do about the node; empty for nothing."""
    if action >= RecoveryAction.INSPECT_HARDWARE:
        return "have the hardware looked at: gpu-nodeagent drain --reason …"
    if action >= RecoveryAction.RESET_GPU:
        return "reboot the node when its jobs have ended: gpu-nodeagent drain --reason …"
    return ""


def place(unit: UnitVerdict) -> str:
    """Return where a board is and how it is told from others, for whoever opens the chassis."""
    where = f"in slot {unit.slot}" if unit.slot else f"at {unit.bus_id}" if unit.bus_id else ""
    which = f"serial {unit.serial}" if unit.serial else ""
    return ", ".join(word for word in (where, which) if word) or "of unknown place"
