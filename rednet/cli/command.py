"""Running a command: user errors become one line, everything else keeps its traceback."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import partial

import torch.distributed as dist

from rednet.cli.arguments import TRACEBACK
from rednet.cli.failures import LostProcessError
from rednet.cli.processes import report_once, wait_for_launcher
from rednet.errors import UserError

USER_ERROR = 2


def run(
    main: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None = None
) -> int:
    """Runs a command. A user error becomes one line on stderr.

    The line names a file with the traceback if the error was an exception of another library; with
    ``--traceback`` the traceback is printed instead. Of several processes, one writes the line.
    Every other exception passes through with its traceback.

    Args:
        main: The command, called with the arguments.
        arguments: Its arguments; by default those of the process.

    Returns:
        The exit status: 0, or 2 after a user error.
    """
    status = 0
    try:
        main(arguments)
    except UserError as error:
        status = USER_ERROR
        if isinstance(error, LostProcessError):
            wait_for_launcher()
        with_traceback = TRACEBACK in (sys.argv[1:] if arguments is None else arguments)
        report_once(partial(_tell, error, with_traceback))
        if isinstance(error, LostProcessError):  # leaving waits for the lost process
            return status
    if dist.is_available() and dist.is_initialized():
        _leave_process_group(status)
    return status


def _tell(error: UserError, with_traceback: bool) -> None:
    line = f"error: {' '.join(_message(error).split())}"
    if with_traceback:
        traceback.print_exception(error)
    elif error.__cause__ is not None and not isinstance(error.__cause__, UserError):
        line += _written(error)
    print(line, file=sys.stderr, flush=True)


def _written(error: UserError) -> str:
    """Writes the traceback; returns the end of the line, which names the file."""
    try:
        handle, path = tempfile.mkstemp(prefix="rednet-traceback-", suffix=".txt")
        with os.fdopen(handle, "w") as file:
            traceback.print_exception(error, file=file)
    except OSError:  # such as a full disk, which may be what the line is about
        return f" ({TRACEBACK} prints the traceback)"
    return f" (traceback: {path})"


def _leave_process_group(status: int) -> None:
    """Ends the threads of the process group.

    A thread of Gloo that releases a tensor while the interpreter shuts down would abort the
    process. The threads live as long as anything refers to the group. A runner does until it is
    collected, because its parts refer to each other. After an error, NCCL might wait for processes
    that are still running, and its threads hold no tensors.
    """
    gc.collect()
    if status == 0 or dist.get_backend() == dist.Backend.GLOO:
        dist.destroy_process_group()


def _message(error: UserError) -> str:
    """The message. From a data loader's worker, it is preceded by the worker's traceback."""
    return str(error).rpartition(f"{type(error).__qualname__}: ")[2].strip()
