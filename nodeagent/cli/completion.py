"""What can follow on a command line, for the shell's completion: `gpu-nodeagent _complete LINE BREAKS`.

The command line is described once, for argparse, and completed from that; values are this node's, as `status` knows
them. It reads argparse's tables (`_actions`), which have no public name; every library for completion does.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nodeagent.cli.main import SUBCOMMANDS, parser_for, say

_SPLITTING = ":="
"""Characters at which bash may split a word that is one to us: a bus id has them."""


def run(words: Sequence[str]) -> int:
    """Print what can follow, a line each; nothing where anything fails, for nobody would read why."""
    line, breaks = (*words, "", "")[:2]
    try:
        typed = split(line)
        cut = max((typed[-1].rfind(one) for one in _SPLITTING if one in breaks), default=-1) + 1
        found = sorted({word[cut:] for word in candidates(typed) if word.startswith(typed[-1])})
    except (Exception, SystemExit):  # noqa: BLE001  the boundary: a shell waits, and what it shows must stay clean
        return 0
    if found:
        say("\n".join(found))
    return 0


def split(line: str) -> list[str]:
    """Return the words of a line up to the cursor; the last is the one that is being typed, and may be empty."""
    for closing in ("", "'", '"'):
        try:
            *words, last = shlex.split(f"{line}.{closing}")
        except ValueError:
            continue
        return [*words, last[:-1]]
    return [""]


def candidates(typed: Sequence[str]) -> Iterator[str]:
    """Yield what can stand where the last word is; some of it may not begin as that word does."""
    *before, current = typed[1:] or [""]
    chosen = next((word for word in _without_values(before) if word in SUBCOMMANDS), None)
    place = Place(parser_for(chosen), chosen or "")
    for word in before:
        place.pass_by(word)
    yield from place.values(current)


def _without_values(words: Sequence[str]) -> Iterator[str]:
    """Yield the words before a subcommand that are none of `--config`'s."""
    return (word for at, word in enumerate(words) if at == 0 or words[at - 1] != "--config")


class Place:
    """Where a command line has led to, word by word."""

    def __init__(self, parser: argparse.ArgumentParser, command: str) -> None:
        self._parser = parser
        self._command = command
        self._pending: argparse.Action | None = None
        self._seen: dict[str, str] = {}
        self._passed = 0

    def pass_by(self, word: str) -> None:
        """Go on by one word."""
        if self._pending is not None:
            self._seen[self._pending.dest], self._pending = word, None
            return
        name, equals, value = word.partition("=")
        option = self._parser._option_string_actions.get(name)
        if option is not None:
            self._seen[option.dest] = value
            self._pending = None if equals or option.nargs == 0 else option
            return
        action = self._next()
        if isinstance(action, argparse._SubParsersAction):
            if word in action.choices:
                self._parser, self._passed = action.choices[word], 0
        elif action is not None and action.nargs != "+":
            self._passed += 1

    def values(self, current: str) -> Iterable[str]:
        """Return what can stand here."""
        name, equals, _ = current.partition("=")
        option = self._parser._option_string_actions.get(name) if equals else None
        if option is not None:
            return [f"{name}={value}" for value in self._of(option)]
        if self._pending is not None:
            return self._of(self._pending)
        if current.startswith("-"):
            options = self._parser._option_string_actions.items()
            return [word for word, one in options if word.startswith("--") and one.dest not in self._seen]
        action = self._next()
        return self._of(action) if action is not None else []

    def _next(self) -> argparse.Action | None:
        """Return what the next word without a dash is."""
        left = [action for action in self._parser._actions if not action.option_strings][self._passed :]
        return left[0] if left else None

    def _of(self, action: argparse.Action) -> Iterable[str]:
        if action.choices is not None:
            return [str(word) for word in action.choices]
        values = VALUES.get((self._command, action.dest))
        return values(Known(self._seen)) if values is not None else []


class Known:
    """What this node is known to have. `seen` are the options on the line: dest → value."""

    def __init__(self, seen: Mapping[str, str]) -> None:
        from nodeagent.cli.context import open_state, status_of
        from nodeagent.config.load import load

        config = load(Path(seen["config"]) if seen.get("config") else None).config
        self.seen = seen
        self.state = open_state(config)
        self.gpus: list[dict[str, Any]] = status_of(config, self.state)["gpus"]

    def owners(self) -> Mapping[str, Any]:
        """Return unit → owner of what is held."""
        from nodeagent.lock.store import Store

        return Store(self.state).owners()


def _names(gpus: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the names by which a person may call a GPU: index, bus id, UUID."""
    for gpu in gpus:
        yield from (str(gpu[key]) for key in ("index", "bus_id", "uuid") if gpu[key] not in (None, ""))


def _all(known: Known) -> Iterable[str]:
    return _names(known.gpus)


def _in_service(known: Known) -> Iterable[str]:
    return _names(gpu for gpu in known.gpus if not gpu["retired"])


def _retired(known: Known) -> Iterable[str]:
    return _names(gpu for gpu in known.gpus if gpu["retired"])


def _held(known: Known) -> Iterable[str]:
    owners = known.owners()
    if "job" in known.seen:
        return {f"{one.job}.{one.task}" if one.task else one.job for one in owners.values() if one.job}
    return [*owners, *_names(gpu for gpu in known.gpus if gpu["holders"])]


VALUES: Mapping[tuple[str, str], Callable[[Known], Iterable[str]]] = {
    ("retire", "unit"): _in_service,
    ("restore", "unit"): _retired,
    ("history", "gpu"): _all,
    ("locks", "what"): _held,
    ("locks", "units"): _all,
}
"""What an argument can be, where argparse does not know it: (subcommand, name of the argument)."""
