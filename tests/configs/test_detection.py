from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from rednet.cli.config import read_config
from rednet.cli.random_batch import random_batch
from rednet.layers import Involution2d

mmdet = pytest.importorskip("mmdet", reason="detectors need mmdet")

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
    trainable = sum(each.numel() for each in detector(name).parameters() if each.requires_grad)
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


def parameters(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


def stock(name: str) -> nn.Module:
    return build(Config.fromfile(mmdet_config(name)).model)


def mmdet_config(name: str) -> Path:
    folder = Path(mmdet.__file__).parent / ".mim/configs"
    return next(folder.glob(f"*/{name}_1x_coco.py"))


# Parameters that the layers add to a ResNet-50, in millions, as published.
ADDED = {
    "faster-rcnn_r50-odconv_fpn": ("faster-rcnn_r50_fpn", 90.67 - 25.56),
    "mask-rcnn_r50-odconv_fpn": ("mask-rcnn_r50_fpn", 111.56 - 46.45),
    "mask-rcnn_r50-sac_fpn": ("mask-rcnn_r50_fpn", 14.87),
    "cascade-rcnn_r50-sac_fpn": ("cascade-rcnn_r50_fpn", 14.87),
    "htc_r50-sac_fpn": ("htc_r50_fpn", 14.87),
    # not published for a detector; what ResNet-50 loses on ImageNet
    "faster-rcnn_r50-spconv_fpn": ("faster-rcnn_r50_fpn", 18.345448 - 25.557032),
    # not published; a row, a column and two more norms for each of 16 convolutions
    "retinanet_r50-acblock_fpn": (
        "retinanet_r50_fpn",
        sum(n * (6 * c * c + 4 * c) for n, c in ((3, 64), (4, 128), (6, 256), (3, 512))) / 1e6,
    ),
}


@pytest.mark.parametrize("name", ADDED)
def test_a_variant_adds_the_parameters_of_its_layers(name: str) -> None:
    plain, added = ADDED[name]
    difference = parameters(detector(name)) - parameters(stock(plain))
    assert difference / 1e6 == pytest.approx(added, abs=0.01)


@pytest.mark.parametrize(("head", "published"), [("faster", 29.14), ("mask", 31.80)])
def test_odconv_in_mobilenet_has_the_published_parameters(head: str, published: float) -> None:
    """The published network has a classifier, which detection does not use."""
    classifier = 1280 * 1000 + 1000
    count = parameters(detector(f"{head}-rcnn_mobilenet-v2-odconv_fpn")) + classifier
    assert count / 1e6 == pytest.approx(published, abs=0.02)


def test_sac_serves_grouped_convolutions() -> None:
    """ResNeXt-101's, at the size of a test; the config wraps whatever backbone its base has."""
    backbone = read("cascade-rcnn_x101-64x4d-sac_fpn").model.backbone
    inner = backbone.module.module
    assert (inner.type.rpartition(".")[2], inner.depth, inner.groups) == ("ResNeXt", 101, 64)
    inner.update(depth=50, groups=4, base_width=4, init_cfg=None)
    with MODELS.switch_scope_and_registry("mmdet") as registry:
        swapped = registry.build(backbone)
    kinds = {type(each.conv2).__name__ for each in (swapped.layer1[0], swapped.layer2[0])}
    assert kinds == {"ConvAWS2d", "SAConv2d"} and swapped.layer2[0].conv2.groups == 4
    assert swapped(torch.rand(1, 3, 64, 64))[3].shape == (1, 2048, 2, 2)


WITH_NORMS = [
    "faster-rcnn_r50-odconv_fpn",
    "mask-rcnn_r50-odconv_fpn",
    "faster-rcnn_r50-spconv_fpn",
    "faster-rcnn_mobilenet-v2-odconv_fpn",
]


@pytest.mark.parametrize("name", WITH_NORMS)
def test_norms_that_plain_weights_lack_are_filled_by_a_checkpoint_that_is_given(name: str) -> None:
    given = dict(type="Pretrained", checkpoint="resnet50.pth", prefix="backbone.")
    options = {f"model.backbone.module.init_cfg.{key}": value for key, value in given.items()}
    path = str(FOLDER / f"{name}_1x_coco.py")
    assert "://" not in read_config(path)[0].pretty_text  # else it would be loaded, then refused
    backbone = build(read_config(path, options)[0].model).backbone
    assert backbone.init_cfg == given
    backbone.train()  # MobileNetV2 freezes its stages here
    assert not any(each.requires_grad for each in backbone.layer1.parameters())


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("faster-rcnn_r50-odconv_fpn", "resnet50_odconv4x"),
        ("faster-rcnn_r50-spconv_fpn", "resnet50_spconv2"),
        ("faster-rcnn_mobilenet-v2-odconv_fpn", "mobilenet-v2_odconv4x"),
    ],
)
def test_the_classifier_has_every_entry_of_the_detectors_backbone(
    name: str, classifier: str
) -> None:
    """By names and shapes, so that the checkpoint which the config's docstring asks for loads."""
    pytest.importorskip("mmpretrain")
    backbone = detector(name).backbone.state_dict()
    config = Config.fromfile(ROOT / f"configs/variants/{classifier}_imagenet.py")
    with MODELS.switch_scope_and_registry("mmpretrain") as registry:
        trained = registry.build(config.model.backbone).state_dict()
    assert {key: value.shape for key, value in backbone.items()} == {
        key: value.shape for key, value in trained.items()
    }


