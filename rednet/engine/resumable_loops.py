"""mmengine's training loops, whose interrupted runs continue bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.dist import get_rank
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from rednet.engine.seeding import (
    EPOCH,
    ITERATION,
    SeededBatchSampler,
    seed_generators,
    seed_samples,
    seeded_loader_config,
)
from rednet.engine.worker_signals import leave_signals_to_main_process
from rednet.registry import LOOPS


def _build_loader(runner: Runner, loader: DataLoader | Mapping[str, Any]) -> DataLoader:
    if not isinstance(loader, Mapping):
        return loader
    seed: Any = runner.seed
    config = seeded_loader_config(dict(loader), seed)
    differ = runner._randomness_cfg.get("diff_rank_seed", False)
    built = runner.build_dataloader(config, seed=seed, diff_rank_seed=differ)
    seed_samples(built)
    leave_signals_to_main_process(built)
    return built


class _SeededIterations:
    """Draws the random numbers of each iteration from its number."""

    runner: Runner
    iter: int

    def run_iter(self, *args: Any) -> None:
        """Runs one iteration."""
        seed: Any = self.runner.seed
        seed_generators(seed, ITERATION, get_rank(), self.iter)
        super().run_iter(*args)  # type: ignore[misc]


@LOOPS.register_module()
class ResumableEpochTrainLoop(_SeededIterations, EpochBasedTrainLoop):
    """mmengine's ``EpochBasedTrainLoop`` that resumes bit for bit, also within an epoch.

    The random numbers of an iteration, such as dropout's, and those of a sample's augmentation
    depend on the seed, the rank and their position only, not on the workers or on what ran before.
    A resumed epoch skips the batches that have been trained without reading their images.

    Args:
        runner: The runner.
        dataloader: The data loader's config. A loader that is built already keeps its samplers,
            and is resumed at the beginning of an epoch only.
        max_epochs: Epochs to train.
        kwargs: Further arguments of ``EpochBasedTrainLoop``.
    """

    def __init__(
        self, runner: Runner, dataloader: DataLoader | dict, max_epochs: int, **kwargs: Any
    ) -> None:
        super().__init__(runner, _build_loader(runner, dataloader), max_epochs, **kwargs)

    def run_epoch(self) -> None:
        """Trains one epoch, or what is left of it."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        seed: Any = self.runner.seed
        seed_generators(seed, EPOCH, get_rank(), self._epoch)
        for index, batch in enumerate(self.dataloader, self._begin_epoch()):
            self.run_iter(index, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def _begin_epoch(self) -> int:
        """The number of the first batch that has not been trained."""
        batches = self.dataloader.batch_sampler
        if not isinstance(batches, SeededBatchSampler):
            return 0
        batches.epoch = self._epoch
        batches.first_batch = self._iter - self._epoch * len(self.dataloader)
        return batches.first_batch


@LOOPS.register_module()
class ResumableIterTrainLoop(_SeededIterations, IterBasedTrainLoop):
    """mmengine's ``IterBasedTrainLoop`` that resumes bit for bit.

    The random numbers are those of :class:`ResumableEpochTrainLoop`. A resumed run reads the
    batches that have been trained once more, as mmengine's does.

    Args:
        runner: The runner.
        dataloader: The data loader or its config.
        max_iters: Iterations to train.
        kwargs: Further arguments of ``IterBasedTrainLoop``.
    """

    def __init__(
        self, runner: Runner, dataloader: DataLoader | dict, max_iters: int, **kwargs: Any
    ) -> None:
        super().__init__(runner, _build_loader(runner, dataloader), max_iters, **kwargs)
