"""Readers of single YAML values: each returns the converted value or raises ValueError saying what is wanted."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from nodeagent.lock.model import is_pattern

K = TypeVar("K")
V = TypeVar("V")

RECOVERY_ACTIONS = ("none", "restart_application", "reset_gpu", "reboot_node", "inspect_hardware")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
_HIGHEST_PORT = 65535
_MOST_SLOTS = 256
_SIZE = re.compile(r"(\d{1,15})\s*(|KiB|MiB|GiB)")
_SIZE_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_MOST_WATTS = 10_000
_MOST_STRIKES = 1000
_LEAST_HISTORY = 4 << 20


def text(value: Any) -> str:
    """Any string of one line."""
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("wants a text of one line")
    return value


def name(value: Any) -> str:
    """A name as schedulers and hosts have them: letters, digits, `_`, `.`, `-`."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("wants a name (letters, digits, '_', '.', '-')")
    return value


def texts(value: Any) -> tuple[str, ...]:
    """A list of texts of one line."""
    if not isinstance(value, (list, tuple)):
        raise ValueError("wants a list of texts")
    return tuple(text(item) for item in value)


def names(value: Any) -> tuple[str, ...]:
    """A list of names."""
    if not isinstance(value, (list, tuple)):
        raise ValueError("wants a list of names")
    return tuple(name(item) for item in value)


def absolute_path(value: Any) -> str:
    """An absolute path without `..`, normalised."""
    path = text(value)
    if not path.startswith("/") or ".." in path.split("/"):
        raise ValueError("wants an absolute path without '..'")
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def name_or_empty(value: Any) -> str:
    """A name, or nothing."""
    return "" if value in ("", None) else name(value)


def absolute_path_or_empty(value: Any) -> str:
    """An absolute path, or nothing."""
    return "" if value in ("", None) else absolute_path(value)


def bindable_path(value: Any) -> str:
    r"""An absolute path that a bind list can carry: Apptainer splits at commas and colons and reads `\` and `^`."""
    path = absolute_path(value)
    if any(c in path for c in ",:\\^\"'") or path != path.strip():
        raise ValueError("wants a path without , : \\ ^ or quotes, as bind lists cannot carry them")
    return path


def driver_path(value: Any) -> str:
    """A bindable path that contains `{version}` once, or nothing."""
    if value in ("", None):
        return ""
    path = text(value)
    if path.count("{version}") != 1:
        raise ValueError("wants a path with {version} in it once, such as /mynvdriver/v{version}")
    bindable_path(path.replace("{version}", "1"))
    return path


