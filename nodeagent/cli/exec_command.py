"""`gpu-nodeagent exec -n N -- COMMAND`: lock, run, release; the embedded form for nodes without a scheduler.

The lock belongs to the process that becomes COMMAND, so it lives exactly as long as that process, whatever happens to
the one that waits for it; a lock whose process is gone is freed by the next `exec` or by the agent.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from typing import NoReturn

from nodeagent.agent.publish import verdict_file
from nodeagent.cli.context import loaded, open_state
from nodeagent.cli.main import Exit, complain
from nodeagent.config.compile import hook_settings
from nodeagent.config.model import Config
from nodeagent.config.values import duration
from nodeagent.drivers.site_set import bind_list
from nodeagent.errors import BadRequest, CommandFailed, NodeAgentError, NodeUnfit
from nodeagent.health.units import mig_instances
from nodeagent.hook import emit, epilog, isolation, prolog
from nodeagent.hook.node import Node, last_word
from nodeagent.lock.model import is_pattern
from nodeagent.lock.reconcile import gone
from nodeagent.state.boot import boot_id, start_time
from nodeagent.state.hook_conf import HookConf
from nodeagent.state.verdict_file import FAILED

_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("-n", type=int, default=1, dest="count", metavar="N", help="how many GPUs (default 1)")
    parser.add_argument("--model", default="", metavar="PATTERN", help="of a model only, e.g. A100 or '1g.10gb'")
    parser.add_argument("--wait", default="0", metavar="TIME", help="wait for free GPUs, e.g. 30s (default: do not)")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run")


def run(options: argparse.Namespace) -> int:
    """Return the command's own status, 128+N if signal N ended it; our own errors as the contract has them."""
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    if not words:
        raise BadRequest("command", "", "given; write: gpu-nodeagent exec -n N -- COMMAND")
    if options.count < 1:
        raise BadRequest("-n", str(options.count), "1 or more")
    try:
        wait = duration(options.wait)
    except ValueError as error:
        raise BadRequest("--wait", options.wait, f"a time: {error}") from error
    if options.model and not is_pattern(options.model):
        raise BadRequest("--model", options.model, "a word of the model's name, with '*' for anything")
    node = _node(loaded(options).config)
    # Blocked until both sides have their handlers: a signal in between would leave the command without its parent.
    signal.pthread_sigmask(signal.SIG_BLOCK, (*_FORWARDED, signal.SIGINT))
    child = os.fork()
    if child == 0:
        _become(node, options.count, options.model, wait, words)
    return _attend(node, child)


def _node(config: Config) -> Node:
    """Return the node with the agent's last word, or with one look of our own where no agent runs."""
    conf = HookConf(hook_settings(config))
    state = open_state(config, create=True)
    boot = boot_id(config.roots.proc)
    verdict, fresh, _ = last_word(state, boot, config.hooks.verdict_max_age)
    if verdict is None or not fresh:
        from nodeagent.cli.looker import look

        seen, facts = look(config)
        try:
            binds = bind_list(config.drivers, facts.driver)
        except CommandFailed as error:
            complain(f"no driver set: {error}")
            binds = ""
        instances = mig_instances(facts.gpus, {})
        verdict = verdict_file(seen, facts, instances, binds=binds, sharing=config.sharing)
    if verdict.node_state == FAILED:
        raise NodeUnfit(verdict.node_why)
    node = Node(state, boot, conf, verdict, True)
    if gone(node.store.owners(), boot, start_time):
        with node.store.exclusive():
            over = gone(node.store.owners(), boot, start_time)
            node.store.release(lambda owner: owner.grant in over)
    return node


def _become(node: Node, count: int, model: str, wait: float, words: Sequence[str]) -> NoReturn:
    """Lock the GPUs as this process, then become the command."""
    status = int(Exit.SOFTWARE)
    for number in (*_FORWARDED, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores the last two, which a command does not expect
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        assert node.verdict is not None and node.conf is not None  # noqa: S101, PT018  _node gave both
        job = str(os.getpid())
        owner = node.owner("local", job, node=node.conf.text("node_name"), user=_user(), uid=str(os.getuid()))
        units = prolog.take(node, node.verdict, owner, count, wait, model)
        constrained = isolation.begin(node, node.conf, owner, units, os.getpid)
        node.event("grant", owner, units=" ".join(owner.units))
        environment = dict(os.environ)
        environment.update(emit.gpu_environment(emit.visible_devices(node.conf, units, constrained)))
        environment.update(emit.share_environment(node.conf, units))
        environment.update(emit.bind_environment(emit.driver_binds(node.conf, node.verdict), os.environ))
        os.execvpe(words[0], list(words), environment)  # noqa: S606  the command is the caller's own
    except NodeAgentError as error:
        complain(str(error))
        status = error.exit_code
    except FileNotFoundError as error:
        complain(f"{words[0]}: {error.strerror}")
        status = _NOT_FOUND
    except OSError as error:
        complain(f"{error.filename or words[0]}: {error.strerror}")
        status = _NOT_EXECUTABLE if error.filename in (None, words[0]) else int(Exit.UNAVAILABLE)
    finally:
        os._exit(status)


def _attend(node: Node, child: int) -> int:
    """Pass signals on, wait for the command, release what it held."""
    for number in _FORWARDED:
        signal.signal(number, lambda received, _: _pass_on(child, received))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both; the command decides
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _, status = os.waitpid(child, 0)
    assert node.conf is not None  # noqa: S101  _node gave it
    try:
        epilog.end(node.state, "local", "", str(child))
    except (NodeAgentError, OSError) as error:  # the command's status is what counts; its lock is reconciled later
        complain(str(error))
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _pass_on(child: int, number: int) -> None:
    try:
        os.kill(child, number)
    except ProcessLookupError:
        pass


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
