from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import LinearLR, OptimWrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope

pytest.importorskip("mmpretrain")

ROOT = Path(__file__).resolve().parents[2]
# Published for a stem with a 7 x 7 involution; the configs have a 3 x 3 one.
PUBLISHED = {26: 9.23, 38: 12.39, 50: 15.54, 101: 25.65, 152: 33.99}
LARGER_STEM = 720


@pytest.mark.parametrize("depth", PUBLISHED)
def test_the_models_have_the_published_size_with_a_smaller_stem(depth: int) -> None:
    config = Config.fromfile(ROOT / "configs" / f"rednet{depth}_imagenet.py")
    init_default_scope(config.default_scope)
    model = MODELS.build(config.model)
    parameters = sum(each.numel() for each in model.parameters())
    assert round((parameters + LARGER_STEM) / 1e6, 2) == PUBLISHED[depth]


def test_the_learning_rate_is_the_published_one() -> None:
    """Cosine over 130 epochs, times a linear warm-up from 1/4 over 3,130 iterations."""
    config = Config.fromfile(ROOT / "configs/rednet50_imagenet.py")
    assert config.optim_wrapper.optimizer == dict(
        type="SGD", lr=0.8, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    assert config.auto_scale_lr.base_batch_size == 2048
    assert config.train_cfg.max_epochs == 130
    assert config.model.head.loss == dict(type="LabelSmoothLoss", label_smooth_val=0.1)

    iterations_per_epoch = 626
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.8)
    wrapper = OptimWrapper(sgd)
    schedulers = [
        PARAM_SCHEDULERS.build({**each, "optimizer": wrapper}) for each in config.param_scheduler
    ]
    sgd.step()
    for iteration in range(7 * iterations_per_epoch):
        epoch = iteration // iterations_per_epoch
        warm_up = min(1, 0.25 + 0.75 * iteration / 3129)
        cosine = (1 + math.cos(math.pi * epoch / 130)) / 2
        assert wrapper.get_lr()["lr"][0] == pytest.approx(0.8 * warm_up * cosine, rel=1e-6)
        for scheduler in schedulers:
            if isinstance(scheduler, LinearLR) or (iteration + 1) % iterations_per_epoch == 0:
                scheduler.step()
