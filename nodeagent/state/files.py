"""Files shared by hooks, agent and command: believed only when trusted, replaced only as a whole. Lean."""

import errno
import os
import time

from nodeagent.errors import UnknownFormat, UntrustedFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

FORMAT_LINE = "format=1"
MAX_BYTES = 1 << 20
MAX_VALUE = 1024
_S_IFMT, _S_IFREG, _S_IFDIR, _S_IFLNK, _S_ISVTX = 0o170000, 0o100000, 0o040000, 0o120000, 0o1000
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def _judge(path: str, status: os.stat_result, extra_uids: "tuple[int, ...]", kind: int) -> None:
    if status.st_mode & _S_IFMT != kind:
        raise UntrustedFile(path, "it is not a directory" if kind == _S_IFDIR else "it is not a regular file")
    if status.st_uid != 0 and status.st_uid != os.geteuid() and status.st_uid not in extra_uids:
        raise UntrustedFile(path, f"it belongs to uid {status.st_uid}")
    # In a sticky directory of a trusted owner nobody else can remove or rename what is ours.
    if status.st_mode & 0o022 and not (kind == _S_IFDIR and status.st_mode & _S_ISVTX):
        raise UntrustedFile(path, f"others can write it (mode {status.st_mode & 0o7777:04o})")


def judge_own(path: str, status: os.stat_result, extra_uids: "tuple[int, ...]" = ()) -> None:
    """Refuse to write into an open file that is not as we make them; one of two names is another file as well.

    Raises:
        UntrustedFile: FIFO, device, foreign owner, writable by others, hard link.

    """
    _judge(path, status, extra_uids, _S_IFREG)
    if status.st_nlink > 1:
        raise UntrustedFile(path, f"it has {status.st_nlink} names")


def check_parents(path: str, extra_uids: "tuple[int, ...]" = (), depth: int = 0) -> None:
    """Refuse `path` unless each directory above it is root's (or the caller's) and writable by nobody else.

    Symbolic links of a trusted owner are followed and their targets judged alike, as /var/run -> /run needs it.

    Raises:
        UntrustedFile: a component is not to be trusted.
        OSError: a component is missing.

    """
    if not path.startswith("/") or depth > 8:  # noqa: PLR2004  a chain of links longer than this is no accident
        raise UntrustedFile(path, "it is not an absolute path" if depth <= 8 else "too many links")  # noqa: PLR2004
    prefix = ""
    status = os.lstat("/")
    _judge("/", status, extra_uids, _S_IFDIR)
    for part in path.split("/")[:-1]:
        if part in ("", "."):
            continue
        if part == "..":
            raise UntrustedFile(path, "it contains '..'")
        prefix = f"{prefix}/{part}"
        status = os.lstat(prefix)
        if status.st_mode & _S_IFMT == _S_IFLNK:
            if status.st_uid not in (0, os.geteuid()):
                raise UntrustedFile(prefix, f"the link belongs to uid {status.st_uid}")
            target = os.readlink(prefix)
            if not target.startswith("/"):
                target = f"{prefix.rpartition('/')[0]}/{target}"
            check_parents(os.path.normpath(target) + "/x", extra_uids, depth + 1)
        else:
            _judge(prefix, status, extra_uids, _S_IFDIR)


def _slurp(fd: int, path: str, limit: int, size: int) -> bytes:
    """Read all of a file whose size was `size` a moment ago: with one call, if it still is."""
    chunks = []
    room = limit + 1
    while room > 0:
        asked = min(room, size + 1)
        chunk = os.read(fd, asked)
        chunks.append(chunk)
        room -= len(chunk)
        if len(chunk) < asked:
            break
    if room <= 0:
        raise UntrustedFile(path, f"it is larger than {limit} bytes")
    return b"".join(chunks)