def test_sac_starts_from_plain_weights_and_freezes_nothing_untrained() -> None:
    """A plain checkpoint fills the backbone so that it computes what the ResNet computed."""
    backbone = read("mask-rcnn_r50-sac_fpn").model.backbone
    plain = backbone.module.module
    plain.update(depth=50, base_channels=8, stem_channels=8, init_cfg=None)
    backbone.module.conv_cfg.use_deform = False
    with MODELS.switch_scope_and_registry("mmdet") as registry:
        swapped, resnet = registry.build(backbone), registry.build(plain)
    swapped.load_state_dict(resnet.state_dict())
    image = torch.rand(1, 3, 64, 64)
    swapped.eval(), resnet.eval()
    for ours, theirs in zip(swapped(image), resnet(image), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


STOCK = (
    "faster-rcnn_r50_fpn",
    "cascade-mask-rcnn_r50_fpn",
    "atss_r50_fpn",
    "gfl_r50_fpn",
    "fcos_r50-caffe_fpn_gn-head",
)


@pytest.mark.parametrize("name", STOCK)
def test_a_stock_config_takes_rednet_by_cfg_options_alone(name: str) -> None:
    """The lines that README gives."""
    options = {
        "model.backbone.type": "RedNet",
        "model.backbone.stem_kernel_size": 7,
        "model.backbone.init_cfg.checkpoint": "rednet50.pth",
        "model.backbone.init_cfg.prefix": "backbone.",
    }
    config, _ = read_config(str(mmdet_config(name)), options)
    model = build(config.model)
    assert type(model.backbone).__name__ == "RedNet" and model.backbone.frozen_stages == 1
    assert not any(each.requires_grad for each in model.backbone.layer1.parameters())


def test_without_the_checkpoint_everything_is_trained() -> None:
    model = build(read("faster-rcnn_rednet50_fpn").model).train()
    assert all(each.requires_grad for each in model.parameters())
    assert all(each.training for each in model.modules())


@pytest.mark.parametrize("name", ["retinanet_rednet50_invfpn", "mask-rcnn_rednet50_invfpn-invhead"])
def test_a_training_step_gives_every_parameter_a_gradient(name: str) -> None:
    """The two configs with most surgery, at a small size: build, loss, backward, optimizer step."""
    config = read(name)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(config.model).train()
        optimizer = build_optim_wrapper(model, config.optim_wrapper)
        data = model.data_preprocessor(random_batch("mmdet", [(96, 160)], objects=3), True)
        loss, _ = model.parse_losses(model(**data, mode="loss"))
    loss.backward()
    assert loss.isfinite()
    assert [key for key, each in model.named_parameters() if each.grad is None] == []
    optimizer.step()
    assert all(each.isfinite().all() for each in model.parameters())
    assert optimizer.clip_grad_kwargs["max_norm"] == (40 if "retinanet" in name else 5)
