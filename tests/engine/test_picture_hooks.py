"""The hooks that leave pictures, in small trainings that resume and that do not validate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from rednet.engine import ConfusionMatrixHook, TrainingCurveHook
from rednet.engine.training_curve_hook import VAL_ITER

pytest.importorskip("mmpretrain")

ROOT = Path(__file__).resolve().parents[2]


def runner_of(work_dir: Path, **changes: Any) -> Runner:
    config = Config.fromfile(ROOT / "configs/demo/rednet26_digits.py")
    config.work_dir = str(work_dir)
    config.train_dataloader.batch_size = 8
    config.train_dataloader.dataset.indices = config.val_dataloader.dataset.indices = 24
    config.train_cfg.max_epochs = 2
    for hook in config.custom_hooks:
        hook.interval = 1
    config.merge_from_dict(changes)
    return Runner.from_cfg(config)


def hook_of(runner: Runner, kind: type) -> Any:
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, kind)]
    return hook


def shows_something(path: Path) -> bool:
    image = cv2.imread(str(path))
    return min(image.shape[:2]) > 500 and len(np.unique(image)) > 50


def test_a_training_that_resumes(tmp_path: Path) -> None:
    runner_of(tmp_path, **{"train_cfg.max_epochs": 1}).train()
    first = (tmp_path / "training_curve.png").read_bytes()
    runner = runner_of(tmp_path, resume=True)
    runner.train()

    assert shows_something(tmp_path / "training_curve.png")
    assert (tmp_path / "training_curve.png").read_bytes() != first
    log = runner.message_hub.log_scalars
    assert len(log["train/loss"].data[0]) == 6
    assert log[VAL_ITER].data[0].tolist() == [3, 6]

    assert shows_something(tmp_path / "confusion_matrix.png")
    matrix = hook_of(runner, ConfusionMatrixHook).matrix
    dataset = runner.val_dataloader.dataset
    labels = [dataset.get_data_info(index)["gt_label"] for index in range(24)]
    assert matrix.sum(dim=1).tolist() == np.bincount(labels, minlength=10).tolist()
    right = runner.message_hub.get_scalar("val/accuracy/top1").current()
    assert matrix.diagonal().sum().item() == pytest.approx(24 * right / 100)


def test_a_training_without_validation(tmp_path: Path) -> None:
    nothing = dict(val_cfg=None, val_dataloader=None, val_evaluator=None)
    runner_of(tmp_path, **nothing, **{"train_cfg.max_epochs": 1}).train()
    assert shows_something(tmp_path / "training_curve.png")
    assert not (tmp_path / "confusion_matrix.png").exists()


def test_a_training_that_counts_iterations(tmp_path: Path) -> None:
    loop = dict(by_epoch=False, max_iters=4, val_interval=2, _delete_=True)
    runner = runner_of(
        tmp_path, train_cfg=loop, param_scheduler=[], **{"default_hooks.checkpoint": None}
    )
    runner.train()
    assert shows_something(tmp_path / "training_curve.png")
    assert runner.message_hub.get_scalar(VAL_ITER).data[0].tolist() == [2, 4]


def test_values_without_a_position_are_left_out() -> None:
    log = {
        VAL_ITER: np.array([30.0]),
        "val/a": np.array([1.0, 2.0]),
        "val/b": np.array([3.0]),
        "val/time": np.array([4.0]),
    }
    curves = TrainingCurveHook()._metric_curves(log, 10)
    assert {name: (x.tolist(), y.tolist()) for name, (x, y) in curves.items()} == {
        "a": ([3.0], [2.0]),
        "b": ([3.0], [3.0]),
    }
    assert list(TrainingCurveHook(metrics=["b", "c"])._metric_curves(log, 10)) == ["b"]


def test_many_classes_are_drawn_without_numbers(tmp_path: Path) -> None:
    runner = runner_of(tmp_path)
    hook = hook_of(runner, ConfusionMatrixHook)
    hook.before_val_epoch(runner)
    hook.matrix = torch.eye(40, dtype=torch.int64)
    hook.draw(runner, tmp_path / "matrix.png")
    assert shows_something(tmp_path / "matrix.png")
