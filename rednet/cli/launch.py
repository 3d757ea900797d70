"""``torchrun`` whose own reports are one line, for ``tools/dist_train.sh`` and ``dist_test.sh``."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

USER_ERROR = 2


def main(arguments: Sequence[str]) -> int:
    """Starts the processes as ``torchrun`` does.

    A process that fails has printed what happened, so only one that was killed is reported.

    Args:
        arguments: Those of ``torchrun``.

    Returns:
        The exit status: that of the process that failed first, 128 and the signal's number if it
        was killed, or if this process was told to stop, or 0.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        torchrun.main(list(arguments))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        print(f"error: process {rank} was killed by {name}", file=sys.stderr)
        return 128 - failure.exitcode
    except SignalException as error:  # the processes have got it too, and have ended
        return 128 + int(error.sigval)
    except (OSError, RuntimeError) as error:  # of its store
        if "address already in use" not in str(error).lower() and "EADDRINUSE" not in str(error):
            raise
        print(f"error: {_port(arguments)} is in use: set PORT to a free one", file=sys.stderr)
        return USER_ERROR
    return 0


def _port(arguments: Sequence[str]) -> str:
    values = (each for each in arguments if each.startswith("--master_port="))
    return f"port {next(values, '29500').rpartition('=')[2]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
