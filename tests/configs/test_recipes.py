"""The recipes of the configs are the published ones, field by field.

RedNet's are those of the configs of d-li14/involution, ODConv's those of the README of
OSVAI/ODConv, ACNet's those of acnet/do_acnet.py in DingXiaoH/ACNet and SPConv's those of the paper.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import nn

from rednet.layers import ACBlock

ROOT = Path(__file__).resolve().parents[2]


def coco(lr: float, warm_up: int, clip: float | None = None) -> dict[str, Any]:
    """A recipe of 12 epochs on COCO."""
    return dict(
        optimizer=dict(type="SGD", lr=lr, momentum=0.9, weight_decay=1e-4),
        clip=clip,
        length=12,
        warm_up=dict(begin=0, end=warm_up, start_factor=0.001),
        decay=dict(type="MultiStepLR", milestones=[8, 11], gamma=0.1),
    )


def cityscapes() -> dict[str, Any]:
    return dict(
        optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=5e-4),
        clip=None,
        length=80000,
        warm_up=None,
        decay=dict(type="PolyLR", power=0.9, eta_min=1e-4, end=80000),
    )


def classifier(length: int, lr: float, weight_decay: float, **decay: Any) -> dict[str, Any]:
    """A recipe of a classifier without warm-up."""
    return dict(
        optimizer=dict(type="SGD", lr=lr, momentum=0.9, weight_decay=weight_decay),
        clip=None,
        length=length,
        warm_up=None,
        decay=decay,
    )


REDNET = dict(
    optimizer=dict(type="SGD", lr=0.8, momentum=0.9, weight_decay=1e-4, nesterov=True),
    clip=None,
    length=130,
    warm_up=dict(begin=0, end=3130, start_factor=0.25),
    decay=dict(type="CosineAnnealingLR", T_max=130),
)
STEPS = classifier(100, 0.1, 1e-4, type="MultiStepLR", milestones=[30, 60, 90], gamma=0.1)
MOBILE = classifier(150, 0.05, 4e-5, type="CosineAnnealingLR", T_max=150)
SPCONV = classifier(90, 0.1, 1e-4, type="MultiStepLR", milestones=[30, 60], gamma=0.1)
PUBLISHED: dict[str, dict[str, Any]] = {
    **{f"rednet{depth}_imagenet": REDNET for depth in (26, 38, 50, 101, 152)},
    "detection/retinanet_rednet50_fpn_1x_coco": coco(0.01, 2000),
    "detection/retinanet_rednet50_invfpn_1x_coco": coco(0.01, 2000, clip=40),
    "detection/faster-rcnn_rednet50_fpn_1x_coco": coco(0.02, 500),
    "detection/faster-rcnn_rednet50_invfpn_1x_coco": coco(0.02, 2000),
    "detection/faster-rcnn_rednet50_invfpn-invhead_1x_coco": coco(0.02, 2000, clip=5),
    "detection/mask-rcnn_rednet50_fpn_1x_coco": coco(0.02, 500),
    "detection/mask-rcnn_rednet50_invfpn_1x_coco": coco(0.02, 2000),
    "detection/mask-rcnn_rednet50_invfpn-invhead_1x_coco": coco(0.02, 2000, clip=5),
    **{
        f"detection/{detector}-rcnn_{backbone}-odconv_fpn_1x_coco": coco(0.02, 500)
        for detector in ("faster", "mask")
        for backbone in ("r50", "mobilenet-v2")
    },
    **{
        f"segmentation/{name}_4xb2-80k_cityscapes-512x1024": cityscapes()
        for name in ("fpn_rednet50", "fpn_rednet50-invneck", "upernet_rednet50")
    },
    **{
        f"variants/{name}_imagenet": STEPS
        for name in (
            "resnet18_odconv1x",
            "resnet18_odconv4x",
            "resnet50_odconv1x",
            "resnet50_odconv4x",
            "resnet101_odconv1x",
            "resnet101_odconv2x",
            "resnet18_dynamicconv",
        )
    },
    **{
        f"variants/mobilenet-v2{width}_odconv{kernels}x_imagenet": MOBILE
        for width in ("", "-x0.75", "-x0.5")
        for kernels in (1, 4)
    },
    **{f"variants/resnet50_spconv{ratio}_imagenet": SPCONV for ratio in (2, 4, 8)},
    **{
        f"variants/resnet{depth}_acblock_imagenet": classifier(
            100, 0.1, 1e-4, type="CosineAnnealingLR", T_max=100
        )
        for depth in (18, 34, 50)
    },
    **{
        f"variants/{name}_acblock_cifar10": classifier(
            epochs, lr, decay, type="CosineAnnealingLR", T_max=epochs, convert_to_iter_based=True
        )
        for name, epochs, lr, decay in (
            ("cifar-quick", 150, 0.1, 1e-4),
            ("vgg16", 400, 0.1, 1e-4),
            ("resnet56", 400, 0.2, 1e-4),
            ("wrn-16-8", 400, 0.1, 5e-4),
        )
    },
}
ACNETS = [name for name in PUBLISHED if "acblock" in name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipe_is_the_published_one(name: str) -> None:
    library = "mmdet" if "detection" in name else "mmseg" if "segment" in name else "mmpretrain"
    pytest.importorskip(library)
    config = Config.fromfile(ROOT / "configs" / f"{name}.py")
    expected = PUBLISHED[name]
    optimizer = dict(config.optim_wrapper.optimizer)
    optimizer.pop("_scope_", None)  # mmengine adds it to what comes from a library
    assert optimizer == expected["optimizer"]
    clip = config.optim_wrapper.get("clip_grad")
    assert (clip and clip.max_norm) == expected["clip"]
    assert (
        config.train_cfg.get("max_epochs", config.train_cfg.get("max_iters"))
        == (expected["length"])
    )
    schedulers = config.param_scheduler
    schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
    warm_up = [each for each in schedulers if each.type == "LinearLR"]
    fields = expected["warm_up"]
    assert [{key: each[key] for key in fields} for each in warm_up] == ([fields] if fields else [])
    [decay] = [each for each in schedulers if each.type != "LinearLR"]
    assert {key: decay[key] for key in expected["decay"]} == expected["decay"]


MEAN_AND_STD = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
# By the end of a config's name: what happens to a training image, and the images of a GPU.
PIPELINES: dict[str, tuple[list[dict[str, Any]], int]] = {
    "imagenet": (
        [
            dict(type="RandomResizedCrop", scale=224),
            dict(type="RandomFlip", prob=0.5, direction="horizontal"),
        ],
        32,
    ),
    "coco": (
        [
            dict(type="Resize", scale=(1333, 800), keep_ratio=True),
            dict(type="RandomFlip", prob=0.5),
        ],
        2,
    ),
    "cityscapes-512x1024": (
        [
            dict(type="RandomResize", scale=(2048, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type="RandomCrop", crop_size=(512, 1024), cat_max_ratio=0.75),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PhotoMetricDistortion"),
        ],
        2,
    ),
}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if not name.endswith("cifar10")])
def test_the_images_are_the_published_ones(name: str) -> None:
    """Crops, flips and colors, normalization, batch size, smoothing of labels, frozen stages."""
    library = "mmdet" if "detection" in name else "mmseg" if "segment" in name else "mmpretrain"
    pytest.importorskip(library)
    config = Config.fromfile(ROOT / "configs" / f"{name}.py")
    data_set = name.rpartition("_")[2]
    pipeline, batch_size = PIPELINES[data_set]
    loader, preprocessor = config.train_dataloader, config.get("data_preprocessor")
    steps = [dict(each) for each in loader.dataset.pipeline]
    assert [each for each in steps if not each["type"].startswith(("Load", "Pack"))] == pipeline
    assert loader.batch_size == batch_size
    preprocessor = config.model.get("data_preprocessor", preprocessor)
    assert {key: preprocessor[key] for key in MEAN_AND_STD} == MEAN_AND_STD
    backbone = config.model.backbone.get("module", config.model.backbone)
    frozen = {"coco": 2 if "mobilenet" in name else 1}.get(data_set, -1)
    # Stage 1 of ODConv's MobileNetV2 ends where mmpretrain's second one does.
    assert backbone.get("frozen_stages", -1) == frozen
    if data_set == "imagenet":
        is_rednet = name.startswith("rednet")
        assert config.auto_scale_lr.base_batch_size == (2048 if is_rednet else 256)
        loss = config.model.head.loss
        assert loss.get("label_smooth_val", 0) == (0.1 if is_rednet else 0)
        resize, crop = config.val_dataloader.dataset.pipeline[1:3]
        assert (resize.type, resize.scale, resize.edge) == ("ResizeEdge", 256, "short")
        assert (crop.type, crop.crop_size) == ("CenterCrop", 224)


RESNETS = sorted(path.stem for path in (ROOT / "configs/variants").glob("resnet*_imagenet.py"))


@pytest.mark.parametrize("name", RESNETS)
def test_the_last_norms_of_a_resnets_blocks_start_at_one(name: str) -> None:
    pytest.importorskip("mmpretrain")
    config = Config.fromfile(ROOT / f"configs/variants/{name}.py")
    assert config.model.backbone.module.zero_init_residual is False


INVOLUTION_NECKS = [name for name in PUBLISHED if "invfpn" in name or "invneck" in name]


@pytest.mark.parametrize("name", INVOLUTION_NECKS)
def test_an_fpns_involutions_start_as_its_convolutions_do(name: str) -> None:
    """The authors' FPN gives Xavier's initialization to every convolution, in involutions too."""
    pytest.importorskip("mmdet" if "detection" in name else "mmseg")
    config = Config.fromfile(ROOT / "configs" / f"{name}.py")
    init_cfg = dict(type="Xavier", distribution="uniform")
    assert dict(config.model.neck.conv_cfg.init_cfg) == init_cfg


@pytest.mark.parametrize("name", [name for name in PUBLISHED if re.match("variants.*odconv", name)])
def test_odconv_is_trained_with_its_dropout_and_temperature(name: str) -> None:
    config = Config.fromfile(ROOT / "configs" / f"{name}.py")
    assert config.model.head.dropout == 0.2
    assert [each.type for each in config.custom_hooks].count("TemperatureAnnealHook") == 1


@pytest.mark.parametrize("name", ACNETS)
def test_a_bias_of_acnet_learns_twice_as_fast(name: str) -> None:
    pytest.importorskip("mmpretrain")
    config = Config.fromfile(ROOT / "configs" / f"{name}.py")
    lr = config.optim_wrapper.optimizer.lr
    model = nn.Sequential(ACBlock(3, 4, 3), nn.Linear(4, 2))
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    decay = config.optim_wrapper.optimizer.weight_decay
    assert len(optimizer.param_groups) == len(list(model.parameters()))
    for (key, parameter), group in zip(
        model.named_parameters(), optimizer.param_groups, strict=True
    ):
        assert group["params"][0] is parameter and group["weight_decay"] == decay
        assert group["lr"] == (2 * lr if key.endswith("bias") else lr)


@pytest.mark.parametrize("name", [name for name in ACNETS if "cifar10" in name])
def test_cifar_is_padded_cropped_and_flipped(name: str) -> None:
    pytest.importorskip("mmpretrain")
    config = Config.fromfile(ROOT / "configs" / f"{name}.py")
    assert config.data_preprocessor.mean == config.data_preprocessor.std == [127.5] * 3
    loaders = (config.train_dataloader, config.val_dataloader, config.test_dataloader)
    assert {(each.batch_size, each.dataset.download) for each in loaders} == {(128, False)}
    assert [each.dataset.split for each in loaders] == ["train", "test", "test"]
    crop, flip, _ = config.train_dataloader.dataset.pipeline
    assert (crop.type, crop.crop_size, crop.padding) == ("RandomCrop", 32, 4)
    assert (flip.type, flip.prob, flip.direction) == ("RandomFlip", 0.5, "horizontal")
    assert [each.type for each in config.val_dataloader.dataset.pipeline] == ["PackInputs"]
    assert config.param_scheduler.end == config.train_cfg.max_epochs
