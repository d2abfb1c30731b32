"""YAML files → one validated `Config`; every mistake is reported with file, line and key, all of them at once."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from nodeagent.config.model import Config, Loaded
from nodeagent.config.policy_rules import unresolved
from nodeagent.config.values import BadItem
from nodeagent.errors import ConfigError, UntrustedFile
from nodeagent.state.files import read_trusted_bytes
from nodeagent.state.hook_conf import DEFAULT_CONFIG, state_dir_of

Key = tuple[str, ...]


def load(path: Path | None = None) -> Loaded:
    """Read `path` (default: the installed place) and `conf.d/*.yaml` beside it; later files override earlier ones.

    The default file may be missing: then all settings have their defaults. A file named explicitly may not.

    Raises:
        ConfigError: anything is wrong; nothing of a bad configuration is ever used.

    """
    main = (path or Path(DEFAULT_CONFIG)).absolute()
    problems: list[str] = []
    found: dict[Key, Any] = {}
    lines: dict[Key, str] = {}
    sources: list[tuple[Path, int, bytes]] = []
    for file in [main, *sorted((main.parent / "conf.d").glob("*.yaml"))]:
        try:
            data, status = read_trusted_bytes(os.fspath(file))
        except FileNotFoundError:
            if file != main or path is not None:
                problems.append(f"{file}: no such file")
            continue
        except (OSError, UntrustedFile) as error:
            problems.append(str(error) if isinstance(error, UntrustedFile) else f"{file}: {error.strerror}")
            continue
        sources.append((file, status.st_mtime_ns, data))
        _read_file(file, data, file == main, found, lines, problems)
    if problems:
        raise ConfigError(problems)
    config: Config = _build(Config, (), found)
    problems = [f"{lines.get(key, main)}: {'.'.join(key)}: {what}" for key, what in _whole(config)]
    if problems:
        raise ConfigError(problems)
    return Loaded(config, main, tuple(sources))


def _read_file(
    file: Path, data: bytes, is_main: bool, found: dict[Key, Any], lines: dict[Key, str], problems: list[str]
) -> None:
    try:
        text = data.decode("utf-8")
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
    except UnicodeDecodeError as error:
        problems.append(f"{file}: not UTF-8 at byte {error.start}")
        return
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problems.append(f"{file}:{line}: not YAML: {error.problem}")
        return
    except yaml.YAMLError as error:
        problems.append(f"{file}: not YAML: {' '.join(str(error).split())}")
        return
    if root is None:
        return
    walk = _Walk(file, loader, found, problems)
    walk.mapping(Config, root, ())
    lines.update({key: f"{file}:{line}" for key, line in walk.mine.items()})
    if ("state_dir",) in walk.mine:
        if not is_main:
            line = walk.mine["state_dir",]
            problems.append(f"{file}:{line}: state_dir: belongs in config.yaml, where hooks look for it")
        elif state_dir_of(text) != found["state_dir",]:
            problems.append(
                f"{file}:{walk.mine['state_dir',]}: state_dir: wants to stand on a line of its own at the left margin,"
                " as a plain path without trailing '/', where hooks look for it"
            )


class _Walk:
    """One file's node tree against the dataclasses."""

    def __init__(self, file: Path, loader: yaml.SafeLoader, found: dict[Key, Any], problems: list[str]) -> None:
        self.file = file
        self.loader = loader
        self.found = found
        self.problems = problems
        self.mine: dict[Key, int] = {}

    def mapping(self, kind: Any, node: yaml.Node, at: Key) -> None:
        if not isinstance(node, yaml.MappingNode):
            self._problem(node, at, "wants a mapping of settings")
            return
        fields = {field.name: field for field in dataclasses.fields(kind)}
        seen: set[str] = set()
        for key_node, value_node in node.value:
            name = str(getattr(key_node, "value", ""))
            here = (*at, name)
            if name in seen:
                self._problem(key_node, here, "is given twice")
            elif name not in fields:
                near = difflib.get_close_matches(name, fields, 1)
                known = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(fields))}"
                self._problem(key_node, here, f"unknown key; {known}")
            elif "section" in fields[name].metadata:
                self.mapping(fields[name].metadata["section"], value_node, here)
            else:
                self._leaf(fields[name], value_node, here)
            seen.add(name)

    def _leaf(self, field: dataclasses.Field[Any], node: yaml.Node, at: Key) -> None:
        try:
            value = self.loader.construct_object(node, deep=True)
            self.found[at] = field.metadata["read"](value)
            self.mine[at] = node.start_mark.line + 1
            lines = {(*at, str(number)): item.start_mark.line + 1 for number, item in enumerate(_items(node), 1)}
            self.mine.update(lines)
        except BadItem as error:
            self._problem(_items(node)[error.index], (*at, str(error.index + 1)), str(error))
        except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
            said = getattr(node, "value", "")
            shown = f" (got {said[:60]!r})" if isinstance(said, str) else ""
            self._problem(node, at, f"{' '.join(str(error).split())}{shown}")

    def _problem(self, node: yaml.Node, at: Key, what: str) -> None:
        where = ".".join(at) or "the file"
        self.problems.append(f"{self.file}:{node.start_mark.line + 1}: {where}: {what}")


def _items(node: yaml.Node) -> list[yaml.Node]:
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _build(kind: Any, at: Key, found: dict[Key, Any]) -> Any:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        here = (*at, field.name)
        if "section" in field.metadata:
            values[field.name] = _build(field.metadata["section"], here, found)
        elif here in found:
            values[field.name] = found[here]
    return kind(**values)


def _whole(config: Config) -> Iterator[tuple[Key, str]]:
    """Yield what is wrong with settings taken together: the key and the words."""
    if config.state_dir == config.data_dir:
        yield ("data_dir",), "wants a directory other than state_dir, which is gone at reboot"
    age, interval = config.hooks.verdict_max_age, config.interval
    if age < 2 * interval:
        key = ("interval",) if age == Config().hooks.verdict_max_age else ("hooks", "verdict_max_age")
        yield key, f"hooks.verdict_max_age ({age:g} s) wants to be twice the interval ({interval:g} s) or more"
    policy = config.policy
    if policy.reboot == "scheduler" and config.scheduler.kind != "slurm":
        yield ("policy", "reboot"), f"scheduler: {config.scheduler.kind} reboots no node; wants off or command"
    if policy.reboot == "command" and policy.reboot_command not in policy.commands:
        yield ("policy", "reboot"), "command: wants reboot_command to name one of policy.commands"
    for number, words in unresolved(policy.rules, policy.commands, config.checks):
        yield ("policy", "rules", str(number)), words


def flatten(config: Any, at: Key = (), hook_only: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every setting; with `hook_only` those that hooks read."""
    for field in dataclasses.fields(config):
        here = (*at, field.name)
        value = getattr(config, field.name)
        if "section" in field.metadata:
            yield from flatten(value, here, hook_only)
        elif field.metadata["hook"] or not hook_only:
            yield ".".join(here), value
