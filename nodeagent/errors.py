"""Every error of ours: each carries data; `render` makes the one line for a person. Lean: hooks import it."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class NodeAgentError(Exception):
    """Base of all errors that are expected; `str()` is one line: what, where, what to do."""

    exit_code = 70


class UntrustedFile(NodeAgentError):
    """Root must not believe this file: somebody else could have written it, or it is not a regular file."""

    exit_code = 77

    def __init__(self, path: str, why: str) -> None:
        self.path = path
        self.why = why
        super().__init__(path, why)

    def __str__(self) -> str:
        return f"{self.path}: not trusted: {self.why}; make it a plain file of root's that nobody else can write"


class UnknownFormat(NodeAgentError):
    """A state file whose first line is not `format=1`: made by another release, or damaged."""

    def __init__(self, what: str, found: str) -> None:
        self.what = what
        self.found = found
        super().__init__(what, found)

    def __str__(self) -> str:
        return f"{self.what}: unknown format {self.found[:40]!r}; is another release of gpu-nodeagent running here?"


class LockBusy(NodeAgentError):
    """The state directory's flock could not be had in time."""

    exit_code = 69

    def __init__(self, path: str, seconds: float) -> None:
        self.path = path
        self.seconds = seconds
        super().__init__(path, seconds)

    def __str__(self) -> str:
        return f"{self.path}: busy for {self.seconds:g} s; another hook or the agent holds it (see `fuser {self.path}`)"


class UnitHeld(NodeAgentError):
    """A unit that was to be claimed has an owner already."""

    exit_code = 69

    def __init__(self, unit: str, holder: str) -> None:
        self.unit = unit
        self.holder = holder
        super().__init__(unit, holder)

    def __str__(self) -> str:
        return f"{self.unit} is held by {self.holder}"


class UnitsUnavailable(NodeAgentError):
    """Fewer units can be granted than were asked for."""

    exit_code = 69

    def __init__(self, asked: int, total: int, healthy: int, free: int, model: str = "") -> None:
        self.asked = asked
        self.total = total
        self.healthy = healthy
        self.free = free
        self.model = model
        super().__init__(asked, total, healthy, free, model)

    def __str__(self) -> str:
        model = f" of model {self.model}" if self.model else ""
        return (
            f"{self.asked} GPUs{model} asked for; this node has {self.total}, of which {self.healthy} are in service"
            f" and {self.free} of those are free"
        )


class StateGone(NodeAgentError):
    """The state directory was removed while it was in use: what is written into it now, nobody reads."""

    exit_code = 69

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(path)

    def __str__(self) -> str:
        return f"{self.path}: was removed while the agent ran; it has to start again"


class NodeUnfit(NodeAgentError):
    """The node as a whole cannot run GPU jobs."""

    exit_code = 69

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)

    def __str__(self) -> str:
        return f"no GPU of this node can be used: {self.why}"


class BadRequest(NodeAgentError):
    """What a job asked for makes no sense; the job is at fault, not the node."""

    exit_code = 64

    def __init__(self, what: str, value: str, expected: str) -> None:
        self.what = what
        self.value = value
        self.expected = expected
        super().__init__(what, value, expected)

    def __str__(self) -> str:
        return f"{self.what}: {self.value[:80]!r} is not {self.expected}"


class ConfigError(NodeAgentError):
    """One or more mistakes in the configuration; each names file, line and key."""

    exit_code = 78

    def __init__(self, problems: "Sequence[str]") -> None:
        self.problems = tuple(problems)
        super().__init__(*self.problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


class NoHookConf(NodeAgentError):
    """There is no compiled configuration for hooks."""

    exit_code = 78

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(path)

    def __str__(self) -> str:
        return f"{self.path}: missing; start the agent or run `gpu-nodeagent config compile`"


class NoVerdict(NodeAgentError):
    """The agent has left no word about this node's GPUs."""

    exit_code = 69

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(path)

    def __str__(self) -> str:
        return f"{self.path}: missing; has gpu-nodeagent.service run since boot?"


class CommandFailed(NodeAgentError):
    """A process that we started failed, or did not end in time (`status` None). `output`: what it complained about."""

    exit_code = 69

    def __init__(self, argv: "Sequence[str]", status: "int | None", output: str) -> None:
        self.argv = tuple(argv)
        self.status = status
        self.output = output
        super().__init__(self.argv, status, output)

    def __str__(self) -> str:
        how = "timed out" if self.status is None else f"exit {self.status}"
        said = " ".join(self.output.split())[:200]
        return f"{' '.join(self.argv[:4])}: {how}" + (f": {said}" if said else "")


class NodeTaken(NodeAgentError):
    """Somebody else has the node, with this reason (empty: without one): it is not ours to drain, or to resume."""

    exit_code = 69

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return f"the node is out of service already: {self.reason or 'by somebody else'}"


class AmbiguousAnswer(NodeAgentError):
    """A command's answer holds text of a user's that looks like the answer itself; nothing in it is believed."""

    exit_code = 69

    def __init__(self, command: str) -> None:
        self.command = command
        super().__init__(command)

    def __str__(self) -> str:
        return f"{self.command}: can be read in two ways; does the job's name or comment hold whole lines of it?"


class BadRecording(NodeAgentError):
    """A file that was to be replayed is no recording, or a line of it is not."""

    exit_code = 64

    def __init__(self, name: str, line: int, why: str) -> None:
        self.name = name
        self.line = line
        self.why = why
        super().__init__(name, line, why)

    def __str__(self) -> str:
        return f"{self.name}:{self.line}: cannot be replayed: {' '.join(self.why.split())[:200]}"


class AgentSilent(NodeAgentError):
    """The agent could not be told something, or did not answer."""

    exit_code = 69

    def __init__(self, state_dir: str, why: str) -> None:
        self.state_dir = state_dir
        self.why = why
        super().__init__(state_dir, why)

    def __str__(self) -> str:
        return f"{self.state_dir}: {self.why}; see `gpu-nodeagent status`"


class UnitUnknown(NodeAgentError):
    """No GPU of this node answers to that name."""

    exit_code = 64

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(name)

    def __str__(self) -> str:
        return f"{self.name}: no such GPU on this node; `gpu-nodeagent status` lists UUID, index and bus id"


class NotIsolated(NodeAgentError):
    """A job could not be kept off GPUs that are not its own, though it ought to be."""

    exit_code = 69

    def __init__(self, method: str, why: str) -> None:
        self.method = method
        self.why = why
        super().__init__(method, why)

    def __str__(self) -> str:
        return f"isolation{f' by {self.method}' if self.method else ''}: {self.why}; see `gpu-nodeagent doctor`"


class AlreadyRunning(NodeAgentError):
    """Another agent serves this state directory."""

    exit_code = 69

    def __init__(self, state_dir: str) -> None:
        self.state_dir = state_dir
        super().__init__(state_dir)

    def __str__(self) -> str:
        return f"{self.state_dir}: another agent is running on it; stop that one or set another state_dir"
