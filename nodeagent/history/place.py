"""Where a database may be: in a trusted directory, on a file system of this node's own."""

from __future__ import annotations

import os

from nodeagent.errors import NodeAgentError, UntrustedFile
from nodeagent.state.files import Directory

FILE = "history.db"
BESIDE = ("-wal", "-shm")
"""What SQLite keeps beside it: the log of what is not yet in the file, and an index of that."""
# Locks and shared memory of these are not what SQLite needs, and a dead server must not reach into this node.
NETWORK = {
    *(
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "ncpfs",
        "afs",
        "9p",
        "ceph",
        "lustre",
        "gpfs",
        "beegfs",
        "gfs2",
        "ocfs2",
    ),
    *("glusterfs", "orangefs", "pvfs2", "panfs", "coda", "acfs", "vboxsf"),
}
_LOCAL_FUSE = "fuse.fuse-overlayfs"


class OnNetwork(NodeAgentError):
    """The directory is on a network file system."""

    exit_code = 78

    def __init__(self, path: str, kind: str) -> None:
        self.path = path
        self.kind = kind
        super().__init__(path, kind)

    def __str__(self) -> str:
        return f"{self.path}: no history on a network file system ({self.kind}); set data_dir to a local one"


def filesystem(fd: int, proc: str = "/proc/self") -> str:
    """Return the type of the file system that an open file is on, empty where the kernel does not say."""
    try:
        with open(f"{proc}/fdinfo/{fd}", encoding="ascii") as file:
            mount = next((line.split()[1] for line in file if line.startswith("mnt_id:")), "")
        with open(f"{proc}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                if mount and line.startswith(f"{mount} "):
                    return line.partition(" - ")[2].split()[0]
    except (OSError, IndexError):
        pass
    return ""


def is_network(kind: str) -> bool:
    """Say whether a file system of that type is somebody else's."""
    return kind in NETWORK or (kind.startswith("fuse.") and kind != _LOCAL_FUSE)


def local_directory(path: str) -> Directory:
    """Open the directory in which history is kept.

    Raises:
        OnNetwork, UntrustedFile, OSError: no database is to be there.

    """
    directory = Directory(path)
    kind = filesystem(directory.fd)
    if is_network(kind):
        directory.close()
        raise OnNetwork(path, kind)
    return directory


def touch(directory: Directory) -> os.stat_result:
    """Make the file, for root's eyes only, if there is none; what SQLite adds beside it gets the same mode.

    Whoever may open the file could also lock it for ever, which is why it is not for everybody. Not to be called while
    this process has the database open: the kernel drops all locks on a file when any descriptor of it is closed.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(FILE, flags, 0o600, dir_fd=directory.fd)
    except OSError as error:
        if os.path.islink(f"{directory.path}/{FILE}"):
            raise UntrustedFile(f"{directory.path}/{FILE}", "it is a symbolic link") from error
        raise
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)
