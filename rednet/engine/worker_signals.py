"""Signals that reach the workers of a data loader."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from threading import Thread

from torch.utils.data import DataLoader

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class PatientWorker:
    """Lets a worker live on after SIGTERM and SIGINT from elsewhere than its loader's process.

    A terminal and a scheduler send their signals to all processes of a run. A worker that ended
    would leave the training without the batch that it needs to finish its iteration. A worker whose
    training has ended notices that and ends too.

    Args:
        init: What initializes a worker besides.
    """

    def __init__(self, init: Callable[[int], None] | None) -> None:
        self.init = init

    def __call__(self, worker: int) -> None:
        """Initializes a worker."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "sigwaitinfo"):  # neither macOS nor Windows tells who sent a signal
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            Thread(target=_end_if_parent_says_so, daemon=True).start()
        if self.init is not None:
            self.init(worker)


def _end_if_parent_says_so() -> None:
    parent = os.getppid()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def leave_signals_to_main_process(loader: DataLoader) -> None:
    """Makes the workers that a loader starts from now on :class:`PatientWorker`."""
    loader.worker_init_fn = PatientWorker(loader.worker_init_fn)
