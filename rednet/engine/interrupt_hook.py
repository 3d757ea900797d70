"""A checkpoint when a training is told to stop."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from mmengine.dist import all_reduce, barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from rednet.checkpoint.writing import INTERRUPTED, LAST_CHECKPOINT, write_file
from rednet.engine.safe_checkpoint_hook import LOCAL_BACKEND
from rednet.registry import HOOKS

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@HOOKS.register_module()
class InterruptHook(Hook):
    """Saves a checkpoint and exits after SIGTERM (Slurm, a spot machine) or SIGINT (Ctrl-C).

    The iteration, or the validation, that runs is finished, and with gradient accumulation the
    update. ``interrupted.pth`` in the work directory continues from there, within an epoch with
    ``ResumableEpochTrainLoop``; ``SafeCheckpointHook`` removes it after its next checkpoint. The
    exit code is 143 or 130. A second signal ends the process at once. With several processes, all
    stop at the same iteration if one of them gets a signal.

    Examples:
        >>> custom_hooks = [dict(type='InterruptHook')]
    """

    priority = "LOWEST"

    def __init__(self) -> None:
        self._received = 0
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Begins to handle the signals."""
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def after_train(self, runner: Runner) -> None:
        """Gives the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Stops where a signal was received."""
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, OptimWrapper) or wrapper.should_update():
            self._stop_if_received(runner, runner.iter + 1)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Stops where a signal was received during a validation."""
        if self._previous:
            self._stop_if_received(runner, runner.iter)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker of the data loader, forked with this handler
            os._exit(128 + number)
        self._received = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def _stop_if_received(self, runner: Runner, iteration: int) -> None:
        received = torch.tensor([self._received])
        all_reduce(received, op="max")
        if received.item():
            self._stop(runner, iteration, signal.Signals(int(received.item())))

    def _stop(self, runner: Runner, iteration: int, received: signal.Signals) -> NoReturn:
        meta = dict(epoch=runner.epoch, iter=iteration)
        runner.save_checkpoint(
            runner.work_dir, INTERRUPTED, meta=meta, backend_args=dict(backend=LOCAL_BACKEND)
        )
        if is_main_process():
            write_file(Path(runner.work_dir, LAST_CHECKPOINT), os.fsencode(INTERRUPTED))
            runner.logger.warning(
                f"{received.name}: stopped after iteration {iteration}; "
                f"{Path(runner.work_dir, INTERRUPTED)} is complete, --resume continues from it"
            )
        barrier()
        sys.exit(128 + received)