def boolean(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError("wants true or false")
    return value


def number(value: Any) -> float:
    """A number >= 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ValueError("wants a number, 0 or more")
    return float(value)


def share(value: Any) -> float:
    """A part of a whole, above 0 and at most 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError("wants a share, above 0 and at most 1, such as 0.6")
    return float(value)


def count(value: Any) -> int:
    """A whole number >= 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("wants a whole number, 0 or more")
    return value


def positive_count(value: Any) -> int:
    """A whole number >= 1."""
    if count(value) < 1:
        raise ValueError("wants a whole number, 1 or more")
    return int(value)


def port(value: Any) -> int:
    """A TCP port, 0 for the scheduler's own default."""
    if count(value) > _HIGHEST_PORT:
        raise ValueError("wants a port, 0 to 65535")
    return int(value)


def duration(value: Any) -> float:
    """Seconds: a number, or a text such as 500ms, 10s, 5m, 2h, 1d."""
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if not match:
            raise ValueError("wants a duration such as 500ms, 10s, 5m, 2h")
        amount, unit = match.groups()
        if unit and unit not in _UNITS:
            raise ValueError(f"has an unknown unit {unit!r}; known are {', '.join(_UNITS)}")
        return float(amount) * _UNITS[unit or "s"]
    try:
        return number(value)
    except ValueError:
        raise ValueError("wants a duration, 0 or more, such as 500ms, 10s, 5m, 2h") from None


def positive_duration(value: Any) -> float:
    """A duration > 0."""
    seconds = duration(value)
    if seconds <= 0:
        raise ValueError("wants a duration above 0, such as 10s")
    return seconds


def size(value: Any) -> int:
    """Bytes: a number, or a text such as 512MiB, 1GiB."""
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match:
        return int(match.group(1)) * _SIZE_UNITS[match.group(2)]
    try:
        return count(value)
    except ValueError:
        raise ValueError("wants a size such as 512MiB or 1GiB") from None


def history_size(value: Any) -> int:
    """Bytes that history may take: a size, 4 MiB at least."""
    if size(value) < _LEAST_HISTORY:
        raise ValueError("wants a size of at least 4MiB, such as 64MiB")
    return size(value)


def power_limit(value: Any) -> str:
    """`keep`, `default` (the board's), or watts."""
    if value in ("keep", "default"):
        return str(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < _MOST_WATTS:
        raise ValueError("wants keep, default, or watts such as 300")
    return f"{value:g}"


def application_clocks(value: Any) -> str:
    """`keep`, `default` (the board's), or `MEMORY,GRAPHICS` in MHz."""
    if not isinstance(value, str) or not re.fullmatch(r"keep|default|\d{2,5},\d{2,5}", value):
        raise ValueError("wants keep, default, or MEMORY,GRAPHICS in MHz such as 2619,1980")
    return value


def listen_address(value: Any) -> str:
    """`HOST:PORT`, `:PORT` for all addresses, or `none`."""
    address = text(value)
    if address == "none":
        return address
    host, colon, digits = address.rpartition(":")
    if not colon or not digits.isdigit() or int(digits) > _HIGHEST_PORT or " " in host:
        raise ValueError("wants an address such as :9836 or 127.0.0.1:9836, or none")
    return address


def count_or_percent(value: Any) -> str:
    """A number of nodes (4) or a share of them (10%)."""
    digits = str(value)
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,6}|\d{1,3}%", digits):
        raise ValueError("wants a number of nodes (4) or a share of them (10%)")
    if digits.endswith("%") and int(digits[:-1]) > 100:  # noqa: PLR2004
        raise ValueError("wants a share of at most 100%")
    return digits


def slots(value: Any) -> int:
    """How many jobs share a GPU."""
    if positive_count(value) > _MOST_SLOTS:
        raise ValueError(f"wants a number of jobs that share a GPU, at most {_MOST_SLOTS}")
    return int(value)


def model_pattern(value: Any) -> str:
    """What a GPU model's name is compared with (lock/model.py)."""
    if not isinstance(value, str) or not is_pattern(value):
        raise ValueError("wants a model: a word of its name, with '*' for anything and '|' between alternatives")
    return value


@dataclass(frozen=True)
class Within:
    """So many strikes within so many seconds."""

    count: int
    within: float


def strikes(value: Any) -> int | Within:
    """Readings in a row (3), or so many within a time ({count: 3, within: 10m})."""
    if not isinstance(value, dict):
        return positive_count(value)
    if value.keys() != {"count", "within"}:
        raise ValueError("wants a number of readings in a row, or {count: 3, within: 10m}")
    if positive_count(value["count"]) > _MOST_STRIKES:
        raise ValueError(f"wants a count of at most {_MOST_STRIKES} within a time")
    return Within(int(value["count"]), positive_duration(value["within"]))


def xid(value: Any) -> int:
    """An XID number."""
    return positive_count(value)


def one_of(*words: str) -> Callable[[Any], str]:
    """Return a reader of one of these words."""

    def read(value: Any) -> str:
        # YAML 1.1 reads a bare yes/no/on/off as a truth value; where such a word is a choice it is meant as the word.
        if isinstance(value, bool):
            meant = ("yes", "on") if value else ("no", "off")
            value = next((word for word in words if word.lower() in meant), value)
        if value not in words:
            raise ValueError(f"wants one of {', '.join(words)}")
        return str(value)

    return read


recovery_action = one_of(*RECOVERY_ACTIONS)


class BadItem(ValueError):
    """One item of a list is wrong: `index` counts from 0."""

    def __init__(self, index: int, words: str) -> None:
        self.index = index
        super().__init__(words)


def listing(item: Callable[[Any], V]) -> Callable[[Any], tuple[V, ...]]:
    """Return a reader of a list; what is wrong with an item names it (BadItem)."""

    def read(node: Any) -> tuple[V, ...]:
        if not isinstance(node, (list, tuple)):
            raise ValueError("wants a list")
        found = []
        for index, one in enumerate(node):
            try:
                found.append(item(one))
            except ValueError as error:
                raise BadItem(index, str(error)) from None
        return tuple(found)

    return read


def described(settings: Any, readers: Mapping[str, Callable[[Any], Any]], example: str) -> dict[str, Any]:
    """Return a mapping of settings, each by its own reader; `example` is what one looks like."""
    if not isinstance(settings, dict):
        raise ValueError(f"wants a mapping with {example}")
    unknown = sorted(set(map(str, settings)) - set(readers))
    if unknown:
        raise ValueError(f"{unknown[0]}: unknown key; known here: {', '.join(readers)}")
    found = {}
    for key, value in settings.items():
        try:
            found[key] = readers[key](value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    return found


def mapping(key: Callable[[Any], K], value: Callable[[Any], V]) -> Callable[[Any], Mapping[K, V]]:
    """Return a reader of a mapping."""

    def read(node: Any) -> Mapping[K, V]:
        if not isinstance(node, dict):
            raise ValueError("wants a mapping")
        return {key(k): value(v) for k, v in node.items()}

    return read
