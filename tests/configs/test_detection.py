from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from torch import nn

from rednet.layers import Involution2d

pytest.importorskip("mmdet", reason="detectors need mmdet")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs/detection"
# ImageNet weights are named, so that stages are frozen as published; nothing loads them here.
CHECKPOINT = {"model.backbone.init_cfg.checkpoint": "rednet50.pth"}

# Trainable parameters in millions, as published.
PUBLISHED = {
    "retinanet_rednet50_fpn": 27.8,
    "retinanet_rednet50_invfpn": 26.3,
    "faster-rcnn_rednet50_fpn": 31.6,
    "faster-rcnn_rednet50_invfpn": 29.5,
    "faster-rcnn_rednet50_invfpn-invhead": 29.0,
    "mask-rcnn_rednet50_fpn": 34.2,
    "mask-rcnn_rednet50_invfpn": 32.2,
    "mask-rcnn_rednet50_invfpn-invhead": 29.5,
}


def read(name: str, options: dict | None = None) -> Config:
    config = Config.fromfile(FOLDER / f"{name}_1x_coco.py")
    config.merge_from_dict(options or {})
    return config


def build(model: ConfigDict) -> nn.Module:
    with torch.device("meta"), MODELS.switch_scope_and_registry("mmdet") as registry:
        return registry.build(model)


@functools.lru_cache
def detector(name: str) -> nn.Module:
    return build(read(name, CHECKPOINT).model)


def involutions(module: nn.Module) -> list[str]:
    return [name for name, each in module.named_modules() if isinstance(each, Involution2d)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_trainable_parameters_are_the_published_ones(name: str) -> None:
    parameters = detector(name).parameters()
    trainable = sum(each.numel() for each in parameters if each.requires_grad)
    assert trainable / 1e6 == pytest.approx(PUBLISHED[name], abs=0.1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_involutions_are_where_the_name_says(name: str) -> None:
    model = detector(name)
    levels = range(3 if "retinanet" in name else 4)
    expected = [f"fpn_convs.{level}.conv" for level in levels] if "invfpn" in name else []
    assert involutions(model.neck) == expected
    assert bool(involutions(model.backbone.stem)) and model.backbone.stem[1].kernel_size == (7, 7)
    if "rcnn" in name:
        assert involutions(model.rpn_head) == (["rpn_conv"] if "invhead" in name else [])
        mask = [f"mask_head.convs.{index}.conv" for index in range(4)]
        has_mask_head = name.startswith("mask") and "invhead" in name
        assert involutions(model.roi_head) == (mask if has_mask_head else [])
