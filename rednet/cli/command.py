"""Runs a command line: errors of the user's become one line, everything else a traceback."""

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
    """Runs a command line; an error of the user's becomes one line on stderr.

    Every other exception passes through with its traceback.

    Args:
        main: The command line; it takes the arguments.
        arguments: Its arguments, those of the process by default.

    Returns:
        The exit status: 0, or 2 after an error of the user's.
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

    One that lets go of a tensor while the interpreter is shutting down would abort the process.
    They live as long as anything refers to the group, and a runner, whose parts refer to each
    other, does until it is collected.
    """
    gc.collect()
    dist.destroy_process_group()


def _message(error: UserError) -> str:
    """The message proper; out of a data loader's worker, the worker's traceback precedes it."""
    return str(error).rpartition(f"{type(error).__qualname__}: ")[2].strip()
