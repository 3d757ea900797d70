"""Interrupted trainings continue bit for bit: signals, augmentation, samplers and workers."""

from __future__ import annotations

import gc
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils.data import Dataset, get_worker_info

from rednet.checkpoint.writing import INTERRUPTED, LAST_CHECKPOINT
from rednet.engine import InterruptHook
from rednet.engine.worker_signals import SIGNALS


class Noisy(Dataset):
    """Samples that draw from every generator, as augmentation does."""

    metainfo: dict = {}

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        assert type(index) is int
        drawn = random.random(), np.random.rand(), torch.rand(()).item()
        return dict(inputs=torch.tensor([index, *drawn], dtype=torch.float32))


class Model(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

    def forward(self, inputs: Any, mode: str = "loss") -> Any:
        if mode == "predict":
            return [BaseDataElement() for _ in inputs]
        return dict(loss=self.layers(torch.stack(list(inputs))).square().mean())


class Nothing(BaseMetric):
    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(1)

    def compute_metrics(self, results: list) -> dict[str, float]:
        return dict(samples=len(results))


class SignalAt(Hook):
    """Sends this process a signal in an iteration."""

    def __init__(self, iteration: int, number: int = signal.SIGTERM) -> None:
        self.iteration, self.number = iteration, number

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        if runner.iter == self.iteration:
            os.kill(os.getpid(), self.number)


class Draw(Hook):
    """Draws random numbers after an epoch, as a validation does."""

    def after_train_epoch(self, runner: Runner, *_: Any) -> None:
        torch.rand(3), random.random(), np.random.rand()


@pytest.fixture(autouse=True)
def without_versions_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting them takes seconds."""
    monkeypatch.setattr(Runner, "_log_env", lambda *_: None)


@pytest.fixture(autouse=True)
def without_waiting_for_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A loader that is garbage with its queues waits this long for each worker, then ends it."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    yield
    gc.collect()


def runner_of(work_dir: Path, by_epoch: bool, workers: int, **changes: Any) -> Runner:
    loop: dict[str, Any] = dict(type="ResumableEpochTrainLoop", max_epochs=3)
    if not by_epoch:
        loop = dict(type="ResumableIterTrainLoop", max_iters=15)
    sampler = dict(type="DefaultSampler" if by_epoch else "InfiniteSampler", shuffle=True)
    torch.manual_seed(0)  # the weights of the model
    checkpoint = dict(type="SafeCheckpointHook", by_epoch=by_epoch, interval=1 if by_epoch else 5)
    schedule = dict(type="OneCycleLR", eta_max=0.2, total_steps=15, by_epoch=False)
    optimizer = dict(type="SGD", lr=0.1, momentum=0.9)
    settings: dict[str, Any] = dict(
        model=Model(),
        work_dir=str(work_dir),
        train_cfg=loop,
        train_dataloader=dict(
            dataset=Noisy(),
            sampler=sampler,
            batch_size=2,
            num_workers=workers,
            persistent_workers=workers > 0,
        ),
        optim_wrapper=dict(optimizer=optimizer),
        param_scheduler=[schedule],
        default_hooks=dict(checkpoint=checkpoint, logger=None),
        custom_hooks=[dict(type="InterruptHook"), Draw()],
        randomness=dict(seed=5),
        experiment_name=f"{work_dir.name}{random.random()}",
    )
    return Runner(**{**settings, **changes})


def weights_after(runner: Runner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in runner.train().state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("by_epoch", [True, False], ids=["epochs", "iterations"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_within_an_epoch(tmp_path: Path, by_epoch: bool, workers: int) -> None:
    expected = weights_after(runner_of(tmp_path / "whole", by_epoch, workers))
    work_dir = tmp_path / "interrupted"
    first = runner_of(work_dir, by_epoch, workers)
    first.register_hook(SignalAt(6))
    with pytest.raises(SystemExit) as stopped:
        first.train()
    assert stopped.value.code == 143
    assert (work_dir / LAST_CHECKPOINT).read_text() == INTERRUPTED
    saved = torch.load(work_dir / INTERRUPTED, weights_only=True)
    assert saved["meta"]["iter"] == 7 and saved["meta"]["epoch"] == (1 if by_epoch else 0)
    second = runner_of(work_dir, by_epoch, workers, resume=True)
    assert same(weights_after(second), expected)
    assert not (work_dir / INTERRUPTED).exists()
    last = "epoch_3.pth" if by_epoch else "iter_15.pth"
    assert (work_dir / LAST_CHECKPOINT).read_text() == last


def test_the_end_of_an_epoch_and_other_numbers_of_workers(tmp_path: Path) -> None:
    expected = weights_after(runner_of(tmp_path, True, 0))
    start = str(tmp_path / "epoch_1.pth")
    again = runner_of(tmp_path / "b", True, 2, load_from=start, resume=True)
    assert same(weights_after(again), expected)


def test_other_seeds_give_other_numbers(tmp_path: Path) -> None:
    expected = weights_after(runner_of(tmp_path / "a", True, 0))
    other = runner_of(tmp_path / "b", True, 0, randomness=dict(seed=6))
    assert not same(weights_after(other), expected)


def test_the_last_iteration_of_an_epoch(tmp_path: Path) -> None:
    expected = weights_after(runner_of(tmp_path / "whole", True, 0))
    first = runner_of(tmp_path, True, 0)
    first.register_hook(SignalAt(9, signal.SIGINT))
    with pytest.raises(SystemExit) as stopped:
        first.train()
    assert stopped.value.code == 130
    assert same(weights_after(runner_of(tmp_path, True, 0, resume=True)), expected)


def test_an_update_is_finished(tmp_path: Path) -> None:
    wrapper = dict(optimizer=dict(type="SGD", lr=0.1), accumulative_counts=3)
    runner = runner_of(tmp_path, True, 0, optim_wrapper=wrapper)
    runner.register_hook(SignalAt(6))
    with pytest.raises(SystemExit):
        runner.train()
    assert torch.load(tmp_path / INTERRUPTED, weights_only=True)["meta"]["iter"] == 9


class Told(Noisy):
    """Samples of which one tells the worker that reads it, and then the training, to stop."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index == 3 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getppid(), signal.SIGTERM)
        return super().__getitem__(index)


@pytest.mark.parametrize("where", ["train", "val"])
@pytest.mark.parametrize("by_epoch", [True, False], ids=["epochs", "iterations"])
def test_a_signal_that_workers_get_too(tmp_path: Path, by_epoch: bool, where: str) -> None:
    sampler = dict(type="DefaultSampler", shuffle=False)
    loader = dict(dataset=Told(), sampler=sampler, batch_size=2, num_workers=1)
    changes: dict[str, Any] = dict(train_dataloader=dict(loader, drop_last=True))
    if where == "val":
        changes = dict(val_dataloader=loader, val_cfg=dict(), val_evaluator=[Nothing()])
    runner = runner_of(tmp_path, by_epoch, 0, **changes)
    with pytest.raises(SystemExit) as stopped:
        runner.train()
    assert stopped.value.code == 143
    assert (tmp_path / INTERRUPTED).is_file()


def hook_that_handles() -> tuple[InterruptHook, Any]:
    hook, runner = InterruptHook(), SimpleNamespace(val_loop=None, iter=0)
    hook.before_train(runner)  # type: ignore[arg-type]
    return hook, runner


def test_the_end_gives_the_signals_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    hook, runner = hook_that_handles()
    assert [signal.getsignal(number) for number in SIGNALS] == [hook._handle] * 2
    hook.after_train(runner)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_second_signal_ends_the_process_unless_it_is_the_same_one_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hook, runner = hook_that_handles()
    ended: list[int] = []
    clock = iter([10.0, 10.5, 12.5])
    monkeypatch.setattr("rednet.engine.interrupt_hook.time.monotonic", lambda: next(clock))
    monkeypatch.setattr(
        "rednet.engine.interrupt_hook.os.kill", lambda _, number: ended.append(number)
    )
    for expected in ([], [], [signal.SIGTERM]):
        signal.raise_signal(signal.SIGTERM)
        assert ended == expected
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    hook.after_train(runner)


def test_processes_ask_each_other_about_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    hook, now, asked = InterruptHook(), [0.0], []
    module = "rednet.engine.interrupt_hook"
    monkeypatch.setattr(f"{module}.get_world_size", lambda: 2)
    monkeypatch.setattr(f"{module}.all_reduce", lambda *_, **__: asked.append(runner.iter))
    monkeypatch.setattr(f"{module}.time.monotonic", lambda: now[0])
    runner: Any = SimpleNamespace(iter=0, optim_wrapper=None)
    for runner.iter in range(100):
        now[0] += 0.125 if runner.iter < 70 else 2.0
        hook.after_train_iter(runner, 0)
    assert asked[:4] == [0, 2, 6, 14]  # twice as far each time
    assert [each for each in asked if 14 <= each < 70] == list(range(14, 70, 8))
    assert asked[-20:] == list(range(80, 100))  # every iteration takes longer than a second
