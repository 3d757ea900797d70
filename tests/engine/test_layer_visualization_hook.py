"""Pictures of the layers during a small training."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from rednet.engine import LayerVisualizationHook, layer_visualization_hook
from rednet.errors import ArgumentError, ImageError
from rednet.visualization.images import ImageReader

pytest.importorskip("mmpretrain")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8))
    return str(path)


def runner_of(work_dir: Path, hook: dict[str, Any] | None, **changes: Any) -> Runner:
    config = Config.fromfile(ROOT / "configs/demo/rednet26_digits.py")
    config.work_dir = str(work_dir)
    config.train_dataloader.batch_size = 8
    config.train_dataloader.dataset.indices = 16
    config.merge_from_dict(
        dict(val_cfg=None, val_dataloader=None, val_evaluator=None, param_scheduler=[])
    )
    config.train_cfg = dict(by_epoch=True, max_epochs=2)
    config.custom_hooks = [] if hook is None else [dict(type="LayerVisualizationHook", **hook)]
    config.merge_from_dict(changes)
    return Runner.from_cfg(config)


def pictures_in(work_dir: Path) -> list[str]:
    return sorted(path.name for path in work_dir.glob("*/vis_data/vis_image/*.png"))


def test_pictures_and_an_unchanged_training(tmp_path: Path, image: str) -> None:
    hook = dict(images=[image], layers="layer4", points=[(3, 4)], interval=2)
    watched = runner_of(tmp_path / "a", hook)
    watched.train()
    plain = runner_of(tmp_path / "b", None)
    plain.train()
    layer = "backbone.layer4.0.conv2"
    names = (f"{layer}.kernels", f"{layer}.maps", "overview.group")
    assert pictures_in(tmp_path / "a") == [f"{name}.0_photo_2.png" for name in names]
    assert watched.model.backbone.training and watched.model.head.training
    other = plain.model.state_dict()
    for key, value in watched.model.state_dict().items():
        assert torch.equal(value, other[key]), key


def test_other_processes_draw_nothing(
    tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_visualization_hook, "is_main_process", lambda: False)
    runner_of(tmp_path, dict(images=[image], layers="layer4")).train()
    assert pictures_in(tmp_path) == []


def test_a_training_that_counts_iterations(
    tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = dict(by_epoch=False, max_iters=2)
    hook = dict(images=[image], layers="layer4")
    runner = runner_of(tmp_path, hook, train_cfg=dict(loop, _delete_=True))
    read = Mock(wraps=ImageReader(runner.cfg))
    monkeypatch.setattr(layer_visualization_hook, "ImageReader", lambda config: read)
    runner.train()
    assert pictures_in(tmp_path) == [
        f"{name}.0_photo_{step}.png"
        for name in ("backbone.layer4.0.conv2.maps", "overview.group")
        for step in (1, 2)
    ]
    read.assert_called_once_with(Path(image))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(layers="conv9"), ArgumentError, "layers='conv9' matches none"),
        (dict(points=[(40, 0)]), ArgumentError, "points: 40,0 lies outside of .* 32 x 32 pixels"),
        (dict(images=["missing.png"]), ImageError, "cannot read image missing.png"),
    ],
)
def test_mistakes_show_before_the_training(
    tmp_path: Path, image: str, arguments: dict, error: type[Exception], message: str
) -> None:
    runner = runner_of(tmp_path, {"images": [image], **arguments})
    with pytest.raises(error, match=message):
        runner.train()
    assert runner.iter == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(images=[]), "images must be a list of at least one path"),
        (dict(images="a.png"), "images must be a list of at least one path"),
        (dict(images=["a.png"], interval=0), "interval must be at least 1"),
    ],
)
def test_arguments_are_checked(arguments: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        LayerVisualizationHook(**arguments)
