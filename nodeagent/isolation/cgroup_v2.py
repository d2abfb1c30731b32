"""Isolation by cgroup v2: a BPF program that the kernel asks at every open of a device. Lean; ctypes when it is used.

The program is assembled here, loaded and attached with bpf(2) (linux/bpf.h): no compiler, no library. Attached with
BPF_F_ALLOW_MULTI it stands beside those of the cgroups above: a device is opened only if all of them allow it. It lives
as long as its cgroup.
"""

import os
import sys

from nodeagent.errors import NotIsolated
from nodeagent.isolation.cgroup import CgroupMethod, directory_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nodeagent.isolation.devices import Device

_SYSCALL = {"x86_64": 321, "aarch64": 280, "ppc64le": 361, "s390x": 351, "riscv64": 280}
_PROG_LOAD, _PROG_ATTACH = 5, 8  # enum bpf_cmd
_CGROUP_DEVICE_PROGRAM, _CGROUP_DEVICE = 15, 6  # enum bpf_prog_type, enum bpf_attach_type
_ALLOW_MULTI = 2
_CHAR = 2  # BPF_DEVCG_DEV_CHAR, the low half of bpf_cgroup_dev_ctx.access_type
_ATTRIBUTE_SIZE = 128
# Opcodes: LDX_MEM word, MOV_IMM, AND_IMM and EXIT; jumps by an immediate value. Registers: 1 the context, 0 the answer.
_LOAD, _SET, _AND, _EXIT = 0x61, 0xB7, 0x57, 0x95
_IF_NOT_EQUAL = 0x55
_TYPE, _MAJOR, _MINOR = 0, 4, 8  # offsets in bpf_cgroup_dev_ctx


class CgroupV2(CgroupMethod):
    """A program on a child of the process's own cgroup. Under systemd only below a unit with Delegate=yes."""

    __slots__ = ("systemd",)
    name = "cgroup-v2"

    def __init__(self, proc: str = "/proc", systemd: str = "/run/systemd/system") -> None:
        super().__init__(proc)
        self.systemd = systemd

    def why_not(self, pid: int) -> str:
        """See Method."""
        why = super().why_not(pid)
        if why:
            return why
        where = directory_of(self.proc, pid, "")
        if self.under_systemd() and not delegated(where):
            return f"{where} is systemd's: its unit wants Delegate=yes"
        try:
            os.close(_load(program(())))
        except OSError as error:
            return f"bpf(2) is refused: {error.strerror}"
        return ""

    def under_systemd(self) -> bool:
        """Say whether systemd is the one that makes and removes cgroups here (sd_booted(3))."""
        return os.path.isdir(self.systemd)

    def restrict(self, place: str, others: "Sequence[Device]", spared: "Sequence[Device]") -> None:
        """See CgroupMethod."""
        loaded = _load(program(device.number for device in others))
        try:
            directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _bpf(_PROG_ATTACH, _words(directory, loaded, _CGROUP_DEVICE, _ALLOW_MULTI))
            finally:
                os.close(directory)
        except OSError as error:  # an attachment further up that allows no other below it, for one
            raise NotIsolated(self.name, f"{place}: no program can be attached: {error.strerror}") from error
        finally:
            os.close(loaded)


def delegated(directory: str) -> bool:
    """Say whether systemd has given this cgroup, or one above it, away: it marks those with Delegate=yes."""
    while directory.startswith("/sys/"):
        for name in ("trusted.delegate", "user.delegate"):
            try:
                if os.getxattr(directory, name) == b"1":
                    return True
            except OSError:
                continue
        directory = directory.rpartition("/")[0]
    return False


def program(denied: "Iterable[tuple[int, int]]") -> bytes:
    """Return the program: 0 (refuse) for these character devices, 1 for all others."""
    pairs = sorted(set(denied))
    code = [_instruction(_LOAD, 2, 1, _TYPE), _instruction(_AND, 2, value=0xFFFF)]
    code += [_instruction(_LOAD, 3, 1, _MAJOR), _instruction(_LOAD, 4, 1, _MINOR)]
    code.append(_instruction(_IF_NOT_EQUAL, 2, offset=4 * len(pairs), value=_CHAR))
    for major, minor in pairs:  # each refuses by itself: no jump is longer than one device
        code.append(_instruction(_IF_NOT_EQUAL, 3, offset=3, value=major))
        code.append(_instruction(_IF_NOT_EQUAL, 4, offset=2, value=minor))
        code += [_instruction(_SET, 0, value=0), _instruction(_EXIT)]
    return b"".join([*code, _instruction(_SET, 0, value=1), _instruction(_EXIT)])


def _instruction(code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    order = sys.byteorder
    registers = source << 4 | target if order == "little" else target << 4 | source
    return bytes((code, registers)) + offset.to_bytes(2, order, signed=True) + value.to_bytes(4, order, signed=True)


def _words(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, sys.byteorder) for value in values)


def _load(code: bytes) -> int:
    """Return a descriptor of the loaded program.

    Raises:
        OSError: the kernel does not take it.

    """
    import ctypes

    text, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    pointers = b"".join(ctypes.addressof(one).to_bytes(8, sys.byteorder) for one in (text, licence))
    return _bpf(_PROG_LOAD, _words(_CGROUP_DEVICE_PROGRAM, len(code) // 8) + pointers)


def _bpf(command: int, attributes: bytes) -> int:
    import ctypes

    number = _SYSCALL.get(os.uname().machine)
    if number is None:
        raise OSError(38, f"bpf(2) has no known number on {os.uname().machine}")
    library = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes, _ATTRIBUTE_SIZE)
    done = library.syscall(ctypes.c_long(number), command, ctypes.byref(buffer), _ATTRIBUTE_SIZE)
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(done)
