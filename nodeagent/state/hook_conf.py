"""The configuration as hooks read it: `state_dir/hook.conf`, compiled from validated YAML. Lean."""

import os

from nodeagent.errors import NoHookConf, UnknownFormat
from nodeagent.state.files import Directory, decode_lines, encode_pairs, escape, unescape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

HOOK_CONF = "hook.conf"
DEFAULT_CONFIG = "/etc/gpu-nodeagent/config.yaml"
DEFAULT_STATE_DIR = "/run/gpu-nodeagent"
TYPED_GRES = "scheduler.slurm.typed_gres"
"""Learned, not set: `yes` where slurmd names several types of the GRES, so that its prologs see a part of a job's."""


class Source:
    """A YAML file that went into hook.conf: its mtime (ns), size and SHA-256 when it was compiled."""

    __slots__ = ("mtime_ns", "path", "sha256", "size")

    def __init__(self, path: str, mtime_ns: int, size: int, sha256: str) -> None:
        self.path = path
        self.mtime_ns = mtime_ns
        self.size = size
        self.sha256 = sha256

    def changed(self) -> bool:
        """Say whether the file is another one now (by mtime and size: a hook does not read it again)."""
        try:
            status = os.stat(self.path)
        except OSError:
            return True
        return (status.st_mtime_ns, status.st_size) != (self.mtime_ns, self.size)


class Gres:
    """What Slurm means by one GRES index: a GPU by its device `minor`, or an instance of it by its `caps` too.

    `caps` are the minors of the instance's files /dev/nvidia-caps/nvidia-capN; `slots` is how many jobs may have the
    GPU at a time, by its shards or its MPS.
    """

    __slots__ = ("caps", "minor", "slots")

    def __init__(self, minor: int, caps: "tuple[int, ...]" = (), slots: int = 1) -> None:
        self.minor = minor
        self.caps = caps
        self.slots = slots


class HookConf:
    """Settings by their dotted names as texts, the sources, and what Slurm's GRES indices mean."""

    __slots__ = ("gres", "settings", "sources")

    def __init__(
        self,
        settings: "Mapping[str, str]",
        sources: "tuple[Source, ...]" = (),
        gres: "Mapping[int, Gres] | None" = None,
    ) -> None:
        self.settings = dict(settings)
        self.sources = sources
        self.gres = dict(gres or {})

    def text(self, key: str) -> str:
        """Return a setting.

        Raises:
            UnknownFormat: an older release compiled the file without it.

        """
        try:
            return self.settings[key]
        except KeyError as error:
            raise UnknownFormat(HOOK_CONF, f"no {key}") from error

    def number(self, key: str) -> float:
        """Return a setting that is a number (durations: seconds)."""
        try:
            return float(self.text(key))
        except ValueError as error:
            raise UnknownFormat(HOOK_CONF, f"{key}: {error}") from error

    def stale_sources(self) -> "list[str]":
        """Return the sources that have changed since they were compiled."""
        return [source.path for source in self.sources if source.changed()]

    def encode(self) -> str:
        """Return the file's text."""
        lines = ["\t".join(("source", str(s.mtime_ns), str(s.size), s.sha256, escape(s.path))) for s in self.sources]
        for index, means in sorted(self.gres.items()):
            lines.append(f"gres\t{index}\t{means.minor}\t{means.slots}\t{','.join(map(str, means.caps))}")
        return encode_pairs(sorted(self.settings.items())) + "".join(f"{line}\n" for line in lines)


def decode_hook_conf(what: str, text: str) -> HookConf:
    """Read hook.conf's text.

    Raises:
        UnknownFormat: another release wrote it, or it is damaged.

    """
    settings = {}
    sources = []
    gres = {}
    try:
        for line in decode_lines(what, text):
            word, *fields = line.split("\t")
            if word == "source":
                mtime_ns, size, sha256, path = fields
                sources.append(Source(unescape(path), int(mtime_ns), int(size), sha256))
            elif word == "gres":
                # An older release says only index and minor.
                index, minor, slots, caps = (fields + ["1", ""][max(0, len(fields) - 2) :])[:4]
                gres[int(index)] = Gres(int(minor), tuple(map(int, caps.split(","))) if caps else (), int(slots))
            else:
                key, _, value = line.partition("=")
                settings[key] = unescape(value)
    except ValueError as error:
        raise UnknownFormat(what, str(error)) from error
    return HookConf(settings, tuple(sources), gres)


def read_hook_conf(state: Directory) -> HookConf:
    """Return the compiled configuration.

    Raises:
        NoHookConf: there is none.
        UnknownFormat, UntrustedFile: it cannot be believed.

    """
    try:
        return decode_hook_conf(HOOK_CONF, state.read(HOOK_CONF))
    except FileNotFoundError as error:
        raise NoHookConf(f"{state.path}/{HOOK_CONF}") from error


def state_dir_of(config_text: str) -> str:
    """Return the `state_dir` that a configuration names, without a YAML parser.

    The loader accepts the key only in config.yaml itself, on a line of its own at the left margin, as a plain or
    quoted absolute path: so this reading and the loader's are always the same (config/load.py checks that).
    """
    for line in config_text.split("\n"):
        if line.startswith("state_dir:"):
            value = line[len("state_dir:") :].partition(" #")[0].strip()
            if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
                value = value[1:-1]
            return value
    return DEFAULT_STATE_DIR
