"""Isolation by the devices controller of cgroup v1: numbers written to `devices.deny`. Lean."""

from nodeagent.isolation.cgroup import CgroupMethod, read, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nodeagent.isolation.devices import Device


class CgroupV1(CgroupMethod):
    """`devices.deny` of a child of the process's own cgroup, whose limits it inherits."""

    __slots__ = ()
    name = "cgroup-v1"
    controller = "devices"

    def restrict(self, place: str, others: "Sequence[Device]", spared: "Sequence[Device]") -> None:
        """See CgroupMethod.

        Where the parent allows by a list (systemd's DevicePolicy=), an entry such as `c 195:* rwm` is not narrowed by a
        denial of 195:0 (the kernel removes only what is written alike), so it is replaced by the devices to be spared.
        """
        majors = {device.major for device in others}
        for entry in read(f"{place}/devices.list").split("\n"):
            kind, _, rest = entry.partition(" ")
            number, _, access = rest.partition(" ")
            if kind == "c" and number.endswith(":*") and number[:-2].isdigit() and int(number[:-2]) in majors:
                write(f"{place}/devices.deny", entry)
                for device in spared:
                    if device.major == int(number[:-2]):
                        write(f"{place}/devices.allow", f"c {device.major}:{device.minor} {access}")
        for device in others:
            write(f"{place}/devices.deny", f"c {device.major}:{device.minor} rwm")
