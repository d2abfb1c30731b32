"""What a hook finds on its node: state directory, compiled configuration, the agent's last word. Lean."""

import os
import time

from nodeagent.errors import BadRequest, NoHookConf, NoVerdict, UnknownFormat, UntrustedFile
from nodeagent.lock.record import Owner, new_grant
from nodeagent.lock.store import Store
from nodeagent.state import events
from nodeagent.state.boot import boot_id, start_time
from nodeagent.state.files import Directory, read_trusted_bytes
from nodeagent.state.hook_conf import DEFAULT_CONFIG, DEFAULT_STATE_DIR, HookConf, read_hook_conf, state_dir_of
from nodeagent.state.verdict_file import VerdictFile, read_verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def config_path(arguments: "Sequence[str]") -> str:
    """Return the configuration file that the hook's own command line names, else the installed one.

    Raises:
        BadRequest: the command line says anything else.

    """
    if not arguments:
        return DEFAULT_CONFIG
    if len(arguments) == 2 and arguments[0] == "--config" and arguments[1].startswith("/"):  # noqa: PLR2004
        return arguments[1]
    raise BadRequest("hook's command line", " ".join(arguments), "`--config /ABSOLUTE/PATH`")


def state_dir(config: str) -> str:
    """Return where the state of the node with this configuration file is.

    Raises:
        UntrustedFile: somebody else could have written the file.
        OSError: a file that was named cannot be read.

    """
    try:
        data, _ = read_trusted_bytes(config)
    except FileNotFoundError:
        if config == DEFAULT_CONFIG:
            return DEFAULT_STATE_DIR
        raise
    return state_dir_of(data.decode("utf-8", "replace"))


class Node:
    """The node as a hook sees it.

    `conf` is None when hooks were never configured, `verdict` is None when the agent never spoke since boot; `fresh`
    says whether its word is recent enough to rely on.
    """

    __slots__ = ("boot_id", "conf", "fresh", "state", "store", "verdict")

    def __init__(
        self,
        state: Directory,
        boot: str,
        conf: "HookConf | None" = None,
        verdict: "VerdictFile | None" = None,
        fresh: bool = False,
    ) -> None:
        self.state = state
        self.store = Store(state)
        self.boot_id = boot
        self.conf = conf
        self.verdict = verdict
        self.fresh = fresh

    def event(self, kind: str, owner: "Owner | None" = None, **fields: str) -> None:
        """Record what happened, with the job that it happened to."""
        if owner is not None:
            fields.update(scheduler=owner.scheduler, job=owner.job, task=owner.task, user=owner.user, uid=owner.uid)
        events.append(self.state, kind, **fields)

    def owner(self, scheduler: str, job: str, **fields: str) -> Owner:
        """Return a fresh owner for a grant that this process is about to make."""
        pid = os.getpid()
        return Owner(
            scheduler,
            job=job,
            grant=new_grant(),
            pid=str(pid),
            pid_start=start_time(pid),
            boot_id=self.boot_id,
            since=int(time.time()),
            **fields,  # type: ignore[arg-type]
        )


def open_state(arguments: "Sequence[str]") -> Directory:
    """Open the state directory that the hook's command line (without its name) leads to.

    Raises:
        BadRequest, UntrustedFile, OSError: there is none to work in.

    """
    return Directory(state_dir(config_path(arguments)), create=True)


def open_node(arguments: "Sequence[str]") -> Node:
    """Open the node that the hook's command line (without its name) belongs to; what is amiss becomes an event.

    Raises:
        BadRequest, UntrustedFile, OSError: there is not even a state directory to work in.

    """
    state = open_state(arguments)
    try:
        conf = read_hook_conf(state)
        boot, max_age = boot_id(conf.text("roots.proc")), conf.number("hooks.verdict_max_age")
    except (NoHookConf, UnknownFormat, UntrustedFile) as error:
        events.append(state, "no_hook_conf", why=str(error))
        return Node(state, boot_id("/proc"))
    changed = conf.stale_sources()
    if changed:
        events.append(state, "hook_conf_stale", why=f"{changed[0]} is newer than hook.conf; reload the agent")
    verdict, fresh, trouble = last_word(state, boot, max_age)
    if trouble:
        events.append(state, "no_verdict" if verdict is None else "verdict_stale", why=trouble)
    return Node(state, boot, conf, verdict, fresh)


def last_word(state: Directory, boot: str, max_age: float) -> "tuple[VerdictFile | None, bool, str]":
    """Return the agent's last word of this boot, whether it is at most `max_age` seconds old, and what is amiss."""
    try:
        verdict = read_verdict(state)
    except (NoVerdict, UnknownFormat, UntrustedFile) as error:
        return None, False, str(error)
    if verdict.boot_id != boot:
        return None, False, "the agent's last word is from an earlier boot"
    age = time.monotonic() - verdict.monotonic
    if age > max_age:
        return verdict, False, f"the agent's last word is {age:.0f} s old; is the service running?"
    return verdict, True, ""


def complain(words: str) -> None:
    """Tell the administrator where no event can be recorded: syslog (never the job's output, which is the user's)."""
    import syslog

    syslog.openlog("gpu-nodeagent-hook", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_ERR, " ".join(words.split())[:1000])


def tell_user(words: str) -> None:
    """Say something that is meant for the job's owner: standard error is the job's output in Grid Engine."""
    try:
        os.write(2, f"gpu-nodeagent: {' '.join(words.split())[:500]}\n".encode("utf-8", "replace"))
    except OSError:
        pass
