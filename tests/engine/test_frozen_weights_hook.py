from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rednet.engine.frozen_weights_hook import FrozenWeightsHook, untrained_frozen_norms
from rednet.errors import UserError
from rednet.models import RedNet

TINY = dict(depth=26, stem_channels=32, base_channels=16)


def train(model: nn.Module, backbone: dict | None = None) -> None:
    config = dict(model=dict(backbone=backbone or dict(type="RedNet")))
    FrozenWeightsHook().before_train(SimpleNamespace(model=model, cfg=config))


def test_frozen_random_norms_are_refused_by_name() -> None:
    model = nn.ModuleDict(dict(backbone=RedNet(**TINY, frozen_stages=0)))
    names = untrained_frozen_norms(model)
    assert names and all(name.startswith("backbone.stem.") for name in names)
    options = r"model\.backbone\.init_cfg\.type=Pretrained model\.backbone\.init_cfg\.checkpoint="
    with pytest.raises(UserError, match=rf"backbone\.stem\.0\.bn.* {options}"):
        train(model)


def test_random_norms_in_eval_mode_are_refused() -> None:
    backbone = RedNet(**TINY, norm_eval=True)
    with pytest.raises(UserError, match="frozen_stages=-1 model.backbone.norm_eval=False"):
        train(backbone)
    swapped = dict(type="SwapConv", module=dict(type="ResNet"))
    with pytest.raises(UserError, match="model.backbone.module.norm_eval=False"):
        train(backbone, swapped)


def test_norms_that_are_trained_are_fine() -> None:
    train(RedNet(**TINY))


def test_norms_that_saw_data_may_be_frozen() -> None:
    backbone = RedNet(**TINY)
    backbone(torch.rand(2, 3, 64, 64))
    backbone.frozen_stages, backbone.norm_eval = 4, True
    train(backbone)
    assert not any(module.training for module in backbone.layer1.modules())


def test_statistics_folded_into_scale_and_shift_are_trained_weights() -> None:
    norm = nn.Sequential(nn.BatchNorm2d(3))
    norm.train = lambda mode=True: norm  # frozen for good
    norm[0].eval()
    assert untrained_frozen_norms(norm) == ["0"]
    nn.init.uniform_(norm[0].bias)
    assert untrained_frozen_norms(norm) == []


def test_norms_without_statistics_are_of_no_concern_unless_frozen() -> None:
    norms = nn.Sequential(
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.GroupNorm(1, 3),
        nn.LayerNorm(3),
        nn.InstanceNorm2d(3),
    ).eval()
    norms.train = lambda mode=True: norms  # frozen for good
    assert untrained_frozen_norms(norms) == []
    assert untrained_frozen_norms(norms.requires_grad_(False)) == ["0", "1", "2"]
    nn.init.uniform_(norms[1].weight)
    assert untrained_frozen_norms(norms) == ["0", "2"]


def test_frozen_random_group_norms_are_refused() -> None:
    norm_cfg = dict(type="GN", num_groups=2)
    with pytest.raises(UserError, match=r"the norms stem\.0\.gn, "):
        train(RedNet(**TINY, norm_cfg=norm_cfg, frozen_stages=1))
    train(RedNet(**TINY, norm_cfg=norm_cfg, norm_eval=True))
