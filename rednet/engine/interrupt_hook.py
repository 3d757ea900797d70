"""A checkpoint when a training is told to stop."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from mmengine.dist import all_reduce, barrier, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from rednet.checkpoint.writing import INTERRUPTED, LAST_CHECKPOINT
from rednet.engine.safe_checkpoint_hook import LOCAL_BACKEND
from rednet.engine.worker_signals import SIGNALS, leave_signals_to_main_process
from rednet.files import write_file
from rednet.registry import HOOKS

# Seconds between two questions to the other processes.
_PERIOD = 1.0
# Seconds in which signals count as one.
_SAME_SIGNAL = 2.0


@HOOKS.register_module()
class InterruptHook(Hook):
    """Saves a checkpoint and exits after SIGTERM (Slurm, a spot machine) or SIGINT (Ctrl-C).

    The iteration, or the validation, that runs is finished, and with gradient accumulation the
    update. ``interrupted.pth`` in the work directory continues from there, within an epoch with
    ``ResumableEpochTrainLoop``; ``SafeCheckpointHook`` removes it after its next checkpoint. The
    exit code is 143 or 130. A signal more than two seconds after the first ends the process at
    once; earlier ones do not, because a launcher passes on what its processes have got as well.

    With several processes, all stop at the same iteration if one of them gets a signal. They ask
    each other about once a second, at iterations that all of them derive from the slowest one's
    pace: an exchange in every iteration would make GPUs wait for the CPU.

    Examples:
        >>> custom_hooks = [dict(type='InterruptHook')]
    """

    priority = "LOWEST"

    def __init__(self) -> None:
        self.received = 0
        self._received_at = 0.0
        self._previous: dict[int, Any] = {}
        self._asked_at, self._asked_in, self._ask_in = 0.0, 0, 0

    def before_train(self, runner: Runner) -> None:
        """Begins to handle the signals."""
        if runner.val_loop is not None:
            leave_signals_to_main_process(runner.val_loop.dataloader)
        self._asked_at, self._asked_in = time.monotonic(), runner.iter
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
        updated = not isinstance(wrapper, OptimWrapper) or wrapper.should_update()
        if updated and runner.iter + 1 >= self._ask_in:
            self._stop_if_received(runner, runner.iter + 1)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Stops where a signal was received during a validation."""
        if self._previous:
            self._stop_if_received(runner, runner.iter)

    def _handle(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._received_at = number, now
        elif now - self._received_at > _SAME_SIGNAL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _stop_if_received(self, runner: Runner, iteration: int) -> None:
        alone = get_world_size() == 1
        received = self.received if alone else self._ask_the_others(iteration)
        if received:
            self._stop(runner, iteration, signal.Signals(received))

    def _ask_the_others(self, iteration: int) -> int:
        """The signal that any process has received, or 0. Chooses when to ask again."""
        now = time.monotonic()
        answers = torch.tensor([float(self.received), now - self._asked_at])
        all_reduce(answers, op="max")
        received, seconds = answers.tolist()
        iterations = max(iteration - self._asked_in, 1)
        pause = min(int(iterations * _PERIOD / max(seconds, 1e-6)), 2 * iterations)
        self._asked_at, self._asked_in, self._ask_in = now, iteration, iteration + max(pause, 1)
        return int(received)

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
