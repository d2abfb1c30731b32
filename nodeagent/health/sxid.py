"""NVSwitch faults (SXids): what each number means and how far it reaches.

Source: NVIDIA's Fabric Manager User Guide, appendix on NVSwitch SXid errors: those that are not fatal, those that are
fatal to what runs over one link (the driver then gives that link's GPU an XID 74), and those that are always fatal, to
the whole fabric of the node. A number in no list is as grave as its kernel message says (`Fatal`, `Non-fatal`). Sites
override single numbers with `health.sxid_reach`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum


class Reach(IntEnum):
    """How far a switch's fault reaches."""

    NONE = 0
    LINK = 1
    FABRIC = 2


@dataclass(frozen=True)
class Sxid:
    """One number: its meaning and its reach."""

    number: int
    name: str
    reach: Reach


def _named(reach: Reach, names: Mapping[int, str]) -> dict[int, Sxid]:
    return {number: Sxid(number, name, reach) for number, name in names.items()}


_SINGLE_BIT = (
    *(11012, 11021, 11022, 11023, 12021, 12023, 15008, 15011, 19049, 19055, 19057, 19059, 19062, 19065, 19068, 19071),
    *(24001, 24002, 24003),
)
_HARMLESS = {
    **dict.fromkeys(_SINGLE_BIT, "single bit ECC error, corrected"),
    10001: "host: privileged access refused",
    10002: "host: privileged access timed out",
    10004: "host: too hot, from now on",
    10005: "host: too hot, no longer",
    11004: "ingress: access not allowed (partition's set-up)",
    12028: "egress: privileged access without acknowledgement",
    19084: "link: heartbeat timed out",
    20001: "link: packet sent again",
    22013: "link controller asks for attention",
}
_OF_A_LINK = {
    11001: "ingress: invalid command",
    11009: "ingress: invalid virtual channel",
    11013: "ingress: double bit error in a header",
    11018: "ingress: double bit error in a routing table",
    11019: "ingress: double bit error in a lane table",
    11020: "ingress: parity error in control",
    12001: "egress: crossbar overflow",
    12002: "egress: packet misrouted",
    12022: "egress: double bit error at the input",
    12024: "egress: double bit error at the output",
    12025: "egress: credit overflow",
    12026: "egress: wrong request id",
    12027: "egress: wrong response id",
    12030: "egress: parity error in control",
    12031: "egress: parity error in credits",
    12032: "egress: wrong kind of flit",
    14017: "tag store: timed out",
    15001: "route: buffer overflow or underflow",
    15006: "route: transfer count overflow or underflow",
    15009: "route: double bit error in a table",
    15010: "route: parity error",
    15012: "route: double bit error in what comes in",
    15013: "route: parity error in credits",
    19047: "link: double bit error in a header",
    19048: "link: double bit error in data",
    **{
        number: "link: double bit error in a buffer"
        for number in (19054, 19056, 19058, 19060, 19061, 19063, 19064, 19066, 19067, 19069, 19070)
    },
    20034: "link went down",
    22012: "link controller: connection broken",
    24004: "source tracking: double bit error",
    24005: "source tracking: double bit error in data",
    24006: "source tracking: double bit error, second part",
    24007: "source tracking: timed out",
}
_OF_THE_FABRIC = {
    10003: "host: interrupt that nobody handles",
    12020: "egress: wrong sequence",
    22003: "link controller has halted",
    22011: "link controller: error from outside",
    **dict.fromkeys((23001, 23010), "ingress: buffer overflow"),
    **dict.fromkeys((23002, 23011), "ingress: buffer underflow"),
    **dict.fromkeys((23003, 23012), "egress: credit overflow"),
    **dict.fromkeys((23004, 23013), "egress: credit underflow"),
    **dict.fromkeys((23005, 23014), "ingress: burst of bad packets"),
    **dict.fromkeys((23006, 23015), "ingress: bad packets without end"),
    **dict.fromkeys((23007, 23016), "ingress: gaps in packets"),
    23008: "ingress: packet to nowhere",
    23009: "ingress: parity error in a packet",
    23017: "ingress: parity error in credits",
}

TABLE: Mapping[int, Sxid] = {
    **_named(Reach.NONE, _HARMLESS),
    **_named(Reach.LINK, _OF_A_LINK),
    **_named(Reach.FABRIC, _OF_THE_FABRIC),
}


def look_up(number: int, text: str, overrides: Mapping[int, str]) -> Sxid:
    """Return what is known of this SXid; `overrides` (SXid → none, link, fabric) has the last word on its reach.

    Of a number that is not in the table the kernel's message (`text`) says whether it is fatal.
    """
    fatal = " Fatal" in text
    known = TABLE.get(number, Sxid(number, "meaning unknown", Reach.LINK if fatal else Reach.NONE))
    return known if number not in overrides else Sxid(number, known.name, Reach[overrides[number].upper()])
