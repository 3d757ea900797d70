"""Random numbers that depend on the seed and the place in the training only.

Saved states of random generators cannot continue a training bit for bit: a validation draws from
them, and the data loader's workers, which have generators of their own, are ahead of the training.
Here every iteration and every sample starts its generators from the seed and its own position.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from torch.utils.data import BatchSampler, DataLoader, get_worker_info

from rednet.registry import DATA_SAMPLERS

# The first number of a position: what it is the position of.
EPOCH, ITERATION, SAMPLE = range(3)


def seed_generators(seed: int, *position: int, devices: bool = True) -> None:
    """Starts the generators of random, numpy and torch.

    Args:
        seed: The seed of the run.
        position: Non-negative numbers that name the place in the training.
        devices: Whether the generators of all devices are seeded or the CPU's only.
    """
    words = np.random.SeedSequence([seed, *position]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    if devices:
        torch.manual_seed(int(words[2]))
    else:
        torch.default_generator.manual_seed(int(words[2]))


class SeededIndex(int):
    """The index of a sample with what its random numbers are drawn from."""

    seeds: tuple[int, ...]

    @classmethod
    def of(cls, index: int, *seeds: int) -> SeededIndex:
        """Returns the index with its seed and position."""
        seeded = cls(index)
        seeded.seeds = seeds
        return seeded


@DATA_SAMPLERS.register_module()
class SeededBatchSampler:
    """Gives every sample of another batch sampler its seed, and can begin within an epoch.

    The indices are :class:`SeededIndex`, which reach the workers as they are.

    Args:
        sampler: The sampler of indices.
        batch_size: Samples per batch.
        drop_last: Whether an incomplete last batch is left out.
        batch_sampler: Config of the batch sampler, by default PyTorch's.
        seed: The seed of the run.
    """

    def __init__(
        self,
        sampler: Iterable[int],
        batch_size: int,
        drop_last: bool = False,
        batch_sampler: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.batches: Any
        if batch_sampler is None:
            self.batches = BatchSampler(sampler, batch_size, drop_last)
        else:
            given = dict(sampler=sampler, batch_size=batch_size)
            self.batches = DATA_SAMPLERS.build(batch_sampler, default_args=given)
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.seed = seed
        self.epoch = 0
        self.first_batch = 0

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        first, self.first_batch = self.first_batch, 0
        place = (self.seed, SAMPLE, get_rank(), epoch)
        for number, batch in enumerate(self.batches):
            if number >= first:
                yield [
                    SeededIndex.of(index, *place, number, slot) for slot, index in enumerate(batch)
                ]

    def __len__(self) -> int:
        return len(self.batches)


class SeededItems:
    """Reads samples, each with random numbers of its own.

    It serves as the ``__getitems__`` of a data set, by which PyTorch reads a batch.

    Args:
        dataset: The data set.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __call__(self, indices: list[int]) -> list[Any]:
        """Reads a batch. Outside of a worker, the process keeps its random states."""
        if get_worker_info() is not None:
            return [self._item(index) for index in indices]
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        items = [self._item(index) for index in indices]
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        return items

    def _item(self, index: int) -> Any:
        if isinstance(index, SeededIndex):
            seed_generators(*index.seeds, devices=False)
        return self.dataset[int(index)]


def seeded_loader_config(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """The config of a data loader with a :class:`SeededBatchSampler`."""
    config = dict(config)
    config["batch_sampler"] = dict(
        type="SeededBatchSampler",
        batch_sampler=config.get("batch_sampler"),
        drop_last=config.pop("drop_last", False),
        seed=seed,
    )
    return config


def seed_samples(loader: DataLoader) -> None:
    """Makes a loader with a :class:`SeededBatchSampler` read its samples by their seeds."""
    dataset: Any = loader.dataset
    dataset.__getitems__ = SeededItems(dataset)
