"""Running a command: user errors become one line, everything else keeps its traceback."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence

import torch.distributed as dist

from rednet.errors import UserError

USER_ERROR = 2


def run(
    main: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None = None
) -> int:
    """Runs a command. A user error becomes one line on stderr.

    Every other exception passes through with its traceback.

    Args:
        main: The command, called with the arguments.
        arguments: Its arguments; by default those of the process.

    Returns:
        The exit status: 0, or 2 after a user error.
    """
    try:
        main(arguments)
    except UserError as error:
        print(f"error: {_message(error)}", file=sys.stderr)
        return USER_ERROR
    if dist.is_available() and dist.is_initialized():
        _leave_process_group()
    return 0


def _leave_process_group() -> None:
    """Ends the threads of the process group.

    A thread that releases a tensor while the interpreter shuts down would abort the process. The
    threads live as long as anything refers to the group. A runner does until it is collected,
    because its parts refer to each other.
    """
    gc.collect()
    dist.destroy_process_group()


def _message(error: UserError) -> str:
    """The message. From a data loader's worker, it is preceded by the worker's traceback."""
    return str(error).rpartition(f"{type(error).__qualname__}: ")[2].strip()
