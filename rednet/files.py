"""Writing files so that an interruption leaves the earlier file or the whole new one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from rednet.errors import UserError

_PART = ".rednet-part"


def write_file(path: str | Path, content: bytes) -> None:
    """Writes a file aside in the same directory, then renames it to its name.

    Args:
        path: The file. Its directory is created if it is missing.
        content: What the file is to hold.

    Raises:
        UserError: If it cannot be written, as on a full disk. An earlier file of that name is
            intact then, and no part of the new one is left.
    """
    target = Path(path)
    with failing_as_user_error(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_aside_and_rename(target, content)


def remove_parts(folder: str | Path) -> None:
    """Removes what :func:`write_file` left in a directory where its process was killed.

    A file that another process is writing is locked and stays, and so does one that cannot be
    removed.

    Args:
        folder: The directory.
    """
    for part in Path(folder).glob(f".*{_PART}"):
        with suppress(OSError), _locked(part, waits=False):
            part.unlink()


@contextmanager
def failing_as_user_error(path: str | Path) -> Iterator[None]:
    """Turns an error of the disk, while a file is written, into one that names the file.

    Raises:
        UserError: If there is one.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def _write_aside_and_rename(target: Path, content: bytes) -> None:
    aside, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=_PART)
    try:
        with ExitStack() as stack:
            with suppress(OSError):  # not every file system has locks
                stack.enter_context(_locked(Path(name), waits=True))
            with open(aside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())  # mkstemp's files are private
            os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)


@contextmanager
def _locked(path: Path, *, waits: bool) -> Iterator[None]:
    """Locks a file, on systems where an open file can be locked, renamed and removed.

    Raises:
        OSError: If there is no such lock, or without ``waits`` another process has it.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    with open(path, "rb+") as file:  # NFS locks only what is open for writing
        fcntl.flock(file, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync_directory(folder: Path) -> None:
    """Makes a rename survive a power failure, on systems that open directories."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