def read_trusted_bytes(
    path: str, extra_uids: "tuple[int, ...]" = (), limit: int = MAX_BYTES, dir_fd: "int | None" = None
) -> "tuple[bytes, os.stat_result]":
    """Read a file that root may believe, with its status as opened.

    With `dir_fd` the path is a plain name in that directory, whose own trust was established when it was opened;
    otherwise each parent is judged as well.

    Raises:
        UntrustedFile: link, FIFO, foreign owner, writable by others, too large.
        OSError: missing, unreadable.

    """
    if dir_fd is None:
        check_parents(path, extra_uids)
    try:
        fd = os.open(path, _READ, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UntrustedFile(path, "it is a symbolic link") from error
        if error.errno in (errno.ENXIO, errno.ENODEV):  # a socket, or a device without a driver
            raise UntrustedFile(path, "it is not a regular file") from error
        raise
    try:
        status = os.fstat(fd)
        _judge(path, status, extra_uids, _S_IFREG)
        return _slurp(fd, path, limit, status.st_size), status
    finally:
        os.close(fd)


class Directory:
    """A directory whose whole path is trusted, held open: what is reached through it cannot be swapped from above."""

    __slots__ = ("fd", "path")
    fd: int

    def __init__(self, path: str, create: bool = False, parent: "Directory | None" = None, name: str = "") -> None:
        """Open `path` (with `create`, make it 0755 if it is missing), or `name` in a `parent` that is open already.

        Raises:
            UntrustedFile: it, or a directory above it, could have been prepared by somebody else.
            OSError: it is missing or cannot be made.

        """
        if parent is None:
            check_parents(path)
        what = path if parent is None else name
        where = None if parent is None else parent.fd
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self.path = path
        try:
            self.fd = os.open(what, flags, dir_fd=where)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise UntrustedFile(path, "it is not a directory") from error
            if error.errno != errno.ENOENT or not create:
                raise
            make_directory(what, where)
            self.fd = os.open(what, flags, dir_fd=where)
        try:
            _judge(path, os.fstat(self.fd), (), _S_IFDIR)
        except UntrustedFile:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Let the directory go."""
        os.close(self.fd)

    def sub(self, name: str, create: bool = False) -> "Directory":
        """Open a directory in this one."""
        return Directory(f"{self.path}/{name}", create, self, name)

    def read(self, name: str) -> str:
        """Return a trusted file's text, or raise as `read_trusted_bytes`."""
        return read_trusted_bytes(name, dir_fd=self.fd)[0].decode("utf-8", "surrogateescape")

    def names(self) -> "list[str]":
        """Return the names in the directory, sorted."""
        return sorted(os.listdir(self.fd))

    def replace(self, name: str, text: str, durable: bool = False, mode: int = 0o644) -> None:
        """Put `text` there as a whole: a reader sees the old file or the new one. `durable` survives a power cut."""
        temporary = f".{name}.{os.getpid()}"
        write_new(temporary, text, self.fd, durable, mode)
        try:
            os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except OSError:
            os.unlink(temporary, dir_fd=self.fd)
            raise
        if durable:
            os.fsync(self.fd)

    def forget_temporaries(self, seconds: float) -> None:
        """Remove what a `replace` that was killed left behind so long ago (names that begin with a dot)."""
        for name in self.names():
            if name.startswith(".") and self.age(name) > seconds:
                self.remove(name)

    def age(self, name: str) -> float:
        """Return for how many seconds what has this name has not changed, be it a link or whatever."""
        return time.time() - os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mtime

    def remove(self, name: str) -> bool:
        """Remove a file; False if there was none."""
        try:
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            return False
        return True


def make_directory(path: str, dir_fd: "int | None" = None) -> None:
    """Make a directory 0755 whatever the umask; one that is there already is fine."""
    try:
        os.mkdir(path, 0o755, dir_fd=dir_fd)
    except FileExistsError:
        return
    os.chmod(path, 0o755, dir_fd=dir_fd)  # noqa: S103  world-readable: users' commands show the state


def write_new(name: str, text: str, dir_fd: int, durable: bool = False, mode: int = 0o644) -> None:
    """Write a complete new file, or leave none. What is left of a crash under that name, or else is there, is removed.

    Raises:
        OSError: ENOSPC, EIO, …; nothing is left behind.

    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, mode, dir_fd=dir_fd)
    except FileExistsError:
        os.unlink(name, dir_fd=dir_fd)
        fd = os.open(name, flags, mode, dir_fd=dir_fd)
    try:
        try:
            os.fchmod(fd, mode)
            data = memoryview(text.encode("utf-8", "surrogateescape"))
            while data:
                data = data[os.write(fd, data) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
    except OSError:
        os.unlink(name, dir_fd=dir_fd)
        raise


def short(words: str) -> str:
    """Return at most 1024 characters of a text that is for people, whoever wrote it."""
    return words[:MAX_VALUE]


def escape(value: str) -> str:
    """Make any text fit one tab-separated field of one line: control characters and % as %XX."""
    if value.isprintable() and "%" not in value:
        return value
    return "".join(
        c if (c.isprintable() or "\udc80" <= c <= "\udcff") and c != "%" else f"%{ord(c):02X}" if ord(c) < 256 else "?"  # noqa: PLR2004
        for c in value
    )


def unescape(value: str) -> str:
    """Undo `escape`."""
    if "%" not in value:
        return value
    parts = value.split("%")
    out = [parts[0]]
    for part in parts[1:]:
        try:
            out.append(chr(int(part[:2], 16)) + part[2:])
        except ValueError:
            out.append("%" + part)
    return "".join(out)


def encode_pairs(pairs: "Iterable[tuple[str, str]]") -> str:
    """Return the text of a state file: `format=1`, then `key=value` lines."""
    return "\n".join([FORMAT_LINE, *(f"{key}={escape(value)}" for key, value in pairs)]) + "\n"


def decode_lines(what: str, text: str) -> "list[str]":
    """Return the lines after `format=1`.

    Raises:
        UnknownFormat: the first line says something else, or the last line is cut short.

    """
    first, _, rest = text.partition("\n")
    if first != FORMAT_LINE:
        raise UnknownFormat(what, first)
    if rest and not rest.endswith("\n"):
        raise UnknownFormat(what, "a file cut short")
    return rest.split("\n")[:-1]


def decode_pairs(what: str, text: str) -> "dict[str, str]":
    """Return the `key=value` lines of a state file; unknown keys are kept, as a later minor release may add some."""
    pairs = {}
    for line in decode_lines(what, text):
        key, equals, value = line.partition("=")
        if equals:
            pairs[key] = unescape(value)
    return pairs
